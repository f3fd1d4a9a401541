"""Conditions at work: a term of where.py as vectorised Arrow over the columns of one page, and over zones unread.

Each term gives one boolean per entry, never null: a comparison with something absent is false, `not` turns it around.
"""

import datetime
import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import UsageError
from .labels import column_name, residual_values
from .pages import Page
from .roots import Zones
from .where import (
    Both,
    Compare,
    Either,
    Field,
    Holds,
    IsNull,
    Label,
    Matches,
    Not,
    OneOf,
    Subject,
    Term,
    Value,
    parse_where,
)

_COMPARE = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_MAX_EXACT_FLOAT = 1 << 53


class Filter:
    """A condition, ready to be asked. Raises UsageError when the source is wrong, patterns and dates included."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._term = _checked(parse_where(source))

    def mask(self, page: Page) -> pa.Array:
        """One boolean per entry of the page. Raises PageCorrupt."""
        return _mask(self._term, page)

    def excludes(self, zones: Zones) -> bool:
        """Whether no entry of a page with these zones can match."""
        return not _possible(self._term, zones)


def _checked(term: Term) -> Term:
    """The term with dates as numbers and patterns as expressions that Arrow takes."""
    match term:
        case Not(inner):
            return Not(_checked(inner))
        case Both(left, right):
            return Both(_checked(left), _checked(right))
        case Either(left, right):
            return Either(_checked(left), _checked(right))
        case Compare(Field("mtime") as subject, operator, value):
            return Compare(subject, operator, _mtime_ns(value))
        case OneOf(Field("mtime") as subject, values):
            return OneOf(subject, tuple(_mtime_ns(value) for value in values))
        case Matches(subject, "glob", pattern):
            return Matches(subject, "regex", glob_regex(pattern))
        case Matches(_, "regex", pattern):
            try:
                pc.match_substring_regex(pa.array([""]), pattern)
            except pa.ArrowInvalid as error:
                raise UsageError(f"{pattern!r} is no regular expression (RE2): {error}") from error
    return term


def _mtime_ns(value: Value) -> int:
    """Nanoseconds since the epoch of a date (ISO 8601, UTC unless it says otherwise) or of seconds."""
    if not isinstance(value, str):
        return int(value * 1_000_000_000)
    try:
        moment = datetime.datetime.fromisoformat(value)
    except ValueError as error:
        raise UsageError(
            f"{value!r} is no date", remedy='write it like "2024-05-01" or "2024-05-01T12:00:00Z"'
        ) from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return round(moment.timestamp() * 1_000_000) * 1000


def glob_regex(pattern: str) -> str:
    """A shell pattern as an RE2 expression over the whole text: `*` and `?` stop at `/`, `**` does not."""
    out = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*":
            if pattern[at : at + 1] == "*":
                at += 1
                # `**/` also stands for no folder at all.
                if pattern[at : at + 1] == "/":
                    at += 1
                    out.append("(?:.*/)?")
                else:
                    out.append(".*")
            else:
                out.append("[^/]*")
        elif char == "?":
            out.append("[^/]")
        elif char == "[" and "]" in pattern[at + 1 :]:
            end = pattern.index("]", at + 1)
            inside = pattern[at:end].replace("\\", r"\\").replace("[", r"\[")
            out.append("[" + ("^" + inside[1:] if inside[0] in "!^" else inside) + "]")
            at = end + 1
        else:
            out.append(re.escape(char))
    return "(?s)^" + "".join(out) + "$"


def subject_texts(subject: Subject, page: Page) -> pa.Array:
    """The scalars that the subject has, as texts, null where it has none. Raises PageCorrupt."""
    columns = [column for value in ("", 0, False) for column in _columns(subject, page, value)]
    if isinstance(subject, Field):
        columns = columns[:1]
    texts = pa.nulls(page.row_count, pa.string())
    for column in columns:
        texts = pc.coalesce(texts, column.cast(pa.string()))
    return texts


# --- Over a page. ----------------------------------------------------------------------------------------


def _mask(term: Term, page: Page) -> pa.Array:
    match term:
        case Both(left, right):
            mask = _mask(left, page)
            return pc.and_(mask, _mask(right, page)) if pc.any(mask).as_py() else mask
        case Either(left, right):
            mask = _mask(left, page)
            return mask if pc.all(mask).as_py() else pc.or_(mask, _mask(right, page))
        case Not(inner):
            return pc.invert(_mask(inner, page))
        case Compare(subject, operator, value):
            return _any(page, [_compare(column, operator, value) for column in _columns(subject, page, value)])
        case OneOf(subject, values):
            return _any(page, [_mask(Compare(subject, "==", value), page) for value in values])
        case Matches(subject, kind, pattern):
            match_ = pc.match_like if kind == "like" else pc.match_substring_regex
            return _any(page, [match_(column, pattern) for column in _columns(subject, page, "")])
        case IsNull(subject):
            return _is_null(subject, page)
        case Holds(subject, value):
            return _holds(subject, value, page)


def _any(page: Page, masks: list[pa.Array]) -> pa.Array:
    if not masks:
        return pa.repeat(pa.scalar(False), page.row_count)
    whole = pc.fill_null(masks[0], False)
    for mask in masks[1:]:
        whole = pc.or_(whole, pc.fill_null(mask, False))
    return whole


def _columns(subject: Subject, page: Page, value: Value) -> list[pa.Array]:
    """The columns in which the subject can equal a value of that type."""
    if isinstance(subject, Field):
        return [_field(subject.name, page)]
    codes = "b" if isinstance(value, bool) else "s" if isinstance(value, str) else "if"
    found = [page.label_column(subject.place, code) for code in codes]
    columns = [column for column in found if column is not None]
    columns += _residual_columns(subject, page, codes)
    return columns


def _residual_columns(subject: Label, page: Page, codes: str) -> list[pa.Array]:
    """Scalars that found no typed column (too many keys, too deep, too large), as columns."""
    if page.residual is None:
        return []
    values = residual_values(page.residual, subject.place)
    columns = []
    for code in codes:
        kinds: dict[str, type] = {"s": str, "b": bool, "i": int, "f": float}
        picked: list[Any] = [value if type(value) is kinds[code] else None for value in values]
        if any(value is not None for value in picked):
            types = {"s": pa.string(), "b": pa.bool_()}
            # Numbers that are here may exceed 64 bits; as floats they compare well enough.
            numbers = [None if v is None else float(v) for v in picked] if code in "if" else picked
            columns.append(pa.array(numbers, types.get(code, pa.float64())))
    return columns


def _field(name: str, page: Page) -> pa.Array:
    if name == "mtime":
        return page.column("mtime_ns")
    if name == "name":
        return pc.replace_substring_regex(page.column("path"), "(?s)^.*/", "")
    if name == "folder":
        return pc.replace_substring_regex(page.column("path"), "(?s)/?[^/]*$", "")
    if name == "ext":
        found = pc.extract_regex(page.column("path"), r"(?s)[^/](?P<ext>\.[^./]*)$")
        return pc.fill_null(pc.utf8_lower(pc.struct_field(found, "ext")), "")
    return page.column(name)


def _compare(column: pa.Array, operator: str, value: Value) -> pa.Array:
    if pa.types.is_integer(column.type) and isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        value = float(value)
    if pa.types.is_integer(column.type) and isinstance(value, float):
        if value.is_integer() and abs(value) < _MAX_EXACT_FLOAT:
            value = int(value)
        else:
            column = column.cast(pa.float64(), safe=False)
    if pa.types.is_floating(column.type) and isinstance(value, int):
        value = float(value)
    return _COMPARE[operator](column, pa.scalar(value, column.type))


def _is_null(subject: Subject, page: Page) -> pa.Array:
    if isinstance(subject, Field):
        return pc.is_null(_field(subject.name, page))
    present = [pc.is_valid(c) for code in "sifb" if (c := page.label_column(subject.place, code)) is not None]
    # A place is also there when something lies below it.
    below = column_name(subject.place, "s")[6:-1] + ","
    for name in page.label_columns:
        if name[6:].startswith(below):
            column = page.stored_label(name)
            present.append(pc.is_valid(column))
    if page.residual is not None:
        values = residual_values(page.residual, subject.place)
        present.append(pa.array([value is not None for value in values], pa.bool_()))
    return pc.invert(_any(page, present))


def _holds(subject: Label, value: Value, page: Page) -> pa.Array:
    if page.residual is None:
        return _any(page, [])
    found = residual_values(page.residual, subject.place)
    same = [isinstance(items, list) and any(_same(item, value) for item in items) for items in found]
    return pa.array(same, pa.bool_())


def _same(item: Any, value: Value) -> bool:
    return bool(item == value) and isinstance(item, bool) == isinstance(value, bool)


# --- Over zones. -----------------------------------------------------------------------------------------


def _possible(term: Term, zones: Zones) -> bool:
    """False only when no entry can match. What is not understood is possible."""
    match term:
        case Both(left, right):
            return _possible(left, zones) and _possible(right, zones)
        case Either(left, right):
            return _possible(left, zones) or _possible(right, zones)
        case Compare(Field("size"), operator, value) if isinstance(value, int | float):
            return _range_possible(zones.low_size, zones.high_size, operator, value)
        case Compare(Label(place), operator, value):
            return _label_possible(place, operator, value, zones)
        case OneOf(subject, values):
            return any(_possible(Compare(subject, "==", value), zones) for value in values)
        case Matches(Label(place), _, _):
            return not zones.complete or column_name(place, "s") in zones.texts
    return True


def _label_possible(place: tuple[str, ...], operator: str, value: Value, zones: Zones) -> bool:
    if isinstance(value, bool):
        return True
    if isinstance(value, str):
        texts = zones.texts.get(column_name(place, "s"))
        if texts is None:
            return not zones.complete
        mask = _COMPARE[operator](pa.array(texts, pa.string()), value)
        # Zones tell of typed columns only; where they are not complete the residual may hold more.
        return bool(pc.any(mask).as_py()) or not zones.complete
    known = [zones.ranges[name] for code in "if" if (name := column_name(place, code)) in zones.ranges]
    return not zones.complete or any(_range_possible(low, high, operator, value) for low, high in known)


def _range_possible(low: float, high: float, operator: str, value: float) -> bool:
    match operator:
        case "==":
            return low <= value <= high
        case "!=":
            return not low == high == value
        case "<":
            return low < value
        case "<=":
            return low <= value
        case ">":
            return high > value
        case _:
            return high >= value
