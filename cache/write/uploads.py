"""Uploads: from durable nodes to verified objects, and what becomes of uploads that ended unclearly.

docs/design/0001-write-path.md gives the order of steps and why. This file is steps 2 to 7 of writeback: it begins attempts, has them
sent (`sending`), looks at what came of it and ends them (`attempt_ends`).
"""

import asyncio
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import msgspec

from ...errors import (
    DirtyDataMissing,
    ForebayError,
    ObjectChanged,
    StoreError,
    StoreUnavailable,
)
from ...tiers.durable import DurableTier
from ...tiers.understore import MultipartStore, ObjectInfo
from ..budget import ByteBudget
from .attempt_ends import AttemptEnds
from .drafts import Draft, Watch
from .ledger import Ledger, Step
from .nodes import EMPTY, OURS, Attempt, Doomed, Kind
from .object_metadata import TAG, metadata_of
from .operations import Operations
from .options import WriteOptions
from .plans import Disturbed, Plan, UploadCounts, expected_at, in_ring, remote_of, tag_of
from .sending import ReadBase, Sender
from .state import State

logger = logging.getLogger(__name__)

# What became of the upload of a node: done, left alone (it must wait for another, or is being changed), or why it failed.
Outcome: TypeAlias = bool | BaseException

# Where one of two exchanged files waits while the other takes its key; below the prefix of the mount, never shown.
EXCHANGE = b".forebay/exchange/"
# Folders without keys that are deleted for one file in their place, before it is tried again.
FREED_AT_ONCE = 100
# By how much the clock of the store may differ from ours, when uploads are matched with attempts by time.
CLOCK_SKEW_NS = 15 * 60 * 1_000_000_000
# How long uploads that are done wait for others of the same batch, so that they end in one commit.
LINGER_S = 0.1


