"""The index against a dictionary, and its size."""

import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.tests.tiers_local.content import version_of
from forebay.tiers.local.index import (
    NOT_FOUND,
    EntryIndex,
    block_location,
    block_parts,
    block_slot,
    digest_of,
    first_keys,
    is_block,
    key_of,
    small_location,
    small_parts,
    unique_keys,
)

# Few first halves, so that chains are long, wrap around the end, and keys differ only in their second half.
FIRST = st.sampled_from([0, 1, 5, 1022, 1023, 1024, 2047, 2**64 - 1])
KEYS = st.tuples(FIRST, st.integers(0, 30))
STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "remove", "move", "many"]), KEYS, st.integers(1, 2**64 - 1)), max_size=150
)


@given(STEPS)
@settings(max_examples=40, deadline=None)
def test_it_is_a_dictionary(steps: list[tuple[str, tuple[int, int], int]]) -> None:
    index = EntryIndex()
    model: dict[tuple[int, int], int] = {}
    rows: dict[tuple[int, int], int] = {}
    for action, key, location in steps:
        if action == "add" and key not in model:
            rows[key] = index.new_row()
            assert index.find(*key) == NOT_FOUND
            index.publish(rows[key], *key, location)
            model[key] = location
        elif action == "remove" and key in model:
            index.unpublish(rows[key])
            assert index.find(*key) == NOT_FOUND
            index.release(rows.pop(key))
            del model[key]
        elif action == "move" and key in model:
            index.relocate(rows[key], location)
            model[key] = location
        elif action == "many":
            new = [(key[0], second) for second in range(100, 600) if (key[0], second) not in model]
            columns = [np.array(column, np.uint64) for column in zip(*new, strict=True)] if new else []
            if new:
                added = index.add_many(columns[0], columns[1], np.full(len(new), location, np.uint64))
                rows.update(zip(new, added.tolist(), strict=True))
                model.update(dict.fromkeys(new, location))
    assert len(index) == len(model)
    assert len(set(rows.values())) == len(rows)
    for key, location in model.items():
        assert index.find(*key) == rows[key]
        assert index.location(rows[key]) == location
    found = {
        (int(first), int(second)): int(location)
        for piece in index.columns()
        for first, second, location in zip(*piece, strict=True)
    }
    assert found == model
    index.validate()


def test_many_adds_and_removes_keep_the_table_small_and_right() -> None:
    index = EntryIndex()
    rows = {}
    for i in range(60_000):
        digest = version_of(f"k{i}", 1).digest
        row = index.new_row()
        index.publish(row, *key_of(digest, 0), small_location(1, 64 * i, 1))
        rows[i] = (row, digest)
        if i >= 5000:
            old, old_digest = rows.pop(i - 5000)
            index.unpublish(old)
            index.release(old)
            assert index.find(*key_of(old_digest, 0)) == NOT_FOUND
    assert len(index) == 5000
    index.validate()
    for row, digest in rows.values():
        assert index.find(*key_of(digest, 0)) == row
    assert len(index._slots) <= 32768
    assert index._rows <= 5001, "rows are used again"


def test_an_entry_takes_at_most_40_bytes() -> None:
    count = 300_000
    first = np.random.default_rng(1).integers(1, 2**63, count, np.uint64)
    tracemalloc.start()
    index = EntryIndex()
    index.add_many(first, first, first)
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken / count <= 40
    assert len(index) == count


@given(st.integers(0, (1 << 20) - 1), st.integers(0, (1 << 22) - 1), st.integers(1, 1 << 20))
def test_small_locations_come_back(slab: int, unit: int, size: int) -> None:
    location = small_location(slab, unit * 64, size)
    assert not is_block(location)
    assert small_parts(location) == (slab, unit * 64, size)


@given(st.integers(0, (1 << 31) - 1), st.integers(0, (1 << 24) - 1), st.integers(0, 128))
def test_block_locations_come_back(block: int, slot: int, chunks: int) -> None:
    location = block_location(block, slot, chunks)
    assert is_block(location)
    assert block_parts(location) == (block, chunks)
    assert block_slot(location) == slot


@given(st.binary(min_size=16, max_size=16), st.integers(0, (1 << 31) - 1))
def test_keys_lead_back_to_digests(digest: bytes, block: int) -> None:
    first, second = key_of(digest, block)
    assert digest_of(first, second, block) == digest
    plain = np.array([key_of(digest, 0)[0]], np.uint64)
    assert first_keys(plain, np.array([block], np.uint64)).tolist() == [first]


def test_twins_are_found() -> None:
    first, second = np.array([5, 1, 5, 5], np.uint64), np.array([7, 1, 8, 7], np.uint64)
    kept = unique_keys(first, second)
    assert kept is not None
    assert kept.tolist() == [0, 1, 2]
    assert unique_keys(first[:2], second[:2]) is None
