"""What the figures show, in plain sentences computed from the numbers, whoever they favour."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .curves import AnytimeCurve, BudgetedCurve, OperatingPoint, compare, cost_to_reach
from .gallery import Gallery
from .intervals import Estimate, share
from .reliability import Reliability
from .report_data import Latency, MeasuredTime, PlainNetwork
from .units import macs, milliseconds, percent, percent_range, plural, points, three_digits, whole

_METHODS = {"search": "the searched thresholds", "geometric": "the geometric rule"}


def about_result(
    exits: AnytimeCurve,
    curve: BudgetedCurve | None,
    plain: Sequence[PlainNetwork],
    latency: Latency | None,
) -> list[str]:
    """The whole report in a few sentences."""
    count = exits.num_images
    said = [about_last_exit(exits)]
    if curve is not None:
        said.append(about_saving(exits, curve))
    said.extend(about_plain(network, exits, curve) for network in plain)
    if latency is not None:
        said.extend(about_speed(latency)[:1])
    if count < 1000:
        widest = 100 * float(np.max(exits.top1.half_width))
        said.append(
            f"With only {plural(count, 'image')} every accuracy here is uncertain by up to about "
            f"{widest:.0f} points either way."
        )
    return said


def about_last_exit(exits: AnytimeCurve) -> str:
    """The accuracy with all steps, against that of the first."""
    count = exits.num_images
    last = percent_range(exits.top1[-1], count)
    if exits.num_exits == 1:
        return f"{last} of {plural(count, 'image')} are classified right. There is only one exit."
    first = percent(float(exits.top1.value[0]), count)
    return (
        f"When every image goes through all {exits.num_exits} steps, {last} of "
        f"{plural(count, 'image')} are classified right; with the first step alone, {first}."
    )


def about_saving(exits: AnytimeCurve, curve: BudgetedCurve) -> str:
    """At what mean cost the accuracy of all steps is reached when sure images leave early."""
    wanted = float(exits.top1.value[-1])
    count = exits.num_images
    full = _full_cost(exits, curve)
    if float(exits.top1.value[0]) >= wanted:
        first = in_unit(float(curve.budget[0]), curve)
        best = int(np.argmax(curve.accuracy.value))
        return (
            f"The first step alone is as accurate as all {exits.num_exits}, for {first} an image "
            f"instead of {in_unit(full, curve)}. The best that fitted thresholds reach is "
            f"{percent(float(curve.accuracy.value[best]), count)} at "
            f"{in_unit(float(curve.cost[best]), curve)}."
        )
    reached = cost_to_reach(curve, wanted)
    if reached is None:
        best = int(np.argmax(curve.accuracy.value))
        cost = float(curve.cost[best])
        return (
            f"On images that they were not fitted on, thresholds do not reach that accuracy: the "
            f"best is {percent(float(curve.accuracy.value[best]), count)}, "
            f"{points(wanted - float(curve.accuracy.value[best]))} less, at {in_unit(cost, curve)} "
            f"an image, {100 * cost / full:.0f} % of the cost of all steps."
        )
    if reached >= 0.995 * full:
        return (
            f"Letting images leave early saves nothing at that accuracy: it takes "
            f"{in_unit(reached, curve)} an image either way."
        )
    return (
        f"When images leave as soon as the system is sure enough, the same accuracy takes "
        f"{in_unit(reached, curve)} an image on average instead of {in_unit(full, curve)}: "
        f"{full / reached:.1f} times less."
    )


def about_plain(network: PlainNetwork, exits: AnytimeCurve, curve: BudgetedCurve | None) -> str:
    """A network that sees the whole image, against the best that the system does."""
    plain = share(network.correct, network.num_images)
    found = exits.top1
    best = int(np.argmax(found.value))
    system, cost = found[best], None if exits.macs is None else float(exits.macs[best])
    if curve is not None and curve.costs == "macs":
        place = int(np.argmax(curve.accuracy.value))
        if float(curve.accuracy.value[place]) >= float(system.value):
            system, cost = curve.accuracy[place], float(curve.cost[place])
    said = f"{network.name}, which looks at the whole image, has {percent_range(plain)} right"
    if network.macs is not None:
        said += f" at {macs(network.macs)}"
    difference = float(plain.value) - float(system.value)
    # Without the images' pairs: wider than need be, so nothing is claimed too early.
    reach = math.hypot(float(plain.half_width), float(system.half_width))
    where = "" if cost is None else f" (at {macs(cost)})"
    if abs(difference) <= reach:
        said += f"; the best of this system{where} does not differ from it by more than chance"
    elif difference > 0:
        said += f": {points(difference)} more than the best of this system{where}"
    else:
        said += f": {points(difference)} less than the best of this system{where}"
    if network.macs is not None and curve is not None and curve.costs == "macs":
        reached = cost_to_reach(curve, float(plain.value))
        if reached is None and difference > reach:
            said += ". No choice of thresholds reaches its accuracy"
        elif reached is None:
            pass
        elif reached < network.macs:
            said += (
                f". The system has that accuracy from {macs(reached)} on, "
                f"{network.macs / reached:.1f} times less"
            )
        else:
            said += f". The system needs {macs(reached)} for that accuracy, which is more"
    return said + "."


def about_methods(curves: Sequence[BudgetedCurve]) -> list[str]:
    """Each further curve of the same images and budgets against the first."""
    said = []
    for other in curves[1:]:
        first = curves[0]
        if len(first.image_score) != len(other.image_score) or not np.array_equal(
            first.budget, other.budget
        ):
            continue
        gain = compare(other, first)
        names = _METHODS[first.method], _METHODS[other.method]
        value, low, high = (100 * float(end) for end in (gain.value, gain.low, gain.high))
        interval = f"95 % interval {signed(low)} to {signed(high)}"
        if low > 0:
            verdict = f"{names[0]} are right more often than {names[1]}"
        elif high < 0:
            verdict = f"{names[0]} are right less often than {names[1]}"
        else:
            verdict = f"{names[0]} and {names[1]} do not differ by more than chance"
        said.append(
            f"Averaged over all budgets, {verdict}: {signed(value)} points ({interval}, "
            "compared image by image)."
        )
    return said


def about_cross_fit(curve: BudgetedCurve) -> str:
    """How the curve was measured, and whether the budgets were kept on unseen images."""
    over = float(np.max(curve.cost / curve.budget)) - 1
    times = "" if curve.splits == 1 else f", {curve.splits} times with different halves"
    kept = (
        "on the other half the mean cost never exceeded the budget"
        if over <= 0
        else f"on the other half the mean cost exceeded the budget by at most {100 * over:.1f} %"
    )
    return (
        f"Thresholds were fitted on one random half of the images ({whole(curve.num_fitted)}) and "
        f"measured on the other, then the other way round{times}; so no image is measured with "
        f"thresholds that it helped to choose. Fitted to a budget, {kept}. Shaded bands are 95 % "
        "intervals of the images drawn: two curves of the same images can differ for certain "
        "although their bands overlap."
    )


def about_points(operating: Sequence[OperatingPoint], exits: AnytimeCurve) -> list[str]:
    """What to make of the chosen operating points."""
    said = []
    if any(point.held_out is False for point in operating):
        said.append(
            "Points marked “same images” were fitted on the images they are measured on, or on "
            "some of them, which flatters them."
        )
    count = exits.num_images
    for point in operating:
        if point.macs is None or exits.macs is None or exits.num_exits < 2:
            continue
        full = float(exits.macs[-1])
        difference = float(point.accuracy.value - exits.top1.value[-1])
        direction = "above" if difference > 0 else "below"
        against = (
            f"{points(difference)} {direction} all steps"
            if difference
            else "as many as with all steps"
        )
        said.append(
            f"{point.name}: {percent(float(point.accuracy.value), count)} right, {against}, for "
            f"{100 * point.macs / full:.0f} % of their cost."
        )
    return said


def about_added_times(
    exits: AnytimeCurve, operating: Sequence[OperatingPoint], latency: Latency | None
) -> list[str]:
    """What a time that is added up from the steps' times leaves out."""
    if exits.milliseconds is None:
        return []
    said = ["Lines and circles add up the times of the steps, each timed alone in full batches."]
    times = () if latency is None else latency.times
    timed = {time.name: time.milliseconds for time in times if time.kind == "point"}
    real = [
        f"{milliseconds(timed[point.name])} with {point.name}, whose steps add up to "
        f"{milliseconds(float(np.dot(point.share, exits.milliseconds)))}"
        for point in operating
        if point.name in timed
    ]
    if real:
        said.append(
            "The lettered points are real runs on some of the images, in which batches shrink as "
            f"images leave: {'; '.join(real)}."
        )
    return said


