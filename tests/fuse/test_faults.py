"""Whatever goes wrong behind the mount: the right errno, one log line, and the mount lives on."""

import asyncio
import errno
import logging
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from forebay import errors
from forebay.fuse_mount.boundary import Boundary
from forebay.fuse_mount.mount_table import mounted_at
from forebay.fuse_mount.options import MountOptions
from forebay.tests.fuse.conftest import MountIt
from forebay.tests.support.fuse import WAIT_S, until
from forebay.tests.support.static_view import MemoryCache, StaticView
from forebay.tiers.version import ObjectVersion

# Those of errors.py alone: which other modules with classes of theirs are loaded depends on the tests that are collected.
OURS = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, errors.ForebayError)]

EXPECTED: list[tuple[BaseException, int]] = [
    *((cls("scripted"), cls.errno) for cls in OURS),
    (ValueError("unknown"), errno.EIO),
    (KeyError(5), errno.EIO),
    (MemoryError(), errno.EIO),
    (RecursionError(), errno.EIO),
    (TimeoutError(), errno.EIO),
    (ConnectionResetError(), errno.EIO),
    (OSError(errno.EIO, "disk"), errno.EIO),
    (OSError(errno.ENOSPC, "disk full"), errno.EIO),
    (OSError(errno.ESTALE, "changed"), errno.ESTALE),
    (IsADirectoryError(), errno.EISDIR),
    (PermissionError(), errno.EACCES),
]


def errno_of(action: object) -> int:
    assert callable(action)
    with pytest.raises(OSError) as caught:
        action()
    assert caught.value.errno is not None
    return caught.value.errno


@pytest.mark.parametrize("cold", [False, True])
def test_each_error_of_a_read_becomes_its_errno(mount_it: MountIt, cold: bool) -> None:
    view = StaticView({str(index).encode(): b"content" for index in range(len(EXPECTED))})
    cache = MemoryCache(view)
    cache.cold = cold
    faulty = {view.peek(1, str(index).encode()).ino: error for index, (error, _) in enumerate(EXPECTED)}  # type: ignore[union-attr]

    def before(operation: str, version: ObjectVersion) -> None:
        if operation == ("read" if cold else "read_cached") and cache.cut_bytes == 0 and faulty:
            raise faulty[int(version.key)]

    cache.before = before
    root = mount_it(view, cache).path
    for index, (_, code) in enumerate(EXPECTED):
        assert errno_of((root / str(index)).read_bytes) == code, EXPECTED[index]
    faulty.clear()
    assert (root / "0").read_bytes() == b"content"


@pytest.mark.parametrize("operation", ["peek", "lookup"])
def test_each_error_of_a_lookup_becomes_its_errno(mount_it: MountIt, operation: str) -> None:
    view = StaticView({b"good": b"1"})
    view.ask_first = operation == "lookup"

    def before(name: str, path: bytes) -> None:
        if name == operation and path.isdigit():
            raise EXPECTED[int(path)][0]

    view.before = before
    root = mount_it(view).path
    for index, (_, code) in enumerate(EXPECTED):
        assert errno_of((root / str(index)).stat) == code, EXPECTED[index]
    assert (root / "good").read_bytes() == b"1"


def test_a_folder_that_cannot_be_listed_is_never_empty(mount_it: MountIt) -> None:
    view = StaticView({b"folder/a": b"", b"folder/b": b""})
    failing = True

    def before(operation: str, path: bytes) -> None:
        if failing and operation == "open_directory" and path:
            raise errors.StoreUnavailable("the store is away")

    view.before = before
    root = mount_it(view).path
    assert errno_of(lambda: os.listdir(root / "folder")) == errno.EIO
    failing = False
    assert os.listdir(root / "folder") == ["a", "b"]


def test_a_listing_that_breaks_off_is_an_error(mount_it: MountIt) -> None:
    view = StaticView({f"folder/{index:05}".encode(): b"" for index in range(3000)})
    failing = True

    def before(operation: str, path: bytes) -> None:
        if failing and operation == "read_directory" and path == b"02500":
            raise RuntimeError("scripted")

    view.before = before
    root = mount_it(view).path
    assert errno_of(lambda: os.listdir(root / "folder")) == errno.EIO
    failing = False
    assert len(os.listdir(root / "folder")) == 3000


