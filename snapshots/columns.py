"""The canonical form of columns: the bytes that pages are made of and named after.

A page is named by the hash of its bytes, so the same values must give the same bytes on every machine and with
every version of every library, for as long as versions are kept. Arrow's own file format promises to be
readable, not to be reproducible; so the few encodings are ours, and every choice between them is a function of
the values alone. docs/snapshot-format.md has the layout field by field.

Null slots take no room: a bitmap says which rows are present, and only present values are encoded.
"""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

MAGIC = b"FBPG"
FORMAT_VERSION = 1
_HEADER = struct.Struct("<4sBBHI")
_COLUMN = struct.Struct("<BI")

BYTES, HEX, INTS, FLOATS, BOOLS, DICTIONARY = 1, 2, 3, 4, 5, 6
NULLABLE = 0x80

_HEX_VALUE = np.full(256, 255, np.uint8)
_HEX_VALUE[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16, dtype=np.uint8)
_HEX_DIGIT = np.frombuffer(b"0123456789abcdef", np.uint8)
_WIDTHS: dict[int, Any] = {1: np.dtype("<u1"), 2: np.dtype("<u2"), 4: np.dtype("<u4"), 8: np.dtype("<u8")}
# Strings shorter than this are never packed as hex: the header would cost more than it saves.
_HEX_MIN_CHARS = 8


class ColumnsCorrupt(ValueError):
    """The bytes are no column file, or one of a newer format; the message says which."""


def encode_columns(kind: int, row_count: int, columns: dict[str, pa.Array]) -> bytes:
    """The canonical bytes of the columns (sorted by name; those with nulls only are left out).

    Types: string, int64, double and bool; every column has `row_count` rows.
    """
    parts = [b""]
    count = 0
    for name in sorted(columns):
        array = columns[name]
        if len(array) != row_count:
            raise ValueError(f"column {name} has {len(array)} rows of {row_count}")
        if array.null_count == row_count and row_count:
            continue
        encoding, body = _encode(array)
        name_bytes = name.encode()
        parts += (len(name_bytes).to_bytes(2, "little"), name_bytes, _COLUMN.pack(encoding, len(body)), body)
        count += 1
    parts[0] = _HEADER.pack(MAGIC, FORMAT_VERSION, kind, count, row_count)
    return b"".join(parts)


