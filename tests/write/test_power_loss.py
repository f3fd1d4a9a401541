"""The power fails under the write tier: what was acked is there when the disk comes back.

A kill loses nothing that a process has handed to the kernel; this does. The write tier lies on a disk of its own
(`support.ext4_disk`): all that was not synced is gone, and the journal is replayed at the next mount, as after a power failure.
"""

import asyncio
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.tests.support.ext4_disk import Disk, ext4_disk
from forebay.tests.support.servers import S3Server
from forebay.tests.support.write_crash import after_kill, brief, everything, in_bucket, nothing_is_doomed, run_and_kill
from forebay.tests.support.write_worker import Model, open_side

LOSSES = int(os.environ.get("FOREBAY_POWER_LOSSES", "6"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with ext4_disk(tmp_path) as disk:
        yield disk


@pytest.fixture(autouse=True)
def credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)


def test_the_power_really_fails(disk: Disk) -> None:
    """Else the other test would prove nothing."""
    synced, unsynced = disk.root / "synced", disk.root / "unsynced"
    with synced.open("wb") as file:
        file.write(b"x" * 100_000)
        os.fsync(file.fileno())
    unsynced.write_bytes(b"y" * 100_000)
    disk.cut_power()
    disk.unplug()
    disk.plug()
    assert synced.read_bytes() == b"x" * 100_000
    assert not unsynced.exists() or unsynced.stat().st_size == 0


@pytest.mark.timeout(600)
async def test_what_was_acked_survives_a_power_failure_and_reaches_the_bucket(s3: S3Server, disk: Disk) -> None:
    bucket = s3.new_bucket("power")
    rng = random.Random(11)
    model: Model = {}
    for turn in range(LOSSES):
        folder = disk.root / "tier"
        folder.mkdir(exist_ok=True)
        begun, acked = await asyncio.to_thread(
            run_and_kill, folder, s3.endpoint_url, bucket, 100 + turn, rng, first=disk.cut_power
        )
        disk.unplug()
        disk.plug()
        side = open_side(folder, s3.endpoint_url, bucket)
        recovered = await side.start()
        assert recovered.missing == ()
        model = after_kill(model, await everything(side), begun, acked)
        side.state.validate()
        if turn % 2 or turn == LOSSES - 1:
            await side.flush(timeout_s=180)
            await nothing_is_doomed(side)
            assert brief(in_bucket(s3, bucket)) == brief(model)
            assert await side.store.list_uploads("") == []
        await side.close()
        await side.store.close()
