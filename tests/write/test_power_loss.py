"""The power fails under the write tier: what was acked is there when the disk comes back.

A kill loses nothing that a process has handed to the kernel; this does. The write tier lies on an ext4 of its own, which is
told to go down without writing anything more (EXT4_IOC_SHUTDOWN, what xfstests' `godown` does): all that was not
synced is gone, and the journal is replayed at the next mount, as after a power failure.
"""

import asyncio
import contextlib
import fcntl
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from forebay.tests.support import servers
from forebay.tests.support.servers import S3Server
from forebay.tests.support.write_crash import after_kill, brief, everything, in_bucket, nothing_is_doomed, run_and_kill
from forebay.tests.support.write_worker import Model, open_side

LOSSES = int(os.environ.get("FOREBAY_POWER_LOSSES", "6"))
DISK_BYTES = 1 << 30
_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
_WITHOUT_LOG_FLUSH = 2


class Disk:
    """A sparse file with an ext4 in it, mounted at `root` between `plug` and `unplug`."""

    def __init__(self, folder: Path) -> None:
        self._image = folder / "disk.img"
        self.root = folder / "disk"
        self.root.mkdir()
        with self._image.open("wb") as image:
            image.truncate(DISK_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(self._image)], check=True)

    def plug(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self._image), str(self.root)], check=True)

    def cut_power(self) -> None:
        folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(folder, _SHUTDOWN, struct.pack("I", _WITHOUT_LOG_FLUSH))
        finally:
            os.close(folder)

    def unplug(self) -> None:
        subprocess.run(["umount", str(self.root)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    try:
        disk = Disk(tmp_path)
        disk.plug()
    except (OSError, subprocess.CalledProcessError) as error:
        servers.unavailable(f"no ext4 can be mounted from a file here: {error}")
    try:
        yield disk
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            disk.unplug()


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
