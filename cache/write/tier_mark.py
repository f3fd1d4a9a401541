"""Which durable tier holds the data that shared records name, so that nobody looks for it in another.

Records in MongoDB can be opened from any machine; a folder of one machine cannot. So the first writer notes which tier it has, and
whoever comes with another is refused as long as something is only there.
"""

import socket

import msgspec

from ...errors import UsageError
from ...tiers.durable import DurableTier
from .ledger import Ledger, Step
from .nodes import Node, TierMark
from .state import State

BATCH = 200


def mark_tier(ledger: Ledger, tier: DurableTier, me: int) -> None:
    """Note the tier for writer `me`, or see that it is the one that was noted.

    Raises UsageError if acked data is in another, or others write with another.
    """
    mark = TierMark(tier.identity, tier.label, socket.gethostname())
    known = ledger.state.tier_mark
    if known is not None and known.identity == mark.identity:
        return
    if known is not None:
        with ledger.locked() as state:
            only_there = sum(1 for node_id in state.dirty if _is_in_tier(state.by_id[node_id]))
            others = [writer for number, writer in state.writers.items() if number != me]
        if others:
            raise UsageError(
                f"the bucket is written by {others[0].label} with {known.label} on {known.host} as write tier, not with {tier.label}",
                remedy="give that --write-tier: writers of one bucket share it",
            )
        if only_there:
            raise UsageError(
                f"{only_there} files that are not in the bucket yet are in {known.label} on {known.host}, not in {tier.label}",
                remedy="give that --write-tier, or run `forebay recover` with it first",
            )
        while ledger.run(lambda step: _leave_clean(step, ledger.state)):
            pass
    ledger.run(lambda step: step.put(mark))


def _is_in_tier(node: Node) -> bool:
    return bool(node.data) and not node.inline


def _leave_clean(step: Step, state: State) -> int:
    """Clean files do without the copy that the other tier holds; how many were changed."""
    left = [node for node in (state.by_id[node_id] for node_id in state.held) if _is_in_tier(node)][:BATCH]
    for node in left:
        step.put(msgspec.structs.replace(node, data="", extents=()))
    return len(left)
