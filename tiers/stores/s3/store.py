"""An S3 bucket as an under store.

Whole objects and ranges go by `obstore` (Rust, 0.2 to 0.5 ms of CPU per request, mostly without the GIL; our own requests
hold it for 0.7 ms). Everything else goes by our own signed requests, which can also name the keys that obstore's paths
cannot (`a//b`, `a/../b`, `/a`, `a/`, control characters, bytes that are no UTF-8), and find out why something was refused.

Whatever the server does with If-Match, the etag, the size and the length of each answer are compared with the version
asked for. An answer that does not fit is confirmed by a HEAD: if the object really is another version now, that is
ObjectChanged; if not, the answer was wrong, and it is asked again. The same holds for "not found".
"""

import asyncio
import contextlib
import hashlib
import logging
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store as ObstoreS3

from ....errors import ObjectChanged, ObjectNotFound, StoreCorrupt, StoreDenied, StoreError, StoreUnavailable
from ...understore import Buffer, ListPage, ObjectInfo, UploadedPart
from ...version import ObjectVersion
from ..calls import Calls
from ..counters import StoreCounters
from ..options import StoreOptions
from .content_check import ContentCheck
from .headers import condition_headers, copy_headers, metadata_headers, written_info
from .listing import parse_list_page, plain_etag
from .login import KEEP_S, Credentials, Login
from .multipart import S3Multipart, head_now, result_of
from .replies import text_of
from .version_listing import markers_of, parse_version_page
from .wire import CONNECT_TIMEOUT_S, STALL_TIMEOUT_S, Wire

if TYPE_CHECKING:
    from obstore.store import ClientConfig

logger = logging.getLogger(__name__)

MAX_COPY_BYTES = 5 * 1024 * 1024 * 1024
# obstore asks for credentials again so long before they expire; ours are valid for ten minutes or more when given.
OBSTORE_MARGIN_S = 300
COPY_PART_BYTES = 1024 * 1024 * 1024
_SYSTEM_MESSAGE = re.compile(r'kind: \w+,\s+message: "([^"]*)"')
# obstore has no class for a request that the server refuses for good: then a HEAD says what it is about.
_REFUSED = re.compile(r"status code: 4(?!08|29)\d\d")
_REFUSALS = (AlreadyExistsError, PermissionDeniedError, PreconditionError, UnauthenticatedError)
# Names that obstore takes for headers of HTTP, not for user metadata.
_OBSTORE_ATTRIBUTES = frozenset(
    {"content-disposition", "content-encoding", "content-language", "content-type", "cache-control", "storage-class"}
)
_PLAIN_KEY = re.compile(r"(?!/)(?!.*//)(?!(?:.*/)?\.{1,2}(?:/|$))[^\x00-\x1f\x7f\ud800-\udfff]*(?<!/)", re.DOTALL)


