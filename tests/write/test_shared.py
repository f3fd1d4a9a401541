"""Write sides that share their records in MongoDB: who writes, who takes over, and what the one that was replaced can still do."""

import asyncio
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from forebay.cache.write.records.mongo import MongoRecords
from forebay.errors import TierInUse, UsageError, WriterReplaced
from forebay.tests.support.multipart_bucket import Fault, MultipartBucket
from forebay.tests.support.servers import MongoServer
from forebay.tests.support.write_lab import Lab

_names = itertools.count()
LEASE_S = 2.0


@pytest.fixture
def new_records(mongo: MongoServer) -> Callable[[], MongoRecords]:
    """Opens the records of one bucket, again and again."""
    name = f"shared-{os.getpid()}-{next(_names)}"
    return lambda: MongoRecords(mongo.url, name)


@pytest.fixture
def bucket() -> MultipartBucket:
    return MultipartBucket()


@pytest.fixture
def start(tmp_path: Path, bucket: MultipartBucket, new_records: Callable[[], MongoRecords]) -> Callable[..., Any]:
    async def start(what: str = "a", folder: str = "tier", **options: Any) -> Lab:
        records = await asyncio.to_thread(new_records)
        return await Lab.start(tmp_path / folder, bucket, records=records, what=what, **{"lease_s": LEASE_S, **options})

    return start


def elsewhere(lab: Lab) -> None:
    """Make a writer look like one of another machine, whose process numbers mean nothing here."""
    writers = lab.side.writers
    assert writers is not None
    writers.me = msgspec.structs.replace(writers.me, place="another machine", host="far")
    lab.side.ledger.run(lambda step: step.put(writers.me))


async def test_what_was_closed_is_finished_by_another_writer(
    start: Callable[..., Any], bucket: MultipartBucket
) -> None:
    first = await start(writeback_delay_s=3600.0)
    first.write(b"small", b"small")
    first.write(b"large", b"x" * 100_000)
    first.mkdir(b"d")
    first.rename(b"small", b"d/small")
    await first.side.close()
    second = await start()
    assert await second.tree() == {b"d": "<folder>", b"d/small": b"small", b"large": b"x" * 100_000}
    await second.side.flush(timeout_s=60)
    assert bucket.contents() == {"d/": b"", "d/small": b"small", "large": b"x" * 100_000}
    await second.side.close()


async def test_a_second_writer_is_refused_by_the_name_of_the_first(start: Callable[..., Any]) -> None:
    first = await start(what="the mount at /data")
    elsewhere(first)
    with pytest.raises(TierInUse, match=r"written by the mount at /data on far \(process \d+\)"):
        await start("b")
    first.write(b"f", b"goes on")
    await first.side.close()
    second = await start("b")
    assert await second.read(b"f") == b"goes on"
    await second.side.close()


async def test_a_dead_writer_of_another_machine_is_replaced_when_its_lease_ends(start: Callable[..., Any]) -> None:
    first = await start(writeback_delay_s=3600.0)
    elsewhere(first)
    first.write(b"f", b"acked")
    await first.crash()
    began = asyncio.get_running_loop().time()
    second = await start("b")
    assert asyncio.get_running_loop().time() - began >= LEASE_S
    assert await second.read(b"f") == b"acked"
    await second.side.close()


async def test_one_that_was_taken_for_dead_can_neither_commit_nor_delete(
    start: Callable[..., Any], bucket: MultipartBucket
) -> None:
    bucket.write("gone", b"old")
    first = await start(writeback_delay_s=3600.0)
    elsewhere(first)
    first.write(b"f", b"acked")
    file = first.create(b"late")
    file.write(0, b"never acked")
    beats = first.side._tasks.pop(0)  # it hangs, but its mount goes on
    beats.cancel()
    first.side.deletions.require_time = lambda: None
    bucket.fault = lambda kind, key: Fault.REFUSE if kind == "delete" else None
    first.unlink(b"gone")
    second = await start("b", writeback_delay_s=3600.0)
    bucket.fault = lambda kind, key: None
    for change in (lambda: first.mkdir(b"d"), file.sync, lambda: first.rename(b"f", b"g")):
        with pytest.raises(WriterReplaced, match=r"b on"):
            await asyncio.to_thread(change)
    writers = first.side.writers
    assert writers is not None
    with pytest.raises(WriterReplaced):
        writers.require_time()
    assert await second.tree() == {b"f": b"acked"}
    await first.crash()
    await second.side.flush(timeout_s=60)
    assert bucket.contents() == {"f": b"acked"}
    await second.side.close()


async def test_data_in_a_folder_of_another_machine_is_asked_for_by_name(
    start: Callable[..., Any], bucket: MultipartBucket
) -> None:
    first = await start(folder="one", writeback_delay_s=3600.0)
    first.write(b"large", b"x" * 100_000)
    await first.side.close()
    with pytest.raises(UsageError, match=r"1 files that are not in the bucket yet are in folder .*/one"):
        await start(folder="other")
    first = await start(folder="one")
    await first.side.flush(timeout_s=60)
    await first.side.close()
    second = await start(folder="other")
    assert await second.read(b"large") == b"x" * 100_000
    await second.side.close()
