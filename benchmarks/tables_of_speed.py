"""The tables of docs/speed.md: whole images, memory, and where their time goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from measured import Measured

from anchornet_ext.benchmark.breakdown import PARTS, WHOLE
from anchornet_ext.benchmark.end_to_end import BACKBONES
from anchornet_ext.benchmark.rows import Row, Setting
from anchornet_ext.benchmark.stream import MIXES
from anchornet_ext.evaluation.units import three_digits

NAMES = dict(zip(BACKBONES, ("ResNet-50", "DenseNet-201", "MobileNetV3-Large"), strict=True))
EXITS = (1, 2, 3, 4, 5)
SUITE = "end_to_end"


def exits(measured: Measured, threads: str, batch: str, quartiles: str = "yes") -> Iterator[str]:
    """Promised and shown at each exit, a line or, with quartiles, two for each backbone."""
    title = "a single image" if batch == "1" else f"batch {batch}"
    if quartiles == "no":
        title = f"promised / shown, {title}"
    yield f"| {title} | {' | '.join(f'exit {t}' for t in EXITS)} |"
    yield f"|{'---|' * (1 + len(EXITS))}"
    for backbone, label in NAMES.items():
        for known in ("", ", known") if batch == "1" and quartiles == "yes" else ("",):
            rows = [
                _exit(measured, f"exit {t}{known}", threads, backbone, batch=int(batch))
                for t in EXITS
            ]
            cells = " | ".join(map(promised_and_shown, rows))
            yield f"| {label}{', exit known' if known else ''} | {cells} |"
            if quartiles == "yes":
                yield f"| quartiles, % | {' | '.join(map(_quartiles, rows))} |"


def compiled(measured: Measured, threads: str) -> Iterator[str]:
    """The same through `torch.compile`, with the dense network's time."""
    yield f"| {_cores(threads)}, compiled | dense, ms | {' | '.join(f'exit {t}' for t in EXITS)} |"
    yield f"|{'---|' * (2 + len(EXITS))}"
    for batch in (32, 1):
        for backbone, label in NAMES.items():
            settings: dict[str, Setting] = {"batch": batch, "compiled": True}
            rows = [_exit(measured, f"exit {t}", threads, backbone, **settings) for t in EXITS]
            if rows == [None] * len(EXITS):
                continue
            what = "a single image" if batch == 1 else f"batch {batch}"
            dense = _fastest_dense(measured, threads, backbone, **settings)
            yield f"| {label}, {what} | {dense} | {' | '.join(map(promised_and_shown, rows))} |"
            yield f"| quartiles, % | | {' | '.join(map(_quartiles, rows))} |"


#: Batches, sizes and dtypes beside those of `exits`: what differs from 224 pixels in float32.
LARGER: tuple[dict[str, Setting], ...] = (
    {"batch": 256},
    {"batch": 1000},
    {"batch": 8, "size": 448},
    {"batch": 8, "size": 1024},
    {"batch": 32, "dtype": "bfloat16"},
    {"batch": 1, "dtype": "bfloat16"},
)


def larger(measured: Measured, threads: str) -> Iterator[str]:
    """Three exits of everything in `LARGER` that was measured."""
    shown = (1, 3, 5)
    yield (
        f"| {_cores(threads)} | fastest dense, ms an image | "
        f"{' | '.join(f'exit {t}' for t in shown)} |"
    )
    yield f"|{'---|' * (2 + len(shown))}"
    for settings in LARGER:
        for backbone, label in NAMES.items():
            rows = [_exit(measured, f"exit {t}", threads, backbone, **settings) for t in shown]
            if rows == [None] * len(shown):
                continue
            dense = _fastest_dense(measured, threads, backbone, **settings)
            words = []
            if "size" in settings:
                words += [f"{settings['size']} pixels"]
            words += [str(settings[k]) for k in ("dtype",) if k in settings]
            batch = int(settings["batch"])
            words += ["a single image" if batch == 1 else f"batch {batch:,}"]
            cells = [
                f"{promised_and_shown(row)} ({_quartiles(row)})" if row else "" for row in rows
            ]
            yield f"| {label}, {', '.join(words)} | {dense} | {' | '.join(cells)} |"


