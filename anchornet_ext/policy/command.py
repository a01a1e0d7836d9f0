"""`anchornet calibrate`: from an exit table and a goal to an exit policy."""

from __future__ import annotations

import argparse
import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anchornet_ext._arguments import argument, count, nonempty_path
from anchornet_ext._files import require_file, require_folder, write_whole
from anchornet_ext._version import __version__

from . import quantities
from .calibration import (
    Goal,
    HeldOut,
    Recipe,
    Unit,
    check_table,
    cross_fit,
    cross_fit_budgets,
    fit_policy,
    policy_outcome,
)
from .exit_policy import ANSWERS, ExitPolicy
from .exit_table import ExitTable
from .fitting import METHODS
from .outcome import Outcome

#: What an exit table is called in the folder of a report.
TABLE = "exits.npz"
_CURVE_POINTS = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `anchornet calibrate`."""
    parser.add_argument(
        "table",
        type=nonempty_path,
        metavar="TABLE",
        help=f"an exit table (.npz), or the folder of a report with its {TABLE}",
    )
    goal = parser.add_mutually_exclusive_group(required=True)
    goal.add_argument(
        "--budget",
        type=argument(quantities.macs),
        metavar="MACS",
        help="multiply-adds that an image may cost on average: 1.25G, 800M, 1.25e9",
    )
    goal.add_argument(
        "--accuracy",
        type=argument(quantities.share),
        metavar="SHARE",
        help="share of right answers to reach at the lowest cost: 0.74 or 74%%",
    )
    goal.add_argument(
        "--latency",
        type=argument(quantities.milliseconds),
        metavar="TIME",
        help="time that an image may take on average: 3ms, 250us; needs measured times",
    )
    parser.add_argument("--method", choices=METHODS, default="search", help="default: %(default)s")
    parser.add_argument(
        "--answer",
        choices=(*ANSWERS, "auto"),
        default="auto",
        help="whose prediction counts: the last input's, the surest input's, or what is better on "
        "held-out images (default: %(default)s)",
    )
    parser.add_argument(
        "--temperatures",
        choices=("on", "off", "auto"),
        default="auto",
        help="scale the logits of each exit so that its confidence is true; auto: where that is "
        "better on held-out images (default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=nonempty_path, metavar="FILE", help="write the policy there, as JSON"
    )
    parser.add_argument(
        "--install",
        type=nonempty_path,
        metavar="FOLDER",
        help="make the policy the one that the saved model in this folder uses by itself",
    )
    parser.add_argument(
        "--curve",
        type=nonempty_path,
        metavar="CSV",
        help="write accuracy over cost for many budgets there",
    )
    parser.add_argument(
        "--cost",
        type=argument(_costs),
        metavar="A,B,...",
        help="multiply-adds of an image that leaves at each exit, for a table that has none or "
        "others: 0.79G,1.64G,...",
    )
    parser.add_argument(
        "--exits", type=int, metavar="N", help="use the first N exits of the table only"
    )
    parser.add_argument(
        "--seed", type=count, default=0, help="of the splits into halves (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Fits and measures the policy, prints both and writes what was asked for.

    Raises:
        ValueError: the table is damaged or lacks what is needed, the goal is out of its reach, or
            an argument is out of range.
        OSError: there is no such table or model, or nothing can be written where it should be.
    """
    table = load_table(args.table, args.exits, args.cost, grid=args.temperatures != "off")
    _require_costs(args, table)
    goal = Goal(
        budget=args.budget if args.latency is None else args.latency,
        accuracy=args.accuracy,
        unit="macs" if args.latency is None else "milliseconds",
    )
    recipe = Recipe(goal, args.method, args.answer, args.temperatures, args.seed)
    check_table(table, recipe)
    # Before minutes are spent.
    places = {flag: path for flag in ("out", "curve") if (path := getattr(args, flag)) is not None}
    for flag, path in places.items():
        require_file(path, f"--{flag}")
    if len({path.resolve() for path in places.values()}) < len(places):
        raise ValueError(f"--out and --curve are the same file, {str(args.out)!r}")
    if args.install is not None:
        _require_model(args.install, table, cut=args.exits is not None)
        require_folder(args.install, "--install")

    policy = fit_policy(table, recipe)
    held_out = cross_fit(table, recipe)
    on_table = policy_outcome(table, policy, goal.unit)
    policy = replace(policy, about=_about(args, table, recipe, held_out, on_table))

    for line in _report(args, table, recipe, policy, held_out, on_table):
        print(line)
    if args.curve is not None:
        write_whole(args.curve, _curve(table, recipe, policy).encode())
        print(f"wrote {args.curve}")
    if args.out is not None:
        policy.save(args.out)
        print(f"wrote {args.out}")
    if args.install is not None:
        from anchornet_ext.systems.common.loading import install_policy

        install_policy(args.install, policy)
        print(f"the model in {args.install} uses it from now on")
    return 0


