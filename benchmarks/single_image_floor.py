"""The least time that one image takes in a network, and how near the tuned network comes to it.

    python benchmarks/single_image_floor.py                                # ResNet-50, 95x95
    python benchmarks/single_image_floor.py --backbone densenet201 --size 224 --layers

A layer with weights takes at least as long as its weights take to be read, since a pass over one
image goes through more of them than the caches hold, and as long as its multiply-adds take at the
machine's rate; the larger of the two is its floor. What is between the layers is free in this
account. Both rates are measured in the same run, in turns with the network: reading by a sum over
as many bytes as the network weighs, multiplying by the faster of a matrix product and a large
convolution (what the processor could do is above both, by a tenth perhaps).

Multiply-adds with padding are counted, though not all are made: on maps of 3x3 pixels four of nine
of a 3x3 convolution are. So the last layers may come out above their floor.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anchornet_ext.benchmark.floors import CONVOLUTION, PRODUCT, PRODUCT_MACS, products, reader
from anchornet_ext.benchmark.freed_memory import keep_freed_memory
from anchornet_ext.benchmark.networks import with_statistics
from anchornet_ext.models import build_backbone
from anchornet_ext.models.tuning import tune

READING, NETWORK = "reading", "network"


@dataclass(frozen=True)
class Layer:
    """A convolution or a linear layer: its name, its weights' bytes, its multiply-adds."""

    name: str
    num_bytes: int
    macs: int

    def floor(self, bytes_per_second: float, macs_per_second: float) -> float:
        """In seconds."""
        return max(self.num_bytes / bytes_per_second, self.macs / macs_per_second)


def layers_of(network: nn.Module, size: int) -> list[Layer]:
    """The layers with weights that one image of size x size goes through, in their order."""
    found: list[Layer] = []
    names = {module: name for name, module in network.named_modules()}

    def note(module: nn.Module, _: object, out: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        pixels = out[0, 0].numel() if out.dim() == 4 else 1
        found.append(Layer(names[module], weight.numel() * 4, weight.numel() * pixels))

    kinds = (nn.Conv2d, nn.Linear)
    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, kinds)]
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, size, size))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def medians(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of a call, the median over rounds in which all take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn >= 2:  # the first ones record, pack and warm up
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(some) for name, some in times.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--backbone", default="resnet50", metavar="NAME")
    parser.add_argument("--size", type=int, default=95, metavar="PIXELS")
    parser.add_argument("--rounds", type=int, default=25, metavar="R")
    parser.add_argument("--layers", action="store_true", help="a line for each layer")
    asked = parser.parse_args(arguments)
    if asked.rounds < 1:
        parser.error(f"--rounds must be at least 1, got {asked.rounds}")
    keep_freed_memory()
    torch.set_num_threads(1)

    network = with_statistics(build_backbone(asked.backbone, 1000), asked.size)
    layers = layers_of(network, asked.size)
    tuned = tune(network, image_size=(asked.size, asked.size))
    images = torch.randn(1, 3, asked.size, asked.size).contiguous(memory_format=torch.channels_last)
    num_bytes = sum(layer.num_bytes for layer in layers)
    with torch.no_grad():
        calls = {READING: reader(num_bytes), NETWORK: lambda: tuned(images), **products()}
        took = medians(calls, asked.rounds)
    bandwidth = num_bytes / took[READING]
    rate = max(PRODUCT_MACS[name] / took[name] for name in (PRODUCT, CONVOLUTION))
    floor = sum(layer.floor(bandwidth, rate) for layer in layers)
    macs = sum(layer.macs for layer in layers)

    took_ms = {name: 1e3 * seconds for name, seconds in took.items()}
    print(f"{asked.backbone}, one image of {asked.size}x{asked.size}, float32, one thread")
    print(f"  {num_bytes / 1e6:.0f} MB at {bandwidth / 1e9:.1f} GB/s: {took_ms[READING]:.2f} ms")
    print(f"  {macs / 1e9:.2f} G multiply-adds at {rate / 1e9:.0f} G/s: {1e3 * macs / rate:.2f} ms")
    if asked.layers:
        for layer in layers:
            bound = "reads" if layer.num_bytes * rate > layer.macs * bandwidth else "multiplies"
            print(f"    {layer.name:40} {1e6 * layer.floor(bandwidth, rate):8.1f} us, {bound}")
    print(f"  floor, layer by layer: {1e3 * floor:.2f} ms")
    share = 100 * floor / took[NETWORK]
    print(f"  tuned: {took_ms[NETWORK]:.2f} ms, {share:.0f} % of the floor's speed")


if __name__ == "__main__":
    main()
