"""What a crash may leave behind of changes that were on their way, and what it never does."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from forebay.cache.write.drafts import MAX_EXTENTS
from forebay.errors import TierFailed
from forebay.tests.support.multipart_bucket import Fault, MultipartBucket
from forebay.tests.support.write_lab import Lab
from forebay.tiers.durable.folder import FolderFile

DURABLE = random.Random(1).randbytes(200_000)


async def lab_with_a_durable_file(folder: Path) -> Lab:
    bucket = MultipartBucket()
    bucket.fault = lambda kind, key: Fault.REFUSE
    lab = await Lab.start(folder, bucket)
    lab.write(b"f", DURABLE)
    return lab


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.005)


async def after_a_crash(lab: Lab) -> Lab:
    await lab.crash()
    return await Lab.start(lab.folder, lab.bucket)


async def test_a_file_that_was_cut_is_never_found_with_zeros_at_its_end(tmp_path: Path) -> None:
    lab = await lab_with_a_durable_file(tmp_path)
    file = lab.side.open(b"f", writable=True)
    file.truncate(70_000)
    lab = await after_a_crash(lab)
    assert await lab.read(b"f") == DURABLE[:70_000]
    await lab.side.close()


async def test_a_cut_that_the_tier_refuses_leaves_a_file_that_can_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = await lab_with_a_durable_file(tmp_path)
    file = lab.side.open(b"f", writable=True)

    def refuse(self: FolderFile, size: int) -> None:
        raise TierFailed("the disk failed")

    with monkeypatch.context() as patch:
        patch.setattr(FolderFile, "truncate", refuse)
        with pytest.raises(TierFailed):
            file.truncate(70_000)
    file.truncate(100_000)
    file.sync()
    lab = await after_a_crash(lab)
    assert await lab.read(b"f") == DURABLE[:70_000] + bytes(30_000)
    await lab.side.close()


async def test_bytes_that_were_never_synced_do_not_turn_up_in_holes(tmp_path: Path) -> None:
    """Also when a file has so many holes that they are joined."""
    lab = await lab_with_a_durable_file(tmp_path)
    file = lab.side.open(b"f", writable=True)
    file.write(300_000, b"x" * 300_000)
    lab = await after_a_crash(lab)
    expected = bytearray(DURABLE.ljust(600_000, b"\0"))
    file = lab.side.open(b"f", writable=True)
    file.truncate(600_000)
    for offset in range(250_000, 250_000 + 40 * (MAX_EXTENTS + 10), 40):
        file.write(offset, b"yyyy")
        expected[offset : offset + 4] = b"yyyy"
    assert len(file.draft.extents) < MAX_EXTENTS
    file.release()
    assert await lab.read(b"f") == bytes(expected)
    lab = await after_a_crash(lab)
    assert await lab.read(b"f") == bytes(expected)
    await lab.side.close()


async def test_a_file_that_is_written_anew_keeps_its_content_until_it_is_closed(tmp_path: Path) -> None:
    """Nothing in the background commits the half of it: neither an upload that was chosen before it was opened, nor its age."""
    bucket = MultipartBucket()
    lab = await Lab.start(tmp_path, bucket, max_dirty_age_s=0.0)
    bucket.fault = lambda kind, key: Fault.REFUSE
    lab.write(b"f", DURABLE)
    lab.write(b"log", b"one")
    file = lab.side.open(b"f", writable=True, truncate=True)
    file.write(0, b"half")
    log = lab.side.open(b"log", writable=True)
    log.append(b" two")
    bucket.fault = lambda kind, key: None
    lab.side.writeback.retry_now()
    async with asyncio.timeout(60):
        while bucket.contents().get("log") != b"one two":  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.01)
    await lab.side.writeback._upload([file.node_id])
    lab = await after_a_crash(lab)
    assert await lab.read(b"f") == DURABLE
    await lab.side.close()


async def test_an_upload_that_was_chosen_before_its_file_was_opened_leaves_it_alone(tmp_path: Path) -> None:
    bucket = MultipartBucket()
    lab = await Lab.start(tmp_path, bucket, writeback_delay_s=30.0)
    lab.write(b"f", b"first")
    file = lab.side.open(b"f", writable=True)
    file.write(0, b"FI")
    await lab.side.writeback._upload([file.node_id])
    assert file.draft.is_changed
    assert bucket.contents() == {}
    file.release()
    await lab.side.close()


async def test_bytes_changed_in_place_and_never_synced_are_the_same_in_the_bucket_at_last(tmp_path: Path) -> None:
    """A crash may leave a part of them in the data file of a file that is said to be clean, or that is just being uploaded."""
    for number, moment in enumerate(("clean", "uploading", "published")):
        bucket = MultipartBucket()
        lab = await Lab.start(tmp_path / moment, bucket)
        lab.write(b"f", DURABLE)
        await lab.side.flush(timeout_s=60)
        if moment != "clean":
            bucket.fault = lambda kind, key: Fault.HOLD if kind == "put" else None
            begun = bucket.calls["put"]
            lab.patch(b"f", 10, b"second")
            await until(lambda: bucket.calls["put"] > begun)  # noqa: B023 (awaited here)
        file = lab.side.open(b"f", writable=True)
        file.write(100_000 + number, b"never synced")
        if moment == "published":
            bucket.released.set()
            await until(lambda: not lab.side.state.attempts)  # noqa: B023
        bucket.fault = lambda kind, key: None
        lab = await after_a_crash(lab)
        found = await lab.read(b"f")
        assert found[100_000 + number :].startswith(b"never synced")
        await lab.side.flush(timeout_s=60)
        assert bucket.contents()["f"] == found
        await lab.side.close()