def load_table(
    path: Path,
    exits: int | None = None,
    cost: list[float] | None = None,
    *,
    grid: bool = True,
) -> ExitTable:
    """An exit table of a file or a report's folder, cut to its first exits, with other costs.

    Args:
        path: the file or the folder.
        exits: how many exits to keep.
        cost: multiply-adds of each of them, instead of the table's.
        grid: whether to read the temperature grid, most of a large table.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, has fewer exits, or the costs do not fit it.
    """
    file = path / TABLE if path.is_dir() else path
    if not file.is_file():
        what = f"{path} has no {TABLE}" if path.is_dir() else f"there is no file {path}"
        raise FileNotFoundError(f"{what}: an exit table is what `anchornet evaluate` writes")
    table = ExitTable.load(file, grid=grid)
    if exits is not None:
        if not 1 <= exits <= table.num_exits:
            raise ValueError(f"--exits {exits}: {file} has {table.num_exits} exits")
        table = table.first_exits(exits)
    if cost is not None:
        if len(cost) != table.num_exits:
            raise ValueError(
                f"--cost has {len(cost)} values for {table.num_exits} exits"
                + (" (--exits N takes the first N only)" if len(cost) < table.num_exits else "")
            )
        table = table.with_cost(cost)
    return table


def _require_costs(args: argparse.Namespace, table: ExitTable) -> None:
    if args.latency is None:
        if table.cost is None:
            raise ValueError(
                f"{args.table} does not say what its exits cost: give the multiply-adds of its "
                f"{table.num_exits} exits with --cost A,B,..."
            )
    elif table.milliseconds is None:
        raise ValueError(
            f"{args.table} has no measured times, which --latency needs: collect it on the machine "
            "to run on with `anchornet evaluate`, which measures them unless told --no-latency; or "
            "give a --budget of multiply-adds"
        )


def _require_model(folder: Path, table: ExitTable, *, cut: bool) -> None:
    """Raises ValueError where the table is not one of this model; a cut one is another's anyway."""
    from anchornet_ext.inference.storage import checksum
    from anchornet_ext.systems.common.loading import read_model

    config = read_model(folder)
    exits = len(config["macs_per_exit"])
    if exits != table.num_exits:
        raise ValueError(f"--install {folder}: this model has {exits} exits, not {table.num_exits}")
    measured, here = table.metadata.get("checksum"), checksum(config)
    if not cut and measured is not None and measured != here:
        raise ValueError(
            f"--install {folder}: the table is of another model, "
            f"{table.metadata.get('system', 'of no name')} ({measured:.13}... there, "
            f"{here:.13}... here): its confidences say nothing about this one's. Evaluate this one"
        )


def _about(
    args: argparse.Namespace,
    table: ExitTable,
    recipe: Recipe,
    held_out: HeldOut,
    on_table: Outcome,
) -> dict[str, Any]:
    """Where the policy comes from, with nothing that differs from run to run."""
    goal = recipe.goal
    known = {key: table.metadata[key] for key in ("system", "data") if key in table.metadata}
    return {
        "table": args.table.name,
        **known,
        "images": table.num_images,
        "goal": {
            key: value
            for key, value in (("budget", goal.budget), ("accuracy", goal.accuracy))
            if value is not None
        },
        "unit": goal.unit,
        "costs": table.costs(goal.unit).tolist(),
        "method": recipe.method,
        "answer_asked": recipe.answer,
        "temperatures_asked": recipe.temperatures,
        "expected": {
            "held_out": True,
            "accuracy": held_out.accuracy,
            "accuracy_standard_error": held_out.accuracy_error,
            "cost": held_out.cost,
            "cost_standard_error": held_out.cost_error,
            "fitted_on": held_out.num_fitted,
            "splits": held_out.splits,
            "seed": recipe.seed,
        },
        "on_the_table_itself": {"accuracy": on_table.accuracy, "cost": on_table.cost},
        "package_version": __version__,
    }


