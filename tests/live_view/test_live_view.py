"""Inodes of a live bucket: one version of one path, counted exactly."""

import json
import time

import pytest

from forebay.cache.namespace import Namespace, NamespaceOptions
from forebay.errors import StoreUnavailable
from forebay.fuse_mount.live_view import LiveView
from forebay.fuse_mount.view import ROOT_INO, Absent, Kind, Node
from forebay.tests.support.memory_bucket import MemoryBucket, etag_of
from forebay.tiers.understore import ListPage


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Setup:
    """A view over a bucket in memory. `ttl` passes with `later()`."""

    def __init__(self, *keys: str, prefix: str = "", page_keys: int = 1000) -> None:
        self.bucket = MemoryBucket(page_keys=page_keys)
        for key in keys:
            self.bucket.objects[key] = key.encode()
        self.clock = Clock()
        self.names = Namespace(self.bucket, prefix, NamespaceOptions(metadata_ttl_s=10), clock=self.clock)
        self.view = LiveView(self.names, mount_time_ns=5)

    def later(self) -> None:
        self.clock.now_s += 11

    async def at(self, path: str) -> Node:
        node = await self.find(path)
        assert isinstance(node, Node), path
        return node

    async def find(self, path: str) -> Node | Absent:
        """Walk like the kernel: look up each part, let go of the folders on the way."""
        parent, held = ROOT_INO, []
        node: Node | Absent = Absent.ABSENT
        for part in path.encode().split(b"/"):
            peeked = self.view.peek(parent, part)
            node = peeked if peeked is not None else await self.view.lookup(parent, part)
            if not isinstance(node, Node):
                break
            parent = node.ino
            held.append(node.ino)
        for ino in held[: -1 if isinstance(node, Node) else None]:
            self.view.forget(ino, 1)
        self.view.validate()
        return node

    async def names_in(self, ino: int, *, plus: bool = False) -> list[bytes]:
        directory = await self.view.open_directory(ino)
        entries = list(directory.read(0, plus=plus))
        if plus:
            for entry in entries:
                self.view.forget(entry.node.ino, 1)
        return [entry.name for entry in entries]


async def test_a_tree_as_a_process_walks_it() -> None:
    s = Setup("a", "d/b", "d/e/c", "d/e/f")
    a = await s.at("a")
    assert a[1:4] == (Kind.FILE, 1, 1)
    assert 0 < a.entry_ttl_s <= 10
    folder = await s.at("d/e")
    assert folder[1:4] == (Kind.DIRECTORY, 0, 5)
    c = await s.at("d/e/c")
    assert s.view.path(c.ino) == b"d/e/c"
    assert s.view.path(folder.ino) == b"d/e"
    assert s.view.path(ROOT_INO) == b""
    version = s.view.version(c.ino)
    assert (version.store, version.key, version.etag, version.size) == (s.bucket.id, "d/e/c", etag_of(b"d/e/c"), 5)
    assert await s.find("d/x") is Absent.ABSENT
    assert await s.find("a/x") is Absent.ABSENT
    assert sorted(await s.names_in(ROOT_INO)) == sorted(await s.names_in(ROOT_INO, plus=True)) == [b"a", b"d"]
    with pytest.raises(IsADirectoryError):
        s.view.version(folder.ino)
    with pytest.raises(NotADirectoryError):
        await s.view.open_directory(a.ino)
    for node in (a, folder, c):
        s.view.forget(node.ino, 1)
    assert s.view.inodes_held == 1
    s.view.validate()


async def test_a_prefix_is_the_root() -> None:
    s = Setup("other", "data/x", "data/y/z", prefix="data/")
    z = await s.at("y/z")
    assert s.view.path(z.ino) == b"y/z"
    assert s.view.version(z.ino).key == "data/y/z"
    assert await s.names_in(ROOT_INO) == [b"y", b"x"]


async def test_a_name_keeps_its_inode_while_its_version_stays() -> None:
    s = Setup("a", "b", "c")
    a, b = await s.at("a"), await s.at("b")
    s.later()
    s.bucket.objects["0"] = b"new, before all others"
    s.bucket.objects["b"] = b"replaced"
    assert (await s.at("a")).ino == a.ino
    replaced = await s.at("b")
    assert replaced.ino != b.ino
    assert replaced.size == 8
    # The old one is as it was, for as long as it is held.
    assert s.view.node(b.ino)[1:4] == (Kind.FILE, 1, 1)
    assert s.view.version(b.ino).etag == etag_of(b"b")
    assert s.view.version(replaced.ino).etag == etag_of(b"replaced")
    assert s.view.path(b.ino) == b"b"
    s.later()
    del s.bucket.objects["b"]
    assert await s.find("b") is Absent.ABSENT
    assert s.view.version(replaced.ino).etag == etag_of(b"replaced")
    for ino, count in ((a.ino, 2), (b.ino, 1), (replaced.ino, 1)):
        s.view.forget(ino, count)
    assert s.view.inodes_held == 1
    s.view.validate()


