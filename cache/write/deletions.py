"""Objects that must go: when they may, and when they are really gone.

A doomed object is deleted only when nobody needs it: no node has it as its base, no open file reads it, and no live name
stands for its key (then the upload to that name replaces it). An object that somebody made anew under the key is not ours to
delete; the name shows it again.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field

from ...tiers.understore import ObjectInfo, UnderStore
from .ages import Ages
from .ledger import Ledger, Step
from .nodes import EMPTY, OURS, Doomed, Kind, Node
from .object_metadata import TAG
from .options import WriteOptions
from .state import State

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Deletions:
    """`read_keys` gives the keys that open files still read from; `busy_keys` and `require_time` are those of the uploads."""

    ledger: Ledger
    store: UnderStore
    options: WriteOptions
    read_keys: Callable[[], set[bytes]]
    busy_keys: set[bytes]
    require_time: Callable[[], None]
    deleted: int = 0
    spared: int = 0
    _ages: Ages = field(default_factory=Ages)

    def is_possible(self, state: State, doomed: Doomed) -> bool:
        """Whether this entry can be worked on now."""
        if doomed.key in self.busy_keys or state.base_users.get(doomed.key):
            return False
        if doomed.recheck and self._ages.age_s((doomed.key, doomed.since_ns)) < self.options.recheck_s:
            self._ages.forget(len(state.doomed), self._is_doomed)
            return False  # counted anew by each process: a wait that is too long does no harm
        node = self._live(state, doomed.key)
        return node is None or _is_there(node, doomed.key)

    async def delete(self, doomed: Doomed) -> bool:
        """Work on one entry; False if it has to wait. Raises StoreError."""
        key = os.fsdecode(doomed.key)
        # What doomed it must be durable: after a crash the name would be back, and its object gone.
        await self.ledger.barrier()
        with self.ledger.locked() as state:
            if (
                state.doomed.get(doomed.key) != doomed
                or not self.is_possible(state, doomed)
                or doomed.key in self.read_keys()
            ):
                return False
            replaced = self._live(state, doomed.key) is not None
            self.busy_keys.add(doomed.key)
        try:
            if replaced:  # an upload was there first
                await self.ledger.run_async(lambda step: self._gone(step, doomed))
                return True
            info = await self.store.head(key)
            if info is not None:
                if not self._is_meant(doomed, info):
                    self.spared += 1
                    logger.warning("conflict: %s was written by somebody else after it was deleted here; it stays", key)
                    await self.ledger.run_async(lambda step: self._spare(step, doomed))
                    return True
                self.require_time()
                await self.store.delete(key)
                self.deleted += 1
            await self.ledger.run_async(lambda step: self._gone(step, doomed))
            return True
        finally:
            self.busy_keys.discard(doomed.key)

    def _is_doomed(self, what: object) -> bool:
        assert isinstance(what, tuple)
        doomed = self.ledger.state.doomed.get(what[0])
        return doomed is not None and doomed.since_ns == what[1]

    def _live(self, state: State, key: bytes) -> Node | None:
        """The node that stands under the key's path, if it has or will get an object of its own."""
        if not key.startswith(state.prefix):
            return None
        path = key[len(state.prefix) :].rstrip(b"/")
        node = state.resolve(path) if path else state.root
        if not isinstance(node, Node) or state.key_of(node) != key:
            return None
        return node if node.kind != Kind.DIRECTORY or node.is_dirty or node.remote is not None else None

    def _is_meant(self, doomed: Doomed, info: ObjectInfo) -> bool:
        if doomed.etag == EMPTY:
            return info.size == 0
        tagged = any(name.lower() == TAG for name in info.metadata)
        return info.etag == doomed.etag or (tagged and (doomed.etag == OURS or doomed.recheck))

    def _gone(self, step: Step, doomed: Doomed) -> None:
        now = self.ledger.state.doomed.get(doomed.key)
        if now is not None and now.etag == doomed.etag:
            step.remove(now)

    def _spare(self, step: Step, doomed: Doomed) -> None:
        """Show what is there: the whiteout goes too, if there is one for exactly this key."""
        state = self.ledger.state
        self._gone(step, doomed)
        if not doomed.key.startswith(state.prefix):
            return
        folder_path, _, name = doomed.key[len(state.prefix) :].rstrip(b"/").rpartition(b"/")
        folder = state.resolve(folder_path)
        if isinstance(folder, Node) and state.key_of(folder) == folder.lower:
            slot = state.child(folder.id, name)
            if slot is not None and slot.kind == Kind.WHITEOUT:
                step.remove(slot)


def _is_there(node: Node, key: bytes) -> bool:
    """Whether the node's own object is under the key already, so that there is nothing to delete."""
    return not node.is_dirty and node.remote is not None and node.remote.key == key
