"""Ceph as write tier fails below a writing mount: the pool full, OSDs silent, the monitor away or killed.

Writers wait for a bounded time and hear what it is; what was acked is whole; it goes on by itself when the fault ends.
"""

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forebay.tests.mount.conftest import Bucket, content, read_tree
from forebay.tests.mount.test_writing import in_bucket
from forebay.tests.support.ceph import CephCluster, ceph_cluster
from forebay.tests.support.command_line import CommandLine, wait_until

MIB = 1024 * 1024
# The longest that one call of a writer may take while Ceph does not answer: an operation of librados has 30 s.
BOUND_S = 150.0


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephCluster]:
    with ceph_cluster(tmp_path_factory.mktemp("ceph")) as cluster:
        cluster.create_pool("training")
        cluster.wait_for_osds(2)
        yield cluster


def mount(forebay: CommandLine, bucket: Bucket, ceph: CephCluster) -> Path:
    tier = f"rados://training?conf={ceph.conf}&keyring={ceph.keyring}"
    return forebay.mount(bucket.url, "--write-tier", tier, "--writeback-delay", "1h", "--dirty-wait", "2s")


def write(path: Path, data: bytes) -> int:
    """Write, sync and close; 0 or the errno. Bounded."""
    began = time.monotonic()
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno or -1
    finally:
        assert time.monotonic() - began < BOUND_S, f"a writer of {path.name} waited too long"
    return 0


def write_until(wanted: int, path: Callable[[int], Path], written: dict[str, bytes]) -> int:
    """Write files of 4 MiB until one ends with `wanted`; how many were written. What was acked is added to `written`."""
    for number in range(200):
        data = content(number, 4 * MIB)
        found = write(path(number), data)
        if found == 0:
            written[path(number).name] = data
        else:
            path(number).unlink()
        if found == wanted:
            return number
        assert found in (0, errno.ENOSPC, errno.EIO), errno.errorcode[found]
        time.sleep(0.2)  # the manager counts what a pool holds every few seconds
    raise AssertionError(f"no write ended with {wanted}")


def flushed(forebay: CommandLine, bucket: Bucket, where: Path, expected: dict[str, bytes]) -> None:
    forebay.ok("flush", where, "--timeout", "3m")
    assert read_tree(where) == expected
    assert in_bucket(bucket) == expected


@pytest.mark.timeout(900)
def test_a_full_pool_is_enospc_and_goes_on_when_there_is_room(
    forebay: CommandLine, bucket: Bucket, ceph: CephCluster
) -> None:
    where = mount(forebay, bucket, ceph)
    written = {"kept": content(1, 8 * MIB)}
    (where / "kept").write_bytes(written["kept"])
    ceph.ceph("osd", "pool", "set-quota", "training", "max_bytes", str(20 * MIB))
    try:
        assert write_until(errno.ENOSPC, lambda number: where / f"more{number}", written) >= 1
        assert "rados pool training is full" in forebay.ok("status", where)
        assert read_tree(where) == written
        written["small"] = b"in its record"
        (where / "small").write_bytes(written["small"])
        forebay.kill(where)
        forebay.ok("mount", bucket.url, where, environ=tier_of(ceph))
        assert read_tree(where) == written
    finally:
        ceph.ceph("osd", "pool", "set-quota", "training", "max_bytes", "0")
    write_until(0, lambda number: where / f"again{number}", written)
    assert "is full" not in forebay.ok("status", where)
    flushed(forebay, bucket, where, written)


def tier_of(ceph: CephCluster) -> dict[str, str]:
    return {"FOREBAY_WRITE_TIER": f"rados://training?conf={ceph.conf}&keyring={ceph.keyring}"}


def test_a_mount_says_that_its_records_are_on_one_machine(
    forebay: CommandLine, bucket: Bucket, ceph: CephCluster
) -> None:
    where = forebay.new_mountpoint()
    said = forebay("mount", bucket.url, where, environ=tier_of(ceph)).stderr
    assert "note: written data is safe in rados pool training" in said
    assert "--meta-url mongodb://" in said


@pytest.mark.timeout(900)
def test_writing_goes_on_without_the_monitor(forebay: CommandLine, bucket: Bucket, ceph: CephCluster) -> None:
    """Silent, and killed and started again: OSDs are asked directly. A mount that needs it says so, in bounded time."""
    where = mount(forebay, bucket, ceph)
    written: dict[str, bytes] = {}
    ceph.pause_mon()
    try:
        assert write_until(0, lambda number: where / f"silent{number}", written) == 0
        assert read_tree(where) == written
    finally:
        ceph.resume_mon()
    ceph.stop("mon.a", kill=True)
    try:
        assert write_until(0, lambda number: where / f"killed{number}", written) == 0
        refused = forebay("mount", bucket.url, forebay.new_mountpoint(), "--cache-name", "other", environ=tier_of(ceph))
        assert refused.returncode != 0
        assert "cannot open rados pool training" in refused.stderr
        assert "check the conf file" in refused.stderr
    finally:
        ceph.start("mon", "a")
        ceph.wait_for_osds(2)
    assert write_until(0, lambda number: where / f"after{number}", written) == 0
    flushed(forebay, bucket, where, written)


@pytest.mark.timeout(900)
def test_silent_osds_are_eio_in_bounded_time_and_nothing_acked_is_lost(
    forebay: CommandLine, bucket: Bucket, ceph: CephCluster
) -> None:
    where = mount(forebay, bucket, ceph)
    written = {"kept": content(1, 8 * MIB)}
    (where / "kept").write_bytes(written["kept"])
    ceph.pause_osds()
    try:
        assert write(where / "lost", content(2, 4 * MIB)) == errno.EIO
        assert "rados pool training failed to write" in forebay.ok("status", where)
    finally:
        ceph.resume_osds()
        ceph.wait_for_osds(2)
    wait_until(lambda: write(where / "after", content(3, 4 * MIB)) == 0, "the OSDs to answer again")
    written["after"] = content(3, 4 * MIB)
    (where / "lost").unlink(missing_ok=True)
    assert "failed to write" not in forebay.ok("status", where)
    flushed(forebay, bucket, where, written)
