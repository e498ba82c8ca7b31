"""The table of settings, and all that is made of it."""

from __future__ import annotations

import socket
import tomllib
from pathlib import Path

import pytest

from arcbox_agent.agent.config.invocation import load
from arcbox_agent.agent.config.table import KEEPER_SOCKET, TABLE, Settings
from arcbox_agent.agent.config.text import show, usage
from arcbox_agent.errors import ConfigError
from tests.conftest import REPOSITORY
from tools.settings_page import table

#: TOML has a number of any length.
HUGE = "9" * 400


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return f"--config={path}"


def test_the_defaults() -> None:
    settings = load([]).settings
    assert settings.listen == ["vsock:1024"]
    assert settings.state_dir == "/var/lib/arcbox-agent"
    assert settings.max_frame_size == 16777216
    assert settings.containers_at_exit == "leave"
    assert settings.given == frozenset()


def test_options_with_a_space_or_an_equals_sign() -> None:
    settings = load(["--log-level", "debug", "--max-frame-size=1MiB", "--frame-timeout", "2.5"]).settings
    assert (settings.log_level, settings.max_frame_size, settings.frame_timeout) == ("debug", 1048576, 2.5)
    assert settings.given == {"log_level", "max_frame_size", "frame_timeout"}


def test_flags() -> None:
    assert load(["--refuse-images"]).settings.refuse_images is True
    assert load(["--no-set-clock"]).settings.set_clock is False
    assert load(["--set-clock=no"]).settings.set_clock is False


def test_an_option_that_may_be_repeated() -> None:
    settings = load(["--listen", "unix:/a", "--listen=vsock:7?mode=no-exec", "--allow-uid=7"]).settings
    assert settings.listen == ["unix:/a", "vsock:7?mode=no-exec"]
    assert settings.allow_uid == [7]


def test_the_file_and_the_command_line_that_wins(tmp_path: Path) -> None:
    config = write(
        tmp_path / "agent.toml",
        'listen = ["unix:/file"]\nmax_frame_size = "1MiB"\nmax_queued_bytes = 65536\nset_clock = false\n'
        "frame_timeout = 3\nallow_cid = [3, 4]\n",
    )
    settings = load([config, "--listen=unix:/line", "--set-clock"]).settings
    # A list too is replaced, not added to.
    assert settings.listen == ["unix:/line"]
    assert settings.set_clock is True
    assert (settings.max_frame_size, settings.max_queued_bytes) == (1048576, 65536)
    assert (settings.frame_timeout, settings.allow_cid) == (3.0, [3, 4])


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("64KiB", 65536), ("64k", 65536), ("1 MiB", 1048576), ("2G", 2 << 30), ("1kB", 1000)],
)
def test_sizes(text: str, size: int) -> None:
    assert TABLE["log_max_size"].parse(text) == size


