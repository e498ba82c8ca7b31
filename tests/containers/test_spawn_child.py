"""spawn_child.h by itself, whatever registers the compiler gives its assembly."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import PATIENCE

SOURCE = Path(__file__).resolve().parents[2] / "src/arcbox_agent"


PROGRAM = r"""
#include "spawn_child.h"

int main(void) {
    char *programs[] = {"/bin/sh", NULL}, *argv[] = {"sh", "-c", "exit 42", NULL}, *envp[] = {NULL};
    char *stack = mmap(NULL, SPAWN_STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    struct spawn_plan plan = {
        .programs = programs, .argv = argv, .envp = envp,
        .stdio = {fcntl(0, F_DUPFD, 10), fcntl(1, F_DUPFD, 10), fcntl(2, F_DUPFD, 10)},
        .keep_fd = -1, .pid_fd = -1, .cgroup_fd = -1, .join_fd = -1, .pidfd = -1,
    };
    struct spawn_clone_args args = {
        .flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD, .pidfd = (uint64_t)(uintptr_t)&plan.pidfd,
        .exit_signal = SIGCHLD, .stack = (uint64_t)(uintptr_t)stack, .stack_size = SPAWN_STACK,
    };
    int status;
    long pid = spawn_clone3(&args, &plan);
    if (pid == -ENOSYS) return spawn_run(&plan) < 0;  /* an architecture without */
    if (pid < 0 || waitpid((pid_t)pid, &status, 0) < 0) return 1;
    return WIFEXITED(status) && WEXITSTATUS(status) == 42 && plan.error == 0 ? 0 : 2;
}
"""

#: All others are taken, so the frame pointer is given to an operand.
FEW_REGISTERS = {
    "x86_64": [f"-ffixed-{name}" for name in ("rbx", "r8", "r9", "r10", "r12", "r13", "r14", "r15")],
    "aarch64": [f"-ffixed-x{number}" for number in (*range(2, 8), *range(9, 16), *range(19, 29))],
}


@pytest.mark.parametrize(
    "flags",
    [
        ["-O0"],
        ["-O1", "-fomit-frame-pointer"],
        ["-O2", "-fno-omit-frame-pointer"],
        ["-O3", "-fomit-frame-pointer"],
        ["-O2", "-fomit-frame-pointer", *FEW_REGISTERS.get(platform.machine(), [])],
    ],
    ids=" ".join,
)
def test_a_child_is_born_on_its_own_stack(tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "spawn.c").write_text(PROGRAM)
    compiler = shlex.split(sysconfig.get_config_var("CC"))[0]
    # What spawn_run alone uses is unused here.
    command = [
        compiler,
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unused-function",
        "-Wno-missing-field-initializers",
        *flags,
    ]
    command += ["-I", str(SOURCE), "-o", str(tmp_path / "spawn"), str(tmp_path / "spawn.c")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    assert (
        subprocess.run([str(tmp_path / "spawn")], stdin=subprocess.DEVNULL, timeout=PATIENCE, check=False).returncode
        == 0
    )
