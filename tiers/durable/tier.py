"""The protocol of a durable tier: where dirty bytes live until they are in the under store.

The write side acks an `fsync` or `close` when `DurableFile.sync` has returned. From then on the bytes must survive
kill -9 of any process and what else the tier promises (a power cut, the loss of an OSD). So the one rule of every
implementation: **`sync` returns only when everything written before is durable, and a sync that failed once never
succeeds afterwards**: the kernel drops the dirty pages of a failed write-out, so a second, successful fsync would
be a lie ("fsyncgate", LWN 752063).

A tier keeps no metadata. Which user file a data file belongs to, its size and which ranges of it mean anything is in
the records of `cache/write/`; a data file that no record names is garbage, and recovery deletes it.

All calls are synchronous, may block on the tier for at most its time-out, and may come from any thread. Failures:
`TierFull` (no room; nothing acked is affected), `TierFailed` (the tier does not work or does not answer), and
`DirtyDataMissing` (a data file that must be there is not).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ..understore import Buffer


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of the file system or pool behind a tier, ours and others' together."""

    total_bytes: int
    free_bytes: int


class DurableFile(Protocol):
    """An open data file. Ranges never written read as zeros. Writes to ranges that do not overlap may run at once."""

    @property
    def name(self) -> str: ...

    def write(self, offset: int, data: Buffer) -> None:
        """Store all of `data` at `offset`. Visible to `read` at once; durable only after `sync`."""
        ...

    def read(self, offset: int, size: int) -> Buffer:
        """Exactly `size` bytes; zeros where nothing was written, also beyond the end."""
        ...

    def truncate(self, size: int) -> None:
        """Forget everything at and after `size`: it reads as zeros, now and after the file has grown again."""
        ...

    def sync(self) -> None:
        """Return when all writes and truncations that returned before this call are durable, and the file's name too."""
        ...

    def close(self) -> None:
        """Release the handle, without syncing. Again: nothing happens."""
        ...


class DurableTier(Protocol):
    """Data files by name. Names are chosen by the caller, of letters, digits, `-` and `.`, and are never used twice."""

    @property
    def label(self) -> str:
        """What messages call it: `folder /var/lib/forebay/write`, `rados pool training`. Never a credential."""
        ...

    @property
    def identity(self) -> str:
        """The same wherever this tier is opened, and different for any other: so that records find their data."""
        ...

    def create(self, name: str) -> DurableFile:
        """A new, empty data file. It may be gone after a crash until its first `sync`."""
        ...

    def open(self, name: str) -> DurableFile:
        """An existing data file. Raises DirtyDataMissing if there is none."""
        ...

    def delete(self, name: str) -> None:
        """Remove a data file and give its space back; it is no error if there is none."""
        ...

    def names(self) -> Iterator[str]:
        """Every data file, in no order. What is created or deleted meanwhile may be in it or not."""
        ...

    def room(self) -> Room: ...

    def close(self) -> None: ...
