"""`make vm`: a machine with the agent, until Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import sys
import time

from arcbox_agent import sync
from arcbox_agent.errors import ArcboxError
from tests.vm.machine import Machine, agent_command


def main() -> int:
    print("Booting a virtual machine with the agent as PID 1 ...", flush=True)
    started = time.monotonic()
    # So that `kill` too switches the guest off in order.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with Machine(agent_command("--listen", "vsock:1024", "--allow-cid", "1")) as machine:
        with sync.connect(machine.address, wait=120) as client:
            info = client.system_info()
            print(f"It answers after {time.monotonic() - started:.1f} s: Linux {info.kernel_version}.")
        print(
            f"\n    export ARCBOX_HOST={machine.address}\n"
            "    arcboxctl info\n"
            "    arcboxctl run --rm hello:1 sh -c 'echo hello from $(uname -r)'\n"
            f"\nIts console: {machine.console_path}\nCtrl-C switches it off.",
            flush=True,
        )
        with contextlib.suppress(KeyboardInterrupt):
            while machine.running:
                time.sleep(0.2)
        if not machine.running:
            print("It was switched off.")
            return 0
        print("\nSwitching it off ...", flush=True)
        with contextlib.suppress(ArcboxError):
            with sync.connect(machine.address, timeout=10) as client:
                client.shutdown(timeout=5)
            machine.wait_until_off(30)
    return 0


if __name__ == "__main__":
    sys.exit(main())
