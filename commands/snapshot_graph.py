"""Drawing the history of a dataset: each commit a `*`, its line of descent a `|`, as people know it from git.

    *    9c01f4 v4 (main)  merge of relabel
    |\\
    * |  51ab07 v3         add holidays
    | *  e02c55 v2 (relabel)  new labels
    |/
    *    77d1a0 v1         first import

Lanes are the commits that are still to come, one column each. Commits are taken newest first, children before parents.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Id = TypeVar("Id")


@dataclass(frozen=True, slots=True)
class GraphLine(Generic[Id]):
    """One line of the drawing: the graph part, and the commit that it stands for (None between commits)."""

    graph: str
    commit: Id | None


def draw(history: Iterable[tuple[Id, Sequence[Id]]]) -> Iterator[GraphLine[Id]]:
    """The lines for commits with their parents; every commit comes before its parents. Memory: the open lanes."""
    lanes: list[Id] = []
    for commit, parents in history:
        if commit not in lanes:
            lanes.append(commit)
        place = lanes.index(commit)
        # Branches that grew out of this commit end here, the rightmost first.
        for other in range(len(lanes) - 1, place, -1):
            if lanes[other] == commit:
                yield GraphLine(_slanted(len(lanes), place, other, "/"), None)
                del lanes[other]
        yield GraphLine(_row(len(lanes), {2 * place: "*"}), commit)
        if not parents:
            del lanes[place]
            if place < len(lanes):  # what stood right of it moves left
                yield GraphLine(" ".join(["|"] * place) + " /" * (len(lanes) - place), None)
            continue
        lanes[place] = parents[0]
        for parent in parents[1:]:
            if parent in lanes:
                other = lanes.index(parent)
                left, right = sorted((place, other))
                yield GraphLine(_slanted(len(lanes), left, right, "/" if other < place else "\\", goes_on=True), None)
            else:
                lanes.append(parent)
                yield GraphLine(_slanted(len(lanes), place, len(lanes) - 1, "\\"), None)


def _row(lanes: int, marks: dict[int, str]) -> str:
    return "".join(marks.get(at, " " if at % 2 else "|") for at in range(2 * lanes - 1)).rstrip()


def _slanted(lanes: int, left: int, right: int, stroke: str, *, goes_on: bool = False) -> str:
    """A line between two lanes: `|/`, `|\\`, or `|_|/` where others lie between; the right one may go on beside it."""
    marks = {at: "_" for at in range(2 * left + 1, 2 * right - 1) if at % 2}
    marks[2 * right - 1] = stroke
    if not goes_on:
        marks[2 * right] = " "
    return _row(lanes, marks)
