// A client of a Soloist gateway: chapter 2 of ../../SPEC.md, over one DEALER socket.
//
// Invariants: every request settles once, with its RESULT or a GatewayError; what has no outcome is
// sent again after a new WELCOME, in order and with `resent`, so that nothing runs twice; credit is
// returned for what has been worked through, and for nothing else.

import { randomBytes } from "node:crypto";
import { decode, encode } from "@msgpack/msgpack";
import { Dealer } from "zeromq";

const VERSION = 1;
const GREETING_MS = 3000; // for a WELCOME, before the next socket
const MISSED_HEARTBEATS = 3;
const OUTCOMES = new Set(["RESULT", "ERROR", "OPENED", "DONE", "REPORT"]);

/** An ERROR: `code`, `retryable`, `started` (false: certainly never ran; null: it may have). */
export class GatewayError extends Error {
  constructor({ code, message, retryable, started, sequence, details = {} }) {
    super(`${code}: ${message}`);
    this.name = "GatewayError";
    Object.assign(this, { code, retryable, started, sequence, details });
  }
}

const lost = (message) =>
  new GatewayError({ code: "gateway_lost", message, retryable: true, started: null });

/**
 * One request. `await request.result` gives its RESULT (or OPENED, and so on) or throws a
 * GatewayError. A streamed one can be iterated over, once: `{seq, message}` as they arrive, each
 * paid back in credit when the loop asks for the next; leaving the loop early cancels.
 */
export class Request {
  #client;
  #unread = [];
  #wake = () => {};
  #settle;
  isOver = false;
  isCancelled = false;
  heard = 0; // MESSAGEs so far
  epoch = null; // of the gateway when it was sent first

  constructor(client, fields) {
    this.#client = client;
    this.fields = fields;
    this.key = keyOf(fields.id);
    this.result = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
    this.result.catch(() => {}); // who only iterates hears of it there
  }

  /** End it early; it still has its one outcome. */
  cancel() {
    this.isCancelled = true;
    this.#client._tell(this, { type: "CANCEL", id: this.fields.id });
  }

  /** Send it again under the same id, as after a failure; it does not run twice. */
  resend() {
    this.#client._transmit(this);
  }

  async *[Symbol.asyncIterator]() {
    try {
      for (;;) {
        while (this.#unread.length > 0) {
          const { bytes, ...item } = this.#unread.shift();
          yield item;
          if (bytes > 0) this.#client._tell(this, { type: "CREDIT", id: this.fields.id, bytes });
        }
        if (this.isOver) break;
        await new Promise((resolve) => (this.#wake = resolve));
      }
      await this.result;
    } finally {
      if (!this.isOver) this.cancel();
    }
  }

  _message({ seq, message }, bytes) {
    this.heard = seq;
    this.#unread.push({ seq, message, bytes });
    this.#wake();
  }

  _outcome(reply) {
    if (this.fields.stream) {
      // All of them, if it was sent again: those that were heard are left out.
      const rest = (reply.messages ?? []).slice(this.heard);
      for (const message of rest) this._message({ seq: this.heard + 1, message }, 0);
    }
    if (reply.type === "ERROR") this._fail(new GatewayError(reply));
    else this.#over(() => this.#settle.resolve(reply));
  }

  _fail(error) {
    this.#over(() => this.#settle.reject(error));
  }

  #over(settle) {
    this.isOver = true;
    settle();
    this.#wake();
  }
}

/** An open conversation. Its `ticket` admits others; `opened` has its other names. */
export class Conversation {
  #client;

  constructor(client, opened) {
    this.#client = client;
    this.opened = opened;
    this.ticket = opened.ticket;
  }

  /** Ask in this conversation; the options are those of `Client.query`. */
  query(prompt, options = {}) {
    return this.#client.query(prompt, { ...options, session: this.opened.session });
  }

  /** Its status. */
  async status() {
    return this.#client._status({ session: this.opened.session });
  }