def test_too_few_bytes_are_an_error_and_no_zeros(mount_it: MountIt) -> None:
    view = StaticView({b"file": b"x" * 10_000})
    cache = MemoryCache(view)
    root = mount_it(view, cache).path
    cache.cut_bytes = 1
    for cold in (False, True):
        cache.cold = cold
        assert errno_of((root / "file").read_bytes) == errno.EIO
    cache.cut_bytes = 0
    assert (root / "file").read_bytes() == b"x" * 10_000


def test_an_outage_is_logged_a_few_times_only(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    boundary = Boundary(lambda ino: f"/path-of-{ino}")
    for _ in range(5000):
        boundary.errno_of(errors.StoreUnavailable("no route to the store", remedy="look at it"), "read", 7)
        boundary.errno_of(errors.ObjectNotFound("no such name"), "lookup", 1)
        boundary.errno_of(FileNotFoundError(), "lookup", 1)
    boundary.errno_of(ValueError("a bug"), "read", 7)
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    outage, bug = caplog.records
    assert outage.getMessage() == "read /path-of-7 failed with EIO: no route to the store; look at it"
    assert outage.exc_info is None
    assert bug.exc_info is not None
    assert boundary.errors == {"store_unavailable": 5000, "ValueError": 1}


def test_a_boundary_whose_path_is_unknown_still_answers(caplog: pytest.LogCaptureFixture) -> None:
    def describe(ino: int) -> str:
        raise KeyError(ino)

    assert Boundary(describe).errno_of(errors.StoreUnavailable("away"), "read", 7) == errno.EIO
    assert "inode 7 (KeyError)" in caplog.text


# --- interrupted requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["lane"])
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_hanging_reader_can_be_ended_at_once(mount_it: MountIt, how: signal.Signals) -> None:
    view = StaticView({b"file": bytes(100_000), b"other": b"1"})
    cache = MemoryCache(view)
    mounted = mount_it(view, cache)
    cache.cold = True
    cache.gate = asyncio.Event()
    reader = subprocess.Popen(["cat", mounted.path / "file"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: cache.waiting > 0, "the read")
    reader.send_signal(how)
    assert reader.wait(60) == -how
    mounted.call(cache.gate.set)
    until(lambda: cache.waiting == 0, "the end of the read")
    assert (mounted.path / "other").read_bytes() == b"1"


@pytest.mark.parametrize("transport", ["lane"])
def test_a_signal_that_is_handled_interrupts_a_lookup(mount_it: MountIt) -> None:
    view = StaticView({b"name": b"1"})
    mounted = mount_it(view)
    view.ask_first = True
    view.gate = asyncio.Event()
    code = """if True:
        import os, signal, sys
        class Rung(Exception): pass
        def ring(*_): raise Rung
        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.3, 0.3)
        try: os.stat(sys.argv[1])
        except Rung: sys.exit(42)
    """
    asked = subprocess.run([sys.executable, "-c", code, mounted.path / "name"], timeout=WAIT_S, check=False)
    assert asked.returncode == 42
    until(lambda: mounted.mount.status().gauges["requests_waiting"] == 0, "giving up the lookup")
    assert not view.lookups


@pytest.mark.parametrize("transport", ["lane"])
def test_an_interrupted_lookup_counts_nothing(mount_it: MountIt) -> None:
    view = StaticView({b"name": b"1"})
    mounted = mount_it(view)
    view.ask_first = True
    view.gate = asyncio.Event()
    asker = subprocess.Popen(["stat", mounted.path / "name"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: mounted.mount.status().gauges["requests_waiting"] == 1, "the lookup")
    asker.send_signal(signal.SIGINT)
    assert asker.wait(60) == -signal.SIGINT
    until(lambda: mounted.mount.status().gauges["requests_waiting"] == 0, "giving up the lookup")
    assert not view.lookups
    mounted.call(view.gate.set)
    assert (mounted.path / "name").read_bytes() == b"1"


def test_unmounting_while_readers_wait(mount_it: MountIt) -> None:
    """The fixture unmounts at the end, with a grace time of a second: the readers get an error, nobody hangs."""
    view = StaticView({b"file": bytes(100_000)})
    cache = MemoryCache(view)
    mounted = mount_it(view, cache)
    cache.cold = True
    cache.gate = asyncio.Event()
    reader = subprocess.Popen(["cat", mounted.path / "file"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: cache.waiting > 0, "the read")
    mounted.run(mounted.mount.unmount(grace_s=0.2))
    assert reader.wait(WAIT_S) == 1
    assert cache.waiting == 0


def test_more_waiting_readers_than_slots(mount_it: MountIt) -> None:
    view = StaticView({f"{index}".encode(): b"1" for index in range(40)})
    cache = MemoryCache(view)
    mounted = mount_it(view, cache, max_inflight=4, max_waiting=1000)
    cache.cold = True
    cache.gate = asyncio.Event()
    reader = subprocess.Popen(
        ["xargs", "-P40", "-n1", "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=mounted.path, text=True
    )
    assert reader.stdin is not None
    reader.stdin.write(" ".join(str(index) for index in range(40)))
    reader.stdin.close()
    reader.stdin = None
    until(lambda: cache.waiting >= 4, "the reads")
    if mounted.mount.transport == "lane":
        until(lambda: mounted.mount.status().gauges["requests_waiting"] == 40, "all of them waiting")
        assert cache.waiting == 4
    mounted.call(cache.gate.set)
    output, _ = reader.communicate(timeout=WAIT_S)
    assert output == "1" * 40


@pytest.mark.parametrize("transport", ["lane"])
def test_a_lane_that_breaks_off_leaves_no_mount_behind(mount_it: MountIt) -> None:
    """SystemExit is what nothing in a lane catches. Each ends one of the threads; the askers get an error in the end."""
    view = StaticView({b"file": b"1"})
    mounted = mount_it(view, lane_threads=2)

    def broken(operation: str, path: bytes) -> None:
        if path.startswith(b"break"):
            raise SystemExit

    view.before = broken
    askers = [
        subprocess.Popen(
            ["stat", mounted.path / f"break-{index}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for index in range(2)
    ]
    mounted.run(mounted.mount.wait_unmounted())
    mounted.run(mounted.mount.unmount())
    assert mounted_at(str(mounted.path)) is None
    for asker in askers:
        assert asker.wait(WAIT_S) == 1


def test_a_cancellation_from_within_is_no_interrupt() -> None:
    async def read() -> int:
        boundary = Boundary(lambda ino: "/")
        inner = asyncio.ensure_future(asyncio.Event().wait())
        inner.cancel()
        try:
            await inner
        except asyncio.CancelledError as error:
            return boundary.errno_of(error, "read", 1)
        return 0

    assert asyncio.run(read()) == errno.EIO


@pytest.mark.parametrize("transport", ["lane"])
def test_a_hanging_cache_disk_holds_up_its_readers_only(mount_it: MountIt) -> None:
    view = StaticView({**{f"{index}".encode(): b"1" for index in range(12)}, b"other/name": b""})
    cache = MemoryCache(view)
    disk = threading.Event()
    held_up: list[int] = []

    def before(operation: str, version: ObjectVersion) -> None:
        if operation == "read_cached":
            held_up.append(1)
            assert disk.wait(WAIT_S)

    cache.before = before
    cache.gate = asyncio.Event()
    mounted = mount_it(view, cache)
    readers = [subprocess.Popen(["cat", mounted.path / str(index)], stdout=subprocess.PIPE) for index in range(12)]
    try:
        until(lambda: len(held_up) + cache.waiting == 12, "all reads being held up")
        assert len(held_up) == MountOptions().lane_threads - 1
        assert os.listdir(mounted.path / "other") == ["name"]
        readers[0].kill()
        readers[0].wait(60)
    finally:
        disk.set()
        mounted.call(cache.gate.set)
        outputs = [reader.communicate(timeout=WAIT_S)[0] for reader in readers]
    assert outputs[1:] == [b"1"] * 11
