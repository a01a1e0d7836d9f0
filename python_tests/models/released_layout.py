"""RANet and MSDNet as their public code runs them, over a state dict in its layout.

Each weight is made, at random, where it is first asked for: what comes out is the logits and a
state dict with all names and shapes. Nothing here uses the package.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


class Weights:
    """A state dict that grows as it is read."""

    def __init__(self, seed: int = 0) -> None:
        self.state: dict[str, Tensor] = {}
        self._generator = torch.Generator().manual_seed(seed)

    def get(self, name: str, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        if name not in self.state:
            drawn = torch.rand(*shape, generator=self._generator, dtype=torch.float64)
            self.state[name] = drawn * (high - low) + low
        assert self.state[name].shape == shape
        return self.state[name]

    def conv(
        self, x: Tensor, conv: str, norm: str, out: int, kernel: int, stride: int, bias: bool
    ) -> Tensor:
        """Convolution, batch norm, ReLU."""
        bound = math.sqrt(6 / (kernel * kernel * x.shape[1]))
        shape = (out, x.shape[1], kernel, kernel)
        weight = self.get(f"{conv}.weight", *shape, low=-bound, high=bound)
        x = F.conv2d(
            x, weight, self.get(f"{conv}.bias", out) if bias else None, stride, kernel // 2
        )
        self.state.setdefault(f"{norm}.num_batches_tracked", torch.tensor(7))
        x = F.batch_norm(
            x,
            self.get(f"{norm}.running_mean", out),
            self.get(f"{norm}.running_var", out, low=0.5, high=2),
            self.get(f"{norm}.weight", out, low=0.5, high=1.5),
            self.get(f"{norm}.bias", out),
        )
        return F.relu(x)

    def basic(self, x: Tensor, name: str, out: int, kernel: int = 3, stride: int = 1) -> Tensor:
        return self.conv(x, f"{name}.net.0", f"{name}.net.1", out, kernel, stride, False)

    def bottleneck(self, x: Tensor, name: str, out: int, width: int, stride: int = 1) -> Tensor:
        inner = min(x.shape[1], width * out)
        x = self.conv(x, f"{name}.net.0", f"{name}.net.1", inner, 1, 1, False)
        return self.conv(x, f"{name}.net.3", f"{name}.net.4", out, 3, stride, False)

    def stem(self, images: Tensor, name: str, out: int, large: bool) -> Tensor:
        if not large:
            return self.basic(images, name, out)
        x = self.conv(images, f"{name}.0", f"{name}.1", out, 7, 2, True)
        return F.max_pool2d(x, 3, 2, 1)

    def classifier(self, x: Tensor, name: str, large: bool, num_classes: int) -> Tensor:
        hidden = x.shape[1] if large else 128
        x = self.basic(x, f"{name}.m.0", hidden, 3, 2)
        x = F.avg_pool2d(self.basic(x, f"{name}.m.1", hidden, 3, 2), 2)
        weight = self.get(f"{name}.linear.weight", num_classes, hidden)
        return F.linear(x.flatten(1), weight, self.get(f"{name}.linear.bias", num_classes))


def sized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)


def released_ranet(
    images: Tensor,
    weights: Weights,
    num_classes: int,
    *,
    scales: tuple[int, ...],
    factors: tuple[int, ...],
    layers: tuple[int, ...],
    channels: int,
    growth: int,
    large: bool,
) -> list[Tensor]:
    """Logits of each exit; sub-network h has 2 h blocks, block b has layers[b] layers."""
    count = len(scales)
    x = weights.stem(images, "FirstLayer.layers.0", channels * factors[-1], large)
    bases = [x]
    for i in range(1, count):
        h = count - 1 - i
        stride = 2 if scales[h] < scales[h + 1] else 1
        x = weights.basic(x, f"FirstLayer.layers.{i}", channels * factors[h], 3, stride)
        bases.insert(0, x)
    logits: list[Tensor] = []
    below: list[list[Tensor]] = []
    for h in range(count):
        x, here = bases[h], []
        blocks = 2 * (h + 1)
        halving = {2 * k for k in range(1, h + 1)}  # numbers of blocks, from 1
        halving = set(sorted(halving)[len(halving) - (scales[h] - 1) :])
        parts = {math.floor(k * blocks / scales[h]) for k in range(1, scales[h])}
        grown = growth * factors[h]
        for b in range(blocks):
            name = f"scale_flows.{h}.{b}"
            features = [x]
            for i in range(layers[b]):
                layer = f"{name}.layers.{i}"
                if b >= 2 * h:
                    new = weights.bottleneck(x, f"{layer}.conv_normal", grown, factors[h])
                    x = torch.cat([x, new], 1)
                else:
                    share = math.floor(grown * 0.25)
                    stride = 2 if b + 1 in halving and i == layers[b] - 1 else 1
                    conv = f"{layer}.conv_normal"
                    new = weights.bottleneck(x, conv, grown - share, factors[h], stride)
                    conv = f"{layer}.conv_up"
                    up = weights.bottleneck(below[b][i], conv, share, factors[h - 1])
                    x = torch.cat([sized(x, new), sized(up, new), new], 1)
                features.append(x)
            here.append(features)
            if b < 2 * h:
                last = f"{name}.conv_last"
                up = weights.basic(below[b][-1], last, math.floor(x.shape[1] * 0.25), 1)
                x = torch.cat([x, sized(up, x)], 1)
            if b + 1 in parts:
                x = weights.basic(x, f"{name}.trans", math.floor(x.shape[1] * 0.5), 1)
            if b >= 2 * h:
                exit_name = f"classifier.{len(logits)}"
                logits.append(weights.classifier(x, exit_name, large, num_classes))
        below = here
    return logits


def released_msdnet(
    images: Tensor,
    weights: Weights,
    num_classes: int,
    *,
    factors: tuple[int, ...],
    layers: tuple[int, ...],
    channels: int,
    growth: int,
    large: bool,
) -> list[Tensor]:
    """Logits of each exit; block b has layers[b] layers."""
    count = len(factors)
    stem = "blocks.0.0.layers"
    scales = [weights.stem(images, f"{stem}.0", channels * factors[0], large)]
    for s in range(1, count):
        scales.append(weights.basic(scales[-1], f"{stem}.{s}", channels * factors[s], 3, 2))
    every = math.ceil(sum(layers) / count)
    number = 0
    logits: list[Tensor] = []
    for b, length in enumerate(layers):
        place = 1 if b == 0 else 0
        for _ in range(length):
            kept = count - number // every  # scales after this layer
            number += 1
            dropped = len(scales) - kept
            made = []
            for j in range(kept):
                s = count - kept + j
                same = scales[j + dropped]
                layer = f"blocks.{b}.{place}.layers.{j}"
                if j + dropped == 0:
                    grown = growth * factors[s]
                    new = weights.bottleneck(same, f"{layer}.conv_normal", grown, factors[s])
                    made.append(torch.cat([same, new], 1))
                    continue
                half = growth * factors[s] // 2
                finer = scales[j + dropped - 1]
                down = weights.bottleneck(finer, f"{layer}.conv_down", half, factors[s - 1], 2)
                new = weights.bottleneck(same, f"{layer}.conv_normal", half, factors[s])
                made.append(torch.cat([same, down, new], 1))
            place += 1
            if dropped:
                for j, x in enumerate(made):
                    # The channels of a unit of the factors are halved, not those of the scale.
                    factor = factors[count - kept + j]
                    out = math.floor(x.shape[1] // factor * 0.5) * factor
                    made[j] = weights.basic(x, f"blocks.{b}.{place}.m.{j}", out, 1)
                place += 1
            scales = made
        logits.append(weights.classifier(scales[-1], f"classifier.{b}", large, num_classes))
    return logits
