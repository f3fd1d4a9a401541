"""What a process sees of a mounted version, and what the store sees of it."""

import asyncio
import errno
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import pytest

from forebay.errors import BucketNotFound, MetadataUnavailable, ObjectNotFound, RefNotFound
from forebay.snapshots.archive import Archiver, ArchiveReport
from forebay.snapshots.archive_record import record_archive
from forebay.snapshots.object_stores import ObjectStores
from forebay.snapshots.writing import Note
from forebay.tiers.stores import StoreOptions, open_store
from forebay.tiers.understore import UnderStore

from .conftest import Lab

T = TypeVar("T")

V7 = {f"{kind}/{n:03}.jpg": b"%s %d" % (kind.encode(), n) * 50 for kind in ("cat", "dog") for n in range(20)}
V8 = {path: data for path, data in V7.items() if path != "cat/000.jpg"} | {
    f"new/{n}.jpg": b"new %d" % n for n in range(5)
}


async def blocking(work: Callable[[], T]) -> T:
    """Run file operations in a thread: this loop serves the mount."""
    return await asyncio.to_thread(work)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_a_mounted_version_is_what_was_recorded_and_cannot_be_written(lab: Lab) -> None:
    lab.put(V7)
    name = lab.import_version(V7, labels={"cat/001.jpg": {"class": "cat"}})
    async with lab.mounted(name) as mounted:

        def look() -> None:
            assert files_below(mounted.path) == V7
            status = (mounted.path / "cat/001.jpg").stat()
            assert status.st_size == len(V7["cat/001.jpg"])
            assert os.getxattr(mounted.path / "cat/001.jpg", "user.forebay.labels") == b'{"class":"cat"}'
            assert os.getxattr(mounted.path, "user.forebay.ref") == b"v1"
            with pytest.raises(FileNotFoundError):
                (mounted.path / "bird").stat()
            with pytest.raises(OSError, match="Read-only") as refused:
                (mounted.path / "cat/new").write_bytes(b"x")
            assert refused.value.errno == errno.EROFS

        await blocking(look)
        described = mounted.source.describe()
        assert (described["version"], described["files"], described["archive"]) == ("pets@v1", len(V7), None)


async def test_the_next_version_fetches_only_what_no_earlier_one_had(lab: Lab) -> None:
    lab.put(V7)
    v7 = lab.import_version(V7)
    async with lab.mounted(v7) as mounted:
        assert await blocking(lambda: files_below(mounted.path)) == V7
    assert lab.proxy.count("GET") == len(V7)
    lab.put({path: data for path, data in V8.items() if path not in V7})
    v8 = lab.import_version(V8)
    lab.proxy.forget()
    async with lab.mounted(v8) as mounted:
        assert await blocking(lambda: files_below(mounted.path)) == V8
    assert {request.key for request in lab.proxy.requests if request.kind == "GET"} == {
        f"in/new/{n}.jpg" for n in range(5)
    }
    lab.proxy.forget()
    async with lab.mounted(v7) as mounted:
        assert await blocking(lambda: files_below(mounted.path)) == V7
    assert lab.proxy.count("GET") == 0


