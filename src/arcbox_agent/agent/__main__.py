"""`arcbox-agent`, and `python -m arcbox_agent.agent`."""

from __future__ import annotations

import gc
import sys


def main() -> int:
    # What is imported stays: there is nothing to collect until the agent runs.
    gc.disable()
    from arcbox_agent.agent.lean import import_event_loop

    import_event_loop()
    from arcbox_agent.agent.modules import OwnModules

    if not sys.flags.optimize:  # else they are compiled under other names
        sys.meta_path.insert(0, OwnModules)
    from arcbox_agent.agent.daemon import main as run

    if OwnModules in sys.meta_path:
        sys.meta_path.remove(OwnModules)

    gc.freeze()
    gc.enable()
    return run()


if __name__ == "__main__":
    sys.exit(main())
