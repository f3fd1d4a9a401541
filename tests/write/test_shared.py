"""Write sides that share their records in MongoDB: what one closed the others see, names have one winner, the dead are replaced."""

import asyncio
import errno
import itertools
import os
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from forebay.cache.write.records.mongo import MongoRecords
from forebay.cache.write.records.store import Changes
from forebay.cache.write.sending import Sender
from forebay.errors import OpenElsewhere, UsageError, WriterReplaced
from forebay.tests.support.multipart_bucket import MultipartBucket
from forebay.tests.support.servers import MongoServer
from forebay.tests.support.write_lab import Lab

_names = itertools.count()
LEASE_S = 2.0
Start = Callable[..., Coroutine[Any, Any, Lab]]


@pytest.fixture
def new_records(mongo: MongoServer) -> Callable[[], MongoRecords]:
    """Opens the records of one bucket, again and again."""
    name = f"shared-{os.getpid()}-{next(_names)}"
    return lambda: MongoRecords(mongo.url, name)


@pytest.fixture
def bucket() -> MultipartBucket:
    return MultipartBucket()


@pytest.fixture
async def start(
    tmp_path: Path, bucket: MultipartBucket, new_records: Callable[[], MongoRecords]
) -> AsyncIterator[Start]:
    """Starts writers that share a tier and records. They look like ones of different machines to each other."""
    started: list[Lab] = []

    async def start(what: str = "a", folder: str = "tier", *, near: bool = False, **options: Any) -> Lab:
        records = await asyncio.to_thread(new_records)
        lab = Lab.new(tmp_path / folder, bucket, records=records, what=what, **{"lease_s": LEASE_S, **options})
        writers = lab.side.writers
        assert writers is not None
        if not near:
            writers.me = msgspec.structs.replace(writers.me, place=f"machine {len(started)}", host="far")
        await lab.begin()
        started.append(lab)
        return lab

    yield start
    for lab in started:
        if not lab.is_ended:
            validate(lab)
            await lab.end()


