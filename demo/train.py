"""A small convolutional network trained for two epochs on a folder of class folders, read by worker processes.

    python -m forebay.demo.train FOLDER CHECKPOINT

It knows nothing of Forebay: FOLDER and the one of CHECKPOINT are plain folders, as any training script would have them.
"""

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

WORKERS = 2
EPOCHS = 2


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """`class/name.png` below a folder; opened anew in the worker at each access, as image-folder loaders do."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*/*.png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path = self.paths[index]
        with Image.open(path) as picture:
            pixels = np.asarray(picture, dtype=np.float32) / 255
        return torch.from_numpy(pixels).unsqueeze(0), int(path.parent.name)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 10),
    )  # fmt: skip


def save(model: nn.Module, checkpoint: Path) -> None:
    """Whoever loads the checkpoint finds the old one or the new one, whole: written beside it, then renamed."""
    checkpoint.parent.mkdir(exist_ok=True)
    beside = checkpoint.with_suffix(".tmp")
    with beside.open("wb") as file:
        torch.save(model.state_dict(), file)
        os.fsync(file.fileno())
    beside.rename(checkpoint)


def main() -> None:
    folder, checkpoint = Path(sys.argv[1]), Path(sys.argv[2])
    torch.manual_seed(0)
    torch.set_num_threads(1)
    train = DataLoader(Pictures(folder / "train"), batch_size=64, shuffle=True, num_workers=WORKERS)
    test = DataLoader(Pictures(folder / "test"), batch_size=256, num_workers=WORKERS)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    loss_of = nn.CrossEntropyLoss()
    for epoch in range(1, EPOCHS + 1):
        start = time.perf_counter()
        for pictures, labels in train:
            optimizer.zero_grad()
            loss = loss_of(model(pictures), labels)
            loss.backward()
            optimizer.step()
        seconds = time.perf_counter() - start
        with torch.no_grad():
            right = sum(int((model(pictures).argmax(1) == labels).sum()) for pictures, labels in test)
        count = len(train.dataset)
        total = len(test.dataset)
        print(
            f"epoch {epoch}: {count} pictures in {seconds:.1f} s ({count / seconds:,.0f}/s), "
            f"accuracy on {total} unseen ones {right / total:.1%}",
            flush=True,
        )
        save(model, checkpoint)


if __name__ == "__main__":
    main()
