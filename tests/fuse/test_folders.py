"""Listings: complete, stable under seeking, bounded, and exact in what they count."""

import asyncio
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from forebay.fuse_mount import open_directory
from forebay.fuse_mount.attributes import Appearance
from forebay.fuse_mount.open_directory import OpenDirectory
from forebay.fuse_mount.options import MountOptions
from forebay.fuse_mount.view import Directory
from forebay.tests.fuse.conftest import MountIt
from forebay.tests.support.fuse import WAIT_S, until
from forebay.tests.support.static_view import MemoryCache, StaticView

libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = ctypes.c_void_p
libc.readdir.restype = ctypes.c_void_p
libc.telldir.restype = ctypes.c_long
for name in ("readdir", "telldir", "closedir", "rewinddir"):
    getattr(libc, name).argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
_NAME_OFFSET = 19  # of d_name in struct dirent


def many(count: int) -> StaticView:
    return StaticView({f"folder/file-{index:06d}".encode(): b"" for index in range(count)})


def test_a_large_folder_is_complete(mount_it: MountIt) -> None:
    root = mount_it(many(20_000)).path
    expected = {f"file-{index:06d}" for index in range(20_000)}
    assert set(os.listdir(root / "folder")) == expected
    with os.scandir(root / "folder") as entries:
        assert {entry.name for entry in entries if entry.is_file()} == expected
    assert sum(1 for _ in (root / "folder").rglob("*")) == 20_000


@pytest.mark.parametrize("transport", ["lane"])
def test_a_folder_is_listed_with_attributes_as_far_as_that_helps(
    mount_it: MountIt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_directory, "KNOWN_FIRST", 3000)
    view = many(20_000)
    looked_up: list[bytes] = []
    view.before = lambda operation, path: looked_up.append(path) if operation == "peek" else None
    folder = mount_it(view).path / "folder"
    # Who reads names only costs the kernel little.
    assert len(os.listdir(folder)) == 20_000
    assert 3000 <= len(view.lookups) < 8000
    # Who also looks at them (a fresh listing is read in parts, as `find` does) gets ever more at once.
    looked_up.clear()
    with os.scandir(folder) as entries:
        assert sum(entry.stat().st_size for entry in entries) == 0
    assert len(view.lookups) == 20_001
    assert len(looked_up) < 8000


def test_a_name_that_fits_no_reply_is_an_error_and_no_end() -> None:
    view = StaticView({b"n" * 200: b""})

    async def listing() -> Directory:
        return await view.open_directory(1)

    directory = OpenDirectory(view, asyncio.run(listing()), 1, Appearance(MountOptions()))
    with pytest.raises(OSError, match="does not fit"):
        directory.read(2, 300, plus=True)
    assert not view.lookups
    assert len(directory.read(2, 4096, plus=True)) == 128 + 24 + 200
    directory.close()
    view.forget(2**40 + 1, 1)


def test_seeking_in_a_folder_is_stable(mount_it: MountIt) -> None:
    folder = mount_it(many(3000)).path / "folder"
    stream = libc.opendir(os.fsencode(folder))
    assert stream
    try:

        def next_name() -> bytes | None:
            entry = libc.readdir(stream)
            return ctypes.string_at(entry + _NAME_OFFSET) if entry else None

        where: dict[int, bytes] = {}
        while True:
            at = libc.telldir(stream)
            name = next_name()
            if name is None:
                break
            where[at] = name
        assert len([n for n in where.values() if n not in (b".", b"..")]) == 3000
        for at, name in list(where.items())[::97]:
            libc.seekdir(stream, at)
            assert next_name() == name
        libc.rewinddir(stream)
        assert next_name() == where[0]
    finally:
        libc.closedir(stream)


def test_lookups_are_given_back(mount_it: MountIt) -> None:
    """What listings and lookups count is forgotten when the kernel drops its caches: nothing leaks."""
    view = many(2000)
    root = mount_it(view).path
    for _ in range(3):
        for entry in os.scandir(root / "folder"):
            entry.stat()
    partly = os.scandir(root / "folder")
    next(partly)
    partly.close()
    assert len(view.lookups) == 2001
    until(lambda: _dropped(view), "forgetting every inode")


def test_a_storm_of_everything_counts_exactly(mount_it: MountIt) -> None:
    """Processes that list, look up, read and give up, while names expire and the kernel drops its caches."""
    files = {f"folder-{index % 5}/name-{index}".encode(): bytes(index) for index in range(500)}
    view = StaticView(files, entry_ttl_s=0.01)
    view.ask_first = True
    cache = MemoryCache(view)
    cache.cold = True
    root = mount_it(view, cache).path
    script = """if True:
        import os, random, sys
        rng = random.Random(int(sys.argv[2]))
        for _ in range(300):
            folder = os.path.join(sys.argv[1], f"folder-{rng.randrange(5)}")
            what = rng.randrange(4)
            if what == 0:
                assert len(os.listdir(folder)) == 100
            elif what == 1:
                listing = os.scandir(folder)
                for _ in range(rng.randrange(100)): next(listing).stat()
                listing.close()
            else:
                index = rng.randrange(500)
                path = os.path.join(sys.argv[1], f"folder-{index % 5}", f"name-{index}")
                with open(path, "rb") as file: assert file.read() == bytes(index)
            if not rng.randrange(50): open("/proc/sys/vm/drop_caches", "w").write("2")
    """
    storms = [subprocess.Popen([sys.executable, "-c", script, root, str(seed)]) for seed in range(4)]
    killed = subprocess.Popen(["find", root, "-size", "+1000000"], stdout=subprocess.DEVNULL)
    killed.kill()
    killed.wait()
    assert [storm.wait(WAIT_S) for storm in storms] == [0] * 4
    until(lambda: _dropped(view), "forgetting every inode")
    assert not view.lookups
    assert set(cache.forgotten) <= set(view._items)


def _dropped(view: StaticView) -> bool:
    Path("/proc/sys/vm/drop_caches").write_text("2")
    return not view.lookups


def test_unlinked_while_open_keeps_its_inode(mount_it: MountIt) -> None:
    view = StaticView({b"a": b"content"}, entry_ttl_s=0.0)
    root = mount_it(view).path
    with (root / "a").open("rb") as file:
        view.remove(b"a")
        assert not (root / "a").exists()
        Path("/proc/sys/vm/drop_caches").write_text("2")
        assert file.read() == b"content"
        assert len(view.lookups) == 1
    until(lambda: _dropped(view), "forgetting the inode after the last close")
