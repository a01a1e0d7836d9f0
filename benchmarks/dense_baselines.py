"""Is the dense network that the classifier is compared with as fast as it can be made?

    python benchmarks/dense_baselines.py --backbone resnet50 --threads 1 --dtype float32

Speed-ups over a slow baseline mean nothing. This runs the dense network on images of 224x224 in the
usual ways to run one, and the tuned one (`models.tuning.tune`, what the suite end_to_end compares
with) in batches of several sizes; all take turns. Whatever is faster than "tuned" here has to go
into `tune` or into the suite.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from anchornet_ext.benchmark.harness import Case, Options, keep_freed_memory, measure_case
from anchornet_ext.benchmark.networks import with_statistics
from anchornet_ext.benchmark.stream import in_batches
from anchornet_ext.models import build_backbone
from anchornet_ext.models.norm_folding import fold_batch_norms
from anchornet_ext.models.tuning import tune

Call = Callable[[Tensor], object]


def ways(
    network: nn.Module, dtype: torch.dtype, example: Tensor, compiled: bool
) -> dict[str, Call]:
    """Name -> the network, run in that way on images in channels_last.

    Args:
        network: as trained, in evaluation mode.
        example: images of the batch that the frozen TorchScript is made for.
        compiled: also through `torch.compile`, which takes minutes.
    """
    folded = copy.deepcopy(network)
    fold_batch_norms(folded)
    last = copy.deepcopy(folded).to(dtype).to(memory_format=torch.channels_last)
    as_trained, folded = copy.deepcopy(network).to(dtype), folded.to(dtype)
    found: dict[str, Call] = {
        "as trained": lambda images: as_trained(images.contiguous()),
        "folded": lambda images: folded(images.contiguous()),
        "folded, channels_last": last,
        "tuned": tune(network, dtype=dtype),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        script = torch.jit.trace(last, example)
        found["TorchScript, frozen"] = torch.jit.freeze(script)
    if compiled:
        found["tuned, compiled"] = tune(network, compile=True, dtype=dtype)
    return found


def in_parts(call: Call, images: Tensor, size: int) -> list[object]:
    return [call(part) for part in in_batches(images, size)]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backbone", default="resnet50", metavar="NAME")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--size", type=int, default=224, metavar="PIXELS")
    parser.add_argument("--batch", type=int, default=32, metavar="B", help="images in all")
    parser.add_argument("--part", type=int, default=8, metavar="B", help="batch of all ways")
    parser.add_argument("--parts", type=int, nargs="*", default=(1, 2, 4, 16, 32), metavar="B")
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--repeats", type=int, default=3, metavar="R")
    parser.add_argument("--compiled", action="store_true", help="torch.compile as well")
    asked = parser.parse_args(arguments)
    keep_freed_memory()
    torch.set_num_threads(asked.threads)
    dtype = getattr(torch, asked.dtype)

    def build() -> dict[str, Callable[[], object]]:
        network = with_statistics(build_backbone(asked.backbone, 1000), asked.size)
        images = torch.randn(asked.batch, 3, asked.size, asked.size).to(dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        found = ways(network, dtype, images[: asked.part], asked.compiled)
        calls: dict[str, Callable[[], object]] = {
            f"{name}, in {asked.part}s": partial(in_parts, call, images, asked.part)
            for name, call in found.items()
        }
        for name in ("tuned", "tuned, compiled"):
            if name in found:
                for size in asked.parts:
                    calls[f"{name}, in {size}s"] = partial(in_parts, found[name], images, size)
        return calls

    case = Case(
        suite="dense_baselines",
        settings={"backbone": asked.backbone, "size": asked.size, "dtype": asked.dtype},
        build=build,
        batch=asked.batch,
        over=(f"tuned, in {asked.part}s",),
        sample=None,
        mode=torch.no_grad,
    )
    rows = measure_case(case, Options(repeats=asked.repeats))
    print(f"{rows[0].subject}, {asked.threads} threads")
    for row in rows:
        if row.time is None:
            print(f"  {row.name:30} {row.error}")
            continue
        low, high = 1e3 * row.time.low, 1e3 * row.time.high
        print(f"  {row.name:30} {1e3 * row.time.median:8.2f} ms an image, {low:.2f} to {high:.2f}")


if __name__ == "__main__":
    main()
