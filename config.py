"""Every setting of Forebay in one frozen, typed table, and how its value is found.

A value comes from the command line, else from a `FOREBAY_*` variable, else from the configuration file (TOML),
else it is the default: flag beats variable beats file. All three spell a setting alike: `cache-size` is
`--cache-size`, `FOREBAY_CACHE_SIZE`, and `cache-size = "100GiB"` in the file.

Unknown keys and variables, unreadable values, and values that contradict each other are refused at the start, with
the file, variable or flag named; nothing is silently corrected, since a typing error that quietly means "default"
costs a training run before anybody sees it.

The configuration file is `--config FILE`, else `FOREBAY_CONFIG`, else the first that exists of
`$XDG_CONFIG_HOME/forebay/config.toml` (usually `~/.config/...`) and `/etc/forebay.toml`.
"""
# ruff: noqa: RUF009 (the rows of the table are made by `_setting`, which returns dataclass fields)

import dataclasses
import difflib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import amounts
from .errors import ConfigError, UsageError

SYSTEM_FILE = Path("/etc/forebay.toml")
PREFIX = "FOREBAY_"


@dataclass(frozen=True)
class Kind:
    """How values of one sort are read from text and written as text that reads back the same."""

    name: str
    parse: Callable[[str], Any]
    write: Callable[[Any], str] = str
    choices: tuple[str, ...] = ()


def _text(text: str) -> str:
    if "\0" in text or "\n" in text:
        raise UsageError(f"{text!r} has a control character in it")
    return text


def _url(text: str) -> str:
    if not re.match(r"https?://[^/\s]+", text):
        raise UsageError(f"{text!r} is not a URL", remedy="write it with http:// or https://")
    if "@" in text.split("/")[2]:
        raise UsageError(
            f"{text.split('@')[-1]!r} is given with a user or password",
            remedy="give credentials the AWS way, not in a URL",
        )
    return text.rstrip("/")


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "yes", "on", "1"):
        return True
    if text.lower() in ("false", "no", "off", "0"):
        return False
    raise UsageError(f"{text!r} is neither true nor false")


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]+", text.strip()) or not low <= int(text) <= high:
            raise UsageError(f"{text!r} is not a whole number from {low} to {high}")
        return int(text)

    return parse


def _octal(text: str) -> int:
    if not re.fullmatch(r"(0o)?[0-7]{1,4}", text.strip()) or int(text, 8) > 0o777:
        raise UsageError(f"{text!r} is not a umask", remedy="write octal digits such as 022")
    return int(text, 8)


def _folder(text: str) -> Path:
    if not text:
        raise UsageError("an empty path is given")
    return Path(text).expanduser().absolute()


def _folders(text: str) -> tuple[Path, ...]:
    folders = tuple(_folder(part) for part in text.split(":"))
    if len(set(folders)) < len(folders):
        raise UsageError(f"{text!r} names one folder twice")
    return folders


def _choice(*choices: str) -> Kind:
    def parse(text: str) -> str:
        if text not in choices:
            raise UsageError(f"{text!r} is not one of {', '.join(choices)}")
        return text

    return Kind("|".join(choices), parse, choices=choices)


TEXT = Kind("TEXT", _text)
URL = Kind("URL", _url)
BOOLEAN = Kind("BOOL", _boolean, lambda value: "true" if value else "false")
FOLDER = Kind("DIR", _folder)
FILE = Kind("FILE", _folder)
FOLDERS = Kind("DIR[:DIR...]", _folders, lambda value: ":".join(map(str, value)))
SIZE = Kind("SIZE", amounts.parse_size, amounts.exact_size)
SIZE_OR_PERCENT = Kind("SIZE|PERCENT", amounts.parse_size_or_percent)
DURATION = Kind("DURATION", amounts.parse_duration_s, amounts.exact_duration)
RATIO = Kind("RATIO", amounts.parse_ratio, lambda value: f"{value:.10g}")
ID = Kind("ID", _integer(0, 2**32 - 2))
PORT = Kind("PORT", _integer(0, 65535))
COUNT = Kind("N", _integer(1, 65536))
UMASK = Kind("OCTAL", _octal, lambda value: f"{value:03o}")


@dataclass(frozen=True)
class Setting:
    """One row of the table. `default_text` says in words what holds when `default` is None; `secret` values are masked.

    `bare` is what the flag means without a value; None if it needs one.
    """

    name: str
    kind: Kind
    help: str
    default: Any
    default_text: str
    secret: bool
    bare: str | None

    @property
    def variable(self) -> str:
        return PREFIX + self.name.upper().replace("-", "_")

    @property
    def flag(self) -> str:
        return f"--{self.name}"

    @property
    def field(self) -> str:
        return self.name.replace("-", "_")

    def show(self, value: Any) -> str:
        """The value as text fit for anybody's eyes."""
        if value is None:
            return ""
        text = self.kind.write(value)
        return re.sub(r"(?<=://)[^@/]*@", "***@", text) if self.secret else text


