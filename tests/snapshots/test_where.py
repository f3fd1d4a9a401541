"""The condition language: what it finds, and how it says what is wrong."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.errors import UsageError
from forebay.snapshots.entries import Entry, batch_of
from forebay.snapshots.filters import Filter
from forebay.snapshots.pages import Page, encode_page, page_columns, page_id, seal
from forebay.snapshots.roots import page_ref
from forebay.tests.snapshots.strategies import sorted_entries
from forebay.tiers.version import ObjectVersion


def page_of(entries: list[Entry]) -> Page:
    data = encode_page(batch_of(entries))
    return Page.open(page_id(data), seal(data))


def entry(path: str, size: int = 0, labels: Any = None, mtime_ns: int | None = None) -> Entry:
    return Entry(path, ObjectVersion("s3://b", f"k/{path}", "etag", size, None), mtime_ns, None, labels)


PAGE = page_of(
    [
        entry("a.JPG", 10, {"class": "cat", "score": 0.5, "tags": ["x", "y"]}, 1_714_521_600_000_000_000),
        entry("b/c.png", 2_000_000, {"class": "dog", "score": 1, "ok": True, "review": {"by": "me"}}),
        entry("b/d", 5, {"class": 3, "given name": "Jo", "big": 1 << 70}),
        entry("b/e.jpg", 7),
        entry("z 100%_x", 8, {"class": "cattle", "ok": False, "score": None}),
    ]
)
A, BC, BD, BE, Z = "a.JPG", "b/c.png", "b/d", "b/e.jpg", "z 100%_x"


def found(condition: str, page: Page = PAGE) -> list[str]:
    paths: list[str] = page.column("path").filter(Filter(condition).mask(page)).to_pylist()
    return paths


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ('label.class == "cat"', [A]),
        ("label.class = 'cat'", [A]),
        ('"cat" == label.class', [A]),
        ('label.class == "cat" and size < 1e6', [A]),
        ('label.class != "cat"', [BC, Z]),
        ('not label.class == "cat"', [BC, BD, BE, Z]),
        ("label.class == 3", [BD]),
        ("label.class == 3.0", [BD]),
        ("label.score >= 0.5", [A, BC]),
        ("label.score == 1", [BC]),
        ("1 <= label.score", [BC]),
        ("label.ok == true", [BC]),
        ("label.ok == False", [Z]),
        ('label.class in ("cat", "dog")', [A, BC]),
        ('label.class in ["cat", 3]', [A, BD]),
        ("label.class in ()", []),
        ('label.class not in ("cat", "dog")', [BD, BE, Z]),
        ('label["given name"] == "Jo"', [BD]),
        ('label.review.by == "me"', [BC]),
        ('"x" in label.tags', [A]),
        ('"x" not in label.tags', [BC, BD, BE, Z]),
        ("label.big > 1", [BD]),
        ("label.class is null", [BE]),
        ("label.class == null", [BE]),
        ("label.score is null", [BD, BE, Z]),
        ("label.review is not null", [BC]),
        ("label.tags != null", [A]),
        ("label.nothing is missing", [A, BC, BD, BE, Z]),
        ("label.nothing == 1", []),
        ('path like "b/%"', [BC, BD, BE]),
        (r'path like "z 100\\%%"', [Z]),
        ('path not like "b/%"', [A, Z]),
        ('path glob "*"', [A, Z]),
        ('path glob "**"', [A, BC, BD, BE, Z]),
        ('path glob "**/*.jpg"', [BE]),
        ('path glob "b/[!c]*"', [BD, BE]),
        ('path glob "?/?"', [BD]),
        (r'path regex "^b/.\.p"', [BC]),
        ('label.class regex "^cat$|dog"', [A, BC]),
        ('name == "d"', [BD]),
        ('folder == "b"', [BC, BD, BE]),
        ('folder == ""', [A, Z]),
        ('ext == ".jpg"', [A, BE]),
        ('key like "k/a%"', [A]),
        ('store == "s3://b" && size == 7', [BE]),
        ("size in (5, 7)", [BD, BE]),
        ("size > 4 and size < 9 or size >= 2_000_000", [BC, BD, BE, Z]),
        ("size > 4 and (size < 9 or size >= 2000000)", [BC, BD, BE, Z]),
        ("!(size > 4) || size == 10", [A]),
        ("size < -1", []),
        ("size >= 9223372036854775808", []),
        ('mtime >= "2024-05-01"', [A]),
        ('mtime < "2024-05-01T00:00:00Z"', []),
        ("mtime == 1714521600", [A]),
        ("mtime is null", [BC, BD, BE, Z]),
        ("version_id is null", [A, BC, BD, BE, Z]),
        ("NOT size > 5 AND label.class IS NOT NULL", [BD]),
    ],
)
def test_what_a_condition_finds(condition: str, expected: list[str]) -> None:
    assert found(condition) == expected


@pytest.mark.parametrize(
    ("condition", "position", "words"),
    [
        ("", 1, "expected a field"),
        ("sise > 3", 1, "no field 'sise'"),
        ("size >", 7, "expected a value"),
        ("size > cat", 8, "put texts in quotes"),
        ('size == "3"', 9, "a number"),
        ("path == 3", 9, "a text"),
        ("size like 'x'", 11, "is a number"),
        ("label == 3", 1, "say which label"),
        ("label. == 3", 8, "expected a key"),
        ("(size > 3", 10, "expected ')'"),
        ("size > 3 size < 4", 10, "expected `and`"),
        ("size > 3 and", 13, "expected a field"),
        ("path == 'x", 9, "closing quote"),
        ("path == `x`", 9, "unknown character"),
        ("path in 'x'", 9, "a list"),
        ("path in ('x' 'y')", 14, "expected ','"),
        ("3 in path", 1, "only a label"),
        ("label.ok < true", 12, "true and false"),
        ("label.x is 3", 12, "expected `null`"),
        ("label.x not 3", 13, "`in`, `like`"),
        ("__import__('os')", 1, "no field '__import__'"),
        ("(" * 300 + "size > 1", 101, "nested too deeply"),
    ],
)
def test_a_fault_is_shown_at_its_place(condition: str, position: int, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        Filter(condition)
    message = str(caught.value)
    assert f"at character {position}:" in message
    assert words in message
    shown, mark = message.splitlines()[1:]
    if position <= len(condition):
        assert shown[mark.index("^")] == condition[position - 1]


@pytest.mark.parametrize("condition", ['path regex "("', 'mtime > "yesterday"'])
def test_bad_patterns_and_dates_are_refused_before_any_reading(condition: str) -> None:
    with pytest.raises(UsageError):
        Filter(condition)


CONDITIONS = [
    'label.class == "cat"',
    'label.class != "cat"',
    'label.class in ("dog", "cow")',
    "label.score < 1",
    "label.score == 2 or size > 1000",
    'not label.class == "cat" and size <= 5',
    'label.class like "c%"',
    "label.class is null",
]


@settings(max_examples=40, deadline=None)
@given(sorted_entries(12), st.sampled_from(CONDITIONS))
def test_zones_never_hide_a_match(entries: list[Entry], condition: str) -> None:
    page = page_of(entries)
    zones = page_ref(page.id, page_columns(page.batch())).zones
    if Filter(condition).excludes(zones):
        assert found(condition, page) == []


def test_zones_do_exclude() -> None:
    page = page_of([entry(f"{i}", i, {"class": "ab"[i % 2], "n": i}) for i in range(10)])
    zones = page_ref(page.id, page_columns(page.batch())).zones
    for condition in (
        'label.class == "c"',
        "label.n > 20",
        "size > 9",
        'label.other == "x"',
        'label.class == "a" and size > 9',
    ):
        assert Filter(condition).excludes(zones), condition
    for condition in ('label.class == "a"', "label.n > 8", "label.class is null or size > 99", "not size > 9"):
        assert not Filter(condition).excludes(zones), condition
