"""The background of the write side: chooses what to upload, delete and move next, and keeps at it.

Order is by age, oldest first, with bounded numbers at a time. What fails is tried again with growing pauses, for as long as
it takes; when the store does not answer at all, everything pauses together, because asking for each file would change
nothing. Every task belongs to the task group of `run`, and ends with it.
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice

from ...errors import ForebayError, StoreUnavailable
from .ages import Ages
from .deletions import Deletions
from .ledger import Ledger
from .nodes import Doomed, Kind, Node
from .options import WriteOptions
from .relocation import Relocation
from .retirement import Retirement
from .uploads import Outcome, Uploads

logger = logging.getLogger(__name__)

# Entries looked at in one round; what is blocked or pausing at the head of the queue costs a look each time.
SCAN = 2000
ROUND_S = 0.25
IDLE_S = 5.0
# While files are closed one after the other (none for CALM_S ends it), uploads wait: that of a small file takes more of this
# machine than its close does, and somebody waits for the close. Not longer than PATIENCE_S, and not when room gets short.
CALM_S = 0.1
PATIENCE_S = 10.0
# Small files that share the commits of their uploads. Half of what may be on its way, so that some are sent while others are committed.
BATCH = 16
# Between two looks at what can be given back.
RETIRE_S = 1.0
# A failure is logged the first time, and then once in this many.
LOG_EVERY = 20


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something is not in the under store yet. `next_try` is on the monotonic clock."""

    reason: str
    tries: int
    next_try: float


