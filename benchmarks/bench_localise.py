"""Localisation as a whole and in its parts: how much of the plain PyTorch version's time is left.

    python benchmarks/bench_localise.py [--threads N] [--batches 1 32 256] [--json FILE]

"plain" is AnchorNet as it was trained (NCHW, batch norm, the 512-channel map), the activation map
by einsum, the suppression as a loop in Python and the patches as slices. "folded" is the folded
network through its submodules in channels_last, with this package's operators after it; "fused" is
what `localise` does: the same with `ops.mbconv_chain` (on a CUDA device the two are one).

All contenders take turns in one run, and the ratios are those of medians. "floor" is what the
arithmetic would take at torch's own rate for large matrix products, or the bytes at that of a copy,
whichever is longer; a part below its floor beats torch at what torch is best at.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
import torch
from torch import Tensor, nn

from anchornet_ext import ops
from anchornet_ext.models import AnchorNet, FoldedAnchorNet, localise
from anchornet_ext.models.macs import count_macs

NUM_CLASSES, NUM_PATCHES, THRESHOLD = 1000, 4, 0.3
PATCH_SIZE, STRIDE = AnchorNet.patch_size, AnchorNet.stride
RATE_SIDE = 1024  # of the matrices whose product gives the rate of arithmetic
Contenders = dict[str, Callable[[], object]]


def plain_network(anchor: AnchorNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """The 512-channel map and the logits."""
    expanded = anchor.expansion(anchor.features(images))
    return expanded, anchor.classifier(expanded.mean(dim=(2, 3)))


def plain_map(anchor: AnchorNet, expanded: Tensor, classes: Tensor) -> Tensor:
    return torch.einsum("bc,bchw->bhw", anchor.classifier.weight[classes], expanded)


def overlaps_much(a: tuple[int, int], b: tuple[int, int]) -> bool:
    rows, columns = (max(0, PATCH_SIZE - abs(i - j) * STRIDE) for i, j in zip(a, b, strict=True))
    both = rows * columns
    return both / (2 * PATCH_SIZE**2 - both) >= THRESHOLD


def plain_select(activation_map: Tensor) -> list[list[tuple[int, int]]]:
    """The cells of each image, greedily: the paper's rule, without its rare filling up."""
    width = activation_map.shape[2]
    orders = activation_map.flatten(1).argsort(dim=1, descending=True)
    chosen = []
    for order in orders.tolist():
        taken: list[tuple[int, int]] = []
        for cell in order:
            place = divmod(cell, width)
            if not any(overlaps_much(place, other) for other in taken):
                taken.append(place)
                if len(taken) == NUM_PATCHES:
                    break
        chosen.append(taken)
    return chosen


def plain_gather(images: Tensor, chosen: list[list[tuple[int, int]]]) -> Tensor:
    return torch.stack(
        [
            image[:, STRIDE * r : STRIDE * r + PATCH_SIZE, STRIDE * c : STRIDE * c + PATCH_SIZE]
            for image, places in zip(images, chosen, strict=True)
            for r, c in places
        ]
    )


def plain_localise(anchor: AnchorNet, images: Tensor) -> Tensor:
    expanded, logits = plain_network(anchor, images)
    activation_map = plain_map(anchor, expanded, logits.argmax(dim=1))
    return plain_gather(images, plain_select(activation_map))


def our_localise(anchor: FoldedAnchorNet, images: Tensor) -> Tensor:
    found = localise(anchor, images, NUM_PATCHES, THRESHOLD)
    return ops.gather_patches(images, found.selection.top_left, PATCH_SIZE)


def build(device: str) -> tuple[AnchorNet, FoldedAnchorNet, FoldedAnchorNet]:
    """(plain, folded, fused) of the same weights, with statistics as after training."""
    plain = AnchorNet(NUM_CLASSES).to(device).eval()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.uniform_(-0.5, 0.5)
    folded, fused = plain.fold(), plain.fold()
    folded.fused = False
    return plain, folded, fused


