"""gc against everything that may run beside it. The rule under test: what a ref or a live lease reaches stays readable.

All collectors here have no grace period, so that only the protocol protects what runs.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from forebay.errors import PageCorrupt, RefMoved, RefNotFound
from forebay.snapshots import Entry, Repository, Snapshot, batch_of, builder, open_repository, puts
from forebay.snapshots.gc import GcBusy
from forebay.snapshots.holds import page_ids
from forebay.snapshots.metastore import LeaseRecord
from forebay.snapshots.sqlite import SqliteMetaStore
from forebay.tiers.version import ObjectVersion


@pytest.fixture
def repo(meta_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    for name, value in {
        "MIN_ENTRIES": 4,
        "MAX_ENTRIES": 16,
        "CUT_ONE_IN": 8,
        "MIN_REFS": 2,
        "CUT_REFS_ONE_IN": 4,
    }.items():
        monkeypatch.setattr(builder, name, value)
    with open_repository(meta_url) as repository:
        repository.create_dataset("d")
        yield repository


def rows(label: str, numbers: range) -> pa.RecordBatch:
    return batch_of([Entry(f"{i:04}", ObjectVersion("s3://b", f"{i:04}", label, i)) for i in numbers])


def is_whole(repo: Repository, snapshot: Snapshot) -> bool:
    """Whether every page is there, asked of the store itself."""
    fresh = open_repository_like(repo)
    ids = [name for name, _ in page_ids(fresh.reader, snapshot.root)]
    return repo.meta.get_pages(ids).keys() == set(ids)


def open_repository_like(repo: Repository) -> Repository:
    """The same store without what the reader remembers."""
    return Repository(repo.meta)


def collect(repo: Repository) -> int:
    """Pages deleted by a full run."""
    collector = repo.collector(grace_s=0)
    collector.mark()
    return collector.sweep().pages


def test_garbage_goes_and_the_rest_stays(repo: Repository) -> None:
    repo.create("d", [rows("a", range(200))])
    repo.create("d", [rows("b", range(200))], branch="other")
    kept = repo.resolve("d@main")
    gone = repo.resolve("d@other")
    repo.delete_ref("d", "branch", "other")
    plan = repo.collector(grace_s=0).plan()
    assert plan.pages > 10
    assert plan.bytes > 0
    assert plan.commits == 1
    assert is_whole(repo, gone)
    assert collect(repo) == plan.pages
    assert is_whole(repo, kept)
    assert repo.meta.get_pages([gone.root]) == {}
    with pytest.raises(RefNotFound, match="collected"):
        repo.resolve("d@v2")
    assert collect(repo) == 0


def test_ancestors_are_reachable(repo: Repository) -> None:
    repo.create("d", [rows("a", range(50))])
    repo.create("d", [rows("b", range(50))])
    assert collect(repo) == 0
    assert is_whole(repo, repo.resolve("d@v1"))


def test_the_grace_period_protects_young_pages(repo: Repository) -> None:
    repo.create("d", [rows("a", range(100))])
    repo.delete_ref("d", "branch", "main")
    collector = repo.collector(grace_s=3600)
    assert collector.plan().pages == 0
    assert collector.plan().young_pages > 0
    collector.mark()
    assert collector.sweep().pages == 0


def test_a_lease_holds_its_version_and_is_named(repo: Repository) -> None:
    repo.create("d", [rows("a", range(200))])
    snapshot = repo.resolve("d")
    with repo.hold(snapshot, purpose="mount", what="mount of /data/train"):
        repo.delete_dataset("d")
        (held,) = repo.collector(grace_s=0).plan().held
        assert held.lease.what == "mount of /data/train"
        assert (held.lease.host, held.lease.pid) == (socket.gethostname(), os.getpid())
        assert held.pages > 10
        assert held.bytes > 0
        assert collect(repo) == 0
        assert is_whole(repo, snapshot)
    assert collect(repo) == held.pages


def test_a_lapsed_lease_holds_nothing(repo: Repository) -> None:
    repo.create("d", [rows("a", range(50))])
    commit = repo.resolve("d").commit.id
    lease = LeaseRecord(id="x", dataset="d", commit=commit, purpose="mount", what="w", owner="o", host="h", pid=1)
    repo.meta.put_lease(lease, 0.001)
    repo.delete_dataset("d")
    while repo.meta.leases():
        pass
    assert collect(repo) > 0


def test_a_mount_that_comes_between_mark_and_sweep_keeps_its_version(repo: Repository) -> None:
    repo.create("d", [rows("a", range(200))])
    snapshot = repo.resolve("d")
    repo.delete_ref("d", "branch", "main")
    collector = repo.collector(grace_s=0)
    assert collector.mark().pages > 10
    with repo.hold(snapshot, purpose="mount", what="m"):
        assert collector.sweep().pages == 0
        assert is_whole(repo, snapshot)


def test_a_mount_that_comes_after_the_sweep_is_told(repo: Repository) -> None:
    repo.create("d", [rows("a", range(50))])
    snapshot = repo.resolve("d")
    repo.delete_ref("d", "branch", "main")
    collect(repo)
    with pytest.raises(RefNotFound, match="collected"):
        repo.hold(snapshot, purpose="mount", what="m")
    assert repo.leases() == []


@pytest.mark.parametrize("kind", ["tag", "branch"])
def test_a_ref_that_comes_between_mark_and_sweep_keeps_its_version(repo: Repository, kind: str) -> None:
    made = repo.create("d", [rows("a", range(200))])
    repo.delete_ref("d", "branch", "main")
    collector = repo.collector(grace_s=0)
    collector.mark()
    text = f"d@{made.snapshot.commit.id.hex()}"
    repo.tag(text, "again") if kind == "tag" else repo.branch(text, "again")
    collector.sweep()
    assert is_whole(repo, repo.resolve("d@again"))


@pytest.mark.parametrize("use", ["mount", "tag", "edit"])
def test_what_is_used_in_the_moment_of_the_horizon_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    """A clock that ticks so seldom that a sweep begins, and a version is taken into use, in one and the same tick."""
    monkeypatch.setattr(SqliteMetaStore, "now_ms", lambda _: time.time_ns() // 1_000_000 // 250 * 250)
    with open_repository(f"sqlite:///{tmp_path}/coarse.db") as repo:
        repo.create_dataset("d")
        made = repo.create("d", [rows("a", range(20))])
        text = f"d@{made.snapshot.commit.id.hex()}"
        repo.delete_ref("d", "branch", "main")
        collector = repo.collector(grace_s=0)
        collector.mark()
        original = repo.meta.delete_commits

        def meanwhile(ids: Sequence[bytes], not_after_ms: int) -> int:
            if use == "mount":
                holds.enter_context(repo.hold(repo.resolve(text), purpose="mount", what="m"))
            elif use == "tag":
                repo.tag(text, "again")
            else:
                repo.rollback(text, branch="again")
            return original(ids, not_after_ms)

        monkeypatch.setattr(repo.meta, "delete_commits", meanwhile)
        with contextlib.ExitStack() as holds:
            # The beginning of a tick, so that all of it fits into one.
            tick_ms = repo.meta.now_ms()
            while repo.meta.now_ms() == tick_ms:
                time.sleep(0.001)
            collector.sweep()
            assert repo.resolve(text).commit == made.snapshot.commit
            assert is_whole(repo, made.snapshot)


@pytest.mark.parametrize("method", ["delete_commits", "condemned_pages", "delete_condemned"])
@pytest.mark.parametrize("use", ["mount", "tag", "edit"])
def test_what_is_used_in_the_middle_of_a_sweep_is_whole_or_refused(
    repo: Repository, monkeypatch: pytest.MonkeyPatch, method: str, use: str
) -> None:
    """The sweep has read refs and leases already when somebody starts to use a version that nothing reached."""
    repo.create("d", [rows("old", range(100))])
    made = repo.create("d", [rows("a", range(200))])
    text = f"d@{made.snapshot.commit.id.hex()}"
    repo.delete_ref("d", "branch", "main")
    repo.create("d", [rows("other", range(20))])
    collector = repo.collector(grace_s=0)
    collector.mark()
    original: Callable[..., Any] = getattr(repo.meta, method)
    used: list[Snapshot] = []
    holds = contextlib.ExitStack()

    def meanwhile(*arguments: Any) -> Any:
        monkeypatch.setattr(repo.meta, method, original)
        try:
            snapshot = open_repository_like(repo).resolve(text)
            if use == "mount":
                holds.enter_context(repo.hold(snapshot, purpose="mount", what="m"))
            elif use == "tag":
                repo.tag(text, "again")
            else:
                repo.rollback(text, branch="again")
            used.append(snapshot)
        except (RefNotFound, PageCorrupt):
            assert method != "delete_commits", "nothing was deleted yet"
        return original(*arguments)

    monkeypatch.setattr(repo.meta, method, meanwhile)
    collector.sweep()
    for snapshot in used:
        assert is_whole(repo, snapshot)
        assert repo.resolve(text).commit == snapshot.commit
    assert used or method != "delete_commits"
    collect(repo)
    for snapshot in used:
        assert is_whole(repo, snapshot)
        if use != "mount":
            assert repo.resolve("d@again").root == snapshot.root
            assert next(repo.log("d@again")).id == repo.resolve("d@again").commit.id
    holds.close()


def test_an_import_of_condemned_pages_keeps_them(repo: Repository) -> None:
    repo.create("d", [rows("a", range(200))])
    repo.delete_ref("d", "branch", "main")
    collector = repo.collector(grace_s=0)
    collector.mark()
    repo.create("d", [rows("a", range(200))], branch="again")
    collector.sweep()
    assert is_whole(repo, repo.resolve("d@again"))


@pytest.mark.parametrize("moment", ["before", "within"])
@pytest.mark.parametrize("steps", ["mark", "mark+sweep", "sweep"])
def test_a_commit_that_runs_meanwhile_is_whole(repo: Repository, moment: str, steps: str) -> None:
    """The edit shares pages with its base, stores new ones, and stores some that are garbage already."""
    repo.create("d", [rows("a", range(200))])
    repo.create("d", [rows("b", range(40))], branch="garbage")
    repo.delete_ref("d", "branch", "garbage")
    collector = repo.collector(grace_s=0)

    def gc() -> None:
        if steps == "sweep":
            collector.sweep()
        else:
            collector.mark()
            if steps == "mark+sweep":
                collector.sweep()

    def edits() -> Iterator[pa.RecordBatch]:
        if moment == "before":
            gc()
        yield puts(rows("b", range(20)))
        if moment == "within":
            gc()
        yield puts(rows("b", range(20, 40)))

    if steps == "sweep":
        collector.mark()
    edited = repo.edit("d", edits())
    if steps == "mark":
        collector.sweep()
    assert is_whole(repo, edited.made.snapshot)
    assert edited.made.snapshot.commit.entry_count == 200


def test_a_commit_whose_base_is_deleted_meanwhile_loses_and_harms_nothing(repo: Repository) -> None:
    repo.create("d", [rows("a", range(100))])

    def edits() -> Iterator[pa.RecordBatch]:
        repo.delete_ref("d", "branch", "main")
        collect(repo)
        yield puts(rows("b", range(5)))

    with pytest.raises(RefMoved, match="is gone"):
        repo.edit("d", edits())
    assert repo.leases() == []
    collect(repo)
    assert list(repo.meta.page_states()) == []


class Interrupted(Exception):
    pass


def interrupt(monkeypatch: pytest.MonkeyPatch, repo: Repository, method: str, call: int) -> None:
    """Make the store's `method` fail at its n-th call, as if the process died there."""
    original: Callable[..., Any] = getattr(repo.meta, method)
    calls = 0

    def failing(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise Interrupted
        return original(*arguments, **named)

    monkeypatch.setattr(repo.meta, method, failing)


@pytest.mark.parametrize(
    ("method", "call"),
    [("page_states", 1), ("condemn_pages", 1), ("delete_commits", 1), ("delete_condemned", 1), ("set_gc_state", 2)],
)
def test_a_collector_that_died_is_taken_up(
    repo: Repository, monkeypatch: pytest.MonkeyPatch, method: str, call: int
) -> None:
    repo.create("d", [rows("a", range(100))])
    repo.create("d", [rows("b", range(100))], branch="other")
    repo.delete_ref("d", "branch", "other")
    kept = repo.resolve("d")
    with monkeypatch.context() as patch:
        interrupt(patch, repo, method, call)
        with pytest.raises(Interrupted):
            collect(repo)
    assert is_whole(repo, kept)
    collect(repo)
    assert repo.collector(grace_s=0).plan().pages == 0
    assert is_whole(repo, kept)
    assert repo.meta.gc_state().phase == "idle"


@pytest.mark.parametrize("method", ["put_pages", "put_commit", "publish"])
def test_a_commit_that_died_leaves_only_garbage(repo: Repository, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    before = repo.create("d", [rows("a", range(100))]).snapshot
    with monkeypatch.context() as patch:
        interrupt(patch, repo, method, 1)
        with pytest.raises(Interrupted):
            repo.create("d", [rows("b", range(100))])
    assert repo.resolve("d").commit == before.commit
    collect(repo)
    assert {state.id for state in repo.meta.page_states()} == {name for name, _ in page_ids(repo.reader, before.root)}
    assert [state.id for state in repo.meta.commit_states()] == [before.commit.id]


def test_two_collectors_exclude_each_other(repo: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.create("d", [rows("a", range(10))])
    original = repo.meta.page_states

    def while_marking() -> Iterator[Any]:
        with pytest.raises(GcBusy, match="marking"):
            repo.collector().mark()
        with pytest.raises(GcBusy):
            repo.collector().sweep()
        return original()

    monkeypatch.setattr(repo.meta, "page_states", while_marking)
    repo.collector().mark()


def test_a_damaged_index_stops_gc_rather_than_be_taken_for_empty(repo: Repository) -> None:
    snapshot = repo.create("d", [rows("a", range(200))]).snapshot
    part = repo.reader.parts(snapshot.root)[0].id
    repo.meta.condemn_pages([part], 1, repo.meta.now_ms() + 1000)
    assert repo.meta.delete_condemned([part]) == 1
    fresh = open_repository_like(repo)
    with pytest.raises(PageCorrupt, match=part.hex()):
        fresh.collector(grace_s=0).mark()
    assert fresh.collector(grace_s=0).plan().damaged
    assert fresh.meta.gc_state().phase == "idle"
    assert list(fresh.meta.condemned_pages()) == []
