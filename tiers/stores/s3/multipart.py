"""Multipart uploads of S3: `MultipartStore` on top of the signed requests."""

import hashlib
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from ....errors import ObjectChanged, ObjectNotFound, StoreCorrupt, StoreError, StoreUnavailable
from ...understore import Buffer, ObjectInfo, PendingUpload, UploadedPart
from ...version import ObjectVersion
from ..calls import Calls
from .headers import condition_headers, copy_headers, info_of, metadata_headers, written_info
from .listing import parse_time_ns, plain_etag
from .login import Login
from .replies import error_code, parse, parts_request, text_of
from .wire import Reply, Wire

_PASSING_CODES = ("InternalError", "SlowDown", "ServiceUnavailable", "RequestTimeout", "OperationAborted")


class S3Multipart:
    """The multipart half of `S3Store`, which provides the rest."""

    _login: Login
    _wire: Wire
    _calls: Calls

    async def create_upload(self, key: str, *, metadata: Mapping[str, str] | None = None) -> str:
        headers = metadata_headers(metadata or {})
        unsure = False

        async def attempt() -> str:
            nonlocal unsure
            try:
                reply = await self._wire.request("POST", key, query=(("uploads", ""),), headers=headers)
                return text_of(parse(reply.body, "InitiateMultipartUploadResult"), "UploadId")
            except (StoreUnavailable, StoreCorrupt):
                unsure = True
                raise

        upload_id = await self._calls.run("multipart", f"begin of an upload of {key!r}", attempt)
        if unsure:
            await self._abort_forgotten(key, upload_id)
        return upload_id

    async def _abort_forgotten(self, key: str, upload_id: str) -> None:
        """Abort what earlier attempts began before their answers were lost: uploads of the key just older than ours."""
        uploads = [upload for upload in await self.list_uploads(key) if upload.key == key]
        ours_ns = next((upload.initiated_ns for upload in uploads if upload.upload_id == upload_id), 0)
        for upload in uploads:
            age_ns = ours_ns - upload.initiated_ns
            if upload.upload_id != upload_id and 0 <= age_ns <= self._calls.timeout_s * 1e9:
                await self.abort_upload(key, upload.upload_id)

    async def upload_part(self, key: str, upload_id: str, number: int, data: Buffer) -> UploadedPart:
        query = (("partNumber", str(number)), ("uploadId", upload_id))

        async def attempt() -> UploadedPart:
            reply = await self._wire.request("PUT", key, query=query, body=data)
            etag = plain_etag(reply.headers.get("ETag", ""))
            if not etag:
                raise StoreCorrupt(f"{self._login.store_id}: no etag for a part of {key!r}")
            return UploadedPart(number, etag, len(data))

        part = await self._calls.run("put", f"upload of part {number} of {key!r}", attempt)
        self._calls.counters.bytes_written += len(data)
        return part

    async def copy_part(
        self, key: str, upload_id: str, number: int, source: ObjectVersion, offset: int, size: int
    ) -> UploadedPart:
        query = (("partNumber", str(number)), ("uploadId", upload_id))
        headers = {
            **copy_headers(self._login.store_id, source),
            "x-amz-copy-source-range": f"bytes={offset}-{offset + size - 1}",
        }

        async def attempt() -> UploadedPart:
            reply = await self._wire.request("PUT", key, query=query, headers=headers)
            return UploadedPart(number, plain_etag(text_of(result_of(reply, "CopyPartResult"), "ETag")), size)

        return await self._calls.run("copy", f"copy of {source.key!r} to part {number} of {key!r}", attempt)

    async def complete_upload(
        self,
        key: str,
        upload_id: str,
        parts: Sequence[UploadedPart],
        *,
        if_match: str | None = None,
        if_absent: bool = False,
    ) -> ObjectInfo:
        body = parts_request([(part.number, part.etag) for part in parts])
        size = sum(part.size for part in parts)
        unsure = False

        async def attempt() -> ObjectInfo:
            nonlocal unsure
            try:
                reply = await self._wire.request(
                    "POST",
                    key,
                    query=(("uploadId", upload_id),),
                    headers=condition_headers(if_match, if_absent),
                    body=body,
                )
                etag = plain_etag(text_of(result_of(reply, "CompleteMultipartUploadResult"), "ETag"))
                return written_info(key, size, etag, reply.headers, {})
            except (StoreUnavailable, StoreCorrupt):
                unsure = True
                raise
            except (ObjectNotFound, ObjectChanged) as error:
                if not unsure:
                    raise
                # Perhaps an earlier attempt was applied, and only its answer was lost.
                present = await head_now(self._wire, key)
                if present is not None and present.size == size and present.etag == etag_of_parts(parts):
                    return present
                raise StoreUnavailable(f"it is not known whether an attempt was applied ({error.message})") from error

        return await self._calls.run("multipart", f"completion of an upload of {key!r}", attempt)

    async def abort_upload(self, key: str, upload_id: str) -> None:
        async def attempt() -> None:
            await self._wire.request("DELETE", key, query=(("uploadId", upload_id),), understood=frozenset({404}))

        await self._calls.run("multipart", f"abort of an upload of {key!r}", attempt)

    async def list_uploads(self, prefix: str) -> Sequence[PendingUpload]:
        uploads: list[PendingUpload] = []
        marker: list[tuple[str, str]] = []
        while True:
            query = [("uploads", ""), ("prefix", prefix), *marker]

            async def attempt(query: Sequence[tuple[str, str]] = tuple(query)) -> Reply:
                return await self._wire.request("GET", None, query=query)

            reply = await self._calls.run("multipart", f"listing of the uploads under {prefix!r}", attempt)
            root = parse(reply.body, "ListMultipartUploadsResult")
            for item in root.findall("Upload"):
                begun = item.findtext("Initiated")
                key = text_of(item, "Key")
                if key.startswith(prefix):
                    uploads.append(PendingUpload(key, text_of(item, "UploadId"), parse_time_ns(begun) if begun else 0))
            if (root.findtext("IsTruncated") or "").strip() != "true":
                return uploads
            marker = [("key-marker", text_of(root, "NextKeyMarker"))]
            if upload_id := root.findtext("NextUploadIdMarker"):
                marker.append(("upload-id-marker", upload_id))


async def head_now(wire: Wire, key: str, version_id: str | None = None) -> ObjectInfo | None:
    """What is under the key, asked once."""
    query = (("versionId", version_id),) if version_id is not None else ()
    try:
        return info_of(key, (await wire.request("HEAD", key, query=query)).headers)
    except ObjectNotFound:
        return None


def result_of(reply: Reply, expected: str) -> ElementTree.Element:
    """The root of a result; S3 may answer 200 and then say in the body that it failed."""
    code = error_code(reply.body)
    if code is None:
        return parse(reply.body, expected)
    if code in _PASSING_CODES:
        raise StoreUnavailable(f"answered {code}")
    if code in ("PreconditionFailed", "ConditionalRequestConflict"):
        raise ObjectChanged("the object is not the version asked for")
    raise StoreError(f"the store refused with {code}")


def etag_of_parts(parts: Sequence[UploadedPart]) -> str | None:
    """The etag that S3 gives to an object made of these parts; None when the parts' etags are no MD5s."""
    try:
        joined = b"".join(bytes.fromhex(part.etag) for part in parts)
    except ValueError:
        return None
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(parts)}"
