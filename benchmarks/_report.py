"""A report of one run: a page with tables, and plots beside it.

What varies with N is drawn as lines, one plot for each other setting; everything else as bars. One
point is no plot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks._show import number, promise, setting, spread
from benchmarks._suite import Figure, Outcome, outcome_of

PLOTS = "plots"
"""The folder beside the page."""
_SIZES = "N"


def write(run: Mapping[str, Any], to: Path) -> None:
    """Write the page and its plots.

    Args:
        run: what ``--json`` wrote.
        to: the page's file.

    Raises:
        ClickException: the plotting library is not there.
    """
    try:
        import matplotlib as mpl  # noqa: PLC0415 - nothing else needs it
    except ImportError as error:
        raise click.ClickException("plots need matplotlib: pip install 'soloist[bench]'") from error
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "soloist"  # the same figures give the same file
    folder = to.parent / PLOTS
    folder.mkdir(parents=True, exist_ok=True)
    lines = [*_head(run)]
    for name, value in run["benchmarks"].items():
        lines += ["", f"## {name}", "", value["title"], "", value["method"], ""]
        if value["failure"]:
            lines.append(f"No figures: {value['failure']}")
            continue
        outcome = outcome_of(value)
        lines += [*_tables(outcome), *(f"- {note}" for note in outcome.notes)]
        for title, plot in _plots(name, outcome.figures, folder):
            lines += ["", f"![{title}]({PLOTS}/{plot})"]
    to.write_text("\n".join(lines) + "\n")


def _head(run: Mapping[str, Any]) -> Iterator[str]:
    yield "# Benchmarks"
    yield ""
    yield f"Run at {run['began_at']}" + (", the quick way" if run["is_quick"] else "") + "."
    yield ""
    facts = {**run["machine"], **run["versions"]}
    yield from _table(("what", "is"), facts.items())


def _tables(outcome: Outcome) -> Iterator[str]:
    if outcome.ratios:
        yield from _table(
            ("ratio", "setting", "median", "quartiles", "promised"),
            ((r.name, setting(r), number(r.median), spread(r), promise(r)) for r in outcome.ratios),
        )
        yield ""
    if outcome.figures:
        yield from _table(
            ("contestant", "setting", "median", "quartiles"),
            (
                (f.name, setting(f), f"{number(f.median)} {f.unit}", spread(f))
                for f in outcome.figures
            ),
        )
        yield ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "| " + " | ".join("---" for _ in heads) + " |"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _plots(name: str, figures: Sequence[Figure], folder: Path) -> Iterator[tuple[str, str]]:
    """Draw what belongs together; titles and names of files."""
    groups: dict[tuple[str, str], list[Figure]] = {}
    for figure in figures:
        others = {k: v for k, v in figure.setting.items() if k != _SIZES}
        key = (setting(Figure("", "", (), others)), figure.unit)
        groups.setdefault(key, []).append(figure)
    for (where, unit), group in groups.items():
        if len({figure.setting.get(_SIZES, figure.name) for figure in group}) > 1:
            title = f"{name}: {unit}" + (f", {where}" if where else "")
            file = f"{_slug(title)}.svg"
            _draw(title, unit, group, folder / file)
            yield title, file


def _slug(title: str) -> str:
    """A file's name that stays the same from run to run."""
    return re.sub(r"[^a-z0-9_]+", "-", title.lower().replace("/s", "per second")).strip("-")


def _draw(title: str, unit: str, figures: Sequence[Figure], file: Path) -> None:
    from matplotlib import pyplot as plt  # noqa: PLC0415 - see above

    canvas, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    if any(_SIZES in figure.setting for figure in figures):
        _draw_lines(axes, unit, figures)
    else:
        _draw_bars(axes, unit, figures)
    axes.set_title(title)
    canvas.savefig(file, metadata={"Date": None})
    plt.close(canvas)


def _draw_lines(axes: Any, unit: str, figures: Sequence[Figure]) -> None:
    for name in dict.fromkeys(figure.name for figure in figures):
        points = sorted(
            (float(figure.setting[_SIZES]), figure.median, figure.quartiles)
            for figure in figures
            if figure.name == name
        )
        sizes = [size for size, _, _ in points]
        axes.plot(sizes, [median for _, median, _ in points], marker="o", label=name)
        lows, highs = zip(*(quartiles for _, _, quartiles in points), strict=True)
        axes.fill_between(sizes, lows, highs, alpha=0.2)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(_SIZES)
    axes.set_ylabel(unit)
    axes.legend()


def _draw_bars(axes: Any, unit: str, figures: Sequence[Figure]) -> None:
    medians = [figure.median for figure in figures]
    misses = [
        [median - figure.quartiles[0] for median, figure in zip(medians, figures, strict=True)],
        [figure.quartiles[1] - median for median, figure in zip(medians, figures, strict=True)],
    ]
    names = [figure.name for figure in figures]
    bars = axes.barh(names, medians, xerr=misses, ecolor="gray")
    axes.bar_label(bars, labels=[number(median) for median in medians], padding=3)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.margins(x=0.15)
