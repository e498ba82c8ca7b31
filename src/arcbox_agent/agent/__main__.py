"""`arcbox-agent`, and `python -m arcbox_agent.agent`."""

from __future__ import annotations

import sys


def main() -> int:
    from arcbox_agent.agent.daemon import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
