"""An archive has every content once, exactly as recorded, and is gone on with after an interruption."""

import asyncio
import hashlib
from collections.abc import Sequence

import pytest

from forebay.errors import Incomplete, StoreUnavailable, UsageError
from forebay.snapshots import archive
from forebay.snapshots.archive import Archiver, ArchiveReport, archive_key, same_service
from forebay.snapshots.entries import Entry, entries_of
from forebay.snapshots.object_stores import ObjectStores
from forebay.tests.support.memory_bucket import MemoryBucket, etag_of
from forebay.tests.support.snapshot_rows import Row, batches


def rows_of(bucket: MemoryBucket, *, with_sha256: bool = False) -> list[Row]:
    return [
        Row(
            path, size=len(data), key=path, etag=etag_of(data), store=bucket.id, labels={"n": path},
            sha256=hashlib.sha256(data).hexdigest() if with_sha256 else None,
        )
        for path, data in bucket.objects.items()
    ]  # fmt: skip


async def run(rows: Sequence[Row], target: MemoryBucket, *sources: MemoryBucket) -> tuple[list[Entry], ArchiveReport]:
    by_name = {bucket.id: bucket for bucket in (target, *sources)}
    target.buckets = by_name
    report = ArchiveReport(len(rows), sum(row.size for row in rows))
    loop = asyncio.get_running_loop()
    by_url = {name.partition("@")[0]: bucket for name, bucket in by_name.items()}
    async with ObjectStores(by_url.__getitem__) as stores:
        archiver = Archiver(stores, target, "kept/", report)
        done = await asyncio.to_thread(lambda: list(archiver.archived_batches(batches(rows), loop)))
    return [entry for batch in done for entry in entries_of(batch)], report


async def test_contents_are_copied_once_on_the_servers_side_and_entries_point_there() -> None:
    source, target = MemoryBucket("s3://a"), MemoryBucket("s3://b")
    source.objects = {f"d/{n}": b"content %d" % (n % 3) for n in range(30)}
    entries, report = await run(rows_of(source, with_sha256=True), target, source)
    assert target.calls["copy"] == report.copied == len(target.objects) == 3
    assert (target.calls["put"], source.calls["get"]) == (0, 0)
    assert report.done == 30
    for entry in entries:
        assert entry.version.store == "s3://b"
        assert target.objects[entry.version.key] == source.objects[entry.path]
        assert entry.version.etag == etag_of(source.objects[entry.path])
        assert entry.labels == {"n": entry.path}


async def test_without_a_recorded_hash_only_the_very_same_object_version_is_shared() -> None:
    source, target = MemoryBucket("s3://a"), MemoryBucket("s3://b")
    source.objects = {"x": b"same", "y": b"same"}
    rows = rows_of(source)
    rows.append(Row("z", size=4, key="x", etag=etag_of(b"same"), store="s3://a"))
    entries, report = await run(rows, target, source)
    assert report.copied == len(target.objects) == 2
    assert entries[0].version == entries[2].version


async def test_a_second_run_copies_nothing_and_gives_the_same_entries() -> None:
    source, target = MemoryBucket("s3://a"), MemoryBucket("s3://b")
    source.objects = {f"{n}": b"%d" % n for n in range(10)}
    first, _ = await run(rows_of(source), target, source)
    again, report = await run(rows_of(source), target, source)
    assert again == first
    assert (report.copied, report.already_there) == (0, 10)


async def test_an_interrupted_archive_is_gone_on_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "WINDOW_ENTRIES", 5)
    source, target = MemoryBucket("s3://a"), MemoryBucket("s3://b")
    source.objects = {f"{n:02}": b"%d" % n for n in range(20)}
    copy, copies = target.copy, 0

    async def failing_copy(*args: object, **kwargs: object) -> object:
        nonlocal copies
        copies += 1
        if copies > 12:
            raise StoreUnavailable("s3://b does not answer")
        return await copy(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(target, "copy", failing_copy)
        with pytest.raises(StoreUnavailable):
            await run(rows_of(source), target, source)
    there = len(target.objects)
    assert 10 <= there <= 12
    _, report = await run(rows_of(source), target, source)
    assert (report.already_there, report.copied) == (there, 20 - there)


async def test_what_lies_there_with_another_size_is_copied_over() -> None:
    source, target = MemoryBucket("s3://a"), MemoryBucket("s3://b")
    source.objects = {"f": b"whole"}
    (row,) = rows_of(source)
    (entry,) = entries_of(next(iter(batches([row]))))
    target.objects[archive_key("kept/", entry)] = b"who"
    await run([row], target, source)
    assert set(target.objects.values()) == {b"whole"}


async def test_objects_that_are_gone_or_overwritten_are_named_and_nothing_claims_to_be_whole() -> None:
    source, target = MemoryBucket("s3://a"), MemoryBucket("s3://b")
    source.objects = {f"{n}": b"%d" % n for n in range(5)}
    rows = rows_of(source)
    del source.objects["1"]
    source.objects["3"] = b"other"
    with pytest.raises(
        Incomplete, match=r"2 of 5 objects are not what.*: 1 \(.*no object '1'\); 3 \(.*overwritten\); see"
    ):
        await run(rows, target, source)
    assert len(target.objects) == 3


async def test_between_services_bytes_are_streamed_and_hashed() -> None:
    source, target = MemoryBucket("s3://a@one:1"), MemoryBucket("s3://b@two:2")
    source.objects = {"f": b"content", "empty": b""}
    entries, _ = await run(rows_of(source, with_sha256=True), target, source)
    assert target.calls["copy"] == 0
    assert {entry.path: target.objects[entry.version.key] for entry in entries} == source.objects
    wrong = [Row("f", size=7, key="f", etag=etag_of(b"content"), store=source.id, sha256="00" * 32)]
    with pytest.raises(Incomplete, match="does not have the SHA-256 that the version records"):
        await run(wrong, target, source)


async def test_large_objects_need_a_store_that_takes_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "WHOLE_BYTES", 3)
    source, target = MemoryBucket("file:///a"), MemoryBucket("s3://b")
    source.objects = {"f": b"large"}
    with pytest.raises(UsageError, match="takes no object above 3 bytes from another service"):
        await run(rows_of(source), target, source)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("s3://a", "s3://b", True),
        ("s3://a@h:1", "s3://b@h:1", True),
        ("s3://a@h:1", "s3://b", False),
        ("file:///a", "file:///a", True),
        ("file:///a", "file:///b", False),
        ("s3://a", "gs://a", False),
    ],
)
def test_which_stores_copy_between_themselves(one: str, other: str, same: bool) -> None:
    assert same_service(one, other) is same
