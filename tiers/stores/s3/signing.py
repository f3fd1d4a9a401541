"""AWS Signature Version 4 of one request, for S3.

Source: "Signature Calculations for the Authorization Header" in the Amazon S3 API reference. S3 differs from other
services: the path is encoded once and not normalised, so keys such as `a//b` and `a/../b` are signed as they are.
Written here, since botocore's signer costs ten times as much per request (it builds and copies request objects).
"""

import datetime
import functools
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from .login import Credentials

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


def encode_key(key: str) -> str:
    """A key as it stands in the path: each byte but unreserved characters and `/` percent-encoded."""
    return quote(key.encode("utf-8", "surrogateescape"), safe="/-_.~")


def encode_query(query: Sequence[tuple[str, str]]) -> str:
    """A canonical query string: encoded and sorted."""
    encoded = sorted(
        (quote(name, safe="-_.~"), quote(value.encode("utf-8", "surrogateescape"), safe="-_.~"))
        for name, value in query
    )
    return "&".join(f"{name}={value}" for name, value in encoded)


@functools.lru_cache(maxsize=8)
def _signing_key(credentials: Credentials, day: str, region: str) -> bytes:
    key = ("AWS4" + credentials.secret_key).encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def sign(
    credentials: Credentials,
    region: str,
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    payload_sha256: str,
    *,
    now: datetime.datetime | None = None,
) -> dict[str, str]:
    """All headers of the signed request. `headers` must have Host; `path` and `query` are encoded already."""
    time_stamp = (now or datetime.datetime.now(datetime.UTC)).strftime("%Y%m%dT%H%M%SZ")
    signed = {name.lower(): " ".join(value.split()) for name, value in headers.items()}
    signed["x-amz-date"] = time_stamp
    signed["x-amz-content-sha256"] = payload_sha256
    if credentials.token is not None:
        signed["x-amz-security-token"] = credentials.token
    names = sorted(signed)
    canonical_headers = "".join(f"{name}:{signed[name]}\n" for name in names)
    signed_names = ";".join(names)
    request = f"{method}\n{path}\n{query}\n{canonical_headers}\n{signed_names}\n{payload_sha256}"
    scope = f"{time_stamp[:8]}/{region}/s3/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{time_stamp}\n{scope}\n{digest}"
    signature = hmac.digest(_signing_key(credentials, time_stamp[:8], region), text.encode(), "sha256").hex()
    signed["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={signed_names}, Signature={signature}"
    )
    return signed
