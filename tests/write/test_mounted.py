"""A writable mount as programs see it, on both transports, over a bucket in memory."""

import contextlib
import errno
import fcntl
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forebay.cache.write.object_metadata import attributes_of
from forebay.tests.support.fuse import need_fuse, until
from forebay.tests.support.multipart_bucket import Fault, MultipartBucket
from forebay.tests.support.written_mount import WrittenMount, written_mount

MIB = 1024 * 1024
MountIt = Callable[..., WrittenMount]


@pytest.fixture(params=["lane", "pyfuse3"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bucket() -> MultipartBucket:
    return MultipartBucket()


@pytest.fixture
def mount_it(tmp_path: Path, bucket: MultipartBucket, transport: str) -> Iterator[MountIt]:
    need_fuse()
    (tmp_path / "mnt").mkdir()
    with contextlib.ExitStack() as stack:

        def mount(**options: Any) -> WrittenMount:
            given = {"transport": transport, **options}
            return stack.enter_context(written_mount(bucket, tmp_path / "tier", tmp_path / "mnt", **given))

        yield mount


def test_what_is_written_is_read_back_and_reaches_the_bucket(mount_it: MountIt, bucket: MultipartBucket) -> None:
    mount = mount_it()
    data = random.Random(1).randbytes(3 * MIB)
    (mount.path / "large").write_bytes(data)
    (mount.path / "small").write_text("small")
    (mount.path / "empty").touch()
    assert (mount.path / "large").read_bytes() == data
    assert sorted(os.listdir(mount.path)) == ["empty", "large", "small"]
    assert (mount.path / "large").stat().st_size == len(data)
    mount.flush()
    assert bucket.contents() == {"large": data, "small": b"small", "empty": b""}
    assert (mount.path / "large").read_bytes() == data


def test_flags_of_open(mount_it: MountIt) -> None:
    path = mount_it().path / "f"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    with pytest.raises(FileExistsError):
        os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    path.write_bytes(b"0123456789")
    with path.open("ab") as file:
        file.write(b"abc")
    assert path.read_bytes() == b"0123456789abc"
    with path.open("r+b") as file:
        file.seek(2)
        file.write(b"XY")
    assert path.read_bytes() == b"01XY456789abc"
    with path.open("wb"):
        pass
    assert path.read_bytes() == b""


def test_truncation_and_holes(mount_it: MountIt) -> None:
    path = mount_it().path / "f"
    path.write_bytes(b"x" * 100_000)
    os.truncate(path, 10)
    assert path.read_bytes() == b"x" * 10
    os.truncate(path, 50_000)
    assert path.read_bytes() == b"x" * 10 + bytes(49_990)
    with path.open("r+b") as file:
        file.seek(5 * MIB)
        file.write(b"end")
        file.flush()
        os.fsync(file.fileno())
        assert os.fstat(file.fileno()).st_size == 5 * MIB + 3
        os.ftruncate(file.fileno(), 5)
        assert os.fstat(file.fileno()).st_size == 5
    assert path.read_bytes() == b"x" * 5


def test_a_listed_object_is_changed_in_place(mount_it: MountIt, bucket: MultipartBucket) -> None:
    bucket.write("d/f", b"0123456789" * 10_000)
    mount = mount_it()
    path = mount.path / "d" / "f"
    reader = path.open("rb")
    assert reader.read(10) == b"0123456789"
    inode = path.stat().st_ino
    with path.open("r+b") as file:
        file.seek(3)
        file.write(b"abc")
    assert path.stat().st_ino == inode
    reader.seek(0)
    assert os.pread(reader.fileno(), 10, 0) == b"012abc6789", "who had it open before sees the change"
    reader.close()
    with path.open("ab") as file:
        file.write(b"more")
    expected = b"012abc6789" + b"0123456789" * 9_999 + b"more"
    assert path.read_bytes() == expected
    mount.flush()
    assert bucket.contents() == {"d/f": expected}
    assert path.stat().st_ino == inode


def test_names(mount_it: MountIt, bucket: MultipartBucket) -> None:
    bucket.write("listed/a", b"a")
    bucket.write("listed/b", b"b")
    mount = mount_it()
    root = mount.path
    (root / "new" / "deep").mkdir(parents=True)
    (root / "new" / "deep" / "f").write_text("f")
    os.rename(root / "listed" / "a", root / "new" / "a")
    assert (root / "new" / "a").read_text() == "a"
    assert os.listdir(root / "listed") == ["b"]
    os.rename(root / "listed", root / "moved")
    assert sorted(os.listdir(root)) == ["moved", "new"]
    assert (root / "moved" / "b").read_text() == "b"
    with pytest.raises(FileNotFoundError):
        (root / "listed" / "b").stat()
    with pytest.raises(OSError, match="not empty"):
        (root / "moved").rmdir()
    with pytest.raises(OSError, match="not empty"):
        os.rename(root / "new" / "deep", root / "moved")
    os.replace(root / "new" / "a", root / "moved" / "b")
    assert (root / "moved" / "b").read_text() == "a"
    (root / "moved" / "b").unlink()
    os.rename(root / "new" / "deep", root / "moved")
    assert (root / "moved" / "f").read_text() == "f"
    with pytest.raises(PermissionError):
        os.link(root / "moved" / "f", root / "hard")
    os.symlink("moved/f", root / "soft")
    assert os.readlink(root / "soft") == "moved/f"
    assert (root / "soft").read_text() == "f"
    mount.flush()
    assert {key for key in bucket.contents() if not key.endswith("/")} == {"moved/f", "soft"}
    assert {key for key in bucket.contents() if key.endswith("/")} == {"moved/", "new/"}
    assert sorted(os.listdir(root)) == ["moved", "new", "soft"]


def test_a_folder_that_was_listed_before_it_was_renamed(mount_it: MountIt, bucket: MultipartBucket) -> None:
    for index in range(20):
        bucket.write(f"old/sub/f{index}", b"%d" % index)
    mount = mount_it()
    held = os.open(mount.path / "old" / "sub", os.O_RDONLY)
    reader = (mount.path / "old" / "sub" / "f7").open("rb")
    os.rename(mount.path / "old", mount.path / "new")
    assert len(os.listdir(held)) == 20
    assert (mount.path / "new" / "sub" / "f3").read_bytes() == b"3"
    (mount.path / "new" / "sub" / "f3").write_bytes(b"three")
    mount.flush()
    assert reader.read() == b"7"
    assert {key for key in bucket.contents() if not key.endswith("/")} == {f"new/sub/f{i}" for i in range(20)} | {
        "old/sub/f7"
    }
    reader.close()
    os.close(held)
    until(lambda: not [key for key in bucket.contents() if key.startswith("old")], "it goes when it is closed")
    assert (mount.path / "new" / "sub" / "f3").read_bytes() == b"three"
    assert sorted(os.listdir(mount.path)) == ["new"]


def test_a_listed_folder_in_which_something_was_written_before_it_was_renamed(
    mount_it: MountIt, bucket: MultipartBucket
) -> None:
    """It got a node that the kernel had not asked for."""
    for key in ("x/y/f", "x/g", "z/y/f"):
        bucket.write(key, b"listed")
    mount = mount_it()
    for _ in os.walk(mount.path):
        pass
    (mount.path / "x" / "g").write_bytes(b"written")
    os.rename(mount.path / "x", mount.path / "z" / "d")
    (mount.path / "z" / "d" / "y" / "new").mkdir()
    (mount.path / "z" / "d" / "y" / "f").unlink()
    assert (mount.path / "z" / "d" / "g").read_bytes() == b"written"
    mount.flush()
    assert sorted(key for key in bucket.contents() if not key.endswith("/")) == ["z/d/g", "z/y/f"]


def test_a_listed_file_that_is_written_to_after_its_name_is_gone(mount_it: MountIt, bucket: MultipartBucket) -> None:
    bucket.write("f", b"listed")
    mount = mount_it()
    with (mount.path / "f").open("r+b", buffering=0) as file:
        (mount.path / "f").unlink()
        file.seek(0, os.SEEK_END)
        file.write(b"more" * 50_000)
        assert os.fstat(file.fileno()).st_size == 200_006
        assert os.pread(file.fileno(), 10, 0) == b"listedmore"
    until(lambda: bucket.contents() == {}, "the object goes when it is closed")


def test_unlinked_while_open(mount_it: MountIt, bucket: MultipartBucket) -> None:
    bucket.write("listed", b"listed")
    mount = mount_it()
    (mount.path / "made").write_bytes(b"made" * 50_000)
    files = [(mount.path / name).open("rb") for name in ("listed", "made")]
    writer = (mount.path / "made").open("r+b")
    for name in ("listed", "made"):
        (mount.path / name).unlink()
    assert os.listdir(mount.path) == []
    assert files[0].read() == b"listed"
    writer.write(b"MADE")
    writer.flush()
    assert files[1].read(8) == b"MADEmade"
    assert os.fstat(files[1].fileno()).st_size == 200_000
    os.fchmod(writer.fileno(), 0o600)
    os.utime(writer.fileno(), (5, 5))
    found = os.fstat(files[1].fileno())
    assert (found.st_mode & 0o777, found.st_mtime) == (0o600, 5)
    for file in [*files, writer]:
        file.close()
    until(lambda: bucket.contents() == {}, "the object goes when it is closed")
    until(lambda: list(mount.side.tier.names()) == [], "the data is given back")


def test_who_reads_a_listed_object_reads_on_through_changes_and_removal(
    mount_it: MountIt, bucket: MultipartBucket
) -> None:
    for name in ("unlinked", "replaced"):
        bucket.write(name, b"listed" * 10_000)
    mount = mount_it()
    readers = [os.open(mount.path / name, os.O_RDONLY) for name in ("unlinked", "replaced")]
    for name in ("unlinked", "replaced"):
        with (mount.path / name).open("r+b") as file:
            file.write(b"change")
    (mount.path / "unlinked").unlink()
    (mount.path / "new").write_bytes(b"new")
    os.rename(mount.path / "new", mount.path / "replaced")
    for fd in readers:
        assert os.pread(fd, 100_000, 0) == b"change" + b"listed" * 9_999
        os.fsync(fd)
        os.close(fd)
    mount.flush()
    assert bucket.contents() == {"replaced": b"new"}


def test_a_listed_object_that_was_opened_and_not_changed(mount_it: MountIt, bucket: MultipartBucket) -> None:
    """It has no node again, and takes whatever is done to it next."""
    for index in range(6):
        bucket.write(f"f{index}", b"listed")
    mount = mount_it()
    paths = [mount.path / f"f{index}" for index in range(6)]
    for path in paths:
        path.stat()
        os.close(os.open(path, os.O_RDWR))
    until(lambda: not mount.side.files.drafts, "the last close, of which the kernel tells later")
    paths[0].chmod(0o600)
    os.utime(paths[1], (5, 5))
    os.setxattr(paths[2], "user.colour", b"blue")
    with paths[3].open("r+b") as file:
        file.write(b"L")
    os.truncate(paths[4], 3)
    paths[5].unlink()
    assert paths[0].stat().st_mode & 0o777 == 0o600
    assert paths[1].stat().st_mtime == 5
    assert os.getxattr(paths[2], "user.colour") == b"blue"
    assert [path.read_bytes() for path in paths[:5]] == [b"listed", b"listed", b"listed", b"Listed", b"lis"]
    mount.flush()
    assert sorted(bucket.contents()) == ["f0", "f1", "f2", "f3", "f4"]


def test_attributes_persist_and_uploads_do_not_touch_them(mount_it: MountIt, bucket: MultipartBucket) -> None:
    mount = mount_it()
    path = mount.path / "f"
    path.write_text("x")
    os.chmod(path, 0o751)
    os.chown(path, 1234, 4321)
    os.utime(path, ns=(1, 1_600_000_000_123_456_789))
    os.setxattr(path, "user.colour", b"blue")
    before = path.stat()
    mount.flush()
    after = path.stat()
    assert (after.st_mtime_ns, after.st_ino, after.st_mode) == (before.st_mtime_ns, before.st_ino, before.st_mode)
    assert after.st_mtime_ns == 1_600_000_000_123_456_789
    assert (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode)) == (1234, 4321, 0o751)
    assert os.getxattr(path, "user.colour") == b"blue"
    assert os.listxattr(path) == ["user.colour"]
    shutil.copystat(path, shutil.copyfile(path, mount.path / "copy"))  # fails where an attribute cannot be set
    assert os.getxattr(mount.path / "copy", "user.colour") == b"blue"
    assert os.getxattr(path, "user.forebay.state") == b"clean"
    stored = attributes_of(bucket.objects["f"].metadata)
    assert stored.st_mode == stat.S_IFREG | 0o751
    os.removexattr(path, "user.colour")
    with pytest.raises(OSError, match="No data"):
        os.getxattr(path, "user.colour")
    with pytest.raises(OSError, match="not supported"):
        os.setxattr(path, "trusted.x", b"")


MAPPER = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 0)
mapped[100_000:100_005] = b"hello"
mapped.flush()
mapped[5:10] = b"early"
"""


def test_mmap_writes_are_kept(mount_it: MountIt, bucket: MultipartBucket) -> None:
    """In a process of its own: a page fault keeps the interpreter lock, which the server here needs to answer it."""
    mount = mount_it()
    path = mount.path / "f"
    path.write_bytes(bytes(200_000))
    subprocess.run([sys.executable, "-c", MAPPER, str(path)], check=True, timeout=180)
    mount.flush()
    until(lambda: bucket.contents()["f"][5:10] == b"early", "pages written after the last close are uploaded")
    assert path.read_bytes()[100_000:100_005] == b"hello"


SIGNALLED = """
import errno, mmap, os, signal, sys
root = sys.argv[1]
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
def uninterrupted(work, *arguments):
    try:
        work(*arguments)
    except InterruptedError:
        sys.exit(f"{work.__name__} was interrupted")
