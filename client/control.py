"""Talking to a Forebay process through its control socket: HTTP and JSON over a Unix socket, from plain blocking code.

Only the standard library, no event loop and no state between calls except one idle connection, so that commands
start fast and data-loader workers can use it. After a fork the child opens a connection of its own: a connection is
keyed by the process that opened it, and one that two processes share would mix their answers.

Failures that the other side reports come back as the ForebayError they were there; a silent or vanished process is
DaemonUnreachable. docs/control-socket.md lists the calls.
"""

import contextlib
import http.client
import json
import os
import socket
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import errors
from ..errors import DaemonUnreachable, ForebayError

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 120.0  # a call that waits for the store is bounded by the daemon; this bounds a stuck daemon
MAX_UNIX_PATH_BYTES = 107


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("forebay", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(CONNECT_TIMEOUT_S)
            with short_path(self._path) as address:
                self.sock.connect(address)
            self.sock.settimeout(self.timeout)
        except BaseException:
            self.close()
            raise


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """An address of the socket file that fits into a Unix address, however long the path is."""
    if len(os.fsencode(path)) <= MAX_UNIX_PATH_BYTES:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class Control:
    """The control socket of one process. Safe to share between threads and across forks, and picklable."""

    def __init__(self, socket_path: Path | str, *, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self.path = Path(socket_path)
        self.timeout_s = timeout_s
        self._idle: list[tuple[int, _UnixConnection]] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "timeout_s": self.timeout_s}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(state["path"], timeout_s=state["timeout_s"])  # type: ignore[misc]

    def __del__(self) -> None:
        # Whoever used it may not know that there are connections; they go with the last user.
        for _, connection in self.__dict__.get("_idle", ()):
            connection.close()

    def get(self, call: str, **query: str | int) -> Any:
        """The JSON answer to a question."""
        return json.loads(self._ask("GET", _target(call, query), None))

    def post(self, call: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON answer to a request that changes something."""
        return json.loads(self._ask("POST", _target(call, {}), json.dumps(body or {}).encode()))

    def post_for_bytes(self, call: str, body: Mapping[str, Any]) -> bytes:
        """An answer of plain bytes."""
        return self._ask("POST", _target(call, {}), json.dumps(body).encode())

    def stream(self, call: str, body: Mapping[str, Any] | None = None) -> Iterator[Any]:
        """The lines of a long answer as they come. Closing the iterator hangs up, which cancels the work.

        An error that ends the stream is raised as what it was on the other side.
        """
        connection = _UnixConnection(self.path, self.timeout_s)
        try:
            response = self._exchange(connection, "POST", _target(call, {}), json.dumps(body or {}).encode())
            for line in response:
                document = json.loads(line)
                if document.keys() == {"error"}:
                    raise error_from(document["error"])
                if document:  # an empty object is a sign of life
                    yield document
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._unreachable(error) from error
        finally:
            connection.close()

    def close(self) -> None:
        """Drop the idle connection; the next call opens another."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    def _ask(self, method: str, target: str, body: bytes | None) -> bytes:
        connection, was_idle = self._take()
        try:
            try:
                content = self._exchange(connection, method, target, body).read()
            except (ConnectionError, http.client.BadStatusLine):
                connection.close()
                if not was_idle:
                    raise
                # The other side may close an idle connection at any time: then ask again on a new one, once.
                connection = _UnixConnection(self.path, self.timeout_s)
                content = self._exchange(connection, method, target, body).read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unreachable(error) from error
        except BaseException:
            connection.close()
            raise
        self._give_back(connection)
        return content

    def _exchange(
        self, connection: _UnixConnection, method: str, target: str, body: bytes | None
    ) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, target, body, headers)
        response = connection.getresponse()
        if response.status >= 400:
            content = response.read()
            try:
                document = json.loads(content)["error"]
            except (ValueError, KeyError, TypeError):
                raise ForebayError(f"the process at {self.path} answered with HTTP status {response.status}") from None
            raise error_from(document)
        return response

    def _take(self) -> tuple[_UnixConnection, bool]:
        if self._pid != os.getpid():
            # Forked: the lock may be held by a thread that does not exist here, and the connections are the parent's.
            inherited = self._idle
            self._lock, self._idle, self._pid = threading.Lock(), [], os.getpid()
            for _, connection in inherited:
                connection.close()  # of our copy of the descriptor; the parent's stays open
        with self._lock:
            while self._idle:
                pid, connection = self._idle.pop()
                if pid == os.getpid():
                    return connection, True
        return _UnixConnection(self.path, self.timeout_s), False

    def _give_back(self, connection: _UnixConnection) -> None:
        with self._lock:
            if len(self._idle) < 8 and connection.sock is not None:
                self._idle.append((os.getpid(), connection))
                return
        connection.close()

    def _unreachable(self, error: Exception) -> DaemonUnreachable:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        return DaemonUnreachable(
            f"the Forebay process at {self.path} does not answer: {reason}",
            remedy="see whether it runs (`forebay status`) and what its log says",
        )


def _target(call: str, query: Mapping[str, str | int]) -> str:
    target = f"/v1/{call}"
    if query:
        target += "?" + urllib.parse.urlencode({k: str(v) for k, v in query.items()}, errors="surrogateescape")
    return target


def error_from(document: Mapping[str, Any]) -> ForebayError:
    """The error that `error_document` described on the other side."""
    return errors.class_of_kind(document["kind"])(document["message"], remedy=document.get("remedy"))


def error_document(error: ForebayError) -> dict[str, Any]:
    """An error as JSON, for the wire and for `--json`."""
    return {"kind": error.kind, "message": error.message, "remedy": error.remedy, "exit_code": error.exit_code}
