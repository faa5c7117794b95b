"""The long forms of the fault suite; exit code 1 if a promise was broken.

``python -m tests.faults --cycles 5000 --seed 1`` is the soak: cycles of one fault with its load
around. ``kills`` maps over many prompts while workers are killed; ``replacement`` measures how soon
a killed worker's place is taken.
"""

from __future__ import annotations

import argparse
import sys

from tests.faults import measure, soak

MEDIAN_MS = 50.0
"""A worker that has worked is replaced within this, at the median."""


def main(arguments: list[str]) -> int:
    """Run what the command line says; the exit code."""
    options = _parser().parse_args(arguments)
    return int({"soak": _soak, "kills": _kills, "replacement": _replacement}[options.what](options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", nargs="?", default="soak", choices=["soak", "kills", "replacement"])
    parser.add_argument("--seed", type=int, default=1, help="of all choices")
    of_soak = parser.add_argument_group("soak")
    of_soak.add_argument("--cycles", type=int, default=500, help="one fault each")
    of_soak.add_argument("--per-round", type=int, default=soak.CYCLES_PER_ROUND)
    of_soak.add_argument("--first-round", type=int, default=0, help="to run one round again")
    of_soak.add_argument("--setup", choices=[s.name for s in soak.SETUPS], help="this kind only")
    of_soak.add_argument("--stop", action="store_true", help="stop workers (SIGSTOP), too")
    of_kills = parser.add_argument_group("kills")
    of_kills.add_argument("--prompts", type=int, default=10_000)
    of_kills.add_argument("--workers", type=int, default=4)
    of_kills.add_argument("--every-ms", type=float, default=100.0)
    of_kills.add_argument("--turn-ms", type=float, default=2.0, help="what a turn takes")
    of_replacement = parser.add_argument_group("replacement")
    of_replacement.add_argument("--kills", type=int, default=50)
    return parser


def _soak(options: argparse.Namespace) -> bool:
    summary = soak.run(
        options.cycles,
        options.seed,
        per_round=options.per_round,
        first_round=options.first_round,
        setups=tuple(s for s in soak.SETUPS if options.setup in {None, s.name}),
        may_stop=options.stop,
        progress=_show,
    )
    if summary.replay and options.setup:
        summary.replay += f" --setup {options.setup}"
    print(*summary.lines(), sep="\n")
    return bool(summary.violations)


def _show(summary: soak.Summary) -> None:
    print(
        f"{summary.cycles} cycles, {summary.seconds:.1f} s, "
        f"{summary.struck.total()} faults struck, {len(summary.violations)} violations, "
        f"{summary.figures[-1].rss_mib} MiB",
        file=sys.stderr,
        flush=True,
    )


def _kills(options: argparse.Namespace) -> bool:
    report = measure.map_under_kills(
        prompts=options.prompts,
        workers=options.workers,
        every_s=options.every_ms / 1000,
        turn_s=options.turn_ms / 1000,
        seed=options.seed,
    )
    print(*report.lines(), sep="\n")
    return bool(report.violations)


def _replacement(options: argparse.Namespace) -> bool:
    report = measure.replacement(options.kills)
    print(*report.lines(), sep="\n")
    return report.median_ms > MEDIAN_MS


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