file = open(root + "/f", "w+b")
file.truncate(1 << 20)
mapped = mmap.mmap(file.fileno(), 0)
for turn in range(60):
    mapped[turn] = 1
    uninterrupted(mapped.flush)
    uninterrupted(os.mkdir, root + "/d")
    uninterrupted(os.rename, root + "/d", root + "/e")
    uninterrupted(os.rmdir, root + "/e")
signal.setitimer(signal.ITIMER_REAL, 0)
"""


def test_a_change_that_is_made_is_not_answered_as_interrupted(mount_it: MountIt) -> None:
    """Programs expect EINTR of no call that changes names: one that was made would be made again, and fail."""
    mount = mount_it()
    subprocess.run([sys.executable, "-c", SIGNALLED, str(mount.path)], check=True, timeout=180)
    assert os.listdir(mount.path) == ["f"]


def test_appends_of_processes_do_not_overwrite_each_other(mount_it: MountIt) -> None:
    path = mount_it().path / "log"
    path.touch()

    def append(index: int) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        for turn in range(50):
            os.write(fd, b"%02d-%02d\n" % (index, turn))
        os.close(fd)

    threads = [threading.Thread(target=append, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.read_bytes().split()) == sorted(b"%02d-%02d" % (i, t) for i in range(4) for t in range(50))


def test_locks_work_within_the_mount(mount_it: MountIt) -> None:
    path = mount_it().path / "f"
    path.touch()
    with path.open("r+b") as first, path.open("r+b") as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(first, fcntl.LOCK_UN)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_cannot_be_is_refused_with_the_right_errno(mount_it: MountIt) -> None:
    root = mount_it().path
    (root / "d").mkdir()
    (root / "f").touch()
    cases: list[tuple[Callable[[], object], int]] = [
        (lambda: os.mkdir(root / "d"), errno.EEXIST),
        (lambda: os.mkdir(root / "f" / "x"), errno.ENOTDIR),
        (lambda: os.mkdir(root / "no" / "x"), errno.ENOENT),
        (lambda: os.unlink(root / "no"), errno.ENOENT),
        (lambda: os.unlink(root / "d"), errno.EISDIR),
        (lambda: os.rmdir(root / "f"), errno.ENOTDIR),
        (lambda: os.rename(root / "d", root / "f"), errno.ENOTDIR),
        (lambda: os.rename(root / "f", root / "d"), errno.EISDIR),
        (lambda: os.rename(root / "d", root / "d" / "x"), errno.EINVAL),
        (lambda: os.mkfifo(root / "pipe"), errno.EPERM),
        (lambda: os.mkdir(root / ("n" * 256)), errno.ENAMETOOLONG),
        (lambda: os.unlink(root / ("n" * 256)), errno.ENAMETOOLONG),
        (lambda: os.stat(root / ("n" * 256)), errno.ENAMETOOLONG),
        (lambda: os.setxattr(root / "f", "user.big", b"x" * 4000), errno.ENOSPC),
    ]
    for act, code in cases:
        with pytest.raises(OSError) as caught:
            act()
        assert caught.value.errno == code


def test_an_outage_of_the_store_does_not_hold_up_writers(mount_it: MountIt, bucket: MultipartBucket) -> None:
    mount = mount_it(retire_after_s=120.0)
    (mount.path / "d").mkdir()
    bucket.fault = lambda kind, key: Fault.REFUSE
    (mount.path / "d" / "f").write_bytes(b"x" * 100_000)
    os.rename(mount.path / "d" / "f", mount.path / "d" / "g")
    assert (mount.path / "d" / "g").read_bytes() == b"x" * 100_000
    bucket.fault = lambda kind, key: None
    mount.flush()
    assert bucket.contents() == {"d/": b"", "d/g": b"x" * 100_000}


def test_a_full_write_side_is_enospc_after_a_bounded_wait(mount_it: MountIt, bucket: MultipartBucket) -> None:
    mount = mount_it(max_dirty_bytes=200_000, dirty_wait_s=0.3)
    bucket.fault = lambda kind, key: Fault.REFUSE if kind == "put" else None
    (mount.path / "f").write_bytes(b"x" * 150_000)
    with pytest.raises(OSError) as caught:
        (mount.path / "g").write_bytes(b"x" * 150_000)
    assert caught.value.errno == errno.ENOSPC
    bucket.fault = lambda kind, key: None
    mount.flush()
    (mount.path / "h").write_bytes(b"x" * 150_000)


def test_close_waits_for_the_bucket_in_write_through(mount_it: MountIt, bucket: MultipartBucket) -> None:
    from forebay.cache.write.options import WriteMode

    mount = mount_it(mode=WriteMode.THROUGH, writeback_delay_s=30.0)
    (mount.path / "f").write_bytes(b"through")
    assert bucket.contents() == {"f": b"through"}


def test_forgotten_inodes_leave_nothing(mount_it: MountIt, bucket: MultipartBucket) -> None:
    for index in range(50):
        bucket.write(f"listed/{index}", b"x")
    mount = mount_it()
    for index in range(50):
        (mount.path / f"made{index}").write_bytes(b"x")
        (mount.path / "listed" / str(index)).write_bytes(b"y")
        os.rename(mount.path / "listed" / str(index), mount.path / f"moved{index}")
    for name in os.listdir(mount.path):
        if name != "listed":
            (mount.path / name).unlink()
    mount.flush()
    Path("/proc/sys/vm/drop_caches").write_text("2")
    until(lambda: mount.view.inodes_held <= 2, "the kernel forgets", timeout_s=20)
    mount.view.live.validate()
