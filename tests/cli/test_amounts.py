"""Amounts: what people write is read strictly, and written back as the same value."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay import amounts
from forebay.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096B", 4096),
        ("50G", 50 * 1024**3),
        ("50GB", 50 * 1024**3),
        ("100GiB", 100 * 1024**3),
        ("100 gib", 100 * 1024**3),
        ("1.5T", 1536 * 1024**3),
        (" 2M ", 2 * 1024**2),
        ("8388608P", 8388608 * 1024**5),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert amounts.parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "G", "-1G", "1,5G", "1e9", "12X", "1GG", "80%", "ten", "1 G B", "101%", "٣G"])
def test_nonsense_sizes_are_named(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        amounts.parse_size(text)
    assert repr(text) in str(caught.value)
    assert caught.value.remedy or "%" in text


def test_percentages_wait_for_what_they_are_of() -> None:
    assert amounts.parse_size_or_percent("80%").of(1000) == 800
    assert amounts.parse_size_or_percent("1K").of(1000) == 1024


@pytest.mark.parametrize(
    ("text", "duration_s"),
    [
        ("30", 30),
        ("30s", 30),
        ("500ms", 0.5),
        ("5m", 300),
        ("1.5h", 5400),
        ("1h30m", 5400),
        ("24h", 86400),
        ("7d", 604800),
        ("0", 0),
    ],
)
def test_durations(text: str, duration_s: float) -> None:
    assert amounts.parse_duration_s(text) == duration_s


@pytest.mark.parametrize("text", ["indefinite", "Forever"])
def test_indefinite(text: str) -> None:
    assert amounts.parse_duration_s(text) == math.inf


@pytest.mark.parametrize("text", ["", "h", "-5s", "5 parsecs", "1h30", "nan", "soon", "5s!"])
def test_nonsense_durations_are_named(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        amounts.parse_duration_s(text)
    assert repr(text) in str(caught.value)


def test_ratios() -> None:
    assert amounts.parse_ratio("0.1") == amounts.parse_ratio("10%") == 0.1
    for text in ("1.1", "101%", "-0.1", "much"):
        with pytest.raises(UsageError):
            amounts.parse_ratio(text)


@given(st.integers(0, 2**60))
@settings(deadline=None, max_examples=50)
def test_exact_sizes_read_back(size_bytes: int) -> None:
    assert amounts.parse_size(amounts.exact_size(size_bytes)) == size_bytes


@given(st.floats(0, 1e7).map(lambda number: round(number, 3)) | st.integers(0, 10**7).map(float) | st.just(math.inf))
@settings(deadline=None, max_examples=50)
def test_exact_durations_read_back(duration_s: float) -> None:
    assert amounts.parse_duration_s(amounts.exact_duration(duration_s)) == pytest.approx(duration_s)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1023, "1.00 KiB"), (1536, "1.50 KiB"), (1024**2, "1.00 MiB"), (25.12 * 1024**3, "25.1 GiB"), (1023 * 1024**3, "1.00 TiB")],
)  # fmt: skip
def test_sizes_for_people(size_bytes: float, text: str) -> None:
    assert amounts.format_size(size_bytes) == text


@pytest.mark.parametrize(
    ("duration_s", "text"),
    [(0.85, "850 ms"), (12, "12 s"), (59.7, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (356400, "4 d 3 h"), (math.inf, "indefinite")],
)  # fmt: skip
def test_durations_for_people(duration_s: float, text: str) -> None:
    assert amounts.format_duration(duration_s) == text
