"""The protocol of a record store: what the write side knows about dirty, renamed and deleted paths, durably.

It is a key-value store with just enough to let several mounts share it:

- Every committed batch gets a **sequence** number; the number of the last batch that touched a key is the key's
  **revision**. `ABSENT` (0) is the revision of a key that is not there.
- A batch is applied whole or not at all, and only if every key has the revision that the batch expects. A batch that
  lost a race is an outcome (`None`), not an error: take in `changes_since` and decide again.
- When `commit` returns, what it committed is durable (SQLite: synced; MongoDB: journalled on a majority).
- **Inline data** of small files is kept beside the records, under names of its own, and changes in the same batches.

Calls block and may come from any thread. The only failure is `MetadataUnavailable` (or `TierFull`, when the disk of an
embedded store is full): nothing of the batch is applied then, except that a MongoDB that did not answer may have applied
it, which `changes_since` shows.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

ABSENT = 0


@dataclass(frozen=True, slots=True)
class Change:
    """Set `key` to `body` (None: remove it), if its revision is `expected`."""

    key: bytes
    expected: int
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Batch:
    """What is applied together. `put_inline` and `drop_inline` concern inline data, by name.

    `guards` are keys that stay as they are and must have these revisions: what the changes were decided on. `after`: nothing at
    all may have been committed since this sequence, because they were decided on what is not there.
    """

    changes: Sequence[Change]
    put_inline: Mapping[str, bytes] = field(default_factory=dict)
    drop_inline: Sequence[str] = ()
    guards: Mapping[bytes, int] = field(default_factory=dict)
    after: int | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """`body` is None for a key that was removed (only `changes_since` gives those)."""

    key: bytes
    revision: int
    body: bytes | None


@dataclass(frozen=True, slots=True)
class Changes:
    """Every record changed after the sequence asked for, oldest first, up to and including `sequence`."""

    sequence: int
    records: Sequence[Record]


class Records(Protocol):
    @property
    def label(self) -> str:
        """What messages call it; never a credential."""
        ...

    @property
    def is_shared(self) -> bool:
        """Whether others may commit too, so that revisions can be stale and `changes_since` is worth asking."""
        ...

    @property
    def changes_kept_s(self) -> float:
        """How long after it was committed a removal is told by `changes_since`. Who did not ask for longer has to `load` again."""
        ...

    def load(self) -> tuple[int, Iterator[Record]]:
        """The present sequence and every record there is (at least as new as it; newer ones may be among them)."""
        ...

    def commit(self, batch: Batch) -> int | None:
        """Apply a batch and return its sequence, or None, with nothing changed, if it was stale."""
        ...

    def changes_since(self, sequence: int) -> Changes: ...

    def inline(self, name: str) -> bytes | None:
        """Inline data, or None if there is none of that name."""
        ...

    def inline_names(self) -> Iterator[str]: ...

    def close(self) -> None: ...
