"""An HTTP proxy in front of a real S3 server that does to clients what networks and servers do to them.

    with fault_proxy(s3.endpoint_url) as proxy:
        store, _ = open_store(f"s3://{bucket}", StoreOptions(endpoint_url=proxy.url))
        proxy.fault = Fault.answer(503, only="GET")     # from now on, for every matching request
        proxy.script = [Fault.reset(after_bytes=1000)]  # or: one after the other, then no fault
        proxy.heal()
        assert proxy.count("GET", key="a") == 1         # how many requests were made for it

It runs in a thread with an event loop of its own. The Host header is passed on as it came, since signatures cover it.
Requests are recorded before a fault is applied, so `requests` says what clients asked, whatever they got.
"""

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

_FOREVER_S = 3600.0


@dataclass(frozen=True)
class Request:
    """One request as the client made it. `key` is decoded and empty for requests about the bucket."""

    method: str
    bucket: str
    key: str
    query: dict[str, str]
    headers: dict[str, str]

    @property
    def kind(self) -> str:
        """`LIST` for listings of a bucket, else the method."""
        return "LIST" if self.method == "GET" and not self.key else self.method

    @property
    def range(self) -> tuple[int, int] | None:
        """(offset, size) in bytes of a range request."""
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        return (int(found[1]), int(found[2]) - int(found[1]) + 1) if found else None


@dataclass(frozen=True)
class Fault:
    """What happens to a request that matches. Made by the class methods; `only` is a kind (`GET`, `LIST`, `PUT`...)."""

    name: str
    status: int = 0
    body: bytes = b""
    after_bytes: int = 0
    delay_s: float = 0.0
    bytes_per_s: float = 0.0
    header: tuple[str, str] = ("", "")
    only: str | None = None
    key: str | None = None

    @classmethod
    def answer(cls, status: int, code: str = "Injected", *, only: str | None = None, key: str | None = None) -> "Fault":
        """An error of the server, as S3 words it; the request does not reach it."""
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        return cls("answer", status=status, body=body, only=only, key=key)

    @classmethod
    def hang(cls, *, only: str | None = None, key: str | None = None) -> "Fault":
        """Takes the request and never answers."""
        return cls("hang", only=only, key=key)

    @classmethod
    def reset(cls, after_bytes: int = 0, *, only: str | None = None, key: str | None = None) -> "Fault":
        """Cuts the connection (RST) after so many bytes of the body."""
        return cls("reset", after_bytes=after_bytes, only=only, key=key)

    @classmethod
    def truncate(cls, after_bytes: int, *, only: str | None = None, key: str | None = None) -> "Fault":
        """Answers with a shorter body and a Content-Length that fits it, as a broken cache in between does."""
        return cls("truncate", after_bytes=after_bytes, only=only, key=key)

    @classmethod
    def flip(cls, at_byte: int = 0, *, only: str | None = None, key: str | None = None) -> "Fault":
        """Inverts one byte of the body."""
        return cls("flip", after_bytes=at_byte, only=only, key=key)

    @classmethod
    def set_header(cls, name: str, value: str, *, only: str | None = None, key: str | None = None) -> "Fault":
        """Replaces a header of the answer, such as ETag."""
        return cls("set_header", header=(name, value), only=only, key=key)

    @classmethod
    def lose_answer(cls, *, only: str | None = None, key: str | None = None) -> "Fault":
        """The server does what was asked, but the client gets a cut connection instead of the answer."""
        return cls("lose_answer", only=only, key=key)

    @classmethod
    def delay(cls, delay_s: float, *, only: str | None = None, key: str | None = None) -> "Fault":
        """Passes the answer on, later."""
        return cls("delay", delay_s=delay_s, only=only, key=key)

    @classmethod
    def slow(cls, bytes_per_s: float, *, only: str | None = None, key: str | None = None) -> "Fault":
        """Passes the body on at this rate."""
        return cls("slow", bytes_per_s=bytes_per_s, only=only, key=key)

    def matches(self, request: Request) -> bool:
        return (self.only is None or request.kind == self.only) and (self.key is None or request.key == self.key)


