"""No postponed read is forgotten, none is made twice, and no more threads read than there are turns."""

import asyncio
import subprocess
import threading
import time

import pytest

from forebay.fuse_mount import lane, turns
from forebay.fuse_mount.turns import Postponed, Turns
from forebay.tests.fuse.conftest import MountIt
from forebay.tests.support.fuse import WAIT_S, until
from forebay.tests.support.static_view import MemoryCache, StaticView
from forebay.tiers.version import ObjectVersion

READ = Postponed(1, 0, 4096)


def test_next_takes_a_turn() -> None:
    line = Turns(1)
    line.postpone(7, READ)
    line.postpone(8, READ)
    assert line.next() == (7, READ)
    assert line.next() is None
    assert not line.take()
    line.give_back()
    assert line.next() == (8, READ)
    line.give_back()
    assert line.next() is None
    assert line.take()


def test_overdue_are_those_that_waited_long(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Turns(1)
    now_s = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    line.postpone(7, READ)
    now_s += turns.PATIENCE_S / 2
    line.postpone(8, READ)
    assert line.overdue() == []
    now_s += turns.PATIENCE_S / 2
    assert line.overdue() == [(7, READ)]
    assert len(line) == 1


@pytest.mark.parametrize("count", [1, 3])
def test_threads_leave_none_behind(count: int) -> None:
    """What each lane thread does, with reads that come from several at once."""
    line = Turns(count)
    done: list[int] = []
    reading: list[int] = []
    most = 0
    per_thread, threads = 3000, count + 2

    def read(unique: int) -> None:
        nonlocal most
        reading.append(unique)
        most = max(most, len(reading))
        if unique % 50 == 0:
            time.sleep(0.0001)
        reading.remove(unique)
        done.append(unique)
        line.give_back()

    def lane_thread(index: int) -> None:
        for number in range(per_thread):
            unique = index * per_thread + number
            if line.take():
                read(unique)
            else:
                line.postpone(unique, READ)
            while (postponed := line.next()) is not None:
                read(postponed[0])

    running = [threading.Thread(target=lane_thread, args=(index,)) for index in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert sorted(done) == list(range(threads * per_thread))
    assert len(line) == 0
    assert most <= count


@pytest.mark.parametrize("transport", ["lane"])
def test_who_has_read_goes_on_with_what_was_postponed(mount_it: MountIt, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all the time in the world the event loop gets none of them."""
    monkeypatch.setattr(lane, "PATIENCE_S", 3600.0)
    view = StaticView({str(index).encode(): b"1" for index in range(12)})
    cache = MemoryCache(view)
    disk = threading.Event()
    began: list[int] = []

    def before(operation: str, version: ObjectVersion) -> None:
        assert operation == "read_cached"
        began.append(threading.get_ident())
        assert disk.wait(WAIT_S)

    cache.before = before
    cache.gate = asyncio.Event()
    mounted = mount_it(view, cache, lane_threads=3)
    readers = [subprocess.Popen(["cat", mounted.path / str(index)], stdout=subprocess.PIPE) for index in range(12)]
    try:
        until(lambda: mounted.mount.status().gauges["requests_waiting"] == 10, "all but two reads being postponed")
    finally:
        disk.set()
        outputs = [reader.communicate(timeout=WAIT_S)[0] for reader in readers]
    assert outputs == [b"1"] * 12
    assert len(began) == 12
    assert cache.waiting == 0
