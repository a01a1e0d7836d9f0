"""Accuracy with 1, 2, ... inputs for patches chosen by AnchorNet, by chance and from the middle.

    python benchmarks/patch_policies.py --model MODEL --data VAL_FOLDER [--focus-random FOCUS]

The comparison of the paper's Table 3 (section 4.3). The paper does not say whether its "patch
number 1" is the glance or the first patch; both readings are measured:

- patches only: the logits of the first 1..k patches, summed, from the focus network alone;
- glance + patches: the pipeline of section 3.4, whose input 1 is the glance for every policy.

The focus network was trained on AnchorNet's patches, so that other patches are new to it. With
--focus-random, random patches are also given to a focus network that was fine-tuned on random ones,
which tells the value of the places apart from that of the training.

Random patches are drawn anew for each seed; the table gives mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from anchornet_ext._files import write_whole
from anchornet_ext.data.image_folder import Samples, scan
from anchornet_ext.data.sources import decode
from anchornet_ext.inference import TwoStageClassifier
from anchornet_ext.inference.policies import CENTRE_PATTERN, PatchPolicy, patch_locations
from anchornet_ext.models import build_backbone
from anchornet_ext.ops import gather_patches

READINGS = ("patches only", "glance + patches")


@dataclass(frozen=True)
class Contender:
    """A way to choose patches, and the network that sees them."""

    name: str
    policy: PatchPolicy
    focus: nn.Module
    seed: int = 0


def main() -> int:
    args = parse_arguments()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    model = TwoStageClassifier.from_pretrained(args.model, device=args.device)
    samples = scan(args.data, model.class_names, allow_empty_classes=True)
    contenders = [
        Contender("AnchorNet", "anchornet", model.focus),
        Contender("centre", "centre", model.focus),
        *(Contender("random", "random", model.focus, seed) for seed in range(args.seeds)),
    ]
    if args.focus_random is not None:
        focus = load_focus(args.focus_random, model).to(args.device)
        name = "random, trained on random"
        contenders += [Contender(name, "random", focus, seed) for seed in range(args.seeds)]
    images = batches(samples, model, args.batch, args.limit)
    count = len(samples) if args.limit is None else min(args.limit, len(samples))
    correct = measure(model, contenders, images, args.patches, -(-count // args.batch))
    result = summarise(contenders, correct, count)
    result |= {"model": str(args.model), "data": str(args.data), "images": count}
    print_tables(result)
    if args.json is not None:
        write_whole(args.json, (json.dumps(result, indent=2) + "\n").encode())
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a saved or bundled model")
    parser.add_argument("--data", required=True, type=Path, help="FOLDER/CLASS/photos")
    parser.add_argument(
        "--focus-random",
        type=Path,
        help="a focus network fine-tuned on random patches: its safetensors, or a model's folder",
    )
    parser.add_argument("--seeds", type=int, default=5, help="draws of the random patches")
    parser.add_argument("--patches", type=int, default=5, help="most patches of an image")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--limit", type=int, help="use every n-th image so that this many are used")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    args = parser.parse_args()
    if not 1 <= args.patches <= len(CENTRE_PATTERN):
        parser.error(f"--patches must be 1 to {len(CENTRE_PATTERN)}, got {args.patches}")
    if args.seeds < 1 or args.batch < 1 or (args.limit is not None and args.limit < 1):
        parser.error("--seeds, --batch and --limit must be at least 1")
    return args


def load_focus(path: Path, model: TwoStageClassifier) -> nn.Module:
    """The focus network of a saved model, or of the same architecture from a safetensors file."""
    if path.is_dir():
        focus = TwoStageClassifier.from_pretrained(path).focus
    else:
        if model.focus_name is None:
            raise ValueError("the model does not say which architecture its focus network has")
        focus = build_backbone(model.focus_name, model.num_classes)
        weights = safetensors.torch.load_file(path)
        focus.load_state_dict(
            {key: value.float() if value.is_floating_point() else value
             for key, value in weights.items()}
        )  # fmt: skip
    return focus.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def batches(
    samples: Samples, model: TwoStageClassifier, size: int, limit: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalised images (B, 3, H, W) and labels (B,) on the model's device."""
    device = next(model.parameters()).device
    count = len(samples)
    # Spread over the classes, which lie one behind the other.
    chosen = range(count) if limit is None or limit >= count else spread(count, limit)
    for begin in range(0, len(chosen), size):
        part = chosen[begin : begin + size]
        crops = torch.stack([model.preprocessing.crop(decode(samples.paths[i])) for i in part])
        labels = torch.tensor([samples.labels[i] for i in part], device=device)
        yield model.preprocessing.normalise(crops.to(device)), labels