def _report(
    args: argparse.Namespace,
    table: ExitTable,
    recipe: Recipe,
    policy: ExitPolicy,
    held_out: HeldOut,
    on_table: Outcome,
) -> list[str]:
    unit = recipe.goal.unit
    scale, unit_name = _unit(unit, float(table.costs(unit)[-1]))
    never = replace(policy, thresholds=(1.0,) * len(policy.thresholds))
    everything = policy_outcome(table, never, unit)

    def row(name: str, accuracy: str, price: str, note: str) -> str:
        return f"{name:<22}  {accuracy:>16}  {price:>22}  {note}".rstrip()

    def plain(value: float) -> str:
        return f"{value / scale:.3f} {unit_name}"

    lines = [
        f"{args.table}: {table.num_images} images, {table.num_exits} exits",
        "",
        f"thresholds    {', '.join(f'{value:.6g}' for value in policy.thresholds)}",
        f"temperatures  {_listed_temperatures(policy, recipe, table)}",
        f"answer        {_told_answer(policy, recipe)}",
        "",
        row("", "accuracy", "cost of an image", ""),
        row(
            "expected, held out",
            f"{100 * held_out.accuracy:.2f} ± {100 * held_out.accuracy_error:.2f} %",
            f"{held_out.cost / scale:.3f} ± {held_out.cost_error / scale:.3f} {unit_name}",
            "measured on images that the policy was not fitted on",
        ),
        row(
            "on the table itself",
            f"{100 * on_table.accuracy:.2f} %",
            plain(on_table.cost),
            "flatters: fitted and measured on the same images",
        ),
        row(
            "without early exit",
            f"{100 * everything.accuracy:.2f} %",
            plain(everything.cost),
            "nothing but the answer rule was fitted" if policy.answer != "last" else "",
        ),
        "",
        f"± is one standard error. Held out: fitted on {held_out.num_fitted} images and measured "
        f"on the others, both ways, {held_out.splits} time{'s' if held_out.splits > 1 else ''}.",
        "leave at exit "
        + ", ".join(f"{t}: {100 * part:.1f} %" for t, part in enumerate(on_table.share, start=1)),
    ]
    wanted = recipe.goal.accuracy
    if wanted is not None and held_out.accuracy < wanted:
        lines.append(
            f"On new images expect {100 * (wanted - held_out.accuracy):.2f} points less than the "
            f"{100 * wanted:.2f} % asked for; ask for a little more to make up for it."
        )
    return lines


def _told_answer(policy: ExitPolicy, recipe: Recipe) -> str:
    if recipe.answer == "auto" and policy.answer == "last":
        return "last (the surest is no better on held-out images)"
    return policy.answer


def _listed_temperatures(policy: ExitPolicy, recipe: Recipe, table: ExitTable) -> str:
    if policy.temperatures is not None:
        return ", ".join(f"{value:.4g}" for value in policy.temperatures)
    if recipe.temperatures == "off":
        return "none"
    if table.temperatures is None:
        return "none (the table has no temperature grid)"
    return "none (no better on held-out images)"


def _unit(unit: Unit, largest: float) -> tuple[float, str]:
    """What to divide a cost by, and its name then."""
    if unit == "milliseconds":
        return 1.0, "ms"
    for scale, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 0.79 and 4.01 G read better than 790 and 4010 M.
        if largest >= scale:
            return scale, f"{prefix}MACs"
    return 1.0, "MACs"


def _curve(table: ExitTable, recipe: Recipe, policy: ExitPolicy) -> str:
    """CSV: for each of many budgets the policy with these rules and what to expect of it.

    What is held out chooses its rules for itself, as `cross_fit_budgets` says: `policy` has chosen
    its own on all images.
    """
    cost = table.costs(recipe.goal.unit)
    rules = replace(
        recipe,
        answer=policy.answer,
        temperatures="off" if policy.temperatures is None else "on",
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "budget",
            *(f"held_out_{name}" for name in ("accuracy", "accuracy_error", "cost", "cost_error")),
            *(f"on_table_{name}" for name in ("accuracy", "cost")),
            *(f"threshold_{t}" for t in range(1, table.num_exits)),
        ]
    )
    budgets = np.linspace(cost[0], cost[-1], _CURVE_POINTS).tolist()
    measured = cross_fit_budgets(table, recipe, budgets)
    for budget, held_out in zip(budgets, measured, strict=True):
        at = replace(rules, goal=Goal(budget=budget, unit=recipe.goal.unit))
        fitted = fit_policy(table, at)
        on_table = policy_outcome(table, fitted, recipe.goal.unit)
        writer.writerow(
            [
                budget,
                *(held_out.accuracy, held_out.accuracy_error, held_out.cost, held_out.cost_error),
                *(on_table.accuracy, on_table.cost),
                *fitted.thresholds,
            ]
        )
    return text.getvalue()


def _costs(text: str) -> list[float]:
    return [quantities.macs(word) for word in text.split(",")]
