"""Other process pools behind one interface: a callable, one item at a time or all at once.

Each is used as its own documentation begins, with its own defaults. Whoever is not installed does
not take part.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from soloist import Supervisor

Work = Callable[[str], str]
Waiter = Callable[..., str]
"""Gives a result; its one argument, if any, says how many seconds it may take."""


class Calls(NamedTuple):
    """What a pool can do with the one callable that it was opened for.

    Attributes:
        submit: takes one item; what it gives waits for the result when called, for so many
            seconds if told.
        map: takes all, and gives the results in order.
        map_on: as ``map``, with something else in the place of a result that failed, where the
            pool has that.
        lazy: takes all, and gives the results in order as they come, where the pool has that.
    """

    submit: Callable[[str], Waiter]
    map: Callable[[Sequence[str]], Sequence[str]]
    map_on: Callable[[Sequence[str]], Sequence[object]] | None = None
    lazy: Callable[[Iterable[str]], Iterator[str]] | None = None


class Peer(NamedTuple):
    """A pool.

    Attributes:
        name: as tables have it.
        package: what has to be installed, by its module's name; empty for what Python brings.
        survives: whether the rest of the work is done when a worker is killed.
        open: starts so many workers for a callable.
    """

    name: str
    package: str
    survives: bool
    open: Callable[[Work, int], AbstractContextManager[Calls]]

    @property
    def is_installed(self) -> bool:
        """Whether it can take part."""
        try:
            importlib.import_module(self.package or "sys")
        except ImportError:
            return False
        return True


@contextlib.contextmanager
def _soloist(work: Work, size: int) -> Iterator[Calls]:
    with Supervisor(size, client=work) as supervisor:

        def submit(item: str) -> Waiter:
            future = supervisor.submit(item)
            return lambda timeout_s=None: future.result(timeout_s).text

        def map_on(items: Sequence[str]) -> Sequence[object]:
            results = supervisor.map(items, return_exceptions=True)
            return [getattr(result, "text", None) for result in results]

        yield Calls(
            submit,
            lambda items: [r.text for r in supervisor.map(items)],
            map_on=map_on,
            lazy=lambda items: (r.text for r in supervisor.imap(items)),
        )


def _of_pool(module: str, **options: Any) -> Callable[[Work, int], AbstractContextManager[Calls]]:
    """``multiprocessing.Pool``, and what has its interface."""

    @contextlib.contextmanager
    def opened(work: Work, size: int) -> Iterator[Calls]:
        with importlib.import_module(module).Pool(size) as pool:
            yield Calls(
                lambda item: pool.apply_async(work, (item,)).get,
                lambda items: pool.map(work, items, **options),
                lazy=lambda items: pool.imap(work, items, **options),
            )

    return opened


def _of_executor(executor: Any, work: Work) -> Calls:
    return Calls(
        lambda item: executor.submit(work, item).result,
        lambda items: list(executor.map(work, items)),
        lazy=lambda items: executor.map(work, items),
    )


@contextlib.contextmanager
def _standard(work: Work, size: int) -> Iterator[Calls]:
    futures = importlib.import_module("concurrent.futures")
    with futures.ProcessPoolExecutor(size) as executor:
        yield _of_executor(executor, work)


@contextlib.contextmanager
def _loky(work: Work, size: int) -> Iterator[Calls]:
    executor = importlib.import_module("loky").ProcessPoolExecutor(size)
    try:
        yield _of_executor(executor, work)
    finally:
        executor.shutdown(kill_workers=True)


@contextlib.contextmanager
def _mpire(work: Work, size: int) -> Iterator[Calls]:
    with importlib.import_module("mpire").WorkerPool(size, keep_alive=True) as pool:
        yield Calls(
            lambda item: pool.apply_async(work, (item,)).get,
            lambda items: pool.map(work, items),
            lazy=lambda items: pool.imap(work, items),
        )


@contextlib.contextmanager
def _pebble(work: Work, size: int) -> Iterator[Calls]:
    with importlib.import_module("pebble").ProcessPool(size) as pool:
        yield Calls(
            lambda item: pool.schedule(work, args=[item]).result,
            lambda items: list(pool.map(work, items).result()),
            lazy=lambda items: pool.map(work, items).result(),
        )


@contextlib.contextmanager
def _ray(work: Work, size: int) -> Iterator[Calls]:
    ray = importlib.import_module("ray")
    actor_pool = importlib.import_module("ray.util").ActorPool
    ray.init(
        num_cpus=size,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=False,
    )

    class Actor:
        def work(self, item: str) -> str:
            return work(item)

    remote = ray.remote(num_cpus=1, max_restarts=-1)(Actor)
    actors = [remote.remote() for _ in range(size)]
    pool = actor_pool(actors)
    turn = iter(range(1 << 62))

    def submit(item: str) -> Waiter:
        reference = actors[next(turn) % size].work.remote(item)
        return lambda timeout_s=None: str(ray.get(reference, timeout=timeout_s))

    try:
        yield Calls(
            submit, lambda items: list(pool.map(lambda actor, item: actor.work.remote(item), items))
        )
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _dask(work: Work, size: int) -> Iterator[Calls]:
    distributed = importlib.import_module("distributed")
    with (
        distributed.LocalCluster(
            n_workers=size, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield Calls(
            lambda item: client.submit(work, item, pure=False).result,
            lambda items: client.gather(client.map(work, items, pure=False)),
        )


@contextlib.contextmanager
def _ipyparallel(work: Work, size: int) -> Iterator[Calls]:
    module = importlib.import_module("ipyparallel")
    with module.Cluster(n=size, log_level=logging.ERROR) as client:
        client.wait_for_engines(size, interactive=False)
        view = client.load_balanced_view()
        yield Calls(
            lambda item: view.apply_async(work, item).get, lambda items: view.map_sync(work, items)
        )


SOLOIST = Peer("Soloist", "", survives=True, open=_soloist)
STANDARD_POOL = Peer("Pool", "", survives=False, open=_of_pool("multiprocessing"))
CHUNKED_POOL = Peer(
    "Pool, chunksize 512", "", survives=False, open=_of_pool("multiprocessing", chunksize=512)
)
STANDARD_EXECUTOR = Peer("ProcessPoolExecutor", "", survives=False, open=_standard)
LOKY = Peer("loky", "loky", survives=False, open=_loky)
MPIRE = Peer("mpire", "mpire", survives=False, open=_mpire)
PEBBLE = Peer("Pebble", "pebble", survives=True, open=_pebble)
OTHERS = (
    STANDARD_POOL,
    CHUNKED_POOL,
    Peer("multiprocess.Pool", "multiprocess", survives=False, open=_of_pool("multiprocess")),
    STANDARD_EXECUTOR,
    LOKY,
    MPIRE,
    PEBBLE,
    Peer("Ray ActorPool", "ray", survives=True, open=_ray),
    Peer("Dask", "distributed", survives=True, open=_dask),
    Peer("ipyparallel", "ipyparallel", survives=True, open=_ipyparallel),
)
BY_NAME = {peer.name: peer for peer in (SOLOIST, *OTHERS)}
PACKAGES = tuple(peer.package for peer in OTHERS if peer.package)


def present(peers: Sequence[Peer] = OTHERS) -> tuple[list[Peer], list[str]]:
    """Those of them that are installed, and a note on those that are not."""
    here = [peer for peer in peers if peer.is_installed]
    absent = ", ".join(peer.name for peer in peers if peer not in here)
    return here, [f"not installed: {absent}"] if absent else []
