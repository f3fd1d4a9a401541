"""What worker processes of the Python client's tests run; in a module of its own, so that spawned interpreters can import it."""

from typing import Any


def read_in_child(files: Any, paths: list[str], answers: Any) -> None:
    """Read every file by a file system that was inherited (fork) or pickled (spawn); their lengths and sums go to the queue."""
    data = files.cat(paths)
    with files.open(paths[0]) as file:
        head = file.read(10)
    answers.put((sorted((path, len(content), sum(content)) for path, content in data.items()), head))
