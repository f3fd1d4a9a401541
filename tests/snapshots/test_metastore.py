"""The contract of a metadata store, on SQLite and on a real MongoDB."""

import concurrent.futures
import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from forebay.errors import ConfigError, MetadataUnavailable, RefNotFound
from forebay.snapshots.meta_url import open_meta
from forebay.snapshots.metastore import GcState, LeaseRecord, MetaStore, Moved, Published
from forebay.tests.support.servers import free_ports


def name_of(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=32).digest()


A, B, C, D = (name_of(letter) for letter in "abcd")


def lease(lease_id: str, commit: bytes | None = A) -> LeaseRecord:
    return LeaseRecord(
        id=lease_id, dataset="d", commit=commit, purpose="mount", what="$mount of /x", owner="me", host="h", pid=7
    )


def wait_for(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.01)


def test_pages_come_back_and_absent_ones_are_left_out(meta: MetaStore) -> None:
    assert meta.put_pages([(A, b"one"), (B, b"two" * 100_000)]) == 2
    assert meta.get_pages([A, B, C]) == {A: b"one", B: b"two" * 100_000}
    assert meta.get_pages([]) == {}


def test_a_page_is_stored_once(meta: MetaStore) -> None:
    assert meta.put_pages([]) == 0
    meta.put_pages([(A, b"one")])
    assert meta.put_pages([(A, b"one"), (B, b"two")]) == 1
    assert {s.id: s.stored_bytes for s in meta.page_states()} == {A: 3, B: 3}


def test_the_walk_over_pages_sees_all_of_many(meta: MetaStore) -> None:
    names = [name_of(str(i)) for i in range(2500)]
    meta.put_pages([(name, b"x") for name in names])
    assert sorted(s.id for s in meta.page_states()) == sorted(names)
    assert meta.get_pages(names).keys() == set(names)


def test_using_a_page_frees_it_of_condemnation(meta: MetaStore) -> None:
    meta.put_pages([(A, b"a"), (B, b"b"), (C, b"c")])
    assert meta.condemn_pages([A, B, C, D], 1, meta.now_ms() + 1000) == 3
    assert {s.id for s in meta.condemned_pages()} == {A, B, C}
    meta.put_pages([(A, b"a")])
    assert meta.touch_pages([B, D]) == {D}
    assert [(s.id, s.condemned) for s in meta.condemned_pages()] == [(C, 1)]
    assert meta.delete_condemned([A, B, C]) == 1
    assert meta.get_pages([A, B, C]).keys() == {A, B}


def test_a_page_used_after_the_moment_is_not_condemned(meta: MetaStore) -> None:
    meta.put_pages([(A, b"a"), (B, b"b")])
    before = meta.now_ms()
    wait_for(lambda: meta.now_ms() > before)
    meta.touch_pages([B])
    assert meta.condemn_pages([A, B], 1, before) == 1
    assert [s.id for s in meta.condemned_pages()] == [A]


def test_commits_are_found_by_prefix_within_their_data_set(meta: MetaStore) -> None:
    meta.put_commit(A, "d", b"{a}")
    meta.put_commit(B, "d", b"{b}")
    meta.put_commit(C, "other", b"{c}")
    assert meta.get_commits([A, C, D]) == {A: b"{a}", C: b"{c}"}
    assert meta.find_commits("d", A.hex()[:9], 5) == [A]
    assert meta.find_commits("d", C.hex()[:9], 5) == []
    assert sorted(meta.find_commits("d", "", 5)) == sorted([A, B])
    assert len(meta.find_commits("d", "", 1)) == 1


def test_commits_used_lately_are_not_deleted(meta: MetaStore) -> None:
    meta.put_commit(A, "d", b"a")
    meta.put_commit(B, "d", b"b")
    before = meta.now_ms()
    wait_for(lambda: meta.now_ms() > before)
    meta.put_commit(B, "d", b"b")
    assert meta.delete_commits([A, B], before) == 1
    assert [s.id for s in meta.commit_states()] == [B]


def test_datasets(meta: MetaStore) -> None:
    assert meta.create_dataset("cats", "all cats")
    assert not meta.create_dataset("cats", "again")
    assert meta.create_dataset("birds", "")
    assert meta.dataset_names() == ["birds", "cats"]
    record = meta.dataset("cats")
    assert record is not None
    assert (record.description, record.branches, record.version_count) == ("all cats", {}, 0)
    assert meta.delete_dataset("cats")
    assert not meta.delete_dataset("cats")
    assert meta.dataset("cats") is None
    assert meta.versions("cats") == []


def test_publish_moves_the_branch_and_numbers_versions(meta: MetaStore) -> None:
    meta.create_dataset("d", "")
    assert meta.publish("d", "main", None, A) == Published(1)
    assert meta.publish("d", "main", None, B) == Moved(A)
    assert meta.publish("d", "main", C, B) == Moved(A)
    assert meta.publish("d", "main", A, B) == Published(2)
    assert meta.publish("d", "rel.1-x", None, C) == Published(3)
    assert meta.versions("d") == [A, B, C]
    record = meta.dataset("d")
    assert record is not None
    assert (record.branches, record.version_count) == ({"main": B, "rel.1-x": C}, 3)


