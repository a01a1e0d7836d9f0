"""What it brings to weigh the inputs' logits before they are summed, on held-out images.

    python benchmarks/step_weights.py --model MODEL --data VAL_FOLDER

Algorithm 1 adds up the logits of the glance and of the patches as they are. Here each input's are
multiplied by a weight first: `glance` has one for the glance (the patches' are 1), `all` has one
for each input. On one random half of the images the weights are fitted to make the labels probable
at all exits together, each exit with a temperature of its own, and then the exit policy that
`anchornet calibrate` makes for a budget; both are measured on the other half, both ways.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from anchornet_ext._files import write_whole
from anchornet_ext.data.photos import read_photo
from anchornet_ext.evaluation.exit_values import TEMPERATURES, exit_values
from anchornet_ext.evaluation.listing import list_images
from anchornet_ext.evaluation.systems import TwoStageSystem
from anchornet_ext.policy.calibration import Goal, Recipe, applied, fit_policy, halves
from anchornet_ext.policy.exit_table import ExitTable
from anchornet_ext.policy.outcome import outcome
from anchornet_ext.policy.quantities import macs

#: Of the glance, tried one after the other; the best on the half that is fitted to is taken.
GLANCE_WEIGHTS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
CONTENDERS = ("as they are", "glance", "all")


def main() -> int:
    args = parse_arguments()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    system = TwoStageSystem.load(args.model, torch.device("cpu"))
    logits, labels = input_logits(system, args.data)
    cost = np.array(system.macs_per_exit(), np.float64)
    budgets = [macs(word) for word in args.budgets.split(",")]
    result = study(logits, labels, cost, budgets, args.seeds)
    result |= {"model": str(args.model), "images": len(labels), "seeds": args.seeds}
    print_tables(result)
    if args.json is not None:
        write_whole(args.json, (json.dumps(result, indent=1) + "\n").encode())
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="a saved or bundled model")
    parser.add_argument("--data", required=True, type=Path, help="FOLDER/CLASS/photos")
    parser.add_argument("--budgets", default="90M,120M,150M,200M", help="mean multiply-adds")
    parser.add_argument("--seeds", type=int, default=20, help="splits into halves")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    return parser.parse_args()


def input_logits(system: TwoStageSystem, data: Path) -> tuple[Tensor, Tensor]:
    """(T, N, n) of each input by itself, and the labels (N,)."""
    if system.classifier.criterion != "logits":
        raise ValueError("the model sums probabilities, not logits")
    listing = list_images(data, system.class_names or ())
    paths, summed = listing.full_paths(), []
    console = Console(file=sys.stderr)
    for begin in track(range(0, len(paths), 32), description="batches", console=console):
        photos = [system.preprocessing(read_photo(path)) for path in paths[begin : begin + 32]]
        summed.append(system.anytime_logits(torch.stack(photos)))
    sums = torch.cat(summed, dim=1)  # (T, N, n)
    each = torch.cat((sums[:1], sums.diff(dim=0)))
    return each, torch.from_numpy(listing.labels.astype(np.int64))


def study(
    logits: Tensor, labels: Tensor, cost: NDArray[np.float64], budgets: Sequence[float], seeds: int
) -> dict[str, object]:
    """Accuracies, costs and gains of all contenders at all budgets, on held-out images."""
    count = len(labels)
    glances = {
        w: table_of(logits, labels, cost, (w, *[1.0] * (len(cost) - 1))) for w in GLANCE_WEIGHTS
    }
    right = {name: np.zeros((len(budgets), count)) for name in CONTENDERS}
    spent = {name: np.zeros(len(budgets)) for name in CONTENDERS}
    chosen: dict[str, list[list[float]]] = {name: [] for name in CONTENDERS}
    console = Console(file=sys.stderr)
    for seed in track(range(seeds), description="splits", console=console):
        for fitted, measured in halves(count, 1, seed):
            best = min(GLANCE_WEIGHTS, key=lambda weight: loss(glances[weight], fitted))
            weights = fitted_weights(logits[:, fitted], labels[fitted])
            tables = (glances[1.0], glances[best], table_of(logits, labels, cost, weights))
            for name, table, used in zip(CONTENDERS, tables, ([1.0], [best], weights), strict=True):
                chosen[name].append([round(weight, 3) for weight in used])
                for place, budget in enumerate(budgets):
                    recipe = Recipe(Goal(budget=budget), seed=seed)
                    policy = fit_policy(table.subset(fitted), recipe)
                    seen = applied(table.subset(measured), policy)
                    found = outcome(seen, policy.thresholds)
                    hits = seen.correct[np.arange(len(measured)), found.exit_index]
                    right[name][place, measured] += hits / seeds
                    spent[name][place] += found.cost / (2 * seeds)
    gains = {name: 100 * (right[name] - right[CONTENDERS[0]]) for name in CONTENDERS}
    return {
        "budgets": list(budgets),
        "accuracy": {name: (100 * right[name].mean(axis=1)).tolist() for name in CONTENDERS},
        "cost": {name: spent[name].tolist() for name in CONTENDERS},
        "gain": {name: gains[name].mean(axis=1).tolist() for name in CONTENDERS},
        "gain_error": {name: errors(gains[name]).tolist() for name in CONTENDERS},
        "gain_of_all_budgets": {name: float(gains[name].mean()) for name in CONTENDERS},
        "gain_of_all_budgets_error": {
            name: float(errors(gains[name].mean(axis=0)[None])[0]) for name in CONTENDERS
        },
        "weights": chosen,
        "anytime": {
            str(weight): (100 * table.correct.mean(axis=0)).tolist()
            for weight, table in glances.items()
        },
    }


def table_of(
    logits: Tensor, labels: Tensor, cost: NDArray[np.float64], weights: Sequence[float]
) -> ExitTable:
    """The exit table of the weighted sums."""
    scale = torch.tensor(weights, dtype=logits.dtype)[:, None, None]
    values = exit_values((logits * scale).cumsum(dim=0), labels, TEMPERATURES)
    right = labels.numpy().astype(np.int32)
    correct = values["prediction"] == right[:, None]
    return ExitTable(
        **values, correct=correct, label=right, cost=cost, temperatures=np.array(TEMPERATURES)
    )


def loss(table: ExitTable, rows: NDArray[np.int64]) -> float:
    """Mean of the exits' log-losses, each at its best temperature."""
    assert table.scaled_nll is not None
    by_temperature = table.scaled_nll[:, rows].mean(axis=1, dtype=np.float64)  # (G, T)
    return float(by_temperature.min(axis=0).mean())