class ColumnFile:
    """Columns read lazily from canonical bytes. Strings are views of `data`, not copies.

    Raises ColumnsCorrupt on opening or decoding when the bytes are not what `encode_columns` makes.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data
        try:
            magic, version, self.kind, count, self.row_count = _HEADER.unpack_from(data)
            if magic != MAGIC:
                raise ColumnsCorrupt("not a page (wrong magic)")
            if version != FORMAT_VERSION:
                raise ColumnsCorrupt(f"page format {version}; this Forebay reads {FORMAT_VERSION}")
            self._where: dict[str, tuple[int, int, int]] = {}
            at = _HEADER.size
            for _ in range(count):
                name_size = int.from_bytes(data[at : at + 2], "little")
                name = data[at + 2 : at + 2 + name_size].decode()
                at += 2 + name_size
                encoding, size = _COLUMN.unpack_from(data, at)
                at += _COLUMN.size
                self._where[name] = (encoding, at, size)
                at += size
        except (struct.error, UnicodeDecodeError) as error:
            raise ColumnsCorrupt(f"truncated page: {error}") from error
        if at != len(data):
            raise ColumnsCorrupt(f"the page has {len(data)} bytes and should have {at}")

    @property
    def names(self) -> list[str]:
        """Names of the columns that have at least one value."""
        return list(self._where)

    def column(self, name: str, type_: pa.DataType) -> pa.Array:
        """The column as Arrow, all null when it is not in the file."""
        if name not in self._where:
            return pa.nulls(self.row_count, type_)
        encoding, at, size = self._where[name]
        try:
            return _decode(encoding, memoryview(self.data)[at : at + size], self.row_count)
        except (ValueError, IndexError, struct.error, pa.ArrowInvalid) as error:
            raise ColumnsCorrupt(f"column {name}: {error}") from error


# --- Encoding. -------------------------------------------------------------------------------------------


def _encode(array: pa.Array) -> tuple[int, bytes]:
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    flag, head = 0, b""
    if array.null_count:
        flag = NULLABLE
        valid = np.asarray(pc.is_valid(array))
        head = np.packbits(valid, bitorder="little").tobytes()
        array = array.drop_null()
    if pa.types.is_integer(array.type):
        return flag | INTS, head + _encode_ints(np.asarray(array.cast(pa.int64())))
    if pa.types.is_floating(array.type):
        return flag | FLOATS, head + np.asarray(array).astype("<f8").tobytes()
    if pa.types.is_boolean(array.type):
        return flag | BOOLS, head + np.asarray(array).astype(np.uint8).tobytes()
    if not pa.types.is_string(array.type):
        raise TypeError(f"no canonical form for {array.type}")
    packed = _encode_hex(array)
    if packed is not None:
        return flag | HEX, head + packed
    if len(array) >= 2 and pc.count_distinct(array).as_py() * 2 <= len(array):
        coded = array.dictionary_encode()
        order = np.asarray(pc.sort_indices(coded.dictionary))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        values = _encode_bytes(coded.dictionary.take(pa.array(order)))
        codes = _encode_ints(rank[np.asarray(coded.indices)])
        return flag | DICTIONARY, head + struct.pack("<II", len(order), len(values)) + values + codes
    return flag | BYTES, head + _encode_bytes(array)


def _encode_ints(values: npt.NDArray[np.int64]) -> bytes:
    if not len(values):
        return struct.pack("<qB", 0, 0)
    low, high = int(values.min()), int(values.max())
    if low == high:
        return struct.pack("<qB", low, 0)
    width = next(w for w in _WIDTHS if high - low < 1 << 8 * w)
    # Wrap-around of 64-bit arithmetic gives the right difference even where it exceeds the signed range.
    offsets = values.astype(np.uint64) - np.uint64(low & 0xFFFFFFFFFFFFFFFF)
    return struct.pack("<qB", low, width) + offsets.astype(_WIDTHS[width]).tobytes()


def string_parts(array: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """(offsets, bytes) of a string array without nulls; offsets start at 0 and index into the bytes."""
    buffers = array.buffers()
    offsets = np.frombuffer(buffers[1], np.int32)[array.offset : array.offset + len(array) + 1].astype(np.int64)
    if not len(offsets):
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    data = np.frombuffer(buffers[2], np.uint8) if buffers[2] is not None else np.empty(0, np.uint8)
    return offsets - offsets[0], data[offsets[0] : offsets[-1]]


def _encode_bytes(array: pa.Array) -> bytes:
    offsets, data = string_parts(array)
    lengths = np.diff(offsets)
    longest = int(lengths.max()) if len(lengths) else 0
    width = next(w for w in (1, 2, 4) if longest < 1 << 8 * w)
    return bytes([width]) + lengths.astype(_WIDTHS[width]).tobytes() + data.tobytes()


def _encode_hex(array: pa.Array) -> bytes | None:
    if not len(array):
        return None
    offsets, data = string_parts(array)
    chars = int(offsets[1])
    if chars < _HEX_MIN_CHARS or chars % 2 or chars > 510 or len(data) != chars * len(array):
        return None
    if (np.diff(offsets) != chars).any():
        return None
    digits = _HEX_VALUE[data]
    if (digits == 255).any():
        return None
    packed = (digits[0::2] << 4) | digits[1::2]
    return bytes([chars // 2]) + packed.tobytes()


# --- Decoding. -------------------------------------------------------------------------------------------


def _decode(encoding: int, body: memoryview, row_count: int) -> pa.Array:
    valid = None
    count = row_count
    if encoding & NULLABLE:
        size = -(-row_count // 8)
        bits = np.frombuffer(body[:size], np.uint8)
        valid = np.unpackbits(bits, bitorder="little")[:row_count].astype(bool)
        count = int(valid.sum())
        body = body[size:]
    kind = encoding & ~NULLABLE
    if kind == INTS:
        return _spread(_decode_ints(body, count), valid, pa.int64())
    if kind == FLOATS:
        return _spread(_exactly(body, "<f8", count), valid, pa.float64())
    if kind == BOOLS:
        return _spread(_exactly(body, "<u1", count).astype(bool), valid, pa.bool_())
    if kind == HEX:
        width = body[0]
        packed = _exactly(body[1:], "<u1", count * width)
        digits = np.empty(2 * len(packed), np.uint8)
        digits[0::2] = _HEX_DIGIT[packed >> 4]
        digits[1::2] = _HEX_DIGIT[packed & 15]
        return _strings(np.full(count, 2 * width, np.int64), digits.data, valid)
    if kind == BYTES:
        lengths, data = _decode_bytes(body, count)
        return _strings(lengths, data, valid)
    if kind == DICTIONARY:
        value_count, values_size = struct.unpack_from("<II", body)
        lengths, data = _decode_bytes(body[8 : 8 + values_size], value_count)
        codes = _decode_ints(body[8 + values_size :], count)
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < value_count:
            raise ValueError("a dictionary code is out of range")
        return _strings(lengths, data, None).take(_spread(codes, valid, pa.int64()))
    raise ValueError(f"unknown encoding {encoding}")


def _exactly(body: memoryview, dtype: str, count: int) -> npt.NDArray[Any]:
    array = np.frombuffer(body, dtype)
    if len(array) != count:
        raise ValueError(f"{len(array)} values where {count} were expected")
    return array


def _decode_ints(body: memoryview, count: int) -> npt.NDArray[np.int64]:
    low, width = struct.unpack_from("<qB", body)
    if width == 0:
        return np.full(count, low, np.int64)
    offsets = _exactly(body[9:], _WIDTHS[width].str, count)
    return (offsets.astype(np.uint64) + np.uint64(low & 0xFFFFFFFFFFFFFFFF)).astype(np.int64)


def _decode_bytes(body: memoryview, count: int) -> tuple[npt.NDArray[np.int64], memoryview]:
    width = body[0]
    end = 1 + count * width
    lengths = _exactly(body[1:end], _WIDTHS[width].str, count).astype(np.int64)
    if end + int(lengths.sum()) != len(body):
        raise ValueError("the string lengths do not add up")
    return lengths, body[end:]


def _strings(lengths: npt.NDArray[np.int64], data: memoryview, valid: npt.NDArray[np.bool_] | None) -> pa.Array:
    bitmap = None
    if valid is not None:
        spread = np.zeros(len(valid), np.int64)
        spread[valid] = lengths
        lengths = spread
        bitmap = pa.py_buffer(np.packbits(valid, bitorder="little"))
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.Array.from_buffers(pa.string(), len(lengths), [bitmap, pa.py_buffer(offsets), pa.py_buffer(data)])


def _spread(values: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None, type_: pa.DataType) -> pa.Array:
    if valid is None:
        return pa.array(values, type_)
    full = np.zeros(len(valid), values.dtype)
    full[valid] = values
    return pa.array(full, type_, mask=~valid)
