"""Which file systems are mounted where, from /proc/self/mountinfo: never by asking a file system, which may hang.

Paths in it are escaped (space, tab, newline, backslash, # as a backslash and three octal digits). Of several mounts on
one path the last line is the one on top.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

FSTYPE = "fuse.forebay"

_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True)
class MountEntry:
    """One line of the table. `device` is (major, minor); a FUSE mount's minor names its connection."""

    device: tuple[int, int]
    mountpoint: str
    fstype: str
    source: str

    @property
    def is_forebay(self) -> bool:
        return self.fstype == FSTYPE

    @property
    def is_fuse(self) -> bool:
        return self.fstype == "fuse" or self.fstype.startswith("fuse.")


def unescape(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))


def parse(table: bytes) -> list[MountEntry]:
    """Entries in the order in which they were mounted; lines that are no mounts are left out."""
    entries = []
    for line in table.splitlines():
        before, separator, after = line.partition(b" - ")
        left, right = before.split(b" "), after.split(b" ")
        if not separator or len(left) < 6 or len(right) < 2:
            continue
        major, _, minor = left[2].partition(b":")
        entries.append(MountEntry((int(major), int(minor)), unescape(left[4]), unescape(right[0]), unescape(right[1])))
    return entries


def mounts() -> list[MountEntry]:
    """What is mounted, as this process sees it."""
    return parse(Path("/proc/self/mountinfo").read_bytes())


def mounted_at(path: str) -> MountEntry | None:
    """The mount on top of exactly this path (absolute, resolved), or None."""
    return next((entry for entry in reversed(mounts()) if entry.mountpoint == path), None)


def resolve(path: str | os.PathLike[str]) -> str:
    """The absolute path as the table names it, without ever touching what is mounted at its end."""
    text = os.fspath(path).rstrip("/") or "/"
    folder, name = os.path.split(text)
    if name in ("", ".", ".."):
        return os.path.realpath(text)
    full = os.path.join(os.path.realpath(folder or "."), name)
    return full if mounted_at(full) else os.path.realpath(full)


def fuse_mount_of(path: str | os.PathLike[str]) -> MountEntry | None:
    """The Forebay mount that the path lies in, by its spelling alone, or None."""
    full = resolve(path)
    inside = [e for e in mounts() if full == e.mountpoint or full.startswith(e.mountpoint.rstrip("/") + "/")]
    top = max(inside, key=lambda entry: len(entry.mountpoint), default=None)
    return top if top is not None and top.is_forebay else None