def _setting(
    kind: Kind, default: Any, help_text: str, *, default_text: str = "", secret: bool = False, bare: str | None = None
) -> Any:
    told = {"kind": kind, "help": help_text, "default_text": default_text, "secret": secret, "bare": bare}
    return dataclasses.field(default=default, metadata=told)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The values in effect. Sizes in bytes, durations in seconds (inf: indefinite). `origins` says where each came from."""

    # Cache
    cache_dir: tuple[Path, ...] | None = _setting(
        FOLDERS,
        None,
        "folders of the SSD tier, colon-separated, one per disk; each source gets a subfolder of its own",
        default_text="$XDG_CACHE_HOME/forebay, usually ~/.cache/forebay",
    )
    cache_name: str | None = _setting(
        TEXT, None, "name of the subfolder in the cache folders", default_text="made from the source"
    )
    cache_size: amounts.Size = _setting(
        SIZE_OR_PERCENT,
        amounts.Size(fraction=0.7),
        "size limit of the SSD tier, over all folders; a percentage is of the disks",
    )
    ram_dir: Path = _setting(FOLDER, Path("/dev/shm"), "folder of the RAM tier, on tmpfs")
    ram_size: amounts.Size | None = _setting(
        SIZE_OR_PERCENT,
        None,
        "size limit of the RAM tier, 0 for none; a percentage is of the memory",
        default_text="10% of the memory, at most half of what the tmpfs has free",
    )
    free_space_ratio: float = _setting(RATIO, 0.1, "part of each cache disk (bytes and inodes) that always stays free")
    eviction: str = _setting(
        _choice("s3fifo", "lru", "ttl", "epoch"), "s3fifo", "which cached data goes first when a tier is full"
    )
    eviction_ttl: float = _setting(DURATION, 7 * 86400.0, "age at which eviction=ttl lets cached data go")
    metadata_ttl: float = _setting(
        DURATION,
        60.0,
        "how long names and listings of a live bucket are believed; indefinite for buckets that never change",
    )
    # Under store
    endpoint_url: str | None = _setting(
        URL, None, "address of the S3 server", default_text="AWS_ENDPOINT_URL_S3, else Amazon's"
    )
    profile: str | None = _setting(
        TEXT, None, "profile of the AWS configuration files", default_text="AWS_PROFILE, else default"
    )
    anonymous: bool = _setting(BOOLEAN, False, "ask without credentials, for public buckets")
    io_timeout: float = _setting(DURATION, 30.0, "how long one read may wait for the store before it fails with EIO")
    max_connections: int = _setting(COUNT, 64, "connections to the store at the same time")
    # Mount
    read_only: bool = _setting(BOOLEAN, False, "refuse all writing through the mount")
    allow_other: bool = _setting(BOOLEAN, False, "let other users into the mount")
    uid: int | None = _setting(ID, None, "owner of every file", default_text="who mounts")
    gid: int | None = _setting(ID, None, "group of every file", default_text="who mounts")
    umask: int = _setting(UMASK, 0o022, "permission bits to take away from 0777 (folders) and 0666 (files)")
    nonempty: bool = _setting(BOOLEAN, False, "mount over a folder that has files in it")
    transport: str = _setting(
        _choice("auto", "lane", "pyfuse3"),
        "auto",
        "how requests of the kernel are read: the fast lane, or all through pyfuse3",
    )
    by_label: str | None = _setting(
        TEXT,
        None,
        "show a snapshot as folders named by this label (class, if none is named), as image-folder loaders expect",
        default_text="by path",
        bare="class",
    )
    # Writing
    write_tier: str | None = _setting(
        TEXT,
        None,
        "where written data is safe until the bucket has it: a folder, or rados://POOL[?conf=FILE&keyring=FILE&client=NAME]",
        default_text="$XDG_DATA_HOME/forebay/write, usually ~/.local/share/forebay/write",
    )
    write_mode: str = _setting(
        _choice("back", "through"),
        "back",
        "when close returns: as soon as the data is safe in the write tier, or only when it is in the bucket",
    )
    writeback_delay: float = _setting(
        DURATION,
        1.0,
        "how long a closed file rests before it is uploaded; what is renamed or deleted by then is never sent",
    )
    max_dirty_age: float = _setting(
        DURATION, 60.0, "age at which written data is uploaded although its file is still open"
    )
    max_dirty_size: int = _setting(
        SIZE, 64 * amounts.GIB, "how much written data may wait for the bucket; writers then wait"
    )
    dirty_wait: float = _setting(DURATION, 60.0, "how long a writer waits for room before it gets ENOSPC")
    write_cache_size: int = _setting(
        SIZE, 16 * amounts.GIB, "how much of the write tier is used, before uploaded data in it is given up"
    )
    on_conflict: str = _setting(
        _choice("keep-both", "overwrite"),
        "keep-both",
        "when the object was changed by others meanwhile: upload ours under a name beside it, or overwrite theirs",
    )
    # Daemon
    foreground: bool = _setting(BOOLEAN, False, "stay in the foreground, log to stderr")
    idle_timeout: float = _setting(DURATION, 600.0, "when `forebay serve` ends by itself after the last client left")
    log_level: str = _setting(
        _choice("debug", "info", "warning", "error"), "info", "least severe message that is logged"
    )
    log_format: str = _setting(_choice("text", "json"), "text", "log lines for people, or one JSON object each")
    log_file: Path | None = _setting(
        FILE, None, "log of a mount in the background", default_text="$XDG_STATE_HOME/forebay/<source>.log"
    )
    metrics_port: int | None = _setting(
        PORT, None, "serve Prometheus metrics on this port, 0 for any", default_text="off"
    )
    metrics_address: str = _setting(TEXT, "127.0.0.1", "address on which metrics are served")
    # Snapshots
    meta_url: str | None = _setting(
        TEXT,
        None,
        "where datasets and their versions are kept, and with mongodb:// also what writable mounts share: mongodb://... or sqlite:///FILE",
        default_text="SQLite in $XDG_DATA_HOME/forebay, usually ~/.local/share/forebay",
        secret=True,
    )

    origins: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    def origin(self, name: str) -> str:
        """Where the value of setting `name` came from, for messages: `--cache-size`, `FOREBAY_CACHE_SIZE`, `FILE: cache-size`."""
        return self.origins.get(name, "default")

    def is_default(self, name: str) -> bool:
        return name not in self.origins

    def to_texts(self) -> dict[str, str]:
        """Every value that is not the default, as text; `from_texts` is the inverse. For handing settings to a daemon."""
        texts = {}
        for row in TABLE.values():
            value = getattr(self, row.field)
            if value != row.default:
                texts[row.name] = row.kind.write(value)
        return texts

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], origins: Mapping[str, str]) -> "Settings":
        values = {TABLE[name].field: TABLE[name].kind.parse(text) for name, text in texts.items()}
        return cls(**values, origins=dict(origins))


def _table() -> Iterator[Setting]:
    for field in dataclasses.fields(Settings):
        if "kind" in field.metadata:
            meta = field.metadata
            kind: Kind = meta["kind"]
            text = meta["default_text"] or kind.write(field.default)
            yield Setting(
                field.name.replace("_", "-"), kind, meta["help"], field.default, text, meta["secret"], meta["bare"]
            )


TABLE: Mapping[str, Setting] = {row.name: row for row in _table()}


def resolve(flags: Mapping[str, str], *, environ: Mapping[str, str], file: Path | None = None) -> Settings:
    """The settings in effect, from flags (name -> text), variables and the configuration file.

    `file` is what `--config` named and must exist. Raises ConfigError (a UsageError for flags) naming the origin.
    """
    texts: dict[str, tuple[str, str]] = {}
    path = _configuration_file(file, environ)
    if path is not None:
        for name, text in _read_file(path).items():
            texts[name] = (text, f"{path}: {name}")
    for name, text in _read_variables(environ).items():
        texts[name] = (text, TABLE[name].variable)
    for name, text in flags.items():
        texts[name] = (text, TABLE[name].flag)
    values: dict[str, Any] = {}
    for name, (text, origin) in texts.items():
        try:
            values[TABLE[name].field] = TABLE[name].kind.parse(text)
        except UsageError as error:
            failure = UsageError if origin.startswith("--") else ConfigError
            raise failure(f"{origin}: {error.message}", remedy=error.remedy) from None
    settings = Settings(**values, origins={name: origin for name, (_, origin) in texts.items()})
    _check(settings)
    return settings


def default_cache_dir() -> Path:
    return _xdg("XDG_CACHE_HOME", ".cache")


def default_state_dir() -> Path:
    return _xdg("XDG_STATE_HOME", ".local/state")


def default_data_dir() -> Path:
    return _xdg("XDG_DATA_HOME", ".local/share")


def _xdg(variable: str, fallback: str) -> Path:
    base = os.environ.get(variable, "")
    return (Path(base) if base.startswith("/") else Path.home() / fallback) / "forebay"


def _configuration_file(file: Path | None, environ: Mapping[str, str]) -> Path | None:
    named = file or (Path(environ["FOREBAY_CONFIG"]) if environ.get("FOREBAY_CONFIG") else None)
    if named is not None:
        if not named.is_file():
            origin = "--config" if file else "FOREBAY_CONFIG"
            raise ConfigError(f"{origin}: there is no file {named}")
        return named
    base = environ.get("XDG_CONFIG_HOME", "")
    home = Path(base) if base.startswith("/") else Path(environ.get("HOME", "/")) / ".config"
    for candidate in (home / "forebay" / "config.toml", SYSTEM_FILE):
        if candidate.is_file():
            return candidate
    return None


def _read_file(path: Path) -> dict[str, str]:
    import tomllib

    try:
        document = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    texts = {}
    for name, value in document.items():
        if name not in TABLE:
            raise ConfigError(f"{path}: there is no setting {name!r}{_nearest(name)}")
        texts[name] = _toml_text(path, name, value)
    return texts


def _toml_text(path: Path, name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list) and TABLE[name].kind is FOLDERS and all(isinstance(part, str) for part in value):
        return ":".join(value)
    if isinstance(value, int) and TABLE[name].kind is UMASK:
        return f"{value:o}"  # TOML writes octal as 0o022
    if isinstance(value, int | float) and not math.isnan(value):
        return str(value)
    if isinstance(value, str):
        return value
    raise ConfigError(f"{path}: {name} has a {type(value).__name__}, and text or a number is wanted")


def _read_variables(environ: Mapping[str, str]) -> dict[str, str]:
    by_variable = {row.variable: name for name, row in TABLE.items()}
    texts = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable == "FOREBAY_CONFIG" or _is_service_link(variable, text):
            continue
        if variable not in by_variable:
            raise ConfigError(f"there is no setting for the variable {variable}{_nearest(variable, list(by_variable))}")
        texts[by_variable[variable]] = text
    return texts


def unknown_setting(name: str) -> UsageError:
    """The refusal of a setting that does not exist, with the nearest one that does."""
    return UsageError(f"there is no setting {name!r}{_nearest(name)}")


def _is_service_link(variable: str, text: str) -> bool:
    """Whether kubelet put it there: a Service named `forebay...` gives every pod FOREBAY_..._SERVICE_HOST, _PORT and so on."""
    return bool(
        re.search(r"_SERVICE_(HOST|PORT)(_\w+)?$|_PORT_[0-9]+_(TCP|UDP|SCTP)(_\w+)?$", variable)
        or (variable.endswith("_PORT") and re.match(r"(tcp|udp|sctp)://", text))
    )


def _nearest(name: str, known: list[str] | None = None) -> str:
    near = difflib.get_close_matches(name.replace("_", "-") if known is None else name, known or list(TABLE), n=1)
    return f"; did you mean {near[0]}?" if near else "; `forebay config` lists all"


def _check(settings: Settings) -> None:
    """Refuse values that cannot hold together; each message names where they came from."""

    def refuse(name: str, why: str, remedy: str | None = None) -> None:
        origin = settings.origin(name)
        raise (UsageError if origin.startswith("--") else ConfigError)(f"{origin}: {why}", remedy=remedy)

    if settings.free_space_ratio >= 1:
        refuse("free-space-ratio", "all of the disk is to stay free, so nothing could be cached", "give less than 1")
    if settings.cache_size.of(1 << 60) == 0:
        refuse("cache-size", "an SSD tier without room cannot cache", "give at least 64MiB")
    if settings.cache_size.size_bytes is not None and settings.cache_size.size_bytes < 64 * amounts.MIB:
        refuse("cache-size", f"{settings.cache_size} is too small for a cache", "give at least 64MiB")
    ram = settings.ram_size
    if ram is not None and ram.size_bytes is not None and 0 < ram.size_bytes < 16 * amounts.MIB:
        refuse("ram-size", f"{ram} is too small for a RAM tier", "give at least 16MiB, or 0 for none")
    if not 0 < settings.io_timeout < math.inf:
        refuse("io-timeout", "a read must wait for some time, and not for ever", "give a duration such as 30s")
    if settings.cache_name is not None and not re.fullmatch(r"[\w.@=+-]{1,200}", settings.cache_name):
        refuse("cache-name", f"{settings.cache_name!r} is no plain folder name", "use letters, digits and .@=+-_")
    if settings.cache_name in (".", ".."):
        refuse("cache-name", f"{settings.cache_name!r} is no plain folder name")
    if settings.meta_url is not None and not settings.meta_url.startswith(
        ("mongodb://", "mongodb+srv://", "sqlite:///")
    ):
        refuse("meta-url", "it is neither mongodb://... nor sqlite:///FILE")
    for folder in settings.cache_dir or ():
        if settings.ram_dir == folder:
            name = "cache-dir" if settings.is_default("ram-dir") else "ram-dir"
            refuse(name, f"{folder} is both in cache-dir and the ram-dir", "use two different folders")
    if not settings.is_default("metrics-address") and settings.metrics_port is None:
        refuse("metrics-address", "it has no effect without metrics-port", "give metrics-port too")
