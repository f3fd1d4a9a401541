"""`forebay://` for Python: an fsspec file system that reads through the Forebay process which holds the cache.

    forebay://s3/bucket/key              an object of a bucket; likewise file, gs, abfs, ... as the first word
    forebay://dataset@ref/path           a file of a snapshot

so pandas, pyarrow, `datasets` and PyTorch read cached data by putting `forebay://s3/` where `s3://` was. If a mount
or another program already holds the cache of that bucket, its process is used; otherwise one is started in the
background (`forebay serve`) and ends by itself when idle. So many processes share one cache and one set of fetches.

Safe in forked and spawned data-loader workers: there is no event loop and no thread here, every process opens its own
connections, and instances pickle. Read-only. Storage options are the settings of `forebay config` with underscores
(`endpoint_url=`, `cache_size=`, ...), and `source=` to say where the root of the cached tree is, if it is not the bucket.
"""

import io
import json
import os
import re
import secrets
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import fsspec
import fsspec.spec

from .. import config
from ..errors import DaemonUnreachable, ForebayError, ObjectNotFound, UsageError
from . import registry
from .control import Control, error_from

# One request to the process: large enough that its cost does not matter, small enough to be quick for random readers.
BLOCK_BYTES = 1024 * 1024
_MAX_RANGES = 512
_START_TIMEOUT_S = 240.0
_DATASET = re.compile(r"[^/@]+@[^/]+")

_starting = threading.Lock()


def _renew_lock() -> None:
    """In a forked child: a thread that exists only in the parent may have held it."""
    global _starting
    _starting = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


