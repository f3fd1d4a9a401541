"""Starting a Forebay process in the background, and waiting until it serves or says why it cannot.

A fresh interpreter is started (no fork of this process, whose threads and locks would be inherited). What it is to do
travels through its stdin, so that no setting is visible in its argument list; it answers with one line on a pipe of
its own. It gets a session of its own, `/` as its folder, and none of our descriptors, so that a driver or shell that
waits for our output to end does not wait for the mount to end.
"""

import contextlib
import json
import os
import selectors
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .. import config
from ..client.control import error_from
from ..errors import ConfigError, DaemonUnreachable

START_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 10.0
_TAIL_BYTES = 2000


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a Forebay process is asked to be: a mount of `source`, or without a mountpoint just the holder of its cache."""

    source: str
    mountpoint: str | None
    settings: config.Settings
    log_file: Path | None = None

    def to_json(self, ready_descriptor: int) -> bytes:
        return json.dumps(
            {
                "source": self.source,
                "mountpoint": self.mountpoint,
                "settings": self.settings.to_texts(),
                "origins": dict(self.settings.origins),
                "log_file": str(self.log_file) if self.log_file else None,
                "ready_descriptor": ready_descriptor,
            }
        ).encode()

    @classmethod
    def from_json(cls, content: bytes) -> tuple["Request", int]:
        """The request, and the descriptor on which the outcome is awaited."""
        document = json.loads(content)
        request = cls(
            source=document["source"],
            mountpoint=document["mountpoint"],
            settings=config.Settings.from_texts(document["settings"], document["origins"]),
            log_file=Path(document["log_file"]) if document["log_file"] else None,
        )
        return request, document["ready_descriptor"]


def start(request: Request, *, timeout_s: float = START_TIMEOUT_S) -> dict[str, Any]:
    """Start the process; returns what it says of itself once it serves.

    Raises the error for which it could not start, or DaemonUnreachable if it died or stayed silent; then (and when
    interrupted) no process is left.
    """
    with contextlib.ExitStack() as stack:
        errors_to = stack.enter_context(_open_log(request.log_file))
        written_before = errors_to.tell()
        ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, ready_read)
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "forebay.daemon"],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors_to,
                cwd="/",
                pass_fds=(ready_write,),
                start_new_session=True,
            )
        finally:
            os.close(ready_write)
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(request.to_json(ready_write))
            answer = _await_answer(ready_read, timeout_s)
        except TimeoutError:
            _stop(process)
            raise DaemonUnreachable(
                f"the Forebay process for {request.source} did not come up within {timeout_s:.0f} s",
                remedy=_hint(request.log_file, written_before),
            ) from None
        except BaseException:
            _stop(process)
            raise
        if answer is None or "error" in answer:
            _stop(process)
        if answer is None:
            raise DaemonUnreachable(
                f"the Forebay process for {request.source} ended at once (exit status {process.returncode})",
                remedy=_hint(request.log_file, written_before),
            )
        if "error" in answer:
            raise error_from(answer["error"])
        process.returncode = 0  # it lives on; this keeps Popen from warning that nobody waits for it
        ready: dict[str, Any] = answer["ready"]
        return ready


def tell_outcome(ready_descriptor: int, document: dict[str, Any]) -> None:
    """The other end: tell who waits, once, that we serve ({"ready": ...}) or why not ({"error": ...})."""
    with contextlib.suppress(BrokenPipeError), os.fdopen(ready_descriptor, "wb") as pipe:
        pipe.write(json.dumps(document).encode() + b"\n")


def _open_log(log_file: Path | None) -> BinaryIO:
    if log_file is None:
        return open(os.devnull, "ab")
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        return open(log_file, "ab", opener=lambda path, flags: os.open(path, flags, 0o600))
    except OSError as error:
        raise ConfigError(
            f"the log file {log_file} cannot be written: {error.strerror}", remedy="choose another (log-file)"
        ) from error


def _await_answer(descriptor: int, timeout_s: float) -> dict[str, Any] | None:
    """The one line; None if the other side ended without it. Raises TimeoutError if nothing came in time."""
    deadline = time.monotonic() + timeout_s
    received = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while not received.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            piece = os.read(descriptor, 65536)
            if not piece:
                return None
            received += piece
    document: dict[str, Any] = json.loads(received)
    return document


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process, gently first: it may have a mount to take down."""
    if process.poll() is None:
        try:
            process.wait(1.0)  # it answered with an error, and is about to end by itself
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _hint(log_file: Path | None, written_before: int) -> str:
    if log_file is None:
        return "try with --foreground to see why"
    with contextlib.suppress(OSError), log_file.open("rb") as log:
        log.seek(written_before)
        tail = log.read()[-_TAIL_BYTES:].decode(errors="replace").strip()
        if tail:
            return f"its log {log_file} ends with:\n{tail}"
    return f"see its log {log_file}"
