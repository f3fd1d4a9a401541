"""Attributes of files as user metadata of objects, in the way other tools know them.

    mtime      seconds.nanoseconds      rclone (`X-Amz-Meta-Mtime`) and s3fs (`x-amz-meta-mtime`)
    mode       decimal st_mode          s3fs; so a symbolic link is one there too (its body is the target)
    uid, gid   decimal                  s3fs
    xattr      URL-quoted JSON, values in base64     s3fs
    forebay-tag  node.generation.nonce  ours: whose upload an object is, when a reply was lost

S3 allows 2 KiB of user metadata per object; what does not fit is refused when it is set (`fits`), not dropped at upload.
"""

import base64
import json
import os
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass

from .nodes import Node

TAG = "forebay-tag"
LIMIT_BYTES = 2048
# What everything but xattrs may take, names included.
_RESERVED_BYTES = 300


def metadata_of(node: Node, tag: str) -> dict[str, str]:
    seconds, nanoseconds = divmod(node.mtime_ns, 1_000_000_000)
    found = {
        "mtime": f"{seconds}.{nanoseconds:09d}",
        "mode": str(node.st_mode),
        "uid": str(node.uid),
        "gid": str(node.gid),
        TAG: tag,
    }
    if node.xattrs:
        found["xattr"] = _pack(node.xattrs)
    return found


def fits(xattrs: Mapping[bytes, bytes]) -> bool:
    return len(_pack(xattrs)) + _RESERVED_BYTES <= LIMIT_BYTES


@dataclass(frozen=True, slots=True)
class StoredAttributes:
    """What an object's metadata says; None where it says nothing."""

    mtime_ns: int | None
    st_mode: int | None
    uid: int | None
    gid: int | None
    xattrs: Mapping[bytes, bytes]
    tag: str | None


def attributes_of(metadata: Mapping[str, str]) -> StoredAttributes:
    """Read metadata written by us, rclone or s3fs. What cannot be understood counts as not there."""
    known = {name.lower(): value for name, value in metadata.items()}
    return StoredAttributes(
        mtime_ns=_nanoseconds(known.get("mtime")),
        st_mode=_number(known.get("mode")),
        uid=_number(known.get("uid")),
        gid=_number(known.get("gid")),
        xattrs=_unpack(known.get("xattr")),
        tag=known.get(TAG),
    )


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _nanoseconds(text: str | None) -> int | None:
    if text is None:
        return None
    seconds, _, fraction = text.partition(".")
    sign = -1 if seconds.startswith("-") else 1
    if not seconds.lstrip("-").isdigit() or (fraction and not fraction.isdigit()):
        return None
    return int(seconds) * 1_000_000_000 + sign * int((fraction + "0" * 9)[:9])


def _pack(xattrs: Mapping[bytes, bytes]) -> str:
    texts = {os.fsdecode(name): base64.b64encode(value).decode() for name, value in xattrs.items()}
    return urllib.parse.quote(json.dumps(texts, separators=(",", ":")))


def _unpack(text: str | None) -> Mapping[bytes, bytes]:
    if not text:
        return {}
    try:
        found = json.loads(urllib.parse.unquote(text))
        return {os.fsencode(name): base64.b64decode(value) for name, value in found.items()}
    except (ValueError, TypeError, AttributeError):
        return {}
