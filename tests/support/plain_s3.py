"""An S3 server in memory that takes any key at all, as Amazon's does; SeaweedFS cleans or refuses odd ones.

    async with plain_s3({"a//b": b"...", "a/../b": b"..."}) as server:
        store, _ = open_store("s3://bucket", StoreOptions(endpoint_url=server.url))

Listing (V2, with delimiter and pages), HEAD, GET with ranges and conditions, PUT, DELETE. It compares the signature of
each signed request with what botocore makes of it, so it is also the test of our signing.
"""

import contextlib
import hashlib
import html
import ssl
import urllib.parse
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

import botocore.auth
import botocore.awsrequest
import botocore.credentials
from aiohttp import web

ACCESS_KEY, SECRET_KEY = "plain-access", "plain-secret"


@dataclass
class PlainS3:
    """The running server. `bad_signatures` lists requests whose signature was wrong; they are refused."""

    url: str
    objects: dict[str, bytes]
    region: str = "us-east-1"
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    token: str | None = None
    page_entries: int = 1000
    bad_signatures: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append(f"{request.method} {request.raw_path}")
        if f"/{self.region}/s3/" not in request.headers.get("Authorization", f"/{self.region}/s3/"):
            return _error(301, "PermanentRedirect", {"x-amz-bucket-region": self.region})
        if "Authorization" in request.headers and not self._is_signed_right(request):
            self.bad_signatures.append(f"{request.method} {request.raw_path}")
            return _error(403, "SignatureDoesNotMatch")
        path, _, query = request.raw_path.partition("?")
        _, _, encoded_key = path.removeprefix("/").partition("/")
        key = urllib.parse.unquote(encoded_key, errors="surrogateescape")
        if not key:
            return self._list(dict(urllib.parse.parse_qsl(query, keep_blank_values=True, errors="surrogateescape")))
        if request.method == "PUT":
            self.objects[key] = body
            return web.Response(headers={"ETag": _etag(body)})
        if request.method == "DELETE":
            self.objects.pop(key, None)
            return web.Response(status=204)
        data = self.objects.get(key)
        if data is None:
            return _error(404, "NoSuchKey")
        if request.headers.get("If-Match", _etag(data)) != _etag(data):
            return _error(412, "PreconditionFailed")
        headers = {"ETag": _etag(data), "Last-Modified": "Tue, 24 Nov 2026 09:59:25 GMT"}
        if request.method == "HEAD":
            return web.Response(headers={**headers, "Content-Length": str(len(data))})
        part = request.http_range
        if part.start is None:
            return web.Response(body=data, headers=headers)
        start, stop = part.start, min(part.stop or len(data), len(data))
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return web.Response(status=206, body=data[start:stop], headers=headers)

    def _list(self, query: Mapping[str, str]) -> web.Response:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        limit = min(int(query.get("max-keys", "1000")), self.page_entries)
        names: dict[str, bool] = {}
        for key in self.objects:
            if key.startswith(prefix):
                head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key[len(prefix) :], "", "")
                names[prefix + head + found] = bool(found)
        ordered = sorted(names, key=lambda name: name.encode("utf-8", "surrogateescape"))
        first = int(query.get("continuation-token", "0"))
        shown = ordered[first : first + limit]
        goes_on = first + limit < len(ordered)
        parts = [f"<IsTruncated>{str(goes_on).lower()}</IsTruncated><EncodingType>url</EncodingType>"]
        if goes_on:
            parts.append(f"<NextContinuationToken>{first + limit}</NextContinuationToken>")
        for name in shown:
            encoded = urllib.parse.quote(name.encode("utf-8", "surrogateescape"), safe="/")
            if names[name]:
                parts.append(f"<CommonPrefixes><Prefix>{encoded}</Prefix></CommonPrefixes>")
                continue
            data = self.objects[name]
            parts.append(
                f"<Contents><Key>{encoded}</Key><LastModified>2026-11-24T09:59:25.000Z</LastModified>"
                f"<ETag>{html.escape(_etag(data))}</ETag><Size>{len(data)}</Size></Contents>"
            )
        text = (
            f'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{"".join(parts)}'
        )
        return web.Response(text=text + "</ListBucketResult>", content_type="application/xml")

    def _is_signed_right(self, request: web.Request) -> bool:
        given = request.headers["Authorization"]
        if f"Credential={self.access_key}/" not in given or request.headers.get("x-amz-security-token") != self.token:
            return False
        names = given.partition("SignedHeaders=")[2].partition(",")[0].split(";")
        credentials = botocore.credentials.Credentials(self.access_key, self.secret_key)
        auth = botocore.auth.S3SigV4Auth(credentials, "s3", self.region)
        headers = {name: request.headers[name] for name in names}
        same = botocore.awsrequest.AWSRequest(request.method, self.url + request.raw_path, headers=headers)
        same.context["timestamp"] = request.headers["x-amz-date"]
        signature = auth.signature(auth.string_to_sign(same, auth.canonical_request(same)), same)
        return given.endswith(f"Signature={signature}")


@contextlib.asynccontextmanager
async def plain_s3(objects: Mapping[str, bytes], *, tls: ssl.SSLContext | None = None) -> AsyncIterator[PlainS3]:
    """The server on a free port, in the event loop of the test; with `tls` by https at `localhost`."""
    server = PlainS3("", dict(objects))
    runner = web.ServerRunner(web.Server(server.handle))  # type: ignore[arg-type]
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
        await site.start()
        host, port = runner.addresses[0][:2]
        server.url = f"http://{host}:{port}" if tls is None else f"https://localhost:{port}"
        yield server
    finally:
        await runner.cleanup()


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _error(status: int, code: str, headers: Mapping[str, str] | None = None) -> web.Response:
    text = f"<Error><Code>{code}</Code></Error>"
    return web.Response(status=status, text=text, content_type="application/xml", headers=headers)
