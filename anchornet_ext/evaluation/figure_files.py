"""The figures of a page: in both schemes there, and as files beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from anchornet_ext._files import write_whole
from anchornet_ext.evaluation import page, theme
from anchornet_ext.evaluation.theme import DARK, LIGHT, Theme, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FigureFiles:
    """Puts figures into a folder, which is made if need be, and into a page.

    Args:
        names: every name that a figure may have there, now or at another time, for `glob`.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._names = names
        self._written: set[str] = set()

    def figure(
        self, name: str, draw: Callable[[Theme], Figure], words: str, caption: str = ""
    ) -> str:
        """Draws in both schemes, writes the light one, and returns the HTML of both."""
        light, dark = png(draw(LIGHT)), png(draw(DARK))
        self._write(name, light)
        with Image.open(BytesIO(light)) as picture:
            width, height = picture.size
        scale = theme.SCREEN_DPI / theme.PNG_DPI
        size = round(width * scale), round(height * scale)
        return page.figure(light, dark, size, words, caption)

    def sheet(self, name: str, picture: Image.Image) -> None:
        """Writes a picture that is not in the page as it is."""
        buffer = BytesIO()
        picture.save(buffer, format="PNG")
        self._write(name, buffer.getvalue())

    def remove_others(self) -> None:
        """Removes figures of earlier pages that this one does not have."""
        for name in self._names:
            for path in self._folder.glob(f"{name}.png"):
                if path.name not in self._written:
                    path.unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> None:
        file = f"{name}.png"
        write_whole(self._folder / file, content)
        self._written.add(file)
