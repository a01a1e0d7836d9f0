"""What fitted exit thresholds are worth on images that did not fit them.

    python benchmarks/exit_policy_study.py TABLE [--exits 5] [--cost 0.79G,1.64G,...] [--published]

For each seed a random half of the table fits the thresholds for every budget, and the other half
measures them. A fitted policy costs a little more or less than its budget on the other half, so the
policies of a method are joined to a curve there and read at exactly the budget. Compared are

- by hand: the thresholds published for the ImageNet table (--published), or else one
  threshold for all exits, tried from 0.05 to 0.95;
- geometric: the field's rule (MSDNet, RANet, GFNet);
- search: this package's thresholds;
- surest: the same two, where the answer is that of the surest exit so far instead of the last one;
- history: the stop is decided on all confidences so far (the present one and the largest before,
  smoothed gains on their ranks, backward induction) instead of on the present one, with the surest
  answer as well. It needs no thresholds and is here to say whether it would win.

Last, the most that any thresholds could gain: the best found for the images they are measured on,
over the geometric rule fitted there as well, on the whole table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from history_policy import history_curve
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from threshold_ceiling import ceiling_curve

from anchornet_ext._files import write_whole
from anchornet_ext.policy.exit_policy import ANSWERS, Answer
from anchornet_ext.policy.exit_table import ExitTable
from anchornet_ext.policy.fitting import fit_thresholds
from anchornet_ext.policy.outcome import outcome

#: (rho_1, rho_2) of the eight published operating points; rho_3 = rho_4 = 0.9.
PUBLISHED = (
    (0.15, 0.55),
    (0.3, 0.5),
    (0.4, 0.6),
    (0.5, 0.7),
    (0.6, 0.75),
    (0.7, 0.8),
    (0.8, 0.85),
    (0.95, 0.9),
)
PUBLISHED_BUDGETS = (0.85, 0.95, 1.05, 1.15, 1.25, 1.35, 1.45, 1.55, 1.65, 1.8)

Points = NDArray[np.float64]  # (P, 2): cost and accuracy of each policy on the measuring half
Method = Callable[[ExitTable, ExitTable, NDArray[np.float64]], Points]


def main() -> int:
    args = parse_arguments()
    table = ExitTable.load(args.table, cost=None if args.cost is None else numbers(args.cost))
    if args.exits is not None:
        table = table.first_exits(args.exits)
    if args.budgets is not None:
        budgets = np.array(numbers(args.budgets))
    elif args.published:
        budgets = np.array(PUBLISHED_BUDGETS) * 1e9
    else:
        budgets = np.linspace(table.cost[0], table.cost[-1], 12)[1:-1]
    methods = contenders(table.num_exits, published=args.published)
    accuracy = {name: np.empty((args.seeds, len(budgets))) for name in methods}
    # Also a little beyond the outer ones, so that the reading at them is between two points.
    fit_budgets = np.concatenate([budgets[:1] * 0.97, budgets, budgets[-1:] * 1.03])
    fit_budgets = fit_budgets[fit_budgets >= table.cost[0]]
    for seed in track(range(args.seeds), "halves", console=Console(stderr=True)):
        order = np.random.default_rng(seed).permutation(table.num_images)
        fitting = table.subset(order[: table.num_images // 2])
        measuring = table.subset(order[table.num_images // 2 :])
        for name, method in methods.items():
            points = method(fitting, measuring, fit_budgets)
            accuracy[name][seed] = 100 * read_curve(points, budgets)
    ceiling = {answer: ceiling_gain(table, budgets, answer) for answer in ANSWERS}
    report(budgets, accuracy, ceiling, args.out, args.table, table)
    return 0


def contenders(num_exits: int, published: bool) -> dict[str, Method]:
    """Name -> method."""
    if published and num_exits != 5:
        raise ValueError(f"the published thresholds are for 5 exits, this table has {num_exits}")
    by_hand: Sequence[tuple[float, ...]] = (
        [(first, second, 0.9, 0.9) for first, second in PUBLISHED]
        if published
        else [(float(value),) * (num_exits - 1) for value in np.linspace(0.05, 0.95, 19)]
    )
    return {
        "by hand": lambda fitting, measuring, budgets: measured(measuring, by_hand),
        "geometric": fitted("geometric", "last"),
        "geometric, surest": fitted("geometric", "surest"),
        "search": fitted("search", "last"),
        "search, surest": fitted("search", "surest"),
        "history, surest": lambda fitting, measuring, budgets: history_curve(
            fitting.with_answer("surest"), measuring.with_answer("surest")
        ),
    }


def fitted(method: str, answer: Answer) -> Method:
    """Thresholds fitted for every budget on one half, measured on the other."""

    def curve(fitting: ExitTable, measuring: ExitTable, budgets: NDArray[np.float64]) -> Points:
        fitting, measuring = fitting.with_answer(answer), measuring.with_answer(answer)
        return measured(
            measuring,
            [
                fit_thresholds(
                    fitting.confidence, fitting.correct, fitting.cost, budget, method=method
                ).thresholds
                for budget in budgets
            ],
        )

    return curve


def ceiling_gain(table: ExitTable, budgets: NDArray[np.float64], answer: Answer) -> float:
    """Points of accuracy, mean over the budgets."""
    limits = np.concatenate([budgets[:1] * 0.97, budgets, budgets[-1:] * 1.03])
    rule = fitted("geometric", "last")(table, table, limits[limits >= table.cost[0]])
    best = ceiling_curve(table.with_answer(answer))
    return 100 * float((read_curve(best, budgets) - read_curve(rule, budgets)).mean())


def measured(table: ExitTable, policies: Sequence[Sequence[float]]) -> Points:
    found = [outcome(table, thresholds) for thresholds in policies]
    return np.array([(point.cost, point.accuracy) for point in found])


def read_curve(points: Points, budgets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Accuracy at the budgets, between the points next to them in cost."""
    points = points[np.argsort(points[:, 0], kind="stable")]
    return np.interp(budgets, points[:, 0], points[:, 1])


