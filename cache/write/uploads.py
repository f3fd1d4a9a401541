"""One upload: from a durable node to a verified object, and what becomes of uploads that ended unclearly.

docs/design/0001-write-path.md gives the order of steps and why; this file is steps 2 to 7 of writeback.
"""

import asyncio
import hashlib
import logging
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import msgspec

from ...errors import (
    BaseGone,
    DirtyDataMissing,
    ForebayError,
    ObjectChanged,
    ObjectNotFound,
    StoreError,
    StoreUnavailable,
)
from ...tiers.durable import DurableFile, DurableTier
from ...tiers.understore import Buffer, MultipartStore, ObjectInfo, UploadedPart
from ...tiers.version import ObjectVersion
from ..budget import ByteBudget
from .drafts import Draft, Watch
from .extents import Extents
from .ledger import Ledger, Step
from .nodes import EMPTY, OURS, Attempt, Doomed, Kind, Node, Remote
from .object_metadata import TAG, metadata_of
from .operations import Operations
from .options import OnConflict, WriteOptions
from .parts import Part, plan_parts
from .state import State

logger = logging.getLogger(__name__)

ReadBase = Callable[[ObjectVersion, int, int], Awaitable[Buffer]]
# What became of the upload of a node: done, left alone (it must wait for another, or is being changed), or why it failed.
Outcome: TypeAlias = bool | BaseException

# Where one of two exchanged files waits while the other takes its key; below the prefix of the mount, never shown.
EXCHANGE = b".forebay/exchange/"
# By how much the clock of the store may differ from ours, when uploads are matched with attempts by time.
CLOCK_SKEW_NS = 15 * 60 * 1_000_000_000
# How long uploads that are done wait for others of the same batch, so that they end in one commit.
LINGER_S = 0.1
# Above this a checksum is computed in a thread.
MD5_INLINE_BYTES = 256 * 1024


class Disturbed(Exception):
    """The file was changed, moved or deleted while it was being uploaded; nothing was published. Not a failure."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an upload sends, fixed when it begins. `expected`: etag that the key must have, None for no object."""

    node: Node
    attempt: Attempt
    expected: str | None


