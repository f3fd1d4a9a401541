"""Labels as typed columns: any JSON value in, any JSON value out, and vectorised filters in between.

Labels are free JSON, but what people select by are scalars at a few fixed places (`label.class`,
`label.review.score`). So a page keeps every scalar that it finds at some place as a column of its type, and the
rest (lists, nulls, empty objects, numbers beyond 64 bits) as JSON text in one residual column. The same
place may hold text in one entry and a number in the next: that gives two columns, each with nulls where the
other has the value.

A page has at most MAX_COLUMNS such columns; which ones is decided by count, then name, so that the page is a
function of its entries. Everything beyond stays in the residual: slower to filter, never lost.
"""

import itertools
import json
from collections.abc import Container, Iterator
from typing import Any, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .entries import canonical_json

Place: TypeAlias = tuple[str, ...]

MAX_COLUMNS = 64
MAX_DEPTH = 8
RESIDUAL = "labels"
TYPES: dict[str, pa.DataType] = {"s": pa.string(), "i": pa.int64(), "f": pa.float64(), "b": pa.bool_()}

_decode_json = msgspec.json.Decoder().decode
_encode_json = msgspec.json.Encoder(order="deterministic").encode


def label_text(value: Any) -> str | None:
    """The JSON text of labels in a batch: keys sorted, so that equal labels have equal texts; None stays None.

    In a batch this is enough, and ten times faster than `canonical_json`, whose text goes into pages: the way this
    one writes numbers may change with the library.
    """
    if value is None:
        return None
    try:
        return _encode_json(value).decode()
    except OverflowError:
        return canonical_json(value)


def column_name(place: Place, type_code: str) -> str:
    """Name of the page column of a place: `label` + type code + the keys as a JSON list."""
    return f"label{type_code}" + json.dumps(place, ensure_ascii=False, separators=(",", ":"))


def place_of(name: str) -> tuple[Place, str] | None:
    """(place, type code) of a label column, None for other columns."""
    if not name.startswith("label") or len(name) < 7 or name[5] not in TYPES or name[6] != "[":
        return None
    return tuple(json.loads(name[6:])), name[5]


def shred(labels: pa.Array) -> dict[str, pa.Array]:
    """The page columns of a column of labels (JSON texts)."""
    coded = labels.dictionary_encode()
    values = [_decode_json(text) for text in coded.dictionary.to_pylist()]
    places: _Places = {}
    rest = [_take(value, places, row, 1) if isinstance(value, dict) else value for row, value in enumerate(values)]
    found = dict(_flat(places, ()))
    if len(found) > MAX_COLUMNS:
        found = _most_used(found, coded.indices, len(values))
        rest = [_residual(value, (), found) for value in values]
    columns: dict[str, pa.Array] = {}
    for key, column in found.items():
        column.extend(itertools.repeat(None, len(values) - len(column)))
        columns[column_name(*key)] = pa.array(column, TYPES[key[1]]).take(coded.indices)
    texts = [canonical_json(value) for value in rest]
    if any(text is not None for text in texts):
        columns[RESIDUAL] = pa.array(texts, pa.string()).take(coded.indices)
    return columns


# Key -> (the places below it, its scalars by type). A column is as long as its last value needs; the rest is None.
_Places: TypeAlias = "dict[str, tuple[_Places, dict[type, list[Any]]]]"
_CODES: dict[type, str] = {str: "s", bool: "b", int: "i", float: "f"}


def _take(value: dict[str, Any], places: _Places, row: int, depth: int) -> Any:
    """Move the scalars of a value into the columns of their places; returns what is left, None when nothing is."""
    rest: dict[str, Any] = {}
    for key, item in value.items():
        kind = type(item)
        if kind in _CODES and (kind is not int or _fits(item)):
            place = places.get(key)
            if place is None:
                place = places[key] = ({}, {})
            column = place[1].get(kind)
            if column is None:
                column = place[1][kind] = []
            if len(column) < row:
                column.extend(itertools.repeat(None, row - len(column)))
            column.append(item)
        elif kind is dict and item and depth < MAX_DEPTH:
            left = _take(item, places.setdefault(key, ({}, {}))[0], row, depth + 1)
            if left is not None:
                rest[key] = left
        else:
            rest[key] = item
    # An empty object is a value of its own and is kept whole.
    return rest or (None if value else value)


