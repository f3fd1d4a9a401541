"""The one grammar of names: `dataset@ref`, wherever a version is named.

    dataset            the same as dataset@latest
    dataset@latest     the head of the branch `main`
    dataset@v7         the seventh version that was committed to the dataset, on whatever branch
    dataset@NAME       a tag, else a branch of that name
    dataset@3f2a       a commit by its id, or by a prefix of at least 4 hex digits that fits only one

Refs win over id prefixes, so a tag may look like one. `latest` and `v` + digits cannot be names of refs.
"""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import RefNotFound, UsageError

MAIN = "main"
LATEST = "latest"
MIN_ID_PREFIX = 4

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_VERSION = re.compile(r"v([1-9][0-9]{0,8})")
_ID = re.compile(rf"[0-9a-f]{{{MIN_ID_PREFIX},64}}")


@dataclass(frozen=True, slots=True)
class RefName:
    """A parsed `dataset@ref`; nothing is looked up yet."""

    dataset: str
    ref: str = LATEST

    @property
    def number(self) -> int | None:
        """The version number when the ref is `vN`."""
        found = _VERSION.fullmatch(self.ref)
        return int(found[1]) if found else None

    @property
    def id_prefix(self) -> str | None:
        """The ref as a prefix of a commit id, when it can be one."""
        lowered = self.ref.lower()
        return lowered if _ID.fullmatch(lowered) else None

    def __str__(self) -> str:
        return f"{self.dataset}@{self.ref}"


def parse_ref(text: str) -> RefName:
    """Raises UsageError when the text is no `dataset` or `dataset@ref`."""
    dataset, at, ref = text.partition("@")
    check_dataset_name(dataset)
    if at and not _NAME.fullmatch(ref):
        raise UsageError(
            f"{ref!r} in {text!r} names no version",
            remedy="use name@tag, name@branch, name@v7, name@latest or name@<id>",
        )
    return RefName(dataset, ref or LATEST)


def check_dataset_name(name: str) -> str:
    """The name itself. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a dataset",
            remedy="use up to 100 letters, digits, '.', '_' and '-', the first a letter or digit",
        )
    return name


def check_ref_name(name: str, kind: str) -> str:
    """The name itself. Raises UsageError when a tag or branch cannot be called so."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name for a {kind}",
            remedy="use up to 100 letters, digits, '.', '_' and '-', the first a letter or digit",
        )
    if name == LATEST or _VERSION.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a {kind}: it already means a version", remedy="choose another"
        )
    return name


def not_found(what: str, wanted: str, known: Iterable[str]) -> RefNotFound:
    """The error for a name that is not there, with the names that are nearest to it."""
    names = sorted(known)
    near = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    if near:
        remedy = f"did you mean {' or '.join(near)}?"
    elif names:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        remedy = f"there are: {shown}"
    else:
        remedy = "there are none yet"
    return RefNotFound(what, remedy=remedy)
