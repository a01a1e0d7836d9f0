"""The picture of docs/speed.md: which share of the promised speed-up the clock shows.

    python benchmarks/speed_plot.py docs/pictures/speed.png benchmarks/results/end_to_end_*.json

A panel for each batch and number of threads with all exits measured, compiled or not, a group of
bars for each exit, a bar for each backbone: realised over theoretical speed-up against the fastest
dense run. A bar's line goes from the upper to the lower quartile of the exit's time. The band is
what the paper's own system showed.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from anchornet_ext._files import write_whole
from anchornet_ext.benchmark.end_to_end import BACKBONES, NAME
from anchornet_ext.benchmark.rows import Results, Row

#: Of the promised speed-up, as the paper measured its own system.
PAPER = (53, 59)
NAMES = dict(zip(BACKBONES, ("ResNet-50", "DenseNet-201", "MobileNetV3-Large"), strict=True))
COLOURS = dict(zip(BACKBONES, ("#3465a4", "#e9a23b", "#5a9e6f"), strict=True))
EXITS = (1, 2, 3, 4, 5)

#: Compiled, threads and batch -> backbone -> exit -> its row.
Panels = dict[tuple[bool, int, int], dict[str, dict[int, Row]]]


def panels(files: list[Path]) -> Panels:
    """Rows of float32 at 224 pixels, of backbones that have a colour."""
    found: Panels = defaultdict(lambda: defaultdict(dict))
    for file in files:
        results = Results.load(file)
        for row in results:
            settings = row.settings
            # Not those that know their exit in advance: "exit 3, known".
            exit_step = row.name.removeprefix("exit ")
            if row.suite != NAME or not exit_step.isdigit() or "share" not in row.facts:
                continue
            if (settings["size"], settings["dtype"]) != (224, "float32"):
                continue
            if settings["backbone"] in COLOURS:
                compiled = "compiled" in settings
                where = (compiled, results.environment.threads, int(settings["batch"]))
                found[where][str(settings["backbone"])][int(exit_step)] = row
    return {where: found[where] for where in sorted(found) if _is_complete(found[where])}


def _is_complete(backbones: dict[str, dict[int, Row]]) -> bool:
    """Whether every exit is there; of large batches, some are not measured."""
    return all(len(rows) == len(EXITS) for rows in backbones.values())


def draw(
    axes: Axes, compiled: bool, threads: int, batch: int, backbones: dict[str, dict[int, Row]]
) -> None:
    """One panel."""
    axes.axhspan(*PAPER, color="#cc4444", alpha=0.25, lw=0, zorder=0)
    axes.axhline(100, color="#333333", lw=1, zorder=1)
    names = [name for name in BACKBONES if name in backbones]
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        rows = backbones[name]
        at = [t - 0.4 + width * (place + 0.5) for t in rows]
        shares = [100 * row.facts["share"] for row in rows.values()]
        spread: tuple[list[float], list[float]] = ([], [])
        for share, row in zip(shares, rows.values(), strict=True):
            assert row.time is not None
            spread[0].append(share * (1 - row.time.median / row.time.high))
            spread[1].append(share * (row.time.median / row.time.low - 1))
        axes.bar(at, shares, 0.94 * width, color=COLOURS[name], label=NAMES[name], zorder=2)
        axes.errorbar(at, shares, spread, fmt="none", ecolor="#222222", elinewidth=0.8, zorder=3)
    cores = f"{threads} core{'s' if threads > 1 else ''}"
    images = "a single image" if batch == 1 else f"batches of {batch}"
    axes.set_title(f"{images}, {cores}{', compiled' if compiled else ''}", fontsize=9)
    axes.set_xticks(EXITS, [f"exit {t}" for t in EXITS])
    axes.set_ylim(0, 150)
    axes.tick_params(length=0, labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def main(arguments: list[str]) -> int:
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    picture, *files = map(Path, arguments)
    found = panels(files)
    if not found:
        raise ValueError(f"no rows of the suite {NAME} in {', '.join(map(str, files))}")
    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(4.6 * columns, 2.5 * lines), sharey=True, squeeze=False
    )
    for axes, (where, backbones) in zip(grid.flat, found.items(), strict=False):
        draw(axes, *where, backbones)
    for axes in grid.flat[len(found) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("of the promised speed-up, %", fontsize=8)
    first = grid[0, 0]
    first.text(5.55, sum(PAPER) / 2, "paper", fontsize=7, color="#aa2222", va="center", ha="right")
    handles, labels = first.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(temporary := picture.with_suffix(".tmp.png"), dpi=110)
    write_whole(picture, temporary.read_bytes())
    temporary.unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