async def test_a_folder_that_vanishes_and_comes_back_is_the_same() -> None:
    s = Setup("d/a", "x")
    d = await s.at("d")
    s.later()
    del s.bucket.objects["d/a"]
    assert await s.find("d") is Absent.ABSENT
    assert await s.names_in(d.ino) == []
    s.later()
    s.bucket.objects["d/b"] = b"b"
    assert (await s.at("d")).ino == d.ino
    assert await s.names_in(d.ino) == [b"b"]


async def test_files_found_one_by_one_keep_their_inode_when_the_folder_is_listed() -> None:
    s = Setup(*(f"k{number:03d}" for number in range(100)), page_keys=10)
    one, two = await s.at("k050"), await s.at("k051")
    s.bucket.objects["k051"] = b"replaced"
    names = await s.names_in(ROOT_INO, plus=True)
    assert len(names) == 100
    assert (await s.at("k050")).ino == one.ino
    replaced = await s.at("k051")
    assert replaced.ino != two.ino
    assert s.view.version(two.ino).etag == etag_of(b"k051")
    for ino, count in ((one.ino, 2), (two.ino, 1), (replaced.ino, 1)):
        s.view.forget(ino, count)
    assert s.view.inodes_held == 1
    s.view.validate()


async def test_an_open_directory_does_not_change() -> None:
    s = Setup("a", "b", "c", "d/x")
    directory = await s.view.open_directory(ROOT_INO)
    first = next(iter(directory.read(0, plus=False)))
    s.later()
    s.bucket.objects |= {"0": b"0", "b": b"changed"}
    del s.bucket.objects["c"]
    fresh = await s.view.open_directory(ROOT_INO)
    # The fresh one is held by the kernel first, so its inodes are those of the names.
    new = {entry.name: entry.node for entry in fresh.read(0, plus=True)}
    old = {entry.name: entry.node for entry in directory.read(first.cookie, plus=True)}
    assert set(new) == {b"0", b"a", b"b", b"d"}
    assert set(old) == {b"a", b"b", b"c"}
    assert old[b"a"].ino == new[b"a"].ino
    assert old[b"b"].ino != new[b"b"].ino
    assert s.view.version(old[b"b"].ino).etag == etag_of(b"b")
    assert s.view.version(new[b"b"].ino).etag == etag_of(b"changed")
    s.view.validate()
    for node in (*old.values(), *new.values()):
        s.view.forget(node.ino, 1)
    assert s.view.inodes_held == 1
    s.view.validate()


async def test_cookies_go_on_where_they_say() -> None:
    s = Setup(*(f"f{number}/x" for number in range(5)), *(f"n{number}" for number in range(7)))
    directory = await s.view.open_directory(ROOT_INO)
    everything = [(entry.name, entry.cookie) for entry in directory.read(0, plus=False)]
    assert len(everything) == 12
    for place, (_, cookie) in enumerate(everything):
        assert [(entry.name, entry.cookie) for entry in directory.read(cookie, plus=False)] == everything[place + 1 :]


async def test_forgets_may_come_out_of_order() -> None:
    s = Setup("d/e/a", "d/e/b")
    d = s.view.peek(ROOT_INO, b"d") or await s.view.lookup(ROOT_INO, b"d")
    assert isinstance(d, Node)
    e = await s.view.lookup(d.ino, b"e")
    assert isinstance(e, Node)
    a = await s.view.lookup(e.ino, b"a")
    assert isinstance(a, Node)
    for ino in (d.ino, e.ino):
        s.view.forget(ino, 1)
    assert s.view.path(a.ino) == b"d/e/a"
    assert s.view.version(a.ino).key == "d/e/a"
    s.view.forget(a.ino, 1)
    assert s.view.inodes_held == 1
    s.view.validate()


