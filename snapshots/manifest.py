"""Lines of a manifest to batches of entries, with every fault by line number.

One JSON object per line; docs/manifests.md describes the fields for users. Two forms:

    {"url": "s3://b/k", "path": "p", "size": 1, "etag": "e", "versionId": "v", "sha256": "..", "mtime": .., "labels": {..}}
    {"url": "s3://b/k", "type": "image", "label": [{"name": "n", "type": "classification", "version": 1, "data": [..]}]}

A block of lines is decoded in one call. Only when that fails, or lines and objects do not tally, each line of the
block is looked at alone, to say which one is wrong and why.
"""

import datetime
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .entries import ENTRY_SCHEMA, bad_path_mask, path_fault
from .labels import label_text
from .locate import UrlMap
from .manifest_source import MAX_LINE_BYTES, LineBlock

LINE_SCHEMA = pa.schema(
    [pa.field("line", pa.int64()), *(pa.field(f.name, f.type) for f in ENTRY_SCHEMA)],
)
_Size = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
_Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_EMPTY = msgspec.Raw(b"")
_SHA256 = "^[0-9a-f]{64}$"


class _ToolLabel(msgspec.Struct):
    name: str
    type: str | None = None
    version: Any = None
    data: Any = None


class _Line(msgspec.Struct):
    url: str
    path: str | None = None
    size: _Size | None = None
    etag: str | None = None
    version_id: str | None = msgspec.field(default=None, name="versionId")
    sha256: str | None = None
    mtime: str | float | None = None
    mtime_ns: _Int64 | None = msgspec.field(default=None, name="mtimeNs")
    store: str | None = None
    labels: msgspec.Raw = _EMPTY
    label: list[_ToolLabel] | None = None
    type: str | None = None


class _StrictLine(_Line, forbid_unknown_fields=True):
    pass


@dataclass(frozen=True, slots=True)
class LineFault:
    """A line that cannot be used, and why; `text` is the line as far as it is known (cut at 64 KiB)."""

    line: int
    reason: str
    text: str = ""


@dataclass(slots=True)
class ParsedBlock:
    """The good lines of a block (LINE_SCHEMA; size or etag null where the line has none), and the others."""

    batch: pa.RecordBatch
    faults: list[LineFault] = field(default_factory=list)


class ManifestParser:
    """Parses blocks one after the other."""

    def __init__(self, urls: UrlMap, *, ignore_unknown: bool = False) -> None:
        self._urls = urls
        self._decoder: msgspec.json.Decoder[_Line] = msgspec.json.Decoder(_Line if ignore_unknown else _StrictLine)
        self._labels = msgspec.json.Decoder()

    def parse(self, block: LineBlock) -> ParsedBlock:
        if block.too_long:
            reason = f"the line is longer than {MAX_LINE_BYTES // (1024 * 1024)} MiB"
            return ParsedBlock(_no_lines(), [LineFault(block.first_line, reason)])
        faults: list[LineFault] = []
        try:
            rows = self._decoder.decode_lines(block.data)
            numbers = np.arange(block.first_line, block.first_line + len(rows))
            tally = len(rows) == block.data.count(b"\n") and _one_per_line(block.data, len(rows))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            tally = False
        if not tally:
            rows, numbers, faults = self._line_by_line(block)
        columns, bad = self._columns(rows)
        if bad:
            texts = block.data.split(b"\n")
            for row, reason in sorted(bad.items()):
                number = int(numbers[row])
                faults.append(LineFault(number, reason, _shown(texts[number - block.first_line])))
        batch = pa.RecordBatch.from_arrays([pa.array(numbers, pa.int64()), *columns], schema=LINE_SCHEMA)
        if bad:
            good = np.ones(len(rows), np.bool_)
            good[list(bad)] = False
            batch = batch.filter(pa.array(good))
        return ParsedBlock(batch, sorted(faults, key=lambda fault: fault.line))

    def _line_by_line(self, block: LineBlock) -> "tuple[list[_Line], np.ndarray[Any, Any], list[LineFault]]":
        rows: list[_Line] = []
        numbers: list[int] = []
        faults: list[LineFault] = []
        for number, line in enumerate(block.data.split(b"\n")[:-1], block.first_line):
            if not line.strip():
                continue
            if len(line) > MAX_LINE_BYTES:
                reason = f"the line is longer than {MAX_LINE_BYTES // (1024 * 1024)} MiB"
                faults.append(LineFault(number, reason, _shown(line)))
                continue
            try:
                rows.append(self._decoder.decode(line))
                numbers.append(number)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                faults.append(LineFault(number, _reason(line, error), _shown(line)))
        return rows, np.array(numbers, np.int64), faults

    def _columns(self, rows: list[_Line]) -> tuple[list[pa.Array], dict[int, str]]:
        """The columns of ENTRY_SCHEMA, and the rows that cannot be used with the reason."""
        bad: dict[int, str] = {}
        stores, keys, url_faults = self._urls.locate(pa.array([row.url for row in rows], pa.string()))
        bad.update(url_faults)
        named = [row.store for row in rows]
        if any(named):
            stores = pc.coalesce(pa.array(named, pa.string()), stores)
        paths = pc.coalesce(pa.array([row.path for row in rows], pa.string()), keys)
        for row in np.flatnonzero(np.asarray(pc.fill_null(bad_path_mask(paths), False))).tolist():
            if fault := path_fault(paths[row].as_py()):
                bad.setdefault(row, fault)
        etags = pa.array([row.etag for row in rows], pa.string())
        if pc.any(pc.match_substring(etags, '"')).as_py():
            etags = pc.utf8_trim(pc.replace_substring_regex(etags, "^W/", ""), '"')
        etags = pc.if_else(pc.equal(etags, ""), pa.scalar(None, pa.string()), etags)
        hashes = pc.utf8_lower(pa.array([row.sha256 for row in rows], pa.string()))
        wrong = pc.fill_null(pc.invert(pc.match_substring_regex(hashes, _SHA256)), False)
        for row in np.flatnonzero(np.asarray(wrong)).tolist():
            bad.setdefault(row, f"sha256 {hashes[row].as_py()[:80]!r} is not 64 hex digits")
        columns = {
            "path": paths,
            "store": stores,
            "key": keys,
            "etag": etags,
            "version_id": pa.array([row.version_id for row in rows], pa.string()),
            "size": pa.array([row.size for row in rows], pa.int64()),
            "mtime_ns": _mtimes(rows, bad),
            "sha256": hashes,
            "labels": self._label_column(rows, bad),
        }
        return [columns[name] for name in ENTRY_SCHEMA.names], bad

    def _label_column(self, rows: list[_Line], bad: dict[int, str]) -> pa.Array:
        # Equal texts are decoded once: most manifests have far fewer label sets than lines.
        known: dict[bytes, str | None] = {b"": None}
        texts: list[str | None] = []
        for number, row in enumerate(rows):
            raw = bytes(row.labels)
            if row.label is not None:
                texts.append(_tool_labels(row, raw, bad, number))
                continue
            if raw not in known:
                try:
                    known[raw] = label_text(self._labels.decode(raw))
                except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                    bad.setdefault(number, f"labels: {error}")
                    known[raw] = None
            texts.append(known[raw])
        return pa.array(texts, pa.string())


