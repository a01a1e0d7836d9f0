"""Amounts as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchornet_ext.policy.quantities import macs, short


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7.4e7, "74M"),
        (1.25e9, "1.25G"),
        (1000, "1k"),
        (999.9999999, "1k"),
        (999, "999"),
        (0.5, "0.5"),
        (0, "0"),
        (4_089_184_256, "4.08918G"),
    ],
)
def test_an_amount_is_shown_as_it_would_be_typed(value, text):
    assert short(value) == text


@given(st.floats(1e-3, 1e14))
def test_what_is_shown_can_be_typed(value):
    assert macs(short(value)) == pytest.approx(value, rel=1e-5)
