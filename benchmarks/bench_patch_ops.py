"""Time the operators on patches and images against what one would write without them.

    python benchmarks/bench_patch_ops.py                     # every case, CPU
    python benchmarks/bench_patch_ops.py --device cuda
    python benchmarks/bench_patch_ops.py --only gather --threads 1 --json figures.json

All contenders of a case take turns in one run. Each row gives the operator's time and, as ratios of
medians, how many times longer the others take: the reference of this package, the usual code (a
Python loop of slices and torch.stack), advanced indexing into a sliding-window view, torch's own
function where there is one, and the floor, which is torch moving contiguous bytes: as many are read
and written, into a new tensor as well. 0.8 in the last column: the operator runs at 80 % of that
bandwidth. Freed memory is kept, so that nobody waits for new pages (timing.keep_freed_memory). An
image's rows of a patch do not end with cache lines: of uint8 NCHW images 1.7 times as many bytes as
are counted here must be fetched.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from timing import flush_caches, interleaved_median, keep_freed_memory, mover
from torch import Tensor

from anchornet_ext import ops, reference

PATCH = 95
NUM_PATCHES = 4
IMAGE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Contenders = dict[str, Callable[[], object]]


class Case(NamedTuple):
    name: str
    contenders: Contenders
    num_read: int  # bytes at least
    num_written: int


def places(num_images: int, device: str) -> tuple[Tensor, Tensor]:
    """image_index (M,) and top_left (M, 2) on AnchorNet's grid of stride 8."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(
        0, (IMAGE - PATCH) // 8 + 1, (num_images * NUM_PATCHES, 2), generator=generator
    )
    index = torch.arange(num_images).repeat_interleave(NUM_PATCHES)
    return index.to(device), (8 * cells).to(device)


def gather_cases(num_images: int, device: str) -> list[Case]:
    index, corners = places(num_images, device)
    rows, columns = corners.unbind(1)
    where = list(zip(index.tolist(), corners.tolist(), strict=True))
    mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)

    def case(source: torch.dtype, to: torch.dtype, layout: str, result: str) -> Case:
        images = torch.rand(num_images, 3, IMAGE, IMAGE, device=device).mul(255).to(source)
        formats = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
        images = images.contiguous(memory_format=formats[layout])
        out = formats[result]
        normalises = source != to

        def finish(crops: Tensor) -> Tensor:
            if normalises:
                crops = crops.to(to).div_(255).sub_(mean[:, None, None]).div_(std[:, None, None])
            return crops.contiguous(memory_format=out)

        def ours() -> Tensor:
            return ops.gather_patches(
                images,
                corners,
                PATCH,
                index,
                mean=mean if normalises else None,
                std=std if normalises else None,
                dtype=to,
                memory_format=out,
            )

        def specification() -> Tensor:
            crops = reference.gather_patches(
                images,
                index,
                corners,
                (PATCH, PATCH),
                mean if normalises else None,
                std if normalises else None,
                to,
            )
            return crops.contiguous(memory_format=out)

        def loop() -> Tensor:
            return finish(
                torch.stack([images[n, :, r : r + PATCH, c : c + PATCH] for n, (r, c) in where])
            )

        def indexing() -> Tensor:
            windows = images.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # (N, C, H', W', h, w)
            return finish(windows[index, :, rows, columns])

        numel = len(where) * 3 * PATCH * PATCH
        name = f"gather {source} {layout} -> {to} {result}".replace("torch.", "")
        return Case(
            name,
            {"ours": ours, "reference": specification, "loop": loop, "indexing": indexing},
            numel * source.itemsize,
            numel * to.itemsize,
        )

    byte, single = torch.uint8, torch.float32
    layouts = [(a, b) for a in ("NCHW", "NHWC") for b in ("NCHW", "NHWC")]
    kinds = [(single, single), (byte, byte), (byte, single)]
    return [case(a, b, x, y) for a, b in kinds for x, y in layouts]


def resize_cases(num_images: int, device: str) -> list[Case]:
    mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)

    def case(source: torch.dtype, layout: torch.memory_format) -> Case:
        images = torch.rand(num_images, 3, IMAGE, IMAGE, device=device).mul(255).to(source)
        images = images.contiguous(memory_format=layout)
        statistics = (mean, std) if source == torch.uint8 else (None, None)

        def ours() -> Tensor:
            return ops.resize_images(images, PATCH, mean=statistics[0], std=statistics[1])

        def usual() -> Tensor:
            floats = images
            if source == torch.uint8:
                floats = images.float().div_(255).sub_(mean[:, None, None]).div_(std[:, None, None])
            return torch.nn.functional.interpolate(
                floats, size=(PATCH, PATCH), mode="bicubic", align_corners=True
            )

        name = "NHWC" if layout == torch.channels_last else "NCHW"
        return Case(
            f"resize {source} -> float32 {name}".replace("torch.", ""),
            {
                "ours": ours,
                "reference": lambda: reference.resize_images(images, (PATCH, PATCH), *statistics),
                "torch": usual,
            },
            images.numel() * images.element_size(),
            num_images * 3 * PATCH * PATCH * 4,
        )

    layouts = torch.contiguous_format, torch.channels_last
    return [case(dtype, x) for dtype in (torch.float32, torch.uint8) for x in layouts]


