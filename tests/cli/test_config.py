"""Settings: flag beats variable beats file, and whatever is not understood is refused with its origin."""

import math
from pathlib import Path
from typing import Any

import pytest

from forebay import config
from forebay.amounts import Size
from forebay.errors import ConfigError, UsageError
from forebay.tests.project.test_structure import ROOT


def resolve(
    tmp_path: Path,
    *,
    flags: dict[str, str] | None = None,
    environ: dict[str, str] | None = None,
    file: str | None = None,
) -> config.Settings:
    path = None
    if file is not None:
        path = tmp_path / "config.toml"
        path.write_text(file)
    return config.resolve(flags or {}, environ={"HOME": str(tmp_path), **(environ or {})}, file=path)


def test_flag_beats_variable_beats_file(tmp_path: Path) -> None:
    file = 'cache-size = "1GiB"\nram-size = "1GiB"\nio-timeout = 5\n'
    environ = {"FOREBAY_CACHE_SIZE": "2GiB", "FOREBAY_RAM_SIZE": "2GiB"}
    settings = resolve(tmp_path, flags={"cache-size": "3GiB"}, environ=environ, file=file)
    assert settings.cache_size == Size(size_bytes=3 << 30)
    assert settings.ram_size == Size(size_bytes=2 << 30)
    assert settings.io_timeout == 5.0
    assert settings.origin("cache-size") == "--cache-size"
    assert settings.origin("ram-size") == "FOREBAY_RAM_SIZE"
    assert settings.origin("io-timeout") == f"{tmp_path / 'config.toml'}: io-timeout"
    assert settings.origin("eviction") == "default"


def test_every_kind_of_value_in_a_file(tmp_path: Path) -> None:
    settings = resolve(
        tmp_path,
        file='cache-dir = ["/a", "/b"]\numask = 0o027\nread-only = true\nmetadata-ttl = "indefinite"\nfree-space-ratio = 0.25\nuid = 1000\n',
    )
    assert settings.cache_dir == (Path("/a"), Path("/b"))
    assert settings.umask == 0o027
    assert settings.read_only is True
    assert settings.metadata_ttl == math.inf
    assert settings.free_space_ratio == 0.25
    assert settings.uid == 1000


def test_user_file_is_found_before_that_of_the_system(tmp_path: Path) -> None:
    folder = tmp_path / ".config" / "forebay"
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('eviction = "lru"\n')
    assert resolve(tmp_path).eviction == "lru"
    assert resolve(tmp_path, environ={"XDG_CONFIG_HOME": str(tmp_path / "elsewhere")}).eviction == "s3fifo"


def test_variables_that_kubelet_makes_of_services_are_no_settings(tmp_path: Path) -> None:
    environ = {
        "FOREBAY_SERVICE_HOST": "10.0.0.1",
        "FOREBAY_SERVICE_PORT_HTTP": "80",
        "FOREBAY_PORT": "tcp://10.0.0.1:80",
        "FOREBAY_PORT_80_TCP_ADDR": "10.0.0.1",
        "FOREBAY_METRICS_PORT": "tcp://10.0.0.2:9090",
    }
    assert resolve(tmp_path, environ=environ).metrics_port is None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"file": 'cache-sise = "1G"'}, "did you mean cache-size?"),
        ({"file": 'cache_size = "1G"'}, "did you mean cache-size?"),
        ({"file": "cache-size = "}, "is not TOML"),
        ({"file": "cache-size = [1]"}, "cache-size has a list"),
        ({"file": "uid = -1"}, "uid: '-1' is not a whole number"),
        ({"environ": {"FOREBAY_CACHE_SISE": "1G"}}, "did you mean FOREBAY_CACHE_SIZE?"),
        ({"environ": {"FOREBAY_IO_TIMEOUT": "fast"}}, "FOREBAY_IO_TIMEOUT: 'fast' is not a duration"),
        ({"environ": {"FOREBAY_CONFIG": "/nowhere.toml"}}, "FOREBAY_CONFIG: there is no file /nowhere.toml"),
        ({"environ": {"FOREBAY_READ_ONLY": "maybe"}}, "neither true nor false"),
        ({"flags": {"cache-size": "12X"}}, "--cache-size: '12X' has the unknown unit 'X'"),
        ({"flags": {"cache-size": "1M"}}, "--cache-size: 1MiB is too small"),
        ({"flags": {"cache-size": "0%"}}, "--cache-size: an SSD tier without room"),
        ({"flags": {"ram-size": "1M"}}, "--ram-size: 1MiB is too small"),
        ({"flags": {"cache-dir": "/a:/a"}}, "names one folder twice"),
        ({"flags": {"cache-dir": "/a:"}}, "an empty path"),
        ({"flags": {"cache-dir": "/dev/shm"}}, "--cache-dir: /dev/shm is both"),
        ({"flags": {"cache-name": "../x"}}, "no plain folder name"),
        ({"flags": {"cache-name": ".."}}, "no plain folder name"),
        ({"flags": {"free-space-ratio": "1"}}, "nothing could be cached"),
        ({"flags": {"eviction": "random"}}, "'random' is not one of s3fifo, lru, ttl, epoch"),
        ({"flags": {"endpoint-url": "localhost:8333"}}, "is not a URL"),
        ({"flags": {"umask": "999"}}, "is not a umask"),
        ({"flags": {"io-timeout": "indefinite"}}, "not for ever"),
        ({"flags": {"meta-url": "postgres://x"}}, "neither mongodb://"),
        ({"flags": {"metrics-address": "0.0.0.0"}}, "no effect without metrics-port"),
    ],
)
def test_what_is_not_understood_is_refused(tmp_path: Path, given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(tmp_path, **given)
    assert says in str(caught.value)
    assert isinstance(caught.value, ConfigError) == ("flags" not in given)


def test_passwords_in_urls_are_refused_or_masked(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(tmp_path, flags={"endpoint-url": "http://user:hunter2@host"})
    assert "hunter2" not in str(caught.value)
    settings = resolve(tmp_path, flags={"meta-url": "mongodb://user:hunter2@host/db"})
    assert config.TABLE["meta-url"].show(settings.meta_url) == "mongodb://***@host/db"
    with pytest.raises(UsageError) as caught:
        resolve(tmp_path, flags={"meta-url": "mysql://user:hunter2@host/db"})
    assert "hunter2" not in str(caught.value)


def test_settings_travel_as_texts(tmp_path: Path) -> None:
    settings = resolve(
        tmp_path,
        flags={
            "cache-dir": "/a:/b", "cache-size": "33%", "ram-size": "123456789", "umask": "077", "metadata-ttl": "indefinite",
            "io-timeout": "1.5s", "read-only": "true", "log-file": "/x/y.log", "metrics-port": "0", "free-space-ratio": "0.15",
        },
    )  # fmt: skip
    again = config.Settings.from_texts(settings.to_texts(), settings.origins)
    assert again == settings
    assert again.origins == settings.origins


def test_document_lists_every_setting() -> None:
    rows = [line for line in (ROOT / "docs/configuration.md").read_text().splitlines() if line.startswith("| `")]
    assert rows == [
        f"| `{row.name}` | {row.kind.name.replace('|', ' or ')} | {row.default_text} | {row.help} |"
        for row in config.TABLE.values()
    ]
