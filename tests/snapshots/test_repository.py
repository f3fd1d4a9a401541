"""Every operation of a repository once, on both stores, with what a user relies on."""

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest

from forebay.errors import RefMoved, RefNotFound, UsageError
from forebay.snapshots import (
    DiffSummary,
    Entry,
    FolderEntry,
    ManifestOptions,
    MergeConflict,
    Note,
    Repository,
    Selection,
    Split,
    entries_of,
    open_repository,
    puts,
    removals,
)
from forebay.snapshots.entries import batch_of, concat_batches
from forebay.tiers.version import ObjectVersion


@pytest.fixture
def repo(meta_url: str) -> Iterator[Repository]:
    with open_repository(meta_url) as repository:
        repository.create_dataset("cats")
        yield repository


def manifest(*lines: dict[str, Any]) -> io.BytesIO:
    return io.BytesIO("".join(json.dumps(line) + "\n" for line in lines).encode())


def line(path: str, size: int = 10, etag: str = "e", **more: Any) -> dict[str, Any]:
    return {"url": f"s3://b/{path}", "size": size, "etag": etag, **more}


def entry(path: str, size: int = 10, etag: str = "e", labels: Any = None) -> Entry:
    return Entry(path, ObjectVersion("s3://b", path, etag, size), labels=labels)


def entries(repo: Repository, ref: str) -> list[Entry]:
    return entries_of(concat_batches(list(repo.resolve(ref).batches())))


def paths(repo: Repository, ref: str) -> list[str]:
    return [e.path for e in entries(repo, ref)]


def test_import_in_any_order_gives_sorted_entries(repo: Repository) -> None:
    done = repo.import_manifest(
        "cats", manifest(line("b"), line("a/x", labels={"k": [1]}), line("a-")), note=Note("one")
    )
    assert paths(repo, "cats") == ["a-", "a/x", "b"]
    assert entries(repo, "cats")[1] == entry("a/x", labels={"k": [1]})
    assert done.made.snapshot.version_name == "cats@v1"
    assert (done.progress.lines, done.progress.entries) == (3, 3)
    commit = repo.resolve("cats@v1").commit
    assert (commit.entry_count, commit.size_bytes, commit.message) == (3, 30, "one")


def test_the_same_content_makes_no_new_version(repo: Repository) -> None:
    repo.import_manifest("cats", manifest(line("a"), line("b")))
    again = repo.import_manifest("cats", manifest(line("b"), line("a")))
    assert again.made.unchanged
    assert again.made.snapshot.number == 1
    assert len(repo.versions("cats")) == 1


def test_all_forms_of_refs(repo: Repository) -> None:
    first = repo.import_manifest("cats", manifest(line("a"))).made.snapshot
    second = repo.import_manifest("cats", manifest(line("b"))).made.snapshot
    repo.tag("cats@v1", "paper.1")
    repo.branch("cats@v1", "old")
    for text, expected in [
        ("cats", second),
        ("cats@latest", second),
        ("cats@main", second),
        ("cats@v1", first),
        ("cats@v2", second),
        ("cats@paper.1", first),
        ("cats@old", first),
        (f"cats@{first.commit.id.hex()}", first),
        (f"cats@{first.commit.id.hex()[:8]}", first),
        (f"cats@{first.commit.id.hex()[:8].upper()}", first),
    ]:
        assert repo.resolve(text).commit == expected.commit, text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cast", "did you mean cats"),
        ("cats@mian", "did you mean main"),
        ("cats@v3", "newest version is v1"),
        ("cats@0000ffff", "no tag, branch or version"),
    ],
)
def test_near_misses_are_suggested(repo: Repository, text: str, words: str) -> None:
    repo.import_manifest("cats", manifest(line("a")))
    with pytest.raises(RefNotFound, match=words):
        repo.resolve(text)


@pytest.mark.parametrize("text", ["", "@main", "cats@", "ca ts", "cats@a/b", "../x", "cats@@", "-x"])
def test_bad_names_are_refused(repo: Repository, text: str) -> None:
    with pytest.raises(UsageError):
        repo.resolve(text)


def test_names_that_mean_something_else_are_refused(repo: Repository) -> None:
    repo.import_manifest("cats", manifest(line("a")))
    repo.tag("cats", "t")
    for name in ("v7", "latest", "main", "a b"):
        with pytest.raises(UsageError):
            repo.tag("cats", name)
    with pytest.raises(UsageError):
        repo.branch("cats", "t")
    with pytest.raises(UsageError, match="tags do not move"):
        repo.import_manifest("cats", manifest(line("b")), branch="t")


def test_a_tag_stays_where_it_is(repo: Repository) -> None:
    repo.import_manifest("cats", manifest(line("a")))
    repo.tag("cats", "t")
    repo.import_manifest("cats", manifest(line("b")))
    with pytest.raises(UsageError, match="already"):
        repo.tag("cats", "t")
    repo.tag("cats", "t", force=True)
    assert paths(repo, "cats@t") == ["b"]
    repo.delete_ref("cats", "tag", "t")
    with pytest.raises(RefNotFound):
        repo.resolve("cats@t")


