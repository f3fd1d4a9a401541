"""A process that writes through a write side until it is killed: `python -m forebay.tests.support.write_worker FOLDER URL BUCKET SEED`.

Each operation is announced on stdout before it begins ("+ ...") and confirmed when it was acked ("= ..."), so that who
kills this process knows what must be there afterwards. `apply` does the same to a model.
"""

import asyncio
import random
import signal
import sys
from pathlib import Path

from forebay.cache.write.operations import Attributes
from forebay.cache.write.options import WriteOptions
from forebay.cache.write.records import SqliteRecords
from forebay.cache.write.write_side import WriteSide
from forebay.tiers.durable import FolderTier
from forebay.tiers.stores import StoreOptions
from forebay.tiers.stores.s3 import S3Store

NAMES = ["a", "b", "c", "d"]
FOLDERS = ["x", "y", "z"]
DEPTH = 3
SIZES = [0, 10, 5_000, 40_000, 400_000, 9_000_000]
FOLDER = None
LIFETIME_S = 300
Model = dict[str, bytes | None]


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def open_side(folder: Path, url: str, bucket: str) -> WriteSide:
    return WriteSide(
        tier=FolderTier.at(folder, free_space_ratio=0.0),
        records=SqliteRecords(folder / "records.db"),
        store=S3Store(bucket, StoreOptions(endpoint_url=url, timeout_s=5.0)),
        options=WriteOptions(writeback_delay_s=0.0, part_bytes=5 * 1024 * 1024, retry_max_s=0.5, recheck_s=6.0),
    )


def choose(rng: random.Random, model: Model) -> list[str]:
    """The next operation that makes sense, as words. Folders have names of their own, and 40 % of renames are of folders."""
    while True:
        action = rng.choice(["write", "write", "write", "append", "rename", "rename", "unlink", "mkdir", "rmdir"])
        of_folders = action in ("mkdir", "rmdir") or (action == "rename" and rng.random() < 0.4)
        folders = ["", *(f"{path}/" for path, data in model.items() if data is FOLDER)]
        names = FOLDERS if of_folders else NAMES
        path, other = (rng.choice(folders) + rng.choice(names) for _ in range(2))
        there = path in model
        if action == "write":
            return ["write", path, str(rng.randrange(1 << 30)), str(rng.choice(SIZES))]
        if action == "mkdir" and not there and path.count("/") < DEPTH:
            return ["mkdir", path]
        if action == "append" and there:
            return ["append", path, str(rng.randrange(1 << 30)), str(rng.choice(SIZES[:-1]))]
        if action == "unlink" and there:
            return ["unlink", path]
        if action == "rmdir" and there and not is_full(model, path):
            return ["rmdir", path]
        if action == "rename" and there and is_renamable(model, path, other):
            return ["rename", path, other]


def is_full(model: Model, folder: str) -> bool:
    return any(path.startswith(folder + "/") for path in model)


def is_renamable(model: Model, path: str, other: str) -> bool:
    if path == other or other.startswith(path + "/") or path.startswith(other + "/"):
        return False
    return other not in model or not is_full(model, other)


def apply(model: Model, words: list[str]) -> Model:
    """The model after an operation."""
    model = dict(model)
    action, path = words[0], words[1]
    if action == "mkdir":
        model[path] = FOLDER
    elif action == "write":
        model[path] = content(int(words[2]), int(words[3]))
    elif action == "append":
        old = model[path]
        assert old is not None
        model[path] = old + content(int(words[2]), int(words[3]))
    elif action in ("unlink", "rmdir"):
        del model[path]
    else:
        moved = {one: model.pop(one) for one in list(model) if one == path or one.startswith(path + "/")}
        model.update({words[2] + one[len(path) :]: data for one, data in moved.items()})
    return model


def perform(side: WriteSide, words: list[str]) -> None:
    action, path = words[0], words[1].encode()
    if action == "mkdir":
        side.mkdir(path, Attributes(0o755, 0, 0))
    elif action == "unlink":
        side.unlink(path)
    elif action == "rmdir":
        side.rmdir(path)
    elif action == "rename":
        side.rename(path, words[2].encode())
    else:
        data = content(int(words[2]), int(words[3]))
        if side.resolve(path) is None or not hasattr(side.resolve(path), "id"):
            file = side.create(path, Attributes(0o644, 0, 0))
        else:
            file = side.open(path, writable=True, truncate=action == "write")
        offset = file.size if action == "append" else 0
        for start in range(0, len(data), 300_000):
            file.write(offset + start, data[start : start + 300_000])
        if int(words[2]) % 2:
            file.sync()  # in every other case `close` alone must be as good
        file.release()


async def main(folder: str, url: str, bucket: str, seed: str) -> None:
    side = open_side(Path(folder), url, bucket)
    await side.start()
    rng = random.Random(int(seed))
    model: Model = {}
    for node in list(side.state.by_id.values()):
        path = side.state.path_of(node)
        if path:
            file = None if node.kind == 4 else side.open(path, writable=False)
            model[path.decode()] = FOLDER if file is None else bytes(await side.fetch(file, 0, file.size))
            if file is not None:
                file.release()
    print("ready", flush=True)
    while True:
        words = choose(rng, model)
        print("+", *words, flush=True)
        await asyncio.to_thread(perform, side, words)
        print("=", flush=True)
        model = apply(model, words)


if __name__ == "__main__":
    # Nobody lets it write for longer: who started it died, or it hangs.
    signal.alarm(LIFETIME_S)
    asyncio.run(main(*sys.argv[1:]))
