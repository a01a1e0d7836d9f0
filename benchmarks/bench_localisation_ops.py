"""Speed of class_activation_map and select_patches: against their references, against what one
would use instead, and against the speed of the memory.

    python benchmarks/bench_localisation_ops.py [--device cuda] [--threads N] [--json FILE]

All contenders of a row take turns in one run; the table holds ratios of medians, so that it means
the same on a busy machine. "floor" is the time in which torch.sum reads as many bytes as the
operator has to: 1.00 is as fast as memory allows, and above 1 faster than torch reads. "cold" rows
push the data out of the caches before each call.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import Any

import timing
import torch
import torchvision
from torch import Tensor

from anchornet_ext import ops, reference

PATCH_SIZE, STRIDE, NUM_PATCHES, THRESHOLD = 95, 8, 4, 0.3
GRID = 17  # AnchorNet's on a 224 x 224 image
NUM_CLASSES = 1000
Contenders = dict[str, Callable[[], object]]


def cam_einsum(features: Tensor, weight: Tensor, class_index: Tensor) -> Tensor:
    """The usual code: gather the rows, then one contraction."""
    return torch.einsum("bc,bchw->bhw", weight[class_index].to(features.dtype), features)


def cam_matmul(features: Tensor, weight: Tensor, class_index: Tensor) -> Tensor:
    batch, channels, height, width = features.shape
    rows = weight[class_index].to(features.dtype)[:, None]  # (B, 1, C)
    return (rows @ features.reshape(batch, channels, -1)).view(batch, height, width)


def cam_all_classes(features: Tensor, weight: Tensor, class_index: Tensor) -> Tensor:
    """The maps of all classes by a 1 x 1 convolution, then the wanted one (the released code)."""
    maps = torch.nn.functional.conv2d(features, weight.to(features.dtype)[:, :, None, None])
    return maps[torch.arange(len(maps), device=maps.device), class_index]


def cam_case(
    batch: int, channels: int, dtype: torch.dtype, channels_last: bool, device: str
) -> tuple[Contenders, int]:
    """The contenders and the bytes that any of them has to read."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    features = torch.randn(batch, channels, GRID, GRID, device=device).to(dtype)
    features = features.contiguous(memory_format=layout)
    weight = torch.randn(NUM_CLASSES, channels, device=device).to(dtype)
    class_index = torch.randint(NUM_CLASSES, (batch,), device=device)
    arguments = (features, weight, class_index)
    size = features.numel() * features.element_size()
    contenders: Contenders = {
        "op": lambda: ops.class_activation_map(*arguments),
        "floor": timing.reader(size, device),
        "reference": lambda: reference.class_activation_map(*arguments),
        "einsum": lambda: cam_einsum(*arguments),
        "matmul": lambda: cam_matmul(*arguments),
    }
    # 256 images would need 296 MB, and half-precision convolutions on a CPU take seconds.
    small = batch * NUM_CLASSES * GRID * GRID * 4 <= 64 << 20
    if small and (dtype == torch.float32 or device != "cpu"):
        contenders["all_classes"] = lambda: cam_all_classes(*arguments)
    return contenders, size


def select_nms(cam: Tensor, boxes: Tensor) -> list[Tensor]:
    """torchvision's batched NMS over all locations, then the first patches of every image.

    Its suppression is `>` instead of `>=` and it cannot fill up, so results may differ; the work is
    the same.
    """
    batch, cells = len(cam), boxes.shape[0]
    image = torch.arange(batch, device=cam.device).repeat_interleave(cells)
    kept = torchvision.ops.batched_nms(boxes.repeat(batch, 1), cam.reshape(-1), image, THRESHOLD)
    by_image = kept[torch.argsort(image[kept], stable=True)]
    counts = torch.bincount(image[by_image], minlength=batch).tolist()
    return [part[:NUM_PATCHES] - b * cells for b, part in enumerate(by_image.split(counts))]


def grid_boxes(device: str) -> Tensor:
    corner = torch.arange(GRID, device=device) * STRIDE
    y, x = torch.meshgrid(corner, corner, indexing="ij")
    return torch.stack((x, y, x + PATCH_SIZE, y + PATCH_SIZE), dim=-1).reshape(-1, 4).float()


def select_case(batch: int, device: str, with_reference: bool) -> tuple[Contenders, int]:
    cam = torch.randn(batch, GRID, GRID, device=device)
    boxes = grid_boxes(device)
    contenders: Contenders = {
        "op": lambda: ops.select_patches(cam, NUM_PATCHES, PATCH_SIZE, STRIDE, THRESHOLD),
        "floor": timing.reader(cam.numel() * 4, device),
        "batched_nms": lambda: select_nms(cam, boxes),
    }
    if with_reference:
        contenders["reference"] = lambda: reference.select_patches(
            cam, NUM_PATCHES, PATCH_SIZE, STRIDE, THRESHOLD
        )
    return contenders, cam.numel() * 4


def measure(
    name: str, case: tuple[Contenders, int], cold: bool, arguments: argparse.Namespace
) -> dict[str, Any]:
    contenders, size = case
    device = arguments.device
    times = timing.interleaved_median(
        contenders,
        arguments.repeats,
        sample=arguments.sample,
        before=timing.flush_caches(device) if cold else None,
        device=device,
    )
    op = times["op"]
    row = {
        "case": name + (", cold" if cold else ""),
        "microseconds": op.median * 1e6,
        "quartiles": [op.low * 1e6, op.high * 1e6],
        "gigabytes_per_second": size / op.median / 1e9,
        "times_faster_than": {
            other: t.median / op.median for other, t in times.items() if other != "op"
        },
    }
    ratios = "  ".join(f"{other} {ratio:.2f}x" for other, ratio in row["times_faster_than"].items())
    print(
        f"{row['case']:<46} {row['microseconds']:>10.1f} us "
        f"{row['gigabytes_per_second']:>8.1f} GB/s   {ratios}",
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
    parser.add_argument("--sample", type=float, default=2e-3, help="seconds of a warm sample")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--json", help="also write the rows to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads")
    print("faster than: time of the other / time of the operator\n")

    rows = []
    with torch.inference_mode():
        for batch in arguments.batches:
            for channels in (96, 512):
                for dtype in (torch.float32, torch.bfloat16, torch.float16):
                    for channels_last in (False, True):
                        layout = "channels_last" if channels_last else "contiguous"
                        name = f"cam B={batch} C={channels} {str(dtype)[6:]} {layout}"
                        case = cam_case(batch, channels, dtype, channels_last, arguments.device)
                        rows.append(measure(name, case, False, arguments))
                        if batch == max(arguments.batches):
                            rows.append(measure(name, case, True, arguments))
        for batch in arguments.batches:
            case = select_case(batch, arguments.device, with_reference=True)
            rows.append(measure(f"select B={batch}", case, False, arguments))
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"torch": torch.__version__, "device": arguments.device, "rows": rows}, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
