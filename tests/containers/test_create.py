"""What create refuses, and how it says so; what it warns of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent import sync
from arcbox_agent.errors import AgentFailedError, BadRequestError, BusyError, ConflictError, NotFoundError, RequestError
from arcbox_agent.wire import Mount


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"cmd": []}, BadRequestError, "empty command: name one"),
        ({"cmd": [""]}, BadRequestError, "empty command"),
        ({"cmd": ["a\0b"]}, BadRequestError, "the command has a NUL in it"),
        ({"working_dir": "tmp"}, BadRequestError, "the working directory must be an absolute path, not 'tmp'"),
        ({"user": "nosuchuser"}, BadRequestError, "unknown user 'nosuchuser': no such name in the passwd file"),
        ({"user": "root:nosuch"}, BadRequestError, "unknown group 'nosuch': no such name in the group file"),
        ({"user": "root:"}, BadRequestError, "invalid user 'root:': no group follows the colon"),
        ({"user": "4294967295"}, BadRequestError, "unknown user '4294967295': no such name in the passwd file"),
        ({"env": {"A=B": "c"}}, BadRequestError, "invalid environment variable name 'A=B'"),
        ({"env": {"": "c"}}, BadRequestError, "invalid environment variable name ''"),
        ({"env": {"A": "b\0"}}, BadRequestError, "the environment variable 'A' has a NUL in its value"),
        ({"rootfs": "relative"}, BadRequestError, "the rootfs must be an absolute path, not 'relative'"),
        ({"rootfs": "/no/such"}, BadRequestError, "the rootfs /no/such is no directory of the guest"),
        ({"mounts": [Mount(type="nfs", source="/tmp", target="/x")]}, BadRequestError, "mount 1: unknown type 'nfs'"),
        ({"mounts": [Mount(source="/no/such", target="/tmp")]}, BadRequestError, "mount 1: the source /no/such does"),
        ({"mounts": [Mount(source="tmp", target="/tmp")]}, BadRequestError, "mount 1: the source of a bind must"),
        ({"mounts": [Mount(source="/tmp", target="x")]}, BadRequestError, "mount 1: the target must be an absolute"),
        ({"mounts": [Mount(source="/tmp", target="/tmp/../etc")]}, BadRequestError, "has a NUL or `..` in it"),
        ({"mounts": [Mount(source="/tmp", target="/.")]}, BadRequestError, "nothing can be mounted over the root"),
        ({"mounts": [Mount(source="/tmp", target="/no/such")]}, BadRequestError, "/no/such does not exist in the"),
        ({"mounts": [Mount(type="volume", source="../x", target="/tmp")]}, BadRequestError, "invalid volume name"),
        ({"mounts": [Mount(type="tmpfs", target="/tmp")] * 2}, BadRequestError, "mount 2: a second mount at /tmp"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(
    client: sync.Client, options: dict[str, Any], error: type[RequestError], text: str
) -> None:
    with pytest.raises(error) as caught:
        client.create_container(**{"cmd": ["true"], **options})
    assert text in caught.value.message
    assert client.list_containers(all=True) == []


#: As many bytes as all texts of one container may have; those of the first kind grow most in JSON.
ONE_MIB = 1 << 20


@pytest.mark.parametrize(
    "options",
    [
        {"cmd": ["\x01" * ONE_MIB]},
        {"env": {"A": "\U0001f600" * (ONE_MIB // 4)}},
        {"image": "\U0001f600" * (ONE_MIB // 4)},
        {"user": "x" * ONE_MIB},
        {"mounts": [Mount(type="tmpfs", source="\U0001f600" * (ONE_MIB // 4), target="/tmp")]},
        {"mounts": [Mount(type="tmpfs", target=f"/{number}" + "\U0001f600" * 1100) for number in range(256)]},
    ],
    ids=["command", "env", "image", "user", "mount source", "mount targets"],
)
def test_there_is_one_bound_on_all_texts_of_a_container(client: sync.Client, options: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError, match="command, environment and paths are larger than 1048576 bytes"):
        client.create_container(**{"cmd": ["true"], "rootfs": "/tmp", **options})


@pytest.mark.parametrize("text", ["\x01" * (ONE_MIB - 16), "\U0001f600" * (ONE_MIB // 4 - 4)], ids=["control", "emoji"])
def test_the_largest_container_there_may_be_is_still_there_after_a_restart(agent: Any, text: str) -> None:
    mount = Mount(type="tmpfs", source=text, target="/tmp")
    with sync.connect(agent.address, wait=20) as client:
        client.create_container(cmd=["true"], image=text, id="image")
        client.create_container(cmd=[text], id="command")
        client.create_container(cmd=["true"], mounts=[mount], id="mount")
        with pytest.raises(AgentFailedError, match="failed to start"):
            client.start_container("command")
        before = client.list_containers(all=True)
    agent.kill()
    agent.restart()
    with sync.connect(agent.address, wait=20) as client:
        assert client.list_containers(all=True) == before


@pytest.mark.parametrize(
    "bad", ["..", ".", "../x", "a/b", "-rf", "_x", ".hidden", "a b", "a\nb", "ä", "x" * 129, "a\0b", "/x"]
)
def test_ids_and_names_that_could_mean_something_else_are_refused(client: sync.Client, bad: str) -> None:
    with pytest.raises(BadRequestError, match="invalid container id"):
        client.create_container(cmd=["true"], id=bad)
    with pytest.raises(BadRequestError, match="invalid container name"):
        client.create_container(cmd=["true"], name=bad)


def test_the_host_may_choose_the_id(client: sync.Client) -> None:
    assert client.create_container(cmd=["true"], id="x" * 128).id == "x" * 128
    assert client.create_container(cmd=["true"], id="A.b_c-9").id == "A.b_c-9"


def test_ids_and_names_are_unique_together(client: sync.Client) -> None:
    client.create_container(cmd=["true"], id="one", name="web")
    for id, name in (("one", ""), ("", "web"), ("web", ""), ("", "one")):
        with pytest.raises(ConflictError, match="is in use by another container"):
            client.create_container(cmd=["true"], id=id, name=name)
    client.remove_container("web")
    client.create_container(cmd=["true"], id="web", name="one")


def test_an_id_its_beginning_or_its_name_all_mean_the_container(client: sync.Client) -> None:
    client.create_container(cmd=["true"], id="abc1", name="web")
    client.create_container(cmd=["true"], id="abd2", name="abc")
    assert [each.id for each in client.list_containers(all=True, filter="abc")] == ["abc1", "abd2"]
    client.remove_container("abc1"[:4])
    client.remove_container("abc")  # a name comes before the beginning of an id
    assert client.list_containers(all=True) == []


def test_a_beginning_that_several_ids_have_is_refused(client: sync.Client) -> None:
    client.create_container(cmd=["sleep", "60"], id="abc1")
    client.create_container(cmd=["sleep", "60"], id="abc2")
    with pytest.raises(RequestError, match="ambiguous container id: abc is the beginning of 2 ids"):
        client.start_container("abc")
    with pytest.raises(ConflictError, match="ambiguous"):
        client.kill_container("abc")
    with pytest.raises(NotFoundError, match=r"container not found: (\n|$)"):
        client.kill_container("")


def test_an_image_is_kept_and_a_warning_says_that_it_is_not_unpacked(client: sync.Client, rootfs: Path) -> None:
    created = client.create_container(cmd=["true"], image="docker.io/library/nginx:1")
    assert created.warnings == [
        "image docker.io/library/nginx:1 is not unpacked: this runtime cannot unpack images; "
        "the container runs in the guest's own file system"
    ]
    (info,) = client.list_containers(all=True)
    assert (info.image, info.warnings) == ("docker.io/library/nginx:1", created.warnings)
    second = client.create_container(cmd=["true"], image="x", rootfs=str(rootfs))
    assert second.warnings == [f"image x is not unpacked: the container runs in its rootfs {rootfs}"]
    assert client.create_container(cmd=["true"]).warnings == []


def test_images_can_be_refused(start_agent: Callable[..., Any]) -> None:
    agent = start_agent(refuse_images="true")
    with sync.connect(agent.address, wait=10) as client:
        with pytest.raises(BadRequestError, match="image x: this runtime cannot unpack images, and refuse_images"):
            client.create_container(cmd=["true"], image="x")
        client.create_container(cmd=["true"])


def test_there_is_a_bound_on_containers(start_agent: Callable[..., Any]) -> None:
    agent = start_agent(max_containers="3")
    with sync.connect(agent.address, wait=10) as client:
        for _ in range(3):
            client.create_container(cmd=["true"])
        with pytest.raises(BusyError, match="there are max_containers = 3 containers already"):
            client.create_container(cmd=["true"])
        client.remove_container(client.list_containers(all=True)[0].id)
        client.create_container(cmd=["true"])


def test_entrypoint_and_command_are_one_command(client: sync.Client) -> None:
    client.create_container(entrypoint=["echo", "a"], cmd=["b"], name="x")
    (info,) = client.list_containers(all=True)
    assert (info.command, info.state, info.status) == (["echo", "a", "b"], "created", "Created")


def test_containers_are_listed_in_the_order_of_their_creation(client: sync.Client) -> None:
    ids = [client.create_container(cmd=["true"], id=name).id for name in ("z", "m", "a", "q")]
    assert [each.id for each in client.list_containers(all=True)] == ids == ["z", "m", "a", "q"]
    assert client.list_containers() == []


def test_nothing_that_is_kept_can_be_read_by_others(client: sync.Client, agent: Any) -> None:
    client.create_container(cmd=["sh", "-c", "echo secret; sleep 60"], env={"PASSWORD": "secret"}, name="x")
    client.start_container("x")
    for top in (agent.state_dir, agent.run_dir):
        assert top.stat().st_mode & 0o077 == 0
        for path in top.rglob("*"):
            # A FIFO can be written to by whoever has it, and nobody else comes to its directory.
            assert path.stat().st_mode & (0o055 if path.is_fifo() else 0o077) == 0, path
    client.remove_container("x", force=True)


def test_a_command_has_as_many_words_as_a_message_may_and_no_more(client: sync.Client, agent: Any) -> None:
    words = ["true", *(f"{number:015}" for number in range(65535))]
    created = client.create_container(cmd=words)
    # The record too, which the next agent reads.
    agent.stop()
    agent.restart()
    [info] = client.list_containers(all=True)
    assert (info.id, info.command) == (created.id, words)
    client.start_container(created.id)
    assert client.wait_container(created.id).status_code == 0
    with pytest.raises(BadRequestError, match=r"CreateContainerRequest\.cmd: more than 65536 items: send fewer"):
        client.create_container(cmd=[*words, "x"])
    assert len(client.list_containers(all=True)) == 1
