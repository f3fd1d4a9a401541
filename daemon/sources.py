"""SOURCE as users write it: a tree to look at (`View`) and the stores that its bytes come from.

    s3://bucket[/prefix], file:///dir, any URL that fsspec knows    a live bucket    live_source.py
    dataset@ref                                                     a snapshot       snapshot_source.py

This is the seam between the command line and the areas behind it: whatever is given as SOURCE to a mount, a prefetch or
a Python program is opened by `open_source` (opening.py), and a new kind of source is one more class beside these.
"""

import hashlib
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .. import config
from ..errors import UsageError
from ..fuse_mount.view import View
from ..tiers.stores import StoreOptions, open_store
from ..tiers.understore import UnderStore
from ..tiers.version import ObjectVersion

_DATASET = re.compile(r"[A-Za-z0-9][\w.-]*@[\w.^~-]+")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class SourceName:
    """What a source is called, found out without asking anybody. `text` is for people, `folder` names its cache folder."""

    text: str
    folder: str


class Source(Protocol):
    """An open source. Belongs to the event loop that opened it."""

    @property
    def name(self) -> SourceName: ...

    @property
    def view(self) -> View: ...

    @property
    def stores(self) -> Mapping[str, UnderStore]:
        """Every store that versions of this source may be in, by id."""
        ...

    async def version_of(self, path: str) -> ObjectVersion | None:
        """The content of the file at `path` now; None if there is none, or a folder."""
        ...

    def entries(self, folder: str) -> AsyncIterator[tuple[str, ObjectVersion]]:
        """(path, content) of every file below `folder` ("" for all). Raises ObjectNotFound if there is nothing."""
        ...

    def describe(self) -> dict[str, Any]:
        """What status and metrics show of it: numbers and texts, JSON-able."""
        ...

    async def close(self) -> None: ...


def name_of(text: str, settings: config.Settings) -> SourceName:
    """The name of a source; no I/O over the network. Raises UsageError if it can be none."""
    if is_dataset(text):
        dataset = text.partition("@")[0]
        # All versions of a dataset share one cache: that is what makes switching between them cheap.
        return SourceName(text, _folder_name(f"dataset-{dataset}", f"{settings.meta_url or ''}\0{dataset}"))
    if _PLAIN_NAME.fullmatch(text):
        raise UsageError(
            f"{text!r} is neither a URL nor a version of a dataset",
            remedy=f"write {text}@latest for its newest version",
        )
    store, prefix = open_store(text, store_options(settings))
    canonical = text.rstrip("/") if not text.endswith("://") else text
    return SourceName(canonical, _folder_name(canonical.replace("://", "-"), f"{store.id}\0{prefix}"))


def is_dataset(text: str) -> bool:
    return _DATASET.fullmatch(text) is not None


def store_options(settings: config.Settings) -> StoreOptions:
    """How the settings say that stores are reached."""
    return StoreOptions(
        endpoint_url=settings.endpoint_url,
        profile=settings.profile,
        anonymous=settings.anonymous,
        timeout_s=settings.io_timeout,
        max_connections=settings.max_connections,
    )


def _folder_name(readable: str, identity: str) -> str:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", readable).strip("-.")[:80]
    digest = hashlib.blake2b(identity.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
    return f"{stem}-{digest}"
