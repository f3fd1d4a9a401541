"""Between the state in memory and the records on disk: operations, group commit, undo.

An operation is a function of a `Step`: it looks at the state, changes it through the step, and says what data of small files
goes along. It runs under the lock; then the step waits for its commit without the lock. Whoever waits first commits for
all that wait: one batch, and so one sync, carries every step that arrived during the one before.

So memory runs ahead of the disk, but only for operations that were not answered yet. When a commit fails, its step and every
later one that waits are undone in reverse order, and their callers get the error: nothing was ever shown as done.

A commit that lost a race against another mount is undone the same way; then the others' changes are taken in and the operation
runs again. An operation that is refused on a state that may be old is tried again on the present one.

Where records are shared, each batch is guarded by what it was decided on: the record of this writer (which others remove when they
take it for dead), folders that must still be there, and for *fenced* steps the lease, which only one writer holds. Once another has
taken its place, nothing that a writer commits succeeds any more, however late it notices.
"""

import asyncio
import enum
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from ...errors import ForebayError, MetadataUnavailable, OpenElsewhere, WriterReplaced
from .ages import now_s
from .nodes import LEASE_KEY, Entry, Kind, Node, decode, encode, writer_key
from .recent_inline import RecentInline
from .records.store import ABSENT, Batch, Change, Changes, Record, Records
from .state import State

