"""What a process that is Forebay's alone leaves out.

PyArrow imports pandas, where it is installed, with the first list that is turned into an array, only to be able to tell whether it is
a pandas object. In training images pandas is always installed, and costs each command 0.2 s and 40 MB that nothing uses.
So the programs of this project (never the library, whose callers may want pandas) say that it is not there.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Absent:
    """An import finder by which pandas is not installed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "pandas":
            raise ModuleNotFoundError("pandas is left out of the programs of Forebay", name=name)
        return None


def leave_out_pandas() -> None:
    """From now on pandas cannot be imported in this process. Only for the start of a program of ours."""
    sys.meta_path.insert(0, _Absent())
