"""What a crash may leave behind of changes that were on their way, and what it never does."""

import random
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
