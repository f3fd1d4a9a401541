"""Random work on a folder, announced before and confirmed after each step: `python -m forebay.tests.support.file_workload FOLDER SEED`.

SIGTERM ends it after the step that it takes. Who kills the file system below it knows from "+ ..." and "=" on stdout what was begun and what was acked. `States` says what may be
there afterwards, and `do` does one step to a folder: the mount, or a local one beside it as reference.

Folders have a list of names of their own, and many renames are of folders: what is below them must follow, marker or not.
"""

import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FILES = ["a", "b", "c", "d"]
FOLDERS = ["x", "y", "z"]
DEPTH = 3
# Inline in a record, at its edge, a data file, several requests of the kernel, several parts of an upload.
SIZES = [0, 10, 5_000, 32_768, 40_000, 400_000, 3_000_000, 18_000_000]
WEIGHTS = [4, 8, 8, 4, 8, 6, 2, 1]
LIFETIME_S = 300
# Path: content, or None for a folder.
Model = dict[str, bytes | None]
Step = list[str]


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def read_model(root: Path) -> Model:
    """What a folder shows. Raises OSError."""
    found: Model = {}
    for folder, folders, files in os.walk(root, onerror=_raise):
        for name in folders:
            found[str(Path(folder, name).relative_to(root))] = None
        for name in files:
            path = Path(folder, name)
            found[str(path.relative_to(root))] = path.read_bytes()
    return found


def _raise(error: OSError) -> None:
    raise error


# --- Choosing. -------------------------------------------------------------------------------------------------


def choose(rng: random.Random, model: Model) -> Step:
    """The next step that makes sense, as words."""
    choices: list[tuple[int, Callable[[], Step | None]]] = [
        (24, lambda: _write(rng, model)),
        (8, lambda: _change(rng, model, "append", str(_size(rng) % 1_000_000))),
        (8, lambda: _change(rng, model, "patch", str(rng.randrange(50_000)), str(1 + rng.randrange(50_000)))),
        (6, lambda: _truncate(rng, model)),
        (8, lambda: _change(rng, model, "unlink")),
        (12, lambda: _mkdir(rng, model)),
        (6, lambda: _rmdir(rng, model)),
        (14, lambda: _rename(rng, model, folders=False)),
        (10, lambda: _rename(rng, model, folders=True)),
    ]
    while True:
        (pick,) = rng.choices([one for _, one in choices], [weight for weight, _ in choices])
        words = pick()
        if words is not None:
            return words


def _size(rng: random.Random) -> int:
    return rng.choices(SIZES, WEIGHTS)[0]


def _folders(model: Model) -> list[str]:
    return ["", *(path for path, data in model.items() if data is None)]


def _files(model: Model) -> list[str]:
    return [path for path, data in model.items() if data is not None]


def _new_path(rng: random.Random, model: Model, names: list[str]) -> str:
    folder = rng.choice(_folders(model))
    return f"{folder}/{rng.choice(names)}" if folder else rng.choice(names)


def _write(rng: random.Random, model: Model) -> Step | None:
    path = _new_path(rng, model, FILES)
    return ["write", path, str(rng.randrange(1 << 30)), str(_size(rng)), rng.choice(["close", "fsync"])]


def _change(rng: random.Random, model: Model, action: str, *arguments: str) -> Step | None:
    files = _files(model)
    if not files:
        return None
    seed = [] if action == "unlink" else [str(rng.randrange(1 << 30))]
    return [action, rng.choice(files), *seed, *arguments]


