"""Pitfalls: what callers of one bare client do to each other, and the same behind a broker.

Prints::

    bare, two callers at once: B asked 'B?' and got 'A!'
    bare, after a caller that gave up: C asked 'C?' and got 'slow!'
    bare, with a lock, behind one that stopped reading: D got nothing
    shared, two callers at once: B asked 'B?' and got 'B!'
    shared, after a caller that gave up: C asked 'C?' and got 'C!'
    shared, behind one that stopped reading: D asked 'D?' and got 'D!'
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from soloist import AssistantMessage, Message, ResultMessage, SharedSession, Supervisor, TextBlock


class Agent:
    """A client like any agent's: one pipe, from which whoever reads takes what comes next."""

    async def connect(self) -> None:
        self.pipe: asyncio.Queue[Message] = asyncio.Queue()
        self.turns: set[asyncio.Task[None]] = set()
        self.one_by_one = asyncio.Lock()
        self.interrupted = asyncio.Event()

    async def query(self, prompt: str) -> None:
        self.interrupted.clear()
        self.turns.add(asyncio.create_task(self.turn(prompt)))

    async def turn(self, prompt: str) -> None:
        delay_s = 0.2 if prompt == "slow?" else 0.01
        async with self.one_by_one:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.interrupted.wait(), delay_s)
        answer = prompt.replace("?", "!")
        self.pipe.put_nowait(AssistantMessage(content=[TextBlock(answer)], model="agent"))
        self.pipe.put_nowait(
            ResultMessage("success", 0, 0, is_error=False, num_turns=1, session_id="")
        )

    async def receive_response(self) -> AsyncIterator[Message]:
        while True:
            message = await self.pipe.get()
            yield message
            if isinstance(message, ResultMessage):
                return

    async def interrupt(self) -> None:
        self.interrupted.set()

    async def disconnect(self) -> None:
        pass


# -- the bare client --------------------------------------------------------------------------


async def ask_bare(client: Agent, prompt: str) -> str:
    await client.query(prompt)
    return await read(client)


async def read(client: Agent) -> str:
    text = ""
    async for message in client.receive_response():
        if isinstance(message, AssistantMessage):
            text = message.content[0].text
    return text


async def bare() -> None:
    client = Agent()
    await client.connect()
    await client.query("A?")  # A has asked, but B is the first to read
    print(f"bare, two callers at once: B asked 'B?' and got {await ask_bare(client, 'B?')!r}")
    await read(client)

    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(ask_bare(client, "slow?"), 0.05)
    answer = await ask_bare(client, "C?")
    print(f"bare, after a caller that gave up: C asked 'C?' and got {answer!r}")
    await read(client)

    lock = asyncio.Lock()  # "then we hold a lock until the answer is read"
    await lock.acquire()
    await client.query("A?")  # and A never reads
    try:
        await asyncio.wait_for(lock.acquire(), 0.1)
    except TimeoutError:
        print("bare, with a lock, behind one that stopped reading: D got nothing")


# -- the same client behind a broker ----------------------------------------------------------


def ask(chat: SharedSession, prompt: str, timeout_s: float = 10.0) -> str:
    answer, _ = chat.query_and_receive(prompt, timeout_s=timeout_s)
    return answer.content[0].text


asyncio.run(bare())

with Supervisor(size=1, client=Agent) as sup, ThreadPoolExecutor(1) as another_thread:
    chat = sup.shared("support-42")
    unread = chat.query_and_receive("A?")
    answer = another_thread.submit(ask, chat, "B?").result()
    print(f"shared, two callers at once: B asked 'B?' and got {answer!r}")

    with contextlib.suppress(TimeoutError):
        ask(chat, "slow?", timeout_s=0.05)
    print(f"shared, after a caller that gave up: C asked 'C?' and got {ask(chat, 'C?')!r}")

    never_read = chat.query_and_receive("A?")
    print(f"shared, behind one that stopped reading: D asked 'D?' and got {ask(chat, 'D?')!r}")
