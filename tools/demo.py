"""What `make demo` shows: the real agent and the real arcboxctl, from ping to rm.

Every command is printed as a person types it, with the output it really gave.  The
exit code is 0 only if each did what is expected of it.  Works as any user.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

#: Only what hangs takes this long.
PATIENCE = 60

SERVICE = """bye() { echo closing; exit 0; }
trap bye TERM
echo listening
n=0
while :; do sleep 0.2; n=$((n + 1)); echo "request $n served"; done"""


class Failed(Exception):
    """A step did not do what is expected of it."""


def say(text: str) -> None:
    print(f"\n\033[1m# {text}\033[0m" if sys.stdout.isatty() else f"\n# {text}", flush=True)


def show(command: list[str]) -> None:
    print(f"$ {shlex.join(command)}", flush=True)


def step(*arguments: str, expect: str, code: int = 0) -> None:
    """Run arcboxctl; `expect` is a pattern that its output must hold."""
    command = ["arcboxctl", *arguments]
    show(command)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE, text=True)
    print(done.stdout, end="", flush=True)
    if code:
        print(f"$ echo $?\n{done.returncode}", flush=True)
    if done.returncode != code:
        raise Failed(f"exit code {done.returncode} instead of {code}")
    if not re.search(expect, done.stdout):
        raise Failed(f"no {expect!r} in that output")


def follow(container: str, lines: int) -> None:
    """`logs -f` until so many lines were seen, then Ctrl-C."""
    command = ["arcboxctl", "logs", "-f", container]
    show(command)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for expected in ["listening", *(f"request {n} served" for n in range(1, lines))]:
                line = process.stdout.readline()
                print(line, end="", flush=True)
                if line.rstrip("\n") != expected:
                    raise Failed(f"the log says {line!r} instead of {expected!r}")
            process.send_signal(signal.SIGINT)
            code = process.wait(PATIENCE)
            print("^C", flush=True)
        finally:
            process.kill()
    if code != 130:
        raise Failed(f"Ctrl-C ended it with {code} instead of 130")


def demonstrate() -> None:
    say("Is the agent there?")
    step("--wait", "20", "ping", expect=r"^pong \(agent ")
    step("info", expect=r"Kernel Version:\s+\S")

    say("A container's life")
    step("create", "--name", "web", "demo:1", "sh", "-c", SERVICE, expect=r"(?m)^[0-9a-f-]{36}$")
    step("start", "web", expect=r"^web$")
    step("ps", expect=r'demo:1 +"sh -c .*" +.* ago +Up .* +web')

    say("Its log, followed until Ctrl-C")
    follow("web", 5)

    say("A command in it; the exit code is the command's own")
    step(
        "exec",
        "-e",
        "WHO=you",
        "web",
        "sh",
        "-c",
        'echo "hello $WHO, from process $$"',
        expect=r"^hello you, from process \d+$",
    )
    step("exec", "web", "sh", "-c", "exit 42", expect="^$", code=42)

    say("Its end")
    step("stop", "web", expect=r"^web$")
    step("ps", "-a", expect=r"Exited \(0\) .* ago +web")
    step("logs", "--tail", "1", "-t", "web", expect=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z closing$")
    step("rm", "web", expect=r"^web$")
    step("ps", "-a", "-q", expect="^$")

    say("All of that in one go")
    step("run", "--rm", "demo:1", "sh", "-c", "echo out; echo err >&2; exit 3", expect="(?m)^out$", code=3)


def main() -> int:
    # A shell that starts us in the background has SIGINT ignored, which arcboxctl would respect.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="arcbox-demo-") as directory:
        address = f"unix://{directory}/agent.sock"
        log = Path(directory, "agent.log")
        command = ["arcbox-agent", "--listen", f"unix:{directory}/agent.sock"]
        command += ["--state-dir", f"{directory}/state", "--run-dir", f"{directory}/run"]
        command += ["--containers-at-exit", "stop"]
        say("In a guest this is a service that listens on vsock; here it is a process with a unix socket")
        print(f"$ {shlex.join(command)} &\n$ export ARCBOX_HOST={address}", flush=True)
        os.environ["ARCBOX_HOST"] = address
        with open(log, "wb") as output:
            agent = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            demonstrate()
            agent.terminate()
            if agent.wait(PATIENCE) != 0:
                raise Failed(f"the agent ended with {agent.returncode}")
        except (Failed, OSError, subprocess.TimeoutExpired) as error:
            print(f"\ndemo: {error}\nThe agent's log:\n{log.read_text(errors='replace')}", file=sys.stderr)
            return 1
        finally:
            agent.kill()
            agent.wait()
    print("\nAll of it was as expected.", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
