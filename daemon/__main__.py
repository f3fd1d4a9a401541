"""The Forebay process in the background: `python -m forebay.daemon`, started by `launch.start` and by nothing else.

What to be comes as JSON on stdin, and the outcome goes back on a pipe whose number stands in it.
"""

import faulthandler
import os
import sys

from ..client.control import error_document
from ..errors import ForebayError
from ..lean_process import leave_out_pandas
from . import logs, process
from .launch import Request, tell_outcome


def main() -> int:
    leave_out_pandas()
    request, ready_descriptor = Request.from_json(sys.stdin.buffer.read())
    os.set_inheritable(ready_descriptor, False)
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    faulthandler.enable()  # into the log, which is our stderr
    told = False

    def ready(document: dict[str, object]) -> None:
        nonlocal told
        told = True
        tell_outcome(ready_descriptor, {"ready": document})

    try:
        if request.log_file is not None:
            logs.to_file(request.log_file, level=request.settings.log_level, form=request.settings.log_format)
        process.run(request, ready=ready)
    except ForebayError as error:
        if told:
            raise
        tell_outcome(ready_descriptor, {"error": error_document(error)})
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