def report(
    budgets: NDArray[np.float64],
    accuracy: dict[str, NDArray[np.float64]],
    ceiling: dict[str, float],
    out: Path | None,
    path: Path,
    table: ExitTable,
) -> None:
    seeds = len(accuracy["geometric"])
    shown = Table(title=f"top-1, % on the other half, mean of {seeds} seeds")
    shown.add_column("GMACs")
    for budget in budgets:
        shown.add_column(f"{budget / 1e9:.3g}", justify="right")
    shown.add_column("mean", justify="right")
    shown.add_column("over geometric: mean, lowest", justify="right")
    results = {}
    for name, values in accuracy.items():
        mean = values.mean(axis=0)
        gain = mean - accuracy["geometric"].mean(axis=0)
        # Between seeds, of the gain averaged over the budgets. The halves overlap, so this is the
        # spread of the study and not an error of the mean.
        spread = (values - accuracy["geometric"]).mean(axis=1).std(ddof=min(1, seeds - 1))
        shown.add_row(
            name,
            *(f"{value:.2f}" for value in mean),
            f"{mean.mean():.3f}",
            f"{gain.mean():+.3f} ± {spread:.3f}, {gain.min():+.3f}",
        )
        results[name] = {
            "accuracy": mean.round(4).tolist(),
            "deviation_between_seeds": values.std(axis=0, ddof=min(1, seeds - 1)).round(4).tolist(),
            "gain_over_geometric": gain.round(4).tolist(),
            "mean_gain": round(float(gain.mean()), 4),
            "mean_gain_deviation": round(float(spread), 4),
        }
    Console(width=170).print(shown)
    gains = ", ".join(f"{gain:+.3f} (answer: {answer})" for answer, gain in ceiling.items())
    print(f"fitted to the images measured, any thresholds gain at most about {gains}")
    if out is not None:
        words = [path.name if word == str(path) else word for word in sys.argv[1:]]
        record = {
            "command": "python benchmarks/exit_policy_study.py " + " ".join(words),
            "images": table.num_images,
            "exits": table.num_exits,
            "cost": [float(value) for value in table.cost],
            "seeds": seeds,
            "budgets": budgets.tolist(),
            "methods": results,
            "gain_of_thresholds_fitted_to_what_is_measured": {
                answer: round(gain, 4) for answer, gain in ceiling.items()
            },
        }
        write_whole(out, (json.dumps(record, indent=1) + "\n").encode())


def numbers(text: str) -> list[float]:
    """Multiply-adds written as 0.79G or 74.3M, with commas between."""
    units = {"k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    return [
        float(word[:-1]) * units[word[-1]] if word[-1:] in units else float(word)
        for word in text.split(",")
    ]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="an exit table (.npz)")
    parser.add_argument("--exits", type=int, help="use only the first ones")
    parser.add_argument("--cost", help="MACs at each exit, for a table that has none")
    parser.add_argument("--budgets", help="in MACs, as 0.85G,0.95G (10 between the exits' costs)")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--published", action="store_true", help="the published thresholds too")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {args.seeds}")
    return args


if __name__ == "__main__":
    sys.exit(main())
