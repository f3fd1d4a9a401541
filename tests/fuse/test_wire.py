"""The wire format, and a lane that is fed by a pretended kernel: every request gets exactly one answer, garbage too."""

import asyncio
import errno
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.fuse_mount import wire
from forebay.fuse_mount.attributes import FOREVER_S, split_seconds
from forebay.fuse_mount.boundary import Boundary
from forebay.fuse_mount.lane import Lane
from forebay.fuse_mount.options import MountOptions
from forebay.fuse_mount.parts import Parts
from forebay.fuse_mount.readonly import ReadOnlyHandlers
from forebay.fuse_mount.reads import FileReads
from forebay.fuse_mount.wire import Op
from forebay.fuse_mount.xattrs import Xattrs
from forebay.tests.support.static_view import MemoryCache, StaticView

NO_REPLY = {Op.FORGET, Op.BATCH_FORGET}


@dataclass
class Kernel:
    """The kernel's end of the connection."""

    end: socket.socket
    lane: Lane
    view: StaticView
    cache: MemoryCache
    _unique: int = 0

    def send(self, operation: int, ino: int = 1, body: bytes = b"", *, unique: int | None = None) -> int:
        self._unique += 2
        unique = self._unique if unique is None else unique
        header = wire.IN_HEADER.pack(wire.HEADER_BYTES + len(body), operation, unique, ino, 0, 0, 0, 0, 0)
        self.end.sendall(header + body)
        return unique

    async def receive(self) -> tuple[int, int, bytes]:
        """(unique, errno, data) of the next reply."""
        message = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.end, 1 << 21), 30)
        length, error, unique = wire.OUT_HEADER.unpack_from(message)
        assert length == len(message)
        return unique, -error, message[wire.OUT_HEADER.size :]

    async def ask(self, operation: int, ino: int = 1, body: bytes = b"") -> tuple[int, bytes]:
        unique = self.send(operation, ino, body)
        answered, code, data = await self.receive()
        assert answered == unique
        return code, data

    async def init(self, major: int = 7, minor: int = 45, flags: int = 0xFFFFFFFF) -> tuple[int, bytes]:
        return await self.ask(
            Op.INIT, 0, wire.INIT_IN.pack(major, minor, 131072, flags) + struct.pack("=I", 0) + bytes(44)
        )


@asynccontextmanager
async def pretended_kernel(view: StaticView) -> AsyncIterator[Kernel]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    cache = MemoryCache(view)
    options = MountOptions(lane_threads=2, max_inflight=8, max_waiting=50)
    boundary = Boundary(lambda ino: "/")
    parts = Parts(view, FileReads(view, cache, None), Xattrs(view, lambda version: {}), boundary, options)
    lane = Lane(theirs.detach(), ReadOnlyHandlers(parts), boundary, options)
    lane.ready.add_done_callback(lambda ready: ready.exception())
    lane.start()
    with ours:
        yield Kernel(ours, lane, view, cache)
    await asyncio.wait_for(lane.ended, 30)
    await lane.close()
    assert lane.gauges()["requests_waiting"] == 0


def inode(view: StaticView, name: bytes) -> int:
    return view._items[1].children[name]


def test_structures_have_the_sizes_of_the_header_file() -> None:
    sizes = {
        wire.IN_HEADER: 40, wire.OUT_HEADER: 16, wire.INIT_OUT: 64, wire.ENTRY_OUT: 128, wire.ATTR_OUT: 104, wire.OPEN_OUT: 16,
        wire.STATFS_OUT: 80, wire.DIRENT: 24, wire.GETXATTR_OUT: 8, wire.NOTIFY_INVAL_ENTRY_OUT: 16, wire.FORGET_ONE: 16,
    }  # fmt: skip
    assert {layout.format: layout.size for layout in sizes} == {layout.format: size for layout, size in sizes.items()}


@pytest.mark.parametrize(
    ("ttl_s", "expected"),
    [(0.0, (0, 0)), (-1.0, (0, 0)), (1.5, (1, 500_000_000)), (float("inf"), (FOREVER_S, 0)), (1e300, (FOREVER_S, 0))],
)
def test_timeouts(ttl_s: float, expected: tuple[int, int]) -> None:
    assert split_seconds(ttl_s) == expected


