"""One pin: the lease that an owner holds on a set of object versions, and the two files that make it outlive us.

    <id>.keys    one 8-byte little-endian key per version: the first 8 bytes of its digest; no header
    <id>.json    who holds it, since when, until when, what for; written by atomic replacement

A prefetch pins as it goes, so a set grows: keys are appended to the file and noted in memory. After kill -9 the file
is good up to its last whole key. `seal` rewrites it sorted and without duplicates, and from then on it is only
mapped: a sealed set of ten million versions costs 80 MB of disk and no heap.

Half a digest is enough: two versions that agree in 64 bits by chance (one chance in 10^12 for each lookup among ten
million pins) would make an unpinned one stay in the tier until the lease ends, and nothing else depends on it.
"""

import json
import mmap
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..tiers.version import ObjectVersion

KEY_BYTES = 8
FORMAT_VERSION = 1
RECENT_KEYS = 65_536  # keys in a Python set before they are merged into a sorted run
UNWRITTEN_KEYS = 1024  # keys that a kill -9 may lose; a prefetch that is run again pins them again


@dataclass(frozen=True)
class PinLabel:
    """What the `.json` file says. Times are seconds since the epoch; `size_bytes` is the sum of the sizes pinned.

    `lease_s` is the length of the lease as it was given, so that a clock that went backwards cannot make it longer.
    `sealed` says that the set grows no more, and that its keys are sorted.
    """

    id: str
    owner: str
    purpose: str
    created_at: float
    expires_at: float
    lease_s: float
    sealed: bool = False
    objects: int = 0
    size_bytes: int = 0
    format_version: int = FORMAT_VERSION


class PinSet:
    """The versions of one pin. `contains` may be called from any thread at any time; the rest by one owner.

    Without a folder the set lives in memory only: that is how a prefetch guards what it brings when nobody asked
    for a lease.
    """

    def __init__(self, folder: Path | None, label: PinLabel, runs: Iterable[memoryview] = ()) -> None:
        self._folder = folder
        self._label = label
        # Sorted, disjoint keys, each run at least twice as long as the next: few runs, and little merging.
        self._runs: tuple[memoryview, ...] = tuple(runs)
        self._recent: set[int] = set()
        self._unwritten = bytearray()
        self._size_bytes = label.size_bytes

    @classmethod
    def create(cls, folder: Path | None, label: PinLabel) -> "PinSet":
        """A new, empty set. The keys file is made first: a label never names a file that is not there."""
        pin_set = cls(folder, label)
        if folder is not None:
            (folder / f"{label.id}.keys").touch()
            pin_set._write_label(label)
        return pin_set

    @classmethod
    def load(cls, folder: Path, pin_id: str) -> "PinSet":
        """A set found on disk. Raises OSError, ValueError, TypeError or KeyError when its label cannot be read."""
        fields = json.loads((folder / f"{pin_id}.json").read_text())
        if fields["format_version"] > FORMAT_VERSION:
            raise ValueError(f"pin format {fields['format_version']} is newer than this program")
        label = PinLabel(**fields)
        path = folder / f"{pin_id}.keys"
        size = path.stat().st_size // KEY_BYTES * KEY_BYTES
        if size == 0:
            return cls(folder, label)
        with path.open("rb") as file:
            keys = memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)).cast("Q")
        return cls(folder, label, [keys if label.sealed else sorted_run(np.frombuffer(keys, dtype=np.uint64))])

    @property
    def label(self) -> PinLabel:
        return replace(self._label, objects=len(self), size_bytes=self._size_bytes)

    def __len__(self) -> int:
        return sum(map(len, self._runs)) + len(self._recent)

    def contains(self, digest: bytes) -> bool:
        """Whether the version with that digest is in the set; about 1 µs."""
        key = key_of(digest)
        if key in self._recent:
            return True
        for run in self._runs:
            at = bisect_left(run, key)
            if at < len(run) and run[at] == key:
                return True
        return False

    def add(self, version: ObjectVersion) -> bool:
        """Pin a version; False if it was in already. In force at once, on disk within `UNWRITTEN_KEYS` or `flush`."""
        if self.contains(version.digest):
            return False
        key = key_of(version.digest)
        self._recent.add(key)
        self._size_bytes += version.size
        self._unwritten += key.to_bytes(KEY_BYTES, "little")
        if len(self._unwritten) >= UNWRITTEN_KEYS * KEY_BYTES:
            self.flush()
        return True

    @property
    def merge_due(self) -> bool:
        """Whether so many versions were added that `merge` should be called: sooner or later it saves much memory."""
        return len(self._recent) >= RECENT_KEYS

    def merge(self) -> None:
        """Sort what was added into the runs. Takes up to a second when there are ten million; nobody may add meanwhile."""
        self._merge(everything=False)

    def flush(self) -> None:
        """Hand what was added to the operating system (it survives kill -9; `seal` makes it survive power loss)."""
        if self._folder is not None and self._unwritten:
            with (self._folder / f"{self._label.id}.keys").open("ab", buffering=0) as file:
                torn = file.tell() % KEY_BYTES
                if torn:
                    file.truncate(file.tell() - torn)
                file.write(self._unwritten)
        self._unwritten.clear()

    def seal(self) -> None:
        """Sort, write for good and map: the set is complete, and costs no heap from here on."""
        self._unwritten.clear()
        self._merge(everything=True)
        self._label = replace(self.label, sealed=True)
        if self._folder is None:
            return
        keys = self._runs[0] if self._runs else memoryview(array("Q"))
        replace_file(self._folder / f"{self._label.id}.keys", keys)
        self._write_label(self._label)
        self._runs = PinSet.load(self._folder, self._label.id)._runs

    def relabel(self, *, expires_at: float, lease_s: float) -> None:
        """Give the lease another end."""
        label = replace(self.label, expires_at=expires_at, lease_s=lease_s)
        self._write_label(label)
        self._label = label

    def delete(self) -> None:
        """Remove the files, label first: keys without a label are swept away by the next start."""
        if self._folder is not None:
            (self._folder / f"{self._label.id}.json").unlink(missing_ok=True)
            (self._folder / f"{self._label.id}.keys").unlink(missing_ok=True)

    def _merge(self, *, everything: bool) -> None:
        """Turn the recent keys into a run. The runs are replaced before the set is emptied, so no reader misses a key."""
        parts: list[npt.NDArray[np.uint64]] = [np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))]
        runs = list(self._runs)
        while runs and (everything or len(runs[-1]) < 2 * sum(map(len, parts))):
            parts.append(np.frombuffer(runs.pop(), dtype=np.uint64))
        merged = sorted_run(np.concatenate(parts))
        self._runs = (*runs, merged) if len(merged) else tuple(runs)
        self._recent = set()

    def _write_label(self, label: PinLabel) -> None:
        if self._folder is not None:
            replace_file(self._folder / f"{label.id}.json", json.dumps(asdict(label), indent=1).encode())


def key_of(digest: bytes) -> int:
    return int.from_bytes(digest[:KEY_BYTES], "big")


def sorted_run(keys: npt.NDArray[np.uint64]) -> memoryview:
    """The distinct keys in order, as a view that `bisect` reads; views without a byte cannot be cast."""
    return np.unique(keys).data.cast("B").cast("Q") if len(keys) else memoryview(array("Q"))


def replace_file(path: Path, data: bytes | memoryview) -> None:
    """Write `path` so that it is the old or the new one whole, also after power loss."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
