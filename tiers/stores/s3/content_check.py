"""Does a whole small object have the content its etag promises?

On S3 the etag of an object put in one piece is its MD5, unless it is encrypted with KMS or customer keys. Nothing in an
etag says so, and some servers make etags of their own, so the check must know when not to believe itself:

    matches                                   whole, and the store is known to use MD5s from now on
    differs, object is encrypted (HEAD)       no MD5; this object cannot be checked
    differs, the store has matched before     corrupt
    differs, never matched, same bytes again  the store's etags are no MD5s: checking stops, with a log line
"""

import hashlib
import logging
import re

from ...understore import Buffer
from ...version import SMALL_BYTES, ObjectVersion

logger = logging.getLogger(__name__)

_MD5 = re.compile(r"[0-9a-f]{32}")
_MAX_REMEMBERED = 64


class ContentCheck:
    """The checks of one store. A mismatch is the caller's to confirm by HEAD (`is_encrypted`) before `differs`."""

    def __init__(self, store_id: str, *, enabled: bool) -> None:
        self._store_id = store_id
        self._enabled = enabled
        self._has_matched = False
        self._seen: dict[bytes, bytes] = {}

    def applies(self, version: ObjectVersion, offset: int, size: int) -> bool:
        return (
            self._enabled
            and offset == 0
            and size == version.size <= SMALL_BYTES
            and _MD5.fullmatch(version.etag) is not None
            and self._seen.get(version.digest) != b"encrypted"
        )

    def matches(self, version: ObjectVersion, data: Buffer) -> bool:
        if hashlib.md5(data, usedforsecurity=False).hexdigest() != version.etag:
            return False
        self._has_matched = True
        return True

    def is_corrupt(self, version: ObjectVersion, data: Buffer, *, is_encrypted: bool) -> bool:
        """What a mismatch means (see the table); False when the bytes are to be believed."""
        if is_encrypted:
            self._remember(version.digest, b"encrypted")
            return False
        found = hashlib.md5(data, usedforsecurity=False).digest()
        if not self._has_matched and self._seen.get(version.digest) == found:
            self._enabled = False
            logger.warning("%s: its etags are no MD5s, contents are not checked against them", self._store_id)
            return False
        self._remember(version.digest, found)
        return True

    def _remember(self, digest: bytes, what: bytes) -> None:
        if len(self._seen) >= _MAX_REMEMBERED:
            self._seen.pop(next(iter(self._seen)))
        self._seen[digest] = what