def test_edits_change_what_they_name(repo: Repository) -> None:
    repo.import_manifest("cats", manifest(line("a"), line("b"), line("c")))
    edited = repo.edit(
        "cats", [removals(batch_of([entry("a")]).column("path")), puts(batch_of([entry("b", 11), entry("d")]))]
    )
    assert paths(repo, "cats") == ["b", "c", "d"]
    counts = edited.counts
    assert (counts.added, counts.replaced, counts.removed, counts.absent) == (1, 1, 1, 0)


def test_add_merges_a_manifest_into_the_branch(repo: Repository) -> None:
    repo.import_manifest("cats", manifest(line("a"), line("c")))
    repo.add("cats", manifest(line("d"), line("b"), line("a", size=5)))
    assert [(e.path, e.version.size) for e in entries(repo, "cats")] == [("a", 5), ("b", 10), ("c", 10), ("d", 10)]


def test_diff_names_every_kind_of_change(repo: Repository) -> None:
    repo.import_manifest(
        "cats",
        manifest(line("gone"), line("same"), line("content"), line("labels"), line("both"), line("time", mtime=1)),
    )
    repo.import_manifest(
        "cats",
        manifest(
            line("new", size=7),
            line("same"),
            line("content", etag="f"),
            line("labels", labels=1),
            line("both", etag="f", labels=2),
            line("time", mtime=2),
        ),
    )
    summary = DiffSummary()
    found: dict[str, str] = {}
    for batch in repo.diff("cats@v1", "cats@v2"):
        summary.add(batch)
        found.update(zip(batch.column("path").to_pylist(), batch.column("change").to_pylist(), strict=True))
    assert found == {
        "both": "content+labels",
        "content": "content",
        "gone": "removed",
        "labels": "labels",
        "new": "added",
        "time": "details",
    }
    assert list(found) == sorted(found)
    assert summary.size_bytes["added"] == 7
    assert list(repo.diff("cats@v1", "cats@v1")) == []


def test_rollback_keeps_history(repo: Repository) -> None:
    repo.import_manifest("cats", manifest(line("a")))
    repo.import_manifest("cats", manifest(line("b")))
    made = repo.rollback("cats@v1", note=Note("back"))
    assert made.snapshot.number == 3
    assert paths(repo, "cats") == ["a"]
    assert [c.message for c in repo.log("cats@main")] == ["back", "", ""]


def test_select_takes_what_matches_into_a_new_version(repo: Repository) -> None:
    repo.import_manifest(
        "cats", manifest(*(line(f"{i:03}", size=i, labels={"class": "ab"[i % 2]}) for i in range(100)))
    )
    made = repo.select("cats", Selection(where='label.class == "a" and size >= 50'), branch="chosen")
    assert paths(repo, "cats@chosen") == [f"{i:03}" for i in range(50, 100, 2)]
    assert [c.short_id for c in repo.log("cats@chosen")] == [
        made.snapshot.commit.short_id,
        repo.resolve("cats").commit.short_id,
    ]
    repo.select("cats", Selection(limit=3), branch="few")
    assert paths(repo, "cats@few") == ["000", "001", "002"]


def test_the_same_selection_again_makes_no_new_version(repo: Repository) -> None:
    repo.import_manifest("cats", manifest(line("a", size=1), line("b", size=2)))
    selection = Selection(where="size < 2")
    assert not repo.select("cats", selection, branch="few").unchanged
    assert repo.select("cats", selection, branch="few").unchanged
    repo.split("cats@v1", Split({"train": 0.5, "val": 0.5}))
    assert all(made.unchanged for made in repo.split("cats@v1", Split({"train": 0.5, "val": 0.5})).values())


def test_a_sample_is_reproducible_and_grows(repo: Repository) -> None:
    repo.import_manifest("cats", manifest(*(line(f"{i:04}") for i in range(2000))))
    small, large, other = (
        {
            p
            for b in repo.resolve("cats").select(Selection(sample=share, seed=seed))
            for p in b.column("path").to_pylist()
        }
        for share, seed in [(0.1, 7), (0.3, 7), (0.1, 8)]
    )
    assert 140 < len(small) < 260
    assert small < large
    assert small != other


def test_a_split_is_complete_and_does_not_leak(repo: Repository) -> None:
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    lines = [line(f"{i:04}", labels={"patient": f"p{i // 10}"}) for i in range(1000)]
    repo.import_manifest("cats", manifest(*lines))
    repo.split("cats@v1", Split(shares, by="label.patient"))
    before = {name: set(paths(repo, f"cats@{name}")) for name in shares}
    assert sum(len(side) for side in before.values()) == 1000
    assert len(set.union(*before.values())) == 1000
    assert all(len({p for p in side if p[:3] == path[:3]}) == 10 for side in before.values() for path in side)
    assert 650 < len(before["train"]) < 930
    repo.add("cats", manifest(*(line(f"x{i:04}", labels={"patient": f"p{i}"}) for i in range(200))))
    repo.split("cats@main", Split(shares, by="label.patient"))
    after = {name: set(paths(repo, f"cats@{name}")) for name in shares}
    assert all(before[name] <= after[name] for name in shares)


