"""Listing a bucket for a version of it: pages of keys, with version ids where the bucket keeps versions.

A listing does not tell version ids, and a version that records them reads exactly those objects for ever. So the
first key is looked at: if it has a version id, the bucket keeps versions, and every key is looked up, many at once (about
a hundred times the requests of a listing, once, for a version that nobody can break). What was overwritten or
deleted between listing and look-up is taken as the look-up found it.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from ..tiers.understore import ListPage, ObjectInfo, UnderStore
from .task_group import plain_task_group

LOOK_UPS_AT_ONCE: Final = 128


async def bucket_pages(store: UnderStore, prefix: str) -> AsyncIterator[ListPage]:
    """All pages of the keys that start with `prefix`, in order. Raises what the store raises."""
    keeps_versions: bool | None = None
    token = None
    while True:
        page = await store.list_page(prefix, token=token)
        if keeps_versions is None and page.keys:
            first = await store.head(page.keys[0])
            keeps_versions = first is not None and first.version_id is not None
        yield await _looked_up(store, page) if keeps_versions else page
        token = page.next_token
        if token is None:
            return


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
