"""The folder of a tier: who holds it, and which format is in it.

One process at a time: two that punch holes into the same files would serve each other misses at best. The lock is
`flock` on a file that is never removed, so it ends with its process, however that ends; inside it stands who holds it.

    lock       flock; JSON: pid, command, since when, for what
    format     JSON: name and version of the format
    slabs/     small objects
    extents/   large objects
    blocks     table of the blocks of large objects

A newer format is refused. A damaged format file means that the rest cannot be trusted either: the tier starts afresh.
Only what is ours by name is ever removed, and only where the lock file shows that the folder was a tier before.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import shutil
import sys
import time
from pathlib import Path

from ...errors import TierError, TierFailed, TierInUse
from .files import OpenFile

log = logging.getLogger(__name__)

FORMAT_NAME = "forebay tier"
FORMAT_VERSION = 2
# Formats that are read as they are, and go on as the present one.
READABLE_VERSIONS = (1, FORMAT_VERSION)
LOCK_FILE = "lock"
FORMAT_FILE = "format"
SLABS = "slabs"
EXTENTS = "extents"
BLOCKS = "blocks"
PROBE_FILE = "probe"
_PROBE_BYTES = 64 * 1024


class TierFolder:
    """A locked folder of the right format. `close` lets the lock go."""

    def __init__(self, path: Path, owner: str) -> None:
        """Make the folder if needed, lock it and check its format. Raises TierInUse, TierError or TierFailed."""
        self.path = path
        self.slabs = path / SLABS
        self.extents = path / EXTENTS
        self.blocks = path / BLOCKS
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            was_tier = (path / LOCK_FILE).exists()
            # Open for reading only: a lock does not keep anybody from making the file system read-only.
            self._lock_fd = os.open(path / LOCK_FILE, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(path, error) from error
        try:
            self._lock(owner)
            self._check_format(was_tier)
            self._check_holes()
        except OSError as error:
            self.close()
            raise _unusable(path, error) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let the folder go. May be called twice."""
        if self._lock_fd >= 0:
            with contextlib.suppress(OSError):
                os.utime(self._lock_fd)  # until when it was used: idle tiers go in that order
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _lock(self, owner: str) -> None:
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TierInUse(
                f"cache folder {self.path} is in use by {_describe_holder(self._lock_fd)}",
                remedy="stop that process, or choose another folder",
            ) from None
        holder = {
            "pid": os.getpid(),
            "command": " ".join(Path(part).name for part in sys.argv[:2]),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "owner": owner,
        }
        (self.path / LOCK_FILE).write_text(json.dumps(holder) + "\n")

    def _check_format(self, was_tier: bool) -> None:
        ours = [folder for folder in (self.slabs, self.extents) if folder.exists()]
        if ours and not was_tier:
            raise TierError(
                f"{self.path} has a folder {ours[0].name!r} that is not a cache's",
                remedy="choose an empty folder for the cache",
            )
        version = read_version(self.path)
        if version is not None and version > FORMAT_VERSION:
            raise TierError(
                f"cache folder {self.path} has format {version}, and this program knows formats up to {FORMAT_VERSION}",
                remedy="use a newer forebay, or another folder",
            )
        if version not in READABLE_VERSIONS:
            if ours:
                log.warning("the format file of cache folder %s is damaged or missing: starting afresh", self.path)
            for folder in ours:
                shutil.rmtree(folder)
            self.blocks.unlink(missing_ok=True)
        if version != FORMAT_VERSION:
            # Before anything is written in it: a program that does not know the present format must refuse the folder.
            self._write_format()
        self.slabs.mkdir(exist_ok=True)
        self.extents.mkdir(exist_ok=True)

    def _check_holes(self) -> None:
        """Evicting means punching holes: refuse a file system that cannot, rather than fill it up."""
        path = self.path / PROBE_FILE
        try:
            file = OpenFile(path, os.O_CREAT | os.O_TRUNC)
            file.write_at([bytes(_PROBE_BYTES)], 0)
            file.punch(0, _PROBE_BYTES)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            raise TierError(
                f"the file system of cache folder {self.path} cannot punch holes",
                remedy="put the cache on ext4, xfs, btrfs or tmpfs",
            ) from error
        finally:
            path.unlink(missing_ok=True)

    def _write_format(self) -> None:
        part = self.path / f"{FORMAT_FILE}.part"
        part.write_text(json.dumps({"name": FORMAT_NAME, "version": FORMAT_VERSION}) + "\n")
        part.rename(self.path / FORMAT_FILE)


def read_version(path: Path) -> int | None:
    """The version of the format of the tier at `path`; None if there is none, or nothing that says so. Raises OSError."""
    try:
        content = json.loads((path / FORMAT_FILE).read_bytes())
        if content["name"] == FORMAT_NAME and type(content["version"]) is int:
            return int(content["version"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        pass
    return None


def _describe_holder(fd: int) -> str:
    holder: dict[str, object] = {}
    with contextlib.suppress(ValueError, OSError):
        content = json.loads(os.pread(fd, 4096, 0))
        if isinstance(content, dict):
            holder = content
    if "pid" not in holder:
        return "another process"
    purpose = f" for {holder['owner']}" if holder.get("owner") else ""
    return f"process {holder['pid']} ({holder.get('command') or 'unknown'}){purpose}, since {holder.get('since')}"


def _unusable(path: Path, error: OSError) -> TierFailed:
    return TierFailed(
        f"cannot use cache folder {path}: {error.strerror or error}",
        remedy="check that its disk works and that it may be written to",
    )
