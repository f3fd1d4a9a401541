"""The columns of a folder, and what becomes of keys that no path can name."""

import hashlib
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.cache.namespace import IS_ABSENT, IS_FOLDER, FolderListing
from forebay.cache.namespace.listing_builder import ListingBuilder
from forebay.cache.namespace.names import NameColumn
from forebay.tiers.understore import ListPage


def etag_of(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def page(objects: dict[str, tuple[int, str]], prefixes: list[str] | None = None) -> ListPage:
    keys = list(objects)
    return ListPage(
        keys, [objects[k][0] for k in keys], [objects[k][1] for k in keys], [7] * len(keys), prefixes or [], None
    )


def listing(objects: dict[str, tuple[int, str]], prefixes: list[str] | None = None, prefix: str = "") -> FolderListing:
    builder = ListingBuilder(prefix)
    builder.add(page(objects, prefixes))
    return builder.finish()


def names_of(found: FolderListing) -> tuple[list[bytes], list[bytes]]:
    return list(found.files), list(found.folders)


@settings(max_examples=50, deadline=None)
@given(st.sets(st.binary(max_size=6), max_size=40), st.binary(max_size=6))
def test_a_column_of_names_finds_exactly_what_it_has(names: set[bytes], other: bytes) -> None:
    ordered = sorted(names)
    column = NameColumn.of(ordered)
    assert list(column) == [column[row] for row in range(len(column))] == ordered
    for row, name in enumerate(ordered):
        assert column.find(name) == row
    assert (column.find(other) >= 0) == (other in names)


def test_files_and_folders_are_found() -> None:
    found = listing({"p/a": (1, etag_of("a")), "p/c": (3, "odd-etag")}, ["p/b/", "p/d/"], "p/")
    assert names_of(found) == ([b"a", b"c"], [b"b", b"d"])
    assert found.file(found.find(b"a")) == (b"a", False, 1, etag_of("a"), 7)
    assert found.file(found.find(b"c")) == (b"c", False, 3, "odd-etag", 7)
    assert found.find(b"b") == IS_FOLDER
    assert found.find(b"x") == found.find(b"") == IS_ABSENT


@pytest.mark.parametrize(
    "etag", ["", "x", etag_of("x").upper(), etag_of("x") + "-3", etag_of("x")[:-1], "é" * 32, " " * 32, "0" * 32]
)
def test_etags_come_back_as_they_were(etag: str) -> None:
    found = listing({"a": (1, etag_of("a")), "b": (2, etag), "c": (3, etag_of("c"))})
    assert [found.etag(row) for row in range(3)] == [etag_of("a"), etag, etag_of("c")]


def test_unpathlike_keys_are_reported_and_hide_nothing() -> None:
    long = "n" * 256
    found = listing(
        {
            "p/": (0, etag_of("")),
            "p/.": (1, "e1"),
            "p/..": (1, "e2"),
            "p/a\0b": (1, "e3"),
            "p/a": (5, "e4"),
            "p/" + long: (1, "e5"),
            "p/ok": (6, "e6"),
        },
        ["p//", "p/../", "p/a/", "p/b\0c/", "p/sub/"],
        "p/",
    )
    assert names_of(found) == ([b"ok"], [b"a", b"sub"])
    assert found.skipped.counts == {
        "an empty name in the path": 1,
        "a name that is . or ..": 3,
        "a name with a NUL byte": 2,
        "a name above 255 bytes": 1,
        "a folder of the same name": 1,
    }
    assert len(found.skipped.examples) == 5
    assert found.etag(found.find(b"ok")) == "e6"


def test_a_marker_with_bytes_is_reported() -> None:
    found = listing({"p/": (9, "e")}, prefix="p/")
    assert len(found) == 0
    assert found.skipped.counts == {"bytes under a key that ends in a slash": 1}


def test_names_that_are_no_utf8_and_names_with_newlines_are_plain_names() -> None:
    found = listing({"a\udcff": (1, "e"), "b\nc": (2, "f")})
    assert names_of(found) == ([b"a\xff", b"b\nc"], [])


def test_a_listing_out_of_order_is_sorted() -> None:
    builder = ListingBuilder("")
    builder.add(page({"c": (3, "c"), "a": (1, etag_of("a"))}, ["z/", "y/"]))
    builder.add(page({"b": (2, "b"), "c": (4, "c2")}, ["y/"]))
    found = builder.finish()
    assert names_of(found) == ([b"a", b"b", b"c"], [b"y", b"z"])
    assert [found.file(row)[2:4] for row in range(3)] == [(1, etag_of("a")), (2, "b"), (4, "c2")]


_versions = st.dictionaries(
    st.sampled_from("abcdefgh"),
    st.tuples(st.integers(0, 2), st.sampled_from([etag_of("1"), etag_of("2"), "odd", "x-2"])),
)


@settings(max_examples=60, deadline=None)
@given(_versions, _versions)
def test_rows_are_carried_over_exactly_where_name_and_version_are_equal(
    before: dict[str, tuple[int, str]], after: dict[str, tuple[int, str]]
) -> None:
    old = listing(dict(sorted(before.items())))
    new = listing(dict(sorted(after.items())))
    rows = old.rows_in(new)
    for row, name in enumerate(sorted(before)):
        expected = sorted(after).index(name) if after.get(name) == before[name] else -1
        assert rows[row] == expected
    assert old.is_same(new) == (before == after)


def test_a_large_folder_is_small_in_memory_and_quick() -> None:
    """A fifth of a million files: 60 bytes each, and a name among them is found in microseconds."""
    count = 200_000
    builder = ListingBuilder("train/")
    etags = [f"{number:032x}" for number in range(1000)]
    started = time.process_time()
    for first in range(0, count, 1000):
        keys = [f"train/image-{number:08d}.jpg" for number in range(first, first + 1000)]
        builder.add(ListPage(keys, [110_000] * 1000, etags, [1] * 1000, [], None))
    found = builder.finish()
    built_s = time.process_time() - started
    assert found.size_bytes < 62 * count
    started = time.process_time()
    for number in range(0, count, 100):
        assert found.find(b"image-%08d.jpg" % number) == number
    find_s = (time.process_time() - started) / (count / 100)
    rows = found.rows_in(found)
    assert np.array_equal(rows, np.arange(count))
    # Generous, since machines are busy: 3 us for the build of each and 5 us for each search, when quiet.
    assert built_s / count < 30e-6
    assert find_s < 100e-6
