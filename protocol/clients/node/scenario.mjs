// Plays the scenarios of chapter 3 of ../../SPEC.md: `node scenario.mjs ENDPOINT`.

import { text as textOf } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";
import { Client, GatewayError } from "./soloist.mjs";

const LISTEN_MS = 1000;

const print = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const hex = (bytes) => Buffer.from(bytes).toString("hex");

/** What a line says of an outcome, or of a GatewayError that a promise ended with. */
async function outcomeOf(result, more = () => ({})) {
  try {
    const reply = await result;
    return { text: reply.text, ...more(reply) };
  } catch (error) {
    if (!(error instanceof GatewayError) || error.code === "gateway_lost") throw error;
    return { error: { code: error.code, retryable: error.retryable, started: error.started } };
  }
}

/** Read a streamed request to its end, with `each` for its messages; gives how many there were. */
async function readAll(request, each = () => {}) {
  let pieces = 0;
  try {
    for await (const item of request) {
      pieces += 1;
      each(item);
    }
  } catch (error) {
    if (!(error instanceof GatewayError)) throw error; // otherwise it is the outcome
  }
  return pieces;
}

async function map(gateway, { prompts, window, client }) {
  const indexes = prompts.keys(); // shared: each asker takes the next
  const ask = async () => {
    for (const index of indexes) {
      print({ index, ...(await outcomeOf(gateway.query(prompts[index], { client }).result)) });
    }
  };
  await Promise.all(Array.from({ length: window }, ask));
}

async function withConversation(gateway, { name, ticket, client }, play) {
  let chat;
  const names = { name, ticket: ticket && new Uint8Array(Buffer.from(ticket, "hex")), client };
  const failed = await outcomeOf(gateway.open(names).then((opened) => (chat = opened)));
  if (chat) await play(chat);
  else print(failed);
}

async function shared(gateway, parameters) {
  const { count, label, stream } = parameters;
  await withConversation(gateway, parameters, async (chat) => {
    const { session, ticket, endpoint, incarnation } = chat.opened;
    print({ opened: { session: hex(session), ticket: hex(ticket), endpoint, incarnation } });
    for (let index = 0; index < count; index += 1) {
      const request = chat.query(`${label}-${index}`, { stream });
      const pieces = stream ? await readAll(request) : 0;
      const more = ({ sequence, num_turns }) => ({ sequence, num_turns, pieces });
      print({ index, ...(await outcomeOf(request.result, more)) });
    }
  });
}

async function cancel(gateway, parameters) {
  await withConversation(gateway, parameters, async (chat) => {
    const request = chat.query(parameters.prompt, { stream: true });
    await readAll(request, ({ seq }) => seq === 1 && request.cancel());
    print(await outcomeOf(request.result));
    print(await outcomeOf(chat.query(parameters.then).result));
  });
}

async function stream(gateway, parameters) {
  const play = async ({ session }) => {
    const { prompt, client } = parameters;
    const request = gateway.query(prompt, { stream: true, session, client });
    await readAll(request, ({ seq, message }) => print({ seq, type: message.type }));
    print(await outcomeOf(request.result));
  };
  if (parameters.name === undefined) await play({});
  else await withConversation(gateway, parameters, (chat) => play(chat.opened));
}

async function slow(gateway, { prompt, client }) {
  // Nobody iterates, so nothing is worked through, and no credit goes back.
  print(await outcomeOf(gateway.query(prompt, { stream: true, client }).result));
}

async function status(gateway) {
  print({ status: await gateway.status() });
}

async function resend(gateway, { prompt, copies, client }, late) {
  const request = gateway.query(prompt, { client });
  for (let copy = 1; copy < copies; copy += 1) request.resend();
  print(await outcomeOf(request.result));
  await sleep(LISTEN_MS);
  const again = late.filter(({ id }) => id && hex(id) === request.key);
  for (const reply of again) {
    const isError = reply.type === "ERROR";
    const result = isError ? Promise.reject(new GatewayError(reply)) : Promise.resolve(reply);
    print(await outcomeOf(result));
  }
  print({ outcomes: 1 + again.length });
}

const SCENARIOS = { map, shared, cancel, stream, slow, status, resend };

const { SOLOIST_SERVER_KEY: serverKey, SOLOIST_PUBLIC_KEY: publicKey } = process.env;
const secretKey = process.env.SOLOIST_SECRET_KEY;
const parameters = JSON.parse(await textOf(process.stdin));
const late = [];
const gateway = await Client.connect(process.argv[2], {
  curve: serverKey && { serverKey, publicKey, secretKey },
  onUnasked: (reply) => ["RESULT", "ERROR"].includes(reply.type) && late.push(reply),
});
try {
  await SCENARIOS[parameters.scenario](gateway, parameters, late);
} finally {
  gateway.close();
}
