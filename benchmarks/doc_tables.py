"""Fills the tables of the pages with what `anchornet bench` measured.

    python benchmarks/doc_tables.py [--check] README.md docs/*.md

A table stands between two comments, the first of which says which one it is:

    <!-- table exits threads=1 batch=32 -->
    ...
    <!-- end of table -->

What was there is replaced by what the files in benchmarks/results say (`machine=NAME`: those in the
folder NAME there), so that no figure of a table is copied by hand. With --check nothing is written,
and the exit status is 1 if a page differs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import tables_of_operators
import tables_of_sar
import tables_of_speed
from measured import Measured

from anchornet_ext._files import write_whole

RESULTS = Path(__file__).parent / "results"
TABLE = re.compile(r"(<!-- table (?P<words>[^>]*?) -->\n).*?(\n<!-- end of table -->)", re.DOTALL)

#: Name of a table -> its lines, from what was measured and the settings behind its name.
Table = Callable[..., Iterator[str]]
TABLES: dict[str, Table] = {
    **tables_of_speed.TABLES,
    **tables_of_operators.TABLES,
    **tables_of_sar.TABLES,
}


def filled(text: str, measured: Measured, elsewhere: Mapping[str, Measured] = {}) -> str:
    """A page with its tables made anew.

    Args:
        text: the page.
        measured: what tables are of that name no machine.
        elsewhere: machine -> what was measured there.

    Raises:
        ValueError: there is no such table or machine, or a comment that begins one and no end.
        LookupError: what a table needs was not measured.
    """

    def table(match: re.Match[str]) -> str:
        name, *settings = match["words"].split()
        if name not in TABLES:
            raise ValueError(f"there is no table {name!r}, but {', '.join(TABLES)}")
        wanted = dict(word.split("=", 1) for word in settings)
        machine = wanted.pop("machine", None)
        if machine is not None and machine not in elsewhere:
            raise ValueError(f"there is no machine {machine!r}, but {', '.join(elsewhere)}")
        source = measured if machine is None else elsewhere[machine]
        lines = TABLES[name](source, **wanted)
        return match[1] + "\n".join(lines) + match[3]

    begun = text.count("<!-- table ")
    text, found = TABLE.subn(table, text)
    if found != begun:
        raise ValueError(f"{begun} tables begin, but {found} end")
    return text


def main(words: list[str]) -> int:
    paths = [Path(word) for word in words if word != "--check"]
    if not paths or any(str(path).startswith("--") for path in paths):
        print(__doc__, file=sys.stderr)
        return 2
    measured = _measured_in(RESULTS)
    elsewhere = {
        folder.name: _measured_in(folder) for folder in RESULTS.iterdir() if folder.is_dir()
    }
    differ = False
    for path in paths:
        before = path.read_text(encoding="utf-8")
        after = filled(before, measured, elsewhere)
        if after == before:
            continue
        if "--check" in words:
            print(f"{path}: its tables are not those of {RESULTS.name}", file=sys.stderr)
            differ = True
        else:
            write_whole(path, after.encode())
            print(path)
    return int(differ)


def _measured_in(folder: Path) -> Measured:
    return Measured(sorted(folder.glob("*.json")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
