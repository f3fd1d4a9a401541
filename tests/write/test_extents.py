"""Extents against a plain set of byte positions."""

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.cache.write.extents import Extents

SIZE = 60
STEP = st.one_of(
    st.tuples(st.just("add"), st.integers(0, SIZE), st.integers(0, SIZE)),
    st.tuples(st.just("cut"), st.integers(0, SIZE), st.just(0)),
)


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(STEP, max_size=20), offset=st.integers(0, SIZE), size=st.integers(0, SIZE))
def test_extents_match_a_set(steps: list[tuple[str, int, int]], offset: int, size: int) -> None:
    extents, model = Extents(), set[int]()
    for action, first, second in steps:
        if action == "add":
            extents.add(first, second)
            model |= set(range(first, second))
        else:
            extents.cut(first)
            model = {position for position in model if position < first}
    held = {position for start, end in extents for position in range(start, end)}
    assert held == model
    flat = extents.flat()
    assert list(flat) == sorted(set(flat)), "intervals are sorted, disjoint, and never touch"
    assert extents.total_bytes == len(model) == Extents.flat_bytes(flat)
    assert extents.end == max(model, default=-1) + 1
    assert Extents(flat).flat() == flat == extents.copy().flat()
    pieces = list(extents.pieces(offset, size))
    rebuilt = [(position, inside) for start, length, inside in pieces for position in range(start, start + length)]
    assert rebuilt == [(position, position in model) for position in range(offset, offset + size)]
    wanted = set(range(offset, offset + size))
    assert extents.covers(offset, size) == (wanted <= model)
    assert extents.touches(offset, size) == bool(wanted & model)
    assert extents.missing(offset, size) == len(wanted - model)
    for start, length in extents.gaps():
        assert not extents.touches(start, length)
