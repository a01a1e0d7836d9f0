"""What compute-sanitizer and pytest printed, read: was it looked at, and what was found."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

#: Part of the names of this package's kernels, mangled or not, and of no others.
OURS = "anchornet"


class Outcome(NamedTuple):
    """What a tool's run came to."""

    problems: list[str]
    """Why it is no success: empty where every test ran and nothing was found."""
    others: int
    """Reports about kernels that are not this package's, which are no problem of its."""


def read_tool(tool: str, output: str, returncode: int, *, only_ours: bool) -> Outcome:
    """Judges the output of a tool that ran pytest.

    Args:
        tool: memcheck, racecheck, synccheck or initcheck.
        output: everything that it and pytest printed.
        returncode: of the whole.
        only_ours: the tool looked at other kernels as well (see `sanitize.command`), so that only
            reports that name one of this package's count.
    """
    problems = failures_of_pytest(output)
    reports = reports_of(output)
    ours = [report for report in reports if not only_ours or OURS in report]
    problems += [report.splitlines()[0] for report in ours]
    summaries = re.findall(r"^=+ (?:RACECHECK|ERROR) SUMMARY: (.*)$", output, re.MULTILINE)
    if not summaries:
        problems.append(f"{tool} printed no summary, so it has not looked at anything")
    counted = sum(
        int(count)
        for summary in summaries
        for count in re.findall(r"(\d+) (?:error|warning)", summary)
    )
    if counted > len(reports):
        problems.append(f"{tool} counted {counted} errors and showed {len(reports)}")
    if returncode and not problems and not only_ours:
        problems.append(f"{tool} ended with status {returncode}")
    return Outcome(problems, len(reports) - len(ours))


def reports_of(output: str) -> list[str]:
    """The reports of errors and hazards, each with its indented lines."""
    reports: list[str] = []
    inside = False
    for line in output.splitlines():
        found = re.match(r"=========( *)(.*)", line)
        if found is None or not found[2]:
            inside = False
        elif len(found[1]) > 1:
            if inside:
                reports[-1] += f"\n{found[2]}"
        else:
            inside = not re.match(r"COMPUTE-SANITIZER|.* SUMMARY: |Target application", found[2])
            if inside:
                reports.append(found[2])
    return reports


def failures_of_pytest(output: str) -> list[str]:
    """Why pytest's run is no success; a run in which all tests were skipped is none."""
    summary = re.findall(
        r"^[= ]*((?:\d+ \w+(?:, )?)+ in [\d.]+s.*?)[= ]*$", output, re.MULTILINE | re.ASCII
    )
    if not summary:
        return ["pytest did not come to its end"]
    counts = {word: int(count) for count, word in re.findall(r"(\d+) ([a-z]+)", summary[-1])}
    bad = sum(counts.get(word, 0) for word in ("failed", "error", "errors"))
    if bad or not counts.get("passed"):
        return [f"pytest: {summary[-1]}"]
    return []


def kernels_not_run(sources: Iterable[str], launched: Iterable[str]) -> list[str]:
    """Kernels that stand in the sources and that nothing launched.

    Args:
        sources: the text of .cu files.
        launched: names of kernels as a profiler gives them.
    """
    names = {
        name
        for text in sources
        for name in re.findall(r"__global__ void(?: __launch_bounds__\([^)]*\))?\s+(\w+)", text)
    }
    ran = " ".join(name for name in launched if OURS in name)
    return sorted(name for name in names if not re.search(rf"\b{name}\b", ran))
