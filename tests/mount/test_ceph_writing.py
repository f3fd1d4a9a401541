"""Writing through mounts into a real Ceph: killed, taken over elsewhere, recovered, flushed."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.tests.mount.conftest import Bucket, content, read_tree
from forebay.tests.mount.test_writing import in_bucket
from forebay.tests.support.ceph import CephCluster, ceph_cluster
from forebay.tests.support.command_line import CommandLine
from forebay.tests.support.servers import MongoServer

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephCluster]:
    with ceph_cluster(tmp_path_factory.mktemp("ceph")) as cluster:
        cluster.create_pool("training")
        cluster.wait_for_osds(2)
        yield cluster


@pytest.fixture
def shared(forebay: CommandLine, mongo: MongoServer, ceph: CephCluster, tmp_path: Path) -> CommandLine:
    forebay.environment["FOREBAY_META_URL"] = mongo.url.replace("/?", f"/ceph-{os.getpid()}?")
    forebay.environment["FOREBAY_WRITE_TIER"] = f"rados://training?conf={ceph.conf}&keyring={ceph.keyring}"
    return forebay


def git(*words: str | Path, cwd: Path) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main", "-c", "gc.auto=0"]
    done = subprocess.run(
        ["git", *identity, *map(str, words)], cwd=cwd, check=True, capture_output=True, text=True, timeout=200
    )
    return done.stdout


def test_what_was_acked_into_ceph_outlives_every_mount(
    shared: CommandLine, bucket: Bucket, ceph: CephCluster, tmp_path: Path
) -> None:
    origin = tmp_path / "origin"
    origin.mkdir()
    git("init", "-q", cwd=origin)
    for number in range(12):
        (origin / f"f{number}").write_bytes(content(number, 3000))
    git("add", ".", cwd=origin)
    git("commit", "-q", "-m", "one", cwd=origin)

    first = shared.mount(bucket.url, "--writeback-delay", "1h")
    assert "rados pool training" in shared.ok("status", first)
    git("clone", "-q", origin, first / "clone", cwd=first)
    git("fsck", "--strict", cwd=first / "clone")
    large = bytearray(content(1, 9 * MIB))
    (first / "large").write_bytes(large)
    with (first / "large").open("r+b") as file:
        file.seek(4 * MIB - 10)
        file.write(b"across two pieces, in place")
        os.fsync(file.fileno())
    large[4 * MIB - 10 : 4 * MIB + 17] = b"across two pieces, in place"
    expected = read_tree(first)
    assert expected["large"] == bytes(large)
    shared.kill(first)
    shared.ok("umount", first)
    assert in_bucket(bucket) == {}

    second = shared.mount(bucket.url, "--writeback-delay", "1h", "--cache-name", "elsewhere")
    assert read_tree(second) == expected
    git("fsck", "--strict", cwd=second / "clone")
    ceph.kill_osd(0)
    ceph.wait_for_osds(1)
    (second / "after").write_bytes(b"with one OSD")
    expected["after"] = b"with one OSD"
    ceph.start_osd(0)
    ceph.wait_for_osds(2)
    shared.kill(second)

    assert "all in the bucket" in shared.ok("recover", bucket.url)
    assert in_bucket(bucket) == expected
    third = shared.mount(bucket.url)
    assert read_tree(third) == expected
    (third / "last").write_bytes(content(3, 5 * MIB))
    shared.ok("umount", "--flush", third)
    assert in_bucket(bucket) == {**expected, "last": content(3, 5 * MIB)}