def about_anytime(exits: AnytimeCurve) -> list[str]:
    """What each further step adds, and whether it adds anything."""
    if exits.num_exits == 1:
        return [about_last_exit(exits)]
    gain = exits.gain
    helped, hurt, unclear = [], [], []
    for step in range(exits.num_exits - 1):
        part = gain[step]
        words = f"step {step + 2} ({signed(100 * float(part.value))} points)"
        if float(part.low) > 0:
            helped.append(words)
        elif float(part.high) < 0:
            hurt.append(words)
        else:
            unclear.append(words)
    said = []
    if helped:
        said.append(f"Accuracy rises with {joined(helped)}.")
    if hurt:
        said.append(
            f"It falls with {joined(hurt)}: images that were right before become wrong more often "
            "than the other way round."
        )
    if unclear:
        said.append(
            f"The change with {joined(unclear)} is no more than chance could give with "
            f"{plural(exits.num_images, 'image')}."
        )
    best = int(np.argmax(exits.top1.value))
    if best < exits.num_exits - 1:
        said.append(f"The highest accuracy is that of exit {best + 1}, not of the last one.")
    if exits.top5 is not None:
        first, last = (percent(float(exits.top5.value[place])) for place in (0, -1))
        said.append(
            f"The right class is among the five most probable for {first} of the images after the "
            f"first step and for {last} after the last."
        )
    return said


