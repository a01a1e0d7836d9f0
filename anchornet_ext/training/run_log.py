"""What a run says while it trains: progress on the terminal, log.txt, log.csv, TensorBoard."""

from __future__ import annotations

import csv
import io
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from anchornet_ext._files import lock

from .checkpoint import write_text


def format_duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class RunLog:
    """Progress and lines of one process.

    On a terminal a bar moves; elsewhere (a file, a pipe) there is at most one line every
    `interval` seconds. Only the main process says anything.

    Args:
        folder: where log.txt is appended to, by one process at a time; None: nowhere.
        enabled: whether this is the main process.
        interval: seconds between progress lines where there is no terminal.
        tensorboard: whether to write TensorBoard events into FOLDER/tensorboard.

    Raises:
        ImportError: TensorBoard is wanted and is not installed.
        ValueError: another process writes into the folder.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        enabled: bool = True,
        interval: float = 5.0,
        tensorboard: bool = False,
    ) -> None:
        self._enabled = enabled
        self._interval = interval
        self._console = Console(file=sys.stderr)
        self._file: TextIO | None = None
        self._folder = folder
        self._progress: Progress | None = None
        self._task: Any = None
        self._name = ""
        self._total = 0
        self._begun = 0.0
        self._last_line = 0.0
        self._writers: dict[str, Any] = {}
        self._said: set[str] = set()
        self._tensorboard = tensorboard and enabled
        if self._tensorboard:
            try:
                import torch.utils.tensorboard  # noqa: F401
            except ImportError as error:
                raise ImportError(
                    "--tensorboard needs tensorboard, which is not installed: "
                    "pip install tensorboard"
                ) from error
        if enabled and folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = open(  # noqa: SIM115
                folder / "log.txt", "a", encoding="utf-8", errors="backslashreplace"
            )
            try:
                lock(self._file, folder)
            except ValueError:
                self._file.close()
                raise

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Closes it; what failed is the file's last line.

        The terminal has it from whoever handles the error. (Whoever interrupts a run knows of it.)
        """
        try:
            if isinstance(error, Exception):
                with suppress(OSError):  # `error` is what to tell of
                    self._write(f"stopped: {error}")
        finally:
            self.close()

    def line(self, text: str) -> None:
        """One line on the terminal and in log.txt, with the time."""
        if not self._enabled:
            return
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        self._write(text)

    def _write(self, text: str) -> None:
        if self._file is None:
            return
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        try:
            self._file.write(f"{stamp} {text}\n")
            self._file.flush()
        except OSError as error:  # a full disk, which names no file
            raise type(error)(error.errno, error.strerror, self._file.name) from error

    def once(self, text: str) -> None:
        """The same, but only the first time for each text."""
        if text not in self._said:
            self._said.add(text)
            self.line(text)

    def begin(self, name: str, total: int) -> None:
        """A piece of work of `total` steps begins."""
        self.end()
        self._name, self._total = name, total
        self._begun = self._last_line = time.monotonic()
        if self._enabled and self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} {task.fields[status]}"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task(name, total=total, status="")

    def due(self) -> bool:
        """Whether `update` would show something now; computing a status may be expensive."""
        if not self._enabled:
            return False
        wait = 0.2 if self._progress is not None else self._interval
        return time.monotonic() - self._last_line >= wait

    def update(self, done: int, status: str = "") -> None:
        """`done` steps are over."""
        if not self.due():
            return
        self._last_line = now = time.monotonic()
        if self._progress is not None:
            self._progress.update(self._task, completed=done, status=status)
        elif done:
            left = (now - self._begun) / done * (self._total - done)
            text = f"{self._name} {done}/{self._total} {status} left {format_duration(left)}"
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def end(self) -> None:
        """The piece of work is over."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def scalars(self, stage: str, epoch: int, values: Mapping[str, float]) -> None:
        """Figures of an epoch for TensorBoard."""
        if not self._tensorboard or self._folder is None:
            return
        if stage not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            # After a kill, the epoch that is repeated must not be drawn twice.
            self._writers[stage] = SummaryWriter(
                str(self._folder / "tensorboard" / stage), purge_step=epoch
            )
        for name, value in values.items():
            self._writers[stage].add_scalar(name, value, epoch)
        self._writers[stage].flush()

    def close(self) -> None:
        """Closes the files."""
        self.end()
        for writer in self._writers.values():
            writer.close()
        if self._file is not None:
            with suppress(OSError):  # of a line that `line` has complained of
                self._file.close()
            self._file = None


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes figures, of an epoch each, say; the first row's keys are the columns."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
