"""A mount from beginning to end: mountpoint, transport, read-ahead; unmounted cleanly, lazily or by force.

    async with await mount(view, cache, "/mnt/data", source="s3://bucket", options=MountOptions()) as mounted:
        await mounted.wait_unmounted()

Leaving unmounts. A busy mount is detached first: its name goes at once, and it is served on until the last file is closed
or the grace time is over; then it is aborted, and whoever still reads gets an error instead of a wait.
"""

import asyncio
import contextlib
import errno
import logging
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from ..errors import MountError, NotMounted
from ..tiers.version import ObjectVersion
from .boundary import Boundary
from .mount_table import mounted_at
from .mountpoint import abort, attach, detach, prepare, raise_read_ahead
from .options import MountOptions
from .parts import Kit, Parts
from .reads import BlockReads, FileReads
from .transport import READ_ONLY, LaneTransport, Pyfuse3Transport, Transport
from .view import View
from .xattrs import CacheFacts, Xattrs

log = logging.getLogger(__name__)

GRACE_S = 20.0
_ABORTED_WAIT_S = 10.0
# The interpreter lets a thread that computes keep others waiting for this long. Beside one such thread, random reads went
# at 4,000 a second with the default of 5 ms, and at 8,000 to 14,000 with this.
SWITCH_INTERVAL_S = 0.0001


@dataclass(frozen=True)
class MountStatus:
    """What `forebay status` shows of a mount. `notes` are things that make it slower or different than it could be."""

    mountpoint: str
    source: str
    transport: str
    notes: tuple[str, ...]
    gauges: Mapping[str, int]
    errors: Mapping[str, int]


class Mount:
    """A mount that serves. Made by `mount`; an async context manager that unmounts when left."""

    def __init__(
        self, path: str, source: str, device: tuple[int, int], transport: Transport, boundary: Boundary
    ) -> None:
        self.mountpoint = path
        self.source = source
        self._device = device
        self._transport = transport
        self._boundary = boundary
        # Things that make the mount slower or different than it could be.
        self.notes: list[str] = []
        self._leaving: asyncio.Future[None] | None = None

    @property
    def transport(self) -> str:
        return self._transport.name

    def status(self) -> MountStatus:
        return MountStatus(
            self.mountpoint,
            self.source,
            self.transport,
            tuple(self.notes),
            dict(self._transport.gauges()),
            dict(self._boundary.errors),
        )

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Make the kernel ask again for a name. Never call it from within the answer to a request of that folder."""
        self._transport.invalidate_entry(parent, name)

    async def wait_unmounted(self) -> None:
        """Return when the mount is gone, whoever removed it."""
        await asyncio.shield(self._transport.ended)

    async def unmount(self, *, grace_s: float = GRACE_S) -> None:
        """Unmount and close. A busy mount is detached and served on for at most `grace_s`, then aborted.

        Whoever calls it again waits for the same end. It goes on when a caller is cancelled.
        """
        if self._leaving is None:
            self._leaving = asyncio.ensure_future(self._unmount(grace_s))
        await asyncio.shield(self._leaving)

    async def _unmount(self, grace_s: float) -> None:
        ended = self._transport.ended
        # Also when serving has ended: if it broke off, the mount is still in the table, and dead.
        busy = await self._detach()
        await asyncio.wait({ended}, timeout=grace_s if busy else _ABORTED_WAIT_S)
        if not ended.done():
            log.warning("%s is still in use; aborting it", self.mountpoint)
            await self.abort()
            await asyncio.wait({ended}, timeout=_ABORTED_WAIT_S)
        await self._transport.close()
        if ended.done():
            ended.result()

    async def abort(self) -> None:
        await asyncio.to_thread(abort, self._device[1])
        self._transport.give_up()

    async def _detach(self) -> bool:
        """Take the mount out of the table; True if it was busy and lives on without a name."""
        entry = mounted_at(self.mountpoint)
        if entry is None or entry.device != self._device:
            # Unmounted by others, lazily it seems; or something was mounted on top, and that is not ours to remove.
            return True
        try:
            await asyncio.to_thread(detach, self.mountpoint, patience_s=0.0)
        except NotMounted:
            return False
        except MountError as error:
            log.info("%s; it is detached, and served until the last user is gone", error.message)
            with contextlib.suppress(NotMounted):
                await asyncio.to_thread(detach, self.mountpoint, lazy=True)
            return True
        return False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.unmount()


def no_facts(version: ObjectVersion) -> Mapping[str, str]:
    """For mounts whose cache does not tell what it holds."""
    return {}


async def mount(
    view: View,
    cache: BlockReads,
    mountpoint: str | os.PathLike[str],
    *,
    source: str,
    options: MountOptions,
    facts: CacheFacts = no_facts,
    kit: Kit = READ_ONLY,
) -> Mount:
    """Mount and return when it serves. Raises MountError (nothing stays mounted) with the reason.

    `source` is shown in the mount table. `facts` gives the cache's `user.forebay.*` attributes of a version. `kit` says
    which operations the mount has.
    """
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL_S))
    path = await asyncio.to_thread(prepare, mountpoint, options)
    boundary = Boundary(lambda ino: "/" + os.fsdecode(view.path(ino)))
    parts = Parts(view, FileReads(view, cache, options.io_timeout_s), Xattrs(view, facts), boundary, options)
    if options.transport == "pyfuse3":
        return await _serve_with(Pyfuse3Transport, parts, kit, path, source)
    try:
        return await _serve_with(LaneTransport, parts, kit, path, source)
    except OSError as error:
        if options.transport == "lane" or error.errno != errno.EPROTO:
            raise MountError(f"{source} cannot be served on {path}: {error.strerror or error}") from error
        reason = f"served through libfuse, slower: {error.strerror}"
    log.warning("%s: %s", path, reason)
    mounted = await _serve_with(Pyfuse3Transport, parts, kit, path, source)
    mounted.notes.append(reason)
    return mounted


async def _serve_with(
    kind: type[LaneTransport] | type[Pyfuse3Transport], parts: Parts, kit: Kit, path: str, source: str
) -> Mount:
    options = parts.options
    device = await asyncio.to_thread(attach, path, source, options)
    try:
        transport = kind(device, parts, kit)
    except BaseException as error:
        os.close(device)
        await asyncio.to_thread(detach, path, lazy=True)
        if isinstance(error, ImportError):
            raise MountError(
                f"pyfuse3 cannot be used: {error}", remedy="install it, or choose the transport lane"
            ) from error
        raise
    transport.start()
    try:
        async with asyncio.timeout(options.ready_timeout_s):
            await transport.ready
        entry = mounted_at(path)
        if entry is None:
            raise MountError(f"{path} was unmounted while it was being mounted")
        refused = await asyncio.to_thread(raise_read_ahead, entry.device, options.read_ahead_bytes)
    except BaseException as error:
        with contextlib.suppress(NotMounted):
            await asyncio.to_thread(detach, path, force=True)
        await asyncio.wait({transport.ended}, timeout=_ABORTED_WAIT_S)
        await transport.close()
        if isinstance(error, TimeoutError):
            raise MountError(f"the kernel did not start {path} within {options.ready_timeout_s:.0f} s") from None
        raise
    mounted = Mount(path, source, entry.device, transport, parts.boundary)
    if refused:
        log.info("%s: %s", path, refused)
        mounted.notes.append(refused)
    log.info("%s is mounted on %s (%s)", source, path, transport.name)
    return mounted