T = TypeVar("T")
RACES = 100  # lost in a row, before an operation gives up
LONGEST_PAUSE_S = 0.2
NEVER = -1  # a revision that no record has


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
        # Whether it was decided on what is not there: then nothing at all may have been committed since.
        self.is_strict = False
        # Nodes that must still stand in their slots: record key and id.
        self.relies_on: dict[bytes, int] = {}
        # How many changes of others the state had seen when the operation looked at it.
        self.as_of = 0
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

    def rely_on(self, node: Node) -> None:
        """The change makes sense only while this node is in its place."""
        if node.parent:
            self.relies_on[node.record_key] = node.id

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
        # What we removed later than `sequence`: changes that were read before tell of what was there before.
        self._removed: dict[bytes, int] = {}
        self._sequence = 0
        self._changes_taken = 0
        self._pending: list[Step] = []
        self._recent_inline = RecentInline()
        self._committing = threading.Lock()
        self._taking_in = threading.Lock()
        self._drain: asyncio.Future[None] | None = None
        # This writer's number; None where records are not shared, or nothing is written.
        self._writer: int | None = None
        # Called where it is noticed that this writer was taken for dead; whether it is a writer again, under another number. May block.
        self.on_replaced: Callable[[], bool] = lambda: False
        # When changes of others were last asked for; see `now_s`.
        self._asked_at = now_s()
        # Told, with the lock held, of every record that others changed: (key, entry before, entry now).
        self.on_taken: Callable[[bytes, Entry | None, Entry | None], None] = lambda key, old, new: None

    @contextmanager
    def locked(self) -> Iterator[State]:
        """The state, at rest."""
        with self._lock:
            yield self.state

    def load(self) -> None:
        """Fill the state from the records. Raises MetadataUnavailable for a record that cannot be read: dirty data is never guessed at."""
        self._asked_at = now_s()
        sequence, found = self._records.load()
        with self._lock:
            for record, entry in self._newest_places(found):
                self.state.put(entry)
                self._revisions[record.key] = record.revision
            self.state.order_by_age()
            self._sequence = sequence

    def _newest_places(self, found: Iterable[Record]) -> list[tuple[Record, Entry]]:
        """All records; but of a node that others moved while they were read, and that was so found in two places, only the newer one."""
        kept: dict[bytes, tuple[Record, Entry]] = {}
        places: dict[int, bytes] = {}
        for record in found:
            assert record.body is not None
            entry = self._decoded(record.key, record.body)
            if isinstance(entry, Node) and entry.kind != Kind.WHITEOUT:
                other = places.get(entry.id)
                if other is not None:
                    if kept[other][0].revision > record.revision:
                        continue
                    del kept[other]
                places[entry.id] = record.key
            kept[record.key] = (record, entry)
        return list(kept.values())

    @property
    def sequence(self) -> int:
        """What the state is at least as new as."""
        return self._sequence

    def join(self, writer: int) -> None:
        """From now on everything is committed as this writer, whose record is there."""
        self._writer = writer

    def change_writer(self, writer: int, switch: Callable[[], None]) -> None:
        """Stop committing as a writer whose record is gone: everything is committed as `writer` from now on, once its record is there.

        What waits for its commit was decided as the old one, and fails. `switch` is called at that moment, with the lock held.
        """
        with self._committing, self._lock:
            self._fail(_replaced())
            self._writer = writer
            switch()

    def run(self, operation: Callable[[Step], T], *, fenced: bool = False, as_writer: bool = True) -> T:
        """Do an operation; returns when what it changed is durable. Blocks.

        `fenced`: only while this writer holds the lease. `as_writer=False` is for joining and leaving. Raises what the operation
        raises (the state is then as before), why the commit failed, or WriterReplaced.
        """
        for race in range(RACES):
            if race and not self.take_in():
                time.sleep(_pause_s(race))
            try:
                result, step = self._begin(operation, fenced=fenced, as_writer=as_writer)
                if self._finish(step):
                    return result
            except (OSError, OpenElsewhere):
                if race or not self.take_in():
                    raise
            except WriterReplaced:
                if fenced or not as_writer or not self.on_replaced():
                    raise
        raise MetadataUnavailable(f"{self._records.label}: others changed the same records {RACES} times in a row")

    async def run_async(self, operation: Callable[[Step], T]) -> T:
        """`run` of a fenced step for the event loop: commits in a thread, one at a time, for all that wait. Not undone by cancellation."""
        fenced = self._writer is not None
        for race in range(RACES):
            if race and self._records.is_shared and not await asyncio.to_thread(self.take_in):
                await asyncio.sleep(_pause_s(race))
            result, step = self._begin(operation, fenced=fenced, as_writer=True)
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

    def take_in(self) -> bool:
        """Learn what other mounts committed, up to this moment; whether anything new was. Nothing to do for an embedded store."""
        if not self._records.is_shared:
            return False
        with self._taking_in:
            for _ in range(RACES):
                asked_at = now_s()
                is_late = asked_at - self._asked_at > self._records.changes_kept_s / 2
                changes = self._reload() if is_late else self._records.changes_since(self._sequence)
                self._asked_at = asked_at
                with self._lock:
                    if not any(
                        self._is_news(record) and self._meets_pending_locked(record) for record in changes.records
                    ):
                        return self._take_in_locked(changes)
                # Changes that others made at once must be seen at once, and these meet some of ours that wait for their commit:
                # which is refused, or is what was just read. Both in memory could be a tree that cannot be (two folders in each other).
                self._commit_pending()
            raise MetadataUnavailable(f"{self._records.label}: others changed the same records {RACES} times in a row")

    def _reload(self) -> Changes:
        """Everything, told as changes: for who was away for so long that not all removals would be told any more."""
        sequence, found = self._records.load()
        records = [record for record, _ in self._newest_places(found)]
        there = {record.key for record in records}
        with self._lock:
            gone = [Record(key, sequence + 1, None) for key in self._revisions if key not in there]
        return Changes(sequence, [*records, *gone])

    def _meets_pending_locked(self, record: Record) -> bool:
        return any(
            step.is_strict or record.key in step.changes or record.key in step.relies_on for step in self._pending
        )

    def _is_news(self, record: Record) -> bool:
        known = self._revisions.get(record.key, ABSENT)
        return record.revision > max(known, self._removed.get(record.key, ABSENT))

    def _take_in_locked(self, changes: Changes) -> bool:
        news = [
            (record, None if record.body is None else self._decoded(record.key, record.body))
            for record in changes.records
            if self._is_news(record)
        ]
        # What left its slot goes first, also where a whiteout or another node came in its place: a node that was moved stands in two otherwise.
        old = {record.key: self.state.find(record.key) for record, _ in news}
        for record, entry in news:
            before = old[record.key]
            if entry is None or (isinstance(before, Node) and isinstance(entry, Node) and before.id != entry.id):
                self.state.remove_key(record.key)
                self._revisions.pop(record.key, None)
        for record, entry in news:
            if entry is not None:
                self.state.put(entry)
                self._revisions[record.key] = record.revision
            self.on_taken(record.key, old[record.key], entry)
        self._changes_taken += len(news)
        self._sequence = max(self._sequence, changes.sequence)
        self._removed = {key: revision for key, revision in self._removed.items() if revision > self._sequence}
        return bool(news)

    def inline(self, name: str) -> bytes | None:
        """Committed inline data, or None if there is none of that name. May block."""
        recent = self.recent_inline(name)
        return recent if recent is not None else self._records.inline(name)

    def recent_inline(self, name: str) -> bytes | None:
        """`inline` if it can be said at once. None means nothing."""
        with self._lock:
            return self._recent_inline.get(name)

    def _begin(self, operation: Callable[[Step], T], *, fenced: bool, as_writer: bool) -> tuple[T, Step | None]:
        with self._lock:
            step = Step(self.state, fenced=fenced)
            step.as_of = self._changes_taken
            try:
                if as_writer and self._writer is not None:
                    self._require_writer_locked(self._writer, fenced=fenced)
                result = operation(step)
            except BaseException:
                step.undo_locked()
                raise
            if step.is_empty:
                return result, None
            self._pending.append(step)
            return result, step

    def _require_writer_locked(self, writer: int, *, fenced: bool) -> None:
        if writer not in self.state.writers:
            raise _replaced()
        lease = self.state.lease
        if fenced and (lease is None or lease.holder != writer):
            raise WriterReplaced("another process does the writeback of this bucket now")

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
                        if self._records.is_shared:
                            self._removed[change.key] = revision
                    else:
                        self._revisions[change.key] = revision
                self._recent_inline.put(batch.put_inline)
                self._recent_inline.drop(batch.drop_inline)
                if revision == self._sequence + 1:
                    self._sequence = revision  # nobody came in between
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
        return Batch(changes, put_inline, drop_inline, self._guards_locked(steps, entries), self._after_locked(steps))

    def _guards_locked(self, steps: Sequence[Step], changed: Mapping[bytes, Entry | None]) -> dict[bytes, int]:
        guards: dict[bytes, int] = {}
        if not self._records.is_shared:
            return guards
        keys = [] if self._writer is None else [writer_key(self._writer)]
        if any(step.fenced for step in steps):
            keys.append(LEASE_KEY)
        for key in keys:
            if key not in changed:
                guards[key] = self._revisions.get(key, NEVER)
        for step in steps:
            for key, identity in step.relies_on.items():
                found = self.state.find(key)
                if not isinstance(found, Node) or found.id != identity:
                    guards[key] = NEVER  # taken away by another after the operation looked
                elif key not in changed:
                    guards[key] = self._revisions.get(key, NEVER)
        return guards

    def _after_locked(self, steps: Sequence[Step]) -> int | None:
        strict = [step for step in steps if step.is_strict] if self._records.is_shared else []
        if not strict:
            return None
        return self._sequence if all(step.as_of == self._changes_taken for step in strict) else NEVER

    def _fail(self, error: ForebayError | None) -> None:
        """Undo everything that waits: later steps may have been decided on what earlier ones changed. None: a lost race."""
        with self._lock:
            failed, self._pending = self._pending, []
            for step in reversed(failed):
                step.undo_locked()
            for step in failed:
                step.error = error
                step.outcome = _Outcome.LOST if error is None else _Outcome.FAILED

    def _decoded(self, key: bytes, body: bytes) -> Entry:
        try:
            return decode(key, body)
        except ValueError as error:
            raise MetadataUnavailable(
                f"{self._records.label}: {error}", remedy="restore the records, or use the version that wrote them"
            ) from error


def _pause_s(race: int) -> float:
    """How long to wait where a race was lost to a commit that cannot be read yet: MongoDB shows it when a majority has it in its journal."""
    return random.uniform(0.5, 1.0) * min(0.001 * 2.0 ** min(race, 10), LONGEST_PAUSE_S)


def _replaced() -> WriterReplaced:
    return WriterReplaced(
        "this process was taken for dead by another that writes the bucket, because it did not reach the metadata store for too long",
        remedy="open the file again; if that fails too, unmount, and mount again; what was acked is safe",
    )
