"""Which tests are nearest to a file: those that are run against its mutants, the quickest first."""

from __future__ import annotations

#: A beginning of a path in src/arcbox_agent to test files; the longest that fits counts.
NEAREST: dict[str, tuple[str, ...]] = {
    "agent/": ("tests/agent/test_requests.py", "tests/agent/test_start_and_end.py", "tests/containers"),
    "agent/serving/": (
        "tests/agent/test_requests.py",
        "tests/agent/test_faulty_handlers.py",
        "tests/agent/test_clauses.py",
        "tests/agent/test_start_and_end.py",
        "tests/agent/test_listeners.py",
        "tests/agent/test_flow.py",
    ),
    "agent/serving/metrics_endpoint.py": ("tests/agent/test_observation.py",),
    "agent/handlers/": (
        "tests/agent/test_requests.py",
        "tests/agent/test_observation.py",
        "tests/client/test_agent.py",
        "tests/containers/test_exec.py",
        "tests/logs/test_logs_call.py",
        "tests/containers/test_lifecycle.py",
    ),
    "agent/config/": ("tests/agent/test_config.py", "tests/agent/test_start_and_end.py"),
    "agent/observe/": (
        "tests/agent/test_log.py",
        "tests/agent/test_observation.py",
        "tests/agent/test_start_and_end.py",
    ),
    "agent/guest/": ("tests/agent/test_start_and_end.py", "tests/agent/test_observation.py"),
    "agent/commands/": ("tests/containers/test_exec.py", "tests/containers/test_clauses.py"),
    "agent/processes/": (
        "tests/containers/test_processes.py",
        "tests/containers/test_clauses.py",
        "tests/containers/test_sessions.py",
        "tests/containers/test_spawn_child.py",
        "tests/containers/test_threads.py",
        "tests/containers/test_exec.py",
        "tests/faults/test_keeper.py",
    ),
    "agent/containers/": (
        "tests/containers/test_supervisor_start.py",
        "tests/containers/test_supervisor_stop.py",
        "tests/containers/test_supervisor_stop_all.py",
        "tests/containers/test_supervisor_remove.py",
        "tests/containers/test_supervisor_wait.py",
        "tests/containers/test_supervisor_disk.py",
        "tests/containers/test_supervisor_faults.py",
        "tests/containers/test_supervisor_late.py",
        "tests/containers/test_lifecycle.py",
        "tests/containers/test_stop.py",
        "tests/containers/test_create.py",
        "tests/containers/test_store.py",
        "tests/containers/test_clauses.py",
        "tests/containers/test_sessions.py",
        "tests/containers/test_restart.py",
    ),
    "agent/containers/output/": ("tests/logs/test_capture.py", "tests/containers/test_lifecycle.py"),
    "agent/containers/runtimes/": (
        "tests/containers/test_lifecycle.py",
        "tests/containers/test_clauses.py",
        "tests/containers/test_isolation.py",
        "tests/containers/test_exec.py",
        "tests/containers/test_restart.py",
        "tests/faults/test_leftover_cgroup.py",
    ),
    "agent/logs/": (
        "tests/logs/test_logs_call.py",
        "tests/logs/test_follow.py",
        "tests/faults/test_follow_on_tmpfs.py",
    ),
    "logs/": ("tests/logs/test_reader.py", "tests/logs/test_engine.py", "tests/logs/test_logs_call.py"),
    "client/": ("tests/client",),
    "address.py": ("tests/client/test_address.py", "tests/client/test_transport.py"),
    "errors.py": ("tests/client/test_errors.py",),
    "cli/": ("tests/cli",),
    "_frames": ("tests/wire/test_frames.py", "tests/wire/test_streams.py", "tests/agent/test_requests.py"),
    "_wire": ("tests/wire/test_messages.py", "tests/wire/test_vectors.py", "tests/wire/test_frames.py"),
    "_classes": ("tests/wire/test_messages.py", "tests/wire/test_vectors.py"),
    "_lines": ("tests/logs/test_engine.py", "tests/logs/test_reader.py"),
    "_log": ("tests/logs/test_engine.py", "tests/logs/test_reader.py", "tests/logs/test_capture.py"),
    "_spawn": ("tests/containers/test_processes.py", "tests/containers/test_spawn_child.py"),
    "_inotify": ("tests/logs/test_follow.py",),
}


def nearest_tests(file: str) -> tuple[str, ...]:
    """`file`: a path below src/arcbox_agent.  KeyError: the table has no line for it."""
    fitting = [beginning for beginning in NEAREST if file.startswith(beginning)]
    if not fitting:
        raise KeyError(file)
    return NEAREST[max(fitting, key=len)]
