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
    """See what a predecessor left, after the records were loaded; where nobody shares them also put the tier in order.

    Raises MetadataUnavailable or TierFailed.
    """
    garbage = 0 if records.is_shared else collect_garbage(ledger, tier, records)
    present = set(tier.names())
    ledger.take_in()  # what was committed while the tier was listed has its data in it
    with ledger.locked() as state:
        missing = tuple(
            state.path_of(node) or node.name
            for node in (state.by_id[node_id] for node_id in state.dirty)
            if node.data and not node.inline and node.data not in present and node.open_by not in state.writers
        )
        for path in missing:
            logger.error("the bytes of %r are not in %s, and not in the bucket", path, tier.label)
        return Recovered(
            dirty_files=len(state.dirty),
            dirty_bytes=state.dirty_bytes,
            doomed=len(state.doomed),
            attempts=len(state.attempts),
            garbage_files=garbage,
            missing=missing,
        )


def collect_garbage(ledger: Ledger, tier: DurableTier, records: Records) -> int:
    """Delete data that no record names and that no writer alive may be about to commit; how many pieces that were.

    The order matters: what is listed first, and is not named by what is taken in afterwards, can only be named later by the
    writer that made it. So only the data of those who are alive is left alone.
    """
    present, inline = list(tier.names()), list(records.inline_names())
    ledger.take_in()
    with ledger.locked() as state:
        named = {node.data for node in state.by_id.values() if node.data}
        alive = tuple(f"{number:x}-" for number in state.writers)
    garbage = [name for name in present if name not in named and not name.startswith(alive)]
    stray = [name for name in inline if name not in named and not name.startswith(alive)]
    for name in garbage:
        tier.delete(name)
    if stray:

        def drop(step: Step) -> None:
            step.drop_inline.extend(stray)

        ledger.run(drop, fenced=records.is_shared)
    return len(garbage) + len(stray)
