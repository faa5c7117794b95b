"""The process-tree matrix: who is killed, and how soon everything that must go is gone.

The tree is ``supervisor -> guard1 -> guard2 -> guard3 -> helper -> two workers``, each worker in
mid-turn with a grandchild that ignores SIGTERM and a daemon that also left its session, its parent
and its environment. A cell is one SIGKILL or two at once. Run as a program, this repeats every cell
and prints how long it took until all was gone::

    python -m tests.faults.process_tree --trials 20

Processes are known by pid and start time, never by name.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from typing import NamedTuple

from soloist.supervisor.process import RUN_VARIABLE
from tests.support import descendants_of_runs, environment, eventually

GONE_S = 2.0
"""What promise 8 grants."""
SUPERVISOR = "supervisor"
GUARDS = ("guard1", "guard2", "guard3")
VICTIMS = (SUPERVISOR, *GUARDS, "helper", "worker")
CELLS: list[tuple[str, ...]] = [
    *((one,) for one in VICTIMS),
    *itertools.permutations(VICTIMS, 2),
    ("worker", "worker2"),
]


class Process(NamedTuple):
    """One process that no later one with its pid can be taken for."""

    pid: int
    start: int

    def is_alive(self) -> bool:
        """Whether it runs; a zombie has ended."""
        stat = _stat(self.pid)
        return stat is not None and stat[0] not in "ZX" and int(stat[19]) == self.start


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def process(pid: int) -> Process:
    stat = _stat(pid)
    assert stat is not None, f"{pid} has gone already"
    return Process(pid, int(stat[19]))


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, (task / "children").read_text().split())
    return found


def zombies_of(pid: int) -> list[int]:
    """Children that nobody has reaped yet."""
    stats = {child: _stat(child) for child in children_of(pid)}
    return [child for child, stat in stats.items() if stat is not None and stat[0] == "Z"]


class Holder:
    """A process with a Supervisor of its own, and the tree below it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._grown = 0
        self._program = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.process_tree_holder"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # workers that were killed amid a write complain
            env=environment(PYTHONWARNINGS="default"),
            text=True,
        )
        self._is_ready = False

    def order(self, line: str) -> str:
        """Say one line; its answer."""
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        if not self._is_ready:
            assert self._program.stdout.readline() == "ready\n"
            self._is_ready = True
        self._program.stdin.write(f"{line}\n")
        self._program.stdin.flush()
        return self._program.stdout.readline()

    def grow(self) -> Tree:
        """Put the workers into mid-turn; everything that there is then."""
        self._grown += 1
        folder = self._folder / str(self._grown)
        folder.mkdir()
        self.order(f"grow {folder}")
        names = [f"{i}.{what}" for i in (0, 1) for what in ("begun", "child", "daemon")]
        eventually(lambda: all((folder / name).exists() for name in names))
        pids = {name: int((folder / name).read_text()) for name in names}
        return Tree(self._program.pid, pids)

    def check(self, victims: str) -> dict[str, list]:
        """End the turns that go on, and have prompts answered."""
        return json.loads(self.order(f"check {victims}"))

    def reap(self) -> None:
        """Take note of its end."""
        self._program.wait()
        self._close()

    def close(self) -> None:
        """End it, by force if need be."""
        if self._program.returncode is None:
            self._program.kill()
            self._program.wait()
        self._close()

    def _close(self) -> None:
        for pipe in (self._program.stdin, self._program.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class Tree:
    """Every process of one Supervisor in mid-turn, by its part."""

    def __init__(self, supervisor: int, pids: dict[str, int]) -> None:
        workers = [pids["0.begun"], pids["1.begun"]]
        line = [supervisor]
        while workers[0] not in (children := children_of(line[-1])):
            assert len(children) == 1, f"{line[-1]} has the children {children}"
            line += children
        parts = dict(zip((SUPERVISOR, *GUARDS, "helper"), line, strict=True))
        self.parts = {name: process(pid) for name, pid in parts.items()}
        self.parts |= {"worker": process(workers[0]), "worker2": process(workers[1])}
        self.below = {
            worker: [process(pids[f"{i}.{what}"]) for what in ("child", "daemon")]
            for i, worker in enumerate(("worker", "worker2"))
        }
        environ = Path(f"/proc/{workers[0]}/environ").read_bytes().split(b"\0")
        (run_dir,) = (e for e in environ if e.startswith(RUN_VARIABLE.encode() + b"="))
        self.run_dir = run_dir.partition(b"=")[2].decode()

    def kill(self, cell: tuple[str, ...]) -> None:
        """All victims at once, as far as that can be."""
        for victim in cell:
            with contextlib.suppress(ProcessLookupError):  # the first took it along
                os.kill(self.parts[victim].pid, signal.SIGKILL)

    def doomed(self, cell: tuple[str, ...]) -> list[Process]:
        """Everything that must go."""
        if set(cell) <= {"worker", "worker2"}:
            return [p for worker in cell for p in (self.parts[worker], *self.below[worker])]
        every = [*self.parts.values(), *self.below["worker"], *self.below["worker2"]]
        return [p for p in every if SUPERVISOR in cell or p != self.parts[SUPERVISOR]]

    def others(self, cell: tuple[str, ...]) -> list[Process]:
        """Everything that must stay."""
        doomed = self.doomed(cell)
        every = [*self.parts.values(), *self.below["worker"], *self.below["worker2"]]
        return [p for p in every if p not in doomed]


class Matrix:
    """Runs cells; those that leave the supervisor alive share one, others have one ready.

    Args:
        folder: scratch.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made = 0
        self._spare: deque[Holder] = deque()
        self._lasting: Holder | None = None

    def run(self, cell: tuple[str, ...]) -> float:
        """One trial; milliseconds from the last kill until all was gone that must go.

        Raises:
            AssertionError: it took too long, too much went, or the supervisor did not go on.
        """
        if SUPERVISOR in cell:
            holder = self._spare.popleft() if self._spare else self._new()
            self._spare.append(self._new())  # it starts meanwhile
        else:
            holder = self._lasting = self._lasting or self._new()
        try:
            return self._trial(holder, cell)
        except BaseException:
            self._lasting = None if holder is self._lasting else self._lasting
            holder.close()
            raise

    def run_with_a_stopped_guard(self) -> None:
        """Kill guard2 and, when guard1 has done to guard3 what it does, guard1."""
        holder = self._lasting = self._lasting or self._new()
        tree = holder.grow()
        innermost = tree.parts["guard3"]
        os.kill(innermost.pid, signal.SIGSTOP)
        tree.kill(("guard2",))
        eventually(lambda: not innermost.is_alive() or _is_told(innermost))
        assert innermost.is_alive()
        tree.kill(("guard1",))
        os.kill(innermost.pid, signal.SIGCONT)
        _gone_s(tree.doomed(("guard1", "guard2")), time.monotonic(), None)
        self._goes_on(holder, ("guard2", "guard1"))

    def _trial(self, holder: Holder, cell: tuple[str, ...]) -> float:
        tree = holder.grow()
        doomed = tree.doomed(cell)
        tree.kill(cell)
        killed = time.monotonic()
        if SUPERVISOR in cell:
            holder.reap()
            gone_s = _gone_s(doomed, killed, tree.run_dir)
            assert descendants_of_runs({tree.run_dir}) == []
        else:
            gone_s = _gone_s(doomed, killed, None)
            assert all(p.is_alive() for p in tree.others(cell)), "more was ended than had to be"
            self._goes_on(holder, cell)
            _gone_s([*tree.below["worker2"], tree.parts["worker2"]], time.monotonic(), None)
        return gone_s * 1000

    def _goes_on(self, holder: Holder, cell: tuple[str, ...]) -> None:
        report = holder.check("some" if cell == ("worker",) else "all")
        wanted = ["WorkerLost", "cancelled" if cell == ("worker",) else "WorkerLost"]
        assert report == {"outcomes": wanted, "answers": ["a", "b", "c"], "zombies": []}, report

    def close(self) -> None:
        """End what is left."""
        for holder in (*self._spare, self._lasting):
            if holder is not None:
                holder.close()

    def _new(self) -> Holder:
        self._made += 1
        folder = self._folder / f"holder{self._made}"
        folder.mkdir()
        return Holder(folder)


def _gone_s(doomed: list[Process], since: float, run_dir: str | None) -> float:
    def left() -> list[object]:
        alive: list[object] = [p for p in doomed if p.is_alive()]
        return alive + ([run_dir] if run_dir and os.path.exists(run_dir) else [])

    with contextlib.suppress(AssertionError):
        eventually(lambda: not left(), timeout_s=GONE_S)
        return time.monotonic() - since
    raise AssertionError(f"after {GONE_S:g} s there is still {left()}")


def _is_told(guard: Process) -> bool:
    """Whether a SIGTERM waits for it."""
    status = Path(f"/proc/{guard.pid}/status").read_text()
    (pending,) = (line for line in status.splitlines() if line.startswith("ShdPnd:"))
    return bool(int(pending.split()[1], 16) & 1 << (signal.SIGTERM - 1))


def name_of(cell: tuple[str, ...]) -> str:
    return " + ".join(cell)


def main() -> None:
    """Print the table; exit with 1 if a trial failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--cell", choices=[name_of(cell) for cell in CELLS], action="append")
    arguments = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        matrix = Matrix(Path(folder))
        print(f"{'killed':24} {'trials':>6} {'median ms':>10} {'max ms':>8}  failed")
        for cell in CELLS:
            if arguments.cell and name_of(cell) not in arguments.cell:
                continue
            took: list[float] = []
            reasons: list[str] = []
            for _ in range(arguments.trials):
                try:
                    took.append(matrix.run(cell))
                except AssertionError as error:
                    reasons.append(str(error))
            took.sort()
            figures = f"{took[len(took) // 2]:10.0f} {took[-1]:8.0f}" if took else f"{'':19}"
            print(f"{name_of(cell):24} {arguments.trials:6} {figures}  {reasons or ''}", flush=True)
            failures += len(reasons)
        matrix.close()
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
