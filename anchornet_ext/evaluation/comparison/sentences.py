"""What a comparison shows, in sentences computed from the numbers, whoever they favour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from anchornet_ext.evaluation.curves import Costs, exit_costs
from anchornet_ext.evaluation.sentences import joined
from anchornet_ext.evaluation.units import macs, milliseconds, percent, plural, points

from .budgets import Standing
from .entries import Entry


def cost_in_words(value: float, standing_costs: str) -> str:
    """A cost with its unit."""
    return macs(value) if standing_costs == "macs" else milliseconds(value)


def about_standing(standing: Standing) -> str:
    """Who is the best at one budget, and who cannot be told from it."""
    budget = cost_in_words(standing.budget, standing.costs)
    best, *others = standing.scores
    said = (
        f"With a mean of at most {budget} an image, {best.name} is right most often: "
        f"{percent(float(best.accuracy.value))}."
    )
    if not others:
        return said + " No other system can keep to so little."
    close = [score for score in others if not score.is_told_apart]
    apart = [score for score in others if score.is_told_apart]
    if close:
        names = [f"{one.name} ({points(float(one.behind.value))} less)" for one in close]
        said += f" {joined(names)} cannot be told from it: the difference is within chance."
    if apart:
        names = [f"{one.name} (by {points(float(one.behind.value))})" for one in apart]
        said += f" {joined(names)} {'is' if len(names) == 1 else 'are'} behind by more than chance."
    if standing.too_dear:
        verb = "costs" if len(standing.too_dear) == 1 else "cost"
        said += f" {joined(standing.too_dear)} {verb} more than that from the first exit on."
    return said


def about_leaders(standings: Sequence[Standing]) -> str:
    """Over all budgets: who is ever the best for certain."""
    if not standings:
        return ""
    what = "multiply-adds" if standings[0].costs == "macs" else "the clock"
    alone: dict[str, list[str]] = {}
    shared = 0
    for standing in standings:
        best, *others = standing.scores
        if others and all(score.is_told_apart for score in others):
            budget = cost_in_words(standing.budget, standing.costs)
            alone.setdefault(best.name, []).append(budget)
        elif others:
            shared += 1
    parts = [f"{name} is ahead of all others at {joined(at)}" for name, at in alone.items()]
    if shared:
        parts.append(
            f"at {plural(shared, 'budget')} the best cannot be told from the next by this many "
            "images"
        )
    return f"By {what}: {'; '.join(parts)}." if parts else ""


def about_unmet(
    asked: Sequence[float], standings: Sequence[Standing], entries: Sequence[Entry], costs: Costs
) -> list[str]:
    """Which of the budgets asked for allow no comparison, and why."""
    known = [
        (float(exit_costs(entry.table, costs)[0]), entry.name)
        for entry in entries
        if costs != "milliseconds" or entry.table.milliseconds is not None
    ]
    if len(known) < 2:
        timed = "1 was" if known else "none was"
        said = f"Times cannot be compared: of the {plural(len(entries), 'system')}, {timed} timed."
        return [said] * bool(asked)
    least, name = min(known)
    compared = {standing.budget for standing in standings}
    return [
        f"No system can keep to a mean of {cost_in_words(budget, costs)} an image: the cheapest, "
        f"{name}, costs {cost_in_words(least, costs)} at its first exit."
        for budget in sorted(set(asked))
        if budget not in compared
    ]


def about_untimed(entries: Sequence[Entry]) -> list[str]:
    """Which systems are missing where time is counted, and why."""
    return [
        f"{entry.name} was not timed: {entry.why_untimed}."
        for entry in entries
        if entry.why_untimed is not None
    ]


def about_chance(num_images: int, standings: Sequence[Standing]) -> str:
    """What "chance" means here, and what it leaves out."""
    said = (
        f"Chance is that of which {plural(num_images, 'image')} were drawn. Each system is one "
        "training run: how much another run of the same training would differ is not in it."
    )
    if standings:
        said += (
            " Systems are compared image by image, and a difference is called more than chance "
            "where its interval, wide enough for all comparisons of that kind of cost together "
            "(95 % by Bonferroni), does not reach 0."
        )
    return said


def about_schedules(entries: Sequence[Entry]) -> list[str]:
    """Of networks that can compute whole blocks before an exit, or only what it needs."""
    said = []
    for entry in entries:
        whole = entry.table.metadata.get("macs_per_exit_blocks")
        cost = entry.table.cost
        if whole is None or cost is None:
            continue
        if np.array_equal(cost, whole):
            said.append(f"{entry.name} is counted in whole blocks, as published tables are.")
            continue
        own, published = (", ".join(macs(float(value)) for value in one) for one in (cost, whole))
        said.append(
            f"{entry.name} computes before an exit only what that exit needs, and is counted so: "
            f"{own}. In whole blocks, as published tables count, it would be {published}."
        )
    return said


def about_varying_costs(entries: Sequence[Entry]) -> list[str]:
    """Of systems whose images cost differently at the same exit."""
    said = []
    for entry in entries:
        costs = entry.table.image_cost
        if costs is None:
            continue
        low, high = np.quantile(costs[:, -1], (0.05, 0.95))
        said.append(
            f"With {entry.name}, nine in ten images cost between {macs(float(low))} and "
            f"{macs(float(high))}; its point is at the mean."
        )
    return said
