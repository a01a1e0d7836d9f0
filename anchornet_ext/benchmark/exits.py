"""Suite `exits`: what an image costs that leaves MSDNet or RANet at each exit, by the clock.

"exit k" is real early exit with every image leaving there; "simulated" computes the logits of all
exits, from which the answers would be read afterwards. The networks are tuned, with random weights
for as many classes as they were published for.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from anchornet_ext.inference.lazy_exits import classify
from anchornet_ext.models.exits import SCHEDULES, ExitNetwork
from anchornet_ext.models.msdnet import MSDNET_PRESETS, MSDNet
from anchornet_ext.models.ranet import RANET_PRESETS, RANet

from .harness import Case, Contenders, Options, Row, Setting, measure_case

NAME = "exits"
SUMMARY = "MSDNet and RANet, leaving at each exit, against computing all of them"

NETWORKS: dict[str, Callable[[int], ExitNetwork]] = {
    **{f"msdnet-{name}": partial(MSDNet.preset, name) for name in MSDNET_PRESETS},
    **{f"ranet-{name}": partial(RANet.preset, name) for name in RANET_PRESETS},
}
USUAL = (
    "msdnet-cifar-anytime",
    "msdnet-cifar-batch",
    "msdnet-imagenet-base4",
    "ranet-cifar",
    "ranet-imagenet",
)
QUICK = ("msdnet-cifar-batch",)
SIMULATED = "simulated"


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Declares this suite's own options."""
    group.add_argument(
        "--networks",
        nargs="+",
        choices=NETWORKS,
        metavar="NAME",
        help=f"of {', '.join(NETWORKS)} (default: {' '.join(USUAL)})",
    )
    group.add_argument(
        "--schedules",
        nargs="+",
        choices=SCHEDULES,
        metavar="NAME",
        help=f"what runs before an exit: {', '.join(SCHEDULES)} (default: blocks)",
    )


def measure(options: Options) -> Iterator[Row]:
    """The rows of all networks, schedules and batches, in float32."""
    if options.dtypes is not None and torch.float32 not in options.dtypes:
        return
    arguments = options.arguments
    usual = QUICK if options.quick else USUAL
    for name in getattr(arguments, "networks", None) or usual:
        small = "-cifar" in name
        torch.manual_seed(0)
        network = NETWORKS[name](10 if small else 1000).tuned().to(options.device)
        for schedule in getattr(arguments, "schedules", None) or SCHEDULES[:1]:
            network.schedule = schedule
            for size in options.sizes or (32 if small else 224,):
                for batch in options.batches or ((2,) if options.quick else (1, 32)):
                    settings: dict[str, Setting] = {
                        "network": name,
                        "schedule": schedule,
                        "batch": batch,
                        "size": size,
                    }
                    yield from measure_case(_case(network, settings, options), options)


def describe(row: Row) -> str:
    """How much of what the multiply-adds promise the clock shows."""
    macs, full = row.facts["macs"].get(row.name), row.facts["full macs"]
    last = next((ratio for name, ratio in row.ratios.items() if name.startswith("exit ")), None)
    if macs is None:
        return ""
    words = f"{macs / 1e6:,.1f} M multiply-adds"
    if last is None or macs == full:
        return words
    return f"{words}, {full / macs:.2f} times fewer: {last * macs / full:.2f} of that realised"


def _case(network: ExitNetwork, settings: dict[str, Setting], options: Options) -> Case:
    batch, side = int(settings["batch"]), int(settings["size"])
    macs = network.macs_per_exit((side, side))
    last = f"exit {network.num_exits}"
    return Case(
        suite=NAME,
        settings=settings,
        build=lambda: _contenders(network, batch, side, options.device),
        batch=batch,
        over=(last, SIMULATED),
        facts={
            "macs": {f"exit {k}": value for k, value in enumerate(macs, start=1)},
            "full macs": macs[-1],
        },
        rounds=7,
        mode=torch.no_grad,
    )


def _contenders(network: ExitNetwork, batch: int, side: int, device: torch.device) -> Contenders:
    images = torch.randn(batch, 3, side, side, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    calls: dict[str, Callable[[], object]] = {
        f"exit {k}": partial(classify, network, images, exit_at=k)
        for k in range(1, network.num_exits + 1)
    }
    calls[SIMULATED] = partial(_all_exits, network, images)
    return calls


def _all_exits(network: ExitNetwork, images: Tensor) -> Tensor:
    logits: Tensor = network(images)
    return logits.softmax(dim=2)
