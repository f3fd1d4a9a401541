"""After a folder was renamed: its objects follow, in the background.

The rename itself moved one node; the folder's `lower` still names the old prefix, so that everything is seen under the new
name. Here each object that the view still takes from the old prefix gets a node of its own (base = the old object, nothing
stored), and the ordinary writeback copies it on the server's side and dooms the old key. When the old prefix shows nothing more,
`lower` goes, and comes back as the folder's own prefix when nothing of the past can be seen there (`Retirement`).

A folder below that had been moved before may show yet another prefix; it is gone through for itself. Until a walk has ended, nothing
new is uploaded under the old prefix that would be taken for a part of the folder (`State.shows_elsewhere`).

All state is nodes, so a crash at any point is taken up again by walking the prefix once more. At most `OUTSTANDING` nodes are
made ahead of the copies.
"""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from ...tiers.understore import ListPage, UnderStore
from ...tiers.version import ObjectVersion
from .ledger import Ledger, Step
from .nodes import EMPTY, Kind, Node
from .operations import Listed, Operations
from .state import Below, State

OUTSTANDING = 2000
BATCH = 500
ROOM_WAIT_S = 5.0


@dataclass(slots=True)
class Relocation:
    ledger: Ledger
    operations: Operations
    store: UnderStore
    # Set when an upload has ended, so that more nodes can be made.
    progress: asyncio.Event = field(default_factory=asyncio.Event)

    async def relocate(self, folder_id: int) -> None:
        """Bring everything below a moved folder under its path. Raises StoreError; begun again, it goes on."""
        await self._mark_moved(folder_id)
        folder = self.ledger.state.by_id.get(folder_id)
        if folder is None or not folder.moving:
            return
        own = self.ledger.state.key_of(folder)
        if folder.lower is not None and folder.lower != own:
            token: str | None = None
            while True:
                page = await self.store.list_page(os.fsdecode(folder.lower), token=token)
                for start in range(0, len(page.keys), BATCH):
                    await self._wait_for_room()
                    await self.ledger.run_async(
                        lambda step, page=page, start=start: self._adopt(step, folder, page, start)  # type: ignore[misc]
                    )
                token = page.next_token
                if token is None:
                    break
        await self.ledger.run_async(lambda step: self._finish(step, folder))

    async def _wait_for_room(self) -> None:
        """Bounded: where two folders changed places, the uploads that would make room may wait for this walk."""
        try:
            async with asyncio.timeout(ROOM_WAIT_S):
                while len(self.ledger.state.dirty) > OUTSTANDING:
                    self.progress.clear()
                    await self.progress.wait()
        except TimeoutError:
            pass

    async def _mark_moved(self, folder_id: int) -> None:
        """Clean nodes below that are in the bucket under an older path become dirty; folders that were moved before, movers of their own."""

        def mark(step: Step) -> int:
            state = self.ledger.state
            folder = state.by_id.get(folder_id)
            if folder is None:
                return 0
            marked = 0
            for stranger in list(islice(_strangers(state, folder), BATCH)):
                step.put(msgspec.structs.replace(_dirty(stranger, self.operations), moving=True))
                marked += 1
            if marked == BATCH:
                return marked
            for node in state.below(folder):
                if node.kind == Kind.WHITEOUT or node.is_dirty or node.remote is None:
                    continue
                if node.remote.key != state.key_of(node):
                    step.put(_dirty(node, self.operations))
                    marked += 1
                    if marked == BATCH:
                        break
            return marked

        while await self.ledger.run_async(mark) == BATCH:
            await self._wait_for_room()

    def _adopt(self, step: Step, folder: Node, page: ListPage, start: int) -> None:
        state = self.ledger.state
        now = state.by_id.get(folder.id)
        path = state.path_of(folder) if now is not None else None
        if now is None or path is None or now.lower != folder.lower or now.parent != folder.parent:
            return  # moved again or removed: somebody begins anew
        assert folder.lower is not None
        for index in range(start, min(start + BATCH, len(page.keys))):
            key = os.fsencode(page.keys[index])
            below = key[len(folder.lower) :]
            if key.endswith(b"/") or not below:
                self._adopt_marker(step, state, path, key, below, page.etags[index])
                continue
            found = state.resolve(path + b"/" + below)
            if not isinstance(found, Below) or found.key != key:
                continue  # changed, moved or deleted here: then it has a node or a whiteout, or belongs elsewhere
            version = ObjectVersion(self.store.id, page.keys[index], page.etags[index], page.sizes[index])
            try:
                node = self.operations.adopt(step, state, path + b"/" + below, Listed(version, page.mtimes_ns[index]))
            except (FileNotFoundError, NotADirectoryError):
                continue
            step.put(_dirty(node, self.operations))

    def _adopt_marker(self, step: Step, state: State, path: bytes, key: bytes, below: bytes, etag: str) -> None:
        inner = path + b"/" + below.rstrip(b"/") if below else path
        found = state.resolve(inner)
        if isinstance(found, Below) and found.key == key.rstrip(b"/"):
            found = self.operations.ensure_folder(step, state, inner)
        if isinstance(found, Node) and found.kind == Kind.DIRECTORY and found.lower == key:
            if not found.is_dirty:
                step.put(_dirty(found, self.operations))
            if key not in state.doomed:
                self.operations.doom(step, state, key, EMPTY)

    def _finish(self, step: Step, folder: Node) -> None:
        """Everything has a node: from now on the old prefix is not looked at any more."""
        step.is_strict = True
        state = self.ledger.state
        now = state.by_id.get(folder.id)
        if now is None or now.parent != folder.parent or now.name != folder.name or now.lower != folder.lower:
            return
        old = folder.lower
        if old is not None and old == state.key_of(now):
            step.put(msgspec.structs.replace(now, moving=False))  # moved and moved back: nothing had to be gone through
            return
        # Opaque, because of what is still to be deleted under the new prefix, or was listed there before: see `Retirement`.
        step.put(msgspec.structs.replace(now, moving=False, lower=None))
        for node in list(_following(state, now, old)):
            step.put(msgspec.structs.replace(node, lower=None))


def _following(state: State, folder: Node, lower: bytes | None) -> Iterator[Node]:
    """The folder nodes below that show what a folder with this `lower` shows at their place. Those moved for themselves do not."""
    if lower is None:
        return
    for name, child in state.children.get(folder.id, {}).items():
        if child.kind == Kind.DIRECTORY and not child.moving and child.lower == lower + name + b"/":
            yield child
            yield from _following(state, child, child.lower)


def _strangers(state: State, folder: Node) -> Iterator[Node]:
    """The folder nodes below that show another prefix than their own, and are not gone through together with the one above."""
    for name, child in state.children.get(folder.id, {}).items():
        if child.kind != Kind.DIRECTORY or child.moving:
            continue
        follows = folder.lower is not None and child.lower == folder.lower + name + b"/"
        if child.lower is not None and not follows and child.lower != state.key_of(child):
            yield child
        else:
            yield from _strangers(state, child)


def _dirty(node: Node, operations: Operations) -> Node:
    return msgspec.structs.replace(
        node, dirty_since_ns=operations.now_ns(), generation=node.generation + 1, writer=operations.writer
    )
