"""Caches of sources that nobody holds: they give way when one that is in use needs their room.

A tier outlives its process, so that the next mount of the source finds it warm. On a machine that mounts one source after
another such tiers would add up until the disk (or, on tmpfs, the memory) is full and a new mount finds no room. So
before a tier in use evicts its own data because the file system is short, the idle tiers beside it go: those used
longest ago first, file by file, until there is room. Tiers with a live lease (`prefetch --pin`) stay, and so do those
that some process holds.

A tier to go is renamed under its lock and while nobody can start a process for it, and removed after that: who mounts the
source meanwhile begins with an empty folder, and never sees half of an old one. What is left of it goes first the next time.
"""

import contextlib
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .. import amounts
from ..cache.pins import Pins
from ..client import registry
from ..tiers.local.files import BLOCK_UNIT_BYTES
from ..tiers.local.folder import BLOCKS, EXTENTS, LOCK_FILE, SLABS, read_version

log = logging.getLogger(__name__)

_GOING = ".going-"
# After finding nothing to remove: every writer that is short of room would look again.
LOOK_AGAIN_S = 30.0


class IdleTiers:
    """The idle tiers beside one in use (`own`, which is never touched). Called by one thread at a time: the tier sees to that."""

    def __init__(self, base: Path, leaf: str, own: Path, pin_bases: Sequence[Path]) -> None:
        """Tiers are `base/<name>/<leaf>` (`base/<name>` for an empty leaf), their leases in `<pin base>/<name>/pins`."""
        self._base = base
        self._leaf = leaf
        self._own = own
        self._pin_bases = tuple(pin_bases)
        self._removing: Iterator[int] = iter(())
        self._look_at_s = 0.0

    def give_way(self, wanted_bytes: int) -> int:
        """Remove idle tiers until that much is free again; how much that was (0: there is nothing that may go)."""
        freed = 0
        while freed < wanted_bytes:
            step = next(self._removing, None)
            if step is not None:
                freed += step
                continue
            if time.monotonic() < self._look_at_s:
                break
            going = self._take_one()
            if going is None:
                self._look_at_s = time.monotonic() + LOOK_AGAIN_S
                break
            self._removing = _removed(going)
        return freed

    def used_bytes(self) -> int:
        """What the idle tiers take, as far as they can be seen."""
        return sum(allocated_bytes(folder) for folder in (*self._left_over(), *self._idle()))

    def _take_one(self) -> Path | None:
        """The folder to remove next, renamed already; None if there is none."""
        left_over = self._left_over()
        if left_over:
            return left_over[0]
        for folder in sorted(self._idle(), key=_last_used_s):
            taken = self._take(folder)
            if taken is not None:
                log.info("the idle cache %s gives way", folder)
                return taken
        return None

    def _left_over(self) -> list[Path]:
        """Tiers that are on their way out: no more of them was removed than was wanted."""
        return sorted(self._base.glob(f"{_GOING}*"))

    def _idle(self) -> list[Path]:
        found = []
        with contextlib.suppress(OSError):
            for entry in self._base.iterdir():
                folder = entry / self._leaf
                if not entry.name.startswith(".") and folder != self._own and read_version(folder) is not None:
                    found.append(folder)
        # By the registry, not by trying the locks: whoever starts at that moment would find its tier in use.
        held = {folder for entry in registry.entries() for folder in entry.cache_folders}
        return [folder for folder in found if str(folder) not in held and not self._is_leased(self._name(folder))]

    def _name(self, folder: Path) -> str:
        return folder.parent.name if self._leaf else folder.name

    def _is_leased(self, name: str) -> bool:
        return any(Pins.any_live(base / name / "pins") for base in self._pin_bases)

    def _take(self, folder: Path) -> Path | None:
        """Rename the tier if it is idle; None if somebody uses it, or is about to."""
        going = self._base / f"{_GOING}{self._name(folder)}"
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            if not stack.enter_context(registry.nobody_starts(self._name(folder))):
                return None
            lock = stack.enter_context((folder / LOCK_FILE).open("rb"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder.rename(going)
            return going
        return None


def _last_used_s(folder: Path) -> float:
    """When something last wrote to it, or closed it (which touches the lock file)."""
    newest = 0.0
    for name in (LOCK_FILE, BLOCKS, SLABS, EXTENTS):
        with contextlib.suppress(OSError):
            newest = max(newest, (folder / name).stat().st_mtime)
    return newest


def allocated_bytes(folder: Path) -> int:
    """What the files in a folder take on their file system."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_blocks * BLOCK_UNIT_BYTES
    return total


def _removed(folder: Path) -> Iterator[int]:
    """Remove a folder file by file; yields the bytes that each gave back."""
    total = 0
    for path, _, names in os.walk(folder, topdown=False):
        for name in names:
            file = os.path.join(path, name)
            with contextlib.suppress(OSError):
                size = os.lstat(file).st_blocks * BLOCK_UNIT_BYTES
                os.unlink(file)
                total += size
                yield size
    shutil.rmtree(folder, ignore_errors=True)
    log.info("%s is gone: %s are free again", folder, amounts.format_size(total))
