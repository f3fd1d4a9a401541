"""Listing a bucket for a version of it: pages of keys, with version ids where the bucket keeps versions.

A version that records version ids reads exactly those objects for ever. Plain listings do not tell them, so the first key is looked
at: if it has a version id, the bucket keeps versions, and is listed by version instead. Where the credentials do not
allow that (`s3:ListBucketVersions` is a permission of its own), or the server cannot, every key of a plain listing is looked up, many at
once: about a thousand times the requests. What was overwritten or deleted in between is taken as the look-up found it.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Final

from ..errors import StoreDenied, StoreError, StoreUnavailable
from ..tiers.understore import ListPage, ObjectInfo, UnderStore, VersioningStore
from .task_group import plain_task_group

LOOK_UPS_AT_ONCE: Final = 128

logger = logging.getLogger(__name__)


async def bucket_pages(store: UnderStore, prefix: str) -> AsyncIterator[ListPage]:
    """All pages of the keys that start with `prefix`, in order. Raises what the store raises."""
    page = await store.list_page(prefix)
    keeps_versions = await _keeps_versions(store, page)
    if keeps_versions and isinstance(store, VersioningStore):
        first = await _first_version_page(store, prefix)
        if first is not None:
            yield first
            token = first.next_token
            while token is not None:
                page = await store.list_version_page(prefix, token=token)
                token = page.next_token
                yield page
            return
    while True:
        yield await _looked_up(store, page) if keeps_versions else page
        if page.next_token is None:
            return
        page = await store.list_page(prefix, token=page.next_token)


async def _keeps_versions(store: UnderStore, page: ListPage) -> bool:
    """By the first key of the page that is still there."""
    for key in page.keys:
        info = await store.head(key)
        if info is not None:
            return info.version_id is not None
    return False


async def _first_version_page(store: VersioningStore, prefix: str) -> ListPage | None:
    """None where listing by version is refused."""
    try:
        return await store.list_version_page(prefix)
    except StoreUnavailable:
        raise
    except StoreError as error:
        needed = " (s3:ListBucketVersions)" if isinstance(error, StoreDenied) else ""
        logger.warning("cannot list by version%s, so each object is looked up, which takes longer: %s", needed, error)
        return None


async def _looked_up(store: UnderStore, page: ListPage) -> ListPage:
    free = asyncio.Semaphore(LOOK_UPS_AT_ONCE)
    found: list[ObjectInfo | None] = [None] * len(page.keys)

    async def look_up(at: int, key: str) -> None:
        async with free:
            found[at] = await store.head(key)

    async with plain_task_group() as tasks:
        for at, key in enumerate(page.keys):
            tasks.create_task(look_up(at, key))
    there = [info for info in found if info is not None]
    return ListPage(
        keys=[info.key for info in there],
        sizes=[info.size for info in there],
        etags=[info.etag for info in there],
        mtimes_ns=[info.mtime_ns for info in there],
        prefixes=page.prefixes,
        next_token=page.next_token,
        version_ids=[info.version_id for info in there],
    )