@dataclass(slots=True)
class Uploads:
    """`busy_keys` are keys with a publish or delete on its way; `watches` are files whose bytes are being read.

    `require_time` raises when there is too little time left before another may take our place (`Writers`); `is_hindered` says whether
    a deletion that is under way could take away what is published under a key (`Deletions`).
    """

    ledger: Ledger
    operations: Operations
    tier: DurableTier
    store: MultipartStore
    options: WriteOptions
    read_base: ReadBase
    drafts: dict[int, Draft]
    budget: ByteBudget
    require_time: Callable[[], None]
    is_hindered: Callable[[State, bytes], bool]
    counts: UploadCounts = field(default_factory=UploadCounts)
    busy_keys: set[bytes] = field(default_factory=set)
    active: set[str] = field(default_factory=set)
    watches: dict[int, Watch] = field(default_factory=dict)
    uploading_bytes: dict[int, int] = field(default_factory=dict)
    _sender: Sender = field(init=False)
    _ends: AttemptEnds = field(init=False)

    def __post_init__(self) -> None:
        self._sender = Sender(
            self.ledger, self.tier, self.store, self.options, self.read_base, self.budget, self._gate, self.counts,
            self.uploading_bytes,
        )  # fmt: skip
        self._ends = AttemptEnds(self.ledger, self.operations, self.options, self.drafts)

    async def upload(self, node_ids: Sequence[int], ended: Callable[[int, Outcome], None]) -> None:
        """Bring dirty nodes into the under store. `ended` is told of each what became of it, most often of many in one turn.

        Their attempts are begun in one commit, and those that were published by the same time end in one. The node of an
        error is as dirty as before, and an attempt of unknown outcome may be left for `settle`. What is raised
        concerns all that `ended` was not told of.
        """
        watches: dict[int, Watch] = {}
        try:
            for node_id in node_ids:
                try:
                    watch = self._watch(node_id) if await self._is_settled(node_id) else None
                except ForebayError as error:
                    ended(node_id, error)
                    continue
                if watch is None:
                    ended(node_id, False)
                else:
                    watches[node_id] = watch
            plans = await self.ledger.run_async(lambda step: self._begin(step, watches))
            await self._run(plans, watches, ended)
            for node_id in watches.keys() - {plan.node.id for plan in plans}:
                ended(node_id, await self._broken(node_id))
        finally:
            for node_id, watch in watches.items():
                self._unwatch(node_id, watch)

    async def _is_settled(self, node_id: int) -> bool:
        """Whether no earlier attempt is in the way; one of unknown outcome is looked into. Raises StoreError."""
        left = self.ledger.state.attempt_of.get(node_id)
        if left is None:
            return True
        if left in self.active:
            return False
        await self.settle(self.ledger.state.attempts[left])
        return True

    async def settle(self, attempt: Attempt) -> None:
        """Find out what became of an attempt that nobody works on, and end it: applied, or never."""
        if (
            attempt.nonce in self.active
            or attempt.key in self.busy_keys
            or attempt.nonce not in self.ledger.state.attempts
        ):
            return
        self.active.add(attempt.nonce)
        self.busy_keys.add(attempt.key)
        try:
            key = os.fsdecode(attempt.key)
            if attempt.upload_id:
                await self.store.abort_upload(key, attempt.upload_id)
            else:
                since_ns = attempt.since_ns - CLOCK_SKEW_NS
                for pending in await self.store.list_uploads(key):
                    if pending.key == key and pending.initiated_ns >= since_ns:
                        await self.store.abort_upload(key, pending.upload_id)
            info = await self.store.head(key)
            if info is not None and tag_of(info) == attempt.tag:
                await self.ledger.run_async(lambda step: self._ends.complete(step, attempt, remote_of(info)))
            else:
                await self.ledger.run_async(lambda step: self._ends.drop(step, attempt, unclear=not attempt.upload_id))
        finally:
            self.busy_keys.discard(attempt.key)
            self.active.discard(attempt.nonce)

    async def _broken(self, node_id: int) -> Outcome:
        """What to say of a node that cannot be uploaded now, after what could be done about it."""
        try:
            await self._break_cycle(node_id)
        except ForebayError as error:
            return error
        return False

    # --- Beginning. --------------------------------------------------------------------------------------

    def _watch(self, node_id: int) -> Watch | None:
        """Begin to notice changes of a file's bytes; None if it has changes that are not durable yet."""
        watch = Watch(1 << 62, 1 << 62)
        with self.ledger.locked():
            self.watches[node_id] = watch
            draft = self.drafts.get(node_id)
        if draft is not None:
            with draft.lock:
                if draft.is_changed or draft.is_told:
                    self.watches.pop(node_id, None)
                    return None
                draft.watch = watch
                watch.size = watch.limit = draft.size
        return watch

    def _unwatch(self, node_id: int, watch: Watch) -> None:
        with self.ledger.locked():
            if self.watches.get(node_id) is watch:
                del self.watches[node_id]
            draft = self.drafts.get(node_id)
        if draft is not None and draft.watch is watch:
            draft.watch = None

    def _begin(self, step: Step, node_ids: Iterable[int]) -> list[Plan]:
        """Attempts of those nodes that can be uploaded now."""
        # Of unknown outcome: what such a key holds is not known before its attempt is settled.
        tried = {attempt.key for attempt in self.ledger.state.attempts.values()}
        plans = [self._plan(node_id, tried) for node_id in node_ids]
        begun = [plan for plan in plans if plan is not None]
        for plan in begun:
            step.put(plan.attempt)
        return begun

    def _plan(self, node_id: int, tried: Set[bytes]) -> Plan | None:
        state = self.ledger.state
        node = state.by_id.get(node_id)
        if node is None or not node.is_dirty:
            return None
        if node.rewrites % 2 and state.other_writer(node, self.operations.writer) is not None:
            return None  # its bytes are being changed
        key = state.key_of(node)
        if key is None or key in self.busy_keys or state.base_users.get(key, set()) - {node_id}:
            return None
        if key in tried or self.is_hindered(state, key):
            return None
        if state.shows_elsewhere(key):
            return None  # a folder that was here has not been gone through yet: it would be taken for its own
        if state.is_in_the_way(key):
            return None  # stores that are file systems inside need the old file or folder of that name gone first
        attempt = Attempt(
            secrets.token_hex(6), node_id, node.generation, key, self.operations.now_ns(), writer=self.operations.writer
        )
        return Plan(node, attempt, expected_at(state, node, key))

    async def _break_cycle(self, node_id: int) -> None:
        """Where files wait for each other's keys in a ring (an exchange), copy one base aside.

        The copy is doomed before it is made, so that a crash leaves nothing; it goes when no node has it as base. An object that is in
        the way as a file where a folder is to be goes then, too.
        """
        with self.ledger.locked() as state:
            waiter = in_ring(state, node_id)
            waiting = state.by_id.get(node_id)
            key = state.key_of(waiting) if waiting is not None else None
            in_the_way = (
                waiter is not None and waiter.remote is not None and (key or b"").startswith(waiter.remote.key + b"/")
            )
        if waiter is None:
            return
        if in_the_way and waiter.is_dirty and (waiter.base is None or waiter.base != waiter.remote):
            await self.ledger.run_async(lambda step: self._free_former_name(step, waiter.id, key or b""))
            return
        with self.ledger.locked() as state:
            if waiter.base is None:
                return
            aside = state.prefix + EXCHANGE + secrets.token_hex(8).encode()
            self.busy_keys.add(aside)
        try:
            doomed = Doomed(aside, OURS, self.operations.now_ns(), writer=self.operations.writer)
            await self.ledger.run_async(lambda step: step.put(doomed))
            base = waiter.base
            info = await self.store.copy(base.version(self.store.id), os.fsdecode(aside), metadata={TAG: "exchange"})
            copied = remote_of(info)

            def use(step: Step) -> None:
                node = self.ledger.state.by_id.get(waiter.id)
                if node is None or node.base != base:
                    return
                remote = node.remote
                if remote is not None and key is not None and key.startswith(remote.key + b"/"):
                    self.operations.doom(step, self.ledger.state, remote.key, remote.etag)
                    remote = None
                step.put(msgspec.structs.replace(node, base=copied, remote=remote))
                draft = self.drafts.get(node.id)
                if draft is not None:
                    draft.base_replaced(base, copied)

            await self.ledger.run_async(use)
            if (draft := self.drafts.get(waiter.id)) is not None:
                await asyncio.to_thread(draft.rebase)
        finally:
            self.busy_keys.discard(aside)

    def _free_former_name(self, step: Step, node_id: int, key: bytes) -> None:
        """Have the object of a file's former name deleted at once, where the file is durable without it and it hinders `key`."""
        node = self.ledger.state.by_id.get(node_id)
        if node is not None and node.is_dirty and node.remote is not None and key.startswith(node.remote.key + b"/"):
            self.operations.doom(step, self.ledger.state, node.remote.key, node.remote.etag)
            step.put(msgspec.structs.replace(node, remote=None))

    # --- Sending. ----------------------------------------------------------------------------------------

    async def _run(
        self, plans: Sequence[Plan], watches: Mapping[int, Watch], ended: Callable[[int, Outcome], None]
    ) -> None:
        """Send all at once. Those that are done go on when all are, or after a moment: one that hangs holds up no other."""
        self.active.update(plan.attempt.nonce for plan in plans)
        self.busy_keys.update(plan.attempt.key for plan in plans)
        sending = {asyncio.create_task(self._publish(plan, watches[plan.node.id])): plan for plan in plans}
        try:
            waiting = set(sending)
            while waiting:
                done, waiting = await asyncio.wait(waiting, timeout=LINGER_S)
                over = [sending[one] for one in done]
                infos = [(sending[one], one.result()) for one in done if one.exception() is None]
                await self._finish([(plan, info) for plan, info in infos if info is not None])
                self._let_go(over)
                for one in done:
                    error = one.exception()
                    ended(sending[one].node.id, True if error is None else error)
        finally:
            for one in sending:
                one.cancel()
            await asyncio.gather(*sending, return_exceptions=True)
            self._let_go(plans)

    def _let_go(self, plans: Iterable[Plan]) -> None:
        for plan in plans:
            self.busy_keys.discard(plan.attempt.key)
            self.active.discard(plan.attempt.nonce)
            self.uploading_bytes.pop(plan.node.id, None)

    async def _publish(self, plan: Plan, watch: Watch) -> ObjectInfo | None:
        """Steps 3 to 6: what the under store has now, or None if the attempt is over without."""
        try:
            plan = replace(plan, expected=await self._resolve_expected(plan))
            return await self._sender.send(plan, watch)
        except Disturbed:
            self.counts.disturbed += 1
            await self._give_up(plan.attempt)
        except ObjectChanged as error:
            return await self._lost_condition(plan, error)
        except StoreUnavailable:
            # It may have been applied. The attempt stays, and is settled before the next one.
            self.counts.unclear += 1
            raise
        except (StoreError, DirtyDataMissing):
            await self._give_up(plan.attempt)
            raise
        return None

    async def _resolve_expected(self, plan: Plan) -> str | None:
        """The etag to expect. For a doomed key without a known etag the store is asked."""
        if plan.expected not in (OURS, EMPTY):
            return plan.expected
        info = await self.store.head(os.fsdecode(plan.attempt.key))
        if info is None:
            return None
        if tag_of(info) is not None or (plan.expected == EMPTY and info.size == 0):
            return info.etag
        return None

    # --- The gate, and after. ----------------------------------------------------------------------------

    async def _gate(self, plan: Plan, watch: Watch) -> None:
        """Last look before publishing: is this node still there, and were the bytes that were read left alone?"""
        if self.operations.is_shared and plan.node.data and not plan.node.inline:
            await asyncio.to_thread(self.ledger.take_in)  # whoever changes bytes in place says so before
        self.require_time()
        with self.ledger.locked() as state:
            node = state.by_id.get(plan.node.id)
            if node is None or state.key_of(node) != plan.attempt.key or watch.disturbed:
                raise Disturbed
            if node.rewrites != plan.node.rewrites:
                raise Disturbed
            if state.base_users.get(plan.attempt.key, set()) - {node.id}:
                raise Disturbed

    async def _finish(self, published: Sequence[tuple[Plan, ObjectInfo]]) -> None:
        """Step 7, of all in one commit."""
        if not published:
            return

        def complete(step: Step) -> None:
            for plan, info in published:
                self._ends.complete(step, plan.attempt, remote_of(info))

        await self.ledger.run_async(complete)
        for plan, _ in published:
            draft = self.drafts.get(plan.node.id)
            if draft is not None:
                await asyncio.to_thread(draft.rebase)
        self.counts.files += len(published)

    async def _give_up(self, attempt: Attempt) -> None:
        """End an attempt that was certainly not published. If the store does not answer, `settle` will."""
        await self._abort(attempt)
        await self.ledger.run_async(lambda step: self._ends.drop(step, attempt, unclear=False))

    async def _abort(self, attempt: Attempt) -> None:
        now = self.ledger.state.attempts.get(attempt.nonce)
        if now is not None and now.upload_id:
            await self.store.abort_upload(os.fsdecode(now.key), now.upload_id)

    async def _lost_condition(self, plan: Plan, error: ObjectChanged) -> ObjectInfo | None:
        """The key does not hold what was expected: our own upload after a lost reply (given back), or somebody else's object."""
        attempt = plan.attempt
        info = await self.store.head(os.fsdecode(attempt.key))
        if info is not None and tag_of(info) == attempt.tag:
            return info
        if info is not None and plan.node.kind == Kind.DIRECTORY and info.size == 0:
            # Somebody made the same folder, or the store answers for a folder that only has keys below it (SeaweedFS):
            # such a one ends with its last key. One empty marker more makes it stay in both cases.
            metadata = metadata_of(plan.node, attempt.tag)
            return await self.store.put(os.fsdecode(attempt.key), b"", metadata=metadata)
        if info is not None and (tag_of(info) or "").startswith(f"{attempt.node:x}."):
            # An upload of this same file whose answer was lost, and that arrived after it had been looked for.
            await self._abort(attempt)
            await self.ledger.run_async(lambda step: self._ends.expect(step, plan, remote_of(info)))
            return None
        base = plan.node.base
        if plan.node.is_base and base is not None:
            # It may have been the source of the copy that is not what it was.
            source = info if base.key == attempt.key else await self.store.head(os.fsdecode(base.key))
            if source is None or source.etag != base.etag:
                self.counts.conflicts += 1
                await self.ledger.run_async(lambda step: self._ends.follow_source(step, plan, source))
                return None
        if info is None and plan.expected is None:
            await self._free_name(attempt.key)
            await self._give_up(attempt)
            raise StoreError(
                f"the bucket refuses an object {os.fsdecode(attempt.key)}, though there is none",
                remedy="some stores cannot hold a file and a folder of the same name: look for keys below it",
            ) from error
        await self._abort(attempt)
        self.counts.conflicts += 1
        await self.ledger.run_async(lambda step: self._ends.conflict(step, plan, info))
        logger.warning("conflict: %s (%s)", os.fsdecode(attempt.key), error)
        return None

    async def _free_name(self, key: bytes) -> None:
        """Have the folders deleted that a store still keeps in the place of a file (SeaweedFS, after the last key below them went).

        Only where no key is below: nothing that anybody has put there. The upload waits for them (`State.is_in_the_way`).
        """
        below = os.fsdecode(key) + "/"
        if key.endswith(b"/") or await self.store.head(below) is None:
            return
        page = await self.store.list_page(below, limit=1)
        if page.keys:
            return
        innermost = [os.fsencode(one) for one in await self._innermost_folders(below)]

        def doom(step: Step) -> None:
            for marker in innermost:
                self.operations.doom(step, self.ledger.state, marker, EMPTY)

        await self.ledger.run_async(doom)

    async def _innermost_folders(self, prefix: str) -> list[str]:
        """The folders without keys that nothing is in; those around them go with the last of these, or are next."""
        found: list[str] = []
        waiting = [prefix]
        while waiting and len(found) < FREED_AT_ONCE:
            folder = waiting.pop()
            page = await self.store.list_page(folder, delimiter="/")
            waiting.extend(page.prefixes)
            if not page.prefixes:
                found.append(folder)
        return found