def about_inputs(curve: BudgetedCurve, chosen: Sequence[int]) -> list[str]:
    """How the images spread over the exits."""
    said = []
    for place in (chosen[0], chosen[-1]) if len(chosen) > 1 else chosen:
        shares = curve.share[place]
        said.append(
            f"At {curve.inputs[place]:.2f} steps on average, {100 * shares[0]:.0f} % of the "
            f"images leave after the first step and {100 * shares[-1]:.0f} % take all "
            f"{len(shares)}; {100 * float(curve.accuracy.value[place]):.1f} % are right."
        )
    return said


def about_speed(latency: Latency) -> list[str]:
    """How much of the speed-up that the multiply-adds promise is there on the clock."""
    reference = latency.reference
    if reference is None:
        return []
    others = [time for time in latency.times if time is not reference and time.kind != "stream"]
    streamed = {time.name: time for time in latency.times if time.kind == "stream"}
    said = []
    shown = [time for time in others if time.kind == "point"] or others
    for time in shown[:4]:
        expected, measured = speedups(time, reference)
        outcome = (
            f"{measured:.2f} times as fast"
            if measured >= 1
            else (f"slower ({measured:.2f} times the speed)")
        )
        sentence = (
            f"On the clock an image takes {milliseconds(time.milliseconds)} with {time.name}, "
            f"against {milliseconds(reference.milliseconds)} with {reference.name}: {outcome}, "
            f"where the multiply-adds promise {expected:.2f}"
        )
        if expected > 1:
            sentence += f" ({100 * measured / expected:.0f} % of it is realised)"
        sentence += "."
        if (stream := streamed.get(f"{time.name}, streamed")) is not None:
            sentence += (
                f" As a stream of full batches it takes {milliseconds(stream.milliseconds)}."
            )
        said.append(sentence)
    return said


