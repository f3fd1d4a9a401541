"""Leases that are kept alive: renewed while held, noticed when lost, gone when released."""

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from forebay.errors import RefMoved
from forebay.snapshots import Entry, Repository, batch_of, open_repository, puts
from forebay.tiers.version import ObjectVersion


@pytest.fixture
def repo(meta_url: str) -> Iterator[Repository]:
    with open_repository(meta_url) as repository:
        repository.create_dataset("d")
        repository.create("d", [batch_of([entry("a")])])
        yield repository


def entry(path: str, etag: str = "e") -> Entry:
    return Entry(path, ObjectVersion("s3://b", path, etag, 1))


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.02)


def test_a_lease_is_renewed_for_as_long_as_it_is_held(repo: Repository) -> None:
    with repo.hold(repo.resolve("d"), purpose="mount", what="mount of /x", ttl_s=4) as hold:
        (first,) = repo.leases()
        assert (first.purpose, first.what, first.pid) == ("mount", "mount of /x", os.getpid())
        wait_for(lambda: repo.leases()[0].expires_ms > first.expires_ms + 1000)
        assert not hold.lost
    assert repo.leases() == []


def test_a_lease_that_was_lost_is_noticed_and_taken_anew(repo: Repository) -> None:
    with repo.hold(repo.resolve("d"), purpose="job", what="job", ttl_s=2) as hold:
        repo.meta.drop_lease(hold.lease.id)
        wait_for(lambda: hold.lost)
        wait_for(lambda: [lease.id for lease in repo.leases()] == [hold.lease.id])
        assert hold.gc_interfered()


def test_no_thread_and_no_lease_is_left_behind(repo: Repository) -> None:
    before = set(threading.enumerate())

    def ours() -> list[str]:
        started = set(threading.enumerate()) - before
        return [thread.name for thread in started if thread.name.startswith("forebay-")]

    repo.edit("d", [puts(batch_of([entry("b")]))])
    with repo.hold(repo.resolve("d"), purpose="mount", what="m"):
        assert ours() == ["forebay-lease"]
    assert ours() == []
    assert repo.leases() == []


def test_of_many_threads_that_edit_one_branch_each_wins_or_is_told(repo: Repository) -> None:
    outcomes: list[str] = []
    barrier = threading.Barrier(4)

    def work(name: str) -> None:
        barrier.wait(60)
        try:
            repo.edit("d", [puts(batch_of([entry(name)]))])
            outcomes.append(name)
        except RefMoved:
            outcomes.append("moved")

    threads = [threading.Thread(target=work, args=(f"t{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [name for name in outcomes if name != "moved"]
    assert len(outcomes) == 4
    assert winners
    found = [path for batch in repo.resolve("d").batches() for path in batch.column("path").to_pylist()]
    assert sorted(found) == sorted(["a", *winners])
    assert len(repo.versions("d")) == 1 + len(winners)
