"""Which processes write, and which one of them brings what is dirty into the under store.

Where records are shared, each process that writes keeps a `Writer` record and counts its beats. One of them holds the
`Lease`: it alone uploads, deletes and gives back. No clocks are compared:

- A writer is dead when its beats stood still for `lease_s` while we watched (by our own clock), or when its process is gone
  and we are in a place where that can be seen. Then, or when the holder has left, whoever comes first takes the lease, by
  a commit that expects the record it saw.
- The holder acts on the under store only for `ACT_SHARE` of `lease_s` after its last beat that was committed. What it
  began then has ended, or timed out, before anybody may take its place. What it commits is guarded by the lease itself (`Ledger`).
- The holder also removes the records of other dead writers. A commit of theirs is guarded by that record, so nothing that they had begun
  is applied any more.
- Who was taken for dead and lives (a suspended machine, MongoDB out of reach) becomes a writer again under another number. What it had
  open for writing may be another's by now, and is lost to it: those handles get ESTALE. Everything else goes on.

docs/design/0004-shared-namespace.md has the reasons and the crash table.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec

from ...errors import ForebayError, MetadataUnavailable, WriterReplaced
from .ages import now_s
from .ledger import Ledger, Step
from .nodes import Lease, Writer

logger = logging.getLogger(__name__)

ACT_SHARE = 0.25
# For how much of it after a beat nobody can have taken us for dead, with what a commit under way may still take.
ALIVE_SHARE = 0.5
# Beats within `lease_s`.
BEATS = 20


class Writers:
    """Of one process. `join` before anything is written; `run` for as long as it writes; `leave` at the end."""

    def __init__(
        self, ledger: Ledger, number: int, what: str, *, lease_s: float, on_lease: Callable[[], None],
        on_replaced: Callable[[int], None],
    ) -> None:  # fmt: skip
        """Starts nothing. `what` is what people know this process by ("the mount at /data"). `on_lease` is called, in a thread,
        when the lease has become ours, before the writeback begins; `on_replaced`, with the ledger's lock held, when others have taken us for
        dead and we go on under another number."""
        self._ledger = ledger
        self._lease_s = lease_s
        self._on_lease = on_lease
        self._on_replaced = on_replaced
        self.me = Writer(number, socket.gethostname(), os.getpid(), what, place(), _started_ticks(os.getpid()))
        # By writer: its beats, and since when (`now_s`) they are that many.
        self._seen: dict[int, tuple[int, float]] = {}
        self._last_beat = float("-inf")
        self._flushes = 0
        self._is_ready = False
        self._is_refused = False
        self._joining = threading.RLock()
        self._is_joining = False

    @property
    def holds_lease(self) -> bool:
        """Whether this writer does the writeback."""
        lease = self._ledger.state.lease
        return self._is_ready and lease is not None and lease.holder == self.me.number

    @property
    def holder(self) -> Writer | None:
        state = self._ledger.state
        return state.writers.get(state.lease.holder) if state.lease is not None else None

    def require_time(self) -> None:
        """Before something is done to the under store that cannot be taken back. Raises WriterReplaced, MetadataUnavailable."""
        if not self.holds_lease:
            raise WriterReplaced("another process does the writeback of this bucket now")
        age_s = now_s() - self._last_beat
        if age_s > self._lease_s * ACT_SHARE:
            raise MetadataUnavailable(
                f"the lease on the bucket was last renewed {age_s:.0f} s ago", remedy="see why MongoDB does not answer"
            )

    def is_alive(self) -> bool:
        """Whether nobody can have taken us for dead yet."""
        return now_s() - self._last_beat < self._lease_s * ALIVE_SHARE

    def prove_alive(self) -> None:
        """Return when others know that we live; as a writer of another number if they thought otherwise. Blocks. Raises MetadataUnavailable."""
        self._beat()

    def rejoin(self) -> bool:
        """Become a writer again, after others took us for dead; False if that is what the calling thread is doing. Blocks.

        Raises MetadataUnavailable.
        """
        with self._joining:
            if self._is_joining:
                return False
            self._is_joining = True
            try:
                self._ledger.take_in()
                if self.me.number not in self._ledger.state.writers:
                    number = secrets.randbits(48)
                    self.me = msgspec.structs.replace(self.me, number=number, beats=0)
                    self._is_ready = False
                    self._ledger.change_writer(number, lambda: self._on_replaced(number))
                    self.join()
            finally:
                self._is_joining = False
        return True

    def join(self) -> None:
        """Become a writer, and take the lease if nobody alive has it. Blocks. Raises MetadataUnavailable."""
        began = now_s()
        self._ledger.run(lambda step: step.put(self.me), as_writer=False)
        self._ledger.join(self.me.number)
        self._last_beat = began
        self.watch()

    async def run(self) -> None:
        """Beat, and watch the others, until cancelled."""
        while True:
            try:
                await asyncio.to_thread(self._beat)
            except WriterReplaced as error:
                if not self._is_refused:
                    logger.error("%s", error)
                self._is_refused = True
            except ForebayError as error:
                logger.warning("no beat: %s", error)
            await asyncio.sleep(self._lease_s / BEATS)

    @contextlib.asynccontextmanager
    async def flushing(self) -> AsyncIterator[None]:
        """Let whoever does the writeback know that somebody waits for it."""
        self._flushes += 1
        try:
            if self._flushes == 1:
                await asyncio.to_thread(self._beat)
            yield
        finally:
            self._flushes -= 1

    def leave(self) -> None:
        """Give the lease back, so that the next one need not wait. Blocks, and gives up quietly: then it expires."""

        def go(step: Step) -> None:
            lease = self._ledger.state.lease
            step.remove(self.me)
            if lease is not None and lease.holder == self.me.number:
                step.remove(lease)

        try:
            self._ledger.run(go, as_writer=False)
        except ForebayError as error:
            logger.warning("the lease was not given back, and expires: %s", error)

    def watch(self) -> None:
        """Note whose beats have moved."""
        now = now_s()
        with self._ledger.locked() as state:
            for writer in state.writers.values():
                known = self._seen.get(writer.number)
                if known is None or known[0] != writer.beats:
                    self._seen[writer.number] = (writer.beats, now)
            for number in self._seen.keys() - state.writers.keys():
                del self._seen[number]

    def _is_dead(self, writer: Writer) -> bool:
        if writer.place == self.me.place and _started_ticks(writer.pid) != writer.started_ticks:
            return True
        known = self._seen.get(writer.number)
        return known is not None and known[0] == writer.beats and now_s() - known[1] > self._lease_s

    def _beat(self) -> None:
        """One beat: our record, then who is dead, then the lease if nobody alive has it."""
        began = now_s()
        self._ledger.take_in()

        def beat(step: Step) -> None:
            self.me = msgspec.structs.replace(self.me, beats=self.me.beats + 1, is_flushing=self._flushes > 0)
            step.put(self.me)

        self._ledger.run(beat)
        if began - self._last_beat > self._lease_s * ACT_SHARE:
            self._seen.clear()  # nobody was watched meanwhile: we were suspended, or the records away from all of us
        self._last_beat = began
        self.watch()
        with self._ledger.locked() as state:
            dead = [
                writer for writer in state.writers.values() if writer.number != self.me.number and self._is_dead(writer)
            ]
            is_free = state.lease is None or state.lease.holder not in state.writers
        if is_free or self.holder in dead:
            self._take_lease(self.holder)
        if self.holds_lease:
            for writer in dead:
                self._bury(writer)

    def _take_lease(self, dead: Writer | None) -> None:
        """Put ourselves in the place of a dead or absent holder, unless another was first."""

        def take(step: Step) -> bool:
            if self.holder != dead:
                return False
            if dead is not None:
                step.remove(dead)
            step.put(Lease(self.me.number))
            return True

        if not self._ledger.run(take):
            return
        if dead is not None:
            logger.warning("taking over the writeback from %s, which is dead", dead.label)
        self._on_lease()
        self._is_ready = True

    def _bury(self, dead: Writer) -> None:
        """Take the record of a dead writer away: from then on nothing that it commits is applied."""

        def bury(step: Step) -> bool:
            if self._ledger.state.writers.get(dead.number) != dead:
                return False  # it lives
            step.remove(dead)
            return True

        if self._ledger.run(bury, fenced=True):
            logger.warning("%s is dead; what it had acked is brought into the bucket from here", dead.label)


def place() -> str:
    """Where process numbers are ours to look at: this boot, this PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"unknown {os.getpid()} {time.time_ns()}"  # nobody else's


def _started_ticks(pid: int) -> int:
    """When a process started, in ticks since boot; 0 if there is none. Number and start together are given out once."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])