class Rates:
    """Contenders that show what the machine can do, measured in the same run."""

    def __init__(self, device: str, num_bytes: int) -> None:
        a = torch.randn(RATE_SIDE, RATE_SIDE, device=device)
        self.contenders: Contenders = {
            "rate of arithmetic": lambda: a @ a,
            "rate of memory": timing.copier(num_bytes // 2, device),
        }
        self.num_bytes = num_bytes

    def floor(self, times: dict[str, timing.Timing], macs: float, num_bytes: float) -> float:
        """Seconds."""
        arithmetic = times["rate of arithmetic"].median * macs / RATE_SIDE**3
        memory = times["rate of memory"].median * num_bytes / self.num_bytes
        return max(arithmetic, memory)


def measure(batch: int, size: int, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of one batch size."""
    device = arguments.device
    plain, folded, fused = build(device)
    images = torch.randn(batch, 3, size, size, device=device)
    last = images.contiguous(memory_format=torch.channels_last)

    expanded, logits = plain_network(plain, images)
    classes = logits.argmax(dim=1)
    features = fused.features(images)
    weight = fused.class_weight
    activation_map = ops.class_activation_map(features, weight, classes)
    chosen = plain_select(activation_map)
    selection = ops.select_patches(activation_map, NUM_PATCHES, PATCH_SIZE, STRIDE, THRESHOLD)
    patches = ops.gather_patches(images, selection.top_left, PATCH_SIZE)

    # part -> (contender -> call, multiply-adds of an image, bytes of the batch that must move)
    network_macs = count_macs(fused, (3, size, size))
    image_bytes, feature_bytes = images.numel() * 4, features.numel() * 4
    parts: dict[str, tuple[Contenders, int, int]] = {
        "whole": (
            {
                "plain": lambda: plain_localise(plain, images),
                "folded": lambda: our_localise(folded, last),
                "fused": lambda: our_localise(fused, images),
                "fused, channels_last": lambda: our_localise(fused, last),
            },
            network_macs,
            image_bytes + 2 * patches.numel() * 4,
        ),
        "network": (
            {
                "plain": lambda: plain_network(plain, images),
                "folded": lambda: folded(last),
                "fused": lambda: fused(images),
                "fused, channels_last": lambda: fused(last),
            },
            network_macs,
            image_bytes,
        ),
        "map": (
            {
                "plain": lambda: plain_map(plain, expanded, classes),
                "fused": lambda: ops.class_activation_map(features, weight, classes),
            },
            0,
            feature_bytes,
        ),
        "selection": (
            {
                "plain": lambda: plain_select(activation_map),
                "fused": lambda: ops.select_patches(
                    activation_map, NUM_PATCHES, PATCH_SIZE, STRIDE, THRESHOLD
                ),
            },
            0,
            activation_map.numel() * 4,
        ),
        "gather": (
            {
                "plain": lambda: plain_gather(images, chosen),
                "fused": lambda: ops.gather_patches(images, selection.top_left, PATCH_SIZE),
                "fused, channels_last": lambda: ops.gather_patches(
                    last, selection.top_left, PATCH_SIZE
                ),
            },
            0,
            2 * patches.numel() * 4,
        ),
    }
    rates = Rates(device, image_bytes)
    contenders = dict(rates.contenders)
    for part, (calls, _, _) in parts.items():
        contenders |= {f"{part}: {name}": call for name, call in calls.items()}
    times = timing.interleaved_median(
        contenders, arguments.repeats, sample=arguments.sample, device=device
    )
    rows = []
    for part, (calls, macs, num_bytes) in parts.items():
        floor = rates.floor(times, macs * batch, num_bytes)
        for name in calls:
            rows.append(row_of(part, name, times, floor, batch, size))
    return rows


def row_of(
    part: str, name: str, times: dict[str, timing.Timing], floor: float, batch: int, size: int
) -> dict[str, Any]:
    time = times[f"{part}: {name}"]
    row = {
        "part": part,
        "contender": name,
        "batch": batch,
        "size": size,
        "microseconds_per_image": time.median / batch * 1e6,
        "quartiles": [time.low / batch * 1e6, time.high / batch * 1e6],
        "of_plain": time.median / times[f"{part}: plain"].median,
        "of_floor": time.median / floor,
    }
    print(
        f"B={batch:<5} {part:<10} {name:<21} {row['microseconds_per_image']:>9.1f} us per image  "
        f"{row['of_plain']:>6.3f} of plain  {row['of_floor']:>7.2f} of the floor",
        flush=True,
    )
    return row


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="torch threads; torch's choice unless given")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--sample", type=float, default=2e-2, help="seconds of a sample")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--sizes", type=int, nargs="+", default=[224], help="pixels")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads\n")
    rows = []
    with torch.inference_mode():
        for size in arguments.sizes:
            for batch in arguments.batches:
                rows += measure(batch, size, arguments)
    if arguments.json:
        about = {
            "torch": torch.__version__,
            "device": arguments.device,
            "threads": torch.get_num_threads(),
            "instruction_set": torch.backends.cpu.get_cpu_capability(),
        }
        arguments.json.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