  /** End it for everybody; with `drain` those who wait are served first. */
  async close({ drain = false } = {}) {
    await this.#client._ask("CLOSE", { session: this.opened.session, drain }).result;
  }
}

/** A connection to a gateway, made again as often as needed. */
export class Client {
  #endpoint;
  #options;
  #secret;
  #socket = null;
  #outbox = [];
  #isSending = false;
  #isGreeting = true;
  #pending = new Map(); // without outcome, in the order in which they were asked
  #clock = { sent: 0, heard: 0, pinged: 0, unanswered: null };
  #timer = null;
  #end = null;

  /**
   * Connect; resolves at the first WELCOME.
   * @param {string} endpoint `ipc://` or `tcp://`
   * @param {object} [options] `curve`: `{serverKey, publicKey, secretKey}` in Z85; `secret`: 16 to
   *   64 bytes, to come back as the same client; `patienceMs`: after so long without a word from
   *   the gateway everything fails with `gateway_lost` (30,000); `onUnasked`: told of each message
   *   that no request waits for.
   */
  static async connect(endpoint, options = {}) {
    const client = new Client(endpoint, options);
    await client._greeted;
    return client;
  }

  constructor(endpoint, { curve, secret, patienceMs = 30_000, onUnasked = () => {} }) {
    this.#endpoint = endpoint;
    this.#options = { curve, patienceMs, onUnasked };
    this.#secret = secret ?? randomBytes(32);
    this._greeted = new Promise((resolve, reject) => (this.#end = { resolve, reject }));
    this.#reconnect();
  }

  /**
   * Ask one prompt, a string or an array of content blocks.
   * @param {object} [options] `stream`, `timeoutMs`, `client`, `session`, `onDisconnect`
   * @returns {Request}
   */
  query(prompt, { stream = false, timeoutMs, client, session, onDisconnect } = {}) {
    const timeout = timeoutMs === undefined ? {} : { timeout_ms: timeoutMs };
    const more = { client, session, on_disconnect: onDisconnect };
    return this._ask("QUERY", { prompt, stream, ...timeout, ...more });
  }

  /** Begin or join a conversation by `name`, or join by `ticket`; with neither, one's own. */
  async open({ name, ticket, client } = {}) {
    return new Conversation(this, await this._ask("OPEN", { name, ticket, client }).result);
  }

  /** How the gateway is. */
  status() {
    return this._status({});
  }

  /** Disconnect. What has no outcome fails with `gateway_lost`. */
  close() {
    this.#giveUp(lost("the client was closed"));
  }

  async _status(fields) {
    return (await this._ask("STATUS", fields).result).status;
  }

  _ask(type, fields) {
    if (this.#timer === null) throw lost("the client is closed");
    const request = new Request(this, { type, id: new Uint8Array(randomBytes(16)), ...fields });
    this.#pending.set(request.key, request);
    if (!this.#isGreeting) this._transmit(request);
    return request;
  }

  /** Say something about a request: of no use when it is over, or before it has been sent. */
  _tell(request, fields) {
    if (!request.isOver && !this.#isGreeting) this.#send(fields);
  }

  _transmit(request) {
    if (request.epoch === null) request.epoch = this.welcome.epoch;
    else if (request.fields.type === "QUERY") request.fields.resent = request.epoch;
    this.#send(request.fields);
  }

  // -- the socket ---------------------------------------------------------------------------------

  #reconnect() {
    this.#socket?.close();
    this.#outbox = [];
    const { curve } = this.#options;
    const keys = curve && {
      curveServerKey: curve.serverKey,
      curvePublicKey: curve.publicKey,
      curveSecretKey: curve.secretKey,
    };
    this.#socket = new Dealer({ linger: 0, ...keys });
    this.#socket.connect(this.#endpoint);
    this.#listen(this.#socket);
    this.#sayHello();
  }

  async #listen(socket) {
    for await (const [payload] of socket) {
      if (socket === this.#socket) this.#hear(payload);
    }
  }

  #send(fields) {
    this.#outbox.push(encode({ v: VERSION, ...fields }, { ignoreUndefined: true }));
    this.#clock.sent = performance.now();
    if (!this.#isSending) this.#drain();
  }

  async #drain() {
    this.#isSending = true;
    while (this.#outbox.length > 0) {
      // A socket that was replaced takes nothing; all that matters is sent again on the next.
      await this.#socket.send(this.#outbox.shift()).catch(() => {});
    }
    this.#isSending = false;
  }

  #sayHello() {
    this.#isGreeting = true;
    this.#clock.unanswered ??= performance.now();
    this.#send({ type: "HELLO", versions: [VERSION], secret: new Uint8Array(this.#secret) });
    this.#tickIn(GREETING_MS);
  }

  // -- what the gateway says ----------------------------------------------------------------------

  #hear(payload) {
    this.#clock.heard = performance.now();
    this.#clock.unanswered = null;
    const reply = decode(payload);
    if (reply.type === "WELCOME") return this.#begin(reply);
    if (reply.type === "ERROR" && reply.code === "hello_required") return this.#helloAgain();
    if (reply.type === "ERROR" && reply.id === null) return this.#refused(reply);
    const request = reply.id && this.#pending.get(keyOf(reply.id));
    if (request && OUTCOMES.has(reply.type)) {
      this.#pending.delete(request.key);
      request._outcome(reply);
    } else if (request && reply.type === "MESSAGE") {
      if (reply.seq === request.heard + 1) request._message(reply, payload.length);
    } else if (reply.type !== "PONG") {
      this.#options.onUnasked(reply);
    }
  }

  #begin(welcome) {
    this.welcome = welcome;
    this.#isGreeting = false;
    for (const request of this.#pending.values()) {
      this._transmit(request);
      if (request.isCancelled) request.cancel();
    }
    this.#tickIn(welcome.heartbeat_ms);
    this.#end.resolve();
  }

