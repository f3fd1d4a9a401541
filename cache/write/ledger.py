"""Between the state in memory and the records on disk: operations, group commit, undo.

An operation is a function of a `Step`: it looks at the state, changes it through the step, and says what data of small files
goes along. It runs under the lock; then the step waits for its commit without the lock. Whoever waits first commits for
all that wait: one batch, and so one sync, carries every step that arrived during the one before.

So memory runs ahead of the disk, but only for operations that were not answered yet. When a commit fails, its step and every
later one that waits are undone in reverse order, and their callers get the error: nothing was ever shown as done.

A commit that lost a race against another mount is undone the same way; then the others' changes are taken in and the operation
runs again.

Where records are shared, *fenced* steps are those that only the holder of the lease may make. Their commits are guarded by
the lease's record: once another has taken it, none succeeds any more, however late this process notices.
"""

import asyncio
import enum
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from ...errors import ForebayError, MetadataUnavailable, WriterReplaced
from .nodes import LEASE_KEY, Entry, decode, encode
from .recent_inline import RecentInline
from .records.store import ABSENT, Batch, Change, Records
from .state import State

T = TypeVar("T")
RACES = 100  # lost in a row, before an operation gives up


class _Outcome(enum.Enum):
    WAITING = "waiting"
    COMMITTED = "committed"
    LOST = "lost"
    FAILED = "failed"


class Step:
    """What one operation changes. `recorded=False` changes memory only: files that were never synced."""

    def __init__(self, state: State, *, fenced: bool = False) -> None:
        self._state = state
        self.fenced = fenced
        self._before: list[tuple[Entry, Entry | None]] = []
        self.changes: dict[bytes, Entry | None] = {}
        self.put_inline: dict[str, bytes] = {}
        self.drop_inline: list[str] = []
        self.outcome = _Outcome.WAITING
        self.error: ForebayError | None = None

    def put(self, entry: Entry, *, recorded: bool = True) -> None:
        self._before.append((entry, self._state.put(entry)))
        if recorded:
            self.changes[entry.record_key] = entry

    def remove(self, entry: Entry, *, recorded: bool = True) -> None:
        old = self._state.remove(entry)
        if old is None:
            return
        self._before.append((entry, old))
        if recorded:
            self.changes[entry.record_key] = None

    @property
    def is_empty(self) -> bool:
        return not (self.changes or self.put_inline or self.drop_inline)

    def undo_locked(self) -> None:
        for entry, old in reversed(self._before):
            if old is None:
                self._state.remove(entry)
            else:
                self._state.put(old)


