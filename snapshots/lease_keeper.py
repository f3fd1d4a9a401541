"""Keeping a lease alive while something uses a version: a mount, a job, a long command.

    async with keep_lease(meta, dataset="photos", commit=commit_id, purpose="mount", what="mount of /data", ttl_s=900) as lease:
        ...

The lease is renewed three times in its life, so two renewals may fail before it expires. What can go wrong:

    the metadata store is away        tried again at the next turn and logged once; whoever holds the lease goes on
    the lease expired meanwhile       (a suspended machine, a long outage) it is taken anew, and logged: gc may have run
    the process is killed             the lease expires by itself after `ttl_s`

Losing a lease does not end a mount: its tree is a local copy, and gc never deletes objects of a bucket.
"""

import asyncio
import getpass
import logging
import os
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from ..errors import MetadataUnavailable
from .metastore import CommitId, LeaseRecord, MetaStore

log = logging.getLogger(__name__)

LEASE_TTL_S: Final = 900.0


def new_lease(
    *, dataset: str, commit: CommitId | None, purpose: str, what: str, owner: str | None = None
) -> LeaseRecord:
    """A lease of this process, not stored yet. `owner` is the user's name unless given."""
    return LeaseRecord(
        id=uuid.uuid4().hex,
        dataset=dataset,
        commit=commit,
        purpose=purpose,
        what=what,
        owner=owner or user_name(),
        host=socket.gethostname(),
        pid=os.getpid(),
    )


def user_name() -> str:
    """The name of the user, or the number where there is no name (as in many containers)."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


@asynccontextmanager
async def keep_lease(
    meta: MetaStore,
    *,
    dataset: str,
    commit: CommitId | None,
    purpose: str,
    what: str,
    owner: str | None = None,
    ttl_s: float = LEASE_TTL_S,
) -> AsyncIterator[LeaseRecord]:
    """Hold a lease while inside. Raises MetadataUnavailable if it cannot be had; leaving drops it if the store answers."""
    wanted = new_lease(dataset=dataset, commit=commit, purpose=purpose, what=what, owner=owner)
    lease = await asyncio.to_thread(meta.put_lease, wanted, ttl_s)
    renewing = asyncio.create_task(_renew(meta, lease, ttl_s), name=f"renew lease {lease.id}")
    try:
        yield lease
    finally:
        renewing.cancel()
        await asyncio.wait({renewing})
        try:
            await asyncio.to_thread(meta.drop_lease, lease.id)
        except MetadataUnavailable as error:
            log.warning("the lease of %s is left to expire: %s", lease.what, error)


async def _renew(meta: MetaStore, lease: LeaseRecord, ttl_s: float) -> None:
    failing = False
    while True:
        await asyncio.sleep(ttl_s / 3)
        try:
            if not await asyncio.to_thread(meta.renew_lease, lease.id, ttl_s):
                await asyncio.to_thread(meta.put_lease, lease, ttl_s)
                log.warning(
                    "the lease of %s on %s had expired and was taken anew; gc may have run meanwhile",
                    lease.what,
                    lease.dataset,
                )
            failing = False
        except MetadataUnavailable as error:
            if not failing:
                log.warning("the lease of %s could not be renewed, trying again: %s", lease.what, error)
            failing = True