async def test_init_asks_for_what_the_kernel_offers_and_no_more() -> None:
    async with pretended_kernel(StaticView()) as kernel:
        code, data = await kernel.init()
        assert code == 0
        major, minor, _, flags, *_, max_write, time_granularity, max_pages, _, _ = wire.INIT_OUT.unpack(data)
        assert (major, minor, time_granularity, max_pages, max_write) == (7, 38, 1, 256, 4096)
        assert flags & wire.InitFlag.NO_OPEN_SUPPORT
        assert not flags & wire.InitFlag.WRITEBACK_CACHE
        await kernel.lane.ready
        assert (await kernel.ask(Op.OPEN, 1, bytes(8)))[0] == errno.ENOSYS
    async with pretended_kernel(StaticView()) as kernel:
        _, data = await kernel.init(flags=int(wire.InitFlag.MAX_PAGES))
        assert wire.INIT_OUT.unpack(data)[3] == wire.InitFlag.MAX_PAGES
        await kernel.lane.ready
        # A kernel that cannot do without opens gets them answered.
        code, data = await kernel.ask(Op.OPEN, 1, bytes(8))
        assert (code, wire.OPEN_OUT.unpack(data)[1]) == (0, wire.OpenFlag.KEEP_CACHE)


async def test_init_of_other_versions() -> None:
    async with pretended_kernel(StaticView()) as kernel:
        code, data = await kernel.init(major=8)
        assert (code, wire.INIT_OUT.unpack(data)[0]) == (0, 7)
        assert not kernel.lane.ready.done()
        assert (await kernel.init(minor=12))[0] == errno.EPROTO
        with pytest.raises(OSError, match=r"7\.12"):
            await kernel.lane.ready


async def test_replies_in_detail() -> None:
    view = StaticView({b"file": b"hello"}, negative_ttl_s=2.5)
    async with pretended_kernel(view) as kernel:
        await kernel.init()
        await kernel.lane.ready
        code, data = await kernel.ask(Op.LOOKUP, 1, b"file\0")
        ino, _, entry_valid, attr_valid, *_ = wire.ENTRY_OUT.unpack(data)
        assert (code, ino, entry_valid, attr_valid) == (0, inode(view, b"file"), 10**9, FOREVER_S)
        code, data = await kernel.ask(Op.LOOKUP, 1, b"none\0")
        ino, _, entry_valid, _, entry_valid_ns, *_ = wire.ENTRY_OUT.unpack(data)
        assert (code, ino, entry_valid, entry_valid_ns) == (0, 0, 2, 500_000_000)
        assert (await kernel.ask(Op.READ, inode(view, b"file"), wire.READ_IN.pack(0, 1, 100) + bytes(20))) == (
            0,
            b"ello",
        )
        assert (await kernel.ask(Op.READ, inode(view, b"file"), wire.READ_IN.pack(0, 99, 100) + bytes(20))) == (0, b"")
        for unknown in (13, 47, 51, 99, 4096):
            assert (await kernel.ask(unknown))[0] in (errno.ENOSYS, errno.EROFS)
        kernel.send(Op.BATCH_FORGET, 0, wire.BATCH_FORGET_IN.pack(1, 0) + wire.FORGET_ONE.pack(inode(view, b"file"), 1))
        assert (await kernel.ask(Op.DESTROY))[0] == 0
        assert not view.lookups


async def test_an_interrupt_that_comes_too_early_is_sent_again() -> None:
    view = StaticView({b"file": b"hello"})
    view.ask_first = True
    view.gate = asyncio.Event()
    async with pretended_kernel(view) as kernel:
        kernel.send(Op.INTERRUPT, 0, wire.INTERRUPT_IN.pack(700), unique=701)
        assert (await kernel.receive())[:2] == (701, errno.EAGAIN)
        kernel.send(Op.LOOKUP, 1, b"file\0", unique=700)
        interrupted = False
        while not interrupted:
            kernel.send(Op.INTERRUPT, 0, wire.INTERRUPT_IN.pack(700), unique=701)
            unique, code, _ = await kernel.receive()
            # Another thread may have been faster: then the kernel would ask again.
            interrupted = (unique, code) == (700, errno.EINTR)
            assert interrupted or (unique, code) == (701, errno.EAGAIN)
        assert not view.lookups
        view.gate.set()