def spread(count: int, limit: int) -> list[int]:
    """`limit` of the numbers below `count`, evenly spaced."""
    return [i * count // limit for i in range(limit)]


@torch.inference_mode()
def measure(
    model: TwoStageClassifier,
    contenders: list[Contender],
    images: Iterator[tuple[Tensor, Tensor]],
    num_patches: int,
    num_batches: int,
) -> dict[str, Tensor]:
    """How many images are classified rightly: reading -> (contender, number of inputs)."""
    correct = {
        reading: torch.zeros(len(contenders), num_patches, dtype=torch.int64)
        for reading in READINGS
    }
    generators = [torch.Generator().manual_seed(contender.seed) for contender in contenders]
    progress = track(
        images, total=num_batches, description="batches", console=Console(file=sys.stderr)
    )
    for batch, labels in progress:
        glance = model.glance(model.glance_input(batch))[None]  # (1, B, n)
        for row, contender in enumerate(contenders):
            places = patch_locations(
                model, batch, contender.policy, generators[row], num_patches
            )  # (B, k, 2)
            patches = gather_patches(
                batch, places, model.patch_size, memory_format=torch.channels_last
            )
            logits = contender.focus(patches).unflatten(0, (len(batch), num_patches))
            logits = logits.transpose(0, 1)  # (k, B, n)
            sequences = (logits, torch.cat((glance, logits[:-1])))
            for reading, sequence in zip(READINGS, sequences, strict=True):
                predicted = sequence.cumsum(dim=0).argmax(dim=2)  # (k, B)
                correct[reading][row] += (predicted == labels).sum(dim=1).cpu()
    return correct


def summarise(
    contenders: list[Contender], correct: dict[str, Tensor], count: int
) -> dict[str, Any]:
    """Accuracy in percent by reading and contender: mean and standard deviation over the seeds."""
    result: dict[str, Any] = {}
    for reading, counts in correct.items():
        accuracy = (100 * counts.double() / count).tolist()  # (contender, number of inputs)
        result[reading] = {}
        for name in dict.fromkeys(contender.name for contender in contenders):
            runs = [row for one, row in zip(contenders, accuracy, strict=True) if one.name == name]
            result[reading][name] = {
                "runs": runs,
                "mean": [statistics.mean(column) for column in zip(*runs, strict=True)],
                "stdev": [
                    statistics.stdev(column) if len(runs) > 1 else 0.0
                    for column in zip(*runs, strict=True)
                ],
            }
    return result


def print_tables(result: dict[str, Any]) -> None:
    console = Console()
    for reading in READINGS:
        rows = result[reading]
        table = Table(title=f"accuracy in %, {reading}, {result['images']} images")
        table.add_column("inputs", no_wrap=True)
        for number in range(1, len(next(iter(rows.values()))["mean"]) + 1):
            table.add_column(str(number), justify="right", no_wrap=True)
        for name, row in rows.items():
            cells = [
                f"{mean:.2f}" if len(row["runs"]) == 1 else f"{mean:.2f}\n± {deviation:.2f}"
                for mean, deviation in zip(row["mean"], row["stdev"], strict=True)
            ]
            table.add_row(name, *cells)
        console.print(table)


if __name__ == "__main__":
    sys.exit(main())
