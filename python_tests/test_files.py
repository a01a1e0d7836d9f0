"""Files that are written whole or not at all, and places that are looked at before work is done."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from anchornet_ext._files import require_file, require_folder, write_whole
from anchornet_ext.training.checkpoint import save_state, save_weights, write_json
from anchornet_ext.training.run_log import RunLog

#: As much as hardly anything fits into.
ROOM = 4096


@contextmanager
def no_room() -> Iterator[None]:
    """No file may become larger than `ROOM`, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS: dict[str, Callable[[Path], None]] = {
    "whole": lambda path: write_whole(path, bytes(2 * ROOM)),
    "JSON": lambda path: write_json(path, {"a": "b" * 2 * ROOM}),
    "weights": lambda path: save_weights(path, {"a": torch.zeros(ROOM)}, {}),
    "state": lambda path: save_state(path, {"a": torch.zeros(ROOM)}),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_what_does_not_fit_leaves_everything_as_it_was(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "result"
    path.write_text("before")
    with no_room(), pytest.raises(OSError, match="result"):
        write(path)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [
        ("result", "before")
    ]
    write(path)
    assert path.stat().st_size > ROOM


def test_an_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    from anchornet_ext._files import open_whole

    with pytest.raises(FileNotFoundError, match="input"), open_whole(tmp_path / "result"):
        (tmp_path / "input").read_bytes()
    assert not any(tmp_path.iterdir())


def test_a_place_without_room_is_refused(tmp_path: Path) -> None:
    require_folder(tmp_path / "not" / "there" / "yet", "--out")
    with no_room(), pytest.raises(OSError, match=r"--out '.*new': nothing can be written into"):
        require_folder(tmp_path / "new", "--out")
    with no_room(), pytest.raises(OSError, match=r"--json '.*new\.json': nothing can be"):
        require_file(tmp_path / "new.json", "--json")
    assert not any(tmp_path.iterdir())


def test_places_that_cannot_be_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for place in ("file", "link"):
        with pytest.raises(ValueError, match=rf"--out '.*{place}' is not a folder"):
            require_folder(tmp_path / place, "--out")
        with pytest.raises(ValueError, match=rf"'.*deep' is not a folder: '.*{place}' is not one"):
            require_folder(tmp_path / place / "deep", "--out")
    with pytest.raises(ValueError, match=r"--out '.*' is a folder"):
        require_file(tmp_path, "--out")
    with pytest.raises(ValueError, match=r"there is no folder '.*nowhere'"):
        require_file(tmp_path / "nowhere" / "policy.json", "--out")
    assert (tmp_path / "file").read_text() == "x"


def test_a_log_that_cannot_go_on_does_not_hide_why(tmp_path: Path) -> None:
    with no_room():
        with pytest.raises(OSError, match=r"log\.txt"), RunLog(tmp_path) as log:
            log.line("x" * 2 * ROOM)
        with pytest.raises(ValueError, match="the reason"), RunLog(tmp_path):
            raise ValueError("the reason" + "y" * 2 * ROOM)
