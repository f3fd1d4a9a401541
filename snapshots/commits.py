"""A commit: the immutable record of one version, named by the hash of its content.

It answers, years later: what was in it (the root page), where it came from (parents, command line), who made it, when,
and why. Version numbers are not part of it: the dataset's record gives them out in the order of publishing.
"""

import hashlib
from dataclasses import dataclass

import msgspec

from ..errors import PageCorrupt
from .metastore import CommitId
from .pages import PageId

COMMIT_FORMAT = 1


class _CommitRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The stored form: JSON with sorted keys; ids are hex."""

    format: int
    dataset: str
    parents: list[str]
    root: str
    author: str
    message: str
    time_ms: int
    command: str
    entry_count: int
    size_bytes: int


_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(_CommitRecord).decode


@dataclass(frozen=True, slots=True)
class Commit:
    """One version. `command` is the command line that made it; `size_bytes` the sum of the entries' sizes."""

    id: CommitId
    dataset: str
    parents: tuple[CommitId, ...]
    root: PageId
    author: str
    message: str
    time_ms: int
    command: str
    entry_count: int
    size_bytes: int

    @property
    def short_id(self) -> str:
        return self.id.hex()[:12]


def make_commit(
    *,
    dataset: str,
    parents: tuple[CommitId, ...],
    root: PageId,
    author: str,
    message: str,
    time_ms: int,
    command: str,
    entry_count: int,
    size_bytes: int,
) -> tuple[Commit, bytes]:
    """The commit and its stored bytes."""
    record = _CommitRecord(
        format=COMMIT_FORMAT,
        dataset=dataset,
        parents=[parent.hex() for parent in parents],
        root=root.hex(),
        author=author,
        message=message,
        time_ms=time_ms,
        command=command,
        entry_count=entry_count,
        size_bytes=size_bytes,
    )
    data = _encode(record)
    return decode_commit(_name(data), data), data


def decode_commit(commit_id: CommitId, data: bytes) -> Commit:
    """Raises PageCorrupt when the bytes are not those of that commit."""
    if _name(data) != commit_id:
        raise PageCorrupt(
            f"commit {commit_id.hex()[:12]} is damaged: its bytes do not match its name",
            remedy="restore the metadata store from a backup",
        )
    try:
        record = _decode(data)
    except msgspec.MsgspecError as error:
        raise PageCorrupt(f"commit {commit_id.hex()[:12]} cannot be read: {error}", remedy="upgrade Forebay") from error
    if record.format != COMMIT_FORMAT:
        raise PageCorrupt(
            f"commit {commit_id.hex()[:12]} has format {record.format}, this Forebay reads {COMMIT_FORMAT}",
            remedy="upgrade Forebay",
        )
    return Commit(
        commit_id,
        record.dataset,
        tuple(bytes.fromhex(parent) for parent in record.parents),
        bytes.fromhex(record.root),
        record.author,
        record.message,
        record.time_ms,
        record.command,
        record.entry_count,
        record.size_bytes,
    )


def _name(data: bytes) -> CommitId:
    return hashlib.blake2b(data, digest_size=32, person=b"forebay-commit").digest()
