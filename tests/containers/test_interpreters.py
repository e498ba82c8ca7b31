"""A program that is there and cannot run for its interpreter: the interpreter is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from arcbox_agent import sync
from arcbox_agent.errors import AgentFailedError
from arcbox_agent.wire import Mount
from tests.containers.support import text_of

MISSING = "No such file or directory (os error 2)"


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(0o755)
    return str(path)


def refusal(client: sync.Client, program: str, container: str = "") -> str:
    with pytest.raises(AgentFailedError) as caught:
        client.exec([program], container=container)
    return text_of(caught.value)


@pytest.mark.parametrize(
    ("line", "interpreter"),
    [
        ("#!/no/such/python3", "/no/such/python3"),
        ("#! /no/such/python3 -u", "/no/such/python3"),
        ("#!\t/no/such/python3\t-u", "/no/such/python3"),
        ("#!no-path", "no-path"),
    ],
)
def test_the_missing_interpreter_of_a_script_is_named(
    client: sync.Client, tmp_path: Path, line: str, interpreter: str
) -> None:
    script = write(tmp_path / "script", f"{line}\necho hi\n")
    assert refusal(client, script) == f"exec failed: {MISSING}: {script}, whose interpreter is {interpreter!r}"
    id = client.create_container(cmd=[script]).id
    with pytest.raises(AgentFailedError) as caught:
        client.start_container(id)
    assert text_of(caught.value) == f"failed to start: {script}: {MISSING}, whose interpreter is {interpreter!r}"


def test_a_carriage_return_behind_the_interpreter_is_told(client: sync.Client, tmp_path: Path) -> None:
    script = write(tmp_path / "script", "#!/bin/sh\r\necho hi\r\n")
    assert refusal(client, script) == (
        f"exec failed: {MISSING}: {script}, whose interpreter is '/bin/sh\\r': "
        "its first line ends in a carriage return, as Windows writes it"
    )


def test_an_interpreter_that_cannot_be_executed_is_named(client: sync.Client, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("x")
    script = write(tmp_path / "script", f"#!{plain}\n")
    assert refusal(client, script) == (
        f"exec failed: Permission denied (os error 13): {script}, whose interpreter is {str(plain)!r}"
    )
    directory = write(tmp_path / "other", f"#!{tmp_path}\n")
    assert refusal(client, directory).endswith(f"(os error 13): {directory}, whose interpreter is {str(tmp_path)!r}")


def test_the_last_of_a_chain_of_interpreters_is_named(client: sync.Client, tmp_path: Path) -> None:
    inner = write(tmp_path / "inner", "#!/no/such/shell\n")
    outer = write(tmp_path / "outer", f"#!{inner}\n")
    assert refusal(client, outer).endswith(f": {outer}, whose interpreter is '/no/such/shell'")


def test_no_interpreter_is_named_where_none_is_at_fault(client: sync.Client, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/python3\n")
    assert refusal(client, str(script)) == f"exec failed: Permission denied (os error 13): {script}"
    script = tmp_path / "garbage"
    assert refusal(client, write(script, b"\x7fELF")) == f"exec failed: Exec format error (os error 8): {script}"
    assert refusal(client, str(tmp_path / "none")) == f"exec failed: {MISSING}: {tmp_path / 'none'}"


def test_a_script_in_the_path_is_looked_at_only_if_nothing_else_runs(client: sync.Client, tmp_path: Path) -> None:
    write(tmp_path / "true", "#!/no/such/shell\n")
    assert client.exec(["true"], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}).exit_code == 0
    with pytest.raises(AgentFailedError, match=r"\(os error 2\): true, whose interpreter is '/no/such/shell'"):
        client.exec(["true"], env={"PATH": f"/nowhere:{tmp_path}"})


def test_the_missing_loader_of_a_dynamic_program_is_named_from_inside_the_root(
    client: sync.Client, rootfs: Path, tmp_path: Path
) -> None:
    shutil.copy2("/usr/bin/env", rootfs / "bin" / "dynamic")
    write(rootfs / "bin" / "script", "#!/bin/dynamic sh\n")
    for program in ("/bin/dynamic", "/bin/script"):
        id = client.create_container(cmd=[program], rootfs=str(rootfs)).id
        with pytest.raises(AgentFailedError, match=rf"{program}: No such .*, whose interpreter is '/lib.*/ld-.*'"):
            client.start_container(id)
    # What is looked at is what the container has there: a mount, and not the guest's file of that name.
    shutil.copytree(rootfs / "bin", tmp_path / "mounted", symlinks=True)
    id = client.create_container(
        cmd=["sleep", "60"], rootfs=str(rootfs), mounts=[Mount(type="bind", source=str(tmp_path), target="/data")]
    ).id
    client.start_container(id)
    text = refusal(client, "/data/mounted/dynamic", container=id)
    assert text.startswith(f"exec failed: {MISSING}: /data/mounted/dynamic, whose interpreter is '/lib")