def about_reliability(exits: Sequence[Reliability]) -> list[str]:
    """Whether a confidence means what it says, exits of one verdict together."""
    verdicts: dict[str, list[Reliability]] = {}
    for one in exits:
        if one.error <= 1.5 * one.chance_error:
            verdict = "confidences can be taken at their word"
        elif one.bias > 0.5 * one.error:
            verdict = "the system is surer than it is right"
        elif one.bias < -0.5 * one.error:
            verdict = "the system is right more often than it is sure"
        else:
            verdict = "the system is too sure in some places and not sure enough in others"
        verdicts.setdefault(verdict, []).append(one)
    said = []
    for verdict, group in verdicts.items():
        steps = [str(one.exit_step) for one in group]
        where = f"exit {steps[0]}" if len(group) == 1 else f"exits {joined(steps)}"
        if len(exits) > 1 and len(group) == len(exits):
            where = "every exit"
        off = _span([one.error for one in group])
        chance = _span([one.chance_error for one in group])
        said.append(
            f"At {where}, {verdict}: on average the confidence is off by {off} points, where "
            f"chance alone would give {chance}."
        )
    return said


def about_gallery(gallery: Gallery) -> list[str]:
    """How many images there were to choose from at each exit."""
    said = []
    for step, (right, wrong) in enumerate(gallery.left.tolist(), start=1):
        total = right + wrong
        if total == 0:
            said.append(f"No image left after step {step}.")
            continue
        said.append(
            f"{plural(total, 'image')} left after step {step}; "
            f"{100 * right / total:.0f} % of them were classified right."
        )
    return said


def speedups(time: MeasuredTime, reference: MeasuredTime) -> tuple[float, float]:
    """(expected from the multiply-adds, measured)."""
    return reference.macs / time.macs, reference.milliseconds / time.milliseconds


def in_unit(cost: float, curve: BudgetedCurve) -> str:
    """A cost of the curve in words."""
    if curve.costs == "macs":
        return macs(cost)
    if curve.costs == "milliseconds":
        return milliseconds(cost)
    return f"{three_digits(cost)} steps"


def signed(value: float) -> str:
    """Two decimals with the sign, and no sign of what is rounded to 0."""
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def joined(words: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"


def thresholds_in_words(thresholds: Sequence[float]) -> str:
    """Numbers, but "always" and "never" where every image, or none, leaves."""
    words = [
        "never" if value >= 1 else "always" if value < 0 else f"{value:.3f}" for value in thresholds
    ]
    return ", ".join(words) if words else "none"


def held_out_in_words(point: OperatingPoint) -> str:
    """Where an operating point's thresholds come from."""
    if point.held_out is None:
        return "given"
    return "other images" if point.held_out else "same images"


def _full_cost(exits: AnytimeCurve, curve: BudgetedCurve) -> float:
    if curve.costs == "inputs":
        return float(exits.num_exits)
    values = exits.macs if curve.costs == "macs" else exits.milliseconds
    assert values is not None  # the curve's costs are the table's
    return float(values[-1])


def interval_in_words(estimate: Estimate, num_images: int) -> str:
    """The interval of a scalar estimate alone, "74.1 to 74.9"."""
    low, high = (
        percent(float(end), num_images).removesuffix(" %") for end in (estimate.low, estimate.high)
    )
    return f"{low} to {high}"


def _span(shares: Sequence[float]) -> str:
    """Shares in per cent without the sign, from the smallest to the largest."""
    low, high = (f"{100 * end:.1f}" for end in (min(shares), max(shares)))
    return low if low == high else f"{low} to {high}"
