"""Figures and ratios as tables for a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks._suite import Benchmark, Figure, Outcome, Ratio, Run

console = Console(highlight=False)


def number(value: float) -> str:
    """Three figures, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004


def spread(figure: Figure) -> str:
    """The quartiles."""
    low, high = figure.quartiles
    return f"{number(low)} to {number(high)}"


def promise(found: Ratio) -> str:
    """What is promised of a ratio, and whether it holds."""
    bounds = (("at most", found.at_most), ("at least", found.at_least))
    words = [f"{word} {number(bound)}" for word, bound in bounds if bound is not None]
    return ", ".join(words) + ("" if found.is_met else " (missed)")


def setting(figure: Figure) -> str:
    """What was varied."""
    return ", ".join(
        value if isinstance(value, str) else f"{name} {number(value)}"
        for name, value in figure.setting.items()
    )


def listing(benchmarks: Iterable[Benchmark]) -> None:
    """Show which there are."""
    for benchmark in benchmarks:
        console.print(f"{benchmark.name:20} {benchmark.title}")


def run(done: Run) -> None:
    """Show what one gave, or why it gave nothing."""
    console.rule(f"{done.benchmark.name}: {done.benchmark.title}", align="left")
    if done.failure:
        console.print(f"no figures: {done.failure}", style="red")
        return
    outcome(done.outcome)
    console.print(f"took {done.seconds:.0f} s", style="dim")


def outcome(found: Outcome) -> None:
    """Show figures, ratios and notes."""
    if found.figures:
        columns: list[tuple[str, Callable[[Any], str]]] = [
            ("contestant", lambda f: f.name),
            ("setting", setting),
            ("median", lambda f: f"{number(f.median)} {f.unit}"),
            ("quartiles", spread),
        ]
        _table(columns, found.figures)
    if found.ratios:
        columns = [
            ("ratio", lambda r: r.name),
            ("setting", setting),
            ("median", lambda r: number(r.median)),
            ("quartiles", spread),
            ("promised", promise),
        ]
        _table(columns, found.ratios)
    for note in found.notes:
        console.print(note)


def comparison(before: Mapping[str, Outcome], after: Mapping[str, Outcome]) -> None:
    """Show what has become of each ratio and figure that both runs have."""
    rows = []
    for name in before.keys() & after.keys():
        for kind in ("ratios", "figures"):
            known = {(f.name, setting(f)): f for f in getattr(before[name], kind)}
            rows += [
                (name, figure, old)
                for figure in getattr(after[name], kind)
                if (old := known.get((figure.name, setting(figure)))) is not None
            ]
    rows.sort(key=lambda row: row[0])
    columns: list[tuple[str, Callable[[Any], str]]] = [
        ("benchmark", lambda row: row[0]),
        ("of", lambda row: row[1].name),
        ("setting", lambda row: setting(row[1])),
        ("before", lambda row: f"{number(row[2].median)} {row[2].unit}"),
        ("after", lambda row: f"{number(row[1].median)} {row[1].unit}"),
        ("change", lambda row: f"{row[1].median / row[2].median - 1:+.1%}"),
    ]
    _table(columns, rows)


def _table(columns: Sequence[tuple[str, Callable[[Any], str]]], rows: Sequence[Any]) -> None:
    table = Table()
    shown = [(name, [cell(row) for row in rows]) for name, cell in columns]
    shown = [(name, cells) for name, cells in shown if any(cells)]
    for i, (name, _) in enumerate(shown):
        table.add_column(name, justify="left" if i == 0 else "right")
    for cells in zip(*(cells for _, cells in shown), strict=True):
        table.add_row(*cells)
    console.print(table)
