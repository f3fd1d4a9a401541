"""The disk of the write tier fails below a writing mount: read-only while in use, I/O errors, full.

Writers get the errno, `forebay status` says what it is, and what was acked is there after repair and remount.
"""

import contextlib
import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forebay.tests.mount.conftest import Bucket, content, read_tree
from forebay.tests.mount.test_writing import in_bucket
from forebay.tests.support.command_line import CommandLine, wait_until
from forebay.tests.support.ext4_disk import Disk, ext4_disk
from forebay.tests.support.fault_proxy import Fault

MIB = 1024 * 1024
DISK_BYTES = 96 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with ext4_disk(tmp_path, DISK_BYTES) as disk:
        yield disk


@pytest.fixture
def where(forebay: CommandLine, bucket: Bucket, disk: Disk) -> Path:
    """A mount whose write tier is on the disk, and whose bucket takes nothing."""
    bucket.proxy.fault = Fault.answer(503, only="PUT")
    return forebay.mount(bucket.url, *flags(disk))


def flags(disk: Disk) -> list[str]:
    return ["--write-tier", str(disk.root / "tier"), "--dirty-wait", "1s", "--free-space-ratio", "0.0"]


def acked(where: Path) -> dict[str, bytes]:
    """Files that were closed: in their record, in a data file, changed in place."""
    files = {"small": content(1, 1000), "large": content(2, 5 * MIB)}
    for name, data in files.items():
        (where / name).write_bytes(data)
    with (where / "large").open("r+b") as file:
        file.seek(MIB)
        file.write(b"in place")
    files["large"] = files["large"][:MIB] + b"in place" + files["large"][MIB + 8 :]
    return files


def refusal(act: Callable[[], object]) -> int:
    try:
        act()
    except OSError as error:
        return error.errno or 0
    return 0


def whole_after_repair(
    forebay: CommandLine, bucket: Bucket, disk: Disk, where: Path, expected: dict[str, bytes]
) -> None:
    """The process is gone, the disk healthy: what was acked is seen by the next mount, and reaches the bucket."""
    with contextlib.suppress(AssertionError):
        forebay.kill(where)
    forebay("umount", where)
    wait_until(lambda: is_unplugged(disk), "the disk to be free")
    disk.plug()
    bucket.proxy.heal()
    forebay.ok("mount", bucket.url, where, *flags(disk))
    found = read_tree(where)
    assert {name: found.get(name) for name in expected} == expected
    forebay.ok("flush", where, "--timeout", "3m")
    stored = in_bucket(bucket)
    assert {name: stored.get(name) for name in expected} == expected


def is_unplugged(disk: Disk) -> bool:
    try:
        disk.unplug()
    except subprocess.CalledProcessError:
        return False
    return True


@pytest.mark.parametrize("how", ["read-only", "errors"])
def test_a_disk_that_fails_is_an_error_of_the_writer(
    forebay: CommandLine, bucket: Bucket, disk: Disk, where: Path, how: str
) -> None:
    expected = acked(where)
    opened = (where / "opened").open("wb", buffering=0)
    opened.write(content(3, MIB))
    if how == "read-only":
        disk.turn_read_only()
    else:
        disk.cut_power()

    def go_on() -> None:
        with opened:
            opened.write(content(3, MIB))
            os.fsync(opened.fileno())

    assert refusal(go_on) in (errno.EIO, errno.EROFS)
    assert refusal(lambda: (where / "another").write_bytes(content(4, 4 * MIB))) in (errno.EIO, errno.EROFS)
    assert refusal(lambda: (where / "large").write_bytes(content(4, 4 * MIB))) in (errno.EIO, errno.EROFS)
    assert refusal(lambda: (where / "small").write_bytes(b"s")) in (errno.EIO, errno.EROFS)
    assert refusal(lambda: (where / "folder").mkdir()) in (errno.EIO, errno.EROFS)
    assert refusal(lambda: os.rename(where / "small", where / "moved")) in (errno.EIO, errno.EROFS)
    assert (where / "small").read_bytes() == expected["small"], "what is known is still shown"
    assert "writers are refused since" in forebay.ok("status", where)
    whole_after_repair(forebay, bucket, disk, where, expected)


def test_a_full_disk_is_enospc_and_goes_on_when_there_is_room(
    forebay: CommandLine, bucket: Bucket, disk: Disk, where: Path
) -> None:
    expected = acked(where)
    ballast = disk.root / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(MIB))
            file.flush()
    assert refusal(lambda: (where / "much").write_bytes(content(4, 8 * MIB))) == errno.ENOSPC
    assert "writers are refused since" in forebay.ok("status", where)
    assert read_tree(where) | {"much": b""} == expected | {"much": b""}
    ballast.unlink()
    expected["much"] = content(4, 8 * MIB)
    wait_until(lambda: refusal(lambda: (where / "much").write_bytes(expected["much"])) == 0, "room")
    assert "writers are refused since" not in forebay.ok("status", where)
    bucket.proxy.heal()
    forebay.ok("writeback", "retry", where)
    forebay.ok("flush", where, "--timeout", "3m")
    assert in_bucket(bucket) == expected
    assert read_tree(where) == expected
