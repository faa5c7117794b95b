"""``Supervisor``: the interface that callers use.

Owns argument checking and what only the owner of workers can do; what is asked of them is in
:mod:`soloist.supervisor.base`, and happens on the I/O thread (:mod:`soloist.supervisor.reactor`).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from soloist.protocol import codec
from soloist.protocol.codec import Prompt
from soloist.protocol.errors import InvalidOptions
from soloist.supervisor import at_exit, ledger, limits, usercode
from soloist.supervisor.base import BaseSupervisor
from soloist.supervisor.brokers import SessionPolicy
from soloist.supervisor.control import ControlDesk, Handler
from soloist.supervisor.io_thread import IOThread
from soloist.supervisor.pool import Pool
from soloist.supervisor.process import HELPER_STOP_S, Forkserver, RunFolder, WorkerConfig
from soloist.supervisor.rate import Limiter, RateLimit
from soloist.supervisor.reactor import Reactor
from soloist.supervisor.recycle import RecyclePolicy
from soloist.supervisor.response import Response
from soloist.supervisor.restart import RestartPolicy, longest_delay_s
from soloist.supervisor.retry import Retry

ClientLike = str | type | Callable[..., Any]
Isolation = Literal["prompt", "worker"]


class Supervisor(BaseSupervisor):
    """Worker processes that each hold exactly one client, and the queue before them.

    Any thread may call any method; several Supervisors may live in one process. Use it as a
    context manager, or call ``close``: leaving the block normally waits for what was accepted,
    up to ``drain_timeout_s``; leaving it by an exception ends everything.

    Args:
        size: most worker processes, started on demand; the number of processors unless given.
        client: a registered name (``"echo"``, ``"claude"``, ...), a class or factory of the
            client contract, or any callable ``prompt -> str``, sync or async. It travels by
            value: lambdas, closures and classes of the main module work.
        options: keyword arguments of the client, checked before anything is spawned.
        isolation: ``"prompt"``: every prompt is a new conversation; ``"worker"``: each worker
            keeps its one conversation from prompt to prompt.
        timeout_s: seconds that a request may take unless its call says otherwise, the wait in
            the queue included; ``None`` for no limit.
        window: most prompts of one ``map`` in flight or read ahead; unless given
            ``max(4 * size, 1024)``, and more of a list of quick prompts.
        window_bytes: most bytes of prompts and unread answers in one ``map``'s window.
        max_pending: most requests of ``submit`` without an outcome; then ``QueueFull``.
        max_payload_bytes: largest encoded prompt or answer.
        stream_buffer_bytes: how far the reader of ``query`` may fall behind.
        interrupt_grace_s: seconds that an interrupted turn may take to end before its worker is
            replaced.
        wedge_after_s: seconds for which a client may block its worker's event loop before the
            worker counts as wedged and is replaced: its request fails with ``WorkerLost``. A sync
            callable blocks nothing and may take as long as ``timeout_s`` allows. ``None`` for no
            limit. A worker whose process is stopped is found within 4 s, whatever this says.
        drain_timeout_s: seconds that leaving the ``with`` block waits for what is outstanding.
        max_restarts: workers that may fail to start, or die before their first answer, within
            ``restart_period_s``; ``max(20, 2 * size)`` unless given.
        restart_period_s: see ``max_restarts``.
        max_requests_per_worker: requests after which a worker is replaced by a new one, between
            two of them; each draws a limit of its own between 80 and 100 % of it. A conversation
            is only moved to another worker if its client can be continued there.
        max_memory_bytes: resident memory of a worker and all its descendants above which it is
            replaced in the same way. It is looked at about once a second, after an answer.
        max_sessions: most conversations of ``session`` and ``shared`` that are open at a time;
            each has a worker of its own beside the ``size``.
        rate_limit: most requests per second over all workers; ``None`` for no limit.
        retry: which errors are worth another attempt, and when; ``None`` for none.
        on_control: answers what clients ask their caller (``can_use_tool``, hooks) where a call
            has no handler of its own; runs on a thread of its own.
        control_timeout_s: how long an answer to that may take; then it is no.
        connect_timeout_s: seconds that a client may take to connect; ``None`` for no limit.
        preload: further modules to import once, before workers are forked.

    Raises:
        InvalidOptions: an argument or an option of the client is wrong; the caller's.
        ClientNotFound: no such client, or what it needs is not installed.
        ClientNotSerializable: the client cannot travel to a worker, or not be loaded there; the
            message names the culprit.
        TooManyWorkers: ``size`` needs more descriptors than this process may have.
    """

    def __init__(
        self,
        size: int | None = None,
        *,
        client: ClientLike = "echo",
        options: Mapping[str, Any] | None = None,
        isolation: Isolation = "prompt",
        timeout_s: float | None = None,
        window: int | None = None,
        window_bytes: int = 256 * 1024 * 1024,
        max_pending: int = 100_000,
        max_payload_bytes: int = codec.MAX_PAYLOAD_BYTES,
        stream_buffer_bytes: int = 4 * 1024 * 1024,
        interrupt_grace_s: float = 5.0,
        wedge_after_s: float | None = 30.0,
        drain_timeout_s: float | None = 30.0,
        max_restarts: int | None = None,
        restart_period_s: float = 30.0,
        max_requests_per_worker: int | None = None,
        max_memory_bytes: int | None = None,
        max_sessions: int = 64,
        rate_limit: RateLimit | None = None,
        retry: Retry | None = None,
        on_control: Handler | None = None,
        control_timeout_s: float = 60.0,
        connect_timeout_s: float | None = 60.0,
        preload: Sequence[str] = (),
    ) -> None:
        size = (os.cpu_count() or 1) if size is None else size
        if isolation not in {"prompt", "worker"}:
            raise InvalidOptions(f'isolation is "prompt" or "worker", not {isolation!r}')
        limits.check_counts(size=size, max_pending=max_pending, max_payload_bytes=max_payload_bytes)
        limits.check_counts(0, max_sessions=max_sessions)
        limits.check_optional_counts(0, max_restarts=max_restarts)
        limits.check_optional_counts(
            max_requests_per_worker=max_requests_per_worker, max_memory_bytes=max_memory_bytes
        )
        limits.check_seconds(timeout_s=timeout_s, drain_timeout_s=drain_timeout_s)
        limits.check_positive_seconds(wedge_after_s=wedge_after_s)
        limits.check_limited_seconds(
            interrupt_grace_s=interrupt_grace_s,
            restart_period_s=restart_period_s,
            control_timeout_s=control_timeout_s,
        )
        limits.check_positive_seconds(connect_timeout_s=connect_timeout_s)
        may_grow = window is None
        window = max(4 * size, 1024) if window is None else window
        limits.check_counts(
            window=window, window_bytes=window_bytes, stream_buffer_bytes=stream_buffer_bytes
        )
        self._isolation = isolation
        prepared = usercode.prepare(client, options or {})
        limits.reserve_descriptors(size + max_sessions)
        limiter = Limiter(rate_limit)
        most = max(20, 2 * size) if max_restarts is None else max_restarts
        restart = RestartPolicy(
            max_restarts=most,
            period_s=restart_period_s,
            max_delay_s=longest_delay_s(most, restart_period_s),
        )
        recycle = RecyclePolicy(
            max_requests=max_requests_per_worker, max_memory_bytes=max_memory_bytes
        )
        pool = Pool(
            size=size,
            restart=restart,
            interrupt_grace_s=interrupt_grace_s,
            limiter=limiter,
            retry=retry,
            recycle=recycle,
            has_open_pages=ledger.STORES_IN_ORDER,
        )
        sessions = SessionPolicy(
            max_sessions=max_sessions,
            max_restarts=5 if max_restarts is None else max_restarts,
            restart_period_s=restart_period_s,
            interrupt_grace_s=interrupt_grace_s,
            timeout_s=timeout_s,
            limiter=limiter,
            max_payload_bytes=max_payload_bytes,
            stream_buffer_bytes=stream_buffer_bytes,
            recycle=recycle,
        )
        template = WorkerConfig(
            isolation=isolation,
            max_payload_bytes=max_payload_bytes,
            has_control=on_control is not None,
            control_timeout_s=control_timeout_s,
            connect_timeout_s=connect_timeout_s,
        )
        self._reactor = _start(
            pool,
            prepared,
            preload,
            template=template,
            sessions=sessions,
            desk=ControlDesk(on_control),
            interrupt_grace_s=interrupt_grace_s,
            wedge_after_s=wedge_after_s,
        )
        super().__init__(
            self._reactor,
            window=window,
            may_grow=may_grow,
            window_bytes=window_bytes,
            timeout_s=timeout_s,
            max_pending=max_pending,
            max_payload_bytes=max_payload_bytes,
            stream_buffer_bytes=stream_buffer_bytes,
            drain_timeout_s=drain_timeout_s,
        )

    def query(
        self, prompt: Prompt, *, timeout_s: float | None = None, on_control: Handler | None = None
    ) -> Response:
        """Stream the messages of one prompt, as they arrive, in a new conversation.

        The prompt is sent by this call. The last message is a ``ResultMessage``. Closing or
        dropping the iterator interrupts the turn.

        Args:
            prompt: text or content blocks.
            timeout_s: seconds from now, the wait in the queue included.
            on_control: answers what the client asks its caller meanwhile, in place of the
                Supervisor's.

        Raises:
            InvalidOptions: the Supervisor keeps its conversations (``isolation="worker"``).
            InvalidPrompt, PayloadTooLarge: the prompt cannot be sent; the caller's.
            SupervisorClosed: closed.

        Reading it raises the request's error, after the messages that came before it.
        """
        if self._isolation != "prompt":
            raise InvalidOptions('query begins a new conversation: it needs isolation="prompt"')
        return super().query(prompt, timeout_s=timeout_s, on_control=on_control)

    def cancel_pending(self) -> None:
        """End every request that has not started with ``RequestCancelled``; what runs goes on."""
        self._reactor.cancel_pending()

    def restart(self, timeout_s: float | None = None) -> bool:
        """Replace every worker that there is by a new one, without losing a request.

        A few at a time, at most half of the pool, and one stays in service if ``size`` is above
        1: each ends what it runs and exits. Requests that come meanwhile are served. A
        conversation whose client can be continued moves to another worker between two turns;
        any other keeps the one it has. Called amid another restart, it waits for that one.

        Returns:
            Whether all have gone within ``timeout_s`` (``None``: no limit); if not, it goes on.

        Raises:
            RestartLimitReached: the new workers cannot start; those that are left stay.
            SupervisorClosed: closed.
        """
        limits.check_seconds(timeout_s=timeout_s)
        try:
            self._reactor.restart().result(timeout_s)
        except TimeoutError:
            return False
        return True

    def kill(self) -> None:
        """End everything at once by SIGKILL; what has no outcome gets ``SupervisorClosed``."""
        self._kill()


def _start(
    pool: Pool,
    client: usercode.Client,
    preload: Sequence[str],
    *,
    template: WorkerConfig,
    sessions: SessionPolicy,
    desk: ControlDesk,
    interrupt_grace_s: float,
    wedge_after_s: float | None,
) -> Reactor:
    folder = RunFolder()
    try:
        folder.client_file.write_bytes(client.data)
        forkserver = Forkserver(
            folder.path, ["soloist.worker.main", *client.preload, *preload], os.environ
        )
    except BaseException:
        folder.remove()
        raise
    template = dataclasses.replace(
        template, endpoint=folder.endpoint, client_file=str(folder.client_file)
    )
    try:
        forkserver.ensure_running()
        thread = IOThread(
            pool,
            folder,
            forkserver,
            template=template,
            sessions=sessions,
            desk=desk,
            interrupt_grace_s=interrupt_grace_s,
            wedge_after_s=wedge_after_s,
        )
    except BaseException:
        forkserver.stop(HELPER_STOP_S)
        folder.remove()
        raise
    reactor = Reactor(thread)
    at_exit.add(reactor)
    reactor.start()
    return reactor