def _truncate(rng: random.Random, model: Model) -> Step | None:
    files = _files(model)
    if not files:
        return None
    path = rng.choice(files)
    size = len(model[path] or b"")
    return ["truncate", path, str(rng.choice([0, size // 2, size + 1000, 3, 40_000]))]


def _mkdir(rng: random.Random, model: Model) -> Step | None:
    path = _new_path(rng, model, FOLDERS)
    return None if path in model or path.count("/") >= DEPTH else ["mkdir", path]


def _rmdir(rng: random.Random, model: Model) -> Step | None:
    empty = [path for path in _folders(model)[1:] if not _is_full(model, path)]
    return ["rmdir", rng.choice(empty)] if empty else None


def _rename(rng: random.Random, model: Model, *, folders: bool) -> Step | None:
    known = _folders(model)[1:] if folders else _files(model)
    if not known:
        return None
    old, new = rng.choice(known), _new_path(rng, model, FOLDERS if folders else FILES)
    if old == new or new.startswith(old + "/") or old.startswith(new + "/") or _is_full(model, new):
        return None
    return ["rename", old, new] if new.count("/") < DEPTH or not folders else None


def _is_full(model: Model, folder: str) -> bool:
    return any(path.startswith(folder + "/") for path in model)


# --- What a step means. ----------------------------------------------------------------------------------------


def apply(model: Model, words: Step) -> Model:
    """The model after a step."""
    model = dict(model)
    action, path = words[0], words[1]
    old = model.get(path)
    if action == "mkdir":
        model[path] = None
    elif action == "write":
        model[path] = content(int(words[2]), int(words[3]))
    elif action in ("unlink", "rmdir"):
        del model[path]
    elif action == "rename":
        moved = {one: model.pop(one) for one in list(model) if one == path or one.startswith(path + "/")}
        model.update({words[2] + one[len(path) :]: data for one, data in moved.items()})
    else:
        assert old is not None
        if action == "append":
            model[path] = old + content(int(words[2]), int(words[3]))
        elif action == "patch":
            offset, data = int(words[3]), content(int(words[2]), int(words[4]))
            model[path] = old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]
        else:
            size = int(words[2])
            model[path] = old[:size].ljust(size, b"\0")
    return model


@dataclass(frozen=True)
class States:
    """What may be there when a step was begun and not acked: everything from before it, or everything after."""

    before: Model
    words: Step

    def allow(self, found: Model) -> bool:
        after = apply(self.before, self.words)
        return found in (self.before, after) or (self.words[0] == "patch" and self._is_part(found, after))

    def _is_part(self, found: Model, after: Model) -> bool:
        """Bytes overwritten in place may be old or new, as on any file system; a file made longer is so or not."""
        path = self.words[1]
        old, new, data = self.before[path], after[path], found.get(path)
        if data is None or old is None or new is None or {**found, path: b""} != {**after, path: b""}:
            return False
        if len(data) not in (len(old), len(new)):
            return False
        bytes_found = np.frombuffer(data, np.uint8)
        bytes_old = np.frombuffer(old.ljust(len(data), b"\0"), np.uint8)
        bytes_new = np.frombuffer(new[: len(data)], np.uint8)
        return bool(np.all((bytes_found == bytes_old) | (bytes_found == bytes_new)))


def do(root: Path, words: Step) -> None:
    """Take a step in a folder. Raises OSError."""
    action, path = words[0], root / words[1]
    if action == "mkdir":
        path.mkdir()
    elif action == "rmdir":
        path.rmdir()
    elif action == "unlink":
        path.unlink()
    elif action == "rename":
        os.rename(path, root / words[2])
    elif action == "truncate":
        os.truncate(path, int(words[2]))
    elif action == "write":
        with path.open("wb", buffering=0) as file:
            _write_all(file.fileno(), content(int(words[2]), int(words[3])))
            if words[4] == "fsync":
                os.fsync(file.fileno())
    elif action == "append":
        with path.open("ab", buffering=0) as file:
            _write_all(file.fileno(), content(int(words[2]), int(words[3])))
    else:
        with path.open("r+b", buffering=0) as file:
            file.seek(int(words[3]))
            _write_all(file.fileno(), content(int(words[2]), int(words[4])))


def _write_all(fd: int, data: bytes) -> None:
    for start in range(0, len(data), 700_000):
        piece = data[start : start + 700_000]
        assert os.write(fd, piece) == len(piece)


def main(root: str, seed: str) -> None:
    rng = random.Random(int(seed))
    model = read_model(Path(root))
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    print("ready", flush=True)
    while not asked:
        words = choose(rng, model)
        print("+", *words, flush=True)
        try:
            do(Path(root), words)
        except OSError as error:
            print("!", error, flush=True)
            return
        print("=", flush=True)
        model = apply(model, words)


if __name__ == "__main__":
    # Nobody lets it work for longer: who started it died, or it hangs.
    signal.alarm(LIFETIME_S)
    main(*sys.argv[1:])