def scatter_cases(num_images: int, device: str) -> list[Case]:
    index, corners = places(num_images, device)
    where = list(zip(index.tolist(), corners.tolist(), strict=True))
    size = (num_images, 3, IMAGE, IMAGE)
    cases = []
    for layout in (torch.contiguous_format, torch.channels_last):
        patches = torch.randn(len(where), 3, PATCH, PATCH, device=device)
        patches = patches.contiguous(memory_format=layout)
        base = torch.randn(size, device=device).contiguous(memory_format=layout)

        def add_loop(patches: Tensor = patches) -> Tensor:
            images = torch.zeros(size, device=device)
            for patch, (n, (r, c)) in zip(patches, where, strict=True):
                images[n, :, r : r + PATCH, c : c + PATCH] += patch
            return images

        def write_loop(patches: Tensor = patches, base: Tensor = base) -> Tensor:
            images = base.clone()
            for patch, (n, (r, c)) in zip(patches, where, strict=True):
                images[n, :, r : r + PATCH, c : c + PATCH] = patch
            return images

        suffix = "NHWC" if layout == torch.channels_last else "NCHW"
        cases.append(
            Case(
                f"scatter float32 {suffix}",
                {
                    "ours": lambda p=patches: ops.scatter_patches(p, corners, size, index),
                    "reference": lambda p=patches: reference.scatter_patches(
                        p, index, corners, size
                    ),
                    "loop": add_loop,
                },
                patches.numel() * 4,
                base.numel() * 4,
            )
        )
        cases.append(
            Case(
                f"scatter onto float32 {suffix}",
                {
                    "ours": lambda p=patches, b=base: ops.scatter_patches_onto(
                        b, p, corners, index
                    ),
                    "reference": lambda p=patches, b=base: reference.scatter_patches_onto(
                        b, p, index, corners
                    ),
                    "loop": write_loop,
                },
                (patches.numel() + base.numel()) * 4,
                base.numel() * 4,
            )
        )
    return cases


def exit_cases(num_images: int, device: str) -> list[Case]:
    count, classes = 8 * num_images, 1000
    logits = torch.randn(count, classes, device=device)
    running = torch.zeros(count, classes, device=device)
    active = torch.arange(count, device=device)

    def usual() -> tuple[Tensor, Tensor, Tensor]:
        running[active] += logits
        confidence, prediction = running[active].softmax(dim=1).max(dim=1)
        return confidence, prediction, active[confidence <= 0.5]

    return [
        Case(
            f"exit step {count} x {classes} float32",
            {
                "ours": lambda: ops.exit_step(running, logits, active, 0.5),
                "reference": lambda: reference.exit_step(running, logits, active, 0.5),
                "loop": usual,
            },
            2 * logits.numel() * 4,
            logits.numel() * 4,
        )
    ]


GROUPS = {
    "gather": gather_cases,
    "resize": resize_cases,
    "scatter": scatter_cases,
    "exit": exit_cases,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, help="torch's threads (default: torch's choice)")
    parser.add_argument("--images", type=int, help="images in a batch (default: 8 warm, 32 cold)")
    parser.add_argument("--repeats", type=int, default=15, help="rounds (default: 15)")
    parser.add_argument("--only", choices=GROUPS, help="one group of cases")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    args = parser.parse_args()
    keep_freed_memory()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads")
    head = ("case", 44), ("caches", 8)
    widths = {"reference": 11, "loop": 9, "indexing": 10, "torch": 9, "floor": 9}
    print(
        "".join(f"{name:{width}}" for name, width in head)
        + f"{'time ms':>9}"
        + "".join(f"{name:>{width}}" for name, width in widths.items())
    )
    figures = []
    for caches, default in (("warm", 8), ("cold", 32)):
        before = flush_caches(args.device) if caches == "cold" else None
        for group in [args.only] if args.only else list(GROUPS):
            for case in GROUPS[group](args.images or default, args.device):
                contenders = {
                    **case.contenders,
                    "floor": mover(case.num_read, case.num_written, args.device),
                }
                times = interleaved_median(
                    contenders, args.repeats, before=before, device=args.device
                )
                mine = times["ours"].median
                ratios = {name: t.median / mine for name, t in times.items() if name != "ours"}
                columns = "".join(
                    f"{ratios[name]:>{width}.2f}" if name in ratios else f"{'-':>{width}}"
                    for name, width in widths.items()
                )
                print(f"{case.name:44}{caches:8}{mine * 1e3:>9.3f}{columns}", flush=True)
                figures.append(
                    {"case": case.name, "caches": caches, "seconds": mine, "ratios": ratios}
                )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
