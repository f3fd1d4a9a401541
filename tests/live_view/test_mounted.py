"""A live bucket on a real S3 server, through a real mount: what processes see while the bucket and the network change."""

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forebay.cache.namespace import Namespace, NamespaceOptions
from forebay.errors import ObjectChanged
from forebay.fuse_mount.live_view import LiveView
from forebay.fuse_mount.options import MountOptions
from forebay.tests.support.fault_proxy import Fault, FaultProxy, fault_proxy
from forebay.tests.support.fuse import ServedMount, clear, need_fuse, served, until
from forebay.tests.support.servers import S3Server
from forebay.tests.support.store_reads import StoreReads
from forebay.tiers.stores import StoreOptions, open_store

TTL_S = 0.5
STORE_TIMEOUT_S = 5


class Bucket:
    """A bucket, a client beside the mount, the proxy between the mount and the server, and the mount."""

    def __init__(self, s3: S3Server, proxy: FaultProxy, mounted: ServedMount, view: LiveView, name: str) -> None:
        self.proxy = proxy
        self.mounted = mounted
        self.path = mounted.path
        self.view = view
        self._client: Any = s3.client()
        self._name = name

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket=self._name, Key=key, Body=content)

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket=self._name, Key=key)


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    need_fuse()
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    clear(path)


@pytest.fixture
def bucket(s3: S3Server, mountpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    name = s3.new_bucket("live")
    client = s3.client()
    for key in ("top", "folder/one", "folder/two", "folder/deep/er/three"):
        client.put_object(Bucket=name, Key=key, Body=key.encode())
    with fault_proxy(s3.endpoint_url) as proxy:
        store, _ = open_store(f"s3://{name}", StoreOptions(endpoint_url=proxy.url, timeout_s=STORE_TIMEOUT_S))
        namespace = Namespace(store, "", NamespaceOptions(metadata_ttl_s=TTL_S))
        view = LiveView(namespace)
        with served(view, StoreReads(store), mountpoint, MountOptions()) as mounted:
            try:
                yield Bucket(s3, proxy, mounted, view, name)
            finally:
                proxy.heal()
                mounted.run(namespace.close())
                mounted.run(store.close())


def tree(path: Path) -> dict[str, bytes | None]:
    """Everything below, files with their contents."""
    return {
        str(found.relative_to(path)): found.read_bytes() if found.is_file() else None
        for found in sorted(path.rglob("*"))
    }


def error_of(work: Callable[[], object]) -> int | None:
    try:
        work()
    except OSError as error:
        return error.errno
    return None


def test_the_tree_is_the_bucket(bucket: Bucket) -> None:
    expected = {
        "top": b"top",
        "folder": None,
        "folder/one": b"folder/one",
        "folder/two": b"folder/two",
        "folder/deep": None,
        "folder/deep/er": None,
        "folder/deep/er/three": b"folder/deep/er/three",
    }
    assert tree(bucket.path) == expected
    assert error_of(lambda: os.stat(bucket.path / "nothing")) == errno.ENOENT
    assert error_of(lambda: os.stat(bucket.path / "top/below")) == errno.ENOTDIR
    assert error_of(lambda: os.listdir(bucket.path / "top")) == errno.ENOTDIR


def test_changes_are_seen_after_the_ttl_and_an_open_file_keeps_its_version_or_fails(bucket: Bucket) -> None:
    file = bucket.path / "top"
    with file.open("rb") as held:
        assert held.read() == b"top"
        before = os.fstat(held.fileno())
        bucket.put("top", b"replaced!")
        bucket.put("new/x", b"x")
        bucket.delete("folder/one")
        until(lambda: file.read_bytes() == b"replaced!", "the new content")
        assert os.fstat(held.fileno()).st_size == before.st_size == 3
        assert os.stat(file).st_ino != before.st_ino
        assert os.pread(held.fileno(), 10, 0) == b"top"  # kept by the kernel
        os.posix_fadvise(held.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert error_of(lambda: os.pread(held.fileno(), 10, 0)) in (ObjectChanged.errno, errno.EIO)
    until(lambda: (bucket.path / "new/x").exists(), "the new folder")
    until(lambda: not (bucket.path / "folder/one").exists(), "the removal")
    assert sorted(os.listdir(bucket.path / "folder")) == ["deep", "two"]


@pytest.mark.parametrize("fault", [Fault.answer(503, "SlowDown"), Fault.hang()], ids=lambda f: f.name)
def test_an_outage_is_an_error_for_what_is_not_known_and_nothing_for_what_is(bucket: Bucket, fault: Fault) -> None:
    assert sorted(os.listdir(bucket.path)) == ["folder", "top"]
    bucket.proxy.fault = fault
    started = time.monotonic()
    assert error_of(lambda: os.listdir(bucket.path / "folder")) == errno.EIO
    assert error_of(lambda: os.stat(bucket.path / "folder/one")) == errno.EIO
    assert error_of((bucket.path / "top").read_bytes) == errno.EIO
    assert time.monotonic() - started < 3 * STORE_TIMEOUT_S + 60
    # The root was listed before, long ago for its TTL: its names are there as they were, and only those.
    assert sorted(os.listdir(bucket.path)) == ["folder", "top"]
    assert os.stat(bucket.path / "top").st_size == 3
    bucket.proxy.heal()
    until(lambda: error_of((bucket.path / "top").read_bytes) is None, "the recovery")
    until(lambda: error_of(lambda: os.listdir(bucket.path / "folder")) is None, "the recovery of listings")
    assert (bucket.path / "folder/one").read_bytes() == b"folder/one"
    assert sorted(os.listdir(bucket.path / "folder")) == ["deep", "one", "two"]


def test_refusals_in_turn_hide_nothing(bucket: Bucket) -> None:
    for status, code in [(503, "SlowDown"), (403, "AccessDenied"), (404, "NoSuchBucket"), (500, "InternalError")]:
        bucket.proxy.fault = Fault.answer(status, code)
        assert error_of(lambda: os.listdir(bucket.path / "folder")) in (errno.EIO, errno.EACCES)
        assert error_of(lambda: os.stat(bucket.path / "folder/one")) in (errno.EIO, errno.EACCES)
    bucket.proxy.heal()
    until(lambda: error_of(lambda: os.listdir(bucket.path / "folder")) is None, "the recovery")
    assert sorted(os.listdir(bucket.path / "folder")) == ["deep", "one", "two"]


def test_the_kernel_lets_everything_go(bucket: Bucket) -> None:
    tree(bucket.path)
    bucket.view.validate()
    assert bucket.view.inodes_held > 5

    def dropped() -> bool:
        with open("/proc/sys/vm/drop_caches", "w") as file:
            file.write("2")
        return bucket.view.inodes_held == 1

    until(dropped, "forgetting of all inodes")
    bucket.view.validate()
