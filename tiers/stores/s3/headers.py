"""S3's request and answer headers as our values."""

import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from ....errors import StoreCorrupt, UsageError
from ...understore import ObjectInfo
from ...version import ObjectVersion
from .listing import plain_etag
from .signing import encode_key

METADATA_PREFIX = "x-amz-meta-"


def metadata_headers(metadata: Mapping[str, str]) -> dict[str, str]:
    return {METADATA_PREFIX + name: value for name, value in metadata.items()}


def condition_headers(if_match: str | None, if_absent: bool) -> dict[str, str]:
    if if_absent:
        return {"If-None-Match": "*"}
    return {"If-Match": f'"{if_match}"'} if if_match is not None else {}


def copy_headers(store_id: str, source: ObjectVersion, metadata: Mapping[str, str] | None = None) -> dict[str, str]:
    """The source of a copy into store `store_id`, that it must be exactly this version, and the metadata that replaces
    its own (if any). The source may be in another bucket of the service; raises UsageError for another service."""
    bucket, _, service = source.store.removeprefix("s3://").partition("@")
    if not source.store.startswith("s3://") or service != store_id.partition("@")[2]:
        raise UsageError(f"{store_id} cannot copy from {source.store} by itself: that is another service")
    name = f"/{bucket}/{encode_key(source.key)}"
    if source.version_id is not None:
        name += f"?versionId={source.version_id}"
    headers = {"x-amz-copy-source": name, "x-amz-copy-source-if-match": f'"{source.etag}"'}
    if metadata is not None:
        headers |= {"x-amz-metadata-directive": "REPLACE", **metadata_headers(metadata)}
    return headers


def http_time_ns(stamp: str | None) -> int:
    """Nanoseconds since the epoch of an HTTP date; now when there is none."""
    if stamp is None:
        return time.time_ns()
    try:
        return int(parsedate_to_datetime(stamp).timestamp()) * 1_000_000_000
    except ValueError as error:
        raise StoreCorrupt(f"an answer with the date {stamp!r}") from error


def info_of(key: str, headers: Mapping[str, str]) -> ObjectInfo:
    """What the headers of a HEAD or GET answer say of the object; raises StoreCorrupt when something is missing."""
    etag = plain_etag(headers.get("ETag", ""))
    size = headers.get("Content-Length", "")
    if not etag or not size.isdigit():
        raise StoreCorrupt(f"an answer for {key!r} without etag or length")
    return ObjectInfo(
        key=key,
        size=int(size),
        etag=etag,
        mtime_ns=http_time_ns(headers.get("Last-Modified")),
        version_id=version_id_of(headers),
        metadata={
            name.lower().removeprefix(METADATA_PREFIX): value
            for name, value in headers.items()
            if name.lower().startswith(METADATA_PREFIX)
        },
    )


def written_info(key: str, size: int, etag: str, headers: Mapping[str, str], metadata: Mapping[str, str]) -> ObjectInfo:
    """What was just written. Its time is that of the answer, since S3 does not tell the object's."""
    return ObjectInfo(key, size, etag, http_time_ns(headers.get("Date")), version_id_of(headers), dict(metadata))


def version_id_of(headers: Mapping[str, str]) -> str | None:
    """The version id; "null" is what buckets say that keep (or kept) no versions."""
    found = headers.get("x-amz-version-id")
    return found if found and found != "null" else None
