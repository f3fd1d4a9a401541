"""Objects whose bytes anybody can compute again: the truth that tiers are compared with."""

import numpy as np

from forebay.tiers.version import ObjectVersion


def version_of(name: str, size: int, etag: str = "e1") -> ObjectVersion:
    return ObjectVersion("s3://bucket", name, etag, size)


def content_of(version: ObjectVersion) -> bytes:
    """The object's bytes, different for each version, and in each place."""
    seed = int.from_bytes(version.digest[:8], "little")
    words = np.arange(-(-version.size // 8), dtype=np.uint64)
    words = (words + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
    words ^= words >> np.uint64(31)
    return words.tobytes()[: version.size]
