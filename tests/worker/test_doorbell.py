"""What the idle loop of a worker waits for: rung from anywhere, the task goes on once."""

import asyncio
import contextvars

import pytest

from soloist.worker.loop import _Doorbell


def waiter(bell, log):
    async def wait():
        log.append("waits")
        try:
            await bell
        finally:
            log.append("goes on")

    return asyncio.ensure_future(wait())


def test_rung_from_a_callback_the_task_goes_on_at_once():
    async def scene():
        bell, log = _Doorbell(), []
        task = waiter(bell, log)
        await asyncio.sleep(0)

        def ring():
            bell.ring()
            log.append("has rung")

        asyncio.get_running_loop().call_soon(ring)
        await task
        assert log == ["waits", "goes on", "has rung"]

    asyncio.run(scene())


def test_rung_from_a_task_it_goes_on_soon():
    """A task cannot go on within another."""

    async def scene():
        bell, log = _Doorbell(), []
        task = waiter(bell, log)
        await asyncio.sleep(0)
        bell.ring()
        log.append("has rung")
        await task
        assert log == ["waits", "has rung", "goes on"]

    asyncio.run(scene())


def test_rung_before_it_is_waited_for_nobody_waits():
    async def scene():
        bell = _Doorbell()
        bell.ring()
        async with asyncio.timeout(10):
            await bell

    asyncio.run(scene())


def test_a_task_that_waits_can_be_cancelled():
    async def scene():
        bell, log = _Doorbell(), []
        task = waiter(bell, log)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert log == ["waits", "goes on"]

    asyncio.run(scene())


def test_the_task_sees_its_own_context():
    name = contextvars.ContextVar("name", default="nobody's")

    async def scene():
        bell, seen = _Doorbell(), []

        async def wait():
            name.set("the task's")
            await bell
            seen.append(name.get())

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(bell.ring)
        await task
        assert seen == ["the task's"]

    asyncio.run(scene())
