"""Random entries for property tests: awkward paths, keys that do and do not end with them, any JSON as labels."""

from typing import Any

from hypothesis import strategies as st

from forebay.snapshots.entries import Entry
from forebay.tiers.version import ObjectVersion

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
components = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=6).filter(
    lambda c: c not in (".", "..")
)
paths = st.one_of(
    st.lists(components, min_size=1, max_size=4).map("/".join),
    st.sampled_from([f"{c}/{i:03}.jpg" for c in ("cat", "dog", "cat.d") for i in range(30)]),
)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(1 << 70), 1 << 70), st.floats(allow_nan=False, allow_infinity=False), texts
)
json_values: st.SearchStrategy[Any] = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=4), max_leaves=8
)
labels: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.fixed_dictionaries({"class": st.sampled_from(["cat", "dog"]), "score": st.sampled_from([1, 2, 0.5])}),
    st.dictionaries(texts, json_values, max_size=4),
    json_values,
)
stores = st.sampled_from(["s3://one", "s3://two@http://host:1"])
etags = st.one_of(st.just("d41d8cd98f00b204e9800998ecf8427e"), texts)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    path = draw(paths)
    key = draw(st.one_of(st.just(path), st.just(f"prefix/{path}"), texts))
    version = ObjectVersion(
        draw(stores), key, draw(etags), draw(st.integers(0, 1 << 62)), draw(st.one_of(st.none(), texts))
    )
    mtime_ns = draw(st.one_of(st.none(), st.integers(-(1 << 63), (1 << 63) - 1)))
    sha256 = draw(st.one_of(st.none(), st.just("ab" * 32), st.just("01" * 32)))
    return Entry(path, version, mtime_ns, sha256, draw(labels))


def sorted_entries(max_size: int = 40) -> st.SearchStrategy[list[Entry]]:
    """At least one entry, sorted by the bytes of the path, no path twice."""
    found = st.lists(entries(), min_size=1, max_size=max_size, unique_by=lambda e: e.path)
    return found.map(lambda es: sorted(es, key=lambda e: e.path.encode()))
