"""The tables of docs/sar.md: SAR on its cells, on whole masked maps, and its backbone."""

from __future__ import annotations

from collections.abc import Iterator

from measured import Measured

from anchornet_ext.benchmark.rows import Row
from anchornet_ext.evaluation.units import three_digits

#: At what activation and with whose masks the first table is; the second has all others.
HALF = (0.5, "own masks")
NETWORKS = (
    "resnet32",
    "resnet32x2",
    "resnet50",
    "resnet18",
    "resnet34",
    "resnext50_32x4d",
    "mobilenet_v2",
)


def sar(measured: Measured, at: str, threads: str) -> Iterator[str]:
    """Milliseconds of an image, and how many times as fast of what the multiply-adds promise.

    `at` is "half" or "others".
    """
    found: dict[tuple[int, int, float, str, int], dict[str, Row]] = {}
    for _, row in measured.rows("sar", int(threads)):
        settings = row.settings
        activation, masks = float(settings["activation"]), str(settings["masks"])
        network, batch = NETWORKS.index(str(settings["network"])), int(settings["batch"])
        if row.time is not None and ((activation, masks) == HALF) == (at == "half"):
            # Random masks first, then the network's own at all activations.
            order = (network, 0 if masks != HALF[1] else 1, activation, masks, batch)
            found.setdefault(order, {})[row.name] = row
    names = ["network", *([] if at == "half" else ["activation", "masks"]), "batch"]
    yield f"| {' | '.join(names)} | sparse | masked | backbone | over masked | over backbone |"
    yield f"|{'---|' * (len(names) + 5)}"
    for key in sorted(found):
        (network, _, activation, masks, batch), rows = key, found[key]
        words = [NETWORKS[network]]
        if at != "half":
            words += [f"{activation:g}", masks.removesuffix(" masks")]
        times = [_milliseconds(rows[name]) for name in ("sparse", "masked", "backbone")]
        sparse = rows["sparse"]
        gains = [
            f"{sparse.ratios[name]:.2f} of {sparse.facts['promised'][name]:.2f}"
            for name in ("masked", "backbone")
        ]
        yield f"| {' | '.join([*words, str(batch), *times, *gains])} |"


def _milliseconds(row: Row) -> str:
    assert row.time is not None
    return three_digits(1e3 * row.time.median)


TABLES = {"sar": sar}
