"""A bucket in memory that takes multipart uploads, with faults by script: for tests of the write side.

`fault(kind, key)` is asked before each request and answers None (do it), REFUSE (StoreUnavailable, nothing is done),
LOSE (it is done, but the answer is StoreUnavailable), LATE (of a deletion: StoreUnavailable, and done when it `arrive`s) or HOLD
(nothing until `released` is set, then done). Conditions are checked atomically, as S3 does.
"""

import asyncio
import enum
import hashlib
import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from forebay.errors import ObjectChanged, ObjectNotFound, StoreUnavailable
from forebay.tiers.understore import Buffer, ListPage, ObjectInfo, PendingUpload, UploadedPart
from forebay.tiers.version import ObjectVersion


class Fault(enum.Enum):
    REFUSE = "refuse"
    LOSE = "lose"
    LATE = "late"
    HOLD = "hold"


@dataclass(frozen=True)
class Stored:
    data: bytes
    metadata: Mapping[str, str]
    etag: str


@dataclass
class Upload:
    key: str
    metadata: Mapping[str, str]
    parts: dict[int, bytes] = field(default_factory=dict)


class MultipartBucket:
    def __init__(self, name: str = "s3://parts", *, page_keys: int = 1000) -> None:
        self.id = name
        self.page_keys = page_keys
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, Upload] = {}
        self.calls: Counter[str] = Counter()
        self.fault: Callable[[str, str], Fault | None] = lambda kind, key: None
        self.released = asyncio.Event()
        # Deletions that had no answer, and keys whose deletions are tried twice by the store itself: see `arrive`.
        self.under_way: list[str] = []
        self.tried_twice: set[str] = set()
        self._ids = itertools.count(1)

    def contents(self) -> dict[str, bytes]:
        return {key: stored.data for key, stored in self.objects.items()}

    def write(self, key: str, data: bytes) -> ObjectVersion:
        """Somebody else writes an object."""
        self.objects[key] = Stored(data, {}, etag_of(data))
        return ObjectVersion(self.id, key, etag_of(data), len(data))

    async def check(self) -> None:
        await self._ask("check", "")

    async def list_page(
        self, prefix: str, *, delimiter: str | None = None, token: str | None = None, limit: int = 1000
    ) -> ListPage:
        await self._ask("list", prefix)
        names: dict[str, bool] = {}
        for key in self.objects:
            if key.startswith(prefix):
                head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key[len(prefix) :], "", "")
                names[prefix + head + found] = bool(found)
        ordered = [name for name in sorted(names) if token is None or name > token]
        page = ordered[: min(limit, self.page_keys)]
        keys = [name for name in page if not names[name]]
        stored = [self.objects[key] for key in keys]
        return ListPage(
            keys, [len(one.data) for one in stored], [one.etag for one in stored], [1] * len(keys),
            [name for name in page if names[name]], page[-1] if len(page) < len(ordered) else None,
        )  # fmt: skip

    async def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo | None:
        await self._ask("head", key)
        return self._info(key) if key in self.objects else None

    async def get_range(self, version: ObjectVersion, offset: int, size: int) -> Buffer:
        await self._ask("get", version.key)
        return self._exactly(version).data[offset : offset + size]

    async def put(
        self, key: str, data: Buffer, *, metadata: Mapping[str, str] | None = None,
        if_match: str | None = None, if_absent: bool = False,
    ) -> ObjectInfo:  # fmt: skip
        fault = await self._ask("put", key)
        self._require(key, if_match, if_absent)
        self.objects[key] = Stored(bytes(data), metadata or {}, etag_of(bytes(data)))
        return self._answer(fault, key)

    async def copy(
        self, source: ObjectVersion, key: str, *, metadata: Mapping[str, str] | None = None,
        if_match: str | None = None, if_absent: bool = False,
    ) -> ObjectInfo:  # fmt: skip
        fault = await self._ask("copy", key)
        stored = self._exactly(source)
        self._require(key, if_match, if_absent)
        self.objects[key] = Stored(stored.data, stored.metadata if metadata is None else metadata, stored.etag)
        return self._answer(fault, key)

    async def delete(self, key: str) -> bool:
        fault = await self._ask("delete", key)
        if fault is not Fault.LATE:
            self.objects.pop(key, None)
            if fault is None and key in self.tried_twice:
                self.under_way.append(key)
                return False
        if fault in (Fault.LOSE, Fault.LATE):
            self.under_way.append(key)
            raise StoreUnavailable("the answer was lost")
        return True

    def arrive(self) -> None:
        """Apply (once more) every deletion that had no answer."""
        for key in self.under_way:
            self.objects.pop(key, None)
        self.under_way.clear()

    async def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> str:
        fault = await self._ask("create", key)
        upload_id = f"upload-{next(self._ids)}"
        self.uploads[upload_id] = Upload(key, metadata or {})
        if fault is Fault.LOSE:
            raise StoreUnavailable("the answer was lost")
        return upload_id

    async def upload_part(self, key: str, upload_id: str, number: int, data: Buffer) -> UploadedPart:
        await self._ask("part", key)
        self._upload(upload_id).parts[number] = bytes(data)
        return UploadedPart(number, etag_of(bytes(data)), len(data))

    async def copy_part(
        self, key: str, upload_id: str, number: int, source: ObjectVersion, offset: int, size: int
    ) -> UploadedPart:
        await self._ask("copy_part", key)
        data = self._exactly(source).data[offset : offset + size]
        assert len(data) == size
        self._upload(upload_id).parts[number] = data
        return UploadedPart(number, etag_of(data), size)

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[UploadedPart],
        *, if_match: str | None = None, if_absent: bool = False,
    ) -> ObjectInfo:  # fmt: skip
        fault = await self._ask("complete", key)
        upload = self._upload(upload_id)
        assert [part.number for part in parts] == list(range(1, len(parts) + 1))
        assert set(upload.parts) >= {part.number for part in parts}
        self._require(key, if_match, if_absent)
        data = b"".join(upload.parts[part.number] for part in parts)
        del self.uploads[upload_id]
        self.objects[key] = Stored(data, upload.metadata, f"{etag_of(data)}-{len(parts)}")
        return self._answer(fault, key)

    async def abort_upload(self, key: str, upload_id: str) -> None:
        await self._ask("abort", key)
        self.uploads.pop(upload_id, None)

    async def list_uploads(self, prefix: str) -> Sequence[PendingUpload]:
        await self._ask("list_uploads", prefix)
        return [PendingUpload(u.key, i, time.time_ns()) for i, u in self.uploads.items() if u.key.startswith(prefix)]

    def version(self, info: ObjectInfo) -> ObjectVersion:
        return ObjectVersion(self.id, info.key, info.etag, info.size, info.version_id)

    async def close(self) -> None:
        pass

    async def _ask(self, kind: str, key: str) -> Fault | None:
        self.calls[kind] += 1
        fault = self.fault(kind, key)
        if fault is Fault.REFUSE:
            raise StoreUnavailable("the store does not answer")
        if fault is Fault.HOLD:
            await self.released.wait()
        else:
            await asyncio.sleep(0)
        return fault

    def _answer(self, fault: Fault | None, key: str) -> ObjectInfo:
        if fault is Fault.LOSE:
            raise StoreUnavailable("the answer was lost")
        return self._info(key)

    def _info(self, key: str) -> ObjectInfo:
        stored = self.objects[key]
        return ObjectInfo(key, len(stored.data), stored.etag, 1, metadata=stored.metadata)

    def _require(self, key: str, if_match: str | None, if_absent: bool) -> None:
        stored = self.objects.get(key)
        if (if_absent and stored is not None) or (if_match is not None and (stored is None or stored.etag != if_match)):
            raise ObjectChanged(f"{self.id}: {key!r} is not as expected")

    def _exactly(self, version: ObjectVersion) -> Stored:
        stored = self.objects.get(version.key)
        if stored is None:
            raise ObjectNotFound(f"{self.id}: no object {version.key!r}")
        if stored.etag != version.etag:
            raise ObjectChanged(f"{self.id}: {version.key!r} was overwritten")
        return stored

    def _upload(self, upload_id: str) -> Upload:
        if upload_id not in self.uploads:
            raise ObjectNotFound(f"{self.id}: no upload {upload_id}")
        return self.uploads[upload_id]


def etag_of(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()
