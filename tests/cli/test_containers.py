"""A container's life: create, start, ps, stop, kill, wait, rm."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cli.conftest import Arcboxctl

ID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"

IMAGE_WARNING = "arcboxctl: warning: "


def test_a_container_from_create_to_rm(ctl: Arcboxctl) -> None:
    made = ctl("create", "--name", "web", "nginx:1", "sleep", "600")
    container = made.stdout.strip()
    assert re.fullmatch(ID, container)
    # This runtime unpacks no image, which the agent says and we repeat.
    assert made.stderr.startswith(IMAGE_WARNING) and "image" in made.stderr

    header = "CONTAINER ID   IMAGE     COMMAND       CREATED                  STATUS    NAMES"
    assert ctl("ps").stdout.split() == "CONTAINER ID IMAGE COMMAND CREATED STATUS NAMES".split()
    listed = ctl("ps", "-a").stdout.splitlines()
    assert re.sub(" +", " ", listed[0]) == re.sub(" +", " ", header)
    assert re.fullmatch(rf'{container[:12]}   nginx:1   "sleep 600"   .* ago +Created +web', listed[1])

    assert ctl("start", "web").stdout == "web\n"
    running = ctl("ps").stdout.splitlines()[1]
    assert re.fullmatch(rf'{container[:12]}   nginx:1   "sleep 600"   .* ago +Up [^ ].* +web', running)

    assert ctl("stop", "-t", "20", "web").stdout == "web\n"
    assert ctl("ps", "-q").stdout == ""
    assert re.search(r" Exited \(143\) .* ago +web$", ctl("ps", "-a").stdout.rstrip())

    assert ctl("rm", "web").stdout == "web\n"
    assert ctl("ps", "-a", "-q").stdout == ""


def test_ps_shows_ids_short_and_whole_and_the_newest_first(ctl: Arcboxctl) -> None:
    first = ctl("create", "--name", "first", "x", "echo", "a" * 30).stdout.strip()
    time.sleep(1.1)  # `created` counts whole seconds
    second = ctl("create", "x", "true").stdout.strip()
    assert ctl("ps", "-aq").stdout.split() == [second[:12], first[:12]]
    assert ctl("ps", "-aq", "--no-trunc").stdout.split() == [second, first]
    assert '"echo ' + "a" * 14 + '…"' in ctl("ps", "-a").stdout
    assert '"echo ' + "a" * 30 + '"' in ctl("ps", "-a", "--no-trunc").stdout


def test_ps_for_programs_is_a_line_a_container_with_all_fields(ctl: Arcboxctl) -> None:
    container = ctl.container("web", "sleep", "600")
    [listed] = [json.loads(line) for line in ctl("ps", "--json").stdout.splitlines()]
    assert list(listed) == [
        "id", "name", "image", "state", "status", "created", "pid", "exit_code", "signal", "started_at",
        "finished_at", "command", "error", "warnings", "tty", "user", "rootfs", "stop_signal", "stop_timeout_ms",
    ]  # fmt: skip
    assert (listed["id"], listed["name"], listed["state"]) == (container, "web", "running")
    assert listed["status"] == f"Running (PID: {listed['pid']})"
    assert listed["command"] == ["sleep", "600"]


def test_times_for_programs_are_ones_that_since_takes(ctl: Arcboxctl) -> None:
    ctl("run", "--name", "web", "x", "sh", "-c", "echo hello")
    ctl("create", "--name", "never", "x", "true")
    listed = {one["name"]: one for one in map(json.loads, ctl("ps", "-a", "--json").stdout.splitlines())}
    for name in ("started_at", "finished_at"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", listed["web"][name])
        assert listed["never"][name] is None
    assert ctl("logs", "--since", listed["web"]["started_at"], "web").stdout == "hello\n"
    assert ctl("logs", "--until", listed["web"]["started_at"], "web").stdout == ""


def test_several_at_once_and_one_that_is_not_there(ctl: Arcboxctl) -> None:
    for name in ("a", "b"):
        ctl("create", "--name", name, "x", "sleep", "600")
    done = ctl("start", "a", "nope", "b", code=125)
    assert done.stdout == "a\nb\n"
    assert done.stderr == "arcboxctl: failed to start: container not found: nope\n"
    assert len(ctl("ps", "-q").stdout.split()) == 2

    done = ctl("stop", "--json", "-t", "0", "a", "nope", "b", code=125)
    assert [json.loads(line) for line in done.stdout.splitlines()] == [
        {"container": "a", "ok": True},
        {
            "container": "nope",
            "ok": False,
            "error": {
                "type": "AgentFailedError",
                "code": 500,
                "message": "failed to stop: container not found: nope",
            },
        },
        {"container": "b", "ok": True},
    ]
    assert done.stderr == ""
    assert ctl("wait", "a", "b").stdout == "137\n137\n"
    assert ctl("rm", "a", "b").stdout == "a\nb\n"


def test_of_several_the_one_that_failed_is_named(ctl: Arcboxctl) -> None:
    for name in ("a", "b"):
        ctl.container(name, "sleep", "600")
    ctl("create", "--name", "c", "x", "true")
    done = ctl("rm", "a", "c", "b", code=125)
    assert done.stdout == "c\n"
    first, second = done.stderr.splitlines()
    assert first.startswith("arcboxctl: a: failed to remove: ")
    assert second.startswith("arcboxctl: b: failed to remove: ")


def test_to_start_what_runs_and_to_stop_what_does_not_is_no_error(ctl: Arcboxctl) -> None:
    ctl.container("web", "sleep", "600")
    assert ctl("start", "web").stdout == "web\n"
    assert json.loads(ctl("start", "--json", "web").stdout) == {"container": "web", "ok": True}
    assert ctl("stop", "-t", "0", "web").stdout == "web\n"
    assert ctl("stop", "web", "web").stdout == "web\nweb\n"
    assert json.loads(ctl("stop", "--json", "web").stdout) == {"container": "web", "ok": True}
    ctl("kill", "web", code=125)


def test_wait_prints_exit_codes_in_the_order_asked_for(ctl: Arcboxctl) -> None:
    ctl.container("slow", "sh", "-c", "sleep 0.5; exit 3")
    ctl.container("fast", "sh", "-c", "exit 4")
    assert ctl("wait", "slow", "fast").stdout == "3\n4\n"
    assert [json.loads(line) for line in ctl("wait", "--json", "slow").stdout.splitlines()] == [
        {"container": "slow", "ok": True, "exit_code": 3, "signal": 0, "error": ""}
    ]


def test_kill_sends_the_signal_asked_for(ctl: Arcboxctl) -> None:
    ctl.container("web", "sh", "-c", "trap 'exit 7' USR1; echo ready; while :; do sleep 0.1; done")
    following = ctl.start("logs", "-f", "web")
    assert following.stdout is not None and following.stdout.readline() == b"ready\n"
    assert ctl("kill", "-s", "USR1", "web").stdout == "web\n"
    assert ctl("wait", "web").stdout == "7\n"
    assert following.wait(60) == 0

    ctl("start", "web")
    assert ctl("kill", "web").stdout == "web\n"
    ended = json.loads(ctl("wait", "--json", "web").stdout)
    assert (ended["exit_code"], ended["signal"]) == (137, 9)
    assert ctl("kill", "--signal", "SIGNOPE", "web", code=125).stderr.startswith("arcboxctl: ")


def test_rm_wants_force_for_one_that_runs(ctl: Arcboxctl) -> None:
    ctl.container("web", "sleep", "600")
    assert "cannot remove running container" in ctl("rm", "web", code=125).stderr
    assert ctl("rm", "-f", "web").stdout == "web\n"
    assert ctl("ps", "-aq").stdout == ""


def test_an_id_of_ones_own_a_prefix_of_it_and_a_name_all_name_the_container(ctl: Arcboxctl) -> None:
    assert ctl("create", "--id", "job-17", "--name", "nightly", "x", "sleep", "600").stdout == "job-17\n"
    assert ctl("start", "job-1").stdout == "job-1\n"
    assert ctl("stop", "-t", "0", "nightly").stdout == "nightly\n"
    assert ctl("rm", "job-17").stdout == "job-17\n"
    assert "a/b" in ctl("create", "--id", "a/b", "x", "true", code=125).stderr


def test_create_for_programs_tells_the_warnings(ctl: Arcboxctl) -> None:
    made = json.loads(ctl("create", "--json", "nginx:1", "true").stdout)
    assert list(made) == ["id", "warnings"]
    assert re.fullmatch(ID, made["id"])
    assert len(made["warnings"]) == 1 and "nginx:1" in made["warnings"][0]