def budgets(measured: Measured, threads: str) -> Iterator[str]:
    """Mixes of exits, by `classify` and by the stream."""
    found: dict[tuple[str, int, str], dict[str, Row]] = {}
    for _, row in measured.rows(SUITE, int(threads), size=224, dtype="float32"):
        if " mix, " in row.name and row.error is None and "compiled" not in row.settings:
            budget, way = row.name.split(" mix, ")
            key = str(row.settings["backbone"]), int(row.settings["batch"]), budget
            found.setdefault(key, {})[way] = row
    yield f"| budget, {_cores(threads)} | step | stream |"
    yield "|---|---|---|"
    order = list(NAMES)
    for backbone, batch, budget in sorted(found, key=lambda k: (order.index(k[0]), *k[1:])):
        ways = found[backbone, batch, budget]
        cells = [
            f"{promised_and_shown(ways[way])} ({_quartiles(ways[way])})" if way in ways else ""
            for way in ("step", "stream")
        ]
        yield f"| {NAMES[backbone]}, {batch:,} images, {budget} | {' | '.join(cells)} |"


def stream(measured: Measured, threads: str, **settings: str) -> Iterator[str]:
    """The stream over its passes alone and over batch by batch, a line for each mix of exits.

    `settings` tell whose: `model=caltech101`, or `backbone=NAME`; and `pixels`.
    """
    mixes: dict[str, dict[str, Row]] = {}
    for _, row in measured.rows("stream", int(threads), **settings):
        if row.time is not None:
            mixes.setdefault(str(row.settings["mix"]), {})[row.name] = row
    yield (
        "| how images leave | ideal, ms | batch by batch | stream, quartiles | of ideal | "
        "single images | of ideal |"
    )
    yield "|---|---|---|---|---|---|---|"
    for mix in MIXES:
        if mix not in mixes:
            continue
        rows = mixes[mix]
        alone = [f"{1e3 * _median(rows[name]):.2f}" for name in ("ideal", "step")]
        cells = [
            cell
            for name in ("stream", "stream, single images")
            for cell in (_milliseconds(rows[name]), f"{rows[name].ratios['ideal']:.2f}")
        ]
        yield f"| {mix} | {' | '.join(alone + cells)} |"


def breakdown(measured: Measured, backbone: str, batch: str, threads: str) -> Iterator[str]:
    """Where the time of an image on its way to the last exit goes."""
    rows = [
        found.row
        for found in measured.rows(
            "breakdown", int(threads), backbone=backbone, batch=int(batch), size=224
        )
    ]
    if not rows:
        raise LookupError(f"no breakdown of {backbone} in batches of {batch}")
    yield from breakdown_table(rows)


def breakdown_table(rows: Iterable[Row]) -> Iterator[str]:
    """A line for each part of one setting's way to the last exit."""
    times: dict[str, dict[str, float]] = {"before": {}, "after": {}}
    macs: dict[str, float] = {}
    for row in rows:
        part = str(row.settings["part"])
        if row.time is not None:
            times[row.name][part] = 1e3 * row.time.median * row.facts["times"]
            macs[part] = row.facts["macs"] * row.facts["times"]
    totals = {way: sum(found[p] for p in PARTS if p in found) for way, found in times.items()}
    work = sum(macs.values())
    yield "| part | before, ms | share | after, ms | share | of the multiply-adds |"
    yield "|---|---|---|---|---|---|"
    for part in PARTS:
        cells = [part]
        for way in ("before", "after"):
            time = times[way].get(part)
            if time is None:
                cells += ["failed", ""]
            else:
                cells += [three_digits(time), f"{100 * time / totals[way]:.1f} %"]
        yield f"| {' | '.join(cells)} | {100 * macs.get(part, 0) / work:.1f} % |"
    sums = " | ".join(f"{totals[way]:.2f} |" for way in ("before", "after"))
    yield f"| sum of the parts | {sums} | |"
    wholes = [times[way].get(WHOLE) for way in ("before", "after")]
    if None not in wholes:
        yield f"| in one piece | {wholes[0]:.2f} | | {wholes[1]:.2f} | | |"