class ForebayFileSystem(fsspec.spec.AbstractFileSystem):  # type: ignore[misc]
    """See the module. Errors are those of `OSError` where Python programs look for them (FileNotFoundError), else ours."""

    protocol = "forebay"
    root_marker = ""
    cachable = True

    def __init__(self, source: str | None = None, **options: Any) -> None:
        texts = {name.replace("_", "-"): value for name, value in options.items() if name not in _FSSPEC_OPTIONS}
        for name in texts:
            if name not in config.TABLE:
                raise config.unknown_setting(name)
        super().__init__(source=source, **options)
        self._source = source.rstrip("/") if source else None
        self._texts = {name: _text_of(value) for name, value in texts.items() if value is not None}
        self._controls: dict[str, Control] = {}

    # --- What fsspec calls. Paths are without `forebay://`: `s3/bucket/key`, `dataset@ref/path`. ---

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        root, inside = self._split(path)
        try:
            entries = [e for lines in self._stream(root, "files/list", {"path": inside}) for e in lines["entries"]]
        except ObjectNotFound as error:
            if self.info(path)["type"] != "file":
                raise FileNotFoundError(path) from error
            entries = [{**self._get(root, "files/info", path=inside), "name": inside}]
        found = [self._entry(root, entry) for entry in entries]
        return found if detail else [entry["name"] for entry in found]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        root, inside = self._split(path)
        try:
            return self._entry(root, self._get(root, "files/info", path=inside))
        except ObjectNotFound as error:
            raise FileNotFoundError(path) from error

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        if maxdepth is not None or withdirs:
            return super().find(path, maxdepth=maxdepth, withdirs=withdirs, detail=detail)
        root, inside = self._split(self._strip_protocol(path))
        found: dict[str, Any] = {}
        try:
            for lines in self._stream(root, "files/find", {"path": inside}):
                for entry in lines["entries"]:
                    one = self._entry(root, entry)
                    found[one["name"]] = one
        except ObjectNotFound:
            pass  # as everywhere in fsspec: what is not there has no files below it
        names = sorted(found)
        return {name: found[name] for name in names} if detail else names

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        (data,) = self._read_all([(self._strip_protocol(path), start, end)])
        if isinstance(data, Exception):
            raise data
        return data

    def cat_ranges(
        self,
        paths: Sequence[str],
        starts: Sequence[int | None] | int | None,
        ends: Sequence[int | None] | int | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **_: Any,
    ) -> list[Any]:
        count = len(paths)
        low = list(starts) if isinstance(starts, Iterable) else [starts] * count
        high = list(ends) if isinstance(ends, Iterable) else [ends] * count
        if not count == len(low) == len(high):
            raise ValueError(f"{count} paths, {len(low)} starts and {len(high)} ends")
        found = self._read_all([(self._strip_protocol(p), s, e) for p, s, e in zip(paths, low, high, strict=True)])
        if on_error != "return":
            for data in found:
                if isinstance(data, Exception):
                    raise data
        return found

    def cat(self, path: Any, recursive: bool = False, on_error: str = "raise", **_: Any) -> Any:
        paths = self.expand_path(path, recursive=recursive)
        if len(paths) == 1 and not isinstance(path, list) and paths[0] == self._strip_protocol(path):
            return self.cat_file(paths[0])
        paths = [one for one in paths if not recursive or self.isfile(one)]
        found = dict(zip(paths, self._read_all([(one, None, None) for one in paths]), strict=True))
        failed = next((data for data in found.values() if isinstance(data, Exception)), None)
        if failed is not None and on_error == "raise":
            raise failed
        return {p: d for p, d in found.items() if on_error != "omit" or not isinstance(d, Exception)}

    def _open(
        self, path: str, mode: str = "rb", block_size: int | None = None, cache_options: Any = None, **options: Any
    ) -> "ForebayFile":
        if mode != "rb":
            raise io.UnsupportedOperation(f"forebay:// is read-only, and {path} was to be opened with mode {mode!r}")
        options.setdefault("cache_type", "readahead")
        return ForebayFile(self, path, mode, block_size or BLOCK_BYTES, cache_options=cache_options, **options)

    def created(self, path: str) -> Any:
        return self.modified(path)

    def modified(self, path: str) -> Any:
        import datetime

        return datetime.datetime.fromtimestamp(self.info(path)["mtime"], datetime.UTC)

    def ukey(self, path: str) -> str:
        """Changes when the content does."""
        return str(self.info(path)["digest"])

    def checksum(self, path: str) -> int:
        return int(self.ukey(path)[:16], 16)

    # --- Roots: which process answers for a path. ---

    def _split(self, path: str) -> tuple[str, str]:
        """(source, path inside of it). The source is the one given, or that of a running process, or the bucket."""
        first, _, rest = path.strip("/").partition("/")
        if not first:
            raise FileNotFoundError("forebay:// has no root: name a store, as in forebay://s3/bucket, or a dataset@ref")
        if _DATASET.fullmatch(first):
            return first, rest
        slashes = "///" if first == "file" else "://"
        url = f"file:///{rest}" if first == "file" else f"{first}{slashes}{rest}"
        if self._source is not None:
            if not (url + "/").startswith(self._source + "/"):
                raise FileNotFoundError(f"{url} is not inside the source {self._source}")
            return self._source, url[len(self._source) :].strip("/")
        for root in self._controls:
            if (url + "/").startswith(root + "/"):
                return root, url[len(root) :].strip("/")
        covering = [e.source for e in registry.entries() if (url + "/").startswith(e.source.rstrip("/") + "/")]
        if covering:
            root = max(covering, key=len).rstrip("/")
            return root, url[len(root) :].strip("/")
        if first == "file":
            raise UsageError(
                f"no Forebay process holds {url}, and it cannot be told which folder to hold",
                remedy='give source="file:///folder", or start `forebay serve file:///folder`',
            )
        bucket, _, key = rest.partition("/")
        return f"{first}://{bucket}", key

    def _entry(self, root: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        """An entry as fsspec wants it."""
        base = (
            root
            if "://" not in root
            else root.replace("://", "/", 1)
            if not root.startswith("file:///")
            else "file/" + root[8:]
        )
        name = f"{base}/{entry['name']}".rstrip("/")
        answer = {**entry, "name": name, "type": entry["type"], "size": entry["size"]}
        if "mtime_ns" in answer:
            answer["mtime"] = answer.pop("mtime_ns") / 1e9
        return answer

    def _control(self, root: str) -> Control:
        known = self._controls.get(root)
        if known is None:
            with _starting:  # of many threads that come at once, one starts the process
                known = self._controls.get(root)
                if known is None:
                    known = self._controls[root] = self._find_or_start(root)
        return known

    def _find_or_start(self, root: str) -> Control:
        """The control socket of the process that holds the cache of `root`, started if there is none."""
        holder = next((entry for entry in registry.entries() if entry.source.rstrip("/") == root), None)
        if holder is not None:
            return Control(holder.socket)
        # Settings go as variables, not as arguments: everybody can read the arguments of a process. If several programs
        # start at once, `serve` answers to all of them with the one process that won.
        variables = {config.TABLE[name].variable: text for name, text in self._texts.items()}
        done = subprocess.run(
            [sys.executable, "-P", "-m", "forebay.cli", "serve", "--json", root],
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_START_TIMEOUT_S,
            check=False,
        )
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            raise DaemonUnreachable(
                f"`forebay serve {root}` ended with exit status {done.returncode}", remedy="run it by hand to see why"
            ) from None
        if "error" in answer:
            raise error_from(answer["error"])
        return Control(answer["socket"])

    # --- Calls. A process may end (idle, or in favour of a mount) between two of them: then the next one is asked. ---

    def _get(self, root: str, call: str, **query: str | int) -> Any:
        query |= _named(root)
        try:
            return self._control(root).get(call, **query)
        except DaemonUnreachable:
            self._forget(root)
            return self._control(root).get(call, **query)

    def _stream(self, root: str, call: str, body: Mapping[str, Any]) -> Iterator[Any]:
        body, started = {**body, **_named(root)}, False
        try:
            for line in self._control(root).stream(call, body):
                started = True
                yield line
        except DaemonUnreachable:
            if started:
                raise  # what was given out cannot be taken back
            self._forget(root)
            yield from self._control(root).stream(call, body)

    def _forget(self, root: str) -> None:
        known = self._controls.pop(root, None)
        if known is not None:
            known.close()

    def _read(self, root: str, ranges: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], bytes]]:
        """One request: for each range a head (what was sent, or the error) and the bytes."""
        body = {"ranges": list(ranges), **_named(root)}
        try:
            answer = self._control(root).post_for_bytes("files/read", body)
        except DaemonUnreachable:
            self._forget(root)
            answer = self._control(root).post_for_bytes("files/read", body)
        position = answer.index(b"\n") + 1
        view, found = memoryview(answer), []
        for head in json.loads(answer[:position]):
            size = head.get("size", 0)
            found.append((head, bytes(view[position : position + size])))
            position += size
        return found

    def _read_all(self, wanted: Sequence[tuple[str, int | None, int | None]]) -> list[bytes | Exception]:
        """The ranges of these files, in as few requests as they fit into. Failures stand in their place."""
        found: list[bytes | Exception] = [b""] * len(wanted)
        by_root: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for index, (path, start, end) in enumerate(wanted):
            root, inside = self._split(path)
            by_root.setdefault(root, []).append((index, {"path": inside, "start": start, "end": end}))
        for root, ranges in by_root.items():
            for index, data in self.read_ranges(root, ranges):
                found[index] = data
        return found

    def read_ranges(
        self, root: str, ranges: Sequence[tuple[int, dict[str, Any]]]
    ) -> Iterator[tuple[int, bytes | Exception]]:
        """(number, bytes or error) of numbered ranges. What an answer leaves out is asked for again, by its digest."""
        waiting = deque(ranges)
        parts: dict[int, list[bytes]] = {}
        while waiting:
            asked = [waiting.popleft() for _ in range(min(len(waiting), _MAX_RANGES))]
            again = []
            for (index, wanted), (head, data) in zip(asked, self._read(root, [one for _, one in asked]), strict=True):
                if "error" in head:
                    yield index, _as_os_error(error_from(head["error"]), wanted["path"])
                    continue
                if head["left"]:
                    if data:
                        parts.setdefault(index, []).append(data)
                    start = head["offset"] + head["size"]
                    again.append(
                        (index, {**wanted, "start": start, "end": start + head["left"], "digest": head["digest"]})
                    )
                    continue
                yield index, b"".join([*parts.pop(index), data]) if index in parts else data
            waiting.extendleft(reversed(again))