@dataclass
class FaultProxy:
    """The running proxy. `fault` applies to all matching requests; `script` is used up first, one per match.

    `requests` holds all requests since the start or the last `forget`. `refusing` closes the port, so that connections
    are refused. All may be changed from any thread at any time.
    """

    target: str
    port: int = 0
    fault: Fault | None = None
    script: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    on_request: Callable[[Request], None] | None = None
    _loop: asyncio.AbstractEventLoop | None = None
    _server: asyncio.Server | None = None
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def heal(self) -> None:
        """No faults from now on; accepts connections again."""
        self.fault = None
        self.script = []
        self.accept()

    def forget(self) -> None:
        """Start counting anew."""
        self.requests = []

    def count(self, kind: str | None = None, *, key: str | None = None) -> int:
        """Requests of this kind (`GET`, `LIST`, `HEAD`...) and for this key."""
        return sum(1 for r in self.requests if (kind is None or r.kind == kind) and (key is None or r.key == key))

    def wait_for(self, count: int, kind: str | None = None, *, timeout_s: float = 30.0) -> None:
        """Block until so many requests (of this kind) have come; raises TimeoutError."""
        deadline_s = time.monotonic() + timeout_s
        while self.count(kind) < count:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"{self.count(kind)} requests of {count}")
            time.sleep(0.01)

    def refuse(self) -> None:
        """Close the port and cut all connections: "connection refused"."""
        self._call(self._close())

    def accept(self) -> None:
        """Open the same port again."""
        self._call(self._listen())

    # --- On the proxy's own event loop. -----------------------------------------------------------------

    def _call(self, coroutine: Coroutine[None, None, None]) -> None:
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout=120)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accepted, "127.0.0.1", self.port, limit=1 << 20)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            await self._serve(reader, writer)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client went away, or the proxy refuses from now on
        finally:
            self._connections.discard(task)
            _cut(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = urlsplit(self.target)
        upstream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        try:
            while True:
                head = await _read_head(reader)
                if head is None:
                    return
                request = _parse_request(head)
                self.requests.append(request)
                if self.on_request is not None:
                    self.on_request(request)
                fault = self._fault_for(request)
                body = await _read_body(reader, request.headers, writer)
                if fault is not None and fault.name == "hang":
                    await asyncio.sleep(_FOREVER_S)
                if fault is not None and fault.name == "answer":
                    writer.write(_error_answer(fault, request.method))
                    await writer.drain()
                    continue
                if fault is not None and fault.name == "reset" and fault.after_bytes == 0:
                    return
                if upstream is None:
                    upstream = await asyncio.open_connection(target.hostname, target.port, limit=1 << 20)
                upstream[1].write(_without_expect(head) + body)
                await upstream[1].drain()
                if not await self._relay(upstream[0], writer, request, fault):
                    return
        finally:
            if upstream is not None:
                _cut(upstream[1])

    def _fault_for(self, request: Request) -> Fault | None:
        for index, fault in enumerate(self.script):
            if fault.matches(request):
                del self.script[index]
                return fault
        return self.fault if self.fault is not None and self.fault.matches(request) else None

    async def _relay(
        self, source: asyncio.StreamReader, writer: asyncio.StreamWriter, request: Request, fault: Fault | None
    ) -> bool:
        """Pass one answer on, with the fault applied; whether the connection can be used again."""
        head = await _read_head(source)
        if head is None:
            return False
        status = int(head.split(b" ", 2)[1])
        headers = _parse_headers(head)
        if request.method == "HEAD" or status in (204, 304):
            body = b""
        else:
            body = await _read_body(source, headers, None)
        name = fault.name if fault is not None else ""
        if fault is None or name == "lose_answer":
            pass
        elif name == "delay":
            await asyncio.sleep(fault.delay_s)
        elif name == "truncate" and len(body) > fault.after_bytes:
            body = body[: fault.after_bytes]
            head = _with_header(head, "Content-Length", str(len(body)))
        elif name == "flip" and len(body) > fault.after_bytes:
            at = fault.after_bytes
            body = body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]
        elif name == "set_header":
            head = _with_header(head, *fault.header)
        if name == "lose_answer":
            return False
        if "chunked" in headers.get("transfer-encoding", ""):
            head = _with_header(_without_header(head, "Transfer-Encoding"), "Content-Length", str(len(body)))
        writer.write(head)
        if fault is not None and name == "reset":
            writer.write(body[: fault.after_bytes])
            await writer.drain()
            return False
        if fault is not None and name == "slow":
            piece = max(1, int(fault.bytes_per_s / 20))
            for start in range(0, len(body), piece):
                writer.write(body[start : start + piece])
                await writer.drain()
                await asyncio.sleep(0.05)
        else:
            writer.write(body)
            await writer.drain()
        return True


@contextlib.contextmanager
def fault_proxy(target: str) -> Iterator[FaultProxy]:
    """A proxy for the server at `target` (http://host:port), on a free port, in a thread that ends with the block."""
    proxy = FaultProxy(target)
    loop = asyncio.new_event_loop()
    proxy._loop = loop
    thread = threading.Thread(target=loop.run_forever, name="fault-proxy", daemon=True)
    thread.start()
    try:
        proxy.accept()
        yield proxy
    finally:
        proxy.refuse()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=120)
        loop.close()


async def _read_head(reader: asyncio.StreamReader) -> bytes | None:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None


async def _read_body(
    reader: asyncio.StreamReader, headers: dict[str, str], client: asyncio.StreamWriter | None
) -> bytes:
    if client is not None and "100-continue" in headers.get("expect", "").lower():
        client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await client.drain()
    if "chunked" in headers.get("transfer-encoding", ""):
        pieces = []
        while True:
            size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
            pieces.append((await reader.readexactly(size + 2))[:-2])
            if size == 0:
                return b"".join(pieces)
    length = headers.get("content-length")
    return await reader.readexactly(int(length)) if length else b""


def _parse_headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}


def _parse_request(head: bytes) -> Request:
    method, path, _ = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
    path, _, query = path.partition("?")
    bucket, _, key = path.removeprefix("/").partition("/")
    return Request(
        method=method,
        bucket=bucket,
        key=unquote(key, errors="surrogateescape"),
        query=dict(parse_qsl(query, keep_blank_values=True)),
        headers=_parse_headers(head),
    )


def _error_answer(fault: Fault, method: str) -> bytes:
    body = b"" if method == "HEAD" else fault.body
    head = f"HTTP/1.1 {fault.status} Injected\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _without_header(head: bytes, name: str) -> bytes:
    lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    kept = [line for line in lines if not line.lower().startswith(name.lower().encode() + b":")]
    return b"\r\n".join(kept) + b"\r\n\r\n"


def _with_header(head: bytes, name: str, value: str) -> bytes:
    return _without_header(head, name).removesuffix(b"\r\n") + f"{name}: {value}\r\n\r\n".encode()


def _without_expect(head: bytes) -> bytes:
    return _without_header(head, "Expect")


def _cut(writer: asyncio.StreamWriter) -> None:
    """Close at once; what was not sent is lost, as with a reset."""
    writer.transport.abort()
