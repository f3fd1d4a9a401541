"""The call `files/read`: ranges of files for Python programs, many in one request, because a data loader asks for batches.

A range is written as Python slices are (`start` and `end`, either may be missing or count from the end), so nobody has to
ask for a size first. One answer carries a bounded number of bytes, shared out among the ranges in their order; what did not
fit is said (`left`), and is asked for again with the `digest` that came with the first part, which makes all parts bytes
of one version or an error, never a mix.

Memory: answers of all requests together hold no more than a fixed budget; who comes when it is used up waits.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from aiohttp import web

from .. import amounts
from ..cache.budget import ByteBudget
from ..client.control import error_document
from ..errors import ForebayError, ObjectChanged, UsageError
from ..fuse_mount.view import Kind
from ..tiers.understore import Buffer
from ..tiers.version import ObjectVersion
from .control import body_of
from .service import Service
from .sources import Source
from .tree import Tree

MAX_ANSWER_BYTES = 16 * amounts.MIB
MAX_HELD_BYTES = 128 * amounts.MIB
# asyncio moves what the socket does not take at once to the front of its buffer again and again: small writes keep that cheap.
_WRITE_BYTES = 256 * amounts.KIB
_AT_ONCE = 64
_KEPT_VERSIONS = 65536

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is sent of one range: `size` bytes at `offset`; `left` more bytes belong to the range."""

    version: ObjectVersion
    offset: int
    size: int
    left: int
    reader: int


class FileReads:
    """Reads by path. Remembers the versions that were looked up lately, so that the next read of an open file needs no look-up."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._versions: OrderedDict[str, ObjectVersion] = OrderedDict()
        self._budget = ByteBudget(MAX_HELD_BYTES)

    def remember(self, version: ObjectVersion) -> None:
        self._versions[version.digest.hex()] = version
        if len(self._versions) > _KEPT_VERSIONS:
            self._versions.popitem(last=False)

    async def read(self, request: web.Request) -> web.StreamResponse:
        """Answers with a line of JSON (a head for each range), then the bytes one after the other."""
        body = await body_of(request)
        ranges = body.get("ranges")
        if not isinstance(ranges, list) or not ranges:
            raise UsageError("no list of ranges is given")
        async with self._service.versions.at(body.get("source")) as source:
            pieces = share_out(await _all(ranges, lambda wanted: self._find(source, wanted)))
            held_bytes = sum(piece.size for piece in pieces if isinstance(piece, _Piece))
            await self._budget.take(held_bytes)
            try:
                contents = await self._contents(pieces)
                return await _answer(request, pieces, contents)
            finally:
                self._budget.give(held_bytes)

    async def _find(self, source: Source, wanted: Mapping[str, Any]) -> _Piece:
        """The whole range as one piece."""
        version = await self._version(source, str(wanted["path"]), wanted.get("digest"))
        start, end, _ = slice(wanted.get("start"), wanted.get("end")).indices(version.size)
        return _Piece(version, start, max(end - start, 0), 0, int(wanted.get("reader", 0)))

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
        self.remember(version)
        return version

    async def _contents(self, pieces: Sequence[_Piece | ForebayError]) -> list[Buffer | ForebayError]:
        """The bytes of each piece: what is cached at once, the rest together."""
        cache, found = self._service.cache, list[Buffer | ForebayError | None]()
        for piece in pieces:
            if isinstance(piece, ForebayError):
                found.append(piece)
            else:
                found.append(cache.read_cached(piece.version, piece.offset, piece.size, reader=piece.reader))
                await asyncio.sleep(0)  # reading takes the event loop's time: the mount gets its turn in between
        absent = [
            piece for piece, data in zip(pieces, found, strict=True) if data is None and isinstance(piece, _Piece)
        ]
        fetched = iter(await _all(absent, self._fetch))
        return [next(fetched) if data is None else data for data in found]

    async def _fetch(self, piece: _Piece) -> Buffer:
        return await self._service.cache.read(
            piece.version,
            piece.offset,
            piece.size,
            reader=piece.reader,
            timeout_s=self._service.settings.io_timeout,
        )


def share_out(pieces: Sequence[_Piece | ForebayError]) -> list[_Piece | ForebayError]:
    """Cut the pieces to what one answer may carry, in their order."""
    room, cut = MAX_ANSWER_BYTES, list(pieces)
    for index, piece in enumerate(pieces):
        if isinstance(piece, _Piece):
            size = min(piece.size, room)
            room -= size
            cut[index] = _Piece(piece.version, piece.offset, size, piece.size - size, piece.reader)
    return cut


async def _all(items: Sequence[_Item], work: Callable[[_Item], Awaitable[_Result]]) -> list[_Result | ForebayError]:
    """The results for all items in their order, a bounded number at once; a failure stands in the place of its item."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(item: _Item) -> _Result | ForebayError:
        async with room:
            try:
                return await work(item)
            except ForebayError as error:
                return error

    if len(items) == 1:
        return [await one(items[0])]
    return await asyncio.gather(*map(one, items))


async def _answer(
    request: web.Request, pieces: Sequence[_Piece | ForebayError], contents: Sequence[Buffer | ForebayError]
) -> web.StreamResponse:
    heads: list[dict[str, Any]] = []
    sent: list[Buffer] = []
    for piece, content in zip(pieces, contents, strict=True):
        if isinstance(piece, ForebayError) or isinstance(content, ForebayError):
            error = piece if isinstance(piece, ForebayError) else content
            assert isinstance(error, ForebayError)
            heads.append({"error": error_document(error)})
        else:
            digest = piece.version.digest.hex()
            heads.append({"size": piece.size, "offset": piece.offset, "left": piece.left, "digest": digest})
            sent.append(content)
    head = json.dumps(heads).encode() + b"\n"
    total = len(head) + sum(map(len, sent))
    if total <= _WRITE_BYTES:
        return web.Response(body=b"".join([head, *sent]))
    response = web.StreamResponse(headers={"Content-Length": str(total)})
    await response.prepare(request)
    await response.write(head)
    for content in sent:
        view = memoryview(content)
        for position in range(0, len(view), _WRITE_BYTES):
            await response.write(view[position : position + _WRITE_BYTES])
    await response.write_eof()
    return response