async def until(lab: Lab, condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await lab.side.writeback.changed()


async def leads(lab: Lab) -> Lab:
    await until(lab, lambda: lab.side.does_writeback)
    return lab


def validate(lab: Lab) -> None:
    with lab.side.ledger.locked() as state:
        state.validate()


async def look(*labs: Lab) -> None:
    for lab in labs:
        assert lab.side.freshness is not None
        await lab.side.freshness.look()


async def test_what_was_closed_is_finished_by_another_writer(start: Start, bucket: MultipartBucket) -> None:
    first = await start(writeback_delay_s=3600.0)
    first.write(b"small", b"small")
    first.write(b"large", b"x" * 100_000)
    first.mkdir(b"d")
    first.rename(b"small", b"d/small")
    await first.end()
    second = await start()
    assert await second.tree() == {b"d": "<folder>", b"d/small": b"small", b"large": b"x" * 100_000}
    await second.side.flush(timeout_s=60)
    assert bucket.contents() == {"d/": b"", "d/small": b"small", "large": b"x" * 100_000}


async def test_what_one_closed_the_other_sees_whatever_becomes_of_it(start: Start, bucket: MultipartBucket) -> None:
    bucket.write("listed", b"listed")
    first, second = await leads(await start("a")), await start("b")
    first.write(b"f", b"one")
    await look(second)
    assert await second.read(b"f") == b"one"
    second.write(b"f", b"two, by the other")
    await look(first)
    assert await first.read(b"f") == b"two, by the other"
    first.patch(b"f", 0, b"TWO")
    second.rename(b"listed", b"moved")
    second.mkdir(b"d")
    first.write(b"d/large", b"x" * 100_000)
    second.rename(b"d", b"e")
    second.patch(b"e/large", 99_000, b"y" * 2_000)
    expected: dict[bytes, bytes | str] = {
        b"f": b"TWO, by the other", b"moved": b"listed", b"e": "<folder>", b"e/large": b"x" * 99_000 + b"y" * 2_000,
    }  # fmt: skip
    await look(first, second)
    assert await first.tree() == await second.tree() == expected
    await second.side.flush(timeout_s=60)
    assert first.bucket_tree() == expected
    await look(first, second)
    assert await first.tree() == await second.tree() == expected
    second.unlink(b"f")
    await look(first)
    assert first.kind(b"f") is None
    await first.side.flush(timeout_s=60)
    assert "f" not in bucket.contents()


async def test_a_name_has_one_winner(start: Start, bucket: MultipartBucket) -> None:
    first, second = await leads(await start("a", writeback_delay_s=3600.0)), await start("b")
    chance = random.Random(5)
    tags = (b"a", b"b")
    acts: dict[str, Callable[[Lab, bytes, bytes], None]] = {
        "create": lambda lab, name, tag: lab.create(name).release(),
        "unlink": lambda lab, name, tag: lab.unlink(name),
        "rename": lambda lab, name, tag: lab.side.rename(name, name + b"-" + tag),
        "onto": lambda lab, name, tag: lab.side.rename(b"own-" + name + tag, name, replace=False),
        "mkdir": lambda lab, name, tag: lab.mkdir(name),
        "rmdir": lambda lab, name, tag: lab.rmdir(name),
    }
    for number in range(48):
        kind = list(acts)[number % len(acts)]
        name = b"n%d" % number
        if kind in ("unlink", "rename"):
            chance.choice((first, second)).write(name, name)
        elif kind == "onto":
            first.write(b"own-" + name + b"a", b"a")
            second.write(b"own-" + name + b"b", b"b")
        elif kind == "rmdir":
            chance.choice((first, second)).mkdir(name)
        if number % 3:
            await look(first, second)
        outcomes = await asyncio.gather(
            *(asyncio.to_thread(acts[kind], lab, name, tag) for lab, tag in zip((first, second), tags, strict=True)),
            return_exceptions=True,
        )
        lost = [outcome for outcome in outcomes if outcome is not None]
        assert len(lost) == 1, (kind, outcomes)
        expected = FileNotFoundError if kind in ("unlink", "rename", "rmdir") else FileExistsError
        assert isinstance(lost[0], expected), (kind, outcomes)
    await look(first, second)
    assert await first.tree() == await second.tree()
    await first.side.flush(timeout_s=60)
    assert first.bucket_tree() == await first.tree()


async def test_a_folder_is_removed_or_something_is_in_it(start: Start) -> None:
    first, second = await start("a"), await start("b")
    for number in range(16):
        name = b"d%d" % number
        first.mkdir(name)
        await look(second)
        removed, made = await asyncio.gather(
            asyncio.to_thread(first.rmdir, name),
            asyncio.to_thread(second.write, name + b"/f", b"x"),
            return_exceptions=True,
        )
        await look(first, second)
        if removed is None:
            assert isinstance(made, OSError)
            assert second.kind(name) is None
        else:
            assert isinstance(removed, OSError)
            assert removed.errno == errno.ENOTEMPTY
            assert await first.read(name + b"/f") == b"x"
    validate(first)
    validate(second)


async def test_folders_moved_into_each_other_do_not_vanish(start: Start) -> None:
    first, second = await start("a"), await start("b")
    for number in range(8):
        one, two = b"x%d" % number, b"y%d" % number
        first.write(one + b"/f", b"1") if first.kind(one) else first.mkdir(one)
        first.mkdir(two)
        await look(second)
        outcomes = await asyncio.gather(
            asyncio.to_thread(first.rename, one, two + b"/in"),
            asyncio.to_thread(second.rename, two, one + b"/in"),
            return_exceptions=True,
        )
        assert sum(outcome is None for outcome in outcomes) == 1, outcomes
        await look(first, second)
        assert {one, two} & set(await first.tree()) != set()
        assert await first.tree() == await second.tree()


async def test_a_file_is_open_for_writing_in_one_place(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = await start("a, the first"), await start("b")
    file = first.create(b"log")
    file.write(0, b"one")
    await look(second)
    monkeypatch.setattr("forebay.cache.write.write_side.OPEN_WAIT_S", 0.2)
    with pytest.raises(OpenElsewhere, match="log is open for writing by a, the first on far"):
        await asyncio.to_thread(second.write, b"log", b"mine")
    monkeypatch.setattr("forebay.cache.write.write_side.OPEN_WAIT_S", 60.0)
    waiting = asyncio.create_task(asyncio.to_thread(second.patch, b"log", 3, b", two"))
    await asyncio.sleep(0)
    file.sync(closing=True)
    await waiting
    file.write(8, b", three")  # a duplicate of the descriptor that was closed
    with pytest.raises(OSError, match="another mount") as caught:
        file.sync()
    assert caught.value.errno == errno.ESTALE
    with pytest.raises(OSError, match="another mount"):
        file.release()
    await look(first)
    assert await first.read(b"log") == b"one, two"


async def test_readers_elsewhere_go_on_with_what_was_committed(start: Start, bucket: MultipartBucket) -> None:
    first, second = await leads(await start("a", high_watermark_bytes=0, low_watermark_bytes=0)), await start("b")
    second.write(b"f", b"x" * 100_000)
    await look(first)
    reader = first.side.open(b"f", writable=False)
    assert bytes(await first.side.fetch(reader, 0, 10)) == b"x" * 10
    second.write(b"f", b"y" * 100_000)
    again = first.side.open(b"f", writable=False)
    await look(first)
    third = first.side.open(b"f", writable=False)
    assert bytes(await first.side.fetch(third, 99_990, 20)) == b"y" * 10
    for file in (reader, again, third):
        file.release()
    other = second.side.open(b"f", writable=False)
    await second.side.flush(timeout_s=60)
    await until(first, lambda: first.side.state.held_bytes == 0)  # its data goes, and the object takes its place
    assert bytes(await second.side.fetch(other, 0, 100_000)) == b"y" * 100_000
    other.release()


async def test_bytes_that_change_under_an_upload_elsewhere_are_not_published(
    start: Start, bucket: MultipartBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await leads(await start("a", writeback_delay_s=3600.0)), await start("b")
    second.write(b"f", b"x" * 100_000)
    file = second.side.open(b"f", writable=True)
    assembled = asyncio.Event()
    goes_on = asyncio.Event()
    assemble = Sender._assemble

    async def assemble_and_wait(uploads: Sender, *args: Any) -> Any:
        data = await assemble(uploads, *args)
        assembled.set()
        await goes_on.wait()
        return data

    monkeypatch.setattr(Sender, "_assemble", assemble_and_wait)
    flushing = asyncio.create_task(second.side.flush(timeout_s=60))
    await assembled.wait()
    await asyncio.to_thread(file.write, 50_000, b"y" * 10)
    goes_on.set()
    await until(first, lambda: first.side.uploads.counts.disturbed > 0)
    assert bucket.contents() == {}
    file.release()
    await flushing
    assert bucket.contents() == {"f": b"x" * 50_000 + b"y" * 10 + b"x" * 49_990}


async def test_changes_that_were_read_before_a_removal_of_ours_do_not_bring_it_back(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await leads(await start("a", writeback_delay_s=3600.0)), await start("b")
    for task in [*first.side._tasks, *second.side._tasks]:
        task.cancel()
    second.write(b"other", b"so that what follows is not all that the first one knows")
    first.write(b"f", b"f")
    records = first.side.records
    read = records.changes_since

    def read_and_dally(sequence: int) -> Changes:
        found = read(sequence)
        monkeypatch.undo()
        first.rename(b"f", b"g")
        return found

    monkeypatch.setattr(records, "changes_since", read_and_dally)
    first.side.ledger.take_in()
    validate(first)
    await look(first, second)
    assert set(await first.tree()) == set(await second.tree()) == {b"g", b"other"}


async def test_a_dead_writer_of_another_machine_is_replaced_when_its_lease_ends(start: Start) -> None:
    first = await leads(await start(writeback_delay_s=3600.0))
    first.write(b"f", b"acked")
    open_file = first.create(b"open")
    open_file.write(0, b"never acked")
    await first.crash()
    second = await start("b")
    assert await second.read(b"f") == b"acked"
    await until(second, lambda: second.side.does_writeback)
    second.write(b"open", b"mine now")
    await second.side.flush(timeout_s=60)
    assert second.bucket_tree() == {b"f": b"acked", b"open": b"mine now"}
    assert set(second.side.state.writers) == {second.side.operations.writer}


async def hangs_until_replaced(lab: Lab, other: Lab) -> None:
    """It beats no more, but its mount goes on: as when a machine was suspended, at the moment when it is back."""
    (beats,) = [task for task in lab.side._tasks if task.get_name() == "beats"]
    beats.cancel()
    number = lab.side.operations.writer
    await until(other, lambda: number not in other.side.state.writers)


async def test_one_that_was_taken_for_dead_is_back_as_another_writer(start: Start, bucket: MultipartBucket) -> None:
    bucket.write("gone", b"old")
    first = await leads(await start(writeback_delay_s=3600.0))
    first.write(b"f", b"acked")
    first.write(b"large", b"x" * 100_000)
    late, patched = first.create(b"late"), first.side.open(b"large", writable=True)
    late.write(0, b"never acked")
    patched.write(0, b"never acked")
    reader = first.side.open(b"f", writable=False)
    second = await start("b", writeback_delay_s=3600.0)
    await hangs_until_replaced(first, second)
    second.unlink(b"gone")
    second.patch(b"large", 50_000, b"by the other")
    with pytest.raises(WriterReplaced):
        first.side.uploads.require_time()
    for change in (late.sync, patched.sync, lambda: patched.write(10, b"late"), lambda: patched.truncate(5)):
        with pytest.raises(OSError, match="another mount") as caught:
            await asyncio.to_thread(change)
        assert caught.value.errno == errno.ESTALE
    # What was written in place and not synced may be there, as on any file system.
    patched_by_both = b"never acked" + b"x" * 49_989 + b"by the other" + b"x" * 49_988
    expected: dict[bytes, bytes | str] = {
        b"f": b"acked", b"late": b"", b"large": patched_by_both,
    }  # fmt: skip
    await look(first, second)
    assert await first.tree() == await second.tree() == expected
    assert bytes(await first.side.fetch(reader, 0, 10)) == b"acked"
    for file in (late, patched):
        with pytest.raises(OSError, match="another mount"):
            file.release()
    reader.release()
    assert first.side.files.buffered_bytes == 0
    await asyncio.to_thread(first.mkdir, b"d")
    await asyncio.to_thread(first.write, b"late", b"written again")
    await asyncio.to_thread(first.patch, b"large", 0, b"again")
    expected |= {b"d": "<folder>", b"late": b"written again"}
    expected[b"large"] = b"again" + patched_by_both[5:]
    await look(second)
    assert await first.tree() == await second.tree() == expected
    await first.side.flush(timeout_s=60)
    assert second.bucket_tree() == expected


async def test_a_name_is_changed_at_once_by_one_that_was_taken_for_dead(start: Start) -> None:
    """Nobody gets an error because a machine slept: only files that were open for writing are lost to it."""
    first = await leads(await start())
    first.write(b"f", b"acked")
    second = await start("b")
    await hangs_until_replaced(first, second)
    await asyncio.to_thread(first.rename, b"f", b"g")
    await look(second)
    assert await second.tree() == {b"g": b"acked"}
    assert len(second.side.state.writers) == 2


async def test_nobody_is_taken_for_dead_because_mongod_was_away_from_all(start: Start) -> None:
    first, second = await leads(await start()), await start("b")
    numbers = {lab.side.operations.writer for lab in (first, second)}
    for lab in (first, second):
        writers = lab.side.writers
        assert writers is not None
        writers._last_beat -= 10 * LEASE_S  # as if no commit had succeeded for so long
        writers._seen = {number: (beats, since - 10 * LEASE_S) for number, (beats, since) in writers._seen.items()}
        await asyncio.to_thread(writers.prove_alive)
    await look(first, second)
    assert set(first.side.state.writers) == numbers


async def test_one_that_was_away_for_longer_than_removals_are_told_loads_everything(
    start: Start, new_records: Callable[[], MongoRecords]
) -> None:
    first, second = await leads(await start(writeback_delay_s=3600.0)), await start("b", writeback_delay_s=3600.0)
    for name in (b"gone", b"moved", b"stays"):
        first.write(name, name)
    await look(second)
    assert second.side.freshness is not None
    for task in second.side._tasks:
        task.cancel()
    first.unlink(b"gone")
    first.rename(b"moved", b"away")
    forgotten = first.side.records
    assert isinstance(forgotten, MongoRecords)
    forgotten._records.delete_many({"removed_at": {"$ne": None}})  # what MongoDB does after a day
    second.side.ledger._asked_at -= forgotten.changes_kept_s
    await look(second)
    assert await second.tree() == await first.tree() == {b"away": b"moved", b"stays": b"stays"}
    validate(second)


async def test_data_in_a_folder_of_another_machine_is_asked_for_by_name(start: Start) -> None:
    first = await start(folder="one", writeback_delay_s=3600.0)
    first.write(b"large", b"x" * 100_000)
    await first.end()
    with pytest.raises(UsageError, match=r"1 files that are not in the bucket yet are in folder .*/one"):
        await start(folder="other")
    first = await start(folder="one")
    await first.side.flush(timeout_s=60)
    await first.end()
    second = await start(folder="other")
    assert await second.read(b"large") == b"x" * 100_000
