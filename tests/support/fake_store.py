"""An under store in memory, with faults and delays by script: for tests of what stands on an under store.

It obeys the contract of `tiers/understore.py`. Faults come from `script`: one entry for each get_range to come, an
exception to raise or None to answer; when it is used up everything is answered. `gate`, if set, is awaited by every
get_range before it answers, so that a test decides when bytes arrive. Requests are recorded.
"""

import asyncio
import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass

from forebay.errors import ObjectChanged, ObjectNotFound, StoreError
from forebay.tiers.understore import Buffer, ListPage, ObjectInfo
from forebay.tiers.version import ObjectVersion


@dataclass(frozen=True)
class Request:
    """One get_range that was answered or refused."""

    key: str
    offset: int
    size: int


def content_of(seed: int, size: int) -> bytes:
    """Bytes that differ everywhere and are the same every time."""
    return random.Random(seed).randbytes(size)


class FakeStore:
    """Keys and bytes; an etag is the MD5 of the content, as on S3."""

    def __init__(self, name: str = "s3://fake", *, delay_s: float = 0.0) -> None:
        self.id = name
        self.objects: dict[str, bytes] = {}
        self._etags: dict[str, tuple[bytes, str]] = {}
        self.requests: list[Request] = []
        self.script: list[StoreError | None] = []
        self.gate: asyncio.Event | None = None
        self.delay_s = delay_s
        self.down: StoreError | None = None
        self.running = 0
        self.most_running = 0

    def add(self, key: str, data: bytes) -> ObjectVersion:
        """Put an object, in no time, and return its version."""
        self.objects[key] = data
        return ObjectVersion(self.id, key, self.etag(key), len(data))

    @property
    def fetched_bytes(self) -> int:
        return sum(request.size for request in self.requests)

    def etag(self, key: str) -> str:
        """The etag of what is under a key; hashed once for each content."""
        data = self.objects[key]
        known = self._etags.get(key)
        if known is None or known[0] is not data:
            self._etags[key] = known = (data, etag_of(data))
        return known[1]

    async def check(self) -> None:
        if self.down is not None:
            raise self.down

    async def list_page(
        self, prefix: str, *, delimiter: str | None = None, token: str | None = None, limit: int = 1000
    ) -> ListPage:
        assert delimiter is None, "a flat listing is all that tests of the cache need"
        keys = [key for key in sorted(self.objects) if key.startswith(prefix) and key > (token or "")]
        page = keys[:limit]
        return ListPage(
            page,
            [len(self.objects[key]) for key in page],
            [self.etag(key) for key in page],
            [0] * len(page),
            [],
            page[-1] if len(keys) > limit else None,
        )

    async def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo | None:
        data = self.objects.get(key)
        return None if data is None else ObjectInfo(key, len(data), self.etag(key), 0)

    async def get_range(self, version: ObjectVersion, offset: int, size: int) -> Buffer:
        assert offset >= 0
        assert size > 0
        assert offset + size <= version.size
        self.requests.append(Request(version.key, offset, size))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self.gate is not None:
                await self.gate.wait()
            await asyncio.sleep(self.delay_s)
            fault = self.down or (self.script.pop(0) if self.script else None)
            if fault is not None:
                raise fault
            data = self.objects.get(version.key)
            if data is None:
                raise ObjectNotFound(f"{version.key} is not there")
            if self.etag(version.key) != version.etag:
                raise ObjectChanged(f"{version.key} was overwritten")
            return data[offset : offset + size]
        finally:
            self.running -= 1

    async def put(
        self,
        key: str,
        data: Buffer,
        *,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        before = self.objects.get(key)
        if (if_absent and before is not None) or (if_match and (before is None or etag_of(before) != if_match)):
            raise ObjectChanged(f"{key} is not as expected")
        self.add(key, bytes(data))
        return ObjectInfo(key, len(data), etag_of(bytes(data)), 0)

    async def copy(
        self,
        source: ObjectVersion,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        data = await self.get_range(source, 0, source.size)
        return await self.put(key, data, metadata=metadata, if_match=if_match, if_absent=if_absent)

    async def delete(self, key: str) -> bool:
        self.objects.pop(key, None)
        return True

    def version(self, info: ObjectInfo) -> ObjectVersion:
        return ObjectVersion(self.id, info.key, info.etag, info.size, info.version_id)

    async def close(self) -> None: ...


def etag_of(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
