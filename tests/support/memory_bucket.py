"""A bucket in memory with the contract of an under store, for tests that count requests or need no server."""

import hashlib
from collections import Counter
from collections.abc import Mapping

from forebay.errors import ObjectChanged, ObjectNotFound
from forebay.tiers.understore import Buffer, ListPage, ObjectInfo
from forebay.tiers.version import ObjectVersion


class MemoryBucket:
    """Objects by key. `calls` counts requests by kind; `page_keys` is the size of a listing page."""

    def __init__(self, name: str = "s3://memory", page_keys: int = 1000) -> None:
        self.id = name
        self.objects: dict[str, bytes] = {}
        self.old_versions: dict[tuple[str, str], bytes] = {}
        self.calls: Counter[str] = Counter()
        self.page_keys = page_keys
        self.buckets: dict[str, MemoryBucket] = {name: self}
        self.failure: Exception | None = None

    async def check(self) -> None:
        self._called("check")

    async def list_page(
        self, prefix: str, *, delimiter: str | None = None, token: str | None = None, limit: int = 1000
    ) -> ListPage:
        self._called("list")
        names: dict[str, bool] = {}
        for key in self.objects:
            if key.startswith(prefix):
                head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key[len(prefix) :], "", "")
                names[prefix + head + found] = bool(found)
        ordered = [name for name in sorted(names, key=str.encode) if token is None or name.encode() > token.encode()]
        page = ordered[: self.page_keys]
        keys = [name for name in page if not names[name]]
        return ListPage(
            keys=keys,
            sizes=[len(self.objects[key]) for key in keys],
            etags=[etag_of(self.objects[key]) for key in keys],
            mtimes_ns=[1] * len(keys),
            prefixes=[name for name in page if names[name]],
            next_token=page[-1] if len(page) < len(ordered) else None,
        )

    async def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo | None:
        self._called("head")
        data = self.objects.get(key) if version_id is None else self.old_versions.get((key, version_id))
        return None if data is None else self._info(key, data)

    async def get_range(self, version: ObjectVersion, offset: int, size: int) -> Buffer:
        self._called("get")
        return self._exactly(version)[offset : offset + size]

    async def put(
        self,
        key: str,
        data: Buffer,
        *,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        self._called("put")
        self.objects[key] = bytes(data)
        return self._info(key, self.objects[key])

    async def copy(
        self,
        source: ObjectVersion,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        self._called("copy")
        self.objects[key] = self.buckets[source.store]._exactly(source)
        return self._info(key, self.objects[key])

    async def delete(self, key: str) -> bool:
        self._called("delete")
        self.objects.pop(key, None)
        return True

    def version(self, info: ObjectInfo) -> ObjectVersion:
        return ObjectVersion(self.id, info.key, info.etag, info.size, info.version_id)

    async def close(self) -> None:
        pass

    def _called(self, kind: str) -> None:
        self.calls[kind] += 1
        if self.failure is not None:
            raise self.failure

    def _info(self, key: str, data: bytes) -> ObjectInfo:
        return ObjectInfo(key, len(data), etag_of(data), 1)

    def _exactly(self, version: ObjectVersion) -> bytes:
        if version.version_id is not None:
            data = self.old_versions.get((version.key, version.version_id))
        else:
            data = self.objects.get(version.key)
        if data is None:
            raise ObjectNotFound(f"{self.id}: no object {version.key!r}")
        if etag_of(data) != version.etag:
            raise ObjectChanged(f"{self.id}: {version.key!r} was overwritten")
        return data


def etag_of(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()
