"""asyncio: the same names, awaited; a task that is cancelled cancels its request.

Prints::

    a task group: ['a', 'b', 'c']
    imap: 10 answers
    asyncio.timeout: TimeoutError, and the worker is free again: 'next'
    a group that fails: the others were cancelled: True
    owned: 'hello'
    shared, with the next question's own answer: 'second'
    all that took less than one slow answer: True
"""

import asyncio
import time

from soloist import AsyncSharedSession, AsyncSupervisor, ClientError, ResultMessage

SLOW_S = 10.0


async def agent(prompt: str) -> str:
    if prompt == "wrong":
        raise ValueError(prompt)
    await asyncio.sleep(SLOW_S if prompt == "slow" else 0.0)
    return prompt


async def ask(chat: AsyncSharedSession, prompt: str) -> str | None:
    async for message in chat.query_and_receive(prompt):
        if isinstance(message, ResultMessage):
            return message.result
    return None


async def main() -> None:
    async with AsyncSupervisor(size=2, client=agent) as sup:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(sup.map([prompt])) for prompt in ("a", "b", "c")]
        print("a task group:", [result.text for task in tasks for result in task.result()])

        count = 0
        async for _ in sup.imap(f"prompt {number}" for number in range(10)):
            count += 1
        print("imap:", count, "answers")

        try:
            async with asyncio.timeout(0.1):
                await sup.submit("slow")
        except TimeoutError:
            text = (await sup.submit("next")).text
            print(f"asyncio.timeout: TimeoutError, and the worker is free again: {text!r}")

        try:
            async with asyncio.TaskGroup() as group:
                slow = group.create_task(sup.map(["slow"]))
                group.create_task(sup.map(["wrong"]))
        except* ClientError:
            print("a group that fails: the others were cancelled:", slow.cancelled())

        async with sup.session() as own:
            await own.query("hello")
            *_, last = [message async for message in own.receive_response()]
            print(f"owned: {last.result!r}")

        chat = await sup.shared("support-42")
        first = asyncio.create_task(ask(chat, "slow"))
        second = asyncio.create_task(ask(chat, "second"))
        await asyncio.wait({second}, timeout=0.1)
        first.cancel()
        print(f"shared, with the next question's own answer: {await second!r}")


began = time.monotonic()
asyncio.run(main())
print("all that took less than one slow answer:", time.monotonic() - began < SLOW_S)
