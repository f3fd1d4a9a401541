"""XXH64 of texts by column: what decides page cuts, samples and splits, so it is the same everywhere and for ever."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash


def text_hashes(texts: pa.Array, seed: int = 0) -> npt.NDArray[np.uint64]:
    """The hash of the UTF-8 bytes of each text (no nulls); of the seed the lower 64 bits count."""
    digest = xxhash.xxh64_intdigest
    seed &= (1 << 64) - 1
    values = texts.cast(pa.binary()).to_pylist()
    return np.fromiter((digest(value, seed) for value in values), np.uint64, len(values))


def hash_fractions(texts: pa.Array, seed: int) -> npt.NDArray[np.float64]:
    """A number in [0, 1) per text. The upper 53 bits fill a float exactly, so that none is rounded up to 1."""
    return (text_hashes(texts, seed) >> np.uint64(11)).astype(np.float64) / float(1 << 53)
