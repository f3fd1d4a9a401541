"""How an under store is reached: what a user may say about it, checked once."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from ...errors import UsageError


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """Options common to all under stores. Those that a store has no use for are ignored by it.

    `timeout_s` is the deadline of one call with all its retries. `max_connections` bounds the requests in flight.
    `profile`, `region` and `endpoint_url` override what the AWS environment and config files say. `anonymous` sends
    unsigned requests. `verify_content` compares the MD5 of objects fetched whole with their etag, where the etag is one.
    """

    endpoint_url: str | None = None
    profile: str | None = None
    region: str | None = None
    anonymous: bool = False
    timeout_s: float = 30.0
    max_connections: int = 64
    verify_content: bool = True

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise UsageError(f"I/O timeout of {self.timeout_s} s", remedy="give a time above zero")
        if self.max_connections < 1:
            raise UsageError(f"{self.max_connections} connections to the store", remedy="allow at least one")
        if self.endpoint_url is not None:
            check_endpoint(self.endpoint_url)


def check_endpoint(url: str) -> None:
    """Refuse an endpoint that is no plain `http(s)://host[:port]`; raises UsageError."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise UsageError(f"endpoint URL {without_secrets(url)!r} is not usable", remedy="write http(s)://host[:port]")
    if parts.username is not None or parts.password is not None:
        raise UsageError(
            f"endpoint URL {without_secrets(url)!r} carries credentials",
            remedy="give them by the AWS environment variables or a profile",
        )


def without_secrets(url: str) -> str:
    """The URL for messages: user, password and query are left out."""
    head, separator, rest = url.partition("://")
    rest = rest.split("?", 1)[0]
    authority, slash, path = rest.partition("/")
    return f"{head}{separator}{authority.rpartition('@')[2]}{slash}{path}"
