"""The life of a Forebay process: it takes hold of a cache, mounts if asked to, serves, and leaves in good order.

    coming up     mountpoint looked at - tiers opened (the lock of the cache) - store asked - control socket - write side - mount - registry
    going down    jobs cancelled - unmounted - write side - control socket - cache and tiers closed - store closed - registry

The way down is the way up read backwards, but for the registry, whatever made it end: SIGTERM, SIGINT, an unmount from outside, a call on the
control socket, idleness of a process without a mount, or an error on the way up. A second signal ends the patience for
files that are still open.
"""

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from .. import __version__, amounts, config
from ..client import registry
from ..fuse_mount import mountpoint as mountpoints
from ..fuse_mount.options import MountOptions
from ..fuse_mount.session import GRACE_S, Mount, mount
from ..fuse_mount.transport import READ_ONLY
from ..fuse_mount.xattrs import cache_facts
from . import calls, file_calls, memory, metrics, opening, priority, sources
from .control import ControlServer
from .launch import Request
from .places import bound_idle_memory, places_of, tier_options
from .service import Service
from .write_part import WritePart

log = logging.getLogger(__name__)

IMPATIENT_GRACE_S = 0.5
IDLE_CHECK_S = 0.2
MAX_SLEEP_S = 3600.0


class Stopping:
    """Asked to end: by whom, and how patiently."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()
        self.reason = ""

    def ask(self, reason: str) -> None:
        """The first time asks to end, the second time to hurry."""
        if self.asked.is_set():
            self.hurry.set()
        self.reason = self.reason or reason
        self.asked.set()


def run(request: Request, *, ready: Callable[[dict[str, Any]], None]) -> None:
    """Be that process, from start to end. `ready` is called once it serves. Raises what kept it from coming up."""
    memory.keep_freed_memory()
    if request.mountpoint is not None:
        priority.go_first()
    asyncio.run(_run(request, ready))


async def _run(request: Request, ready: Callable[[dict[str, Any]], None]) -> None:
    stopping = Stopping()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.ask, signal.Signals(number).name)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # the terminal is gone; the mount is to stay
    role: registry.Role = "mount" if request.mountpoint is not None else "serve"
    async with hold(request, role=role, stopping=stopping) as service:
        ready(service.describe())
        await _until_end(service, stopping, request.settings)
        log.info("ending: %s", stopping.reason)


@contextlib.asynccontextmanager
async def hold(request: Request, *, role: registry.Role, stopping: Stopping) -> AsyncIterator[Service]:
    """A Forebay process for the time of a `with`: it holds the cache of the source, serves, and is in the registry."""
    settings = request.settings
    started_s = time.time()
    name = sources.name_of(request.source, settings)
    where = request.mountpoint
    options = mount_options(settings, read_only=True)
    if where is not None:
        where = await asyncio.to_thread(mountpoints.prepare, where, options)
    owner = f"the mount at {where}" if where is not None else f"forebay {role}"
    places = places_of(name.folder, settings)
    await asyncio.to_thread(bound_idle_memory, places)
    ram, ssd = await asyncio.to_thread(tier_options, places, settings, owner=owner)
    registration: registry.Registration | None = None
    async with contextlib.AsyncExitStack() as stack:
        # Last on the way down: who waits for the entry to go may use the cache folder at once.
        stack.callback(lambda: registration.withdraw() if registration is not None else None)
        source = await opening.open_source(request.source, settings, what=owner)
        stack.push_async_callback(source.close)
        service = await stack.enter_async_context(Service.open(source, places, ram, ssd, settings, owner=owner))
        counters = service.cache.tiers.counters
        await stack.enter_async_context(memory.given_back_when_idle(lambda: counters.fetched_bytes))
        runtime = registry.create_runtime_folder()
        entry = registry.Entry(
            id=registry.new_id(),
            role=role,
            pid=os.getpid(),
            source=name.text,
            mountpoint=where,
            cache_folders=places.all,
            started_s=started_s,
            log_file=str(request.log_file) if request.log_file else None,
            version=__version__,
            folder=str(runtime),
        )
        service.server = ControlServer(entry.socket)
        calls.add_to(service.server, service, stopping.ask)
        file_calls.add_to(service.server, service)
        await service.server.start()
        stack.push_async_callback(service.server.close)
        if settings.metrics_port is not None:
            port = await stack.enter_async_context(metrics.serve(service.status, settings))
            entry = replace(entry, metrics_port=port)
        if where is not None:
            writing = service.writing = await WritePart.open(source, service.cache, settings, what=owner)
            if writing is None:
                view, kit = source.view, READ_ONLY
            else:
                stack.push_async_callback(writing.close)
                view, kit = writing.view, writing.kit
                options = mount_options(settings, read_only=settings.read_only)
            service.mount = await mount(
                view, service.cache, where, source=name.text, options=options, facts=cache_facts(service.cache), kit=kit
            )
            stack.push_async_callback(_unmount, service.mount, stopping)
        service.entry = entry
        registration = await asyncio.to_thread(registry.Registration.publish, entry)
        await stack.enter_async_context(service.jobs)
        log.info("%s is served%s, cache in %s", name.text, f" at {where}" if where else "", places.ssd[0].parent)
        yield service


def mount_options(settings: config.Settings, *, read_only: bool) -> MountOptions:
    """The choices of a mount that the settings mean. Raises UsageError."""
    return MountOptions(
        transport=settings.transport,  # type: ignore[arg-type]
        read_only=read_only,
        allow_other=settings.allow_other,
        nonempty=settings.nonempty,
        uid=os.getuid() if settings.uid is None else settings.uid,
        gid=os.getgid() if settings.gid is None else settings.gid,
        umask=settings.umask,
        io_timeout_s=settings.io_timeout,
    )


async def _until_end(service: Service, stopping: Stopping, settings: config.Settings) -> None:
    """Wait for whatever ends the process."""
    waiting: list[asyncio.Task[Any]] = [asyncio.create_task(stopping.asked.wait())]
    if service.mount is not None:
        waiting.append(asyncio.create_task(_gone(service.mount, stopping)))
    else:
        waiting.append(asyncio.create_task(_idle(service, stopping, settings.idle_timeout)))
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def _gone(mounted: Mount, stopping: Stopping) -> None:
    await mounted.wait_unmounted()
    stopping.ask("unmounted")


async def _idle(service: Service, stopping: Stopping, idle_s: float) -> None:
    assert service.server is not None
    while True:
        left_s = idle_s - (time.monotonic() - service.server.last_used_s)
        if left_s <= 0 and not service.busy:
            break
        await asyncio.sleep(min(max(left_s, IDLE_CHECK_S), MAX_SLEEP_S))
    stopping.ask(f"nobody asked for {amounts.format_duration(idle_s)}")


async def _unmount(mounted: Mount, stopping: Stopping) -> None:
    """Unmount; who asks a second time has no patience for files that are open."""
    patient = asyncio.create_task(mounted.unmount(grace_s=GRACE_S))
    hurried = asyncio.create_task(stopping.hurry.wait())
    await asyncio.wait({patient, hurried}, return_when=asyncio.FIRST_COMPLETED)
    if not patient.done():
        await mounted.abort()
    hurried.cancel()
    await asyncio.gather(hurried, return_exceptions=True)
    await patient
