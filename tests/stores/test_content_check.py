"""Contents are compared with their etag where it is an MD5, and believed where it is none."""

import hashlib

import pytest

from forebay.tiers.stores.s3.content_check import ContentCheck
from forebay.tiers.version import SMALL_BYTES, ObjectVersion


def version(content: bytes, etag: str | None = None) -> ObjectVersion:
    return ObjectVersion("s3://b", "k", etag or hashlib.md5(content).hexdigest(), len(content))


def test_what_is_checked() -> None:
    check = ContentCheck("s3://b", enabled=True)
    small, large = version(b"12345"), ObjectVersion("s3://b", "k", "0" * 32, SMALL_BYTES + 1)
    assert check.applies(small, 0, 5)
    assert not check.applies(small, 0, 4)
    assert not check.applies(small, 1, 4)
    assert not check.applies(large, 0, large.size)
    assert not check.applies(version(b"12345", "0" * 32 + "-2"), 0, 5)
    assert not ContentCheck("s3://b", enabled=False).applies(small, 0, 5)


def test_a_store_that_has_matched_is_held_to_it() -> None:
    check = ContentCheck("s3://b", enabled=True)
    assert check.matches(version(b"good"), b"good")
    for _ in range(3):
        assert not check.matches(version(b"other"), b"wrong")
        assert check.is_corrupt(version(b"other"), b"wrong", is_encrypted=False)


def test_an_encrypted_object_cannot_be_checked_and_others_can() -> None:
    check = ContentCheck("s3://b", enabled=True)
    assert not check.is_corrupt(version(b"secret", "1" * 32), b"secret", is_encrypted=True)
    assert not check.applies(version(b"secret", "1" * 32), 0, 6)
    assert check.applies(version(b"plain"), 0, 5)


def test_a_store_whose_etags_are_no_md5s_is_believed_once_it_says_the_same_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    check = ContentCheck("s3://b", enabled=True)
    odd = version(b"content", "2" * 32)
    assert check.is_corrupt(odd, b"content", is_encrypted=False)
    assert check.is_corrupt(odd, b"c0ntent", is_encrypted=False)  # not the same: one of the two is wrong
    assert check.is_corrupt(odd, b"content", is_encrypted=False)
    assert not check.is_corrupt(odd, b"content", is_encrypted=False)
    assert not check.applies(odd, 0, 7)
    assert "no MD5s" in caplog.text
