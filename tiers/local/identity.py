"""An object version as bytes, for headers and frames: what is cached says itself what it is."""

import struct

from ..understore import Buffer
from ..version import ObjectVersion

# Lengths of the four texts (0xFFFFFFFF: no version id), then the object's size; the texts follow in the same order.
_LENGTHS = struct.Struct("<IIIIQ")
_NONE = 0xFFFFFFFF


def encode(version: ObjectVersion) -> bytes:
    """All fields of the version. Texts are UTF-8, with surrogate escapes for bytes that are not."""
    texts = [text.encode("utf-8", "surrogateescape") for text in (version.store, version.key, version.etag)]
    if version.version_id is None:
        return _LENGTHS.pack(*map(len, texts), _NONE, version.size) + b"".join(texts)
    texts.append(version.version_id.encode("utf-8", "surrogateescape"))
    return _LENGTHS.pack(*map(len, texts), version.size) + b"".join(texts)


def decode(data: Buffer, digest: bytes) -> ObjectVersion | None:
    """The version in `data` if it is the one with this digest, else None (damaged, or of something else)."""
    view = memoryview(data)
    if len(view) < _LENGTHS.size:
        return None
    *lengths, size = _LENGTHS.unpack_from(view)
    has_version_id = lengths[3] != _NONE
    if not has_version_id:
        lengths[3] = 0
    if _LENGTHS.size + sum(lengths) != len(view):
        return None
    texts, position = [], _LENGTHS.size
    for length in lengths:
        texts.append(bytes(view[position : position + length]).decode("utf-8", "surrogateescape"))
        position += length
    version = ObjectVersion(texts[0], texts[1], texts[2], size, texts[3] if has_version_id else None)
    return version if version.digest == digest else None
