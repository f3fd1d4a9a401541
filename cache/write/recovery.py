"""What is done when a write tier is opened: garbage out, and nothing that is dirty left without its bytes.

Attempts that a crash left are not looked at here, because the store may be away: the writeback settles them before it touches
their nodes or keys again.
"""

import logging
from dataclasses import dataclass

from ...tiers.durable import DurableTier
from .ledger import Ledger, Step
from .records.store import Records

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recovered:
    """`missing` are paths of dirty files whose data is gone."""

    dirty_files: int
    dirty_bytes: int
    doomed: int
    attempts: int
    garbage_files: int
    missing: tuple[bytes, ...]


def recover(ledger: Ledger, tier: DurableTier, records: Records) -> Recovered:
    """Put the tier in order after the records were loaded. Raises MetadataUnavailable or TierFailed."""
    with ledger.locked() as state:
        files: dict[str, int] = {}
        inline: set[str] = set()
        for node in state.by_id.values():
            if node.data and node.inline:
                inline.add(node.data)
            elif node.data:
                files[node.data] = node.id
    present = set(tier.names())
    garbage = present - files.keys()
    for name in garbage:
        tier.delete(name)
    stray = [name for name in records.inline_names() if name not in inline]
    if stray:

        def drop(step: Step) -> None:
            step.drop_inline.extend(stray)

        ledger.run(drop)
    with ledger.locked() as state:
        missing = tuple(
            state.path_of(node) or node.name
            for name, node_id in files.items()
            if name not in present and (node := state.by_id[node_id]).is_dirty
        )
        for path in missing:
            logger.error("the bytes of %r are not in %s, and not in the bucket", path, tier.label)
        return Recovered(
            dirty_files=len(state.dirty),
            dirty_bytes=state.dirty_bytes,
            doomed=len(state.doomed),
            attempts=len(state.attempts),
            garbage_files=len(garbage) + len(stray),
            missing=missing,
        )