def memory(measured: Measured) -> Iterator[str]:
    """The peak of a batch for the system, its stream and the dense network."""
    found: dict[tuple[str, int, int], dict[str, Row]] = {}
    for _, row in measured.rows("memory"):
        if "peak bytes" in row.facts:
            settings = row.settings
            key = str(settings["backbone"]), int(settings["size"]), int(settings["batch"])
            found.setdefault(key, {})[row.name] = row
    yield "| MiB | system | stream | dense | | networks: system | dense |"
    yield "|---|---|---|---|---|---|---|"
    order = list(NAMES)
    for backbone, size, batch in sorted(found, key=lambda k: (order.index(k[0]), *k[1:])):
        rows = found[backbone, size, batch]
        peaks = [_mebibytes(rows[name], "peak") for name in ("system", "stream", "dense")]
        networks = [_mebibytes(rows[name], "networks") for name in ("system", "dense")]
        what = f"{NAMES[backbone]}, {size} pixels, batch {batch}"
        yield f"| {what} | {' | '.join(peaks)} | | {' | '.join(networks)} |"


def localisation(measured: Measured, threads: str) -> Iterator[str]:
    """Plain PyTorch and here, from images to patches."""
    yield f"| {_cores(threads)} | plain PyTorch, ms an image | here | share |"
    yield "|---|---|---|---|"
    for batch, freed in ((32, "kept"), (32, "returned"), (1, "kept")):
        plain, ours = (
            measured.need(
                "localisation",
                name,
                int(threads),
                freed_memory=freed,
                part="whole",
                batch=batch,
                size=224,
                dtype="float32",
            )
            for name in ("plain", "fused")
        )
        what = "a single image" if batch == 1 else f"batch {batch}"
        what += ", new pages for freed memory at every call" if freed == "returned" else ""
        share = 1 / ours.ratios["plain"]
        yield f"| {what} | {_milliseconds(plain)} | {_milliseconds(ours)} | **{share:.2f}** |"


def _exit(
    measured: Measured, name: str, threads: str, backbone: str, **settings: Setting
) -> Row | None:
    settings = {"backbone": backbone, "size": 224, "dtype": "float32", **settings}
    row = measured.row(SUITE, name, int(threads), **settings)
    return None if row is None or "share" not in row.facts else row


def promised_and_shown(row: Row | None) -> str:
    """What the multiply-adds promise, what the clock shows, and the share; or why it failed."""
    if row is None:
        return ""
    if "share" not in row.facts:
        return str(row.error)
    promised, shown, share = (float(row.facts[k]) for k in ("theoretical", "realised", "share"))
    return f"{promised:.2f} / {shown:.2f} = {100 * share:.0f} %"


def _quartiles(row: Row | None) -> str:
    """The share at the upper and at the lower quartile of the time, in %."""
    if row is None:
        return ""
    assert row.time is not None
    low, high = (
        100 * float(row.facts["share"]) * row.time.median / time
        for time in (row.time.high, row.time.low)
    )
    return f"{low:.0f} to {high:.0f}"


def _fastest_dense(measured: Measured, threads: str, backbone: str, **settings: Setting) -> str:
    """Its time for an image, and in which batches."""
    settings = {"backbone": backbone, "size": 224, "dtype": "float32", **settings}
    times = {
        row.name: row.time.median
        for _, row in measured.rows(SUITE, int(threads), **settings)
        if row.name.startswith("dense") and row.time and len(row.settings) == len(settings)
    }
    fastest = min(times, key=lambda name: times[name])
    time = f"{1e3 * times[fastest]:.1f}"
    if settings["batch"] == 1:
        return time
    return f"{time}, {fastest.removeprefix('dense ') if fastest != 'dense' else 'whole batch'}"


def _median(row: Row) -> float:
    assert row.time is not None
    return row.time.median


def _milliseconds(row: Row) -> str:
    assert row.time is not None
    median, low, high = (1e3 * seconds for seconds in row.time)
    return f"{median:.2f} ({low:.2f} to {high:.2f})"


def _mebibytes(row: Row, what: str) -> str:
    return f"{int(row.facts[f'{what} bytes']) / 2**20:,.0f}"


def _cores(threads: str) -> str:
    return {"1": "one thread", "2": "two threads"}.get(threads, f"{threads} threads")


TABLES = {
    "exits": exits,
    "compiled": compiled,
    "larger": larger,
    "budgets": budgets,
    "stream": stream,
    "breakdown": breakdown,
    "memory": memory,
    "localisation": localisation,
}
