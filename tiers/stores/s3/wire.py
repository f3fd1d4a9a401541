"""Signed HTTP requests to one bucket, for everything but the bulk of the data.

aiohttp sends the path exactly as it is encoded here, so every key can be reached (`a//b`, `a/../b`, a leading or
trailing slash), and a cancelled call is gone at once, which a client that runs in threads cannot offer. No redirect is
followed and nothing is retried here.
"""

import asyncio
import base64
import hashlib
import os
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from ....errors import BucketNotFound, ObjectChanged, ObjectNotFound, StoreDenied, StoreError, StoreUnavailable
from ...understore import Buffer
from .login import Credentials, Login
from .replies import error_code
from .signing import EMPTY_SHA256, encode_key, encode_query, sign

CONNECT_TIMEOUT_S = 5.0
STALL_TIMEOUT_S = 15.0
UPLOAD_PIECE_BYTES = 256 * 1024
IN_THREAD_ABOVE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete answer of the store; the status is 2xx or 304, or one that the caller said it understands."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


class Wire:
    """The HTTP client of one bucket. The connections are opened by the first request and closed by `close`."""

    def __init__(self, login: Login, *, max_connections: int) -> None:
        self._login = login
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    async def request(
        self,
        method: str,
        key: str | None,
        *,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        body: Buffer | None = None,
        understood: frozenset[int] = frozenset(),
    ) -> Reply:
        """One request for `key` (None: the bucket); its answer, or the error that its status stands for.

        Raises StoreUnavailable for all that is worth another try, and StoreDenied, BucketNotFound, ObjectNotFound,
        ObjectChanged by status and S3 error code. A body that ends early is StoreUnavailable.
        """
        credentials = await self._login.credentials()
        reply = await self._send(credentials, method, key, query, headers or {}, body)
        if reply.status in (301, 307, 400, 403) and await self._corrected(reply, credentials):
            reply = await self._send(await self._login.credentials(), method, key, query, headers or {}, body)
        if 200 <= reply.status < 300 or reply.status in understood:
            return reply
        raise self._sorted(reply, key)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _send(
        self,
        credentials: Credentials | None,
        method: str,
        key: str | None,
        query: Sequence[tuple[str, str]],
        headers: Mapping[str, str],
        body: Buffer | None,
    ) -> Reply:
        place = self._login.place
        path = place.base_path + ("/" + encode_key(key) if key is not None else "") or "/"
        query_text = encode_query(query)
        sent = {"Host": place.host, **headers}
        if body is not None:
            sent["Content-Length"] = str(len(body))
        if credentials is not None:
            payload_sha256 = EMPTY_SHA256 if body is None else await _sha256(body)
            sent = sign(credentials, self._login.region, method, path, query_text, sent, payload_sha256)
        elif body is not None:
            sent["Content-MD5"] = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()
        url = URL(f"{place.scheme}://{place.host}{path}{'?' + query_text if query_text else ''}", encoded=True)
        try:
            async with self._open().request(
                method, url, headers=sent, data=_pieces(body) if body else None, allow_redirects=False
            ) as response:
                return Reply(response.status, response.headers, await response.read())
        except aiohttp.ClientPayloadError as error:
            raise StoreUnavailable("the answer ended early") from error
        except TimeoutError as error:
            raise StoreUnavailable("no answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _unreachable(error) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._max_connections, ttl_dns_cache=60, ssl=self._trust()),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=STALL_TIMEOUT_S),
                auto_decompress=False,
                skip_auto_headers=("Accept-Encoding", "Content-Type"),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=True,
            )
            # By itself aiohttp repeats a PUT or DELETE after a kept connection broke, unseen. A conditional write must
            # know of each repetition, since it may meet itself; a test would notice if this were to lose its effect.
            self._session._retry_connection = False
        return self._session

    def _trust(self) -> ssl.SSLContext | bool:
        """Whose certificates are believed: the system's, or those of the bundle that AWS settings name."""
        bundle = self._login.ca_bundle
        return ssl.create_default_context(cafile=bundle) if bundle is not None else True

    async def _corrected(self, reply: Reply, credentials: Credentials | None) -> bool:
        """Whether another region, or other credentials, were found that make it worth sending the request again."""
        region = reply.headers.get("x-amz-bucket-region") or error_code(reply.body, "Region")
        if region and region != self._login.region and not self._login.region_is_known:
            self._login.region = region
            self._login.region_is_known = True
            return True
        code = error_code(reply.body)
        if reply.status == 403 or code in ("ExpiredToken", "InvalidToken"):
            return await self._login.renew(credentials)
        return False

    def _sorted(self, reply: Reply, key: str | None) -> StoreError:
        """The error for a status that is no success. HEAD answers have no body, so the status alone must do."""
        code = error_code(reply.body) or f"HTTP {reply.status}"
        store = self._login.store_id
        if code == "NoSuchBucket" or (reply.status == 404 and key is None):
            return BucketNotFound(f"{store}: no such bucket", remedy="check the name and the endpoint")
        if reply.status == 404:
            return ObjectNotFound(f"{store}: no object {key!r}")
        if reply.status in (409, 412) and code in ("PreconditionFailed", "ConditionalRequestConflict", "HTTP 412"):
            return ObjectChanged(f"{store}: {key!r} is not the version asked for")
        if code == "RequestTimeTooSkewed":
            return StoreDenied(f"{store}: denied, the clocks differ too much", remedy="set the clock of this host")
        if reply.status in (401, 403) or code in ("ExpiredToken", "InvalidToken"):
            return StoreDenied(f"{store}: denied ({code})", remedy="check the credentials and their permissions")
        if reply.status in (301, 307):
            return StoreDenied(
                f"{store}: the bucket is in another region than {self._login.region}", remedy="set AWS_REGION, or none"
            )
        if (
            reply.status in (408, 409, 429)
            or reply.status >= 500
            or code in ("RequestTimeout", "IncompleteBody", "BadDigest")
        ):
            return StoreUnavailable(f"answered {reply.status} ({code})")
        return StoreError(f"{store}: request for {key!r} refused: {reply.status} ({code})")


async def _sha256(body: Buffer) -> str:
    if len(body) <= IN_THREAD_ABOVE_BYTES:
        return hashlib.sha256(body).hexdigest()
    return await asyncio.to_thread(lambda: hashlib.sha256(body).hexdigest())


async def _pieces(body: Buffer) -> AsyncIterator[memoryview]:
    view = memoryview(body).cast("B")
    for start in range(0, len(view), UPLOAD_PIECE_BYTES):
        yield view[start : start + UPLOAD_PIECE_BYTES]


def _unreachable(error: BaseException) -> StoreUnavailable:
    """What a person can use: the system's words where there are some, else the class."""
    remedy = None
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        reason, remedy = f"the host {error.host!r} is not known", "check the endpoint"
    elif isinstance(error, aiohttp.ClientConnectorCertificateError):
        reason, remedy = (
            f"its certificate is not trusted ({error.certificate_error})",
            "set AWS_CA_BUNDLE to its authority",
        )
    elif isinstance(error, OSError) and error.errno:
        reason = os.strerror(error.errno)
        if isinstance(error, aiohttp.ClientConnectorError):
            remedy = f"check that a server listens at {error.host}:{error.port}"
    else:
        reason = str(error) or type(error).__name__
    return StoreUnavailable(reason, remedy=remedy)
