"""The control socket: HTTP and JSON on a Unix socket that only its owner may open (docs/control-socket.md).

One boundary turns every failure of a call into a JSON error with the kind and remedy it had, and logs what nobody
foresaw; a call can break, the process goes on.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import time
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from ..client.control import error_document, short_path
from ..errors import ForebayError, MountError, ObjectNotFound, StoreDenied, UsageError

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024 * 1024  # a list of paths to prefetch may be long
SHUTDOWN_TIMEOUT_S = 5.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ControlServer:
    """The server of one process. Add calls before `start`. `last_used_s` (monotonic) says when somebody last asked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last_used_s = time.monotonic()
        self.busy = 0
        self._app = web.Application(middlewares=[self._boundary], client_max_size=MAX_BODY_BYTES)
        self._runner: web.AppRunner | None = None

    def add(self, method: str, call: str, handler: Handler) -> None:
        self._app.router.add_route(method, f"/v1/{call}", handler)

    async def start(self) -> None:
        """Listen. Raises MountError if the socket cannot be made."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with short_path(self.path) as address:
                listener.bind(address)
            os.chmod(self.path, 0o600)  # the folder is private already, so nobody can have come in between
        except OSError as error:
            listener.close()
            raise MountError(f"the control socket {self.path} cannot be made: {error.strerror}") from error
        self._runner = web.AppRunner(
            self._app, access_log=None, handler_cancellation=True, shutdown_timeout=SHUTDOWN_TIMEOUT_S
        )
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def close(self) -> None:
        """Stop listening, let calls end for a few seconds, and remove the socket."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        with contextlib.suppress(OSError):
            self.path.unlink()

    @web.middleware
    async def _boundary(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.busy += 1
        try:
            return await handler(request)
        except ForebayError as error:
            return error_response(error)
        except web.HTTPRequestEntityTooLarge:
            return error_response(
                UsageError(f"the request is larger than {MAX_BODY_BYTES} bytes", remedy="split the list of paths")
            )
        except web.HTTPException as error:
            return error_response(
                UsageError(f"the control socket has no call {request.method} {request.path}: {error.reason}")
            )
        except ConnectionResetError:
            raise
        except Exception:
            log.exception("the call %s %s failed", request.method, request.path)
            return error_response(ForebayError(f"the call {request.path} failed", remedy="see the log of the process"))
        finally:
            self.busy -= 1
            self.last_used_s = time.monotonic()


def error_response(error: ForebayError) -> web.Response:
    """The error as JSON. The HTTP status is a courtesy to people with curl; our own client reads the body."""
    status = 404 if isinstance(error, ObjectNotFound) else 403 if isinstance(error, StoreDenied) else 400
    if not isinstance(error, UsageError) and status == 400:
        status = 500
    return web.json_response({"error": error_document(error)}, status=status)


async def body_of(request: web.Request) -> Mapping[str, Any]:
    """The JSON object that came with a request."""
    try:
        document = json.loads(await request.text() or "{}")
    except ValueError as error:
        raise UsageError(f"the body of {request.path} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise UsageError(f"the body of {request.path} is not a JSON object")
    return document


def query_of(request: web.Request) -> dict[str, str]:
    """The query of a request; bytes of a path that are no UTF-8 come out as surrogate escapes (aiohttp would lose them)."""
    _, _, query = request.raw_path.partition("?")
    return dict(urllib.parse.parse_qsl(query, keep_blank_values=True, errors="surrogateescape"))


async def stream_lines(
    request: web.Request,
    lines: AsyncIterator[Mapping[str, Any]],
    *,
    hung_up: Callable[[], Awaitable[None]] | None = None,
) -> web.StreamResponse:
    """Answer with one JSON document per line as they come; a failure on the way is a last line `{"error": ...}`.

    `hung_up` is awaited if the client leaves before the end.
    """
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    first = await anext(lines, None)  # a failure before the first line is an ordinary error, with its HTTP status
    try:
        await response.prepare(request)
        if first is not None:
            await response.write(json.dumps(first).encode() + b"\n")
        try:
            async for line in lines:
                await response.write(json.dumps(line).encode() + b"\n")
        except ForebayError as error:
            await response.write(json.dumps({"error": error_document(error)}).encode() + b"\n")
        await response.write_eof()
    except (ConnectionError, asyncio.CancelledError):
        if hung_up is not None:
            await hung_up()
        raise
    return response