def fitted_weights(logits: Tensor, labels: Tensor) -> list[float]:
    """(T,) weights that with a temperature of each exit make the labels most probable.

    Only their ratios matter, beside the temperatures: the first patch's is 1.
    """
    weights, scales = (
        torch.zeros(len(logits), dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    optimiser = torch.optim.LBFGS([weights, scales], max_iter=60, line_search_fn="strong_wolfe")
    wide = logits.double()

    def closure() -> Tensor:
        optimiser.zero_grad()
        sums = (wide * weights.exp()[:, None, None]).cumsum(dim=0) * scales.exp()[:, None, None]
        value = torch.nn.functional.cross_entropy(sums.flatten(0, 1), labels.repeat(len(sums)))
        value.backward()
        return value

    optimiser.step(closure)  # type: ignore[arg-type]
    found = weights.detach().exp()
    return [float(weight) for weight in found / found[1]]


def errors(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard errors of the means over the images, (P, N) -> (P,)."""
    return np.asarray(values.std(axis=1, ddof=1) / np.sqrt(values.shape[1]))


def print_tables(result: dict[str, object]) -> None:
    console = Console()
    table = Table(title="top-1 in % on held-out images, and the gain over no weights")
    table.add_column("weights")
    for budget in result["budgets"]:  # type: ignore[attr-defined]
        table.add_column(f"{budget / 1e6:g}M", justify="right")
    table.add_column("all budgets", justify="right")
    parts: dict[str, dict[str, list[float]]] = result  # type: ignore[assignment]
    for name in CONTENDERS:
        rows = zip(*(parts[key][name] for key in ("accuracy", "gain", "gain_error")), strict=True)
        total, error = (parts[f"gain_of_all_budgets{end}"][name] for end in ("", "_error"))
        table.add_row(
            name,
            *(f"{accuracy:.2f} ({gain:+.2f} ± {wide:.2f})" for accuracy, gain, wide in rows),
            f"{total:+.2f} ± {error:.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
