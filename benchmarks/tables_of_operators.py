"""Each operator over its reference, the usual code and the floor, and the table of the README."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from measured import Measured

from anchornet_ext.benchmark.rows import Row, Setting


class Line(NamedTuple):
    """One row of the table.

    Attributes:
        label: what it is called.
        usual: name of the usual code's row, and what the table calls it.
        settings: of the row, enough to tell it from all others.
        brief: what the README calls it; None: it is not there.
    """

    label: str
    usual: tuple[str, str]
    settings: dict[str, Setting]
    brief: str | None = None


def _maps(label: str, channels: int, brief: str | None = None, **settings: Setting) -> Line:
    found: dict[str, Setting] = {"operator": "class_activation_map", "batch": 256}
    found |= {"channels": channels, "dtype": "float32", "layout": "NCHW", "caches": "cold"}
    return Line(label, ("matmul", "matmul"), found | settings, brief)


def _gather(
    label: str, usual: tuple[str, str], brief: str | None = None, **settings: Setting
) -> Line:
    found: dict[str, Setting] = {"operator": "gather_patches", "batch": 32, "caches": "cold"}
    return Line(label, usual, found | {k.replace("_", " "): v for k, v in settings.items()}, brief)


def _resize(label: str, called: str, brief: str, **settings: Setting) -> Line:
    found: dict[str, Setting] = {"operator": "resize_images", "batch": 32, "caches": "cold"}
    return Line(label, ("interpolate", called), found | settings, brief)


def _scatter(label: str, name: str) -> Line:
    found: dict[str, Setting] = {"operator": name, "batch": 32, "dtype": "float32"}
    return Line(label, ("loop", "loop of slices"), found | {"layout": "NCHW", "caches": "cold"})


LOOP = ("loop", "loop of slices")
MODULES = ("modules", "its folded modules")
LINES = (
    _maps(
        "`class_activation_map`, batch 256, 96 channels, NCHW",
        96,
        "`class_activation_map`, batch 256",
    ),
    _maps("the same, channels_last", 96, layout="NHWC"),
    _maps("`class_activation_map`, batch 256, 512 channels, NCHW", 512),
    _maps("the same in float16", 512, dtype="float16"),
    Line(
        "`select_patches`, batch 256, warm",
        ("batched_nms", "torchvision `batched_nms`"),
        {"operator": "select_patches", "batch": 256, "caches": "warm"},
        "`select_patches`, batch 256",
    ),
    _gather(
        "`gather_patches`, NCHW",
        LOOP,
        "`gather_patches`",
        dtype="float32",
        layout="NCHW",
        to_layout="NCHW",
    ),
    _gather(
        "the same, channels_last",
        ("indexing", "indexing"),
        dtype="float32",
        layout="NHWC",
        to_layout="NHWC",
    ),
    _gather(
        "`gather_patches`, uint8 to normalised float32, NCHW",
        LOOP,
        "the same, from bytes, normalised",
        dtype="uint8",
        layout="NCHW",
        to_dtype="to float32",
        to_layout="NCHW",
    ),
    _gather(
        "the same, channels_last",
        LOOP,
        dtype="uint8",
        layout="NHWC",
        to_dtype="to float32",
        to_layout="NHWC",
    ),
    _resize(
        "`resize_images`, NCHW, 224 to 95",
        "`functional.interpolate`",
        "`resize_images`, 224 to 95",
        dtype="float32",
        layout="NCHW",
    ),
    _resize(
        "`resize_images`, uint8 to normalised float32, channels_last",
        "normalise, then `interpolate`",
        "the same, from bytes, normalised",
        dtype="uint8",
        layout="NHWC",
    ),
    _scatter("`scatter_patches`, NCHW", "scatter_patches"),
    _scatter("`scatter_patches_onto`, NCHW", "scatter_patches_onto"),
    Line(
        "`exit_step`, 1000 x 1000",
        ("usual code", "softmax, maximum, comparison"),
        {"operator": "exit_step", "batch": 1000, "dtype": "float32", "caches": "cold"},
        "`exit_step`, 1000 images",
    ),
    Line(
        "`mbconv_chain`: AnchorNet, batch 32",
        MODULES,
        {"operator": "mbconv_chain", "batch": 32, "layout": "NHWC", "caches": "cold"},
        "`mbconv_chain`: AnchorNet",
    ),
    Line(
        "`inverted_residuals`: MobileNetV3-Large at 95 pixels, batch 32",
        MODULES,
        {"operator": "inverted_residuals", "batch": 32, "size": 95, "caches": "cold"},
        "`inverted_residuals`: MobileNetV3-Large at 95 pixels",
    ),
    Line(
        "`convolve_maps`: 3x3, 512 channels, 3x3 pixels, batch 8, warm",
        MODULES,
        {"operator": "convolve_maps", "kernel": 3, "batch": 8, "size": 95},
    ),
    Line(
        "`run_map_program`: ResNet-50's last stage at 95 pixels, batch 8, warm",
        MODULES,
        {"operator": "run_map_program", "batch": 8, "size": 95},
        "`run_map_program`: ResNet-50's last stage at 95 pixels",
    ),
)


def operators(measured: Measured, threads: str) -> Iterator[str]:
    """How many times faster than the others each operator is, on a number of threads."""
    yield "| operator | over the reference | over the usual code | over the floor |"
    yield "|---|---|---|---|"
    for line in LINES:
        ratios = _row(measured, line, int(threads)).ratios
        name, called = line.usual
        usual = f"{_times(ratios[name])} ({called})"
        yield f"| {line.label} | {_times(ratios['reference'])} | {usual} | {ratios['floor']:.2f} |"


def operators_in_brief(measured: Measured, threads: str) -> Iterator[str]:
    """How many times faster than the usual code they are."""
    yield "| operator | times faster than | |"
    yield "|---|---|---|"
    for line in LINES:
        if line.brief is not None:
            name, called = line.usual
            ratio = _row(measured, line, int(threads)).ratios[name]
            yield f"| {line.brief} | {_times(ratio)} | {called} |"


def _row(measured: Measured, line: Line, threads: int) -> Row:
    rows = [
        found.row
        for found in measured.rows("operators", threads, **line.settings)
        if found.row.name == "ours" and found.row.error is None
    ]
    if len(rows) != 1:
        raise LookupError(f"{line.label}: {len(rows)} rows have {line.settings}")
    return rows[0]


def _times(ratio: float) -> str:
    """Two digits, three from 100 on: 1.6, 66, 2500."""
    return f"{ratio:.1f}" if ratio < 20 else f"{float(f'{ratio:.2g}'):.0f}"


TABLES = {"operators": operators, "operators_in_brief": operators_in_brief}
