"""Hostile peers before a running gateway, and a well-behaved one beside them.

``python -m tests.faults.hostile --messages 1000000 --rate 5000`` starts ``soloist serve`` with the
echo client and prints what it cost: failures and times of the good peer, memory of the gateway.
The exit code is 1 if the good peer had a failure, the gateway died or its log holds a traceback.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.faults.hostile import load


def main(arguments: list[str]) -> int:
    """Run what the command line says; the exit code."""
    options = _parser().parse_args(arguments)
    report = load.run(
        options.messages,
        rate=options.rate,
        seed=options.seed,
        max_errors=options.max_errors,
        saved_to=options.save,
        progress=_show if options.verbose else lambda sent, mib: None,
    )
    print(*report.lines(), sep="\n")
    return int(bool(report.failures or report.tracebacks))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.hostile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=5_000, help="messages a second")
    parser.add_argument("--seed", type=int, default=1, help="of all choices")
    parser.add_argument(
        "--max-errors", type=int, metavar="N", help="the gateway's max_protocol_errors"
    )
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="for the last messages, should the gateway die"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="tell how it goes")
    return parser


def _show(sent: int, mib: float) -> None:
    print(f"\r{sent:,} sent, {mib:.0f} MiB", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
