"""How often something is called."""

from __future__ import annotations

from typing import Any

import pytest


def count_calls(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[int]:
    """Grows with every call of the function `name` of `module`, which works as before."""
    made: list[int] = []
    right = getattr(module, name)

    def counted(*arguments: Any) -> Any:
        made.append(len(made))
        return right(*arguments)

    monkeypatch.setattr(module, name, counted)
    return made