def test_a_repeated_publish_answers_the_same(meta: MetaStore) -> None:
    meta.create_dataset("d", "")
    meta.publish("d", "main", None, A)
    meta.publish("d", "main", A, B)
    assert meta.publish("d", "main", A, B) == Published(2)
    assert meta.versions("d") == [A, B]


def test_publish_into_nothing_is_an_error(meta: MetaStore) -> None:
    with pytest.raises(RefNotFound, match="nowhere"):
        meta.publish("nowhere", "main", None, A)


def test_tags_and_branches_are_swapped(meta: MetaStore) -> None:
    meta.create_dataset("d", "")
    assert meta.set_ref("d", "tag", "v1.0", None, A) == Published()
    assert meta.set_ref("d", "tag", "v1.0", None, B) == Moved(A)
    assert meta.set_ref("d", "tag", "v1.0", A, B) == Published()
    assert meta.set_ref("d", "branch", "v1.0", None, C) == Published()
    assert meta.set_ref("d", "tag", "v1.0", B, None) == Published()
    record = meta.dataset("d")
    assert record is not None
    assert (record.tags, record.branches, record.version_count) == ({}, {"v1.0": C}, 0)


def test_of_many_writers_of_one_branch_exactly_one_wins(meta: MetaStore) -> None:
    meta.create_dataset("d", "")
    meta.publish("d", "main", None, A)
    head = A
    for round_number in range(5):
        candidates = [name_of(f"{round_number}-{i}") for i in range(8)]
        barrier = threading.Barrier(len(candidates))

        def race(new: bytes, barrier: threading.Barrier = barrier, expected: bytes = head) -> bool:
            barrier.wait(120)
            return isinstance(meta.publish("d", "main", expected, new), Published)

        with concurrent.futures.ThreadPoolExecutor(len(candidates)) as pool:
            won = list(pool.map(race, candidates))
        assert won.count(True) == 1
        head = candidates[won.index(True)]
        record = meta.dataset("d")
        assert record is not None
        assert record.branches["main"] == head
    assert len(meta.versions("d")) == 6


def test_leases_live_until_they_expire_or_are_dropped(meta: MetaStore) -> None:
    first = meta.put_lease(lease("one"), 600)
    assert first.expires_ms - first.started_ms == pytest.approx(600_000, abs=100)
    assert first.what == "$mount of /x"
    meta.put_lease(lease("two", None), 600)
    assert [(le.id, le.commit) for le in meta.leases()] == [("one", A), ("two", None)]
    assert meta.renew_lease("one", 1200)
    renewed = meta.leases()[0]
    assert renewed.started_ms == first.started_ms
    assert renewed.expires_ms > first.expires_ms
    meta.drop_lease("one")
    meta.drop_lease("one")
    assert not meta.renew_lease("one", 10)
    meta.put_lease(lease("short"), 0)
    wait_for(lambda: [le.id for le in meta.leases()] == ["two"])
    assert not meta.renew_lease("short", 10)


def test_only_one_collector_moves_the_state(meta: MetaStore) -> None:
    idle = meta.gc_state()
    assert (idle.run, idle.phase) == (0, "idle")
    marking = meta.set_gc_state(idle, 1, "marking")
    assert marking is not None
    assert meta.set_gc_state(idle, 1, "marking") is None
    assert meta.gc_state() == marking
    assert meta.set_gc_state(GcState(run=1, phase="marked"), 1, "sweeping") is None


def test_two_clients_see_each_other(meta: MetaStore, meta_url: str) -> None:
    other = open_meta(meta_url)
    try:
        meta.create_dataset("d", "")
        assert other.publish("d", "main", None, A) == Published(1)
        assert meta.publish("d", "main", None, B) == Moved(A)
    finally:
        other.close()


def test_an_absent_server_is_named_without_credentials() -> None:
    (port,) = free_ports(1)
    with pytest.raises(MetadataUnavailable) as caught:
        open_meta(f"mongodb://user:geheim@127.0.0.1:{port}/db", timeout_s=0.5)
    assert f"127.0.0.1:{port}" in str(caught.value)
    assert "geheim" not in str(caught.value)
    assert "user" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_bad_urls_are_refused() -> None:
    with pytest.raises(ConfigError, match="mysql"):
        open_meta("mysql://user:geheim@host/db")
    with pytest.raises(ConfigError) as caught:
        open_meta("mongodb://user:geheim@host:notaport/db")
    assert "geheim" not in str(caught.value)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "meta.db"
    path.write_bytes(b"this is no database at all" * 100)
    with pytest.raises(MetadataUnavailable, match=r"meta\.db"):
        open_meta(f"sqlite:///{path}")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MetadataUnavailable, match="file/meta"):
        open_meta(f"sqlite:///{tmp_path}/file/meta.db")
