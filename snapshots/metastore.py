"""The protocol of a metadata store: where pages, commits, refs, leases and the state of gc live.

Two implementations, SQLite (sqlite.py, the embedded default) and MongoDB (mongo.py), obey one contract and one
conformance suite. Everything above is written against this protocol only.

- Synchronous and safe to call from many threads: the work around it (columns, hashes, compression) is CPU-bound and
  runs in threads anyway; a caller on an event loop goes through `asyncio.to_thread`.
- A call that returned is durable (majority of the replica set; WAL with full sync on commit of refs).
- Every call ends within `timeout_s`, retries included, or raises MetadataUnavailable, which names the server but
  never the credentials in its URL. All calls may be repeated: an answer that was lost is no harm.
- A lost race is a returned value (`Moved`), not an exception.
- Times are those of one clock, the store's (`now_ms`): several writers and a collector must agree on ages.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import msgspec

from .pages import PageId

CommitId: TypeAlias = bytes

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Published:
    """The ref moved (or was made, or removed). `number` is the version number that the commit got, 0 for other refs."""

    number: int = 0


@dataclass(frozen=True, slots=True)
class Moved:
    """Somebody else was first; nothing changed. `current` is where the ref is now (None: it is gone)."""

    current: CommitId | None


@dataclass(frozen=True, slots=True)
class DatasetRecord:
    """A dataset and all its refs at one moment. `version_count` is the number of the newest version."""

    name: str
    created_ms: int
    description: str = ""
    branches: dict[str, CommitId] = field(default_factory=dict)
    tags: dict[str, CommitId] = field(default_factory=dict)
    version_count: int = 0


class LeaseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A hold on one commit: while it lives, gc keeps everything that the commit reaches.

    `purpose` is `mount`, `job`, or `write` (a commit being made: gc also keeps all pages younger than the lease).
    `what` is for people ("mount of /data/train"). `started_ms` and `expires_ms` are set by the store.
    """

    id: str
    dataset: str
    commit: CommitId | None
    purpose: str
    what: str
    owner: str
    host: str
    pid: int
    started_ms: int = 0
    expires_ms: int = 0


class GcState(msgspec.Struct, frozen=True, kw_only=True):
    """What the collector is doing: `idle`, `marking`, `marked` (waiting for a sweep) or `sweeping`, in run number `run`."""

    run: int = 0
    phase: str = "idle"
    since_ms: int = 0


@dataclass(frozen=True, slots=True)
class PageState:
    """What gc has to know of a stored page or commit: when it was last written or used, and which run condemned it (0: none)."""

    id: bytes
    touched_ms: int
    condemned: int
    stored_bytes: int


class MetaStore(Protocol):
    """See the module's header for what holds for every method."""

    @property
    def name(self) -> str:
        """The store for messages: its URL without credentials."""
        ...

    def now_ms(self) -> int:
        """The store's clock, milliseconds since the epoch."""
        ...

    # --- Pages: immutable bytes under their hash.

    def put_pages(self, pages: Sequence[tuple[PageId, bytes]]) -> int:
        """Store pages; those already there are stored again, touched and freed of any condemnation. Returns how many were new."""
        ...

    def get_pages(self, ids: Sequence[PageId]) -> dict[PageId, bytes]:
        """The sealed bytes of those that are there."""
        ...

    def touch_pages(self, ids: Sequence[PageId]) -> set[PageId]:
        """Mark as in use now, and free of condemnation, atomically per page; returns those that are not there."""
        ...

    def page_states(self) -> Iterator[PageState]:
        """Every page, in no particular order; a page stored during the walk may be left out."""
        ...

    def condemn_pages(self, ids: Sequence[PageId], run: int, not_after_ms: int) -> int:
        """Mark for run `run` those that were last touched at or before `not_after_ms`; returns how many."""
        ...

    def condemned_pages(self) -> Iterator[PageState]:
        """Pages that some run condemned."""
        ...

    def delete_condemned(self, ids: Sequence[PageId]) -> int:
        """Delete those that are still condemned, atomically per page; returns how many."""
        ...

    # --- Commits: small immutable documents.

    def put_commit(self, commit_id: CommitId, dataset: str, data: bytes) -> None:
        """Store a commit (touching it when it is there)."""
        ...

    def get_commits(self, ids: Sequence[CommitId]) -> dict[CommitId, bytes]: ...

    def find_commits(self, dataset: str, id_prefix: str, limit: int) -> list[CommitId]:
        """Commits of the dataset whose hex id starts with the prefix, at most `limit`."""
        ...

    def commit_states(self) -> Iterator[PageState]: ...

    def delete_commits(self, ids: Sequence[CommitId], not_after_ms: int) -> int:
        """Delete those last touched at or before that moment; returns how many."""
        ...

    # --- Datasets and refs.

    def create_dataset(self, name: str, description: str) -> bool:
        """False when there is one of that name."""
        ...

    def delete_dataset(self, name: str) -> bool:
        """Remove the dataset and its refs (what they reached is garbage then); False when there is none."""
        ...

    def dataset_names(self) -> list[str]: ...

    def dataset(self, name: str) -> DatasetRecord | None: ...

    def versions(self, name: str) -> list[CommitId]:
        """Commit of each version number, oldest (v1) first; empty when there is no such dataset."""
        ...

    def publish(self, dataset: str, branch: str, expected: CommitId | None, new: CommitId) -> Published | Moved:
        """Move the branch from `expected` (None: no such branch) to `new` and give `new` the next version number, at once.

        A repeated call that already won answers Published again with the same number.
        """
        ...

    def set_ref(
        self, dataset: str, kind: str, name: str, expected: CommitId | None, new: CommitId | None
    ) -> Published | Moved:
        """Compare and swap of a `tag` or `branch` that gives no version number; `new` None removes it."""
        ...

    # --- Leases.

    def put_lease(self, lease: LeaseRecord, ttl_s: float) -> LeaseRecord:
        """Make or renew a lease, expiring `ttl_s` from now. `started_ms` of a live one of that id is kept."""
        ...

    def renew_lease(self, lease_id: str, ttl_s: float) -> bool:
        """False when it had expired or was dropped: gc may have run meanwhile."""
        ...

    def drop_lease(self, lease_id: str, *, timeout_s: float | None = None) -> None:
        """It is no error if it is gone. A store across the network gives up after `timeout_s`, if its own time-out is longer."""
        ...

    def leases(self) -> list[LeaseRecord]:
        """Live leases, oldest first."""
        ...

    # --- State of gc.

    def gc_state(self) -> GcState: ...

    def set_gc_state(self, expected: GcState, run: int, phase: str) -> GcState | None:
        """Compare and swap on (run, phase); None when another collector was first."""
        ...

    def close(self) -> None: ...
