"""Where log lines go and how they look.

In the foreground they go to stderr (with the priority prefix that journald understands when it reads it), in the
background to a file of bounded size. `text` is for people, `json` is one object per line for collectors.

Secrets are kept out where they are used; as a second line of defence the values of the credential variables are
masked in whatever is logged.
"""

import json
import logging
import logging.handlers
import os
import sys
import time
import traceback
from pathlib import Path

from .. import amounts
from ..errors import ConfigError

MAX_FILE_BYTES = 16 * amounts.MIB
KEPT_FILES = 3
_SECRET_VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
)
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _Formatter(logging.Formatter):
    def __init__(self, form: str, *, priorities: bool) -> None:
        super().__init__()
        self._json = form == "json"
        self._priorities = priorities
        self._secrets = [os.environ[name] for name in _SECRET_VARIABLES if len(os.environ.get(name, "")) >= 8]

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        trace = "".join(traceback.format_exception(*record.exc_info)).rstrip() if record.exc_info else ""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        area = record.name.removeprefix("forebay.")
        if self._json:
            document = {
                "time": stamp,
                "level": record.levelname.lower(),
                "area": area,
                "message": text,
                "pid": record.process,
            }
            if trace:
                document["trace"] = trace
            line = json.dumps(document, ensure_ascii=False)
        else:
            # A line break in a message (an odd key) must not start a line of its own.
            line = f"{stamp} {record.levelname:<7} {area}: {text.replace(chr(10), chr(92) + 'n')}"
            line += "\n" + trace if trace else ""
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return f"<{_PRIORITIES.get(record.levelno, 6)}>{line}" if self._priorities else line


def to_stderr(*, level: str, form: str) -> None:
    """Log to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(form, priorities=form == "text" and "JOURNAL_STREAM" in os.environ))
    _install(handler, level)


def to_file(path: Path, *, level: str, form: str) -> None:
    """Log to a file that starts anew at 16 MiB, the last three kept. Raises ConfigError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.handlers.RotatingFileHandler(
            path, maxBytes=MAX_FILE_BYTES, backupCount=KEPT_FILES, encoding="utf-8", errors="backslashreplace"
        )
    except OSError as error:
        raise ConfigError(
            f"the log file {path} cannot be written: {error.strerror}", remedy="choose another (log-file)"
        ) from error
    handler.setFormatter(_Formatter(form, priorities=False))
    _install(handler, level)


def _install(handler: logging.Handler, level: str) -> None:
    logging.captureWarnings(True)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    # What libraries have to say is rarely for our users, unless it is serious.
    root.setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    logging.getLogger("forebay").setLevel(level.upper())
    for noisy in ("botocore", "boto3", "urllib3", "asyncio", "aiohttp.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
