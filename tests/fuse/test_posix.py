"""What a process sees of a mount: the same on both transports."""

import errno
import mmap
import os
import random
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from forebay.tests.fuse.conftest import MountIt, Transport
from forebay.tests.support.static_view import StaticView

BIG = random.Random(7).randbytes(5 * 1024 * 1024 + 123)


@pytest.fixture
def view() -> StaticView:
    return StaticView({b"big": BIG, b"empty": b"", b"sub/deep/hello.txt": b"hello\n", b"sub/x": b"x"})


def test_contents_are_the_truth_by_every_way_of_reading(view: StaticView, mount_it: MountIt, tmp_path: Path) -> None:
    root = mount_it(view).path
    assert (root / "big").read_bytes() == BIG
    assert (root / "empty").read_bytes() == b""
    assert (root / "sub/deep/hello.txt").read_text() == "hello\n"
    direct = os.open(root / "big", os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, 2 * 1024 * 1024)
    try:
        assert os.preadv(direct, [buffer], 4096) == len(buffer)
        assert buffer[:] == BIG[4096 : 4096 + len(buffer)]
        assert os.preadv(direct, [buffer], 5 * 1024 * 1024) == 123
        assert buffer[:123] == BIG[-123:]
        assert os.preadv(direct, [buffer], 6 * 1024 * 1024) == 0
    finally:
        buffer.close()
        os.close(direct)
    # copyfile uses sendfile or copy_file_range; the copy tool may use either or splice.
    shutil.copyfile(root / "big", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == BIG
    subprocess.run(["cp", "--sparse=never", root / "big", tmp_path / "cp"], check=True)
    assert (tmp_path / "cp").read_bytes() == BIG


def test_mapped_memory(view: StaticView, mount_it: MountIt) -> None:
    """In a process of its own: see support/reading.py."""
    path = mount_it(view).path / "big"
    code = """if True:
        import mmap, os, sys
        with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            sys.stdout.buffer.write(mapped[4_000_000:4_100_000] + mapped[:10] + mapped[-10:])
    """
    got = subprocess.run([sys.executable, "-c", code, path], stdout=subprocess.PIPE, check=True).stdout
    assert got == BIG[4_000_000:4_100_000] + BIG[:10] + BIG[-10:]


def test_kernel_side_copies(view: StaticView, mount_it: MountIt, tmp_path: Path) -> None:
    root = mount_it(view).path
    source = os.open(root / "big", os.O_RDONLY)
    target = os.open(tmp_path / "target", os.O_RDWR | os.O_CREAT)
    read_end, write_end = os.pipe()
    try:
        assert os.sendfile(target, source, 1000, 5000) == 5000
        # Between file systems of different types the kernel refuses this one, and programs fall back to reading.
        with pytest.raises(OSError, match="cross-device"):
            os.copy_file_range(source, target, 4096, offset_src=8192, offset_dst=5000)
        spliced = os.splice(source, write_end, 4096, offset_src=100)
        assert os.read(read_end, spliced) == BIG[100 : 100 + spliced]
        assert os.pread(target, 5000, 0) == BIG[1000:6000]
    finally:
        for descriptor in (source, target, read_end, write_end):
            os.close(descriptor)


def test_seeking(view: StaticView, mount_it: MountIt) -> None:
    descriptor = os.open(mount_it(view).path / "big", os.O_RDONLY)
    try:
        assert os.lseek(descriptor, 0, os.SEEK_END) == len(BIG)
        assert os.lseek(descriptor, -10, os.SEEK_END) == len(BIG) - 10
        assert os.read(descriptor, 100) == BIG[-10:]
        assert os.lseek(descriptor, 0, os.SEEK_HOLE) == len(BIG)
        assert os.lseek(descriptor, 100, os.SEEK_DATA) == 100
        assert os.pread(descriptor, 10, len(BIG) + 100) == b""
    finally:
        os.close(descriptor)


def test_attributes(view: StaticView, mount_it: MountIt) -> None:
    root = mount_it(view, umask=0o027, uid=1234, gid=2345, allow_other=True).path
    big = (root / "big").stat()
    assert stat.S_ISREG(big.st_mode)
    assert stat.S_IMODE(big.st_mode) == 0o640
    assert (big.st_uid, big.st_gid, big.st_nlink) == (1234, 2345, 1)
    assert big.st_size == len(BIG)
    assert big.st_blocks * 512 >= len(BIG) > (big.st_blocks - 1) * 512
    assert big.st_ino > 2**40
    assert big.st_mtime_ns == 1_700_000_000_123_456_789 + big.st_ino
    folder = root.stat()
    assert stat.S_ISDIR(folder.st_mode)
    assert folder.st_nlink == 1  # with 2, programs that count subfolders by it would not look into this one
    assert stat.S_IMODE(folder.st_mode) == 0o750
    assert folder.st_ino == 1
    names = {entry.name: entry.inode() for entry in os.scandir(root)}
    assert names["big"] == big.st_ino
    totals = os.statvfs(root)
    assert totals.f_blocks * totals.f_frsize == 2**50
    assert totals.f_bavail > 0
    assert totals.f_namemax == 255
    assert totals.f_flag & os.ST_RDONLY


def test_permissions_are_enforced_by_the_kernel(view: StaticView, mount_it: MountIt) -> None:
    root = mount_it(view, umask=0o077, uid=1234, gid=1234, allow_other=True).path
    for path in (root, *root.parents):
        if path.stat().st_uid == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o755) if path != root else None
    probe = ["setpriv", "--reuid=4321", "--regid=4321", "--clear-groups", "cat", str(root / "big")]
    denied = subprocess.run(probe, capture_output=True, check=False)
    assert denied.returncode != 0
    assert b"Permission denied" in denied.stderr


