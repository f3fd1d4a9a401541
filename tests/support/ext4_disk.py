"""A disk of its own for a test: an ext4 in a sparse file, which can lose its power, fail, or turn read-only while in use.

with ext4_disk(folder) as disk:
    disk.cut_power()        # EXT4_IOC_SHUTDOWN, what xfstests' `godown` does: all that was not synced is gone, every request fails
    disk.unplug(); disk.plug()
"""

import contextlib
import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .servers import unavailable

_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
_WITHOUT_LOG_FLUSH = 2


class Disk:
    """Mounted at `root` between `plug` and `unplug`."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self._image = folder / "disk.img"
        self.root = folder / "disk"
        self.root.mkdir()
        with self._image.open("wb") as image:
            image.truncate(size_bytes)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(self._image)], check=True)

    def plug(self) -> None:
        """The journal is replayed."""
        subprocess.run(["mount", "-o", "loop", str(self._image), str(self.root)], check=True)

    def cut_power(self) -> None:
        """Nothing is written any more; whoever asks gets EIO."""
        folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(folder, _SHUTDOWN, struct.pack("I", _WITHOUT_LOG_FLUSH))
        finally:
            os.close(folder)

    def turn_read_only(self) -> None:
        """What a kernel does that found the file system damaged: at once, though files are open for writing."""
        subprocess.run(["mount", "-o", "remount,abort", str(self.root)], check=True)

    def unplug(self) -> None:
        """Raises CalledProcessError while somebody uses it."""
        subprocess.run(["umount", str(self.root)], check=True, capture_output=True)


@contextlib.contextmanager
def ext4_disk(folder: Path, size_bytes: int = 1 << 30) -> Iterator[Disk]:
    """Plugged in. Skips where none can be made, as without root."""
    try:
        disk = Disk(folder, size_bytes)
        disk.plug()
    except (OSError, subprocess.CalledProcessError) as error:
        unavailable(f"no ext4 can be mounted from a file here: {error}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk.root)], check=False, capture_output=True)
