"""An agent that is killed and started again: what ran goes on, what ended is known, nothing is half."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from arcbox_agent import sync, wire
from arcbox_agent.agent.containers.runtimes.process.pid_file import create as create_pid_file
from arcbox_agent.agent.containers.runtimes.process.pid_file import read as read_pid_file
from arcbox_agent.agent.processes import cgroups
from arcbox_agent.agent.processes.scopes import cgroup_name
from arcbox_agent.agent.processes.stat_line import start_time_of
from arcbox_agent.errors import AgentFailedError, ArcboxError, NotFoundError
from tools.stress.agent import AgentProcess

from .support import alive, eventually, keeper_of, leased, lines_of


@pytest.fixture
def left_running(start_agent: Callable[..., Any]) -> Any:
    return start_agent(containers_at_exit="leave")


def connect(agent: Any) -> Any:
    return sync.connect(agent.address, wait=20)


def end_all(agent: Any) -> None:
    with connect(agent) as client:
        for each in client.list_containers(all=True):
            client.remove_container(each.id, force=True)


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_running_container_goes_on_and_is_found_again(left_running: Any, how: str, tmp_path: Path) -> None:
    agent = left_running
    script = (
        "i=0; while [ $i -lt 150 ]; do echo $i; i=$((i+1)); sleep 0.01; done; "
        f"until [ -e {tmp_path}/go ]; do sleep 0.01; done; "
        "while [ $i -lt 300 ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 5"
    )
    with connect(agent) as client:
        id = client.create_container(cmd=["sh", "-c", script], name="x").id
        client.start_container("x")
        eventually(lambda: len(lines_of(client, "x")) > 10)
        before = client.list_containers()[0]
    getattr(agent, how)()
    assert alive(before.pid)
    time.sleep(0.3)
    agent.restart()
    with connect(agent) as client:
        after = client.list_containers()[0]
        assert (after.id, after.pid, after.state, after.started_at) == (id, before.pid, "running", before.started_at)
        (tmp_path / "go").touch()
        end = client.wait_container("x")
        assert (end.status_code, end.error) == (5, "")
        assert lines_of(client, "x") == [str(n).encode() for n in range(300)]
        client.start_container("x")
        client.stop_container("x")
        assert client.list_containers(all=True)[0].status == "Stopped"
    end_all(agent)


def test_a_container_that_ended_meanwhile_is_told_with_its_exit_code_and_its_output(left_running: Any) -> None:
    agent = left_running
    with connect(agent) as client:
        for name, tail in (("code", "exit 7"), ("signal", "kill -USR1 $$")):
            client.create_container(
                cmd=["sh", "-c", f"echo begin; read x; setsid sleep 1000 & echo $!; echo end; {tail}"],
                name=name,
                open_stdin=True,
            )
            client.start_container(name)
        pids = [each.pid for each in client.list_containers()]
        eventually(lambda: all(lines_of(client, name) == [b"begin"] for name in ("code", "signal")))
        ids = [each.id for each in client.list_containers()]
    agent.kill()
    for id in ids:
        with open(agent.run_dir / "containers" / id / "stdin", "w") as stdin:
            stdin.write("go\n")
    eventually(lambda: not any(map(alive, pids)))
    time.sleep(0.1)
    agent.restart()
    with connect(agent) as client:
        assert (client.wait_container("code").status_code, client.wait_container("signal").signal) == (7, 10)
        for name in ("code", "signal"):
            begin, left, end = lines_of(client, name)
            assert (begin, end) == (b"begin", b"end")
            assert not alive(int(left))
    end_all(agent)


def test_an_exit_that_nobody_could_see_is_told_as_lost(left_running: Any) -> None:
    agent = left_running
    with connect(agent) as client:
        client.create_container(cmd=["sleep", "1000"], name="x")
        client.start_container("x")
        pid = client.list_containers()[0].pid
    agent.kill()
    os.kill(keeper_of(agent.directory), signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not os.path.exists(f"/proc/{pid}"))
    agent.restart()
    with connect(agent) as client:
        end = client.wait_container("x")
        assert (end.status_code, end.signal, end.output_cut) == (255, 0, True)
        assert end.error == "its end was not seen: the agent was not running then, and the exit code is lost"
        assert client.list_containers(all=True)[0].status == "Exited (255)"
        client.start_container("x")
        assert client.list_containers(all=True)[0].error == ""
    end_all(agent)


def test_an_exit_that_the_agent_saw_is_not_lost_where_it_ends_before_the_rest_has(
    start_agent: Callable[..., Any],
) -> None:
    agent = start_agent(containers_at_exit="leave", shutdown_timeout="0.5")
    deaf = "trap '' TERM; echo \\$\\$; while :; do sleep 1; done"
    with connect(agent) as client:
        client.create_container(cmd=["sh", "-c", f'trap "exit 5" TERM; sh -c "{deaf}" & wait'], name="x")
        client.start_container("x")
        eventually(lambda: len(lines_of(client, "x")) == 1)
        (left,), main = lines_of(client, "x"), client.list_containers()[0].pid
    with sync.connect(agent.address, wait=20) as patient:
        stop = threading.Thread(target=_stop_in_vain, args=(patient,))
        stop.start()
        eventually(lambda: not alive(main))
        assert alive(int(left))
        os.kill(keeper_of(agent.directory), signal.SIGKILL)  # as on a kernel before 6.15, it could not tell
        agent.stop()
        stop.join(30)
    assert not alive(int(left))
    agent.restart()
    with connect(agent) as client:
        (info,) = client.list_containers(all=True)
        assert (info.status, info.exit_code) == ("Stopped", 5)
    end_all(agent)


def _stop_in_vain(client: sync.Client) -> None:
    with pytest.raises(ArcboxError):
        client.stop_container("x", timeout=60)


def test_a_terminal_outlives_the_agent(left_running: Any) -> None:
    agent = left_running
    script = "trap 'echo hup' HUP; i=0; while [ $i -lt 100 ]; do echo $i; i=$((i+1)); sleep 0.01; done; exit 4"
    with connect(agent) as client:
        client.create_container(cmd=["sh", "-c", script], name="x", tty=True)
        client.start_container("x")
        eventually(lambda: len(lines_of(client, "x")) > 5)
    agent.kill()
    time.sleep(0.2)
    agent.restart()
    with connect(agent) as client:
        assert client.wait_container("x").status_code == 4
        assert [line.rstrip(b"\r") for line in lines_of(client, "x")] == [str(n).encode() for n in range(100)]
    end_all(agent)


def test_what_is_stopped_or_created_is_still_so(left_running: Any) -> None:
    agent = left_running
    with connect(agent) as client:
        client.create_container(
            cmd=["sh", "-c", "echo out; exit 3"], name="ended", env={"A": "b"}, image="img", user="root"
        )
        client.start_container("ended")
        client.wait_container("ended")
        client.create_container(cmd=["true"], name="created")
        before = client.list_containers(all=True)
    agent.kill()
    agent.restart()
    with connect(agent) as client:
        assert client.list_containers(all=True) == before
        assert lines_of(client, "ended") == [b"out"]
        client.start_container("created")
        assert client.wait_container("created").status_code == 0
    end_all(agent)


def test_a_number_that_another_process_has_now_is_not_taken_for_the_container(left_running: Any) -> None:
    agent = left_running
    with connect(agent) as client:
        id = client.create_container(cmd=["sleep", "1000"], name="x").id
        client.start_container("x")
        pid = client.list_containers()[0].pid
        began = start_time_of(pid)
    agent.kill()
    os.kill(pid, signal.SIGKILL)
    # By its start time it is told, which the kernel counts in ticks of 10 ms: the other's is a later one.
    time.sleep(0.05)
    other = subprocess.Popen(["sleep", "1000"])
    while start_time_of(other.pid) == began:
        # Of the same tick of the kernel's clock: no number comes round that fast.
        other.kill()
        other.wait()
        other = subprocess.Popen(["sleep", "1000"])
    try:
        # As if the kernel had given the number to somebody else.
        record_path = agent.state_dir / "containers" / f"{id}.json"
        record = json.loads(record_path.read_text())
        record["pid"] = other.pid
        record_path.write_text(json.dumps(record))
        (agent.run_dir / "containers" / id / "pid").unlink()
        agent.restart()
        with connect(agent) as client:
            client.wait_container("x")
            client.remove_container("x", force=True)
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_after_a_restart_of_the_machine_nothing_runs(left_running: Any) -> None:
    agent = left_running
    with connect(agent) as client:
        id = client.create_container(cmd=["sleep", "1000"], name="x").id
        client.start_container("x")
        pid = client.list_containers()[0].pid
    agent.kill()
    record_path = agent.state_dir / "containers" / f"{id}.json"
    record = json.loads(record_path.read_text())
    record["boot_id"] = "of another boot"
    record_path.write_text(json.dumps(record))
    agent.restart()
    with connect(agent) as client:
        end = client.wait_container("x")
        assert end.status_code == 255 and "lost" in end.error
        client.remove_container("x")
    os.kill(pid, signal.SIGKILL) if alive(pid) else None


def test_a_start_that_was_cut_off_is_undone(left_running: Any) -> None:
    agent = left_running
    with connect(agent) as client:
        id = client.create_container(cmd=["sh", "-c", "exit 3"], name="x").id
    agent.kill()
    record_path = agent.state_dir / "containers" / f"{id}.json"
    record = json.loads(record_path.read_text())
    with open("/proc/sys/kernel/random/boot_id") as file:
        record.update(state="starting", run=1, boot_id=file.read().strip())
    for pid_file, error in ((None, "the agent was killed"), ("", "the agent was killed")):
        record_path.write_text(json.dumps(record))
        run_dir = agent.run_dir / "containers" / id
        run_dir.mkdir(parents=True, exist_ok=True)
        if pid_file is not None:
            (run_dir / "pid").write_text(pid_file)
        agent.restart()
        with connect(agent) as client:
            (info,) = client.list_containers(all=True)
            assert (info.state, info.status) == ("created", "Created")
            assert info.error.startswith(error)
        assert not run_dir.exists()
        agent.kill()
    run_dir.mkdir()
    (run_dir / "pid").write_text("123 (x) S " + "0 " * 50 + "\nfailed 2 18\n")
    record_path.write_text(json.dumps(record))
    agent.restart()
    with connect(agent) as client:
        assert client.list_containers(all=True)[0].error == "exec: No such file or directory"
        client.start_container("x")
        assert client.wait_container("x").status_code == 3
    end_all(agent)


def test_a_start_under_way_when_the_agent_is_told_to_end_comes_to_its_end(left_running: Any, tmp_path: Path) -> None:
    agent = left_running
    parent = cgroups.find_parent(cgroup_name(str(agent.state_dir)))
    assert parent is not None, "this test needs cgroup2"
    members = Path(parent, "@x", "cgroup.procs")
    with leased(tmp_path / "sleep") as release:
        with connect(agent) as client:
            client.create_container(cmd=[f"{tmp_path}/sleep", "1000"], id="x")
        record = agent.state_dir / "containers" / "x.json"
        with socket.socket(socket.AF_UNIX) as leaving:
            leaving.connect(str(agent.socket_path))
            leaving.sendall(wire.encode_message(wire.StartContainerRequest(id="x")))
            eventually(lambda: '"state": "starting"' in record.read_text())
            eventually(lambda: members.exists() and members.read_text() != "")
        agent.process.terminate()
        eventually(lambda: "agent: stopping" in agent.log())
        time.sleep(0.2)
        release()
    assert agent.process.wait(60) == 0
    agent.restart()
    with connect(agent) as client:
        (info,) = client.list_containers(all=True)
        assert (info.state, alive(info.pid)) == ("running", True)
        assert info.pid == int(members.read_text())
    end_all(agent)


@pytest.mark.slow
def test_an_agent_without_descriptors_to_take_containers_over_does_them_no_harm() -> None:
    ids = [f"c{number}" for number in range(20)]
    with tempfile.TemporaryDirectory(prefix="arcbox-") as name:
        agent = AgentProcess(Path(name), settings={"containers_at_exit": "leave"})
        agent.start()
        try:
            agent.wait_until_it_answers()
            needed = len(os.listdir(f"/proc/{agent.pid}/fd"))
            with connect(agent) as client:
                for id in ids:
                    script = "read x; echo some; read x; echo words; exit 7"
                    client.create_container(cmd=["sh", "-c", script], id=id, open_stdin=True)
                    client.start_container(id)
                pids = {each.id: each.pid for each in client.list_containers()}
            agent.kill()
            agent.python = ("prlimit", f"--nofile={needed + 30}", sys.executable)
            agent.start()
            # It may have none for its listeners either, and ends then.
            eventually(lambda: not agent.running or agent.answers(), 60)
            assert all(map(alive, pids.values()))
            assert "Too many open files" in agent.log()
            if agent.running:
                with connect(agent) as client:
                    assert {each.id: each.pid for each in client.list_containers()} == pids
                    attended = f"/proc/{agent.pid}/fd"
                    links = [os.readlink(f"{attended}/{fd}") for fd in os.listdir(attended)]
                    found_again = [id for id in ids if f"{agent.run_dir}/containers/{id}/stdout" in links]
                    for id in set(ids) - set(found_again):
                        for change in (client.start_container, client.stop_container, client.remove_container):
                            with pytest.raises(AgentFailedError, match="could not take over"):
                                change(id)
                # It has them with their output.
                for id in found_again:
                    (agent.run_dir / "containers" / id / "stdin").write_text("x\n")
                    log = agent.state_dir / "logs" / f"{id}.log"
                    eventually(lambda: log.read_bytes().endswith(b" stdout F some\n"))
            agent.kill()
            agent.python = (sys.executable,)
            agent.start()
            agent.wait_until_it_answers()
            with connect(agent) as client:
                assert {each.id: each.pid for each in client.list_containers()} == pids
                for id in ids:
                    (agent.run_dir / "containers" / id / "stdin").write_text("x\nx\n")
                    assert client.wait_container(id).status_code == 7
                    assert lines_of(client, id) == [b"some", b"words"]
            end_all(agent)
            agent.stop()
        finally:
            if agent.running:
                agent.kill()


def test_what_the_end_of_a_run_left_is_not_taken_for_the_next_run(left_running: Any) -> None:
    agent = left_running
    with connect(agent) as client:
        client.create_container(cmd=["sh", "-c", "exit 3"], id="x")
        client.start_container("x")
        client.wait_container("x")
    agent.kill()
    # As if the agent had been killed when the end was on disk, and no more.
    left = agent.run_dir / "containers" / "x"
    left.mkdir()
    (left / "pid").write_text("123 (x) S " + "0 " * 50 + "\n")
    os.mkfifo(left / "stdout")
    agent.restart()
    assert not left.exists()
    with connect(agent) as client:
        assert client.list_containers(all=True)[0].status == "Exited (3)"
    end_all(agent)


def test_a_removal_that_was_cut_off_is_completed(left_running: Any) -> None:
    agent = left_running
    with connect(agent) as client:
        id = client.create_container(cmd=["echo", "x"], name="x").id
        client.start_container("x")
        client.wait_container("x")
    agent.kill()
    record_path = agent.state_dir / "containers" / f"{id}.json"
    record = json.loads(record_path.read_text())
    record["state"] = "removing"
    record_path.write_text(json.dumps(record))
    # Of a rotation that was cut off, too.
    (agent.state_dir / "logs" / f"{id}.log.new").touch()
    agent.restart()
    with connect(agent) as client:
        assert client.list_containers(all=True) == []
        with pytest.raises(NotFoundError):
            client.kill_container("x")
    assert not record_path.exists()
    assert list((agent.state_dir / "logs").iterdir()) == []


def test_a_damaged_record_is_set_aside_and_the_others_live(left_running: Any) -> None:
    agent = left_running
    with connect(agent) as client:
        good = client.create_container(cmd=["true"], name="good").id
        bad = client.create_container(cmd=["echo", "kept"], name="bad").id
        client.start_container("bad")
        client.wait_container("bad")
    agent.kill()
    records = agent.state_dir / "containers"
    text = (records / f"{bad}.json").read_text()
    damaged = {
        bad: text[: len(text) // 2],
        "empty": "",
        "list": "[]",
        "number": "1",
        "deep": "[" * 100000,
        "type": text.replace(bad, "type").replace('"run": 1', '"run": "1"'),
        "other": text,
        "runtime": text.replace(bad, "runtime").replace('"runtime": "process"', '"runtime": ""'),
        "state": text.replace(bad, "state").replace('"stopped",', '"floating",'),
        "format": text.replace(bad, "format").replace('"format": 2', '"format": 3'),
        "mount": text.replace(bad, "mount").replace('"mounts": []', '"mounts": [["bind", 1, "x", true]]'),
    }
    for id, content in damaged.items():
        (records / f"{id}.json").write_text(content)
    (records / "half.json.tmp").write_text("{")
    (records / "directory.json").mkdir()
    agent.restart()
    with connect(agent) as client:
        assert [each.id for each in client.list_containers(all=True)] == [good]
        client.create_container(cmd=["true"], name="bad")
    names = {path.name for path in records.iterdir() if not path.name.endswith(".json")}
    assert names == {f"{id}.json.damaged" for id in (*damaged, "directory")}
    assert agent.log().count("a container's record is damaged and set aside") == len(damaged) + 1
    assert (agent.state_dir / "logs" / f"{bad}.log").exists()  # somebody may yet repair it


def test_a_container_of_a_runtime_that_the_agent_does_not_have_is_listed_and_left_as_it_is(left_running: Any) -> None:
    agent = left_running
    with connect(agent) as client:
        ids = [client.create_container(cmd=["sleep", "1000"], name=name).id for name in ("rest", "runs", "leaves")]
        client.start_container("runs")
        client.create_container(cmd=["true"], name="ours")
        (running,) = client.list_containers()
    agent.kill()
    paths = [agent.state_dir / "containers" / f"{id}.json" for id in ids]
    before = [path.read_text() for path in paths]
    foreign = [text.replace('"runtime": "process"', '"runtime": "oci"') for text in before]
    # A removal that was cut off is not this agent's to complete either.
    foreign[2] = foreign[2].replace('"state": "created"', '"state": "removing"')
    assert all(text.count('"oci"') == 1 for text in foreign) and '"removing"' in foreign[2]
    for path, text in zip(paths, foreign, strict=True):
        path.write_text(text)
    agent.restart()
    with connect(agent) as client:
        found = {each.name: each for each in client.list_containers(all=True)}
        assert sorted(found) == ["leaves", "ours", "rest", "runs"]
        assert found["runs"].state == "running" and found["rest"].state == "created"
        for name, id in zip(("rest", "runs", "leaves"), ids, strict=True):
            why = f"container {id} needs the runtime 'oci', which this agent does not have"
            assert found[name].error.startswith(why)
            changes: list[Callable[[str], object]] = [
                client.start_container,
                client.stop_container,
                client.kill_container,
                lambda name: client.remove_container(name, force=True),
                client.wait_container,
                lambda name: client.exec(["true"], container=name),
            ]
            for change in changes:
                with pytest.raises(AgentFailedError, match=why):
                    change(name)
        client.start_container("ours")
        assert client.wait_container("ours").status_code == 0
    assert alive(running.pid)
    assert [path.read_text() for path in paths] == foreign
    agent.kill()
    for path, text in zip(paths, before, strict=True):
        path.write_text(text)
    agent.restart()
    with connect(agent) as client:
        assert client.list_containers()[0].pid == running.pid
    end_all(agent)


def test_a_container_of_an_agent_that_knew_one_runtime_alone_starts(left_running: Any) -> None:
    agent = left_running
    with connect(agent) as client:
        id = client.create_container(cmd=["sh", "-c", "exit 3"], name="x").id
    agent.kill()
    path = agent.state_dir / "containers" / f"{id}.json"
    values = json.loads(path.read_text())
    assert (values.pop("format"), values.pop("runtime")) == (2, "process")
    path.write_text(json.dumps({"format": 1, **values}))
    agent.restart()
    with connect(agent) as client:
        client.start_container("x")
        assert client.wait_container("x").status_code == 3
    values = json.loads(path.read_text())
    assert (values["format"], values["runtime"]) == (2, "process")
    end_all(agent)


def test_what_belongs_to_no_container_is_swept(left_running: Any) -> None:
    agent = left_running
    with connect(agent) as client:
        client.create_container(cmd=["sh", "-c", "setsid sleep 1000 & echo $!; wait"], name="x")
        client.start_container("x")
        eventually(lambda: len(lines_of(client, "x")) == 1)
        info = client.list_containers()[0]
        orphan = int(lines_of(client, "x")[0])
    agent.kill()
    # As if the agent had been killed at the very end of a removal, or its disk replaced.
    (agent.state_dir / "containers" / f"{info.id}.json").unlink()
    (agent.state_dir / "logs" / "gone.log").write_text("")
    (agent.state_dir / "logs" / "gone.log.3").write_text("")
    (agent.state_dir / "logs" / "notes.txt").write_text("not ours")
    agent.restart()
    eventually(lambda: not alive(info.pid) and not alive(orphan))
    assert [path.name for path in (agent.state_dir / "logs").iterdir()] == ["notes.txt"]
    assert list((agent.run_dir / "containers").iterdir()) == []


def test_a_command_of_a_client_ends_with_the_agent_that_ran_it(left_running: Any, tmp_path: Path) -> None:
    agent = left_running
    with connect(agent) as client:
        client.create_container(cmd=["sleep", "1000"], name="x")
        client.start_container("x")
        detached = [client.exec_detached(["sleep", "1000"]), client.exec_detached(["sleep", "1000"], container="x")]
        script = f"import arcbox_agent.sync as s; c = s.connect({agent.address!r}).__enter__(); "
        clients = [
            subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    script + f"c.exec(['sh', '-c', 'echo $$ >{tmp_path}/{n}; exec sleep 1000'], container={where!r})",
                ],
                stderr=subprocess.DEVNULL,
            )
            for n, where in enumerate(("", "x"))
        ]
        eventually(lambda: all((tmp_path / str(n)).exists() and (tmp_path / str(n)).read_text() for n in (0, 1)))
        pids = [int((tmp_path / str(n)).read_text()) for n in (0, 1)]
        main = client.list_containers()[0].pid
    agent.kill()
    for process in clients:
        process.wait(30)
    assert all(map(alive, pids))
    agent.restart()
    eventually(lambda: not any(map(alive, pids)))
    assert all(map(alive, detached)) and alive(main)
    end_all(agent)
    os.kill(detached[0], signal.SIGKILL)


@pytest.mark.slow
def test_kills_at_random_moments_leave_every_container_listed_truthfully(left_running: Any) -> None:
    agent = left_running
    chance = random.Random(20261123)
    made: set[str] = set()
    removed: set[str] = set()
    maybe_removed: set[str] = set()
    number = 0
    for _ in range(25):
        killer = subprocess.Popen(["sh", "-c", f"sleep {chance.uniform(0.0, 0.25):.3f}; kill -9 {agent.process.pid}"])
        try:
            with sync.connect(agent.address) as client:
                while True:
                    number += 1
                    id = f"c{number}"
                    client.create_container(cmd=["sh", "-c", f"echo {id}; sleep {chance.choice(['0', '1000'])}"], id=id)
                    made.add(id)
                    client.start_container(id)
                    other = chance.choice(sorted(made - removed - maybe_removed))
                    if chance.random() < 0.5:
                        maybe_removed.add(other)
                        client.remove_container(other, force=True)
                        removed.add(other)
        except Exception as error:
            assert agent.process.wait(20) == -9, error
        killer.wait()
        agent.restart()
        with connect(agent) as client:
            there = {each.id: each for each in client.list_containers(all=True)}
            lost = made - maybe_removed - there.keys()
            assert not lost, [line for line in agent.log().splitlines() if any(f"={id} " in line for id in lost)]
            assert not removed & there.keys()
            for each in there.values():
                if each.state == "running":
                    assert alive(each.pid) or client.wait_container(each.id).status_code in (0, 137, 255)
            made |= there.keys()
    names = [path.name for path in (agent.state_dir / "containers").iterdir()]
    assert not [name for name in names if not name.endswith(".json")]
    end_all(agent)
    assert list((agent.state_dir / "logs").iterdir()) == []


# ----------------------------------------------------------------- the pid file


def test_a_pid_file_that_another_child_keeps_locked_tells_of_a_start_that_succeeded(tmp_path: Path) -> None:
    path = str(tmp_path / "pid")
    # As a child of the killed agent that was frozen at its birth has it.
    locked = create_pid_file(path)
    held = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(BlockingIOError):
            read_pid_file(path)  # it says nothing yet
        for keeps in ([held], []):
            child = subprocess.Popen(["sleep", "1000"], pass_fds=keeps)
            try:
                stat = Path(f"/proc/{child.pid}/stat").read_bytes()
                os.ftruncate(locked, 0)
                os.pwrite(locked, stat, 0)
                if keeps:
                    with pytest.raises(BlockingIOError):
                        read_pid_file(path)  # it has not come to its program
                else:
                    assert read_pid_file(path) == (child.pid, start_time_of(child.pid))
            finally:
                child.kill()
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            with pytest.raises(BlockingIOError):
                read_pid_file(path)  # a zombie does not tell
            child.wait()
            with pytest.raises(BlockingIOError):
                read_pid_file(path)
    finally:
        os.close(held)
        os.close(locked)
    assert isinstance(read_pid_file(path), tuple)  # as before: what it says is what became of it
