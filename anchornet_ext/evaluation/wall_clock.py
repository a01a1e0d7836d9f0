"""The wall-clock part of `anchornet evaluate`: which photos are timed, and against what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anchornet_ext.data.sources import FileSource, UnreadableImage
from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.policy.exit_policy import ExitPolicy
from anchornet_ext.policy.exit_table import ExitTable

from .latency import PlainRun, measure_runs
from .listing import Listing
from .plain_network import PlainNetwork
from .report_data import Latency
from .systems import ExitSystem, TwoStageSystem
from .timing import interleaved_median

#: Rounds of the measurement.
REPEATS = 5
#: The photos lie in memory as floats: at 224 pixels these are 150 MB.
MOST_IMAGES = 256
#: Seconds that a measurement should take; fewer photos are timed where the machine is slow.
_SECONDS = 90.0


def rebuild_plain(table: ExitTable, device: torch.device) -> PlainNetwork | str:
    """The network that a plain table was collected with, or why it cannot be had again."""
    about = table.metadata
    name = about.get("system", "the plain network")
    if table.num_exits > 1:
        return f"{name} was not timed: it is no plain network, but has {table.num_exits} exits."
    try:
        network = _trained(about["model"], device) if "model" in about else _given(table, device)
    except KeyError as error:
        return f"{name} was not timed: its table has no entry {error}."
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        return f"{name} was not timed: {error}."
    if network.checksum != about.get("checksum"):
        return f"{name} was not timed: its weights are not the ones that were evaluated any more."
    return network


def _trained(folder: str, device: torch.device) -> PlainNetwork:
    """Of `anchornet train --system plain`."""
    from anchornet_ext.systems.common.loading import load_system

    system = load_system(folder, device)
    if not isinstance(system, PlainNetwork):
        raise ValueError(f"{folder} is no plain network, but {type(system).__name__}")
    return system


def _given(table: ExitTable, device: torch.device) -> PlainNetwork:
    """Of `anchornet evaluate --backbone`."""
    about = table.metadata
    weights = about["weights"]
    return PlainNetwork.load(
        about["backbone"],
        table.class_names or [],
        Preprocessing.from_dict(about["preprocessing"]),
        weights=None if weights == "published" else Path(weights),
        pretrained=weights == "published",
        device=device,
    )


def exit_milliseconds(
    system: ExitSystem, listing: Listing, batch_size: int, device: torch.device
) -> NDArray[np.float64] | None:
    """(T,) of an image that leaves at exit t in a full batch, for `ExitTable.milliseconds`.

    Real early exit of one batch of the photos, each exit in turns with the others. A later exit
    cannot take less time; where the clock says so, both get their mean. None if none of the photos
    can be read.
    """
    chosen = np.linspace(0, len(listing) - 1, min(batch_size, len(listing))).round().astype(int)
    paths = listing.full_paths()
    crops = _read([paths[n] for n in chosen], [system.preprocessing])
    if not crops:
        return None
    photos = torch.stack([crops[k][0] for k in sorted(crops)])
    images = system.preprocessing.normalise(photos).to(device)

    def leaving_at(step: int) -> Callable[[], object]:
        return lambda: system.classify(images, exit_at=step)

    contenders = {str(step): leaving_at(step) for step in range(1, system.num_exits + 1)}
    timings = interleaved_median(contenders, REPEATS, warmup=1, device=device)
    measured = np.array([1e3 * timings[name].median / len(images) for name in contenders])
    return increasing(measured)


def increasing(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The closest increasing values: neighbours in the wrong order get their mean (and a hair)."""
    blocks: list[tuple[float, int]] = []  # mean, how many
    for value in values.tolist():
        blocks.append((value, 1))
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (first, many), (second, more) = blocks[-2:]
            total = many + more
            blocks[-2:] = [((first * many + second * more) / total, total)]
    result = np.repeat([mean for mean, _ in blocks], [many for _, many in blocks])
    for t in range(1, len(result)):
        result[t] = max(result[t], np.nextafter(result[t - 1], np.inf))
    return np.asarray(result)


def time_runs(
    system: ExitSystem,
    table: ExitTable,
    folder: Path,
    policies: Mapping[str, ExitPolicy],
    plain: PlainNetwork | None,
    batch_size: int,
    device: torch.device,
    num_images: int | None = None,
) -> Latency:
    """Real early exit on photos of the table, in turns with all exits and the plain network.

    Args:
        system: what is timed.
        table: of these photos, spread over which some are chosen.
        folder: that they lie in.
        policies: operating points by name.
        plain: the network to compare with.
        batch_size: photos classified together.
        device: of `system`.
        num_images: how many; None chooses by the time that it will take.

    Raises:
        ValueError: none of the chosen photos can be read any more.
    """
    if num_images is None:
        ways = 2 if isinstance(system, TwoStageSystem) else 1  # batch by batch and streamed
        num_images = _affordable(table, ways * len(policies), batch_size, device)
    num_images = min(num_images, table.num_images)
    chosen = np.linspace(0, table.num_images - 1, num_images).round().astype(np.int64)
    paths = [str(folder / table.image_path(int(n))) for n in chosen]
    crops = _read(paths, [system.preprocessing, *([] if plain is None else [plain.preprocessing])])
    if not crops:
        raise ValueError("none of the photos to be timed can be read any more")
    order = sorted(crops)
    images = system.preprocessing.normalise(torch.stack([crops[k][0] for k in order]))
    labels = None
    if table.label is not None:
        labels = torch.from_numpy(table.label[chosen[order]].astype(np.int64))
    run = None
    if plain is not None:
        whole = plain.preprocessing.normalise(torch.stack([crops[k][1] for k in order]))
        run = PlainRun(plain.name, plain.tuned, whole, plain.macs_per_exit()[0])
    return measure_runs(
        system.classifier if isinstance(system, TwoStageSystem) else system,
        images,
        policies,
        plain=run,
        labels=labels,
        batch_size=min(batch_size, len(images)),
        repeats=REPEATS,
    )


def _affordable(table: ExitTable, points: int, batch_size: int, device: torch.device) -> int:
    """Whole batches that can be timed in about `_SECONDS`."""
    if table.milliseconds is None or device.type == "cuda":
        return MOST_IMAGES
    # Every exit, the points at most like the last exit, a plain network perhaps twice as dear.
    each = table.milliseconds.sum() + (points + 2) * table.milliseconds[-1]
    fits = 1e3 * _SECONDS / (each * (REPEATS + 2))
    return int(min(MOST_IMAGES, max(1, fits // batch_size) * batch_size))


def _read(paths: Sequence[str], preparations: Sequence[Preprocessing]) -> dict[int, list[Tensor]]:
    """The crops (3, S, S) of each photo that can be read, by its place in `paths`."""
    source = FileSource(paths)
    crops: dict[int, list[Tensor]] = {}
    for place in range(len(paths)):
        try:
            photo = source.load(place)
        except UnreadableImage:
            continue
        crops[place] = [preparation.crop(photo) for preparation in preparations]
    return crops
