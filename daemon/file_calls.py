"""The calls that Python programs look at files with (`client/filesystem.py`): look up, list, find; reading is in file_reads.py."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from ..fuse_mount.view import Kind, Node
from .control import ControlServer, body_of, query_of, stream_lines
from .file_reads import FileReads
from .service import Service
from .tree import Tree

_BATCH = 1000


def add_to(server: ControlServer, service: Service) -> None:
    """Add the calls."""
    calls = _FileCalls(service)
    server.add("GET", "files/info", calls.info)
    server.add("POST", "files/list", calls.list)
    server.add("POST", "files/find", calls.find)
    server.add("POST", "files/read", calls.reads.read)


class _FileCalls:
    def __init__(self, service: Service) -> None:
        self._service = service
        self.reads = FileReads(service)

    async def info(self, request: web.Request) -> web.Response:
        query = query_of(request)
        path = query.get("path", "")
        async with self._service.versions.at(query.get("source")) as source, Tree(source.view).node(path) as node:
            answer = _describe(path, node)
            if node.kind is Kind.FILE:
                version = source.view.version(node.ino)
                self.reads.remember(version)
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


def _describe(path: str, node: Node) -> dict[str, Any]:
    kind = {Kind.FILE: "file", Kind.DIRECTORY: "directory", Kind.SYMLINK: "link"}[node.kind]
    return {"name": path, "type": kind, "size": node.size, "mtime_ns": node.mtime_ns}
