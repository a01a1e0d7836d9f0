"""The tables of docs/speed.md, in Markdown, from files that `anchornet bench` wrote.

    python benchmarks/speed_table.py benchmarks/results/end_to_end_*.json
    python benchmarks/speed_table.py benchmarks/results/breakdown.json
    python benchmarks/speed_table.py --exits benchmarks/results/end_to_end_*.json
    python benchmarks/speed_table.py --operators benchmarks/results/operators_cpu_1_thread.json

Rows of the suites end_to_end, breakdown and memory become a table for each setting; other rows are
left out. With --exits, the rows of all files that leave at one exit, a line for each backbone. With
--operators, a line for each case of the suite operators.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from tables_of_speed import breakdown_table, promised_and_shown

from anchornet_ext.benchmark.rows import Results, Row
from anchornet_ext.evaluation.units import three_digits


def tables(results: Results) -> Iterator[str]:
    """The lines of all tables of one file, and what was measured on what."""
    environment = results.environment
    yield f"`{environment.command}`: {environment.summary}."
    yield ""
    for suite, render in (
        ("end_to_end", end_to_end),
        ("breakdown", breakdown),
        ("memory", memory),
    ):
        rows = [row for row in results if row.suite == suite]
        if rows:
            yield from render(rows)
            yield ""


def end_to_end(rows: Iterable[Row]) -> Iterator[str]:
    """A line for each backbone, batch and contender."""
    yield "| backbone | size | batch | dtype | leaving | ms | theoretical | realised | share |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in rows:
        settings, facts = row.settings, row.facts
        where = " | ".join(str(settings[k]) for k in ("backbone", "size", "batch", "dtype"))
        if row.time is None:
            yield f"| {where} | {row.name} | {row.error} | | | |"
            continue
        time = f"{1e3 * row.time.median:.2f}"
        if "share" not in facts:
            yield f"| {where} | {row.name} | {time} | | | |"
            continue
        yield (
            f"| {where} | {row.name} | {time} | {facts['theoretical']:.2f} | "
            f"{facts['realised']:.2f} | {100 * facts['share']:.0f} % |"
        )


def breakdown(rows: Iterable[Row]) -> Iterator[str]:
    """A table for each setting: a line for each part, on the way to the last exit."""
    settings: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        where = ", ".join(f"{k} {row.settings[k]}" for k in ("backbone", "batch", "size"))
        settings[where].append(row)
    for where, group in settings.items():
        yield f"To the last exit, {where}:"
        yield ""
        yield from breakdown_table(group)
        yield ""


def memory(rows: Iterable[Row]) -> Iterator[str]:
    """A line for each setting and contender."""
    yield "| backbone | size | batch | what | peak, MiB | an image | networks |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for row in rows:
        where = " | ".join(str(row.settings[k]) for k in ("backbone", "size", "batch"))
        if "peak bytes" not in row.facts:
            yield f"| {where} | {row.name} | {row.error} | | |"
            continue
        peak, networks = (row.facts[f"{name} bytes"] / 2**20 for name in ("peak", "networks"))
        an_image = peak / int(row.settings["batch"])
        yield f"| {where} | {row.name} | {peak:,.0f} | {an_image:.1f} | {networks:,.0f} |"


def exits(files: Iterable[Results]) -> Iterator[str]:
    """A table for each number of threads and setting, a line for each backbone."""
    found: dict[str, dict[str, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    for results in files:
        threads = results.environment.threads
        for row in results:
            if row.suite == "end_to_end" and row.name.startswith("exit ") and row.facts:
                words = [f"{threads} thread{'s' if threads > 1 else ''}"]
                words += [f"{k} {row.settings[k]}" for k in ("batch", "size", "dtype")]
                words += ["compiled"] if "compiled" in row.settings else []
                found[", ".join(words)][str(row.settings["backbone"])][row.name] = row
    for where, backbones in found.items():
        names = sorted({name for rows in backbones.values() for name in rows})
        yield f"| {where} | {' | '.join(names)} |"
        yield f"|{'---|' * (1 + len(names))}"
        for backbone, rows in backbones.items():
            cells = [promised_and_shown(rows.get(name)) for name in names]
            yield f"| {backbone} | {' | '.join(cells)} |"
        yield ""


def operators(rows: Iterable[Row]) -> Iterator[str]:
    """How many times faster than all the others each operator is."""
    yield "| case | microseconds an image, quartiles | times faster than |"
    yield "|---|---|---|"
    for row in rows:
        if row.suite == "operators" and row.name.startswith("ours"):
            if row.time is None:
                yield f"| {row.subject}, {row.name} | {row.error} | |"
                continue
            median, low, high = (three_digits(1e6 * seconds) for seconds in row.time)
            others = ", ".join(f"{name} {ratio:.2f}" for name, ratio in row.ratios.items())
            yield f"| {row.subject} | {median}, {low} to {high} | {others} |"


def main(words: list[str]) -> int:
    paths = [word for word in words if not word.startswith("--")]
    if not paths or set(words) - {*paths, "--exits", "--operators"}:
        print(__doc__, file=sys.stderr)
        return 2
    if "--exits" in words:
        print("\n".join(exits(Results.load(Path(path)) for path in paths)))
        return 0
    if "--operators" in words:
        rows = [row for path in paths for row in Results.load(Path(path))]
        print("\n".join(operators(rows)))
        return 0
    for path in paths:
        print("\n".join(tables(Results.load(Path(path)))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