def _flat(places: _Places, above: Place) -> Iterator[tuple[tuple[Place, str], list[Any]]]:
    for key, (below, columns) in places.items():
        here = (*above, key)
        for kind, column in columns.items():
            yield (here, _CODES[kind]), column
        yield from _flat(below, here)


def _most_used(
    found: dict[tuple[Place, str], list[Any]], indices: pa.Array, count: int
) -> dict[tuple[Place, str], list[Any]]:
    """The MAX_COLUMNS columns with the most values, then the first by name."""
    rows = np.bincount(np.asarray(indices.drop_null()), minlength=count).tolist()
    used = {
        key: sum(times for item, times in zip(column, rows, strict=False) if item is not None)
        for key, column in found.items()
    }
    kept = sorted(found, key=lambda key: (-used[key], column_name(*key)))[:MAX_COLUMNS]
    return {key: found[key] for key in kept}


def _residual(value: Any, place: Place, kept: Container[tuple[Place, str]]) -> Any:
    """What the kept columns do not hold; None when nothing is left."""
    if not isinstance(value, dict) or not value:
        return value
    rest: dict[str, Any] = {}
    for key, item in value.items():
        here = (*place, key)
        kind = type(item)
        if kind is dict and item:
            left = _residual(item, here, kept)
            if left is not None:
                rest[key] = left
        elif kind not in _CODES or (here, _CODES[kind]) not in kept or (kind is int and not _fits(item)):
            rest[key] = item
    return rest or None


def _fits(number: int) -> bool:
    """Whether a whole number goes into a column of 64 bits."""
    return -(1 << 63) <= number < 1 << 63


def assemble(columns: dict[str, pa.Array], row_count: int) -> pa.Array:
    """The labels (as `label_text`) back from page columns (those of `shred`, others are ignored)."""
    pieces = [(place_of(name), array) for name, array in columns.items() if place_of(name) or name == RESIDUAL]
    if not pieces:
        return pa.nulls(row_count, pa.string())
    # Rows with the same labels are assembled once: the codes of all columns are folded into one number per row.
    combined = np.zeros(row_count, np.int64)
    dictionaries: list[list[Any]] = []
    for _, array in pieces:
        coded = array.dictionary_encode()
        codes = np.asarray(coded.indices.fill_null(-1)).astype(np.int64) + 1
        combined = combined * (len(coded.dictionary) + 1) + codes
        _, combined = np.unique(combined, return_inverse=True)
        dictionaries.append([codes, [None, *coded.dictionary.to_pylist()]])
    _, first, inverse = np.unique(combined, return_index=True, return_inverse=True)
    texts: list[str | None] = []
    for row in first.tolist():
        value: Any = None
        for (where, _), (codes, distinct) in zip(pieces, dictionaries, strict=True):
            item = distinct[codes[row]]
            if item is None:
                continue
            if where is None:
                value = _overlay(_decode_json(item), value)
            else:
                value = {} if value is None else value
                _put(value, where[0], item)
        texts.append(label_text(value))
    return pa.array(texts, pa.string()).take(pa.array(inverse))


def _put(target: dict[str, Any], place: Place, item: Any) -> None:
    for key in place[:-1]:
        target = target.setdefault(key, {})
    target[place[-1]] = item


def _overlay(base: Any, over: Any) -> Any:
    """`over` laid into `base`; both are parts of one value, so they never hold the same place."""
    if isinstance(base, dict) and isinstance(over, dict):
        for key, item in over.items():
            base[key] = _overlay(base[key], item) if key in base else item
        return base
    return base if over is None else over


def residual_values(residual: pa.Array, place: Place) -> list[Any]:
    """What the residual column holds at a place, per row; None where it holds nothing (or null) there."""
    coded = residual.dictionary_encode()
    found: list[Any] = []
    for text in coded.dictionary.to_pylist():
        value: Any = _decode_json(text)
        for key in place:
            value = value.get(key) if isinstance(value, dict) else None
        found.append(value)
    return [None if code is None else found[code] for code in coded.indices.to_pylist()]


def labels_equal(left: pa.Array, right: pa.Array) -> pa.Array:
    """Row by row, whether two columns of canonical labels are the same (null equals null)."""
    both_null = pc.and_(pc.is_null(left), pc.is_null(right))
    return pc.or_(both_null, pc.fill_null(pc.equal(left, right), False))
