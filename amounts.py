"""Amounts as people write them: sizes, durations, rates; read strictly and written back shortly.

Sizes are powers of 1024 whatever the spelling (`50G`, `50GB` and `50GiB` are the same), because caches and memory
are bought and reported that way here; `df -h` and the peers do the same. A percentage is kept as a fraction until
somebody knows of what (`Size.of`). `indefinite` is a duration of infinity.

What cannot be read raises UsageError with the text and what would have been accepted.
"""

import math
import re
from dataclasses import dataclass

from .errors import UsageError

KIB = 1024
MIB = 1024**2
GIB = 1024**3
TIB = 1024**4

_SIZE_UNITS = {"": 1, "B": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB, "P": 1024**5}
_DURATION_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_FOREVER = {"indefinite", "forever", "inf"}
_NUMBER = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z%]*)\s*")


@dataclass(frozen=True, slots=True)
class Size:
    """A number of bytes, or a fraction of something (exactly one of the two is set)."""

    size_bytes: int | None = None
    fraction: float | None = None

    def of(self, total_bytes: int) -> int:
        """In bytes, where a fraction is taken of `total_bytes`."""
        if self.size_bytes is not None:
            return self.size_bytes
        assert self.fraction is not None
        return int(self.fraction * total_bytes)

    def __str__(self) -> str:
        """Exact text that `parse_size_or_percent` reads back as the same value."""
        if self.size_bytes is not None:
            return exact_size(self.size_bytes)
        assert self.fraction is not None
        return f"{self.fraction * 100:.10g}%"


def parse_size(text: str) -> int:
    """Bytes of `100GiB`, `50G`, `1.5T`, `4096`."""
    size = parse_size_or_percent(text)
    if size.size_bytes is None:
        raise UsageError(
            f"{text!r} is a percentage, and a size is wanted", remedy="write a size such as 512M or 100GiB"
        )
    return size.size_bytes


def parse_size_or_percent(text: str) -> Size:
    """A size as `parse_size` reads it, or a percentage from 0% to 100%."""
    remedy = "write a number with a unit, such as 512M, 100GiB, 1.5T, or a percentage such as 80%"
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a size", remedy=remedy)
    number, unit = float(match[1]), match[2]
    if unit == "%":
        if number > 100:
            raise UsageError(f"{text!r} is more than everything", remedy="write a percentage from 0% to 100%")
        return Size(fraction=number / 100)
    stem = re.sub(r"(?<=[KMGTP])I?B?$", "", unit.upper())
    if stem not in _SIZE_UNITS:
        raise UsageError(f"{text!r} has the unknown unit {unit!r}", remedy=remedy)
    factor = _SIZE_UNITS[stem]
    # Whole numbers stay exact above 2^53.
    return Size(size_bytes=int(match[1]) * factor if "." not in match[1] else int(number * factor))


def parse_duration_s(text: str) -> float:
    """Seconds of `30s`, `5m`, `1.5h`, `24h`, `7d`, `1h30m`, a bare number of seconds; `indefinite` is infinity."""
    remedy = "write a number with a unit, such as 500ms, 30s, 5m, 24h, 7d, or indefinite"
    stripped = text.strip().lower()
    if stripped in _FOREVER:
        return math.inf
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", stripped)
    if not parts or re.sub(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", "", stripped).strip():
        raise UsageError(f"{text!r} is not a duration", remedy=remedy)
    if len(parts) > 1 and any(not unit for _, unit in parts):
        raise UsageError(f"{text!r} has a number without a unit", remedy=remedy)
    total = 0.0
    for number, unit in parts:
        if unit not in _DURATION_UNITS:
            raise UsageError(f"{text!r} has the unknown unit {unit!r}", remedy=remedy)
        total += float(number) * _DURATION_UNITS[unit]
    return total


def parse_ratio(text: str) -> float:
    """A fraction from 0 to 1: `0.1` or `10%`."""
    remedy = "write a fraction from 0 to 1, such as 0.1, or a percentage such as 10%"
    match = _NUMBER.fullmatch(text)
    if match is None or match[2] not in ("", "%"):
        raise UsageError(f"{text!r} is not a fraction", remedy=remedy)
    ratio = float(match[1]) / (100 if match[2] else 1)
    if ratio > 1:
        raise UsageError(f"{text!r} is more than 1", remedy=remedy)
    return ratio


def exact_size(size_bytes: int) -> str:
    """The shortest text with a whole number that means exactly `size_bytes`."""
    for unit in ("P", "T", "G", "M", "K"):
        factor = _SIZE_UNITS[unit]
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor}{unit}iB"
    return str(size_bytes)


def exact_duration(duration_s: float) -> str:
    """A text that `parse_duration_s` reads back as the same number of seconds."""
    if math.isinf(duration_s):
        return "indefinite"
    for unit in ("d", "h", "m"):
        factor = _DURATION_UNITS[unit]
        if duration_s and duration_s % factor == 0:
            return f"{duration_s / factor:.0f}{unit}"
    return f"{duration_s!r}s" if duration_s != int(duration_s) else f"{int(duration_s)}s"


def format_size(size_bytes: float) -> str:
    """For people, three digits: `0 B`, `512 B`, `1.50 KiB`, `23.4 GiB`."""
    value, unit = float(size_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if abs(value) < 999.5:
            break
        value, unit = value / 1024, larger
    if unit == "B":
        return f"{value:.0f} B"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {unit}"


def format_rate(bytes_per_s: float) -> str:
    """For people: `1.20 GiB/s`."""
    return f"{format_size(bytes_per_s)}/s"


def format_count(count: float) -> str:
    """For people, with groups of three: `1,000,000`."""
    return f"{count:,.0f}"


def format_duration(duration_s: float) -> str:
    """For people, the two largest units: `850 ms`, `12 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`."""
    if math.isinf(duration_s):
        return "indefinite"
    if duration_s < 1:
        return f"{duration_s * 1000:.0f} ms"
    seconds = round(duration_s)
    if seconds < 60:
        return f"{seconds} s"
    for unit, factor, lesser, lesser_factor in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= factor:
            whole, rest = divmod(seconds, factor)
            rest //= lesser_factor
            return f"{whole} {unit} {rest} {lesser}" if rest else f"{whole} {unit}"
    raise AssertionError(seconds)