async def test_more_requests_than_may_wait_are_told_to_come_again() -> None:
    view = StaticView({b"file": b"hello"})
    view.ask_first = True
    view.gate = asyncio.Event()
    async with pretended_kernel(view) as kernel:
        for _ in range(70):
            kernel.send(Op.LOOKUP, 1, b"file\0")
            await asyncio.sleep(0)
        refused = [(await kernel.receive())[1] for _ in range(20)]
        assert refused == [errno.EAGAIN] * 20
        view.gate.set()
        assert [(await kernel.receive())[1] for _ in range(50)] == [0] * 50
        assert view.lookups[inode(view, b"file")] == 50


async def test_replies_that_nobody_takes_are_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    view = StaticView({b"file": b"hello", b"folder/a": b"1", b"folder/b": b"2"})
    async with pretended_kernel(view) as kernel:
        _, data = await kernel.ask(Op.OPENDIR, inode(view, b"folder"), bytes(8))
        handle = wire.OPEN_OUT.unpack(data)[0]
        genuine = os.writev

        def interrupted(descriptor: int, buffers: tuple[bytes, ...]) -> int:
            genuine(descriptor, [wire.OUT_HEADER.pack(16, -errno.ENOENT, 0)])
            raise OSError(errno.ENOENT, "the asker is gone")

        monkeypatch.setattr(os, "writev", interrupted)
        kernel.send(Op.LOOKUP, 1, b"file\0")
        await kernel.receive()
        kernel.send(Op.READDIRPLUS, inode(view, b"folder"), wire.READ_IN.pack(handle, 0, 4096) + bytes(20))
        await kernel.receive()
        kernel.send(Op.OPENDIR, 1, bytes(8))
        await kernel.receive()
        monkeypatch.setattr(os, "writev", genuine)
        await kernel.ask(Op.RELEASEDIR, 1, wire.RELEASE_IN.pack(handle, 0, 0) + bytes(8))
        assert not view.lookups


async def test_a_refused_reply_becomes_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with pretended_kernel(StaticView({b"file": b"hello"})) as kernel:
        genuine = os.writev

        def refused(descriptor: int, buffers: tuple[bytes, ...]) -> int:
            monkeypatch.setattr(os, "writev", genuine)
            raise OSError(errno.EINVAL, "invalid")

        monkeypatch.setattr(os, "writev", refused)
        assert (await kernel.ask(Op.GETATTR, 1, bytes(16)))[0] == errno.EIO
        assert "refused the reply to getattr" in caplog.text


requests = st.tuples(
    st.one_of(st.sampled_from(list(Op)), st.integers(0, 2**32 - 1)),
    st.sampled_from([0, 1, 2, 2**40 + 1, 2**64 - 1]),
    st.binary(max_size=200),
)


def test_garbage_is_answered_and_harms_nothing() -> None:
    @settings(max_examples=40, deadline=None)
    @given(st.lists(requests, max_size=12))
    def check(garbage: list[tuple[int, int, bytes]]) -> None:
        asyncio.run(feed(garbage))

    async def feed(garbage: list[tuple[int, int, bytes]]) -> None:
        view = StaticView({b"file": b"hello"})
        view.forget = lambda ino, count: None  # type: ignore[method-assign]  # garbage forgets what it likes
        async with pretended_kernel(view) as kernel:
            kernel.end.sendall(b"short")
            for operation, ino, body in garbage:
                if operation in NO_REPLY:
                    kernel.send(operation, ino, body)
                elif operation == Op.INTERRUPT:
                    kernel.send(operation, ino, wire.INTERRUPT_IN.pack(2**60) + body)
                    assert (await kernel.receive())[1] == errno.EAGAIN
                else:
                    code, _ = await kernel.ask(operation, ino, body)
                    assert 0 <= code < 4096
            code, data = await kernel.ask(Op.READ, inode(view, b"file"), wire.READ_IN.pack(0, 0, 100) + bytes(20))
            assert (code, data) == (0, b"hello")

    check()


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.integers(0, 2**64 - 1)), max_size=20))
@settings(max_examples=50, deadline=None)
def test_the_inodes_of_a_listing_are_read_back(entries: list[tuple[bytes, int]]) -> None:
    reply = b"".join(
        wire.ENTRY_OUT.pack(ino, *(0,) * 21)
        + wire.DIRENT.pack(ino, 1, len(name), 8)
        + name
        + wire.PADDING[len(name) % 8]
        for name, ino in entries
    )
    assert len(reply) % 8 == 0
    assert wire.direntplus_inodes(memoryview(reply)) == [ino for _, ino in entries if ino]
