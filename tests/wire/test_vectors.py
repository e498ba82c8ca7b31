"""Literal bytes of every message, with every field set; made once with google.protobuf.

A round trip alone proves only symmetry: here the bytes are written down.
"""

from __future__ import annotations

import pytest

from arcbox_agent import wire
from tests.reference.google import GOOGLE

#: Each in both directions.
VECTORS: list[tuple[wire.Message, str]] = [
    (
        wire.Empty(),
        "",
    ),
    (
        wire.Error(code=-404, message="héllo"),
        "fffffe6c0000000668c3a96c6c6f",
    ),
    (
        wire.Timestamp(seconds=1763900000123456789, nanos=-1),
        "08959aaef5c5b6a8bd1810ffffffffffffffffff01",
    ),
    (
        wire.PingRequest(message="héllo", timestamp_secs=1763900000123456789, detail=True),
        "0a0668c3a96c6c6f10959aaef5c5b6a8bd18a00601",
    ),
    (
        wire.PingResponse(message="héllo", version="0.1.0", features=["ping", ""]),
        "0a0668c3a96c6c6f1205302e312e30a2060470696e67a20600",
    ),
    (
        wire.GetSystemInfoRequest(),
        "",
    ),
    (
        wire.SystemInfo(
            kernel_version="6.18.1",
            os_name="Debian",
            os_version="12",
            arch="x86_64",
            total_memory=18446744073709551615,
            available_memory=18446744073709551615,
            cpu_count=4294967295,
            load_average=[0.25, -0.0, 2.0],
            hostname="vm",
            uptime=18446744073709551615,
            ip_addresses=["ip_addresses", "", "ü"],
        ),
        "0a06362e31382e31120644656269616e1a02313222067838365f363428ffffffffffffffffff0130"
        "ffffffffffffffffff0138ffffffff0f4218000000000000d03f0000000000000080000000000000"
        "00404a02766d50ffffffffffffffffff015a0c69705f6164647265737365735a005a02c3bc",
    ),
    (
        wire.RuntimeEnsureRequest(start_if_needed=True),
        "0801",
    ),
    (
        wire.RuntimeEnsureResponse(ready=True, endpoint="unix:///x", message="héllo", status="Exited (0)"),
        "08011209756e69783a2f2f2f781a0668c3a96c6c6f220a45786974656420283029",
    ),
    (
        wire.RuntimeStatusRequest(),
        "",
    ),
    (
        wire.RuntimeStatusResponse(
            containerd_ready=True,
            docker_ready=True,
            endpoint="unix:///x",
            detail="ok",
            services=[
                wire.ServiceStatus(name="web", status="Exited (0)", detail="ok"),
                wire.ServiceStatus(),
            ],
        ),
        "080110011a09756e69783a2f2f2f7822026f6b2a150a03776562120a457869746564202830291a026f6b2a00",
    ),
    (
        wire.ServiceStatus(name="web", status="Exited (0)", detail="ok"),
        "0a03776562120a457869746564202830291a026f6b",
    ),
    (
        wire.ShutdownRequest(timeout_seconds=4294967295, reboot=True),
        "08ffffffff0fa00601",
    ),
    (
        wire.ShutdownResponse(accepted=True),
        "0801",
    ),
    (
        wire.AgentInfoRequest(),
        "",
    ),
    (
        wire.AgentInfo(
            version="0.1.0",
            pid=4294967295,
            uptime_ms=18446744073709551615,
            listeners=[
                wire.ListenerInfo(address="vsock:1024", connections=4294967295, mode="full"),
                wire.ListenerInfo(),
            ],
            connections=4294967295,
            queued_bytes=18446744073709551615,
            counters={"accepted": 300, "none": 0},
            limits={"accepted": 300, "none": 0},
            features=["features", "", "ü"],
            log_lag_bytes=18446744073709551615,
            state_dir="/s",
            runtime="process",
        ),
        "0a05302e312e3010ffffffff0f18ffffffffffffffffff0122180a0a76736f636b3a3130323410ff"
        "ffffff0f1a0466756c6c220028ffffffff0f30ffffffffffffffffff013a0d0a0861636365707465"
        "6410ac023a080a046e6f6e651000420d0a08616363657074656410ac0242080a046e6f6e6510004a"
        "0866656174757265734a004a02c3bc50ffffffffffffffffff015a022f73620770726f63657373",
    ),
    (
        wire.ListenerInfo(address="vsock:1024", connections=4294967295, mode="full"),
        "0a0a76736f636b3a3130323410ffffffff0f1a0466756c6c",
    ),
    (
        wire.Mount(source="/a", target="/b", type="bind", readonly=True),
        "0a022f6112022f621a0462696e642001",
    ),
    (
        wire.CreateContainerRequest(
            name="web",
            image="alpine:3",
            cmd=["cmd", "", "ü"],
            entrypoint=["entrypoint", "", "ü"],
            env={"PATH": "/bin", "é": ""},
            working_dir="/srv",
            user="app:1000",
            mounts=[wire.Mount(source="/a", target="/b", type="bind", readonly=True), wire.Mount()],
            tty=True,
            open_stdin=True,
            rootfs="/r",
            id="c1",
            detail=True,
        ),
        "0a037765621208616c70696e653a331a03636d641a001a02c3bc220a656e747279706f696e742200"
        "2202c3bc2a0c0a045041544812042f62696e2a060a02c3a9120032042f7372763a086170703a3130"
        "303042100a022f6112022f621a0462696e6420014200480150015a022f7262026331a00601",
    ),
    (
        wire.CreateContainerResponse(id="c1", warnings=["warnings", "", "ü"]),
        "0a026331a206087761726e696e6773a20600a20602c3bc",
    ),
    (
        wire.StartContainerRequest(id="c1"),
        "0a026331",
    ),
    (
        wire.StartContainerResponse(),
        "",
    ),
    (
        wire.StopContainerRequest(id="c1", timeout=4294967295),
        "0a02633110ffffffff0f",
    ),
    (
        wire.StopContainerResponse(),
        "",
    ),
    (
        wire.RemoveContainerRequest(id="c1", force=True),
        "0a0263311001",
    ),
    (
        wire.RemoveContainerResponse(),
        "",
    ),
    (
        wire.ListContainersRequest(all=True, detail=True, filter="web"),
        "0801a00601aa0603776562",
    ),
    (
        wire.ListContainersResponse(
            containers=[
                wire.ContainerInfo(
                    id="c1",
                    name="web",
                    image="alpine:3",
                    state="stopped",
                    status="Exited (0)",
                    created=-5,
                    pid=4294967295,
                    exit_code=-1,
                    signal=-1,
                    started_at=1763900000123456789,
                    finished_at=1763900000123456789,
                    command=["command", "", "ü"],
                    error="lost",
                    warnings=["warnings", "", "ü"],
                    tty=True,
                    user="app:1000",
                    rootfs="/r",
                ),
                wire.ContainerInfo(),
            ]
        ),
        "0aa7010a02633112037765621a08616c70696e653a33220773746f707065642a0a45786974656420"
        "28302930fbffffffffffffffff01a006ffffffff0fa806ffffffffffffffffff01b006ffffffffff"
        "ffffffff01b806959aaef5c5b6a8bd18c006959aaef5c5b6a8bd18ca0607636f6d6d616e64ca0600"
        "ca0602c3bcd206046c6f7374da06087761726e696e6773da0600da0602c3bce00601ea0608617070"
        "3a31303030f206022f720a00",
    ),
    (
        wire.ContainerInfo(
            id="c1",
            name="web",
            image="alpine:3",
            state="stopped",
            status="Exited (0)",
            created=-5,
            pid=4294967295,
            exit_code=-1,
            signal=-1,
            started_at=1763900000123456789,
            finished_at=1763900000123456789,
            command=["command", "", "ü"],
            error="lost",
            warnings=["warnings", "", "ü"],
            tty=True,
            user="app:1000",
            rootfs="/r",
        ),
        "0a02633112037765621a08616c70696e653a33220773746f707065642a0a45786974656420283029"
        "30fbffffffffffffffff01a006ffffffff0fa806ffffffffffffffffff01b006ffffffffffffffff"
        "ff01b806959aaef5c5b6a8bd18c006959aaef5c5b6a8bd18ca0607636f6d6d616e64ca0600ca0602"
        "c3bcd206046c6f7374da06087761726e696e6773da0600da0602c3bce00601ea06086170703a3130"
        "3030f206022f72",
    ),
    (
        wire.KillContainerRequest(id="c1", signal="TERM"),
        "0a02633112045445524d",
    ),
    (
        wire.WaitContainerRequest(id="c1", condition="removed"),
        "0a026331120772656d6f766564",
    ),
    (
        wire.WaitContainerResponse(status_code=-5, error="lost", signal=-1),
        "08fbffffffffffffffff0112046c6f7374a006ffffffffffffffffff01",
    ),
    (
        wire.PauseContainerRequest(id="c1"),
        "0a026331",
    ),
    (
        wire.UnpauseContainerRequest(id="c1"),
        "0a026331",
    ),
    (
        wire.ContainerStatsRequest(id="c1"),
        "0a026331",
    ),
    (
        wire.ContainerStatsResponse(
            cpu_usage=18446744073709551615,
            system_cpu_usage=18446744073709551615,
            online_cpus=4294967295,
            memory_usage=18446744073709551615,
            memory_limit=18446744073709551615,
            network_rx_bytes=18446744073709551615,
            network_tx_bytes=18446744073709551615,
            block_read_bytes=18446744073709551615,
            block_write_bytes=18446744073709551615,
            pids=4294967295,
        ),
        "08ffffffffffffffffff0110ffffffffffffffffff0118ffffffff0f20ffffffffffffffffff0128"
        "ffffffffffffffffff0130ffffffffffffffffff0138ffffffffffffffffff0140ffffffffffffff"
        "ffff0148ffffffffffffffffff0150ffffffff0f",
    ),
    (
        wire.ContainerTopRequest(id="c1", ps_args="-ef"),
        "0a02633112032d6566",
    ),
    (
        wire.ContainerTopResponse(
            titles=["titles", "", "ü"],
            processes=[wire.ProcessRow(values=["values", "", "ü"]), wire.ProcessRow()],
        ),
        "0a067469746c65730a000a02c3bc120e0a0676616c7565730a000a02c3bc1200",
    ),
    (
        wire.ProcessRow(values=["values", "", "ü"]),
        "0a0676616c7565730a000a02c3bc",
    ),
    (
        wire.PortBindingsChanged(),
        "",
    ),
    (
        wire.PortBindingsRemoved(),
        "",
    ),
    (
        wire.ExecRequest(
            container_id="c1",
            cmd=["cmd", "", "ü"],
            env={"PATH": "/bin", "é": ""},
            working_dir="/srv",
            user="app:1000",
            tty=True,
            stream=True,
            timeout_ms=18446744073709551615,
            detach=True,
            stdin=b"\x00\xffraw",
            tty_width=4294967295,
            tty_height=4294967295,
            detail=True,
        ),
        "0a0263311203636d6412001202c3bc1a0c0a045041544812042f62696e1a060a02c3a9120022042f"
        "7372762a086170703a313030303001a00601a806ffffffffffffffffff01b00601ba060500ff7261"
        "77c006ffffffff0fc806ffffffff0fd00601",
    ),
    (
        wire.ExecOutput(
            stream="stderr",
            data=b"\x00\xffraw",
            exit_code=-1,
            done=True,
            stderr=b"\x00\xffraw",
            signal=-1,
            timed_out=True,
            pid=4294967295,
        ),
        "0a06737464657272120500ff72617718ffffffffffffffffff012001a2060500ff726177a806ffff"
        "ffffffffffffff01b00601b806ffffffff0f",
    ),
    (
        wire.ExecStartRequest(
            exec_id="e1",
            container_id="c1",
            cmd=["cmd", "", "ü"],
            env={"PATH": "/bin", "é": ""},
            working_dir="/srv",
            user="app:1000",
            tty=True,
            detach=True,
            tty_width=4294967295,
            tty_height=4294967295,
        ),
        "0a026531120263311a03636d641a001a02c3bc220c0a045041544812042f62696e22060a02c3a912"
        "002a042f73727632086170703a313030303801400148ffffffff0f50ffffffff0f",
    ),
    (
        wire.ExecStartResponse(pid=4294967295),
        "08ffffffff0f",
    ),
    (
        wire.ExecResizeRequest(exec_id="e1", width=4294967295, height=4294967295),
        "0a02653110ffffffff0f18ffffffff0f",
    ),
    (
        wire.AttachRequest(
            container_id="c1",
            attach_stdin=True,
            attach_stdout=True,
            attach_stderr=True,
            tty_width=4294967295,
            tty_height=4294967295,
            exec_id="e1",
        ),
        "0a02633110011801200128ffffffff0f30ffffffff0f3a026531",
    ),
    (
        wire.AttachInput(data=b"\x00\xffraw", resize=True, width=4294967295, height=4294967295),
        "0a0500ff726177100118ffffffff0f20ffffffff0f",
    ),
    (
        wire.AttachOutput(stream="stderr", data=b"\x00\xffraw"),
        "0a06737464657272120500ff726177",
    ),
    (
        wire.StartExecutionRequest(
            id="e1",
            command=wire.ExecRequest(cmd=["cmd", "", "ü"], env={"PATH": "/bin"}, tty=True),
            open_stdin=True,
            idempotency_key="key",
            spool_limit=18446744073709551615,
            wait_when_full=True,
            keep_ms=18446744073709551615,
        ),
        "0a026531121b1203636d6412001202c3bc1a0c0a045041544812042f62696e3001180122036b6579"
        "28ffffffffffffffffff01300138ffffffffffffffffff01",
    ),
    (
        wire.Execution(
            id="e1",
            state="ended",
            container_id="c1",
            cmd=["cmd", "", "ü"],
            tty=True,
            open_stdin=True,
            pid=4294967295,
            created_ns=1763900000123456789,
            started_ns=1763900000123456789,
            ended_ns=1763900000123456789,
            cause="exited",
            exit_code=-1,
            signal=-1,
            output_cut=True,
            cpu_ns=18446744073709551615,
            peak_memory=18446744073709551615,
            outputs=[
                wire.ExecutionOutput(stream="stderr", begin=300, end=18446744073709551615, over=True),
                wire.ExecutionOutput(),
            ],
            input_offset=18446744073709551615,
            input_closed=True,
            attached=4294967295,
            user="app:1000",
        ),
        "0a0265311205656e6465641a0263312203636d6422002202c3bc2801300138ffffffff0f40959aae"
        "f5c5b6a8bd1848959aaef5c5b6a8bd1850959aaef5c5b6a8bd185a0665786974656460ffffffffff"
        "ffffffff0168ffffffffffffffffff01700178ffffffffffffffffff018001ffffffffffffffffff"
        "018a01180a0673746465727210ac0218ffffffffffffffffff0120018a01009001ffffffffffffff"
        "ffff01980101a001ffffffff0faa01086170703a31303030",
    ),
    (
        wire.ExecutionOutput(stream="stderr", begin=300, end=18446744073709551615, over=True),
        "0a0673746465727210ac0218ffffffffffffffffff012001",
    ),
    (
        wire.ListExecutionsRequest(container_id="c1", all=True, after="e1"),
        "0a02633110011a026531",
    ),
    (
        wire.ListExecutionsResponse(executions=[wire.Execution(id="e1", exit_code=-1), wire.Execution()], next="e1"),
        "0a0f0a02653160ffffffffffffffffff010a0012026531",
    ),
    (
        wire.InspectExecutionRequest(id="e1"),
        "0a026531",
    ),
    (
        wire.AttachExecutionRequest(
            id="e1",
            outputs=[wire.StreamCursor(stream="stderr", cursor=300, newest=True), wire.StreamCursor()],
            input=True,
            window=18446744073709551615,
            heartbeat_ms=4294967295,
        ),
        "0a026531120d0a0673746465727210ac0218011200180120ffffffffffffffffff0128ffffffff0f",
    ),
    (
        wire.StreamCursor(stream="stderr", cursor=18446744073709551615, newest=True),
        "0a0673746465727210ffffffffffffffffff011801",
    ),
    (
        wire.StreamInput(offset=18446744073709551615, data=b"\x00\xffraw", close=True),
        "08ffffffffffffffffff01120500ff7261771801",
    ),
    (
        wire.StreamCredit(stream="stderr", taken=300, until=18446744073709551615),
        "0a0673746465727210ac0218ffffffffffffffffff01",
    ),
    (
        wire.StreamHeartbeat(),
        "",
    ),
    (
        wire.StreamControl(rows=4294967295, columns=4294967295, signal="TERM", detach=True),
        "08ffffffff0f10ffffffff0f1a045445524d2001",
    ),
    (
        wire.StreamOutput(stream="stderr", cursor=18446744073709551615, data=b"\x00\xffraw"),
        "0a0673746465727210ffffffffffffffffff011a0500ff726177",
    ),
    (
        wire.StreamGap(stream="stderr", cursor=300, bytes=18446744073709551615),
        "0a0673746465727210ac0218ffffffffffffffffff01",
    ),
    (
        wire.StreamAccepted(offset=300, until=18446744073709551615, closed=True),
        "08ac0210ffffffffffffffffff011801",
    ),
    (
        wire.StreamEnd(stream="stderr", cursor=18446744073709551615),
        "0a0673746465727210ffffffffffffffffff01",
    ),
    (
        wire.StreamAlive(),
        "",
    ),
    (
        wire.WriteExecutionRequest(id="e1", offset=18446744073709551615, data=b"\x00\xffraw", close=True),
        "0a02653110ffffffffffffffffff011a0500ff7261772001",
    ),
    (
        wire.ResizeExecutionRequest(id="e1", rows=4294967295, columns=4294967295),
        "0a02653110ffffffff0f18ffffffff0f",
    ),
    (
        wire.SignalExecutionRequest(id="e1", signal="TERM", all=True),
        "0a02653112045445524d1801",
    ),
    (
        wire.WaitExecutionRequest(id="e1", timeout_ms=18446744073709551615),
        "0a02653110ffffffffffffffffff01",
    ),
    (
        wire.RemoveExecutionRequest(id="e1", force=True),
        "0a0265311001",
    ),
    (
        wire.ConnectRequest(
            host="web",
            port=4294967295,
            path="/x",
            container_id="c1",
            window=18446744073709551615,
            heartbeat_ms=4294967295,
            timeout_ms=4294967295,
        ),
        "0a0377656210ffffffff0f1a022f782202633128ffffffffffffffffff0130ffffffff0f38ffffffff0f",
    ),
    (
        wire.Connected(local="127.0.0.1:80", remote="/x"),
        "0a0c3132372e302e302e313a383012022f78",
    ),
    (
        wire.ListenRequest(
            host="web", port=4294967295, path="/x", container_id="c1", heartbeat_ms=4294967295, mode=4294967295
        ),
        "0a0377656210ffffffff0f1a022f782202633128ffffffff0f30ffffffff0f",
    ),
    (
        wire.Listening(address="127.0.0.1:80"),
        "0a0c3132372e302e302e313a3830",
    ),
    (
        wire.Incoming(id="i1", remote="127.0.0.1:80"),
        "0a026931120c3132372e302e302e313a3830",
    ),
    (
        wire.AcceptRequest(id="i1", window=18446744073709551615, heartbeat_ms=4294967295),
        "0a02693110ffffffffffffffffff0118ffffffff0f",
    ),
    (
        wire.WaitForRequest(
            container_id="c1",
            host="web",
            port=4294967295,
            path="/x",
            file="/f",
            changes=True,
            pattern="^ok$",
            execution="e1",
            pid=4294967295,
            timeout_ms=18446744073709551615,
        ),
        "0a026331120377656218ffffffff0f22022f782a022f6630013a045e6f6b244202653148ffffffff0f50ffffffffffffffffff01",
    ),
    (
        wire.WaitForResponse(met=True, found="ok", last="ECONNREFUSED"),
        "080112026f6b1a0c45434f4e4e52454655534544",
    ),
    (
        wire.LogsRequest(
            container_id="c1",
            follow=True,
            stdout=True,
            stderr=True,
            since=1763900000123456789,
            until=1763900000123456789,
            timestamps=True,
            tail=1763900000123456789,
            stream=True,
            since_nanos=1763900000123456789,
            until_nanos=1763900000123456789,
        ),
        "0a02633110011801200128959aaef5c5b6a8bd1830959aaef5c5b6a8bd18380140959aaef5c5b6a8"
        "bd18a00601a806959aaef5c5b6a8bd18b006959aaef5c5b6a8bd18",
    ),
    (wire.LogGap(bytes=300, lines=2, at_least=True, reason="full"), "08ac0210021801220466756c6c"),
    (
        wire.LogEntry(stream="stderr", data=b"\x00\xffraw", timestamp=1763900000123456789, partial=True),
        "0a06737464657272120500ff72617718959aaef5c5b6a8bd18a00601",
    ),
    (
        wire.LogEntryV2(
            stream="stderr",
            data=b"\x00\xffraw",
            timestamp=wire.Timestamp(seconds=1763900000123456789, nanos=-1),
            partial=True,
        ),
        "0a06737464657272120500ff7261771a1508959aaef5c5b6a8bd1810ffffffffffffffffff01a00601",
    ),
    (
        wire.ReadFileRequest(path="/etc/hosts", offset=-5, limit=1763900000123456789),
        "0a0a2f6574632f686f73747310fbffffffffffffffff0118959aaef5c5b6a8bd18",
    ),
    (
        wire.FileChunk(path="/etc/hosts", data=b"\x00\xffraw", offset=-5, eof=True, mode=4294967295),
        "0a0a2f6574632f686f737473120500ff72617718fbffffffffffffffff01200128ffffffff0f",
    ),
    (
        wire.WriteFileResponse(bytes_written=1763900000123456789),
        "08959aaef5c5b6a8bd18",
    ),
    (
        wire.StatsRequest(container_id="c1", stream=True),
        "0a0263311001",
    ),
    (
        wire.ContainerStats(
            container_id="c1",
            cpu=wire.CpuStats(usage_ns=18446744073709551615, system_ns=18446744073709551615, usage_percent=0.25),
            memory=wire.MemoryStats(
                usage=18446744073709551615,
                limit=18446744073709551615,
                usage_percent=0.25,
                cache=18446744073709551615,
            ),
            network=wire.NetworkStats(
                rx_bytes=18446744073709551615,
                tx_bytes=18446744073709551615,
                rx_packets=18446744073709551615,
                tx_packets=18446744073709551615,
            ),
            block=wire.BlockStats(read_bytes=18446744073709551615, write_bytes=18446744073709551615),
            timestamp=wire.Timestamp(seconds=1763900000123456789, nanos=-1),
        ),
        "0a026331121f08ffffffffffffffffff0110ffffffffffffffffff0119000000000000d03f1a2a08"
        "ffffffffffffffffff0110ffffffffffffffffff0119000000000000d03f20ffffffffffffffffff"
        "01222c08ffffffffffffffffff0110ffffffffffffffffff0118ffffffffffffffffff0120ffffff"
        "ffffffffffff012a1608ffffffffffffffffff0110ffffffffffffffffff01321508959aaef5c5b6"
        "a8bd1810ffffffffffffffffff01",
    ),
    (
        wire.CpuStats(usage_ns=18446744073709551615, system_ns=18446744073709551615, usage_percent=0.25),
        "08ffffffffffffffffff0110ffffffffffffffffff0119000000000000d03f",
    ),
    (
        wire.MemoryStats(
            usage=18446744073709551615,
            limit=18446744073709551615,
            usage_percent=0.25,
            cache=18446744073709551615,
        ),
        "08ffffffffffffffffff0110ffffffffffffffffff0119000000000000d03f20ffffffffffffffffff01",
    ),
    (
        wire.NetworkStats(
            rx_bytes=18446744073709551615,
            tx_bytes=18446744073709551615,
            rx_packets=18446744073709551615,
            tx_packets=18446744073709551615,
        ),
        "08ffffffffffffffffff0110ffffffffffffffffff0118ffffffffffffffffff0120ffffffffffffffffff01",
    ),
    (
        wire.BlockStats(read_bytes=18446744073709551615, write_bytes=18446744073709551615),
        "08ffffffffffffffffff0110ffffffffffffffffff01",
    ),
]

each_vector = pytest.mark.parametrize(
    ("message", "expected"), VECTORS, ids=[type(message).__name__ for message, _ in VECTORS]
)


def test_every_message_of_the_schema_has_a_vector() -> None:
    assert [type(message).__name__ for message, _ in VECTORS] == list(GOOGLE)


@each_vector
def test_a_message_has_these_bytes(message: wire.Message, expected: str) -> None:
    assert message.encode().hex() == expected


@each_vector
def test_these_bytes_are_that_message(message: wire.Message, expected: str) -> None:
    data = bytes.fromhex(expected)
    for kind in (bytes, bytearray, memoryview):
        assert type(message).decode(kind(data)) == message


@each_vector
def test_a_message_of_defaults_is_no_bytes(message: wire.Message, expected: str) -> None:
    cls = type(message)
    assert cls().encode() == (bytes(8) if cls is wire.Error else b"")