async def test_forgetting_more_than_was_looked_up_is_a_fault_that_changes_nothing() -> None:
    s = Setup("a")
    a = await s.at("a")
    with pytest.raises(ValueError, match="forgotten 2 times"):
        s.view.forget(a.ino, 2)
    assert s.view.node(a.ino).size == 1
    s.view.forget(a.ino, 1)


async def test_an_outage_is_never_a_missing_name_or_an_empty_folder() -> None:
    s = Setup("a", "d/b", "d/c")
    d = await s.at("d")
    s.bucket.failure = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        await s.view.open_directory(d.ino)
    with pytest.raises(StoreUnavailable):
        await s.view.lookup(d.ino, b"b")
    s.later()
    a = await s.at("a")
    assert a.entry_ttl_s == 0
    assert await s.names_in(ROOT_INO) == [b"d", b"a"]
    s.bucket.failure = None
    s.later()
    assert (await s.at("a")).entry_ttl_s > 0
    assert await s.names_in(d.ino) == [b"b", b"c"]


async def test_what_a_folder_cannot_show_is_in_its_attributes() -> None:
    s = Setup("d/a", "d/a/b", "d//x", "d/ok")
    d = await s.at("d")
    assert await s.names_in(d.ino) == [b"a", b"ok"]
    skipped = json.loads(s.view.xattrs(d.ino)["user.forebay.skipped"])
    assert skipped["counts"] == {"a folder of the same name": 1, "an empty name in the path": 1}
    assert s.view.xattrs(ROOT_INO) == {}


class LargeFolder(MemoryBucket):
    """`count` files made up page by page; `changed` of them, spread evenly, have another version."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.changed = 0

    async def list_page(
        self, prefix: str, *, delimiter: str | None = None, token: str | None = None, limit: int = 1000
    ) -> ListPage:
        first = int(token or 0)
        last = min(first + limit, self.count)
        keys = [f"{prefix}image-{number:08d}.jpg" for number in range(first, last)]
        stride = self.count // self.changed if self.changed else self.count + 1
        etags = [
            f"{number + (self.count if number % stride == 0 and self.changed else 0):032x}"
            for number in range(first, last)
        ]
        size = last - first
        return ListPage(keys, [110_000] * size, etags, [1] * size, [], str(last) if last < self.count else None)


@pytest.mark.parametrize("changed", [10, 60_000])
async def test_a_large_folder_costs_tens_of_bytes_a_file_and_microseconds(changed: int) -> None:
    """A tenth of a million files: listed, all looked up, refreshed with changes, all forgotten; and what it took."""
    count = 100_000
    bucket, clock = LargeFolder(count), Clock()
    names = Namespace(bucket, "", NamespaceOptions(metadata_ttl_s=10), clock=clock)
    view = LiveView(names)
    directory = await view.open_directory(ROOT_INO)
    started = time.process_time()
    assert sum(1 for _ in directory.read(0, plus=False)) == count
    names_s = time.process_time() - started
    started = time.process_time()
    inos = [entry.node.ino for entry in directory.read(0, plus=True)]
    nodes_s = time.process_time() - started
    assert len(set(inos)) == view.inodes_held - 1 == count
    started = time.process_time()
    for number in range(0, count, 50):
        node = view.peek(ROOT_INO, b"image-%08d.jpg" % number)
        assert isinstance(node, Node)
        assert node.ino == inos[number]
    peek_s = (time.process_time() - started) / (count / 50)
    bucket.changed = changed
    clock.now_s += 11
    started = time.process_time()
    fresh = await view.open_directory(ROOT_INO)
    refresh_s = time.process_time() - started
    again = [entry.node.ino for entry in fresh.read(0, plus=True)]
    moved = sum(1 for before, after in zip(inos, again, strict=True) if before != after)
    stride = count // changed
    assert moved == len(range(0, count, stride))
    assert view.version(inos[0]).etag == f"{0:032x}"
    assert view.version(again[0]).etag == f"{count:032x}"
    view.validate()
    for number in range(0, count, 50):
        view.forget(inos[number], 1)
    for ino in again:
        view.forget(ino, 1)
    for number, ino in enumerate(inos):
        if number % 50:
            view.forget(ino, 1)
    for number in range(0, count, 50):
        view.forget(inos[number], 1)
    assert view.inodes_held == 1
    view.validate()
    # Quiet machine: 0.35 us, 1.5 us, 5 us, 0.4 s. The bounds allow for a busy one.
    assert names_s / count < 5e-6
    assert nodes_s / count < 30e-6
    assert peek_s < 100e-6
    assert refresh_s < 10
