"""How an attempt ends: what its outcome means for the tree as it is by then, as changes of one step.

Each way removes the attempt, and sets what follows from what was found under its key. Nothing here does I/O.
"""

import logging
import os
import socket
import time
from dataclasses import dataclass

import msgspec

from ...tiers.understore import ObjectInfo
from .drafts import Draft
from .ledger import Ledger, Step
from .nodes import EMPTY, OURS, Attempt, Kind, Remote
from .operations import Operations
from .options import OnConflict, WriteOptions
from .plans import Plan, remote_of

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class AttemptEnds:
    ledger: Ledger
    operations: Operations
    options: WriteOptions
    drafts: dict[int, Draft]

    def complete(self, step: Step, attempt: Attempt, published: Remote) -> None:
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

    def drop(self, step: Step, attempt: Attempt, *, unclear: bool) -> None:
        """End an attempt that was not applied. If it may still be, its key is looked at once more later."""
        state = self.ledger.state
        step.remove(state.attempts.get(attempt.nonce, attempt))
        if unclear:
            known = state.doomed.get(attempt.key)
            # Not every store keeps the tag of a folder's marker (SeaweedFS drops it), so that a marker is known by being empty.
            meant = EMPTY if attempt.key.endswith(b"/") else OURS if known is None else known.etag
            self.operations.doom(step, state, attempt.key, meant, recheck=True)

    def follow_source(self, step: Step, plan: Plan, source: ObjectInfo | None) -> None:
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
        found = remote_of(source)
        remote = found if node.remote is not None and node.remote.key == found.key else node.remote
        step.put(msgspec.structs.replace(node, base=found, base_limit=found.size, size=found.size, remote=remote))

    def expect(self, step: Step, plan: Plan, found: Remote) -> None:
        """End an attempt that met our own, older object; the next one replaces it."""
        state = self.ledger.state
        step.remove(state.attempts.get(plan.attempt.nonce, plan.attempt))
        node = state.by_id.get(plan.attempt.node)
        if node is not None and state.key_of(node) == plan.attempt.key:
            step.put(msgspec.structs.replace(node, remote=found))

    def conflict(self, step: Step, plan: Plan, found: ObjectInfo | None) -> None:
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
            step.put(msgspec.structs.replace(node, remote=None if found is None else remote_of(found)))
            return
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(self.operations.now_ns() / 1e9))
        name = node.name + f".conflict-{socket.gethostname()}-{stamp}-{attempt.nonce[:4]}".encode()
        step.remove(node)
        step.put(msgspec.structs.replace(node, name=name, remote=None, covers=False, generation=node.generation + 1))
