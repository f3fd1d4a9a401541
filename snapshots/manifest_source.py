"""The bytes of a manifest, cut at line ends: plain, `.gz`, `.lz4`, or standard input (`-`), which may be any of them.

Compression is told by the first bytes, not by the name, so that a pipe works too. A block is some megabytes of whole lines;
a line longer than MAX_LINE_BYTES is not kept in memory but reported, and reading goes on after it.
"""

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, cast

import lz4.frame

from ..errors import ManifestError

BLOCK_BYTES = 4 * 1024 * 1024
MAX_LINE_BYTES = 8 * 1024 * 1024
STDIN = "-"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Whole lines, the first of which is number `first_line` (from 1). `too_long`: the block stands for one dropped line."""

    first_line: int
    data: bytes
    too_long: bool = False


class ManifestSource:
    """One manifest to be read once. A context manager; `name` is for messages."""

    def __init__(self, source: str | Path | BinaryIO) -> None:
        if isinstance(source, str | Path):
            self.name = "standard input" if str(source) == STDIN else str(source)
        else:
            self.name = getattr(source, "name", "manifest")
        self._source = source
        self._raw: BinaryIO | None = None
        self._stream: BinaryIO | None = None
        self._owned: list[BinaryIO] = []

    def __enter__(self) -> "ManifestSource":
        try:
            raw = self._open()
            head = raw.peek(4)[:4]
        except OSError as error:
            raise ManifestError(f"cannot read {self.name}: {error.strerror or error}") from error
        if head[:2] == b"\x1f\x8b":
            self._stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw))
            self._owned.append(self._stream)
        elif head == b"\x04\x22\x4d\x18":
            self._stream = cast(BinaryIO, lz4.frame.LZ4FrameFile(raw))
            self._owned.append(self._stream)
        elif head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise ManifestError(f"{self.name} is UTF-16", remedy="convert it to UTF-8")
        else:
            self._stream = cast(BinaryIO, raw)
        self._raw = cast(BinaryIO, raw)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._owned:
            self._owned.pop().close()

    @property
    def total_bytes(self) -> int | None:
        """Size of the file as it lies there (compressed if it is); None when it is no file."""
        if isinstance(self._source, str | Path) and str(self._source) != STDIN:
            return Path(self._source).stat().st_size
        return None

    def read_bytes(self) -> int:
        """How much of `total_bytes` has been read."""
        try:
            return self._raw.tell() if self._raw is not None else 0
        except OSError:
            return 0

    def blocks(self) -> Iterator[LineBlock]:
        """All lines, in order, in blocks. Raises ManifestError when the file cannot be read or unpacked."""
        line = 1
        rest = b""
        first = True
        while True:
            data = self._read()
            if first:
                data = data.removeprefix(_BOM)
                first = False
            if not data:
                break
            end = data.rfind(b"\n") + 1
            if not end:
                rest += data
                if len(rest) > MAX_LINE_BYTES:
                    yield LineBlock(line, b"", too_long=True)
                    rest = self._skip_line()
                    line += 1
                continue
            block = rest + data[:end]
            rest = data[end:]
            yield LineBlock(line, block)
            line += block.count(b"\n")
        if rest.strip():
            yield LineBlock(line, rest + b"\n")

    def _skip_line(self) -> bytes:
        while data := self._read():
            end = data.find(b"\n")
            if end >= 0:
                return data[end + 1 :]
        return b""

    def _read(self) -> bytes:
        if self._stream is None:
            raise AssertionError("use the manifest source as a context manager")
        try:
            return self._stream.read(BLOCK_BYTES)
        except (OSError, EOFError, zlib.error, RuntimeError) as error:
            raise ManifestError(f"cannot read {self.name}: {error}", remedy="the file may be cut short") from error

    def _open(self) -> io.BufferedReader:
        if isinstance(self._source, str | Path):
            if str(self._source) == STDIN:
                return sys.stdin.buffer  # type: ignore[return-value]
            # Closed by __exit__, like everything in `_owned`.
            opened = Path(self._source).open("rb")  # noqa: SIM115
            self._owned.append(cast(BinaryIO, opened))
            return opened
        if isinstance(self._source, io.BufferedReader):
            return self._source
        return io.BufferedReader(cast(io.RawIOBase, self._source))