@pytest.mark.parametrize(
    "write",
    [
        lambda root: (root / "new").write_text("x"),
        lambda root: (root / "big").open("r+b"),
        lambda root: (root / "big").unlink(),
        lambda root: (root / "big").rename(root / "other"),
        lambda root: (root / "folder").mkdir(),
        lambda root: (root / "sub").rmdir(),
        lambda root: os.truncate(root / "big", 3),
        lambda root: (root / "link").symlink_to("big"),
        lambda root: os.link(root / "big", root / "hard"),
        lambda root: (root / "big").chmod(0o600),
        lambda root: os.utime(root / "big"),
        lambda root: os.setxattr(root / "big", "user.x", b"y"),
    ],
)
def test_writing_is_refused(view: StaticView, mount_it: MountIt, write: object) -> None:
    root = mount_it(view).path
    assert callable(write)
    with pytest.raises(OSError) as caught:
        write(root)
    assert caught.value.errno == errno.EROFS


def test_missing_names_and_wrong_kinds(view: StaticView, mount_it: MountIt) -> None:
    root = mount_it(view).path
    with pytest.raises(FileNotFoundError):
        (root / "nothing").stat()
    with pytest.raises(NotADirectoryError):
        (root / "big/below").stat()
    with pytest.raises(IsADirectoryError):
        (root / "sub").read_bytes()


def test_a_name_that_appears_is_seen(mount_it: MountIt) -> None:
    view = StaticView({b"a": b"1"}, entry_ttl_s=0.0)
    root = mount_it(view).path
    assert not (root / "b").exists()
    view.add(b"b", b"2")
    assert (root / "b").read_bytes() == b"2"
    # A new version of a name gets a new inode; what is open keeps the old one.
    with (root / "b").open("rb") as opened:
        view.add(b"b", b"new version")
        assert (root / "b").read_bytes() == b"new version"
        assert opened.read() == b"2"
    view.remove(b"b")
    assert not (root / "b").exists()


def test_absent_names_are_remembered_where_the_view_allows(mount_it: MountIt) -> None:
    view = StaticView({b"a": b"1"}, negative_ttl_s=1e6)
    asked: list[bytes] = []
    view.before = lambda operation, path: asked.append(path) if operation == "peek" else None
    root = mount_it(view).path
    for _ in range(5):
        assert not (root / "nothing").exists()
    assert asked.count(b"nothing") == 1


def test_invalidate_entry_makes_the_kernel_ask_again(mount_it: MountIt, transport: Transport) -> None:
    view = StaticView({b"a": b"1"})
    mounted = mount_it(view)
    assert (mounted.path / "a").read_bytes() == b"1"
    view.add(b"a", b"changed")
    assert (mounted.path / "a").read_bytes() == b"1"
    mounted.mount.invalidate_entry(1, b"a")
    mounted.mount.invalidate_entry(1, b"never seen")
    assert (mounted.path / "a").read_bytes() == b"changed"


def test_names_with_any_bytes(mount_it: MountIt) -> None:
    names = [
        b"with space",
        b"tab\tnew\nline",
        b"\xff\xfe not utf-8",
        "umlaut-ä-漢".encode(),
        b"-dash",
        b"back\\slash",
        b"n" * 255,
    ]
    view = StaticView({name: name for name in names})
    root = os.fsencode(mount_it(view).path)
    assert sorted(os.listdir(root)) == sorted(names)
    for name in names:
        with open(os.path.join(root, name), "rb") as file:
            assert file.read() == name


def test_many_readers_at_once(view: StaticView, mount_it: MountIt) -> None:
    path = mount_it(view).path / "big"

    def reader(seed: int) -> None:
        rng = random.Random(seed)
        with path.open("rb", buffering=0) as file:
            for _ in range(100):
                offset, size = rng.randrange(len(BIG)), rng.choice([1, 100, 4096, 200_000])
                assert os.pread(file.fileno(), size, offset) == BIG[offset : offset + size]

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(reader, range(16)))


def test_a_single_file_read_twice_is_asked_for_once(view: StaticView, mount_it: MountIt) -> None:
    from forebay.tests.support.static_view import MemoryCache

    cache = MemoryCache(view)
    asked: list[str] = []
    cache.before = lambda operation, version: asked.append(operation)
    path = mount_it(view, cache).path / "sub/x"
    assert path.read_bytes() == b"x"
    count = len(asked)
    assert path.read_bytes() == b"x"
    assert len(asked) == count