  #helloAgain() {
    if (!this.#isGreeting) this.#sayHello(); // one is enough, however much was refused
  }

  #refused(reply) {
    if (this.#isGreeting) this.#giveUp(new GatewayError(reply));
    else this.#options.onUnasked(reply);
  }

  // -- time ---------------------------------------------------------------------------------------

  #tickIn(delayMs) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#tick(), Math.max(delayMs, 1));
  }

  #tick() {
    const { patienceMs } = this.#options;
    const now = performance.now();
    const heartbeat = this.welcome?.heartbeat_ms ?? Infinity;
    const silence = now - (this.#clock.unanswered ?? now);
    if (silence >= patienceMs) {
      this.#giveUp(lost(`nothing heard for ${patienceMs} ms`));
    } else if (this.#isGreeting || silence >= (MISSED_HEARTBEATS - 1) * heartbeat) {
      this.#reconnect(); // the PING itself came after a heartbeat of silence
    } else {
      this.#tickIn(this.#pingIfQuiet(now, heartbeat) - now);
    }
  }

  /** PING if for a heartbeat nothing was said, or nothing heard; gives when to look again. */
  #pingIfQuiet(now, heartbeat) {
    const { sent, heard, pinged } = this.#clock;
    const due = Math.max(Math.min(sent, heard), pinged) + heartbeat;
    if (now < due) return due;
    this.#clock.pinged = now;
    this.#clock.unanswered ??= now;
    this.#send({ type: "PING" });
    return now + heartbeat;
  }

  #giveUp(error) {
    if (this.#timer === null) return;
    clearTimeout(this.#timer);
    this.#timer = null;
    this.#socket.close();
    this.#end.reject(error);
    for (const request of this.#pending.values()) request._fail(error);
    this.#pending.clear();
  }
}

const keyOf = (id) => Buffer.from(id).toString("hex");
