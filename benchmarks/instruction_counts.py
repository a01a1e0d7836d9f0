"""Instructions that the CPU kernels execute, counted by valgrind's callgrind.

    python benchmarks/instruction_counts.py                              # some minutes
    python benchmarks/instruction_counts.py --operators gather_patches --json now.json
    python benchmarks/instruction_counts.py --compare before.json
    python benchmarks/instruction_counts.py --show now.json --compare before.json

Counts do not depend on what else the machine does, and hardly differ between runs, so that the
effect of a change to a kernel shows where times scatter by more than it. They are no times: an
instruction that waits for memory counts as much as one that does not.

Counted is the second call of every case of `anchornet bench operators` for one batch size, on one
thread: the native operator as the dispatcher calls it, with all that it calls (the allocation of
its result too), without Python. Valgrind has no AVX-512: the kernels, and torch, believe to be on
a processor that ends with AVX2, so the counts are those of the AVX2 paths.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FORMAT = 1
#: Where an operator begins and ends: the function that the dispatcher calls, which is a template
#: over the kernel. callgrind confuses two options with one pattern, hence two for the same names.
ZERO_BEFORE = "torch::stable::detail::boxer<*anchornet::*"
DUMP_AFTER = "*::detail::boxer<*::boxed_fn(*"


@dataclass(frozen=True)
class Count:
    """One case of one operator.

    Attributes:
        operator: its name.
        case: the settings in words, which tell it from the operator's other cases.
        instructions: of one call.
        images: that the call works on.
        elements: of the first tensor of its result.
    """

    operator: str
    case: str
    instructions: int
    images: int
    elements: int


def callgrind_options(output: Path) -> list[str]:
    """So that each call of an operator becomes a file of its own: `output`.1, `output`.2, ..."""
    return [
        "--tool=callgrind",
        f"--callgrind-out-file={output}",
        f"--zero-before={ZERO_BEFORE}",
        f"--dump-after={DUMP_AFTER}",
    ]


def read_dumps(output: Path) -> list[tuple[str, int]]:
    """(function, instructions) of each call of an operator of ours, in the order of the calls.

    Other libraries' operators (torchvision's) have written files as well.

    Raises:
        ValueError: a file is not what callgrind 3.19 writes.
    """
    dumps = []
    for number in range(1, 1 << 20):
        path = output.with_name(f"{output.name}.{number}")
        if not path.exists():
            break
        text = path.read_text(errors="replace")
        trigger = re.search(r"^desc: Trigger: --dump-after=(.*)$", text, re.MULTILINE)
        totals = re.search(r"^totals: (\d+)", text, re.MULTILINE)
        events = re.search(r"^events: (.*)$", text, re.MULTILINE)
        if trigger is None or totals is None or events is None or events[1].split()[:1] != ["Ir"]:
            raise ValueError(f"{path} has no trigger, totals or events as callgrind writes them")
        if "anchornet::" in trigger[1]:
            dumps.append((trigger[1], int(totals[1])))
    return dumps


def counts_of(cases: Iterable[Mapping[str, Any]], dumps: Sequence[tuple[str, int]]) -> list[Count]:
    """Puts together what the counted process said and what callgrind wrote.

    Args:
        cases: operator, case, images, elements, in order; each was called twice, and the second
            call counts.
        dumps: see `read_dumps`.

    Raises:
        ValueError: there is another number of calls, or of another operator.
    """
    cases = list(cases)
    if len(dumps) != 2 * len(cases):
        raise ValueError(
            f"{len(cases)} cases were called twice, but {len(dumps)} calls counted: "
            f"{Counter(function for function, _ in dumps)}"
        )
    counts = []
    for case, (function, instructions) in zip(cases, dumps[1::2], strict=True):
        if f"::{case['operator']}" not in function:
            raise ValueError(f"expected a call of {case['operator']}, counted was {function}")
        counts.append(Count(instructions=instructions, **case))
    return counts


def call_all(operators: Sequence[str] | None, batch: int, described: Path) -> None:
    """What runs under callgrind: calls every case twice, and says which they were."""
    import torch

    from anchornet_ext.benchmark import operators as suite
    from anchornet_ext.benchmark.harness import Options

    torch.set_num_threads(1)
    arguments = argparse.Namespace(operators=operators, caches=["warm"])
    cases = []
    for case in suite.cases(Options(batches=(batch,), arguments=arguments)):
        torch.manual_seed(0)
        settings = dict(case.settings)
        operator = str(settings.pop("operator"))
        del settings["caches"], settings["batch"]
        with case.mode():
            ours = case.build()[suite.OURS]
            ours()
            result: Any = ours()
        while not isinstance(result, torch.Tensor):
            result = result[0]
        cases.append(
            {
                "operator": operator,
                "case": ", ".join(map(str, settings.values())),
                "images": case.batch,
                "elements": result.numel(),
            }
        )
    about = {
        "torch": torch.__version__,
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
    }
    described.write_text(json.dumps({"about": about, "cases": cases}))


def measure(operators: Sequence[str] | None, batch: int) -> dict[str, Any]:
    """The file's content. Takes minutes: torch is imported 50 times as slowly.

    Raises:
        SystemExit: there is no valgrind, or the counted process failed.
    """
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise SystemExit("valgrind is not installed (on Debian: apt-get install valgrind)")
    from anchornet_ext import _extension

    version = subprocess.run([valgrind, "--version"], capture_output=True, text=True).stdout
    with tempfile.TemporaryDirectory() as folder:
        output, described = Path(folder) / "counts", Path(folder) / "cases.json"
        command = [valgrind, *callgrind_options(output), sys.executable, str(Path(__file__))]
        command += ["--called-by-valgrind", str(described), "--batch", str(batch)]
        if operators:
            command += ["--operators", *operators]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode != 0 or not described.exists():
            raise SystemExit(f"under valgrind the operators failed:\n{done.stderr[-4000:]}")
        said = json.loads(described.read_text())
        counts = counts_of(said["cases"], read_dumps(output))
    about = {
        **said["about"],
        "valgrind": version.strip(),
        "compiler": _extension.build_info()["compiler"],
        "batch": batch,
    }
    return {"format": FORMAT, **about, "counts": [asdict(count) for count in counts]}


def read(path: Path) -> dict[str, Any]:
    """A file that this script wrote.

    Raises:
        SystemExit: it is not there or is something else.
    """
    try:
        content = json.loads(path.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, expected {FORMAT}")
        content["counts"] = [asdict(Count(**count)) for count in content["counts"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path} is no file of instruction counts: {error!r}") from None
    return content


def table(new: Mapping[str, Any], old: Mapping[str, Any] | None = None) -> list[str]:
    """The counts, and where `old` has the same case its count and the ratio new over old."""
    rows = [Count(**count) for count in new["counts"]]
    before = {(c["operator"], c["case"]): c["instructions"] for c in (old or {}).get("counts", ())}
    width = max((len(row.case) for row in rows), default=0)
    about = ("torch", "instruction_set", "valgrind", "compiler", "batch")
    lines = [", ".join(f"{name.replace('_', ' ')} {new[name]}" for name in about)]
    if old is not None:
        lines += [f"before: {name} {old[name]}" for name in about if old[name] != new[name]]
    operator = None
    for row in rows:
        if row.operator != operator:
            operator = row.operator
            lines += ["", f"{operator:{width + 2}}{'an image':>12}{'an element':>12}"]
            if old is not None:
                lines[-1] += f"{'before':>12}{'new / old':>11}"
        line = f"  {row.case:{width}}{row.instructions / row.images:>12,.0f}"
        line += f"{row.instructions / max(1, row.elements):>12.2f}"
        if (was := before.get((row.operator, row.case))) is not None:
            line += f"{was / row.images:>12,.0f}{row.instructions / was:>11.3f}"
        lines.append(line)
    gone = before.keys() - {(row.operator, row.case) for row in rows}
    lines += [f"only before: {operator}, {case}" for operator, case in sorted(gone)]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--operators", nargs="+", metavar="NAME", help="those only")
    parser.add_argument("--batch", type=int, default=2, help="images in a call (default: 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts to this file")
    parser.add_argument("--compare", type=Path, metavar="OLD", help="with this earlier file")
    parser.add_argument("--show", type=Path, metavar="FILE", help="count nothing: show this file")
    parser.add_argument("--called-by-valgrind", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.batch < 1:
        parser.error(f"--batch must be at least 1, got {arguments.batch}")
    if arguments.called_by_valgrind:
        call_all(arguments.operators, arguments.batch, arguments.called_by_valgrind)
        return
    from anchornet_ext._files import write_whole
    from anchornet_ext.benchmark.operators import CASES

    for name in arguments.operators or ():
        if name not in CASES:
            parser.error(f"--operators: {name!r} is none of {', '.join(CASES)}")
    old = read(arguments.compare) if arguments.compare else None
    if arguments.show:
        new = read(arguments.show)
        old = old or new.get("before")  # two runs may share a file
    else:
        new = measure(arguments.operators, arguments.batch)
    if arguments.json:
        write_whole(arguments.json, (json.dumps(new, indent=1) + "\n").encode())
    print("\n".join(table(new, old)))


if __name__ == "__main__":
    main()
