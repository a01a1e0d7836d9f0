"""Files that are written whole or not at all, and whether they can be before work is done."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO

#: Bytes that a place must take for there to be any use in working towards a result there.
_LEAST_ROOM = 1 << 16


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, which takes its place when the block ends without an error.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    temporary = None
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb+") as written:
            os.fsync(written.fileno())  # or a power cut could leave the new name without the data
        # mkstemp lets only the owner read; a saved file follows the umask like any other.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        # A full disk names no file, and what is beside the path nobody has heard of.
        unknown = error.filename is None or Path(error.filename).name.startswith(f".{path.name}.")
        if error.errno is None or not unknown:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def open_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write that takes its place at `path` when the block ends, and not if it fails.

    It is written beside its place and moved there, so that no reader sees a part of it.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        yield file


def write_whole(path: Path, content: bytes) -> None:
    """Writes `content` to `path`, whole or not at all (see `open_whole`)."""
    with open_whole(path) as file:
        file.write(content)


def in_words(error: Exception) -> str:
    """What to tell of an error; of one of the system's, which file and what without its number."""
    if isinstance(error, OSError) and error.strerror:
        # No file is named where what is printed goes to one on a full disk.
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error)


def require_folder(folder: Path, flag: str) -> None:
    """Makes sure that results can be written into a folder, which need not be there yet.

    Nothing is worse than to work for hours and then have nowhere to write. So something is written,
    where the folder is or will be, and taken away again.

    Args:
        folder: it, or where it is to be made.
        flag: the argument that it comes from, for the message.

    Raises:
        ValueError: it, or what should hold it, is no folder.
        OSError: nothing can be written there, or hardly anything.
    """
    place = folder
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        inside = "" if place == folder else f": {str(place)!r} is not one"
        raise ValueError(f"{flag} {str(folder)!r} is not a folder{inside}")
    _try_to_write(place, f"{flag} {str(folder)!r}")


def require_file(path: Path, flag: str) -> None:
    """Makes sure that a result can be written to a file, which may be there already.

    Raises:
        ValueError: it is a folder or a device, or there is no folder to hold it.
        OSError: as `require_folder`.
    """
    if path.is_dir():
        raise ValueError(f"{flag} {str(path)!r} is a folder")
    if path.exists() and not path.is_file():  # a device, say; it would be replaced
        raise ValueError(f"{flag} {str(path)!r} is no ordinary file")
    if not path.parent.is_dir():
        raise ValueError(f"{flag} {str(path)!r}: there is no folder {str(path.parent)!r}")
    _try_to_write(path.parent, f"{flag} {str(path)!r}")


def lock(file: IO[Any], folder: Path) -> None:
    """Keeps other processes that lock the same file from going on, until this one closes it.

    The system lets go of the lock when the process ends, however it ends. Where it knows no such
    locks (some network drives) nothing is kept from anybody.

    Args:
        file: open for writing; kept open for as long as `folder` is written into.
        folder: what others are to keep out of, for the message.

    Raises:
        ValueError: another process has locked the file.
    """
    if sys.platform == "win32":
        return
    import fcntl

    try:
        # Not flock: processes that load photos would inherit it, and outlive this one for a while.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ValueError(f"another process is writing into {str(folder)!r}") from error


def _try_to_write(folder: Path, what: str) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_LEAST_ROOM))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(
            f"{what}: nothing can be written into {str(folder)!r} ({error.strerror})"
        ) from error
