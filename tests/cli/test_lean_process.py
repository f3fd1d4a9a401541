"""Programs of ours do without pandas, and Arrow works all the same."""

import subprocess
import sys

SCRIPT = """
import sys
from forebay.lean_process import leave_out_pandas
leave_out_pandas()
import pyarrow as pa
assert pa.array(["a", None]).null_count == 1
assert pa.array(range(3)).to_pylist() == [0, 1, 2]
assert "pandas" not in sys.modules
try:
    import pandas
except ModuleNotFoundError:
    sys.exit(7)
"""


def test_arrow_works_where_pandas_is_left_out() -> None:
    assert subprocess.run([sys.executable, "-c", SCRIPT], timeout=120).returncode == 7