async def test_an_overwritten_object_is_an_error_that_names_it_and_never_other_bytes(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    lab.put(V7)
    name = lab.import_version(V7)
    lab.put({"cat/002.jpg": b"x" * len(V7["cat/002.jpg"])})
    lab.client.delete_object(Bucket=lab.bucket, Key="in/cat/003.jpg")
    async with lab.mounted(name) as mounted:

        def look() -> None:
            with pytest.raises(OSError) as changed:
                (mounted.path / "cat/002.jpg").read_bytes()
            assert changed.value.errno == errno.ESTALE
            with pytest.raises(OSError):
                (mounted.path / "cat/003.jpg").read_bytes()
            assert (mounted.path / "cat/004.jpg").read_bytes() == V7["cat/004.jpg"]

        await blocking(look)
        assert mounted.mount.status().errors["object_changed"] >= 1
    assert any("in/cat/002.jpg" in record.getMessage() for record in caplog.records)


async def test_a_recorded_version_id_is_read_even_after_overwriting(lab: Lab) -> None:
    lab.client.put_bucket_versioning(Bucket=lab.bucket, VersioningConfiguration={"Status": "Enabled"})
    first = {"a.txt": b"the first", "b.txt": b"stays"}
    version_ids = lab.put(first)
    assert all(version_ids.values())
    name = lab.import_version(first, version_ids=version_ids)
    lab.put({"a.txt": b"another"})
    async with lab.mounted(name) as mounted:
        assert await blocking(lambda: files_below(mounted.path)) == first


async def test_by_label_is_the_layout_that_image_folder_loaders_expect(lab: Lab) -> None:
    lab.put(V7)
    labels = {path: {"class": path[:3], "review": {"grade": n % 3}} for n, path in enumerate(V7) if n != 5}
    name = lab.import_version(V7, labels=labels)
    async with lab.mounted(name, by_label="class") as mounted:
        seen = await blocking(lambda: files_below(mounted.path))
        assert {path.split("/")[0] for path in seen} == {"cat", "dog", "_unlabeled"}
        assert seen["_unlabeled/005.jpg"] == V7["cat/005.jpg"]
        assert {path: data for path, data in V7.items() if path != "cat/005.jpg"}.items() <= seen.items()
        assert await mounted.source.version_of("dog/001.jpg") is not None
        assert len([path async for path, _ in mounted.source.entries("dog")]) == 20
    async with lab.mounted(name, by_label="review.grade") as mounted:
        seen = await blocking(lambda: files_below(mounted.path))
    assert {path.split("/")[0] for path in seen} == {"0", "1", "2", "_unlabeled"}
    assert sorted(seen.values()) == sorted(V7.values())


async def test_a_mount_holds_a_lease_that_gc_respects_and_names(lab: Lab) -> None:
    lab.put(V7)
    name = lab.import_version(V7)
    async with lab.mounted(name) as mounted:
        lab.repository.delete_dataset("pets")
        report = lab.repository.collector(grace_s=0).mark()
        (held,) = report.held
        assert held.lease.what == f"the mount at {mounted.path}"
        assert held.pages > 0
        lab.repository.collector(grace_s=0).sweep()
        assert await blocking(lambda: files_below(mounted.path)) == V7
    lab.repository.collector(grace_s=0).mark()
    assert lab.repository.collector(grace_s=0).sweep().pages == held.pages
    assert lab.repository.leases() == []


async def test_a_mount_goes_on_while_the_metadata_store_is_away(lab: Lab) -> None:
    lab.put(V7)
    name = lab.import_version(V7)
    async with lab.mounted(name) as mounted:
        meta = lab.folder / "meta.db"
        meta.rename(lab.folder / "away.db")
        assert await blocking(lambda: files_below(mounted.path)) == V7
        (lab.folder / "away.db").rename(meta)


async def test_an_archived_version_is_read_from_there(lab: Lab) -> None:
    lab.put(V7)
    name = lab.import_version(V7)
    snapshot = lab.repository.resolve(name)
    archive = lab.server.new_bucket("archive")
    options = StoreOptions(endpoint_url=lab.proxy.url, timeout_s=60)

    def opened(url: str) -> UnderStore:
        return open_store(url, options)[0]

    async with ObjectStores(opened) as stores:
        report = ArchiveReport(len(V7), 0)
        archiver = Archiver(stores, stores.keep(opened(f"s3://{archive}")), "kept/", report)
        loop = asyncio.get_running_loop()
        entries = archiver.archived_batches(snapshot.batches(), loop)
        url = f"s3://{archive}/kept"
        await asyncio.to_thread(record_archive, lab.repository, snapshot, entries, url, Note(author="me"))
    for path in V7:
        lab.client.delete_object(Bucket=lab.bucket, Key=f"in/{path}")
    async with lab.mounted(name) as mounted:
        assert await blocking(lambda: files_below(mounted.path)) == V7
        assert mounted.source.describe()["archive"] == url
        assert (
            await blocking(lambda: os.getxattr(mounted.path, "user.forebay.commit"))
            == snapshot.commit.id.hex().encode()
        )


async def test_large_objects_and_random_reads(lab: Lab) -> None:
    large = {"large.bin": hashlib.shake_128(b"large").digest(9 * 1024 * 1024 + 17)}
    lab.put(large)
    async with lab.mounted(lab.import_version(large)) as mounted:

        def look() -> None:
            with (mounted.path / "large.bin").open("rb") as file:
                for offset in (0, 4 * 1024 * 1024 - 3, 8_000_001, 9 * 1024 * 1024):
                    assert os.pread(file.fileno(), 50_000, offset) == large["large.bin"][offset : offset + 50_000]
            assert files_below(mounted.path) == large

        await blocking(look)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("pets@v9", RefNotFound, "newest version is v1"),
        ("pats@v1", RefNotFound, "did you mean pets"),
    ],
)
async def test_what_cannot_be_opened_says_why(lab: Lab, name: str, error: type[Exception], message: str) -> None:
    lab.import_version({"a": b"1"})
    with pytest.raises(error, match=message):
        async with lab.mounted(name):
            raise AssertionError("it opened")
    assert lab.repository.leases() == []


async def test_a_bucket_that_is_gone_fails_the_mount_and_drops_the_lease(lab: Lab) -> None:
    name = lab.import_version({"a": b"1"})
    lab.client.delete_bucket(Bucket=lab.bucket)
    with pytest.raises(BucketNotFound):
        async with lab.mounted(name):
            raise AssertionError("it opened")
    assert lab.repository.leases() == []


async def test_paths_of_the_source(lab: Lab) -> None:
    lab.put(V7)
    async with lab.mounted(lab.import_version(V7)) as mounted:
        source = mounted.source
        assert await source.version_of("cat") is None
        assert await source.version_of("nope") is None
        everything: Mapping[str, object] = {path: version async for path, version in source.entries("")}
        assert set(everything) == set(V7)
        assert everything["cat/001.jpg"] == await source.version_of("cat/001.jpg")
        with pytest.raises(ObjectNotFound, match="nothing at 'nope'"):
            [path async for path, _ in source.entries("nope")]


async def test_without_the_metadata_store_a_mount_fails_with_the_reason(lab: Lab) -> None:
    lab.settings = type(lab.settings)(
        cache_dir=lab.settings.cache_dir, endpoint_url=lab.proxy.url, meta_url="sqlite:////proc/no/such/meta.db"
    )
    with pytest.raises(MetadataUnavailable):
        async with lab.mounted("pets@v1"):
            raise AssertionError("it opened")