NOT_A_SIZE = "is not a size: write a number of bytes, or 64KiB, 16MiB, 1GiB"
LISTEN_FORMS = "vsock:PORT or unix:/path, with an optional ?mode=NAME"
MODES = "full, no-exec, read-only"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-frame-size=16MB?"], f"max_frame_size: '16MB?' {NOT_A_SIZE}"),
        (["--max-frame-size=-1"], f"max_frame_size: '-1' {NOT_A_SIZE}"),
        (["--max-frame-size=1k1"], f"max_frame_size: '1k1' {NOT_A_SIZE}"),
        (["--max-frame-size=1023"], "max_frame_size: '1023' is below the minimum of 1024"),
        (["--max-connections=x"], "max_connections: 'x' is not a whole number"),
        (["--max-connections=1e3"], "max_connections: '1e3' is not a whole number"),
        (["--frame-timeout=nan"], "frame_timeout: 'nan' is not a number of seconds"),
        (["--frame-timeout=-1"], "frame_timeout: '-1' is not a number of seconds"),
        (["--log-level=loud"], "log_level: 'loud' is not one of debug, info, warning, error"),
        (["--set-clock=maybe"], "set_clock: 'maybe' is neither true nor false"),
        (["--listen=tcp:80"], f"listen: 'tcp:80': unknown scheme 'tcp': write {LISTEN_FORMS}"),
        (["--listen=unix:/a?mode=all"], f"listen: 'unix:/a?mode=all': unknown mode 'all': write one of {MODES}"),
        (["--listen=systemd:?x=1"], "listen: 'systemd:?x=1': unknown options 'x=1': only mode=NAME can follow the ?"),
        (["--metrics-listen=vsock:1"], "metrics_listen: 'vsock:1': write unix:/path"),
        (["--metrics-listen=unix:/a?mode=full"], "metrics_listen: 'unix:/a?mode=full': no mode can be given here"),
        (["--state-dir="], "state_dir: the path is empty"),
        (
            ["--max-queued-total=1MiB"],
            "max_queued_total: 1MiB is below max_frame_size, 16MiB: no such frame could ever arrive",
        ),
        (["--state-dir=/x", "--run-dir=/x"], "run_dir: /x is the state_dir too: they must differ"),
        (
            ["--run-dir=/" + "d" * 93],
            f"run_dir: /{'d' * 93} is longer than 93 bytes: the kernel takes no socket in it; "
            "name a shorter directory (--run-dir DIR)",
        ),
        (["--no-listen"], "unknown argument '--no-listen': see --help"),
        (["--help=x"], "--help takes no value"),
        (["--no-set-clock=1"], "--no-set-clock takes no value"),
        (["--config="], "config: the path is empty"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_conections = 3\n", "max_conections: no such setting (in {path})"),
        ("max-connections = 3\n", "max-connections: no such setting (in {path})"),
        ('config = "other"\n', "config: no such setting (in {path})"),
        ("max_connections = true\n", "max_connections: True is not a string (in {path})"),
        ("log_level = 3\n", "log_level: 3 is not a string (in {path})"),
        ("listen = [1]\n", "listen: 1 is not a string (in {path})"),
        ("frame_timeout = inf\n", "frame_timeout: inf is not a number of seconds (in {path})"),
        ("set_clock = 1\n", "set_clock: 1 is neither true nor false (in {path})"),
        (f"frame_timeout = {HUGE}\n", f"frame_timeout: {HUGE} is not a number of seconds (in {{path}})"),
        (f"log_max_size = {HUGE}\n", f"log_max_size: {HUGE} is above the maximum of 6.87195e+10 (in {{path}})"),
    ],
)
def test_what_is_wrong_in_the_file_is_named_with_the_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "agent.toml"
    with pytest.raises(ConfigError) as caught:
        load([write(path, text)])
    assert str(caught.value) == message.format(path=path)


@pytest.mark.parametrize(
    "text",
    ["listen = [", "frame_timeout = " + "9" * 5000, "log_max_size = " + "9" * 5000, "listen = " + "[" * 100_000],
    ids=["half", "seconds", "size", "nested"],
)
def test_a_file_that_is_not_toml(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([write(tmp_path / "agent.toml", text)])
    assert str(caught.value).startswith(f"config: {tmp_path}/agent.toml is not TOML: ")


def test_help_and_version_do_not_read_the_file() -> None:
    assert load(["--config=/no/such", "--help"]).action == "help"
    assert load(["--config=/no/such", "-V"]).action == "version"


def test_what_check_config_shows_is_a_file_that_means_the_same(tmp_path: Path) -> None:
    settings = load(['--listen=unix:/a b"c', "--allow-cid=3", "--frame-timeout=2.5", "--no-set-clock"]).settings
    text = show(settings)
    assert set(tomllib.loads(text)) == set(TABLE)
    again = load([write(tmp_path / "agent.toml", text)]).settings
    assert {name: getattr(again, name) for name in TABLE} == {name: getattr(settings, name) for name in TABLE}


def test_every_setting_is_an_option_a_key_an_attribute_and_a_line_of_the_help() -> None:
    help = usage()
    settings = Settings()
    for name, line in TABLE.items():
        assert hasattr(settings, name)
        assert f"  {line.option}" in help
        assert line.help.endswith(".")
        # Its own default is a value it can have.
        if line.default not in ("", []):
            assert line.read_all(line.default) == line.default


def test_the_page_of_the_settings_has_the_table_as_it_is() -> None:
    page = (REPOSITORY / "docs" / "configuration.md").read_text()
    assert table() in page, "put the output of `python -m tools.settings_page` into docs/configuration.md"


def test_the_longest_run_dir_takes_the_keepers_socket(tmp_path: Path) -> None:
    run_dir = "/" + "d" * 92
    assert load([f"--run-dir={run_dir}"]).settings.run_dir == run_dir
    with socket.socket(socket.AF_UNIX) as taken, pytest.raises(FileNotFoundError):  # not "path too long"
        taken.bind(f"{run_dir}/{KEEPER_SOCKET}")