@dataclass(slots=True)
class Writeback:
    """`writer_count` says how many have a file open for writing; `may_work` whether the writeback is ours to do, and
    `is_waited_for` whether another writer waits for all of it. `wake` may be called from any thread."""

    ledger: Ledger
    uploads: Uploads
    deletions: Deletions
    relocation: Relocation
    retirement: Retirement
    options: WriteOptions
    now_ns: Callable[[], int]
    sync_open: Callable[[int], Awaitable[None]]
    writer_count: Callable[[int], int]
    may_work: Callable[[], bool]
    is_waited_for: Callable[[], bool]
    failures: dict[object, Failure] = field(default_factory=dict)
    # How often work failed, by kind of error, since the start.
    failed: Counter[str] = field(default_factory=Counter)
    # Nodes that somebody waits for: no delay for them, though they be open.
    urgent: set[int] = field(default_factory=set)
    paused_until: float = 0.0
    paused_reason: str = ""
    running: dict[object, asyncio.Task[None]] = field(default_factory=dict)
    _pauses: int = 0
    _ages: Ages = field(default_factory=Ages)
    _next_retirement: float = 0.0
    _next_pruning: float = 0.0
    _loop: asyncio.AbstractEventLoop | None = None
    _event: asyncio.Event = field(default_factory=asyncio.Event)
    _woken: bool = False
    _looks_soon: bool = False
    _noticed_at: float = float("-inf")
    _idle_waiters: list[asyncio.Future[None]] = field(default_factory=list)

    def wake(self) -> None:
        """Look at the queue soon; from any thread, cheap when said often."""
        loop = self._loop
        if loop is None or self._woken:
            return
        self._woken = True
        try:
            loop.call_soon_threadsafe(self._event.set)
        except RuntimeError:
            self._woken = False  # the loop is closed: nobody is left to be woken

    def noticed(self) -> None:
        """Something became dirty: `wake`, unless it rests longer than until the next look anyway. Cheap for every close."""
        self._noticed_at = time.monotonic()
        if not (self._looks_soon and self.options.writeback_delay_s > ROUND_S):
            self.wake()

    async def run(self) -> None:
        """Work until cancelled."""
        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    self._woken = False
                    self._event.clear()
                    self._start(group)
                    # In this order, because `noticed` reads it in other threads: who finds it true became dirty before
                    # the question, and so it is answered with yes.
                    self._looks_soon = False
                    self._looks_soon = self._has_work()
                    try:
                        async with asyncio.timeout(ROUND_S if self._looks_soon else IDLE_S):
                            await self._event.wait()
                    except TimeoutError:
                        pass
        finally:
            self._loop = None
            self._looks_soon = False

    async def changed(self) -> None:
        """Wait until some task has ended, or a moment."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle_waiters.append(waiter)
        try:
            async with asyncio.timeout(ROUND_S):
                await waiter
        except TimeoutError:
            pass
        finally:
            if waiter in self._idle_waiters:
                self._idle_waiters.remove(waiter)

    def retry_now(self) -> None:
        """Forget all pauses."""
        self.paused_until = 0.0
        self.failures = {what: Failure(failure.reason, failure.tries, 0.0) for what, failure in self.failures.items()}
        self.wake()

    def _has_work(self) -> bool:
        state = self.ledger.state
        if not self.may_work():
            return False
        return bool(state.dirty or state.doomed or state.attempts) or self.retirement.is_due()

    # --- Choosing. ---------------------------------------------------------------------------------------

    def _start(self, group: asyncio.TaskGroup) -> None:
        now = time.monotonic()
        if now < self.paused_until or not self.may_work():
            return
        free = self.options.upload_files - len(self.running)
        if free <= 0 or self._gives_way(now):
            return
        with self.ledger.locked() as state:
            if self.failures:
                self._forget_failures_locked(now)
            attempts = [a for a in state.attempts.values() if a.nonce not in self.uploads.active][:free]
            nodes = self._choose_nodes_locked(free, now)
            doomed: list[Doomed] = []
            for entry in state.doomed.values():
                if len(doomed) >= free:
                    break
                if self._is_due(b"d" + entry.key, now) and self.deletions.is_possible(state, entry):
                    doomed.append(entry)
        for attempt in attempts:
            if attempt.node not in self.running:
                self._task(group, f"a{attempt.nonce}", lambda attempt=attempt: self.uploads.settle(attempt))  # type: ignore[misc]
        batch: list[int] = []
        for node_id, moving in nodes:
            if moving:
                self._task(group, ("move", node_id), lambda node_id=node_id: self.relocation.relocate(node_id))  # type: ignore[misc]
            elif self._is_small(node_id):
                batch.append(node_id)
            else:
                self._batch(group, [node_id])
        for some in _batches(batch):
            self._batch(group, some)
        if self.retirement.is_due() and self._is_due("retirement", now) and now >= self._next_retirement:
            self._next_retirement = now + RETIRE_S
            self._task(group, "retirement", self.retirement.run)
        for entry in doomed:
            self._task(group, b"d" + entry.key, lambda entry=entry: self.deletions.delete(entry))  # type: ignore[misc]

    def _forget_failures_locked(self, now: float) -> None:
        """What was renamed, deleted or settled meanwhile is nobody's failure any more."""
        if now < self._next_pruning:
            return
        self._next_pruning = now + RETIRE_S
        state = self.ledger.state
        known: dict[object, Failure] = {}
        for what, failure in self.failures.items():
            if isinstance(what, int):
                kept = what in state.dirty
            elif isinstance(what, tuple):
                kept = what[1] in state.dirty
            elif isinstance(what, bytes):
                kept = what[1:] in state.doomed
            else:
                kept = not (isinstance(what, str) and what.startswith("a")) or what[1:] in state.attempts
            if kept or what in self.running:
                known[what] = failure
        self.failures = known

    def _gives_way(self, now: float) -> bool:
        """Whether programs close file after file at this moment, and nothing has waited for long yet."""
        options = self.options
        if now - self._noticed_at > CALM_S or self.urgent or options.writeback_delay_s < CALM_S:
            return False
        with self.ledger.locked() as state:
            if (
                not state.dirty
                or len(state.dirty) > options.max_dirty_files / 2
                or state.dirty_bytes > options.max_dirty_bytes / 2
            ):
                return False
            oldest = state.by_id[next(iter(state.dirty))]
            return self.age_s(oldest) < options.writeback_delay_s + PATIENCE_S

    def _choose_nodes_locked(self, free: int, now: float) -> list[tuple[int, bool]]:
        state = self.ledger.state
        self._ages.forget(len(state.dirty), self._is_dirty)
        all_urgent = self.is_waited_for()
        chosen: list[tuple[int, bool]] = []
        seen: set[int] = set()
        done: list[int] = []
        for node_id in chain(self.urgent, islice(state.dirty, SCAN)):
            if len(chosen) >= free:
                break
            if node_id not in state.dirty:
                done.append(node_id)
                continue
            node = state.by_id[node_id]
            what: object = ("move", node_id) if node.moving else node_id
            if node_id in seen or what in self.running or not self._is_due(what, now):
                continue
            seen.add(node_id)
            age_s = self.age_s(node)
            if node_id not in self.urgent and not all_urgent:
                if age_s < self.options.writeback_delay_s and node.kind == Kind.FILE:
                    break  # those behind it are younger
                if self._is_being_written(node):
                    continue
            chosen.append((node_id, node.moving))
        self.urgent.difference_update(done)
        return chosen

    def age_s(self, node: Node) -> float:
        """How long a node has been dirty, as far as this process knows; the wall clock counts for the time before."""
        before_s = (self.now_ns() - node.dirty_since_ns) / 1e9
        return self._ages.age_s((node.id, node.dirty_since_ns), before_s=before_s)

    def _is_dirty(self, what: object) -> bool:
        assert isinstance(what, tuple)
        node = self.ledger.state.by_id.get(what[0])
        return node is not None and node.dirty_since_ns == what[1]

    def _is_being_written(self, node: Node) -> bool:
        """Whether a file is open and should rest until it is closed, or has been dirty for too long."""
        return bool(self.writer_count(node.id)) and self.age_s(node) < self.options.max_dirty_age_s

    def _is_due(self, what: object, now: float) -> bool:
        failure = self.failures.get(what)
        return what not in self.running and (failure is None or failure.next_try <= now)

    # --- Working. ----------------------------------------------------------------------------------------

    def _is_small(self, node_id: int) -> bool:
        """Whether an upload is one request of bytes that are in memory: then its commits are worth sharing."""
        node = self.ledger.state.by_id.get(node_id)
        return node is not None and node.kind == Kind.FILE and not node.is_base and (node.inline or not node.data)

    def _batch(self, group: asyncio.TaskGroup, node_ids: Sequence[int]) -> None:
        task = group.create_task(self._upload(node_ids))
        self.running.update(dict.fromkeys(node_ids, task))

    async def _upload(self, node_ids: Sequence[int]) -> None:
        """Upload nodes; whatever goes wrong with one delays that one, and no other."""
        left = set(node_ids)

        def ended(node_id: int, outcome: Outcome) -> None:
            left.discard(node_id)
            if outcome is False:
                # It has to wait for another file or deletion; look again in a while.
                self.failures[node_id] = Failure("waits for another file or a deletion", 0, time.monotonic() + ROUND_S)
            elif outcome is True:
                self.failures.pop(node_id, None)
            self._ended(node_id, None if isinstance(outcome, bool) else outcome)

        try:
            for node_id in node_ids:
                if self.writer_count(node_id) and not await self._commit_open(node_id):
                    left.discard(node_id)
                    self._ended(node_id, None)
            await self.uploads.upload([node_id for node_id in node_ids if node_id in left], ended)
        except Exception as error:
            for node_id in list(left):
                ended(node_id, error)
        finally:
            for node_id in left:
                self.running.pop(node_id, None)

    async def _commit_open(self, node_id: int) -> bool:
        """Commit what was written to an open file; False if it should rest."""
        with self.ledger.locked() as state:
            node = state.by_id.get(node_id)
            is_urgent = node_id in self.urgent or self.is_waited_for()
            if node is None or (not is_urgent and self._is_being_written(node)):
                return False  # opened since it was chosen: what is written now is not for us to commit
        await self.sync_open(node_id)
        return True

    def _task(self, group: asyncio.TaskGroup, what: object, work: Callable[[], Awaitable[object]]) -> None:
        if what in self.running:
            return
        self.running[what] = group.create_task(self._guarded(what, work))

    async def _guarded(self, what: object, work: Callable[[], Awaitable[object]]) -> None:
        """One piece of work; whatever goes wrong in it delays that piece, and nothing else."""
        try:
            await work()
        except Exception as error:
            self._ended(what, error)
        else:
            self._ended(what, None)
        finally:
            self.running.pop(what, None)

    def _ended(self, what: object, error: BaseException | None) -> None:
        if error is None:
            if self._pauses:
                logger.info("writeback goes on")
            self._pauses = 0
            known = self.failures.get(what)
            if known is not None and known.tries:
                del self.failures[what]
        else:
            if not isinstance(error, ForebayError):
                logger.error("writeback of %r failed in an unforeseen way", what, exc_info=error)
            self._failed(what, error)
            if isinstance(error, StoreUnavailable):
                self._pauses += 1
                if self._pauses % LOG_EVERY == 1:
                    logger.warning("writeback waits: %s", error)
                self.paused_until = time.monotonic() + self._pause_s(min(self._pauses, self.options.upload_files))
                self.paused_reason = str(error)
        self.running.pop(what, None)
        self.relocation.progress.set()
        waiters, self._idle_waiters = self._idle_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._event.set()

    def _failed(self, what: object, error: BaseException) -> None:
        self.failed[error.kind if isinstance(error, ForebayError) else "internal"] += 1
        tries = self.failures[what].tries + 1 if what in self.failures else 1
        if tries % LOG_EVERY == 1 and not isinstance(error, StoreUnavailable):
            logger.warning("writeback failed, and will be tried again: %s", error)
        self.failures[what] = Failure(str(error), tries, time.monotonic() + self._pause_s(tries))

    def _pause_s(self, tries: int) -> float:
        pause_s = min(self.options.retry_first_s * 2.0 ** min(tries - 1, 20), self.options.retry_max_s)
        return pause_s * random.uniform(0.5, 1.0)


def _batches(node_ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(node_ids), BATCH):
        yield node_ids[start : start + BATCH]