@dataclass(slots=True)
class UploadCounts:
    files: int = 0
    sent_bytes: int = 0
    copied_bytes: int = 0
    conflicts: int = 0
    disturbed: int = 0
    unclear: int = 0


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
            for node_id in watches.keys() - {plan.node.id for plan in plans}:
                await self._break_cycle(node_id)
                ended(node_id, False)
            await self._run(plans, watches, ended)
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
            if info is not None and _tag(info) == attempt.tag:
                await self.ledger.run_async(lambda step: self._complete(step, attempt, self._remote(info)))
            else:
                await self.ledger.run_async(lambda step: self._drop(step, attempt, unclear=not attempt.upload_id))
        finally:
            self.busy_keys.discard(attempt.key)
            self.active.discard(attempt.nonce)

    # --- Beginning. --------------------------------------------------------------------------------------

    def _watch(self, node_id: int) -> Watch | None:
        """Begin to notice changes of a file's bytes; None if it has changes that are not durable yet."""
        watch = Watch(1 << 62, 1 << 62)
        with self.ledger.locked():
            self.watches[node_id] = watch
            draft = self.drafts.get(node_id)
        if draft is not None:
            with draft.lock:
                if draft.is_changed:
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
        return Plan(node, attempt, _expected(state, node, key))

    async def _break_cycle(self, node_id: int) -> None:
        """Where files wait for each other's keys in a ring (an exchange), copy one base aside.

        The copy is doomed before it is made, so that a crash leaves nothing; it goes when no node has it as base. An object that is in
        the way as a file where a folder is to be goes then, too.
        """
        with self.ledger.locked() as state:
            waiter = _in_ring(state, node_id)
            waiting = state.by_id.get(node_id)
            key = state.key_of(waiting) if waiting is not None else None
            if waiter is None or waiter.base is None:
                return
            aside = state.prefix + EXCHANGE + secrets.token_hex(8).encode()
            self.busy_keys.add(aside)
        try:
            doomed = Doomed(aside, OURS, self.operations.now_ns(), writer=self.operations.writer)
            await self.ledger.run_async(lambda step: step.put(doomed))
            base = waiter.base
            info = await self.store.copy(base.version(self.store.id), os.fsdecode(aside), metadata={TAG: "exchange"})
            copied = self._remote(info)

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
            return await self._send(plan, watch)
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
        if _tag(info) is not None or (plan.expected == EMPTY and info.size == 0):
            return info.etag
        return None

    async def _send(self, plan: Plan, watch: Watch) -> ObjectInfo:
        node, attempt, expected = plan.node, plan.attempt, plan.expected
        key = os.fsdecode(attempt.key)
        metadata = metadata_of(node, attempt.tag)
        if node.kind == Kind.DIRECTORY:
            return await self._put(plan, key, b"", metadata, expected, watch)
        if node.kind == Kind.SYMLINK:
            return await self._put(plan, key, node.target, metadata, expected, watch)
        if node.is_base:
            assert node.base is not None
            await self._gate(plan, watch)
            version = node.base.version(self.store.id)
            try:
                info = await self.store.copy(
                    version, key, metadata=metadata, if_match=expected, if_absent=expected is None
                )
            except ObjectNotFound as error:
                raise ObjectChanged(error.message) from error  # the source is gone: `_lost_condition` sees which it was
            self.counts.copied_bytes += node.size
            return info
        if node.size <= self.options.part_bytes:
            async with self.budget.taken(node.size):
                data = await self._assemble(node, 0, node.size)
                return await self._put(plan, key, data, metadata, expected, watch)
        return await self._send_parts(plan, key, metadata, watch)

    async def _put(
        self, plan: Plan, key: str, data: Buffer, metadata: dict[str, str], expected: str | None, watch: Watch
    ) -> ObjectInfo:
        await self._gate(plan, watch)
        info = await self.store.put(key, data, metadata=metadata, if_match=expected, if_absent=expected is None)
        self.counts.sent_bytes += len(data)
        # Without the MD5 as etag (encryption, other stores) a HEAD must show that it is ours and whole.
        if info.etag != await _md5(data):
            return await self._verified(plan, info.etag)
        return info

    async def _send_parts(self, plan: Plan, key: str, metadata: dict[str, str], watch: Watch) -> ObjectInfo:
        node = plan.node
        upload_id = await self.store.create_upload(key, metadata=metadata)
        attempt = msgspec.structs.replace(plan.attempt, upload_id=upload_id)
        await self.ledger.run_async(lambda step: step.put(attempt))
        parts = plan_parts(node.size, Extents(node.extents), node.base_limit, self.options.part_bytes)
        done: list[UploadedPart] = []
        self.uploading_bytes[node.id] = 0
        turns = asyncio.Semaphore(self.options.upload_parts)

        async def send(part: Part) -> None:
            async with turns:
                done.append(await self._send_part(plan, key, upload_id, part, watch))
                self.uploading_bytes[node.id] += part.size

        await _all([send(part) for part in parts])
        await self._gate(plan, watch)
        ordered = sorted(done, key=lambda part: part.number)
        try:
            info = await self.store.complete_upload(
                key, upload_id, ordered, if_match=plan.expected, if_absent=plan.expected is None
            )
        except ObjectNotFound as error:
            # No such upload: a reply may have been lost, and the store have acted the first time.
            raise ObjectChanged(error.message) from error
        return await self._verified(plan, info.etag)

    async def _send_part(self, plan: Plan, key: str, upload_id: str, part: Part, watch: Watch) -> UploadedPart:
        if watch.disturbed:
            raise Disturbed
        node = plan.node
        if part.copied:
            assert node.base is not None
            version = node.base.version(self.store.id)
            try:
                sent = await self.store.copy_part(key, upload_id, part.number, version, part.offset, part.size)
            except ObjectChanged as error:
                raise _base_gone(node.base) from error
            self.counts.copied_bytes += part.size
            return sent
        async with self.budget.taken(part.size):
            data = await self._assemble(node, part.offset, part.size)
            sent = await self.store.upload_part(key, upload_id, part.number, data)
            self.counts.sent_bytes += part.size
            return sent

    async def _assemble(self, node: Node, offset: int, size: int) -> Buffer:
        """Bytes of a node: from its data, its base, and zeros."""
        parts: list[Buffer] = []
        file: DurableFile | None = None
        inline: bytes | None = None
        try:
            for start, length, stored in Extents(node.extents).pieces(offset, size):
                if stored and node.inline:
                    if inline is None:
                        inline = self.ledger.recent_inline(node.data)
                    if inline is None:
                        inline = await asyncio.to_thread(self.ledger.inline, node.data)
                    if inline is None:
                        raise Disturbed  # replaced by a newer state since
                    parts.append(inline[start : start + length])
                elif stored:
                    if file is None:
                        file = await asyncio.to_thread(self._open_data, node)
                    parts.append(await asyncio.to_thread(file.read, start, length))
                else:
                    based = min(max(node.base_limit - start, 0), length)
                    if based:
                        assert node.base is not None
                        parts.append(await self._from_base(node.base, start, based))
                    if length > based:
                        parts.append(bytes(length - based))
        finally:
            if file is not None:
                file.close()
        return parts[0] if len(parts) == 1 else b"".join(bytes(part) for part in parts)

    def _open_data(self, node: Node) -> DurableFile:
        try:
            return self.tier.open(node.data)
        except DirtyDataMissing:
            now = self.ledger.state.by_id.get(node.id)
            if now is None or now.data != node.data:
                raise Disturbed from None
            raise

    async def _from_base(self, base: Remote, offset: int, size: int) -> Buffer:
        try:
            return await self.read_base(base.version(self.store.id), offset, size)
        except (ObjectChanged, ObjectNotFound) as error:
            raise _base_gone(base) from error

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

    async def _verified(self, plan: Plan, etag: str) -> ObjectInfo:
        """What HEAD shows, if it is what was published; else raises StoreUnavailable, so that it is found out again."""
        info = await self.store.head(os.fsdecode(plan.attempt.key))
        if info is None or _tag(info) != plan.attempt.tag or info.etag != etag:
            raise ObjectChanged(f"{os.fsdecode(plan.attempt.key)} was overwritten right after its upload")
        expected_size = 0 if plan.node.kind == Kind.DIRECTORY else plan.node.size
        if info.size != expected_size:
            raise StoreUnavailable(
                f"{os.fsdecode(plan.attempt.key)} has {info.size} bytes after an upload of {expected_size}"
            )
        return info

    async def _finish(self, published: Sequence[tuple[Plan, ObjectInfo]]) -> None:
        """Step 7, of all in one commit."""
        if not published:
            return

        def complete(step: Step) -> None:
            for plan, info in published:
                self._complete(step, plan.attempt, self._remote(info))

        await self.ledger.run_async(complete)
        for plan, _ in published:
            draft = self.drafts.get(plan.node.id)
            if draft is not None:
                await asyncio.to_thread(draft.rebase)
        self.counts.files += len(published)

    def _complete(self, step: Step, attempt: Attempt, published: Remote) -> None:
        """Step 7: what an attempt that was applied means for the node as it is now."""
        state = self.ledger.state
        step.remove(state.attempts.get(attempt.nonce, attempt))
        node = state.by_id.get(attempt.node)
        draft = self.drafts.get(attempt.node)
        if draft is not None and draft.base is not None and draft.base.key == published.key:
            draft.base_replaced(draft.base, published)  # also for a file that was deleted, and is open
        if node is None:
            self.operations.doom(step, state, published.key, published.etag)
            return
        fields: dict[str, object] = {}
        if node.base is not None and node.base.key == published.key:
            fields["base"] = published  # the version it was made from is overwritten; this one holds the same bytes
        if state.key_of(node) != published.key:
            self.operations.doom(step, state, published.key, published.etag)
            if node.remote is not None and node.remote.key == published.key:
                fields["remote"] = (
                    None  # a folder above was renamed; what it had there is overwritten, and doomed by now
                )
        else:
            old = node.remote
            if old is not None and old.key != published.key and state.remote_holders.get(old.key) == node.id:
                self.operations.doom(step, state, old.key, EMPTY if node.kind == Kind.DIRECTORY else old.etag)
            doomed = state.doomed.get(published.key)
            if doomed is not None:
                step.remove(doomed)
            holder = state.by_id.get(state.remote_holders.get(published.key, node.id))
            if holder is not None and holder.id != node.id:
                # It was renamed before it was uploaded anew; what it had here is overwritten now, and not its to delete any more.
                step.put(msgspec.structs.replace(holder, remote=None))
            fields["remote"] = published
            if node.generation == attempt.generation:
                if not node.moving:
                    fields["dirty_since_ns"] = 0
                if node.kind == Kind.FILE:
                    fields["base"], fields["base_limit"] = published, published.size
        if draft is not None and "base" in fields and node.base is not None and draft.base == node.base:
            draft.base_replaced(node.base, published)
        if fields:
            step.put(msgspec.structs.replace(node, **fields))

    async def _give_up(self, attempt: Attempt) -> None:
        """End an attempt that was certainly not published. If the store does not answer, `settle` will."""
        await self._abort(attempt)
        await self.ledger.run_async(lambda step: self._drop(step, attempt, unclear=False))

    async def _abort(self, attempt: Attempt) -> None:
        now = self.ledger.state.attempts.get(attempt.nonce)
        if now is not None and now.upload_id:
            await self.store.abort_upload(os.fsdecode(now.key), now.upload_id)

    def _drop(self, step: Step, attempt: Attempt, *, unclear: bool) -> None:
        """End an attempt that was not applied. If it may still be, its key is looked at once more later."""
        state = self.ledger.state
        step.remove(state.attempts.get(attempt.nonce, attempt))
        if unclear:
            known = state.doomed.get(attempt.key)
            # Not every store keeps the tag of a folder's marker (SeaweedFS drops it), so that a marker is known by being empty.
            meant = EMPTY if attempt.key.endswith(b"/") else OURS if known is None else known.etag
            self.operations.doom(step, state, attempt.key, meant, recheck=True)

    async def _lost_condition(self, plan: Plan, error: ObjectChanged) -> ObjectInfo | None:
        """The key does not hold what was expected: our own upload after a lost reply (given back), or somebody else's object."""
        attempt = plan.attempt
        info = await self.store.head(os.fsdecode(attempt.key))
        if info is not None and _tag(info) == attempt.tag:
            return info
        if info is not None and plan.node.kind == Kind.DIRECTORY and info.size == 0:
            # Somebody made the same folder, or the store answers for a folder that only has keys below it (SeaweedFS):
            # such a one ends with its last key. One empty marker more makes it stay in both cases.
            metadata = metadata_of(plan.node, attempt.tag)
            return await self.store.put(os.fsdecode(attempt.key), b"", metadata=metadata)
        if info is not None and (_tag(info) or "").startswith(f"{attempt.node:x}."):
            # An upload of this same file whose answer was lost, and that arrived after it had been looked for.
            await self._abort(attempt)
            await self.ledger.run_async(lambda step: self._expect(step, plan, self._remote(info)))
            return None
        base = plan.node.base
        if plan.node.is_base and base is not None:
            # It may have been the source of the copy that is not what it was.
            source = info if base.key == attempt.key else await self.store.head(os.fsdecode(base.key))
            if source is None or source.etag != base.etag:
                self.counts.conflicts += 1
                await self.ledger.run_async(lambda step: self._follow_source(step, plan, source))
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
        await self.ledger.run_async(lambda step: self._conflict(step, plan, info))
        logger.warning("conflict: %s (%s)", os.fsdecode(attempt.key), error)
        return None

    async def _free_name(self, key: bytes) -> None:
        """Have the folder deleted that a store still keeps in the place of a file (SeaweedFS, after the last key below it went).

        Only one that no listing shows: nothing that anybody could see. The upload waits for it (`State.is_in_the_way`).
        """
        below = os.fsdecode(key) + "/"
        if key.endswith(b"/") or await self.store.head(below) is None:
            return
        page = await self.store.list_page(below, limit=1)
        if not page.keys:
            marker = os.fsencode(below)
            await self.ledger.run_async(lambda step: self.operations.doom(step, self.ledger.state, marker, EMPTY))

    def _follow_source(self, step: Step, plan: Plan, source: ObjectInfo | None) -> None:
        """The object was changed or deleted by somebody else, and we had changed only its name or attributes: theirs counts."""
        state = self.ledger.state
        attempt = plan.attempt
        step.remove(state.attempts.get(attempt.nonce, attempt))
        node = state.by_id.get(attempt.node)
        if node is None or node.base != plan.node.base or not node.is_base:
            return
        key = os.fsdecode(attempt.key)
        if source is None:
            logger.warning("conflict: %s was deleted by somebody else before it was renamed or its attributes set", key)
            step.remove(node)
            return
        logger.warning("conflict: %s was replaced by somebody else; the new content is kept", key)
        found = self._remote(source)
        remote = found if node.remote is not None and node.remote.key == found.key else node.remote
        step.put(msgspec.structs.replace(node, base=found, base_limit=found.size, size=found.size, remote=remote))

    def _expect(self, step: Step, plan: Plan, found: Remote) -> None:
        """End an attempt that met our own, older object; the next one replaces it."""
        state = self.ledger.state
        step.remove(state.attempts.get(plan.attempt.nonce, plan.attempt))
        node = state.by_id.get(plan.attempt.node)
        if node is not None and state.key_of(node) == plan.attempt.key:
            step.put(msgspec.structs.replace(node, remote=found))

    def _conflict(self, step: Step, plan: Plan, found: ObjectInfo | None) -> None:
        state = self.ledger.state
        attempt = plan.attempt
        step.remove(state.attempts.get(attempt.nonce, attempt))
        node = state.by_id.get(attempt.node)
        if node is None or state.key_of(node) != attempt.key:
            return
        doomed = state.doomed.get(attempt.key)
        if doomed is not None:
            step.remove(doomed)
        if found is None or self.options.on_conflict is OnConflict.OVERWRITE:
            # The next attempt expects what is there now.
            step.put(msgspec.structs.replace(node, remote=None if found is None else self._remote(found)))
            return
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(self.operations.now_ns() / 1e9))
        name = node.name + f".conflict-{socket.gethostname()}-{stamp}-{attempt.nonce[:4]}".encode()
        step.remove(node)
        step.put(msgspec.structs.replace(node, name=name, remote=None, covers=False, generation=node.generation + 1))

    def _remote(self, info: ObjectInfo) -> Remote:
        return Remote(os.fsencode(info.key), info.etag, info.size, info.version_id)


