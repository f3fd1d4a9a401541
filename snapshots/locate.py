"""From the URL of a manifest line to the object: which store, which key.

The library opens no stores and knows no endpoints, so it asks a `Locator` once per bucket it meets and cuts all URLs that
begin like the one it asked about in one vectorised step. `s3://bucket/key` and `file:///folder/key` are understood
without one; `http(s)://` URLs are only ever located by the caller, who knows its endpoints.
"""

import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_NO_END = 1 << 30


@dataclass(frozen=True, slots=True)
class Location:
    """URLs that start with `url_prefix` are objects of `store` (an `ObjectVersion.store`), their key is the rest.

    `percent_encoded`: the rest is decoded as in HTTP URLs. `key_prefix` goes in front of the key.
    """

    store: str
    url_prefix: str
    key_prefix: str = ""
    percent_encoded: bool = False


# Given a URL, says where it belongs; None when it is not known.
Locator: TypeAlias = Callable[[str], Location | None]


def default_locator(url: str) -> Location | None:
    """`s3://bucket/...` is of the store `s3://bucket`; everything else is unknown."""
    scheme, separator, rest = url.partition("://")
    if separator and scheme == "s3" and "/" in rest and not rest.startswith("/"):
        store = f"s3://{rest.partition('/')[0]}"
        return Location(store, store + "/")
    return None


def url_of(store: str, key: str) -> str:
    """A URL that `default_locator`, or the locator of a caller that knows the endpoint, turns into the key again."""
    return f"{store_url(store)}/{key}"


def store_url(store: str) -> str:
    """The store's URL without its endpoint."""
    return store.partition("@")[0] if store.startswith("s3://") else store


class UrlMap:
    """Locates whole columns of URLs. Locations are remembered, at most MAX_LOCATIONS of them."""

    MAX_LOCATIONS = 1024

    def __init__(self, locator: Locator | None = None, base: Location | None = None) -> None:
        self._locator = locator
        self._base = base
        self._known: list[Location] = []

    def locate(self, urls: pa.Array) -> tuple[pa.Array, pa.Array, list[tuple[int, str]]]:
        """(stores, keys, faults as (row, reason)); rows with faults are null in both columns."""
        count = len(urls)
        stores: list[str | None] = []
        code = np.full(count, -1, np.int32)
        keys = urls
        faults: list[tuple[int, str]] = []
        has_scheme = np.asarray(pc.match_substring(urls, "://"))
        left = np.ones(count, np.bool_)
        candidates = iter(list(self._known))
        while left.any():
            known = next(candidates, None)
            row = int(np.argmax(left))
            location = known or self._ask(urls[row].as_py(), bool(has_scheme[row]))
            if isinstance(location, str):
                faults.append((row, location))
                left[row] = False
                continue
            mine = left & (
                np.asarray(pc.starts_with(urls, location.url_prefix)) if location.url_prefix else ~has_scheme
            )
            if not mine.any():
                continue
            keys = _cut(keys, mine, location)
            code[mine] = len(stores)
            stores.append(location.store)
            left &= ~mine
        values = pa.array([*stores, None], pa.string())
        located = code >= 0
        codes = pa.array(np.where(located, code, len(stores)))
        keys = pc.if_else(pa.array(located), keys, pa.scalar(None, pa.string()))
        empty = np.flatnonzero(np.asarray(pc.fill_null(pc.equal(keys, ""), False)))
        faults += [(row, f"the URL {urls[row].as_py()!r} names no object") for row in empty.tolist()]
        return values.take(codes), keys, faults

    def _ask(self, url: str, has_scheme: bool) -> Location | str:
        """The location, remembered; or why there is none."""
        if not has_scheme:
            if self._base is None:
                return f"{url[:200]!r} is a key, and no bucket was given that it is in"
            return Location(self._base.store, "", self._base.key_prefix)
        location = (self._locator(url) if self._locator else None) or default_locator(url)
        if location is None or not url.startswith(location.url_prefix):
            return f"{without_secrets(url)!r} is of no store that is known here"
        if len(self._known) < self.MAX_LOCATIONS:
            self._known.append(location)
        return location


def without_secrets(url: str) -> str:
    """The URL, short, without user, password and query (where signatures are)."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"[:200]


def _cut(keys: pa.Array, mine: "np.ndarray[tuple[int], np.dtype[np.bool_]]", location: Location) -> pa.Array:
    mask = pa.array(mine)
    if location.percent_encoded:
        size = len(location.url_prefix)
        decoded = [
            _decoded(url[size:], location.key_prefix) if is_mine else url
            for url, is_mine in zip(keys.to_pylist(), mine.tolist(), strict=True)
        ]
        return pa.array(decoded, pa.string())
    rest = keys
    if location.url_prefix:
        # An end must be given: without one, Arrow fails on prefixes longer than some of the texts.
        cut = pc.binary_slice(keys.cast(pa.binary()), len(location.url_prefix.encode()), _NO_END)
        rest = cut.cast(pa.string()) if mine.all() else pc.if_else(mask, cut, keys.cast(pa.binary())).cast(pa.string())
    if location.key_prefix:
        joined = pc.binary_join_element_wise(pa.scalar(location.key_prefix), rest, "")
        return pc.if_else(mask, joined, keys)
    return rest


def _decoded(rest: str, key_prefix: str) -> str:
    """The key in the path of an HTTP URL, without query and fragment; empty (no object) when it is no UTF-8."""
    path = rest.partition("#")[0].partition("?")[0]
    try:
        key = urllib.parse.unquote(path, errors="strict")
    except UnicodeDecodeError:
        return ""
    return key_prefix + key if key else ""
