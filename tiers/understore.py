"""The protocol of an under store: the object store that holds the truth.

Implementations live in `tiers/stores/`. All of them obey one contract, and one conformance suite checks it:

- Every call has a deadline (the store's `timeout_s`, or the one given) that covers all retries; no call hangs.
- Failures are sorted by what the caller does (`errors.py`): `StoreUnavailable` (try later), `StoreDenied`,
  `BucketNotFound`, `ObjectNotFound`, `ObjectChanged`, `StoreCorrupt`. Nothing else comes out.
- A truncated body, a wrong length or another version is never returned as data.
- Cancelling a call is safe at any moment and leaves nothing running.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

from .version import ObjectVersion

Buffer: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a store says of one object. `mtime_ns` is nanoseconds since the epoch; `etag` has no quotes."""

    key: str
    size: int
    etag: str
    mtime_ns: int
    version_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ListPage:
    """One page of a listing, as columns of equal length, in the store's key order (UTF-8 byte order on S3).

    `version_ids` is empty, except from `VersioningStore.list_version_page` and whoever looked them up.
    `prefixes` are the common prefixes (ending in the delimiter) that belong to this page when a delimiter was
    given. `next_token` is None on the last page.
    """

    keys: Sequence[str]
    sizes: Sequence[int]
    etags: Sequence[str]
    mtimes_ns: Sequence[int]
    prefixes: Sequence[str]
    next_token: str | None
    version_ids: Sequence[str | None] = ()


class UnderStore(Protocol):
    """A bucket (with an optional prefix), seen as keys and bytes. Keys given and returned are relative to nothing:
    they are full keys of the bucket. Safe to use from one event loop; `close` ends it."""

    @property
    def id(self) -> str:
        """The name that goes into `ObjectVersion.store`: no credentials, equal for equal contents."""
        ...

    async def check(self) -> None:
        """Prove that the bucket is there and can be listed with these credentials, or raise the reason."""
        ...

    async def list_page(
        self, prefix: str, *, delimiter: str | None = None, token: str | None = None, limit: int = 1000
    ) -> ListPage:
        """One page of the keys that start with `prefix`. An empty page means that there is nothing; an outage raises."""
        ...

    async def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo | None:
        """What the store has under `key` now (or under that version id); None if nothing."""
        ...

    async def get_range(self, version: ObjectVersion, offset: int, size: int) -> Buffer:
        """Exactly `size` bytes at `offset` of exactly this version (range is inside it), or raise.

        Raises ObjectChanged if the key now holds another version, ObjectNotFound if it is gone.
        """
        ...

    async def put(
        self,
        key: str,
        data: Buffer,
        *,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        """Store a whole object. With `if_match` (an etag) or `if_absent`, raise ObjectChanged when it does not hold."""
        ...

    async def copy(
        self,
        source: ObjectVersion,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        """Server-side copy of exactly this version to `key` (any size, also onto itself); raises like `get_range`.

        The source may be in another bucket of the same S3 service; UsageError when the service cannot do it by itself.
        The user metadata of the source goes along (above 5 GiB only within a bucket), unless `metadata` replaces it. `if_match` and `if_absent` speak of
        what is under `key` before, as in `put`.
        """
        ...

    async def delete(self, key: str) -> bool:
        """Remove the object; it is no error if there is none.

        Whether nothing of this call can arrive any more. False: it is done, but an earlier try had no answer, and may be applied a second
        time, to whatever is under the key then. After StoreUnavailable the same may happen, to an object that is still there.
        """
        ...

    def version(self, info: ObjectInfo) -> ObjectVersion:
        """The identity of what `info` describes in this store."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class VersioningStore(UnderStore, Protocol):
    """An under store whose listings can tell version ids."""

    async def list_version_page(self, prefix: str, *, token: str | None = None, limit: int = 1000) -> ListPage:
        """Like `list_page`, with `version_ids` (of what is under each key now; old versions are left out).

        Up to `limit` versions are looked through, so a page may be empty and have a token to go on with. Where the
        bucket keeps no versions the ids are `null`. Raises StoreDenied where only plain listing is allowed.
        """
        ...


@dataclass(frozen=True, slots=True)
class UploadedPart:
    """A part that the store has acknowledged. `number` counts from 1; `etag` without quotes."""

    number: int
    etag: str
    size: int


@dataclass(frozen=True, slots=True)
class PendingUpload:
    """A multipart upload that was begun and neither completed nor aborted."""

    key: str
    upload_id: str
    initiated_ns: int


@runtime_checkable
class MultipartStore(UnderStore, Protocol):
    """An under store that takes an object in parts. Nothing is visible under the key before `complete_upload`.

    Parts but the last have at least 5 MiB; numbers run from 1 to 10,000. Any call on an upload that was aborted or
    completed raises ObjectNotFound.
    """

    async def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> str:
        """Begin an upload and return its id."""
        ...

    async def upload_part(self, key: str, upload_id: str, number: int, data: Buffer) -> UploadedPart:
        """Store one part; sent again under the same number, it replaces the part. The store checks a checksum of it."""
        ...

    async def copy_part(
        self, key: str, upload_id: str, number: int, source: ObjectVersion, offset: int, size: int
    ) -> UploadedPart:
        """Fill one part on the server's side from a byte range of exactly this version; raises like `get_range`."""
        ...

    async def complete_upload(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[UploadedPart],
        *,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        """Make the object visible, atomically. Conditions as in `put`; ObjectChanged leaves the upload as it was.

        A reply can be lost after the store has acted: StoreUnavailable here means "not known", and the caller finds
        out with `head`.
        """
        ...

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """Drop an upload and its parts; it is no error if there is none."""
        ...

    async def list_uploads(self, prefix: str) -> Sequence[PendingUpload]:
        """All uploads begun and not ended under keys that start with `prefix`."""
        ...
