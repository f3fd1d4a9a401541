"""Small file systems of a test's own: one can be filled, made read-only and measured at one moment."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from forebay.tests.support.servers import unavailable


@contextlib.contextmanager
def tmpfs(folder: Path, size_bytes: int, *, inodes: int = 100_000) -> Iterator[Path]:
    """A tmpfs of that size, mounted on `folder` while the context lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    options = f"size={size_bytes},nr_inodes={inodes},mode=0700"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "forebay-test", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        unavailable(f"cannot mount a tmpfs: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, option: str) -> None:
    """Change a mount made here: `ro`, `rw`, `size=...`."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)


def taken_bytes(folder: Path) -> int:
    """What is allocated on the file system of `folder`, at one moment (summing up files takes several)."""
    stat = os.statvfs(folder)
    return (stat.f_blocks - stat.f_bfree) * stat.f_frsize