def test_merge_takes_both_sides(repo: Repository) -> None:
    repo.import_manifest("cats", manifest(line("a"), line("b"), line("c"), line("same")))
    repo.branch("cats", "theirs")
    repo.add("cats", manifest(line("a", etag="ours"), line("same", etag="s"), line("new-ours")))
    repo.edit("cats", [removals(batch_of([entry("c")]).column("path"))], branch="theirs")
    repo.add("cats", manifest(line("b", etag="theirs"), line("same", etag="s")), branch="theirs")
    made, conflicts = repo.merge("cats@theirs")
    assert conflicts.count == 0
    assert [(e.path, e.version.etag) for e in entries(repo, "cats")] == [
        ("a", "ours"),
        ("b", "theirs"),
        ("new-ours", "e"),
        ("same", "s"),
    ]
    assert len(made.snapshot.commit.parents) == 2


def test_merge_reports_conflicts_and_publishes_nothing(repo: Repository) -> None:
    repo.import_manifest("cats", manifest(line("a"), line("b")))
    repo.branch("cats", "theirs")
    repo.add("cats", manifest(line("a", etag="ours")))
    repo.add("cats", manifest(line("a", etag="theirs"), line("b", etag="theirs")), branch="theirs")
    head = repo.resolve("cats").commit
    with pytest.raises(MergeConflict, match="'a'") as caught:
        repo.merge("cats@theirs")
    assert [(c.path, c.ours, c.theirs) for c in caught.value.conflicts.listed] == [("a", "content", "content")]
    assert repo.resolve("cats").commit == head
    _, conflicts = repo.merge("cats@theirs", on_conflict="ours")
    assert conflicts.count == 1
    assert [e.version.etag for e in entries(repo, "cats")] == ["ours", "theirs"]


def test_ls_shows_folders_with_sums(repo: Repository) -> None:
    repo.import_manifest("cats", manifest(line("a/x/1"), line("a/x/2"), line("a/y"), line("a-b"), line("z", size=3)))
    assert list(repo.resolve("cats").ls()) == [entry("a-b"), FolderEntry("a", 3, 30), entry("z", 3)]
    assert list(repo.resolve("cats").ls("a/")) == [FolderEntry("x", 2, 20), entry("a/y")]
    assert list(repo.resolve("cats").ls("z")) == [entry("z", 3)]
    assert list(repo.resolve("cats").ls("nothing")) == []


def test_stats_count_labels_folders_and_sizes(repo: Repository) -> None:
    repo.import_manifest(
        "cats",
        manifest(line("a/1", 4, labels={"c": "x"}), line("a/2", 5, labels={"c": "y", "d": {"e": 1}}), line("3", 0)),
    )
    found = repo.resolve("cats").stats()
    assert found.total.size_bytes == 9
    assert {value: tally.size_bytes for value, tally in found.labels["c"].items()} == {"x": 4, "y": 5}
    assert found.labels["d.e"]["1"].entry_count == 1
    assert {name: tally.entry_count for name, tally in found.folders.items()} == {"a/": 2, "": 1}
    assert {bound: tally.entry_count for bound, tally in found.sizes.items()} == {4: 1, 8: 1, 0: 1}
    assert found.unlabelled.entry_count == 1


def test_export_and_import_round_trip(repo: Repository) -> None:
    repo.create("cats", [batch_of([
        entry("a", labels={"x": [1, None]}),
        Entry("b", ObjectVersion("s3://o@http://h:1", "other/ä key", "e2", 3, "v9"), 5, "ab" * 32, "text"),
    ])])  # fmt: skip
    exported = b"".join(repo.export("cats"))
    repo.create_dataset("copy")
    repo.import_manifest("copy", io.BytesIO(exported))
    assert entries(repo, "copy") == entries(repo, "cats")
    assert repo.resolve("copy").root == repo.resolve("cats").root


def test_a_lost_race_changes_nothing(repo: Repository) -> None:
    repo.import_manifest("cats", manifest(line("a")))

    def edits() -> Iterator[Any]:
        repo.add("cats", manifest(line("other")))
        yield puts(batch_of([entry("mine")]))

    with pytest.raises(RefMoved, match="cats@main"):
        repo.edit("cats", edits())
    assert paths(repo, "cats") == ["a", "other"]


def test_keys_without_a_bucket_need_one(repo: Repository) -> None:
    from forebay.snapshots import Location

    options = ManifestOptions(base=Location("s3://b", "", "data/"))
    repo.import_manifest("cats", manifest({"url": "k/1", "size": 1, "etag": "e"}), options=options)
    assert entries(repo, "cats")[0].version.key == "data/k/1"


def test_a_deleted_data_set_is_gone(repo: Repository) -> None:
    repo.import_manifest("cats", manifest(line("a")))
    repo.delete_dataset("cats")
    assert repo.datasets() == []
    with pytest.raises(RefNotFound):
        repo.resolve("cats@v1")
