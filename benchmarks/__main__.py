"""``python -m benchmarks``: list, run, all, compare, report."""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from benchmarks import _machine, _peers, _report, _show, _suite
from benchmarks._suite import Effort, Run

_quick = click.option("--quick", is_flag=True, help="A smaller one: to see that it works.")
_json = click.option(
    "--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write all of it there."
)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class _Suite(click.Group):
    """Knows each benchmark's name as a command: ``run`` with that name."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        known = super().get_command(ctx, cmd_name)
        if known is not None or cmd_name not in _suite.names():
            return known
        benchmark = _suite.load(cmd_name)
        callback = lambda quick, file: _run([cmd_name], quick=quick, file=file)  # noqa: E731
        command = click.Command(cmd_name, callback=callback, help=benchmark.title)
        return _json(_quick(command))


@click.group(cls=_Suite, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure Soloist, beside bare ZeroMQ and other pools.

    A benchmark's name is a command, too: `python -m benchmarks broker_cost`.
    """


@main.command("list")
def list_() -> None:
    """Show which benchmarks there are."""
    _show.listing(map(_suite.load, _suite.names()))


@main.command()
@click.argument("names", nargs=-1, required=True, type=click.Choice(_suite.names()))
@_quick
@_json
def run(names: tuple[str, ...], *, quick: bool, file: Path | None) -> None:
    """Run some of them."""
    _run(names, quick=quick, file=file)


@main.command("all")
@_quick
@_json
def all_(*, quick: bool, file: Path | None) -> None:
    """Run all of them."""
    _run(_suite.names(), quick=quick, file=file)


@main.command()
@click.argument("before", type=_FILE)
@click.argument("after", type=_FILE)
def compare(before: Path, after: Path) -> None:
    """Show what has changed between two runs; ratios say more than times."""
    maps = [_read(path)["benchmarks"] for path in (before, after)]
    outcomes = [{name: _suite.outcome_of(value) for name, value in known.items()} for known in maps]
    _show.comparison(*outcomes)


@main.command()
@click.argument("file", type=_FILE)
@click.option(
    "--to",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path(__file__).parent / "REPORT.md",
    help="Plots go beside it.",
)
def report(file: Path, to: Path) -> None:
    """Write a report with tables and plots from what `--json` wrote."""
    _report.write(_read(file), to)


def _run(names: Iterable[str], *, quick: bool, file: Path | None) -> None:
    """Run them; the exit code says whether all results were right."""
    head = {
        "schema": _suite.SCHEMA,
        "began_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "is_quick": quick,
        "machine": _machine.facts(),
        "versions": _machine.versions((*_machine.OWN, *_peers.PACKAGES)),
    }
    runs: dict[str, Any] = {}
    is_right = True
    for name in names:
        done: Run = _suite.execute(_suite.load(name), Effort(quick))
        _show.run(done)
        runs[name] = done.as_map()
        is_right &= not done.failure
        if file is not None:  # after each: a run may be cut off
            file.write_text(json.dumps({**head, "benchmarks": runs}, indent=1) + "\n")
    if not is_right:
        sys.exit(1)


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        schema = found["schema"]
    except (ValueError, LookupError, TypeError) as error:
        raise click.ClickException(f"{path} is not what --json writes") from error
    if schema != _suite.SCHEMA:
        raise click.ClickException(f"{path} has schema {schema}, not {_suite.SCHEMA}")
    return found


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
