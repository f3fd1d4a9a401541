"""What is kept of inline data in memory is bounded, and never older than what was committed."""

from forebay.cache.write.recent_inline import RecentInline


def test_the_oldest_goes_when_the_bound_is_passed() -> None:
    recent = RecentInline(limit_bytes=10)
    recent.put({"a": b"12345", "b": b"12345"})
    recent.put({"c": b"1"})
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == (None, b"12345", b"1")
    recent.put({"huge": bytes(11)})
    assert [recent.get(name) for name in ("b", "c", "huge")] == [None, None, None]


def test_what_is_put_again_or_dropped_counts_once() -> None:
    recent = RecentInline(limit_bytes=10)
    recent.put({"a": b"12345678"})
    recent.put({"a": b"123"})
    recent.put({"b": b"1234567"})
    assert (recent.get("a"), recent.get("b")) == (b"123", b"1234567")
    recent.drop(["b", "never-was"])
    recent.put({"c": b"1234567"})
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == (b"123", None, b"1234567")
