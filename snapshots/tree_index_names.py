"""Names in the by-label layout: what a label value is called as a folder, and how equal file names are told apart.

The rules are functions of the entry alone, never of what else is in the snapshot or of the order of work, so that
an entry keeps its name from version to version.
"""

import hashlib
import json
import re
from typing import Any, Final

NAME_LIMIT_BYTES: Final = 255
UNLABELED: Final = "_unlabeled"

_PERCENT_CODE = re.compile(r"%(?=[0-9A-Fa-f]{2})")


def _mark(text: bytes) -> bytes:
    return b"~" + hashlib.blake2b(text, digest_size=6).hexdigest().encode()


def fit(name: bytes) -> bytes:
    """The name itself, or, above 255 bytes (which the kernel refuses), its beginning and a hash of the whole."""
    if len(name) <= NAME_LIMIT_BYTES:
        return name
    mark = _mark(name)
    return name[: NAME_LIMIT_BYTES - len(mark)] + mark


def told_apart(name: bytes, source_path: bytes) -> bytes:
    """`stem~<hash of the path>.ext`: the name of an entry whose own name another entry of its label folder has, too."""
    stem, dot, extension = name.rpartition(b".")
    if not stem:
        stem, dot, extension = name, b"", b""
    mark = _mark(source_path) + dot + extension
    return stem[: max(NAME_LIMIT_BYTES - len(mark), 0)] + mark[-NAME_LIMIT_BYTES:]


def label_value(labels: Any, key: str) -> Any:
    """The label `key`, or, with dots in it, what it leads to in nested labels; None if there is none."""
    if isinstance(labels, dict) and key in labels:
        return labels[key]
    value: Any = labels
    for part in key.split("."):
        if not isinstance(value, dict):
            return None
        value = value.get(part)
    return value


def folder_of_label(value: Any) -> bytes:
    """The folder for a label value: text as it is, numbers and booleans as in JSON, everything else `_unlabeled`.

    An object is what its `class` says: so are the classifications of labelling tools kept.

    `/` and NUL, which no name can hold, become `%2F` and `%00`; `.` and `..` become `%2E` and `%2E%2E`; a percent sign
    that could be mistaken for such a code becomes `%25`.
    """
    if isinstance(value, dict):
        value = value.get("class")
    if isinstance(value, bool | int | float):
        value = json.dumps(value)
    if not isinstance(value, str) or not value:
        return UNLABELED.encode()
    text = _PERCENT_CODE.sub("%25", value).replace("/", "%2F").replace("\0", "%00")
    if text in (".", ".."):
        text = text.replace(".", "%2E")
    return fit(text.encode("utf-8", "surrogateescape"))