def _in_ring(state: State, node_id: int) -> Node | None:
    """A node with a base that `node_id` waits for, if following who waits for whom from there leads back."""
    node = state.by_id.get(node_id)
    key = state.key_of(node) if node is not None else None
    if key is None:
        return None
    direct = (state.base_users.get(key, set()) | state.moved_from_above(key)) - {node_id}
    first = next((state.by_id[one] for one in direct if state.by_id[one].base is not None), None)
    if first is None:
        return None
    seen: set[int] = set()
    waiting = [first.id]
    while waiting:
        node = state.by_id.get(waiting.pop())
        key = state.key_of(node) if node is not None and node.is_dirty else None
        if node is None or key is None:
            continue
        others = state.base_users.get(key, set()) | state.moved_from_above(key)
        if node.kind != Kind.DIRECTORY:
            others |= state.moved_from_below(key)
        others -= {node.id}
        if node_id in others:
            return first
        waiting.extend(others - seen)
        seen |= others
    return None


def _base_gone(base: Remote) -> BaseGone:
    return BaseGone(
        f"the version {base.etag} of {os.fsdecode(base.key)} that was changed in part is no longer in the bucket",
        remedy="restore that version, or write the file anew",
    )


def _tag(info: ObjectInfo) -> str | None:
    return next((value for name, value in info.metadata.items() if name.lower() == TAG), None)


def _expected(state: State, node: Node, key: bytes) -> str | None:
    """What the key is believed to hold: an etag, OURS or EMPTY (see Doomed), or None for no object."""
    if node.remote is not None and node.remote.key == key:
        return node.remote.etag
    holder = state.remote_holders.get(key)
    if holder is not None:
        remote = state.by_id[holder].remote
        assert remote is not None
        return remote.etag
    doomed = state.doomed.get(key)
    return None if doomed is None or doomed.is_gone else doomed.etag


async def _md5(data: Buffer) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    if len(data) > MD5_INLINE_BYTES:
        await asyncio.to_thread(digest.update, data)
    else:
        digest.update(data)
    return digest.hexdigest()


async def _all(work: list[Awaitable[None]]) -> None:
    """Do all; on the first failure cancel the rest, wait for them, and raise that failure alone."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
