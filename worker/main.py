"""Entry points of the processes below a supervisor: the forkserver and each worker.

Owns the order of a start: guards first, then preloads, then the fork server's loop; in a worker
the death signal first, then the channel, then the user's code, then the client. Nothing here
imports the user's main module.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import gc
import importlib
import inspect
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from multiprocess import forkserver as mp_forkserver
from multiprocess import resource_tracker

from soloist.protocol.errors import SoloistError, to_info
from soloist.protocol.messages import VERSION, Broken, Loaded, Reuse, Stop
from soloist.worker import barrier, guard, loop, usercode
from soloist.worker.channel import Channel
from soloist.worker.clients.function import AsyncFunctionClient
from soloist.worker.host import Host
from soloist.worker.ledger import Claims, Ledger
from soloist.worker.loop import End
from soloist.worker.traces import Traces

remove_abandoned = guard.remove_abandoned

_log = logging.getLogger("soloist.worker")


def serve_forks(
    *, listener: int, alive: int, report: int, run_dir: str, parent: int, preload: list[str]
) -> None:
    """Become the forkserver of one Supervisor, below its guards.

    Args:
        listener: descriptor of the listening socket for fork requests.
        alive: read end of a pipe; its end of file means that the supervisor wants no more.
        report: write end of a pipe; gets one JSON object, ``{"pid": ...}`` or ``{"error": ...}``.
        run_dir: the run folder, removed by the guards if the supervisor is gone.
        parent: the supervisor's pid.
        preload: modules to import once, for all workers.
    """
    guard.stand(run_dir, parent)
    error = _preload(preload)
    flush()  # else every worker would print it again
    answer = {"error": error} if error else {"pid": os.getpid()}
    os.write(report, json.dumps(answer).encode() + b"\n")
    os.close(report)
    if error:
        sys.exit(1)
    gc.collect()
    gc.freeze()  # keeps the collector from touching, and so copying, every inherited page
    mp_forkserver.main(listener, alive, [])


def _preload(modules: list[str]) -> str:
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001 - whatever a module raises is reported
            return f"{name}: {type(error).__name__}: {error}"
    return ""


@dataclasses.dataclass(frozen=True)
class WorkerConfig:
    """All that a worker is told at its start; its descriptors are passed beside it.

    The fork server's child unpickles this and calls ``_bootstrap``, as it does with any process
    object of ``multiprocess``.
    """

    isolation: str
    max_payload_bytes: int
    endpoint: str = ""
    identity: bytes = b""
    client_file: str = ""
    forkserver: int = 0
    claims_in_memory: bool = False
    is_session: bool = False
    restore: bytes = b""
    has_control: bool = False
    control_timeout_s: float = 0.0
    connect_timeout_s: float | None = None

    def _bootstrap(self, _parent_sentinel: int) -> int:
        grants, outcomes, lane, stdout, stderr = mp_forkserver.get_inherited_fds()
        print_to(stdout, stderr)
        try:
            return run(self, grants=grants, outcomes=outcomes, lane=lane)
        finally:
            flush()


def run(config: WorkerConfig, *, grants: int, outcomes: int, lane: int) -> int:
    """Be a worker until told to stop; the process's exit code.

    Args:
        config: see there.
        grants: read end of the grant pipe.
        outcomes: the ledger's file.
        lane: this side's end of the lane.
    """
    _become_worker(config)
    with Channel(config.endpoint, config.identity, lane) as channel:

        def new_desk() -> loop.Desk:
            claims = Claims(grants, is_in_memory=config.claims_in_memory)
            return loop.Desk(channel, claims, Ledger(outcomes), config.max_payload_bytes)

        def disown() -> None:
            desk.disown()

        desk = new_desk()
        os.register_at_fork(after_in_child=disown)
        while (end := _serve(config, desk)) is End.MAY_STAY:
            desk.leave()
            if (reuse := _next_order(channel)) is None:
                return 0
            config = dataclasses.replace(config, restore=reuse.restore)
            desk = new_desk()
        return int(end is End.FAILED)


def _serve(config: WorkerConfig, desk: loop.Desk) -> End:
    """Be one worker, with one client, up to its end."""
    try:
        code = usercode.load(config.client_file)
        traces = Traces()
        serve = _prepare(code, config, desk)
    except SoloistError as error:
        desk.announce(Broken(is_loaded=False, error=to_info(error)))
        return End.FAILED
    is_interruptible = serve.func is not _run_sync
    desk.announce(Loaded(VERSION, os.getpid(), is_interruptible))
    end: End = serve()
    if end is not End.MAY_STAY:
        return end
    del serve, code  # and with it the client
    gc.collect()
    if found := traces.found():
        _log.debug("the client has left %s: its process ends", found)
        return End.STOPPED
    flush()
    return end


def _next_order(channel: Channel) -> Reuse | None:
    """Wait for what this process is to be next; ``None`` if it is to exit.

    What was said to the client that is gone is passed over.
    """
    while not isinstance(message := channel.receive(), Reuse):
        if isinstance(message, Stop):
            return None
    return message


def print_to(stdout: int, stderr: int) -> None:
    """From now on standard output and standard error of this process are these descriptors.

    Both in UTF-8, line by line, and whatever is printed can be encoded.
    """
    for place, descriptor in ((1, stdout), (2, stderr)):
        os.dup2(descriptor, place)
        os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):  # None in some programs
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    # What the library itself has to say here goes the way of all that is printed.
    root = logging.getLogger("soloist")
    for handler in root.handlers[:]:
        if isinstance(handler, logging.NullHandler):
            root.removeHandler(handler)


def flush() -> None:
    """Write out what has been printed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # closed, or whatever a client put there
            stream.flush()


def _become_worker(config: WorkerConfig) -> None:
    guard.adopt_orphans()
    guard.die_with_parent(config.forkserver)
    if config.claims_in_memory:
        barrier.be_included()
    os.setpgid(0, 0)
    # A handler, not SIG_IGN: what is ignored stays ignored in the programs that a client starts.
    signal.signal(signal.SIGINT, lambda *_: None)
    # The descriptors in these places are stand-ins; the user's own multiprocessing starts anew.
    mp_forkserver._forkserver._forkserver_alive_fd = None  # noqa: SLF001
    resource_tracker._resource_tracker._fd = None  # noqa: SLF001


def _prepare(
    code: usercode.UserCode, config: WorkerConfig, desk: loop.Desk
) -> functools.partial[Any]:
    """Say how the user's code is to be served; a client is built."""
    new_client: Callable[[], Any]
    if code.kind == "contract":
        new_client = code.new_client
    elif _is_async(code.target):
        new_client = functools.partial(AsyncFunctionClient, code.target, code.options)
    else:
        call = functools.partial(code.target, **code.options) if code.options else code.target
        return functools.partial(_run_sync, desk, call, config)
    host = Host(
        new_client,
        isolation=config.isolation,
        restore=config.restore,
        has_control=config.has_control,
        connect_timeout_s=config.connect_timeout_s,
        max_bytes=config.max_payload_bytes,
    )
    return functools.partial(_run_async, desk, host, config)


def _run_async(desk: loop.Desk, host: Host, config: WorkerConfig) -> End:
    return asyncio.run(
        loop.run_async(
            desk,
            host,
            is_session=config.is_session,
            control_timeout_s=config.control_timeout_s,
        )
    )


def _run_sync(desk: loop.Desk, call: Any, config: WorkerConfig) -> End:
    return loop.run_sync(desk, call, is_session=config.is_session)


def _is_async(target: Any) -> bool:
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(
        getattr(target, "__call__", None)  # noqa: B004 - an instance with async __call__
    )
