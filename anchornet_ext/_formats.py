"""Versions of the files that this package writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def require_version(content: Mapping[str, Any], newest: int, what: str) -> None:
    """Makes sure that the "format_version" of a file is one that can be read.

    Args:
        content: of the file.
        newest: the latest version that this package knows.
        what: the file, for the message.

    Raises:
        ValueError: it is no version, or a newer one.
    """
    version = content.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(f"{what} has the format version {version!r}")
    if version > newest:
        raise ValueError(
            f"{what} has format version {version}, this anchornet_ext reads up to {newest}: "
            "update the package"
        )