def _one_per_line(data: bytes, count: int) -> bool:
    """Whether a block that holds `count` objects in as many lines has one in each.

    Inside of JSON `}` is never followed by `{`, so line ends of this form all lie between objects.
    """
    return data.startswith(b"{") and data.count(b"}\n{") + data.count(b"}\r\n{") == count - 1


def _tool_labels(row: _Line, raw: bytes, bad: dict[int, str], number: int) -> str | None:
    """Labels of a labelling tool's line: per label its type, version and data, and `class` when it classifies as one."""
    if raw:
        bad.setdefault(number, "a line has either `labels` or `label`, not both")
        return None
    labels: dict[str, Any] = {}
    if row.type is not None:
        labels["type"] = row.type
    for item in row.label or []:
        if item.name in labels:
            bad.setdefault(number, f"the label {item.name[:80]!r} occurs twice")
        found = {"type": item.type, "version": item.version, "data": item.data}
        one = item.data[0] if isinstance(item.data, list) and len(item.data) == 1 else item.data
        if item.type == "classification" and isinstance(one, str | int | float | bool):
            found["class"] = one
        labels[item.name] = {key: value for key, value in found.items() if value is not None}
    return label_text(labels)


def _mtimes(rows: list[_Line], bad: dict[int, str]) -> pa.Array:
    if all(row.mtime is None for row in rows):
        return pa.array([row.mtime_ns for row in rows], pa.int64())
    values: list[int | None] = []
    for number, row in enumerate(rows):
        value = row.mtime_ns
        if value is None and row.mtime is not None:
            try:
                value = _mtime_ns(row.mtime)
            except (ValueError, OverflowError):
                bad.setdefault(number, f"mtime {str(row.mtime)[:80]!r} is neither seconds nor an ISO 8601 date")
        values.append(value)
    return pa.array(values, pa.int64())


def _mtime_ns(mtime: str | float) -> int:
    if isinstance(mtime, str):
        moment = datetime.datetime.fromisoformat(mtime)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=datetime.UTC)
        return round(moment.timestamp() * 1_000_000) * 1000
    value = round(mtime * 1_000_000) * 1000
    if not -(1 << 63) <= value < 1 << 63:
        raise OverflowError
    return value


def _reason(line: bytes, error: Exception) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as bad:
        return f"bad UTF-8 at byte {bad.start + 1} of the line"
    if isinstance(error, RecursionError):
        return "the JSON is nested too deeply"
    if isinstance(error, msgspec.ValidationError):
        return f"{error}"
    return f"bad JSON: {error}"


def _shown(line: bytes) -> str:
    return line[: 64 * 1024].decode("utf-8", "replace").rstrip("\r")


def _no_lines() -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema=LINE_SCHEMA)
