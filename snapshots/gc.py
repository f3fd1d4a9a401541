"""Garbage collection: what no ref and no live lease reaches is condemned by `mark` and deleted by `sweep`.

Two commands, so that a person can look between them. Reachable is: the head of every branch and every tag of every data
set, all their ancestors, the commit of every live lease, everything young (the grace period, or as long as the oldest
running commit), and all pages of those. docs/design/0003-snapshot-gc.md has the protocol with its crash table.

A run that died is taken up by the next command; two collectors exclude each other by the state in the store.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from ..errors import PageCorrupt, SnapshotError
from .commits import decode_commit
from .holds import Hold
from .metastore import CommitId, GcState, LeaseRecord, MetaStore
from .pages import PageId
from .reader import PageReader

T = TypeVar("T")

DEFAULT_GRACE_S = 24 * 3600.0
WORKING = ("marking", "sweeping")
LEASE_S = 120.0
_BATCH = 1000


@dataclass(frozen=True, slots=True)
class HeldByLease:
    """What only a lease keeps: `bytes` of `pages` that no ref reaches."""

    lease: LeaseRecord
    pages: int
    bytes: int


@dataclass(slots=True)
class GcReport:
    """What gc found or did. `pages` and `bytes` (as stored) are those that are garbage, condemned or deleted, by command.

    `young_pages` are unreachable too, but written or used within the grace period, or since the oldest running commit began.
    """

    run: int = 0
    pages: int = 0
    bytes: int = 0
    commits: int = 0
    reachable_pages: int = 0
    young_pages: int = 0
    held: list[HeldByLease] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


class GcBusy(SnapshotError):
    """Another collector is at work on this store."""

    kind = "gc_busy"
    exit_code = 58


class Collector:
    """gc over one store. `grace_s` protects what is younger; it may be 0: running commits are protected by their leases."""

    def __init__(self, meta: MetaStore, *, grace_s: float = DEFAULT_GRACE_S) -> None:
        self._meta = meta
        self._grace_s = grace_s

    def plan(self) -> GcReport:
        """What `mark` would condemn now; changes nothing."""
        report = GcReport(run=self._meta.gc_state().run)
        not_after_ms = self._horizon_ms()
        reached = self._reach(report)
        for state in self._meta.page_states():
            if state.id in reached.pages:
                continue
            if state.touched_ms > not_after_ms:
                report.young_pages += 1
                continue
            report.pages += 1
            report.bytes += state.stored_bytes
        report.commits = len(self._dead_commits(reached.commits, not_after_ms))
        return report

    def mark(self) -> GcReport:
        """Condemn garbage. Raises GcBusy, and PageCorrupt rather than guess when an index page of a live version is damaged."""
        with self._entered("marking") as state:
            return self._mark(state)

    def _mark(self, state: GcState) -> GcReport:
        # Read after the state is `marking`: whoever takes a lease from now on sees that and touches what it needs.
        not_after_ms = self._horizon_ms()
        report = GcReport(run=state.run)
        reached = self._reach(report)
        if report.damaged:
            self._leave(state, "idle")
            raise PageCorrupt(
                f"gc stops: what {report.damaged[0]}",
                remedy="delete or repair that version first; nothing was condemned",
            )
        garbage: list[tuple[PageId, int]] = []
        for page in self._meta.page_states():
            if page.id in reached.pages:
                continue
            if page.touched_ms > not_after_ms:
                report.young_pages += 1
                continue
            garbage.append((page.id, page.stored_bytes))
            if len(garbage) >= _BATCH:
                self._condemn(garbage, state.run, not_after_ms, report)
                garbage = []
        self._condemn(garbage, state.run, not_after_ms, report)
        report.commits = len(self._dead_commits(reached.commits, not_after_ms))
        self._leave(state, "marked")
        return report

    def sweep(self) -> GcReport:
        """Delete what was condemned and is still unreachable and unused. Does nothing when nothing was marked."""
        state = self._meta.gc_state()
        if state.phase == "idle":
            return GcReport(run=state.run)
        if state.phase == "marking":
            raise GcBusy("gc has not finished marking", remedy="wait for it; if it died, run gc --mark again first")
        with self._entered("sweeping") as state:
            return self._sweep(state)

    def _sweep(self, state: GcState) -> GcReport:
        report = GcReport(run=state.run)
        not_after_ms = self._horizon_ms()
        reached = self._reach(report)
        if report.damaged:
            self._leave(state, "marked")
            raise PageCorrupt(
                f"gc stops: what {report.damaged[0]}", remedy="delete or repair that version first; nothing was deleted"
            )
        # Commits first: once one is gone nobody can start to use its pages.
        dead = self._dead_commits(reached.commits, not_after_ms)
        for some in _chunks(dead):
            report.commits += self._meta.delete_commits(some, not_after_ms)
        for pages in _chunks(list(self._meta.condemned_pages())):
            reprieved = [page.id for page in pages if page.id in reached.pages]
            if reprieved:
                self._meta.touch_pages(reprieved)
            doomed = {page.id: page.stored_bytes for page in pages if page.id not in reached.pages}
            deleted = self._meta.delete_condemned(list(doomed))
            report.pages += deleted
            report.bytes += sum(doomed.values()) * deleted // max(len(doomed), 1)
        self._leave(state, "idle")
        return report

    # --- Reachability.

    def _reach(self, report: GcReport) -> "_Reached":
        reached = _Reached()
        leases = self._meta.leases()
        for name in self._meta.dataset_names():
            record = self._meta.dataset(name)
            if record is not None:
                self._add_history([*record.branches.values(), *record.tags.values()], reached, report)
        report.reachable_pages = len(reached.pages)
        held: list[tuple[LeaseRecord, set[PageId]]] = []
        for lease in leases:
            before = len(reached.pages)
            if lease.commit is not None and lease.commit not in reached.commits:
                own = _Reached(commits=set(reached.commits), pages=set(reached.pages))
                self._add_commits([lease.commit], own, report)
                held.append((lease, own.pages - reached.pages))
                reached = own
            report.reachable_pages += len(reached.pages) - before
        if held:
            sizes = self._sizes(set().union(*(pages for _, pages in held)))
            report.held = [
                HeldByLease(lease, len(pages), sum(sizes.get(page, 0) for page in pages)) for lease, pages in held
            ]
        return reached

    def _add_history(self, heads: Iterable[CommitId], reached: "_Reached", report: GcReport) -> None:
        wanted = self._add_commits(sorted(set(heads) - reached.commits), reached, report)
        while wanted:
            # History may end: what was found by its id and given a name again can have lost its ancestors to an earlier run.
            there = self._meta.get_commits(sorted(wanted))
            wanted = self._add_commits(sorted(there), reached, report)

    def _add_commits(self, ids: list[CommitId], reached: "_Reached", report: GcReport) -> set[CommitId]:
        """Adds the commits and their pages; returns the parents that are not reached yet."""
        if not ids:
            return set()
        parents: set[CommitId] = set()
        found = self._meta.get_commits(ids)
        reader = PageReader(self._meta)
        for commit_id in ids:
            reached.commits.add(commit_id)
            if commit_id not in found:
                report.damaged.append(f"commit {commit_id.hex()[:12]} holds is unknown: the commit is missing")
                continue
            try:
                commit = decode_commit(commit_id, found[commit_id])
                self._add_pages(reader, commit.root, reached)
            except PageCorrupt as error:
                report.damaged.append(f"version {commit_id.hex()[:12]} holds is unknown: {error.message}")
                continue
            parents.update(commit.parents)
        return parents - reached.commits

    def _add_pages(self, reader: PageReader, root: PageId, reached: "_Reached") -> None:
        if root in reached.pages:
            return
        found = {root}
        for part in reader.parts(root):
            if part.id not in reached.pages:
                found.add(part.id)
                found.update(ref.id for ref in reader.part_refs(part))
        reached.pages |= found

    def _dead_commits(self, reachable: set[CommitId], not_after_ms: int) -> list[CommitId]:
        states = self._meta.commit_states()
        return [state.id for state in states if state.id not in reachable and state.touched_ms <= not_after_ms]

    def _horizon_ms(self) -> int:
        """What was touched after this moment is left alone: the grace period, or the start of the oldest running commit.

        Returns when the store's clock shows a later time, so that what is touched from now on is after it, and never equal to it.
        """
        now_ms = self._meta.now_ms()
        while self._meta.now_ms() <= now_ms:
            time.sleep(0.001)
        horizon = now_ms - int(self._grace_s * 1000)
        writers = [lease.started_ms for lease in self._meta.leases() if lease.purpose == "write"]
        return min([horizon, *(started - 1 for started in writers)])

    def _condemn(self, garbage: list[tuple[PageId, int]], run: int, not_after_ms: int, report: GcReport) -> None:
        if not garbage:
            return
        condemned = self._meta.condemn_pages([page for page, _ in garbage], run, not_after_ms)
        report.pages += condemned
        report.bytes += sum(size for _, size in garbage) * condemned // len(garbage)

    def _sizes(self, pages: set[PageId]) -> dict[PageId, int]:
        return {state.id: state.stored_bytes for state in self._meta.page_states() if state.id in pages}

    # --- State.

    @contextlib.contextmanager
    def _entered(self, phase: str) -> Iterator[GcState]:
        """This collector alone is in `phase`. Raises GcBusy while another one lives."""
        state = self._meta.gc_state()
        others = [lease for lease in self._meta.leases() if lease.purpose == "gc" and not _is_dead(lease)]
        if state.phase in WORKING and others:
            other = others[0]
            raise GcBusy(
                f"gc is {state.phase} already: {other.owner} on {other.host}, process {other.pid}", remedy="wait for it"
            )
        with Hold(self._meta, "", None, purpose="gc", what=f"gc, {phase}", ttl_s=LEASE_S):
            entered = self._meta.set_gc_state(state, state.run + (phase == "marking"), phase)
            if entered is None:
                raise GcBusy(f"another gc has just started on {self._meta.name}", remedy="wait for it")
            yield entered

    def _leave(self, state: GcState, phase: str) -> None:
        if self._meta.set_gc_state(state, state.run, phase) is None:
            raise GcBusy("another gc took over this run", remedy="see what it reports; nothing is lost")


@dataclass(slots=True)
class _Reached:
    commits: set[CommitId] = field(default_factory=set)
    pages: set[PageId] = field(default_factory=set)


def _is_dead(lease: LeaseRecord) -> bool:
    """Whether the lease's process is known to be gone: only of this machine can that be told."""
    if lease.host != socket.gethostname():
        return False
    try:
        os.kill(lease.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _chunks(items: list[T]) -> Iterator[list[T]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]
