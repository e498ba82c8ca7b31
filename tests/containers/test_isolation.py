"""Who a container runs as, what it sees, and that no symlink leads a mount or a directory out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent import sync
from arcbox_agent.errors import AgentFailedError, BadRequestError, ConflictError
from arcbox_agent.wire import Mount

from .support import eventually, lines_of

Run = Callable[..., list[str]]
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


# ------------------------------------------------------------- environment


def test_the_environment_is_what_was_asked_and_path_and_home(output_of: Run) -> None:
    assert sorted(output_of("env")) == ["HOME=/root", f"PATH={DEFAULT_PATH}"]
    assert sorted(output_of("/usr/bin/env", env={"PATH": "/x", "A": "b=c", "EMPTY": ""})) == [
        "A=b=c",
        "EMPTY=",
        "HOME=/root",
        "PATH=/x",
    ]


def test_programs_are_found_by_the_containers_own_path(output_of: Run, rootfs: Path) -> None:
    (rootfs / "data" / "greet").write_text("#!/bin/sh\necho hello\n")
    (rootfs / "data" / "greet").chmod(0o755)
    assert output_of("greet", rootfs=str(rootfs), env={"PATH": "/nowhere:/data:/bin"}) == ["hello"]


def test_the_working_directory(output_of: Run, rootfs: Path) -> None:
    assert output_of("pwd") == ["/"]
    assert output_of("pwd", working_dir="/usr/bin") == ["/usr/bin"]
    assert output_of("pwd", working_dir="/data", rootfs=str(rootfs)) == ["/data"]


# ------------------------------------------------------------------- users


@pytest.mark.parametrize(
    ("user", "ids"),
    [
        ("", "0:0:0"),
        ("root", "0:0:0"),
        ("alice", "4100:4200:4200 4400 4500"),
        ("4100", "4100:4200:4200 4400 4500"),
        ("alice:staff", "4100:4400:4400"),
        ("alice:777", "4100:777:777"),
        ("4999", "4999:0:0"),
        ("4999:wheel", "4999:4500:4500"),
        (":staff", "0:4400:4400"),
        ("4300", "4301:4302:4302"),  # a name that looks like a number is a name first
    ],
)
def test_users_and_groups_are_those_of_the_root(output_of: Run, rootfs: Path, user: str, ids: str) -> None:
    script = "echo $(id -u):$(id -g):$(id -G)"
    assert output_of("sh", "-c", script, rootfs=str(rootfs), user=user) == [ids]


def test_home_is_that_of_the_user(output_of: Run, rootfs: Path) -> None:
    for user, home in (("", "/root"), ("alice", "/home/alice"), ("4999", "/")):
        assert output_of("sh", "-c", "echo $HOME", rootfs=str(rootfs), user=user) == [home]


def test_an_entry_of_the_passwd_file_ends_at_a_newline_and_nowhere_else(output_of: Run, rootfs: Path) -> None:
    with open(rootfs / "etc" / "passwd", "a") as passwd:
        passwd.write("odd:x:4600:4200:\u2028\x85\x0b:/at/home:/bin/sh\n")
    assert output_of("sh", "-c", "echo $HOME", rootfs=str(rootfs), user="odd") == ["/at/home"]


def test_a_broken_entry_of_the_passwd_file_is_told(client: sync.Client, rootfs: Path) -> None:
    for entry in ("odd:x:-1:0::/:/bin/sh", "odd:x:1:4294967295::/:/bin/sh", "odd:x:1:1::/a\0b:/bin/sh"):
        (rootfs / "etc" / "passwd").write_text(entry + "\n")
        with pytest.raises(BadRequestError, match="the passwd entry of user 'odd' is broken"):
            client.create_container(cmd=["true"], user="odd", rootfs=str(rootfs))


def test_a_user_of_the_guest_alone_is_unknown_in_a_root_of_its_own(client: sync.Client, rootfs: Path) -> None:
    client.create_container(cmd=["true"], user="daemon")
    with pytest.raises(BadRequestError, match="unknown user 'daemon'"):
        client.create_container(cmd=["true"], user="daemon", rootfs=str(rootfs))


def test_a_passwd_file_that_is_a_link_out_of_the_root_is_looked_for_inside(client: sync.Client, rootfs: Path) -> None:
    (rootfs / "etc" / "passwd").unlink()
    (rootfs / "etc" / "passwd").symlink_to("/etc/shadow-of-passwd")
    (rootfs / "etc" / "shadow-of-passwd").write_text("inside:x:4711:4712::/:/bin/sh\n")
    client.create_container(cmd=["true"], user="inside", rootfs=str(rootfs))
    (rootfs / "etc" / "shadow-of-passwd").unlink()
    (rootfs / "etc" / "passwd").unlink()
    (rootfs / "etc" / "passwd").symlink_to("../../../../../../../../etc/passwd")
    with pytest.raises(BadRequestError, match="unknown user 'daemon'"):
        client.create_container(cmd=["true"], user="daemon", rootfs=str(rootfs))


def test_a_passwd_file_that_is_a_fifo_holds_nobody_up(client: sync.Client, rootfs: Path) -> None:
    (rootfs / "etc" / "passwd").unlink()
    os.mkfifo(rootfs / "etc" / "passwd")
    with pytest.raises(BadRequestError, match="unknown user 'alice'"):
        client.create_container(cmd=["true"], user="alice", rootfs=str(rootfs))


def test_a_user_can_open_its_own_output(output_of: Run, rootfs: Path) -> None:
    (rootfs / "proc").rmdir()
    (rootfs / "proc").mkdir()
    assert output_of(
        "sh",
        "-c",
        "echo one >/proc/self/fd/1; echo two >/proc/self/fd/2",
        rootfs=str(rootfs),
        user="alice",
        mounts=[Mount(type="bind", source="/proc", target="/proc")],
    ) == ["one", "two"]


# ------------------------------------------------------------------ mounts


def test_a_bind_a_volume_and_a_tmpfs(client: sync.Client, agent: Any, rootfs: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_text("from the guest\n")
    script = (
        "cat /mnt/here/file; echo w >/mnt/here/written; echo v >/vol/kept; echo t >/t/gone; ls /t; "
        "(echo x >/ro/file) 2>/dev/null || echo refused; cat /one"
    )
    client.create_container(
        cmd=["sh", "-c", script],
        rootfs=str(rootfs),
        name="x",
        mounts=[
            Mount(type="bind", source=str(source), target="/mnt/here"),
            Mount(type="volume", source="data", target="/vol"),
            Mount(type="tmpfs", target="/t"),
            Mount(type="bind", source=str(source), target="/ro", readonly=True),
            Mount(type="bind", source=str(source / "file"), target="/one", readonly=True),
        ],
    )
    client.start_container("x")
    assert client.wait_container("x").status_code == 0
    stdout = [entry.data for entry in client.logs("x", stderr=False)]
    assert stdout == [b"from the guest", b"gone", b"refused", b"from the guest"]
    assert (source / "written").read_text() == "w\n"
    assert (agent.state_dir / "volumes" / "data" / "kept").read_text() == "v\n"
    assert (rootfs / "mnt" / "here").is_dir() and (rootfs / "one").is_file()
    assert list((rootfs / "t").iterdir()) == []  # the tmpfs was the container's own
    client.remove_container("x")
    assert (agent.state_dir / "volumes" / "data" / "kept").exists()  # volumes outlive containers
    with open("/proc/self/mounts") as file:
        assert str(rootfs) not in file.read()


def test_a_volume_is_open_to_every_user_though_the_agent_has_a_umask(
    start_agent: Callable[..., Any], rootfs: Path
) -> None:
    before = os.umask(0o077)  # as the systemd unit has it
    try:
        agent = start_agent()
    finally:
        os.umask(before)
    with sync.connect(agent.address) as client:
        client.create_container(
            cmd=["ls", "/vol"],
            rootfs=str(rootfs),
            name="x",
            user="alice",
            mounts=[Mount(type="volume", source="data", target="/vol")],
        )
        client.start_container("x")
        assert client.wait_container("x").status_code == 0


def test_what_lies_below_a_readonly_bind_is_readonly_too(output_of: Run, rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "top" / "below").mkdir(parents=True)
    assert output_of(
        "sh",
        "-c",
        "(echo x >/top/below/file) 2>/dev/null || echo refused; (echo x >/top/file) 2>/dev/null || echo refused",
        rootfs=str(rootfs),
        mounts=[Mount(source="/proc", target="/p"), Mount(source=str(tmp_path / "top"), target="/top", readonly=True)],
    ) == ["refused", "refused"]


def test_a_mount_in_the_guests_own_root_is_seen_by_the_container_alone(
    output_of: Run, client: sync.Client, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "file").write_text("a\n")
    mount = Mount(source=str(tmp_path / "a"), target=str(tmp_path / "b"))
    assert output_of("cat", str(tmp_path / "b" / "file"), mounts=[mount]) == ["a"]
    assert list((tmp_path / "b").iterdir()) == []
    # The target's going away between create and start is told, and nothing is made in its place.
    id = client.create_container(cmd=["true"], mounts=[mount]).id
    (tmp_path / "b").rmdir()
    with pytest.raises(AgentFailedError, match=f"mount target of {tmp_path}/b: No such file or directory"):
        client.start_container(id)
    assert not (tmp_path / "b").exists()


def test_mounts_inside_mounts_are_made_from_the_outermost_in(output_of: Run, rootfs: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "file").write_text("inner\n")
    mounts = [Mount(source=str(tmp_path / "in"), target="/t/deep/er"), Mount(type="tmpfs", target="/t")]
    assert output_of("cat", "/t/deep/er/file", rootfs=str(rootfs), mounts=mounts) == ["inner"]


@pytest.mark.parametrize("link", ["absolute", "relative", "chain", "parent"])
def test_no_symlink_in_a_root_leads_a_mount_out_of_it(output_of: Run, rootfs: Path, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("mounted\n")
    up = "../" * 30
    target = {
        "absolute": str(outside),
        "relative": up + str(outside)[1:],
        "chain": "/etc/second",
        "parent": up,
    }[link]
    (rootfs / "etc" / "second").symlink_to(outside)
    (rootfs / "link").symlink_to(target)
    # Inside the root, the links lead to places of the same name there.
    inside = rootfs / str(outside)[1:]
    if link != "parent":
        inside.mkdir(parents=True)
    lines = output_of(
        "sh",
        "-c",
        "cat /link/below/file",
        rootfs=str(rootfs),
        mounts=[Mount(source=str(tmp_path / "source"), target="/link/below")],
    )
    assert lines == ["mounted"]
    assert list(outside.iterdir()) == []
    assert ((rootfs if link == "parent" else inside) / "below").is_dir()


def test_a_dangling_link_as_mount_point_is_refused_and_nothing_is_made_outside(
    client: sync.Client, rootfs: Path, tmp_path: Path
) -> None:
    (rootfs / "link").symlink_to(tmp_path / "made")
    id = client.create_container(
        cmd=["true"], rootfs=str(rootfs), mounts=[Mount(source="/etc/hostname", target="/link")]
    ).id
    with pytest.raises(AgentFailedError, match="failed to start: mount target of /link: "):
        client.start_container(id)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("link", ["/etc", "../../../../../../../../../../etc"])
def test_no_symlink_in_a_root_leads_the_working_directory_out_of_it(output_of: Run, rootfs: Path, link: str) -> None:
    (rootfs / "work").symlink_to(link)
    assert output_of("sh", "-c", "pwd -P; cat group", working_dir="/work", rootfs=str(rootfs))[:2] == [
        "/etc",
        "root:x:0:",
    ]


def test_a_root_that_is_readable_by_its_user_alone_can_be_worked_in(output_of: Run, rootfs: Path) -> None:
    (rootfs / "data").chmod(0o700)
    os.chown(rootfs / "data", 4100, 4200)
    assert output_of("pwd", working_dir="/data", rootfs=str(rootfs), user="alice") == ["/data"]


# ---------------------------------------------------------- terminal, input


def test_a_terminal_is_the_controlling_one_and_its_output_is_the_log(output_of: Run) -> None:
    lines = output_of(
        "sh",
        "-c",
        "tty; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo yes; stty size; exec 3</dev/tty && echo ctty",
        tty=True,
    )
    assert lines[0].rstrip("\r").startswith("/dev/pts/")
    assert [line.rstrip("\r") for line in lines[1:]] == ["yes", "24 80", "ctty"]


def test_input_is_empty_unless_it_is_kept_open(client: sync.Client, output_of: Run, agent: Any) -> None:
    assert output_of("sh", "-c", "cat; echo end") == ["end"]
    id = client.create_container(cmd=["sh", "-c", "echo ready; read x; echo got $x"], open_stdin=True).id
    client.start_container(id)
    eventually(lambda: lines_of(client, id) == [b"ready"])
    with open(agent.run_dir / "containers" / id / "stdin", "w") as stdin:
        stdin.write("hello\n")
    assert client.wait_container(id).status_code == 0
    assert lines_of(client, id) == [b"ready", b"got hello"]


def test_a_container_holds_no_descriptor_but_its_own_three(output_of: Run) -> None:
    # The fourth is the listing itself.
    assert output_of("ls", "/proc/self/fd") == ["0", "1", "2", "3"]
    assert output_of("sh", "-c", "ulimit -n; cat /proc/self/oom_score_adj")[1] == "0"


# ---------------------------------------------------- commands in a hostile one


def go_into_a_user_namespace(client: sync.Client, user: str, work: str, mounts: Sequence[Mount] = ()) -> str:
    """A container that makes of its root what any user may: `work`, with /mnt to write in; its id."""
    script = f"mount -t tmpfs none /mnt && {work} && echo ready && exec sleep 1000"
    cmd = ["unshare", "-Urm", "sh", "-c", script]
    id = client.create_container(cmd=cmd, user=user, mounts=mounts).id
    client.start_container(id)
    eventually(lambda: lines_of(client, id) == [b"ready"])
    return id


@pytest.mark.parametrize("user", ["nobody", "65534"])
def test_a_container_cannot_choose_whom_commands_in_it_run_as(client: sync.Client, user: str) -> None:
    work = f"echo {user}:x:0:0::/:/bin/sh >/mnt/passwd && mount --bind /mnt/passwd /etc/passwd"
    id = go_into_a_user_namespace(client, user, work)
    assert client.exec(["id", "-u"], container=id).stdout == b"65534\n"


def test_a_container_cannot_choose_what_commands_in_it_run(client: sync.Client) -> None:
    work = "cp /bin/echo /mnt/id && mount --bind /mnt/id /usr/bin/id"
    id = go_into_a_user_namespace(client, "nobody", work, [Mount(type="tmpfs", target="/media")])
    with pytest.raises(ConflictError, match="the container has gone into a user namespace"):
        client.exec(["/usr/bin/id", "-u"], container=id, user="root")
