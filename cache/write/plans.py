"""What one upload is to do, fixed when it begins, and what it expects to find under its key."""

import os
from dataclasses import dataclass

from ...tiers.understore import ObjectInfo
from .nodes import Attempt, Kind, Node, Remote
from .object_metadata import TAG
from .state import State


class Disturbed(Exception):
    """The file was changed, moved or deleted while it was being uploaded; nothing was published. Not a failure."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an upload sends, fixed when it begins. `expected`: etag that the key must have, None for no object."""

    node: Node
    attempt: Attempt
    expected: str | None


@dataclass(slots=True)
class UploadCounts:
    files: int = 0
    sent_bytes: int = 0
    copied_bytes: int = 0
    conflicts: int = 0
    disturbed: int = 0
    unclear: int = 0


def expected_at(state: State, node: Node, key: bytes) -> str | None:
    """What the key is believed to hold: an etag, OURS or EMPTY (see Doomed), or None for no object."""
    if node.remote is not None and node.remote.key == key:
        return node.remote.etag
    holder = state.remote_holders.get(key)
    if holder is not None:
        remote = state.by_id[holder].remote
        assert remote is not None
        return remote.etag
    doomed = state.doomed.get(key)
    return None if doomed is None or doomed.is_gone else doomed.etag


def in_ring(state: State, node_id: int) -> Node | None:
    """A node that `node_id` waits for, if following who waits for whom from there leads back."""
    node = state.by_id.get(node_id)
    key = state.key_of(node) if node is not None else None
    if key is None:
        return None
    direct = (state.base_users.get(key, set()) | state.moved_from_above(key)) - {node_id}
    first = next((state.by_id[one] for one in direct), None)
    if first is None:
        return None
    seen: set[int] = set()
    waiting = [first.id]
    while waiting:
        node = state.by_id.get(waiting.pop())
        key = state.key_of(node) if node is not None and node.is_dirty else None
        if node is None or key is None:
            continue
        others = state.base_users.get(key, set()) | state.moved_from_above(key)
        if node.kind != Kind.DIRECTORY:
            others |= state.moved_from_below(key)
        others -= {node.id}
        if node_id in others:
            return first
        waiting.extend(others - seen)
        seen |= others
    return None


def tag_of(info: ObjectInfo) -> str | None:
    """The tag of the attempt that made an object, if one of ours did."""
    return next((value for name, value in info.metadata.items() if name.lower() == TAG), None)


def remote_of(info: ObjectInfo) -> Remote:
    return Remote(os.fsencode(info.key), info.etag, info.size, info.version_id)
