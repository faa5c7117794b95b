"""A program that holds a Supervisor for the process-tree matrix and obeys orders on its stdin.

Run as ``python -m tests.faults.process_tree_holder``. Says ``ready`` and then, for each line, one
line: ``grow FOLDER`` puts two workers into mid-turn, each with two grandchildren that leave their
pids in the folder; ``check`` ends those turns, asks for answers and says, as JSON, what came of it.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

SIZE = 2
LIMIT_S = 20.0
_STUBBORN = (
    'trap "" TERM HUP INT; echo $$ > "$0.new"; mv "$0.new" "$0"; '
    "exec sleep 600 </dev/null >/dev/null 2>&1"
)
"""A shell's script that ignores every polite signal; its ``$0`` is where its pid goes."""
_DAEMON = '(setsid env -i PATH="$PATH" sh -c "$0" "$1" &)'
"""It leaves session, parent and environment behind."""


def grow(prompt: str) -> str:
    """The client: children of two kinds, then a turn without end."""
    if not prompt.startswith("grow "):
        return prompt
    path = prompt.removeprefix("grow ")
    subprocess.Popen(["sh", "-c", _STUBBORN, f"{path}.child"])
    subprocess.run(["sh", "-c", _DAEMON, _STUBBORN, f"{path}.daemon"], check=True)
    Path(f"{path}.begun.new").write_text(str(os.getpid()))
    Path(f"{path}.begun.new").rename(f"{path}.begun")
    threading.Event().wait()
    return ""


def main() -> None:
    """Obey until the end of the input."""
    from soloist import Supervisor
    from soloist.protocol.errors import SoloistError
    from tests.faults.process_tree import zombies_of

    def outcome(future) -> str:
        try:
            return type(future.exception(LIMIT_S)).__name__
        except concurrent.futures.CancelledError:
            return "cancelled"

    futures: list = []
    with Supervisor(SIZE, client=grow, max_restarts=100_000) as sup:
        print("ready", flush=True)
        for line in sys.stdin:
            match line.split():
                case ["grow", folder]:
                    futures = [sup.submit(f"grow {folder}/{i}") for i in range(SIZE)]
                    print("growing", flush=True)
                case ["check", victims]:
                    # Those whose worker lives on never end by themselves.
                    lost = concurrent.futures.wait(futures, LIMIT_S, "FIRST_COMPLETED").done
                    if victims == "some":
                        for future in set(futures) - lost:
                            future.cancel()
                    outcomes = [outcome(future) for future in futures]
                    try:
                        answers = [r.text for r in sup.map(["a", "b", "c"], timeout_s=LIMIT_S)]
                    except SoloistError as error:
                        answers = [repr(error)]
                    report = {
                        "outcomes": sorted(outcomes),
                        "answers": answers,
                        "zombies": zombies_of(os.getpid()),
                    }
                    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