class Ledger:
    """Owner of the lock of a `State`. `state` may be read without the lock where a value that is just being replaced does no harm."""

    def __init__(self, state: State, records: Records) -> None:
        self.state = state
        self._records = records
        self._lock = threading.RLock()
        self._revisions: dict[bytes, int] = {}
        self._sequence = 0
        # The lowest revision of another mount that was not taken in because it met a change of ours on its way.
        self._passed_over: int | None = None
        self._pending: list[Step] = []
        self._recent_inline = RecentInline()
        self._committing = threading.Lock()
        self._taking_in = threading.Lock()
        self._drain: asyncio.Future[None] | None = None
        # The writer that must hold the lease; None where records are not shared, and there is none.
        self._writer: int | None = None
        self._fences_all = False

    @contextmanager
    def locked(self) -> Iterator[State]:
        """The state, at rest."""
        with self._lock:
            yield self.state

    def load(self) -> None:
        """Fill the state from the records. Raises MetadataUnavailable for a record that cannot be read: dirty data is never guessed at."""
        sequence, found = self._records.load()
        with self._lock:
            for record in found:
                assert record.body is not None
                self._take_locked(record.key, record.revision, record.body)
            self.state.order_by_age()
            self._sequence = sequence

    def fence(self, writer: int, *, all_steps: bool) -> None:
        """From now on background work, or with `all_steps` every operation, needs the lease in the hands of `writer`."""
        self._writer, self._fences_all = writer, all_steps

    def run(self, operation: Callable[[Step], T], *, fenced: bool | None = None) -> T:
        """Do an operation; returns when what it changed is durable. Blocks.

        Raises what the operation raises (the state is then as before), why the commit failed, or WriterReplaced.
        """
        fenced = self._fences_all if fenced is None else fenced
        for race in range(RACES):
            if race:
                self.take_in()
            result, step = self._begin(operation, fenced=fenced)
            if self._finish(step):
                return result
        raise MetadataUnavailable(f"{self._records.label}: others changed the same records {RACES} times in a row")

    async def run_async(self, operation: Callable[[Step], T]) -> T:
        """`run` of a fenced step for the event loop: commits in a thread, one at a time, for all that wait. Not undone by cancellation."""
        for race in range(RACES):
            if race and self._records.is_shared:
                await asyncio.to_thread(self.take_in)
            result, step = self._begin(operation, fenced=self._writer is not None)
            while step is not None and step.outcome is _Outcome.WAITING:
                await self._drained()
            if self._finish(step):
                return result
        raise MetadataUnavailable(f"{self._records.label}: others changed the same records {RACES} times in a row")

    async def barrier(self) -> None:
        """Return when everything that the state holds now is durable, or undone."""
        with self._lock:
            last = self._pending[-1] if self._pending else None
        while last is not None and last.outcome is _Outcome.WAITING:
            await self._drained()

    async def _drained(self) -> None:
        if self._drain is None or self._drain.done():
            self._drain = asyncio.get_running_loop().run_in_executor(None, self._commit_pending)
        await asyncio.shield(self._drain)

    def take_in(self) -> None:
        """Learn what other mounts committed; nothing to do for an embedded store."""
        if not self._records.is_shared:
            return
        with self._taking_in:
            since = self._sequence if self._passed_over is None else self._passed_over - 1
            changes = self._records.changes_since(since)
            with self._lock:
                self._passed_over = None
                ours = {key for step in self._pending for key in step.changes}
                # Removals first: a node that was moved stands in two slots otherwise.
                for record in sorted(changes.records, key=lambda record: record.body is not None):
                    if record.revision <= self._revisions.get(record.key, ABSENT):
                        continue
                    if record.key in ours:
                        # Our change will be refused and undone; this one is taken in after that.
                        self._passed_over = min(record.revision, self._passed_over or record.revision)
                        continue
                    self._take_locked(record.key, record.revision, record.body)
                self._sequence = max(self._sequence, changes.sequence)

    def inline(self, name: str) -> bytes | None:
        """Committed inline data, or None if there is none of that name. May block."""
        recent = self.recent_inline(name)
        return recent if recent is not None else self._records.inline(name)

    def recent_inline(self, name: str) -> bytes | None:
        """`inline` if it can be said at once. None means nothing."""
        with self._lock:
            return self._recent_inline.get(name)

    def _begin(self, operation: Callable[[Step], T], *, fenced: bool) -> tuple[T, Step | None]:
        with self._lock:
            step = Step(self.state, fenced=fenced)
            try:
                if fenced:
                    self._require_lease_locked()
                result = operation(step)
            except BaseException:
                step.undo_locked()
                raise
            if step.is_empty:
                return result, None
            self._pending.append(step)
            return result, step

    def _require_lease_locked(self) -> None:
        lease = self.state.lease
        if lease is None or lease.holder != self._writer:
            holder = self.state.writers.get(lease.holder) if lease is not None else None
            raise WriterReplaced(
                f"{holder.label if holder is not None else 'another process'} writes this bucket now, because this one "
                "did not reach the metadata store for too long",
                remedy="unmount, and mount again; what was acked is safe",
            )

    def _finish(self, step: Step | None) -> bool:
        """Wait for a step; whether it was committed. Raises if it failed."""
        if step is None:
            return True
        while step.outcome is _Outcome.WAITING:
            self._commit_pending()
        if step.error is not None:
            raise type(step.error)(step.error.message, remedy=step.error.remedy) from step.error
        return step.outcome is _Outcome.COMMITTED

    def _commit_pending(self) -> None:
        """Commit all that waits. Those who come during a commit wait here for their turn, and mostly find it done."""
        with self._committing:
            with self._lock:
                steps = list(self._pending)
                if not steps:
                    return
                batch = self._batch_locked(steps)
            try:
                revision = self._records.commit(batch)
            except ForebayError as error:
                self._fail(error)
                return
            except BaseException as error:
                self._fail(MetadataUnavailable(f"{self._records.label}: {type(error).__name__}"))
                raise
            if revision is None:
                self._fail(None)
                return
            with self._lock:
                for change in batch.changes:
                    if change.body is None:
                        self._revisions.pop(change.key, None)
                    else:
                        self._revisions[change.key] = revision
                self._recent_inline.put(batch.put_inline)
                self._recent_inline.drop(batch.drop_inline)
                del self._pending[: len(steps)]
                for step in steps:
                    step.outcome = _Outcome.COMMITTED

    def _batch_locked(self, steps: Sequence[Step]) -> Batch:
        entries: dict[bytes, Entry | None] = {}
        put_inline: dict[str, bytes] = {}
        drop_inline: list[str] = []
        for step in steps:
            entries |= step.changes
            put_inline |= step.put_inline
            for name in step.drop_inline:
                if put_inline.pop(name, None) is None:
                    drop_inline.append(name)
        changes = []
        for key, entry in entries.items():
            revision = self._revisions.get(key, ABSENT)
            if entry is not None:
                changes.append(Change(key, revision, encode(entry)))
            elif revision != ABSENT:  # else made and removed again before it was ever recorded
                changes.append(Change(key, revision, None))
        guards: dict[bytes, int] = {}
        if any(step.fenced for step in steps):
            guards[LEASE_KEY] = self._revisions.get(LEASE_KEY, ABSENT)
        return Batch(changes, put_inline, drop_inline, guards)

    def _fail(self, error: ForebayError | None) -> None:
        """Undo everything that waits: later steps may have been decided on what earlier ones changed. None: a lost race."""
        with self._lock:
            failed, self._pending = self._pending, []
            for step in reversed(failed):
                step.undo_locked()
            for step in failed:
                step.error = error
                step.outcome = _Outcome.LOST if error is None else _Outcome.FAILED

    def _take_locked(self, key: bytes, revision: int, body: bytes | None) -> None:
        if body is None:
            self.state.remove_key(key)
            self._revisions.pop(key, None)
            return
        try:
            self.state.put(decode(key, body))
        except ValueError as error:
            raise MetadataUnavailable(
                f"{self._records.label}: {error}", remedy="restore the records, or use the version that wrote them"
            ) from error
        self._revisions[key] = revision
