"""Versions from listings, label changes by hand, and what a commit records of its command line."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from forebay.errors import ManifestError, UsageError
from forebay.snapshots import (
    Entry,
    LabelChange,
    ManifestOptions,
    Repository,
    Selection,
    batch_of,
    blocking,
    command_line,
    entries_of,
    label_place,
    open_repository,
)
from forebay.snapshots.entries import concat_batches
from forebay.tiers.understore import ListPage
from forebay.tiers.version import ObjectVersion


@pytest.fixture
def repo(tmp_path: Path) -> Iterator[Repository]:
    with open_repository(f"sqlite:///{tmp_path}/meta.db") as repository:
        repository.create_dataset("d")
        yield repository


def page(*keys: str, more: bool = False) -> ListPage:
    count = len(keys)
    return ListPage(keys, [7] * count, [f"e-{key!a}" for key in keys], [5] * count, (), "next" if more else None)


def entries(repo: Repository, ref: str = "d") -> list[Entry]:
    return entries_of(concat_batches(list(repo.resolve(ref).batches())))


def test_a_listing_becomes_a_version(repo: Repository) -> None:
    seen: list[int] = []
    options = ManifestOptions(progress=lambda progress: seen.append(progress.lines))
    pages = [page("p/a", "p/b/", "p/b/c", more=True), page(), page("p/d")]
    done = repo.create_from_listing("d", "s3://b@e", pages, prefix="p/", options=options)
    assert [(e.path, e.version.key, e.version.store, e.version.size, e.mtime_ns) for e in entries(repo)] == [
        ("a", "p/a", "s3://b@e", 7, 5),
        ("b/c", "p/b/c", "s3://b@e", 7, 5),
        ("d", "p/d", "s3://b@e", 7, 5),
    ]
    assert (done.progress.lines, done.progress.entries) == (4, 3)
    assert seen[-1] == 4


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (["a", "b//c"], "object 2: the path 'b//c' has an empty component"),
        (["a", "b\udcff"], "no UTF-8"),
        (["a", "a/b"], "needs a folder 'a', but that is a file"),
        (["a/../b", "c"], "object 1: the path 'a/../b' has a '..' component"),
    ],
)
def test_keys_that_cannot_be_paths(repo: Repository, keys: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        repo.create_from_listing("d", "s3://b", [page(*keys)])
    assert words in str(caught.value)
    assert "listing of s3://b/" in str(caught.value)
    options = ManifestOptions(on_error="skip", rejects=tmp_path / "rejects")
    done = repo.create_from_listing("d", "s3://b", [page(*keys)], options=options)
    assert (done.progress.entries, done.progress.rejected) == (1, 1)


def test_a_store_that_lists_in_another_order_is_sorted(repo: Repository) -> None:
    repo.create_from_listing("d", "file:///x", [page("b"), page("c", "a")])
    assert [e.path for e in entries(repo)] == ["a", "b", "c"]


async def test_an_asynchronous_listing_is_read_from_a_thread(repo: Repository) -> None:
    async def pages() -> AsyncIterator[ListPage]:
        for number in range(5):
            await asyncio.sleep(0)
            yield page(f"{number}")

    found = blocking(pages(), asyncio.get_running_loop())
    done = await asyncio.to_thread(repo.create_from_listing, "d", "s3://b", found)
    assert done.progress.entries == 5


async def test_a_listing_that_fails_leaves_nothing(repo: Repository) -> None:
    async def pages() -> AsyncIterator[ListPage]:
        yield page("a")
        raise ManifestError("the store is away")

    with pytest.raises(ManifestError, match="away"):
        await asyncio.to_thread(repo.create_from_listing, "d", "s3://b", blocking(pages(), asyncio.get_running_loop()))
    assert repo.versions("d") == []


@pytest.mark.parametrize(
    ("labels", "change", "expected"),
    [
        (None, LabelChange(put={("a",): 1}), {"a": 1}),
        ({"a": 1}, LabelChange(put={("b", "c"): [1]}), {"a": 1, "b": {"c": [1]}}),
        ({"a": 1}, LabelChange(put={("a", "b"): 2}), {"a": {"b": 2}}),
        ({"a": 1, "b": 2}, LabelChange(remove=[("a",), ("x", "y")]), {"b": 2}),
        ({"a": {"b": 1}}, LabelChange(remove=[("a", "b")]), None),
        ({"a": 1}, LabelChange(clear=True), None),
        ("text", LabelChange(clear=True, put={("a",): 1}), {"a": 1}),
        ([1], LabelChange(remove=[("a",)]), [1]),
    ],
)
def test_labels_are_changed_in_place(labels: Any, change: LabelChange, expected: Any) -> None:
    batch = batch_of([Entry("p", ObjectVersion("s", "p", "e", 1), labels=labels)] * 2)
    assert [e.labels for e in entries_of(change.apply(batch))] == [expected, expected]


def test_labels_without_keys_cannot_be_set_into(repo: Repository) -> None:
    repo.create("d", [batch_of([Entry("p", ObjectVersion("s", "p", "e", 1), labels="text")])])
    with pytest.raises(UsageError, match='"text"'):
        repo.label("d", LabelChange(put={("a",): 1}), Selection())


def test_places_are_written_like_in_conditions() -> None:
    assert label_place("class") == ("class",)
    assert label_place("a.b") == ("a", "b")
    assert label_place('["a key"].b') == ("a key", "b")
    with pytest.raises(UsageError):
        label_place("a b")


def test_command_lines_are_recorded_without_secrets() -> None:
    line = command_line(
        [
            "forebay",
            "dataset",
            "import",
            "--meta-url",
            "mongodb://me:geheim@host/db",
            "a b",
            "http://h/x?X-Amz-Signature=geheim&y=1",
        ]
    )
    assert "geheim" not in line
    assert "mongodb://host/db" in line
    assert "'a b'" in line
    assert "y=1" in line
