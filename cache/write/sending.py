"""Sends the bytes of a node to the under store: steps 3, 5 and 6 of writeback (docs/design/0001-write-path.md).

What lives in the record goes by one PUT, as do files up to a part. Larger ones go in parts: what was changed is sent, and what is
still as in the base is copied on the server's side. Bytes in memory are bounded by a budget that all uploads share.
"""

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from ...errors import BaseGone, DirtyDataMissing, ObjectChanged, ObjectNotFound, StoreUnavailable
from ...tiers.durable import DurableFile, DurableTier
from ...tiers.understore import Buffer, MultipartStore, ObjectInfo, UploadedPart
from ...tiers.version import ObjectVersion
from ..budget import ByteBudget
from .drafts import Watch
from .extents import Extents
from .ledger import Ledger
from .nodes import Kind, Node, Remote
from .object_metadata import metadata_of
from .options import WriteOptions
from .parts import Part, plan_parts
from .plans import Disturbed, Plan, UploadCounts, tag_of

ReadBase = Callable[[ObjectVersion, int, int], Awaitable[Buffer]]
# Above this a checksum is computed in a thread.
MD5_INLINE_BYTES = 256 * 1024


@dataclass(slots=True)
class Sender:
    """`gate` raises Disturbed unless a node may still be published; `sent_bytes` says how far files that go in parts are."""

    ledger: Ledger
    tier: DurableTier
    store: MultipartStore
    options: WriteOptions
    read_base: ReadBase
    budget: ByteBudget
    gate: Callable[[Plan, Watch], Awaitable[None]]
    counts: UploadCounts
    sent_bytes: dict[int, int]

    async def send(self, plan: Plan, watch: Watch) -> ObjectInfo:
        """Publish a node: what the under store has then. Raises Disturbed and ObjectChanged if it was not, other StoreErrors, TierError
        and DirtyDataMissing; after StoreUnavailable it may have been all the same.
        """
        node, attempt, expected = plan.node, plan.attempt, plan.expected
        key = os.fsdecode(attempt.key)
        metadata = metadata_of(node, attempt.tag)
        if node.kind == Kind.DIRECTORY:
            return await self._put(plan, key, b"", metadata, expected, watch)
        if node.kind == Kind.SYMLINK:
            return await self._put(plan, key, node.target, metadata, expected, watch)
        if node.is_base:
            assert node.base is not None
            await self.gate(plan, watch)
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
        await self.gate(plan, watch)
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
        self.sent_bytes[node.id] = 0
        turns = asyncio.Semaphore(self.options.upload_parts)

        async def send(part: Part) -> None:
            async with turns:
                done.append(await self._send_part(plan, key, upload_id, part, watch))
                self.sent_bytes[node.id] += part.size

        await _all([send(part) for part in parts])
        await self.gate(plan, watch)
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

    async def _verified(self, plan: Plan, etag: str) -> ObjectInfo:
        """What HEAD shows, if it is what was published; else raises StoreUnavailable, so that it is found out again."""
        info = await self.store.head(os.fsdecode(plan.attempt.key))
        if info is None or tag_of(info) != plan.attempt.tag or info.etag != etag:
            raise ObjectChanged(f"{os.fsdecode(plan.attempt.key)} was overwritten right after its upload")
        expected_size = 0 if plan.node.kind == Kind.DIRECTORY else plan.node.size
        if info.size != expected_size:
            raise StoreUnavailable(
                f"{os.fsdecode(plan.attempt.key)} has {info.size} bytes after an upload of {expected_size}"
            )
        return info


def _base_gone(base: Remote) -> BaseGone:
    return BaseGone(
        f"the version {base.etag} of {os.fsdecode(base.key)} that was changed in part is no longer in the bucket",
        remedy="restore that version, or write the file anew",
    )


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
