"""The drawing of histories."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.commands.snapshot_graph import draw


def drawn(history: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    return [f"{line.graph} {line.commit}" if line.commit else line.graph for line in draw(history)]


@pytest.mark.parametrize(
    ("history", "lines"),
    [
        ([("b", "a"), ("a", "")], ["* b", "* a"]),
        ([("d", "cb"), ("c", "a"), ("b", "a"), ("a", "")], ["* d", "|\\", "* | c", "| * b", "|/", "* a"]),
        ([("x", "a"), ("y", "a"), ("z", "a"), ("a", "")], ["* x", "| * y", "| | * z", "|_|/", "|/", "* a"]),
        ([("p", "o"), ("q", "r"), ("o", ""), ("r", "")], ["* p", "| * q", "* | o", " /", "* r"]),
    ],
)  # fmt: skip
def test_known_shapes(history: Sequence[tuple[str, Sequence[str]]], lines: list[str]) -> None:
    assert [line.rstrip() for line in drawn(history)] == lines


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sets(st.integers(1, 6), max_size=3), max_size=25))
def test_every_commit_is_drawn_once_and_in_order(ages: list[set[int]]) -> None:
    count = len(ages)
    history = [(n, [n + age for age in sorted(ages[n]) if n + age < count]) for n in range(count)]
    lines = list(draw(history))
    assert [line.commit for line in lines if line.commit is not None] == list(range(count))
    for line in lines:
        assert ("*" in line.graph) == (line.commit is not None)
        assert set(line.graph) <= set("*|/\\_ ")
