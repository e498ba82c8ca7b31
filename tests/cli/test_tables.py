"""What people read."""

from __future__ import annotations

from arcbox_agent.cli.tables import command, containers, fields, size, table
from arcbox_agent.wire import ContainerInfo

SECOND = 1_000_000_000
NOW = 1_795_455_912 * SECOND


def test_ps_prints_dockers_columns() -> None:
    listed = [
        ContainerInfo(
            id="0f5a9c3e-1b2c-4d5e-8f90-a1b2c3d4e5f6",
            name="web",
            image="nginx:1",
            state="running",
            status="Running (PID: 7)",
            created=1_795_455_912 - 180,
            started_at=NOW - 125 * SECOND,
            command=["nginx", "-g", "daemon off;"],
        ),
        ContainerInfo(
            id="job-1",
            name="nightly",
            image="busybox",
            state="stopped",
            status="Exited (3)",
            created=1_795_455_912 - 7200,
            started_at=NOW - 7200 * SECOND,
            finished_at=NOW - 3600 * SECOND,
            exit_code=3,
            command=["sh", "-c", "echo a long\ncommand"],
        ),
        ContainerInfo(id="new", image="x", state="created", status="Created", created=1_795_455_912),
    ]
    assert containers(listed, NOW, truncate=True).splitlines() == [
        "CONTAINER ID   IMAGE     COMMAND                   CREATED                  STATUS                         NAMES",
        '0f5a9c3e-1b2   nginx:1   "nginx -g daemon off;"    3 minutes ago            Up 2 minutes                   web',
        'job-1          busybox   "sh -c echo a long\\nc…"   2 hours ago              Exited (3) About an hour ago   nightly',
        'new            x         ""                        Less than a second ago   Created',
    ]
    assert (
        containers(listed[:1], NOW, truncate=False).splitlines()[1].startswith("0f5a9c3e-1b2c-4d5e-8f90-a1b2c3d4e5f6 ")
    )


def test_a_list_of_an_agent_that_tells_no_times_shows_the_status_it_tells() -> None:
    listed = [ContainerInfo(id="a", state="running", status="Running (PID: 7)", created=1_795_455_912 - 5)]
    assert containers(listed, NOW, truncate=True).splitlines()[1].split("   ")[-1].strip() == "Running (PID: 7)"


def test_a_long_command_is_cut_and_a_newline_does_not_break_the_table() -> None:
    assert command(["sh", "-c", "a\nb"], truncate=True) == '"sh -c a\\nb"'
    assert command(["x" * 20], truncate=True) == '"' + "x" * 20 + '"'
    assert command(["x" * 21], truncate=True) == '"' + "x" * 19 + '…"'
    assert command(["x" * 21], truncate=False) == '"' + "x" * 21 + '"'


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table(("A", "B"), [("long", "1"), ("s", "")]) == "A      B\nlong   1\ns"
    assert fields([("Name", "x"), ("Longer", "y"), ("Empty", "")]) == "Name:   x\nLonger: y\nEmpty:"


def test_what_a_guest_says_cannot_steer_the_terminal() -> None:
    hostile = ContainerInfo(
        id="a", image="x\x1b[2J\n\u202e", name="n", state="created", status="Created\r", command=["\x9b"]
    )
    header, line = containers([hostile], NOW, truncate=True).split("\n")
    assert "x\\x1b[2J\\n\\u202e   " in line and "Created\\r   n" in line and '"\\x9b"' in line
    assert header.index("COMMAND") == line.index('"')
    assert fields([("Hostname", "\x07é")]) == "Hostname: \\x07é"


def test_wide_letters_and_accents_keep_the_columns_in_line() -> None:
    assert table(("A", "B"), [("日本", "1"), ("e\u0301", "2"), ("abcd", "3")]) == (
        "A      B\n日本   1\ne\u0301      2\nabcd   3"
    )


def test_sizes_are_told_in_binary_units() -> None:
    assert [size(count) for count in (0, 1023, 1024, 1536, 25276514304, 1 << 44)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "1.5 KiB",
        "23.54 GiB",
        "1.638e+04 GiB",
    ]
