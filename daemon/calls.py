"""The calls about the cache and the process itself (docs/control-socket.md): status, info, prefetch, free, pins, jobs, stop."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from aiohttp import web

from ..errors import UsageError
from ..fuse_mount.view import Kind
from . import prefetching
from .control import ControlServer, body_of, query_of, stream_lines
from .jobs import Job
from .prefetching import PrefetchRequest
from .service import Service
from .sources import Source
from .tree import Tree
from .write_part import WritePart


def add_to(server: ControlServer, service: Service, stop: Callable[[str], None]) -> None:
    """Add the calls. `stop(reason)` asks the process to end."""
    calls = _Calls(service, stop)
    server.add("GET", "status", calls.status)
    server.add("GET", "info", calls.info)
    server.add("POST", "prefetch", calls.prefetch)
    server.add("POST", "watch", calls.watch)
    server.add("POST", "free", calls.free)
    server.add("GET", "pins", calls.pins)
    server.add("POST", "unpin", calls.unpin)
    server.add("POST", "cancel", calls.cancel)
    server.add("POST", "flush", calls.flush)
    server.add("GET", "writeback", calls.writeback)
    server.add("POST", "writeback/retry", calls.retry)
    server.add("POST", "stop", calls.stop)


class _Calls:
    def __init__(self, service: Service, stop: Callable[[str], None]) -> None:
        self._service = service
        self._stop = stop

    async def status(self, request: web.Request) -> web.Response:
        return web.json_response(self._service.status())

    async def info(self, request: web.Request) -> web.Response:
        """One file, or the sum over a folder."""
        query = query_of(request)
        async with self._service.versions.at(query.get("source")) as source:
            return web.json_response(await self._info(source, query.get("path", "")))

    async def _info(self, source: Source, path: str) -> dict[str, Any]:
        service = self._service
        written = service.writing.info(path) if service.writing is not None else None
        if written is not None:
            return written
        async with Tree(source.view).node(path) as node:
            if node.kind is Kind.FILE:
                version = source.view.version(node.ino)
                return {
                    "path": path,
                    "kind": "file",
                    "size_bytes": node.size,
                    "mtime_s": node.mtime_ns / 1e9,
                    "version": asdict(version),
                    "blocks": version.block_count,
                    "cached": asdict(service.cache.cached(version)),
                    "pins": service.pins.count(version.digest),
                    "attributes": {
                        name: value.decode("utf-8", "replace") for name, value in source.view.xattrs(node.ino).items()
                    },
                }
        total = dict.fromkeys(("files", "size_bytes", "cached_bytes", "ram_bytes", "ssd_bytes", "pinned_files"), 0)
        async for _, version in source.entries(path):
            parts = service.cache.cached(version)
            total["files"] += 1
            total["size_bytes"] += version.size
            total["cached_bytes"] += parts.cached_bytes
            total["ram_bytes"] += parts.ram_bytes
            total["ssd_bytes"] += parts.ssd_bytes
            total["pinned_files"] += service.pins.is_pinned(version.digest)
        return {"path": path, "kind": "folder", **total}

    async def prefetch(self, request: web.Request) -> web.StreamResponse:
        """Lines of a job as it goes on. Unless it is a background job, hanging up cancels it."""
        body = await body_of(request)
        service, wanted, named = self._service, PrefetchRequest.from_document(body), body.get("source")

        async def work(job: Job) -> dict[str, Any]:
            async with service.versions.at(named) as source:
                return await prefetching.run(service, source, wanted, job.update)

        job = service.jobs.start("prefetch", wanted.describe(named or service.source.name.text), work)
        if body.get("background"):
            return web.json_response(job.describe())
        return await stream_lines(request, service.jobs.watch(job), hung_up=lambda: service.jobs.cancel(job))

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """Lines of a job that runs in the background; hanging up leaves it alone."""
        job = self._service.jobs.get(str((await body_of(request)).get("id")))
        return await stream_lines(request, self._service.jobs.watch(job))

    async def free(self, request: web.Request) -> web.Response:
        body = await body_of(request)
        paths = list(body.get("paths", [""]))
        async with self._service.versions.at(body.get("source")) as source:
            freed = await prefetching.free(self._service, source, paths, also_pinned=bool(body.get("also_pinned")))
        return web.json_response(freed)

    async def pins(self, request: web.Request) -> web.Response:
        return web.json_response({"pins": [asdict(label) for label in self._service.pins.list()]})

    async def unpin(self, request: web.Request) -> web.Response:
        """End the leases with these ids, or all of an owner."""
        body = await body_of(request)
        service = self._service
        ids, owner = list(body.get("ids", [])), body.get("owner")
        if not ids and owner is None:
            raise UsageError("neither an id nor an owner is given")
        wanted = [pin.id for pin in service.pins.list() if pin.id in ids or (owner is not None and pin.owner == owner)]
        return web.json_response({"removed": [pin_id for pin_id in wanted if service.pins.remove(pin_id)]})

    async def cancel(self, request: web.Request) -> web.Response:
        job = self._service.jobs.get(str((await body_of(request)).get("id")))
        await self._service.jobs.cancel(job)
        return web.json_response(job.describe())

    async def flush(self, request: web.Request) -> web.StreamResponse:
        """Lines with what is left, until everything at and below `path` is in the bucket, or `timeout_s` is over."""
        body = await body_of(request)
        writing = self._written()
        timeout_s = body.get("timeout_s")
        return await stream_lines(
            request, writing.flush(str(body.get("path", "")), None if timeout_s is None else float(timeout_s))
        )

    async def writeback(self, request: web.Request) -> web.Response:
        limit = int(query_of(request).get("limit", "1000"))
        return web.json_response(self._written().pending(limit))

    async def retry(self, request: web.Request) -> web.Response:
        """Try again at once what waits after a failure."""
        self._written().side.writeback.retry_now()
        return web.json_response({"retrying": True})

    def _written(self) -> WritePart:
        if self._service.writing is None or self._service.writing.side.is_follower:
            raise UsageError("nothing is written through this process", remedy="mount the bucket without --read-only")
        return self._service.writing

    async def stop(self, request: web.Request) -> web.Response:
        self._stop(str((await body_of(request)).get("reason", "asked on the control socket")))
        return web.json_response({"stopping": True})
