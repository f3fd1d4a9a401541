"""The calls that Python programs read files with (`client/filesystem.py`): look up, list, read.

A read names the content by the digest it learned when it opened the file, so it gets bytes of that version or an error,
never a mix of two. Many ranges go in one request, because a data loader asks for batches.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from typing import Any

from aiohttp import web

from ..client.control import error_document
from ..errors import ForebayError, ObjectChanged, UsageError
from ..fuse_mount.view import Kind, Node
from ..tiers.understore import Buffer
from ..tiers.version import ObjectVersion
from .control import ControlServer, body_of, query_of, stream_lines
from .service import Service
from .sources import Source
from .tree import Tree

MAX_ANSWER_BYTES = 64 * 1024 * 1024
_BATCH = 1000
_KEPT_VERSIONS = 65536
_AT_ONCE = 64


def add_to(server: ControlServer, service: Service) -> None:
    """Add the calls."""
    calls = _FileCalls(service)
    server.add("GET", "files/info", calls.info)
    server.add("POST", "files/list", calls.list)
    server.add("POST", "files/find", calls.find)
    server.add("POST", "files/read", calls.read)


class _FileCalls:
    def __init__(self, service: Service) -> None:
        self._service = service
        # What was opened lately, so that a read needs no look-up; an older one is looked up again by its path.
        self._versions: OrderedDict[str, ObjectVersion] = OrderedDict()

    async def info(self, request: web.Request) -> web.Response:
        query = query_of(request)
        path = query.get("path", "")
        async with self._service.versions.at(query.get("source")) as source, Tree(source.view).node(path) as node:
            answer = _describe(path, node)
            if node.kind is Kind.FILE:
                version = source.view.version(node.ino)
                self._remember(version)
                answer |= {"digest": version.digest.hex(), "etag": version.etag, "version_id": version.version_id}
        return web.json_response(answer)

    async def list(self, request: web.Request) -> web.StreamResponse:
        """Lines of up to a thousand entries each."""
        body = await body_of(request)
        path = str(body.get("path", "")).strip("/")
        base = f"{path}/" if path else ""

        async def batches() -> AsyncIterator[dict[str, Any]]:
            batch = []
            async with self._service.versions.at(body.get("source")) as source:
                for name, node in await Tree(source.view).children(path):
                    batch.append(_describe(base + name, node))
                    if len(batch) == _BATCH:
                        yield {"entries": batch}
                        batch = []
                        await asyncio.sleep(0)  # a folder of a million names must not keep the mount waiting
            yield {"entries": batch}

        return await stream_lines(request, batches())

    async def find(self, request: web.Request) -> web.StreamResponse:
        """Every file at or below a path, in lines of up to a thousand; cheaper than listing folder by folder."""
        body = await body_of(request)
        path = str(body.get("path", "")).strip("/")

        async def batches() -> AsyncIterator[dict[str, Any]]:
            batch = []
            async with self._service.versions.at(body.get("source")) as source:
                async for found, version in source.entries(path):
                    batch.append({"name": found, "type": "file", "size": version.size})
                    if len(batch) == _BATCH:
                        yield {"entries": batch}
                        batch = []
            yield {"entries": batch}

        return await stream_lines(request, batches())

    async def read(self, request: web.Request) -> web.Response:
        """Ranges of files: a line of JSON (length or error of each), then the bytes one after the other."""
        body = await body_of(request)
        ranges, named = body.get("ranges"), body.get("source")
        if not isinstance(ranges, list):
            raise UsageError("no list of ranges is given")
        if sum(max(0, int(wanted["size"])) for wanted in ranges) > MAX_ANSWER_BYTES:
            raise UsageError(f"more than {MAX_ANSWER_BYTES} bytes are asked for at once")
        room = asyncio.Semaphore(_AT_ONCE)

        async def one(wanted: Mapping[str, Any]) -> Buffer | ForebayError:
            try:
                async with room:
                    return await self._read(named, wanted)
            except ForebayError as error:
                return error

        pieces = [await one(ranges[0])] if len(ranges) == 1 else await asyncio.gather(*map(one, ranges))
        head = [{"error": error_document(p)} if isinstance(p, ForebayError) else {"size": len(p)} for p in pieces]
        answer = b"".join([json.dumps(head).encode(), b"\n", *(p for p in pieces if not isinstance(p, ForebayError))])
        return web.Response(body=answer)

    async def _read(self, named: str | None, wanted: Mapping[str, Any]) -> Buffer:
        async with self._service.versions.at(named) as source:
            version = await self._version(source, str(wanted["path"]), wanted.get("digest"))
            offset = int(wanted["offset"])
            size = min(int(wanted["size"]), version.size - offset)
            if offset < 0 or size <= 0:
                return b""
            cache, reader = self._service.cache, int(wanted.get("reader", 0))
            data = cache.read_cached(version, offset, size, reader=reader)
            if data is None:
                timeout_s = self._service.settings.io_timeout
                data = await cache.read(version, offset, size, reader=reader, timeout_s=timeout_s)
        if len(data) != size:
            raise ForebayError(f"the cache gave {len(data)} bytes instead of {size} at {offset} of {version.key}")
        return data

    async def _version(self, source: Source, path: str, digest: str | None) -> ObjectVersion:
        """The version with that digest, or the present one where none is asked for. Raises ObjectChanged."""
        known = self._versions.get(digest) if digest is not None else None
        if known is not None:
            return known
        async with Tree(source.view).node(path) as node:
            if node.kind is not Kind.FILE:
                raise UsageError(f"{path!r} is a folder")
            version = source.view.version(node.ino)
        if digest is not None and version.digest.hex() != digest:
            raise ObjectChanged(f"{path!r} was overwritten since it was opened", remedy="open it again")
        self._remember(version)
        return version

    def _remember(self, version: ObjectVersion) -> None:
        self._versions[version.digest.hex()] = version
        if len(self._versions) > _KEPT_VERSIONS:
            self._versions.popitem(last=False)


def _describe(path: str, node: Node) -> dict[str, Any]:
    kind = {Kind.FILE: "file", Kind.DIRECTORY: "directory", Kind.SYMLINK: "link"}[node.kind]
    return {"name": path, "type": kind, "size": node.size, "mtime_ns": node.mtime_ns}
