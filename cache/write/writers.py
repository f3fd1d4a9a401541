"""Which processes write, and which one of them brings what is dirty into the under store.

Where records are shared, each process that writes keeps a `Writer` record and counts its beats. One of them holds the
`Lease`: it alone uploads, deletes and gives back. No clocks are compared:

- A writer is dead when its beats stood still for `lease_s` while we watched (by our own clock), or when its process is gone
  and we are in a place where that can be seen. Then, or when the holder has left, whoever comes first takes the lease, by
  a commit that expects the record it saw.
- The holder acts on the under store only for `ACT_SHARE` of `lease_s` after its last beat that was committed. What it
  began then has ended, or timed out, before anybody may take its place. What it commits is guarded by the lease itself (`Ledger`).

With `alone` only the holder may change anything: a second writer waits until it knows whether the holder lives, and is then
refused. docs/design/0004-shared-namespace.md has the reasons and the crash table.
"""

import asyncio
import logging
import os
import socket
import time
from pathlib import Path

import msgspec

from ...errors import ForebayError, MetadataUnavailable, TierInUse, WriterReplaced
from .ledger import Ledger, Step
from .nodes import Lease, Writer

logger = logging.getLogger(__name__)

ACT_SHARE = 0.25
# Beats within `lease_s`.
BEATS = 20
POLL_S = 0.25


class Writers:
    """Of one process. `join` before anything is written; `run` for as long as it writes; `leave` at the end."""

    def __init__(self, ledger: Ledger, number: int, what: str, *, lease_s: float) -> None:
        """Starts nothing. `what` is what people know this process by ("the mount at /data")."""
        self._ledger = ledger
        self._lease_s = lease_s
        self.me = Writer(number, socket.gethostname(), os.getpid(), what, place(), _started_ticks(os.getpid()))
        # By writer: its beats, and since when (our monotonic clock) they are that many.
        self._seen: dict[int, tuple[int, float]] = {}
        self._last_beat = float("-inf")
        self._is_replaced = False

    @property
    def holds_lease(self) -> bool:
        lease = self._ledger.state.lease
        return lease is not None and lease.holder == self.me.number

    def require_time(self) -> None:
        """Before something is done to the under store that cannot be taken back. Raises WriterReplaced, MetadataUnavailable."""
        if not self.holds_lease:
            raise WriterReplaced("another process does the writeback of this bucket now")
        age_s = time.monotonic() - self._last_beat
        if age_s > self._lease_s * ACT_SHARE:
            raise MetadataUnavailable(
                f"the lease on the bucket was last renewed {age_s:.0f} s ago", remedy="see why MongoDB does not answer"
            )

    async def join(self) -> None:
        """Take the lease. Raises TierInUse, naming the holder, if that one is alive; MetadataUnavailable."""
        deadline = time.monotonic() + 2 * self._lease_s
        told = False
        first: dict[int, int] = {}
        while True:
            self.watch()
            with self._ledger.locked() as state:
                holder = state.writers.get(state.lease.holder) if state.lease is not None else None
            if holder is None or self._is_dead(holder):
                if await asyncio.to_thread(self._take, holder):
                    return
            elif holder.beats != first.setdefault(holder.number, holder.beats) or time.monotonic() > deadline:
                raise TierInUse(
                    f"the bucket is written by {holder.label}",
                    remedy="unmount that one, or mount with --read-only: such a mount sees what was written at once",
                )
            elif not told:
                told = True
                logger.info("is %s alive? it is dead if it is not heard of for %g s", holder.label, self._lease_s)
            await asyncio.sleep(min(POLL_S, self._lease_s / BEATS))
            await asyncio.to_thread(self._ledger.take_in)

    async def run(self) -> None:
        """Beat until cancelled."""
        while True:
            await asyncio.sleep(self._lease_s / BEATS)
            try:
                await asyncio.to_thread(self._beat)
            except WriterReplaced as error:
                if not self._is_replaced:
                    logger.error("%s", error)
                self._is_replaced = True
            except ForebayError as error:
                logger.warning("no beat: %s", error)

    def leave(self) -> None:
        """Give the lease back, so that the next one need not wait. Blocks, and gives up quietly: then it expires."""

        def go(step: Step) -> None:
            step.remove(self.me)
            if self.holds_lease:
                step.remove(Lease(self.me.number))

        try:
            self._ledger.run(go, fenced=False)
        except ForebayError as error:
            logger.warning("the lease was not given back, and expires: %s", error)

    def watch(self) -> None:
        """Note whose beats have moved."""
        now = time.monotonic()
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
        return known is not None and known[0] == writer.beats and time.monotonic() - known[1] > self._lease_s

    def _take(self, dead: Writer | None) -> bool:
        """Put ourselves in the place of a dead or absent holder; False if another was first."""
        began = time.monotonic()

        def take(step: Step) -> bool:
            state = self._ledger.state
            now = state.writers.get(state.lease.holder) if state.lease is not None else None
            if now != dead:
                return False
            if dead is not None:
                step.remove(dead)
            step.put(self.me)
            step.put(Lease(self.me.number))
            return True

        if not self._ledger.run(take, fenced=False):
            return False
        if dead is not None:
            logger.warning("taking over from %s, which is dead", dead.label)
        self._last_beat = began
        return True

    def _beat(self) -> None:
        began = time.monotonic()
        self._ledger.take_in()
        self.me = msgspec.structs.replace(self.me, beats=self.me.beats + 1)
        self._ledger.run(lambda step: step.put(self.me))
        self._last_beat = began


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