class ForebayFile(fsspec.spec.AbstractBufferedFile):  # type: ignore[misc]
    """An open file: keeps the version that it was opened with, or fails with ObjectChanged."""

    def __init__(self, fs: ForebayFileSystem, path: str, *args: Any, **options: Any) -> None:
        super().__init__(fs, path, *args, **options)
        self._root, self._inside = fs._split(path)
        if self.details["type"] != "file":
            raise IsADirectoryError(path)
        self._digest: str = self.details["digest"]
        # A number for this open file, so that the cache reads ahead of it.
        self._reader = secrets.randbits(62) | 1

    def _fetch_range(self, start: int, end: int) -> bytes:
        wanted = {"path": self._inside, "digest": self._digest, "start": start, "end": end, "reader": self._reader}
        files: ForebayFileSystem = self.fs
        ((_, data),) = files.read_ranges(self._root, [(0, wanted)])
        if isinstance(data, Exception):
            raise data
        return data


_FSSPEC_OPTIONS = {
    "use_listings_cache",
    "listings_expiry_time",
    "max_paths",
    "skip_instance_cache",
    "asynchronous",
    "loop",
}


def _named(root: str) -> dict[str, str]:
    """Which version is meant: the process that holds the cache of a dataset answers for all versions of it."""
    return {"source": root} if _DATASET.fullmatch(root) else {}


def _text_of(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _as_os_error(error: ForebayError, path: str) -> Exception:
    if isinstance(error, ObjectNotFound):
        missing = FileNotFoundError(path)
        missing.__cause__ = error
        return missing
    return error