class S3Store(S3Multipart):
    """Implements `UnderStore`, `MultipartStore` and `VersioningStore` for one bucket."""

    def __init__(self, bucket: str, options: StoreOptions) -> None:
        """Reads the AWS configuration; nothing goes over the network before the first call. Raises UsageError."""
        self._login = Login(bucket, options)
        self.id = self._login.store_id
        self._options = options
        self._wire = Wire(self._login, max_connections=options.max_connections)
        self._calls = Calls(self.id, timeout_s=options.timeout_s, max_connections=options.max_connections)
        self._content = ContentCheck(self.id, enabled=options.verify_content)
        self._data: Any = None
        self._data_credentials: Credentials | None = None

    @property
    def counters(self) -> StoreCounters:
        return self._calls.counters

    def version(self, info: ObjectInfo) -> ObjectVersion:
        return ObjectVersion(self.id, info.key, info.etag, info.size, info.version_id)

    async def check(self) -> None:
        async def attempt() -> None:
            query = (("list-type", "2"), ("max-keys", "1"))
            parse_list_page((await self._wire.request("GET", None, query=query)).body)

        await self._calls.run("check", "listing it", attempt)
        if self._data is None:
            # The first client of a process reads all root certificates, 0.1 s and more; the first reader should not wait for it.
            await self._open_data()

    async def list_page(
        self, prefix: str, *, delimiter: str | None = None, token: str | None = None, limit: int = 1000
    ) -> ListPage:
        query = [("list-type", "2"), ("encoding-type", "url"), ("max-keys", str(limit)), ("prefix", prefix)]
        if delimiter is not None:
            query.append(("delimiter", delimiter))
        if token is not None:
            query.append(("continuation-token", token))

        async def attempt() -> ListPage:
            return parse_list_page((await self._wire.request("GET", None, query=query)).body)

        return await self._calls.run("list", f"listing of {prefix!r}", attempt)

    async def list_version_page(self, prefix: str, *, token: str | None = None, limit: int = 1000) -> ListPage:
        query = [("versions", ""), ("encoding-type", "url"), ("max-keys", str(limit)), ("prefix", prefix)]
        if token is not None:
            query += markers_of(token)

        async def attempt() -> ListPage:
            return parse_version_page((await self._wire.request("GET", None, query=query)).body)

        return await self._calls.run("list", f"listing of the versions of {prefix!r}", attempt)

    async def head(self, key: str, *, version_id: str | None = None) -> ObjectInfo | None:
        return await self._calls.run("head", f"look-up of {key!r}", lambda: head_now(self._wire, key, version_id))

    async def get_range(self, version: ObjectVersion, offset: int, size: int) -> Buffer:
        if size == 0:
            return b""
        fetch = self._fetch if _PLAIN_KEY.fullmatch(version.key) else self._fetch_odd
        data = await self._calls.run("get", f"read of {version.key!r}", lambda: fetch(version, offset, size))
        self.counters.bytes_read += size
        return data

    async def put(
        self,
        key: str,
        data: Buffer,
        *,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        headers = {**metadata_headers(metadata or {}), **condition_headers(if_match, if_absent)}
        is_plain = (
            _PLAIN_KEY.fullmatch(key) is not None
            and _OBSTORE_ATTRIBUTES.isdisjoint(name.lower() for name in metadata or ())
            and not self._login.anonymous  # then nothing is signed, and a checksum must go along
        )
        unsure = False

        async def attempt() -> ObjectInfo:
            nonlocal unsure
            try:
                if is_plain:
                    info = await self._put_plain(key, data, metadata or {}, if_match, if_absent)
                    if info is not None:
                        return info
                reply = await self._wire.request("PUT", key, headers=headers, body=data)
            except StoreUnavailable:
                unsure = True
                raise
            except ObjectChanged:
                # Perhaps an earlier attempt was applied, only its answer was lost, and it now meets itself.
                present = await head_now(self._wire, key) if unsure else None
                if present is not None and present.etag == hashlib.md5(data, usedforsecurity=False).hexdigest():
                    return present
                raise
            etag = plain_etag(reply.headers.get("ETag", ""))
            if not etag:
                raise StoreCorrupt(f"{self.id}: no etag for what was put under {key!r}")
            return written_info(key, len(data), etag, reply.headers, metadata or {})

        info = await self._calls.run("put", f"writing of {key!r}", attempt)
        self.counters.bytes_written += len(data)
        return info

    async def copy(
        self,
        source: ObjectVersion,
        key: str,
        *,
        metadata: Mapping[str, str] | None = None,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        if source.size > MAX_COPY_BYTES:
            return await self._copy_in_parts(source, key, metadata, if_match, if_absent)
        headers = {**copy_headers(self.id, source, metadata), **condition_headers(if_match, if_absent)}
        is_conditional = if_match is not None or if_absent
        unsure = False

        async def attempt() -> ObjectInfo:
            nonlocal unsure
            # Not all servers know conditions on the target of a copy; those of S3 itself are atomic, this look is not.
            if is_conditional:
                present = await head_now(self._wire, key)
                if unsure and present is not None and (present.etag, present.size) == (source.etag, source.size):
                    return present  # an earlier attempt was applied, only its answer was lost
                self._require(key, present, if_match)
            try:
                reply = await self._wire.request("PUT", key, headers=headers)
            except StoreUnavailable:
                unsure = True
                raise
            except ObjectNotFound as error:
                raise ObjectNotFound(f"{source.store}: no object {source.key!r}") from error
            etag = plain_etag(text_of(result_of(reply, "CopyObjectResult"), "ETag"))
            return written_info(key, source.size, etag, reply.headers, metadata or {})

        return await self._calls.run("copy", f"copy of {source.key!r} to {key!r}", attempt)

    async def delete(self, key: str) -> bool:
        tries = 0

        async def attempt() -> None:
            nonlocal tries
            tries += 1
            with contextlib.suppress(ObjectNotFound):
                await self._wire.request("DELETE", key)

        await self._calls.run("delete", f"removal of {key!r}", attempt)
        return tries == 1

    async def close(self) -> None:
        self._data = None
        await self._wire.close()

    # --- One attempt each. ---------------------------------------------------------------------------------

    async def _fetch(self, version: ObjectVersion, offset: int, size: int) -> Buffer:
        data_store = self._data or await self._open_data()
        options: dict[str, Any] = {"range": (offset, offset + size)}
        if version.version_id is not None:
            options["version"] = version.version_id
        else:
            options["if_match"] = f'"{version.etag}"'
        try:
            result = await obstore.get_async(data_store, version.key, options=options)  # type: ignore[arg-type]
            meta = result.meta
            data = memoryview(await result.bytes_async())
        except FileNotFoundError as error:
            raise await self._not_found(version) from error
        except PreconditionError as error:
            raise await self._unlike(version, "the store says that it was changed") from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise await self._denied() from error
        except BaseError as error:
            if _REFUSED.search(str(error)):
                raise await self._unlike(version, _reason(error)) from error
            raise StoreUnavailable(_reason(error)) from error
        etag = meta["e_tag"]
        if etag is None or plain_etag(etag) != version.etag or meta["size"] != version.size:
            raise await self._unlike(version, f"the answer was for etag {etag} and {meta['size']} bytes")
        return await self._checked(version, offset, size, data)

    async def _put_plain(
        self, key: str, data: Buffer, metadata: Mapping[str, str], if_match: str | None, if_absent: bool
    ) -> ObjectInfo | None:
        """Write by obstore; None if the store refused. Then nothing was written, and our own request finds out why."""
        data_store = self._data or await self._open_data()
        mode: Any = "create" if if_absent else {"e_tag": f'"{if_match}"'} if if_match is not None else "overwrite"
        try:
            result = await obstore.put_async(
                data_store, key, data, attributes=dict(metadata), use_multipart=False, mode=mode
            )
        except (FileNotFoundError, *_REFUSALS):
            return None
        except BaseError as error:
            if _REFUSED.search(str(error)):
                return None
            raise StoreUnavailable(_reason(error)) from error
        etag = plain_etag(result["e_tag"] or "")
        if not etag:
            raise StoreCorrupt(f"{self.id}: no etag for what was put under {key!r}")
        version_id = result["version"] if result["version"] != "null" else None
        return ObjectInfo(key, len(data), etag, time.time_ns(), version_id, dict(metadata))

    async def _fetch_odd(self, version: ObjectVersion, offset: int, size: int) -> Buffer:
        """Like `_fetch`, for keys that obstore cannot name."""
        headers = {"Range": f"bytes={offset}-{offset + size - 1}"}
        query: tuple[tuple[str, str], ...] = ()
        if version.version_id is not None:
            query = (("versionId", version.version_id),)
        else:
            headers["If-Match"] = f'"{version.etag}"'
        try:
            reply = await self._wire.request("GET", version.key, query=query, headers=headers)
        except ObjectNotFound as error:
            raise await self._not_found(version) from error
        except ObjectChanged as error:
            raise await self._unlike(version, "the store says that it was changed") from error
        etag = plain_etag(reply.headers.get("ETag", ""))
        whole = reply.headers.get("Content-Range", f"/{len(reply.body)}").rpartition("/")[2]
        if etag != version.etag or whole != str(version.size):
            raise await self._unlike(version, f"the answer was for etag {etag} and {whole} bytes")
        body = reply.body if reply.status == 206 else reply.body[offset : offset + size]
        return await self._checked(version, offset, size, memoryview(body))

    async def _checked(self, version: ObjectVersion, offset: int, size: int, data: memoryview) -> Buffer:
        if len(data) != size:
            raise StoreCorrupt(f"{self.id}: {version.key!r} gave {len(data)} bytes of {size} at {offset}")
        if self._content.applies(version, offset, size) and not self._content.matches(version, data):
            reply = await self._wire.request("HEAD", version.key, understood=frozenset({404}))
            encryption = reply.headers.get("x-amz-server-side-encryption", "")
            is_encrypted = encryption.startswith("aws:kms") or (
                "x-amz-server-side-encryption-customer-algorithm" in reply.headers
            )
            if self._content.is_corrupt(version, data, is_encrypted=is_encrypted):
                raise StoreCorrupt(
                    f"{self.id}: {version.key!r} gave bytes that are not those of its etag {version.etag}",
                    remedy="check the store and what lies between",
                )
        return data

    async def _not_found(self, version: ObjectVersion) -> StoreError:
        """What "not found" in answer to a read means: S3 says it for the bucket too, and gateways in passing."""
        query = (("list-type", "2"), ("max-keys", "1"), ("prefix", version.key))
        await self._wire.request("GET", None, query=query)  # raises BucketNotFound
        present = await head_now(self._wire, version.key, version.version_id)
        if present is None:
            return ObjectNotFound(f"{self.id}: no object {version.key!r} any more")
        return self._compared(version, present, "it was not found, yet it is there")

    async def _unlike(self, version: ObjectVersion, what: str) -> StoreError:
        present = await head_now(self._wire, version.key, version.version_id)
        if present is None:
            return ObjectNotFound(f"{self.id}: no object {version.key!r} any more")
        return self._compared(version, present, what)

    def _compared(self, version: ObjectVersion, present: ObjectInfo, what: str) -> StoreError:
        if (present.etag, present.size) != (version.etag, version.size):
            return ObjectChanged(
                f"{self.id}: {version.key!r} was overwritten", remedy="open it again for its present version"
            )
        return StoreCorrupt(f"{self.id}: wrong answer for {version.key!r}: {what}")

    async def _denied(self) -> StoreError:
        """After "denied": new credentials are worth another try, old ones are not."""
        if await self._login.renew(self._data_credentials):
            self._data = None
            return StoreUnavailable("the credentials were just replaced")
        return StoreDenied(f"{self.id}: denied", remedy="check the credentials and their permissions")

    async def _open_data(self) -> Any:
        if not self._login.region_is_known:
            with contextlib.suppress(StoreDenied):
                await self._wire.request("HEAD", None)  # any answer tells the region, "denied" too
            self._login.region_is_known = True
        self._data_credentials = await self._login.credentials()
        place = self._login.place
        options: dict[str, Any] = {
            # By this name, since obstore reads the AWS environment too and prefers AWS_ENDPOINT_URL_S3 to `endpoint`.
            "aws_endpoint_url_s3": f"{place.scheme}://{place.host}{place.base_path.removesuffix('/' + self._login.bucket)}",
            "virtual_hosted_style_request": not place.base_path,
            "region": self._login.region,
            "skip_signature": self._login.anonymous,
        }
        if not self._login.anonymous:
            options["credential_provider"] = self._provide
        client_options: ClientConfig = {
            "allow_http": place.scheme == "http",
            "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
            "read_timeout": timedelta(seconds=STALL_TIMEOUT_S),
            "timeout": timedelta(seconds=self._options.timeout_s),
        }
        if self._login.ca_bundle is not None:
            client_options["root_certificate"] = await asyncio.to_thread(Path(self._login.ca_bundle).read_bytes)
        self._data = ObstoreS3(
            self._login.bucket, client_options=client_options, retry_config={"max_retries": 0}, **options
        )
        return self._data

    async def _provide(self) -> Any:
        """Credentials in obstore's form, for as long as ours are kept."""
        found = await self._login.credentials()
        if found is None:
            raise StoreDenied(f"{self.id}: no credentials")
        self._data_credentials = found
        return {
            "access_key_id": found.access_key,
            "secret_access_key": found.secret_key,
            "token": found.token,
            "expires_at": datetime.now(UTC) + timedelta(seconds=KEEP_S + OBSTORE_MARGIN_S),
        }

    def _require(self, key: str, present: ObjectInfo | None, if_match: str | None) -> None:
        """Raise ObjectChanged unless `key` holds `if_match` (None: nothing)."""
        if (present.etag if present is not None else None) != if_match:
            raise ObjectChanged(f"{self.id}: {key!r} is not what was to be replaced")

    async def _copy_in_parts(
        self,
        source: ObjectVersion,
        key: str,
        metadata: Mapping[str, str] | None,
        if_match: str | None,
        if_absent: bool,
    ) -> ObjectInfo:
        """For objects above what S3 copies in one request."""
        if metadata is None:
            own = source.store == self.id
            info = await self.head(source.key, version_id=source.version_id) if own else None
            metadata = info.metadata if info is not None else {}
        upload_id = await self.create_upload(key, metadata=metadata)
        try:
            parts: list[UploadedPart] = []
            for number, offset in enumerate(range(0, source.size, COPY_PART_BYTES), start=1):
                length = min(COPY_PART_BYTES, source.size - offset)
                parts.append(await self.copy_part(key, upload_id, number, source, offset, length))
            return await self.complete_upload(key, upload_id, parts, if_match=if_match, if_absent=if_absent)
        except BaseException:
            with contextlib.suppress(StoreError):
                await self.abort_upload(key, upload_id)
            raise


def _reason(error: BaseException) -> str:
    """The cause, for people: the system's words where obstore's text quotes them, else the end of its first line. There
    are no credentials in either (they travel in headers)."""
    text = str(error)
    quoted = _SYSTEM_MESSAGE.search(text)
    return quoted[1] if quoted is not None else text.split("\n", 1)[0].rpartition(" - ")[2][:200]
