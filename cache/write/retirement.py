"""Giving back what is not needed any more: clean bytes above the watermark, and records that the listing has caught up with.

    clean bytes    of the longest-clean files, when the tier holds more than the high watermark, down to the low one
    whiteouts      once the listing agrees that there is nothing under the name
    clean nodes    the oldest beyond `max_clean_records`, once the listing shows the same version (until then they are what
                   remembers modification time, mode and inode of files written here)
    opaque folders show their prefix again once nothing below it waits to be deleted

Dirty data is never touched. Everything is done in small steps, each a commit.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import msgspec

from .ages import Ages
from .drafts import Draft
from .ledger import Ledger, Step
from .nodes import Kind, Node
from .options import WriteOptions
from .state import State

BATCH = 200


class Listing(Protocol):
    """What is known of the under store's listing, as the mount shows it where no node decides."""

    def agrees(self, key: bytes, etag: str | None) -> bool:
        """Whether the listing, as it is shown now, has this version under the key (None: neither object nor folder).

        False when that is not known. Takes microseconds.
        """
        ...

    async def refresh(self, prefix: bytes) -> None:
        """Show nothing any more that was listed before this call, for keys that start with `prefix`."""
        ...

    def expire(self, prefix: bytes) -> None:
        """The same from any thread, for the entries of one folder. Takes microseconds."""
        ...


@dataclass(slots=True)
class Retirement:
    """`in_use` says whether somebody knows a node by its id (an inode of the kernel)."""

    ledger: Ledger
    options: WriteOptions
    drafts: dict[int, Draft]
    delete_data: Callable[[str], None]
    listing: Listing | None
    in_use: Callable[[int], bool]
    evicted_bytes: int = 0
    _ages: Ages = field(default_factory=Ages)

    def is_due(self) -> bool:
        state = self.ledger.state
        return (
            self._is_above(self.options.high_watermark_bytes)
            or bool(state.whiteouts or state.opaque)
            or len(state.clean) > self.options.max_clean_records
        )

    async def run(self) -> None:
        """One round over everything that is due. Raises MetadataUnavailable, StoreError."""
        if self._is_above(self.options.high_watermark_bytes):
            while self._is_above(self.options.low_watermark_bytes) and await self._evict():
                pass
        if self.listing is None:
            return
        with self.ledger.locked() as state:
            self._ages.forget(len(state.whiteouts) + len(state.opaque), self._is_there)
        await self.ledger.run_async(self._drop_whiteouts)
        if len(self.ledger.state.clean) > self.options.max_clean_records:
            await self.ledger.run_async(self._drop_nodes)
        for folder_id in list(islice(self.ledger.state.opaque, BATCH)):
            with self.ledger.locked() as state:  # behind the others, so that each has its turn
                if folder_id in state.opaque:
                    state.opaque[folder_id] = state.opaque.pop(folder_id)
            await self._open_up(folder_id, self.listing)

    def _is_young(self, node: Node) -> bool:
        what = (node.parent, node.name, node.ctime_ns)
        return self._ages.age_s(what) < self.options.retire_after_s

    def _is_there(self, what: object) -> bool:
        assert isinstance(what, tuple)
        node = self.ledger.state.child(what[0], what[1])
        return node is not None and node.ctime_ns == what[2]

    def _is_above(self, limit_bytes: int) -> bool:
        state = self.ledger.state
        return bool(state.held) and state.held_bytes + state.dirty_bytes > limit_bytes

    async def _evict(self) -> bool:
        """Give up the data of some clean files; False if nothing could be."""
        names: list[str] = []

        def evict(step: Step) -> int:
            names.clear()
            freed_bytes = 0
            state = self.ledger.state
            excess_bytes = state.held_bytes + state.dirty_bytes - self.options.low_watermark_bytes
            for node_id in list(islice((i for i in state.held if i not in self.drafts), BATCH)):
                if freed_bytes >= excess_bytes:
                    break
                node = state.by_id[node_id]
                if node.open_by in state.writers:
                    continue
                if node.inline:
                    step.drop_inline.append(node.data)
                else:
                    names.append(node.data)
                freed_bytes += node.stored_bytes
                step.put(msgspec.structs.replace(node, data="", inline=False, extents=()))
            return freed_bytes

        freed_bytes = await self.ledger.run_async(evict)
        self.evicted_bytes += freed_bytes
        for name in names:
            await asyncio.to_thread(self.delete_data, name)
        return freed_bytes > 0

    def _drop_whiteouts(self, step: Step) -> None:
        state = self.ledger.state
        assert self.listing is not None
        for parent, name in list(islice(state.whiteouts, BATCH)):
            whiteout = state.children[parent][name]
            if self._is_young(whiteout):
                state.whiteouts[parent, name] = state.whiteouts.pop((parent, name))
                continue
            folder = state.by_id.get(parent)
            if folder is not None:
                key = (folder.lower or b"") + name
                if (
                    folder.lower is None
                    or key in state.doomed
                    or state.doomed_below[key + b"/"]
                    or not self.listing.agrees(key, None)
                ):
                    # Behind the others, so that each has its turn.
                    state.whiteouts[parent, name] = state.whiteouts.pop((parent, name))
                    continue
            step.remove(whiteout)

    def _drop_nodes(self, step: Step) -> None:
        state = self.ledger.state
        excess = min(len(state.clean) - self.options.max_clean_records, BATCH)
        for node_id in list(islice(state.clean, excess)):
            node = state.by_id[node_id]
            if (
                node.data
                or node_id in self.drafts
                or node.open_by in state.writers
                or self.in_use(node_id)
                or not self._is_listed(state, node)
            ):
                state.clean[node_id] = state.clean.pop(node_id)
                continue
            step.remove(node)

    def _is_listed(self, state: State, node: Node) -> bool:
        """Whether the listing shows exactly what the node shows, under the same name."""
        folder = state.by_id.get(node.parent)
        if folder is None or node.remote is None or node.kind != Kind.FILE or folder.lower is None:
            return False
        assert self.listing is not None
        key = folder.lower + node.name
        return key == node.remote.key and self.listing.agrees(key, node.remote.etag)

    async def _open_up(self, folder_id: int, listing: Listing) -> None:
        with self.ledger.locked() as state:
            own = self._own_prefix(state, folder_id)
        if own is None:
            return
        await listing.refresh(own)

        def show(step: Step) -> None:
            step.is_strict = True
            state = self.ledger.state
            if self._own_prefix(state, folder_id) == own:
                step.put(msgspec.structs.replace(state.by_id[folder_id], lower=own))

        await self.ledger.run_async(show)

    def _own_prefix(self, state: State, folder_id: int) -> bytes | None:
        """The prefix that an opaque folder may show, or None while something below it must stay hidden."""
        folder = state.by_id.get(folder_id)
        if folder is None or folder.lower is not None or folder.moving or self._is_young(folder):
            return None
        above: Node | None = folder
        while above is not None and above.parent:
            if above.moving:
                return None
            above = state.by_id.get(above.parent)
        own = state.key_of(folder)
        if own is None or state.doomed_below[own] or state.is_left_behind(own):
            return None
        return own
