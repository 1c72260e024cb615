"""Every parser of bytes from outside, fed with anything: it answers or refuses in its own words."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.corpus import spoil
from tests.fuzz.targets import TARGETS, Target

pytestmark = pytest.mark.unit

#: These take nearly anything, so that spoilt seeds may all be right.
_TOLERANT = {"extensions", "opus"}


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_is_right_is_taken(target: Target) -> None:
    assert any(target.feed(seed) for seed in target.seeds)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
@given(data=st.binary(max_size=600))
@settings(max_examples=60, deadline=None)
def test_any_bytes(target: Target, data: bytes) -> None:
    target.feed(data)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_right_bytes_that_were_spoilt(target: Target) -> None:
    rng = random.Random(11)
    refused = 0
    for k in range(200):
        refused += not target.feed(spoil(target.seeds[k % len(target.seeds)], rng))
    assert target.expected == () or target.name in _TOLERANT or refused > 0
