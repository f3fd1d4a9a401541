"""Objects that must go: when they may, and when they are really gone.

A doomed object is deleted only when nobody needs it: no node has it as its base, no open file reads it, and no live name
stands for its key (then the upload to that name replaces it). An object that somebody made anew under the key is not ours to
delete; the name shows it again.

A DELETE has no condition, so it must never meet anything but what it was sent for:

    sent, and answered                 over; the next publish to the key comes after it
    sent, and not answered, or killed  it may be applied late, so for `recheck_s` nothing is published under the key (`Doomed.sends` is
                                       committed before it is sent, and so outlives the process)
    of a folder's marker               never while something below is published, nor the other way round: stores that are file systems
                                       inside look whether the folder is empty, and then remove it with what came in between.
                                       SeaweedFS did so to 17 of 6,000 objects that were put at that moment

The same stores lose a marker that is put at the same moment as the first key below it (6 of 3,000), which nobody notices before that
key goes. So a folder that the last object has left gets its marker once more.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from ...tiers.understore import ObjectInfo, UnderStore
from .ages import Ages
from .ledger import Ledger, Step
from .nodes import EMPTY, OURS, ROOT_ID, Doomed, Kind, Node
from .object_metadata import TAG
from .operations import Operations
from .options import WriteOptions
from .state import State

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Deletions:
    """`read_keys` gives the keys that open files still read from; `busy_keys` and `require_time` are those of the uploads."""

    ledger: Ledger
    operations: Operations
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
        key = doomed.key
        if key in self.busy_keys or state.base_users.get(key):
            return False
        if (doomed.recheck or doomed.is_gone) and self._is_young(doomed):
            return False
        if key.endswith(b"/") and state.is_sent_below(key):
            return False
        node = self._live(state, key)
        return node is None or (_is_there(node, key) and not self._may_arrive(doomed))

    def hinders(self, state: State, key: bytes) -> bool:
        """Whether a deletion that is under way, or may be, could take away what is published under `key` now."""
        return any(
            doomed.sends and (doomed.key in self.busy_keys or self._may_arrive(doomed))
            for doomed in state.doomed_from(key)
        )

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
            if replaced or doomed.is_gone:  # an upload was there first, or the wait is over
                await self.ledger.run_async(lambda step: self._gone(step, doomed))
                return True
            info = await self.store.head(key)
            if info is None:
                may_arrive = self._may_arrive(doomed)
                await self.ledger.run_async(lambda step: self._gone(step, doomed, may_arrive=may_arrive))
                return True
            if not self._is_meant(doomed, info):
                self.spared += 1
                logger.warning("conflict: %s was written by somebody else after it was deleted here; it stays", key)
                await self.ledger.run_async(lambda step: self._spare(step, doomed))
                return True
            may_arrive = self._may_arrive(doomed)
            sent = await self.ledger.run_async(lambda step: self._note_sent(step, doomed))
            if sent is None:
                return False
            self.require_time()
            is_over = await self.store.delete(key)
            self.deleted += 1
            await self.ledger.run_async(lambda step: self._gone(step, sent, may_arrive=may_arrive or not is_over))
            return True
        finally:
            self.busy_keys.discard(doomed.key)

    def _is_young(self, doomed: Doomed) -> bool:
        """Counted anew by each process, and for each DELETE: a wait that is too long does no harm."""
        is_young = self._ages.age_s((doomed.key, doomed.since_ns, doomed.sends)) < self.options.recheck_s
        self._ages.forget(len(self.ledger.state.doomed), self._is_doomed)
        return is_young

    def _may_arrive(self, doomed: Doomed) -> bool:
        """Whether a DELETE that was sent, and had no answer that we know of, may still be applied."""
        return doomed.sends > 0 and self._is_young(doomed)

    def _is_doomed(self, what: object) -> bool:
        assert isinstance(what, tuple)
        doomed = self.ledger.state.doomed.get(what[0])
        return doomed is not None and (doomed.since_ns, doomed.sends) == what[1:]

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

    def _note_sent(self, step: Step, doomed: Doomed) -> Doomed | None:
        """Say that a DELETE is about to be sent; None if it must not be, because something is published below meanwhile."""
        state = self.ledger.state
        if state.doomed.get(doomed.key) != doomed or (doomed.key.endswith(b"/") and state.is_sent_below(doomed.key)):
            return None
        sent = msgspec.structs.replace(doomed, sends=doomed.sends + 1)
        step.put(sent)
        return sent

    def _gone(self, step: Step, doomed: Doomed, *, may_arrive: bool = False) -> None:
        """The object is not there any more; with `may_arrive` the entry waits for what was sent."""
        now = self.ledger.state.doomed.get(doomed.key)
        if now is None or now.etag != doomed.etag:
            return
        if may_arrive:
            step.put(msgspec.structs.replace(now, is_gone=True))
        else:
            step.remove(now)
        self._keep_folder(step, doomed.key)

    def _keep_folder(self, step: Step, key: bytes) -> None:
        """The folder of an object that is gone gets its marker once more, if it had one and nothing is in it any more."""
        state = self.ledger.state
        prefix = key.rstrip(b"/").rpartition(b"/")[0] + b"/"
        if not prefix.startswith(state.prefix):
            return
        folder = state.resolve(prefix[len(state.prefix) : -1])
        if not isinstance(folder, Node) or folder.kind != Kind.DIRECTORY or folder.id == ROOT_ID:
            return
        has_marker = folder.remote is not None or folder.id in state.attempt_of
        others = state.doomed_below[prefix] - (key in state.doomed)
        if not has_marker or state.key_of(folder) != prefix or others or prefix in state.doomed:
            return
        if all(child.kind == Kind.WHITEOUT for child in state.children.get(folder.id, {}).values()):
            self.operations.send_marker(step, folder)

    def _spare(self, step: Step, doomed: Doomed) -> None:
        """Show what is there: the whiteout goes too, if there is one for exactly this key."""
        state = self.ledger.state
        self._gone(step, doomed)
        if not doomed.key.startswith(state.prefix) or state.doomed_below[doomed.key.rstrip(b"/") + b"/"]:
            return  # of a folder: what is still to be deleted in it stays hidden
        folder_path, _, name = doomed.key[len(state.prefix) :].rstrip(b"/").rpartition(b"/")
        folder = state.resolve(folder_path)
        if isinstance(folder, Node) and state.key_of(folder) == folder.lower:
            slot = state.child(folder.id, name)
            if slot is not None and slot.kind == Kind.WHITEOUT:
                step.remove(slot)


def _is_there(node: Node, key: bytes) -> bool:
    """Whether the node's own object is under the key already, so that there is nothing to delete."""
    return not node.is_dirty and node.remote is not None and node.remote.key == key
