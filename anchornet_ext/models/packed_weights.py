"""What all layers have that keep their weights in another order as well."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

T = TypeVar("T", bound="KeepsPacked")


class KeepsPacked(nn.Module):
    """A module that keeps, under `_known`, its weights as a kernel reads them.

    They belong to this very module: copies, and what is loaded from a file, pack their own.
    """

    def forget_packed(self) -> None:
        """Frees the packed weights; they are made again when they are wanted."""
        self.__dict__.pop("_known", None)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_known"}

    def _apply(self: T, fn: Any, recurse: bool = True) -> T:
        self.forget_packed()  # `fn` may write into the parameters' data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self
