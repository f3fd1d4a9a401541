"""Pages: what goes in comes out, the same entries give the same name, and damage is noticed."""

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.errors import PageCorrupt
from forebay.snapshots.columns import ColumnFile, ColumnsCorrupt, encode_columns
from forebay.snapshots.entries import Entry, batch_of, entries_of
from forebay.snapshots.labels import MAX_COLUMNS, assemble, label_text, residual_values, shred
from forebay.snapshots.pages import LEAF, PART, Page, encode_page, page_columns, page_id, seal
from forebay.snapshots.roots import PageRef, Zones, decode_refs, encode_refs, page_ref
from forebay.tests.snapshots.strategies import labels, sorted_entries
from forebay.tiers.version import ObjectVersion


def page_of(entries: list[Entry]) -> Page:
    data = encode_page(batch_of(entries))
    return Page.open(page_id(data), seal(data))


def entry(path: str, labels: Any = None, key: str | None = None, size: int = 1) -> Entry:
    return Entry(path, ObjectVersion("s3://b", path if key is None else key, "e", size), labels=labels)


@settings(max_examples=40, deadline=None)
@given(sorted_entries())
def test_entries_survive_a_page(entries: list[Entry]) -> None:
    page = page_of(entries)
    assert entries_of(page.batch()) == entries
    again = encode_page(page.batch())
    assert page_id(again) == page.id


@settings(max_examples=40, deadline=None)
@given(st.lists(labels, min_size=1, max_size=30))
def test_any_labels_survive(values: list[Any]) -> None:
    texts = [label_text(value) for value in values]
    assert assemble(shred(pa.array(texts, pa.string())), len(texts)).to_pylist() == texts


def test_page_bytes_do_not_depend_on_how_the_batch_was_made() -> None:
    entries = [entry(f"{i:04}", {"a": i % 3, "b": str(i)}) for i in range(100)]
    whole = batch_of(entries)
    sliced = batch_of([entry("before"), *entries, entry("zafter")]).slice(1, 100)
    taken = whole.take(pa.array(range(100)))
    assert encode_page(whole) == encode_page(sliced) == encode_page(taken)


def test_a_page_is_small() -> None:
    """Ten thousand entries with an MD5 as etag: the digests, and little else."""
    import hashlib

    entries = [
        Entry(
            f"train/class-{i // 1000:03}/image-{i:07}.jpg",
            ObjectVersion("s3://b", f"data/train/class-{i // 1000:03}/image-{i:07}.jpg", hashlib.md5(b"%d" % i).hexdigest(), 100_000 + i % 977),
            labels={"class": f"class-{i // 1000:03}"},
        )
        for i in range(10_000)
    ]  # fmt: skip
    assert len(seal(encode_page(batch_of(entries)))) < 32 * len(entries)


def test_typed_columns_hold_scalars_and_the_residual_the_rest() -> None:
    page = page_of([entry("a", {"x": 1, "l": [1]}), entry("b", {"x": "one", "d": {"y": True}}), entry("c")])
    ints, texts, flags = (
        page.label_column(("x",), "i"),
        page.label_column(("x",), "s"),
        page.label_column(("d", "y"), "b"),
    )
    assert ints is not None
    assert texts is not None
    assert flags is not None
    assert (ints.to_pylist(), texts.to_pylist(), flags.to_pylist()) == (
        [1, None, None],
        [None, "one", None],
        [None, True, None],
    )
    assert page.label_column(("x",), "f") is None
    assert page.residual is not None
    assert page.residual.to_pylist() == ['{"l":[1]}', None, None]
    assert residual_values(page.residual, ("l",)) == [[1], None, None]


def test_more_label_keys_than_columns_are_kept() -> None:
    values = [{f"k{i}": i for i in range(start, start + 40)} for start in range(0, 120, 10)]
    page = page_of([entry(f"{i:02}", value) for i, value in enumerate(values)])
    assert len(page.label_columns) == MAX_COLUMNS
    assert [e.labels for e in entries_of(page.batch())] == values


@pytest.mark.parametrize("position", [0, 3, 8, 40, -1])
def test_a_flipped_byte_names_the_page(position: int) -> None:
    data = encode_page(batch_of([entry(f"{i:03}", {"c": i}) for i in range(50)]))
    sealed = bytearray(seal(data))
    sealed[position] ^= 0x41
    with pytest.raises(PageCorrupt, match=page_id(data).hex()):
        Page.open(page_id(data), bytes(sealed))


def test_another_page_under_the_name_is_noticed() -> None:
    one, two = (encode_page(batch_of([entry(p)])) for p in "ab")
    with pytest.raises(PageCorrupt, match="do not match its name"):
        Page.open(page_id(one), seal(two))
    with pytest.raises(PageCorrupt, match="root part"):
        decode_refs(page_id(one), seal(one), PART)


@pytest.mark.parametrize("size", range(0, 60, 7))
def test_truncated_columns_are_refused(size: int) -> None:
    data = encode_columns(LEAF, 3, {"a": pa.array(["x", "y", None]), "b": pa.array([1, 2, 1 << 40])})
    with pytest.raises(ColumnsCorrupt):
        ColumnFile(data[:size])


def test_a_newer_format_is_named() -> None:
    data = bytearray(encode_columns(LEAF, 1, {"a": pa.array(["x"])}))
    data[4] = 9
    with pytest.raises(ColumnsCorrupt, match="format 9"):
        ColumnFile(bytes(data))


@pytest.mark.parametrize(
    "values",
    [
        [0, 255],
        [-(1 << 63), (1 << 63) - 1],
        [5, 5, 5],
        [None, 7, None],
        [1 << 40, (1 << 40) + 65_535],
    ],
)
def test_whole_numbers_survive(values: list[int | None]) -> None:
    data = encode_columns(LEAF, len(values), {"n": pa.array(values, pa.int64())})
    assert ColumnFile(data).column("n", pa.int64()).to_pylist() == values


def test_refs_survive_with_their_zones() -> None:
    page = page_of([entry("a", {"c": "x", "n": 3}, size=5), entry("b", {"c": "y", "n": 9}, size=50)])
    ref = page_ref(page.id, page_columns(page.batch()))
    assert (ref.first, ref.last, ref.count, ref.size_bytes) == ("a", "b", 2, 55)
    assert ref.zones == Zones(5, 50, {'labels["c"]': ["x", "y"]}, {'labeli["n"]': (3, 9)}, True)
    data = encode_refs(PART, [ref, PageRef("c", "d", b"\1" * 32, 1, 2)])
    assert decode_refs(page_id(data), seal(data), PART) == [ref, PageRef("c", "d", b"\1" * 32, 1, 2)]
