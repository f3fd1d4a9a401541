"""Waiting until what is dirty now is in the under store: `forebay flush`, and closing in mode `through`."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from ...errors import Incomplete
from .ledger import Ledger
from .open_files import OpenFiles
from .writeback import Writeback

# Pause between two looks at what is left, by how much that is.
LOOK_S_PER_FILE = 25e-6
LOOK_MAX_S = 0.25


@dataclass(frozen=True, slots=True)
class Flushing:
    """`keys_read` gives the keys that open files read from (with the ledger's lock held); `name_of` how a node is called in messages."""

    ledger: Ledger
    files: OpenFiles
    writeback: Writeback
    keys_read: Callable[[], set[bytes]]
    name_of: Callable[[object], str]

    async def flush(self, path: bytes | None, timeout_s: float | None) -> None:
        """Return when everything at and below `path` that is durable now is clean. Raises Incomplete at the time-out."""
        for draft in list(self.files.drafts.values()):
            if draft.writers and self._is_below(draft.node_id, path):
                await asyncio.to_thread(self.files.sync, draft)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            with self.ledger.locked() as state:
                left = [node_id for node_id in state.dirty if path is None or self._is_below(node_id, path)]
                prefix = state.prefix if path is None else state.prefix + path
                reading = self.keys_read()
                doomed = [
                    entry
                    for entry in state.doomed.values()
                    if entry.key.startswith(prefix)
                    and not (entry.recheck or entry.is_gone)
                    and entry.key not in reading
                ]
                attempts = list(state.attempts) if path is None else []
            if not left and not doomed and not attempts:
                return
            if deadline is not None and time.monotonic() >= deadline:
                raise Incomplete(self._unfinished(left, len(doomed)), remedy="see `forebay writeback list`")
            self.writeback.urgent.update(left)
            try:
                self.writeback.wake()
                await self.writeback.changed()
                # Looking takes the longer the more is left; it must not take what the uploads need.
                await asyncio.sleep(min(len(left) * LOOK_S_PER_FILE, LOOK_MAX_S))
            finally:
                self.writeback.urgent.difference_update(left)

    def _is_below(self, node_id: int, path: bytes | None) -> bool:
        if not path:
            return True
        state = self.ledger.state
        node = state.by_id.get(node_id)
        found = state.path_of(node) if node is not None else None
        return found is not None and (found == path or found.startswith(path + b"/"))

    def _unfinished(self, left: list[int], doomed: int) -> str:
        reasons = []
        for node_id in left[:3]:
            failure = self.writeback.failures.get(node_id)
            reasons.append(f"{self.name_of(node_id)} ({failure.reason if failure else 'waits'})")
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        return f"{len(left)} files are not in the bucket yet, {doomed} objects not deleted: {', '.join(reasons)}{more}"
