"""Arrays in a .npz file: written piece by piece and whole or not at all, read with clear errors."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchornet_ext._files import open_whole

Array = NDArray[Any]


@dataclass(frozen=True)
class Pieces:
    """An array that is written in pieces, which lie one after the other in C order.

    Attributes:
        shape, dtype: of the whole.
        pieces: the arrays that fill it; each is taken when it is written and not before.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pieces: Iterable[Array]

    @classmethod
    def of(cls, array: Array) -> Pieces:
        """An array in one piece."""
        return cls(array.shape, array.dtype, [array])


def write_npz(path: str | PathLike[str], arrays: Mapping[str, Pieces]) -> None:
    """Writes `arrays` so that `numpy.load` reads them; memory holds one piece at a time.

    Raises:
        ValueError: the pieces of an array do not fill it exactly, or differ in dtype. Nothing is
            left at `path` then.
    """
    path = Path(path)
    with open_whole(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            # Bits of floats look like noise: compressing them costs seconds and saves little.
            floating = np.issubdtype(array.dtype, np.floating)
            member.compress_type = zipfile.ZIP_STORED if floating else zipfile.ZIP_DEFLATED
            with archive.open(member, "w", force_zip64=True) as stream:
                header = {
                    "descr": np.lib.format.dtype_to_descr(array.dtype),
                    "fortran_order": False,
                    "shape": array.shape,
                }
                np.lib.format.write_array_header_1_0(stream, header)
                written = 0
                for piece in array.pieces:
                    if piece.dtype != array.dtype:
                        raise ValueError(f"{name} is {array.dtype}, a piece is {piece.dtype}")
                    stream.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
                    written += piece.size
            if written != math.prod(array.shape):
                raise ValueError(f"{name} has the shape {array.shape}, its pieces {written} values")


def read_npz(
    path: str | PathLike[str], wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Array]:
    """The arrays of a .npz file that are wanted, each read straight into its place in memory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a .npz file, it is damaged, or it holds Python objects.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a .npz file")
    if not zipfile.is_zipfile(path):
        path.open("rb").close()  # says so if it is not there or may not be read
        raise ValueError(f"{path} is not a .npz file, or it was cut short")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if wanted(name)}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError, MemoryError) as error:
        raise ValueError(f"{path} is damaged or holds more than arrays: {error}") from error
    except (NotImplementedError, KeyError, SyntaxError, TypeError, RuntimeError) as error:
        # zipfile's for methods and flags that it does not know, NumPy's for a broken header
        raise ValueError(f"{path} is damaged: {error}") from error
