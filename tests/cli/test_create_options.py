"""docker's options, as arguments of the client's call."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from arcbox_agent.cli.create_options import in_memory, mount, volume
from arcbox_agent.cli.environment import environment


def test_a_key_alone_takes_the_value_it_has_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "yes")
    monkeypatch.delenv("NOT_HERE", raising=False)
    assert environment(["A=1", "HERE", "NOT_HERE", "EMPTY=", "B=a=b"]) == {
        "A": "1",
        "HERE": "yes",
        "EMPTY": "",
        "B": "a=b",
    }


def test_an_env_file_is_read_as_docker_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", "yes")
    file = tmp_path / "env"
    text = b'\xef\xbb\xbf# a comment\n\n  INDENTED=1\nQUOTED="kept"\nTRAILING=two  \r\n'
    file.write_bytes(text + b"HERE\nOVER=file\nIN=one\rtwo\n  \r\nEND=x")
    assert environment(["OVER=option"], [str(file)]) == {
        "INDENTED": "1",
        "QUOTED": '"kept"',
        "TRAILING": "two  ",
        "HERE": "yes",
        "OVER": "option",
        "IN": "one\rtwo",
        "END": "x",
    }


def test_a_broken_line_of_an_env_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("GOOD=1\nBAD KEY=2\n")
    with pytest.raises(click.UsageError, match=r"env:2: 'BAD KEY=2' is not KEY=VALUE"):
        environment([], [str(file)])
    with pytest.raises(click.UsageError, match="--env: '=x' is not KEY=VALUE"):
        environment(["=x"])


def test_an_env_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_bytes(b"A=1\nB=\xff\n")
    with pytest.raises(click.UsageError, match="not in UTF-8"):
        environment((), (str(path),))


def test_volumes() -> None:
    assert volume("/a:/b") == {"type": "bind", "source": "/a", "target": "/b", "readonly": False}
    assert volume("/a:/b:ro") == {"type": "bind", "source": "/a", "target": "/b", "readonly": True}
    assert volume("data:/b:rw") == {"type": "volume", "source": "data", "target": "/b", "readonly": False}


@pytest.mark.parametrize("text", ["", "/a", "/a:", ":/b", "/a:/b:rx", "/a:/b:ro:x"])
def test_what_is_no_volume_is_refused(text: str) -> None:
    with pytest.raises(click.UsageError, match="is not SOURCE:TARGET"):
        volume(text)


def test_a_tmpfs_has_no_options() -> None:
    assert in_memory("/run") == {"type": "tmpfs", "target": "/run"}
    with pytest.raises(click.UsageError, match="'/run:size=64m' is not TARGET; no options are known"):
        in_memory("/run:size=64m")


def test_mounts() -> None:
    assert mount("type=bind,source=/a,target=/b") == {"type": "bind", "source": "/a", "target": "/b"}
    assert mount("type=bind,src=/a,dst=/b,readonly") == {
        "type": "bind",
        "source": "/a",
        "target": "/b",
        "readonly": True,
    }
    assert mount("type=bind,src=/a,destination=/b,ro=false")["readonly"] is False
    assert mount("type=tmpfs,target=/t") == {"type": "tmpfs", "target": "/t"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("type=bind,source=/a", "names no target"),
        ("type=nfs,target=/a", "type=nfs: bind, volume and tmpfs are known"),
        ("type=bind,speed=9,target=/a", "'speed=9' is not known"),
        ("target", "'target' is not known"),
    ],
)
def test_what_is_no_mount_is_refused(text: str, message: str) -> None:
    with pytest.raises(click.UsageError, match=message):
        mount(text)
