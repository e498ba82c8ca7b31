"""`python -m arcbox_agent.cli` is `arcboxctl`."""

from arcbox_agent.cli import main

main()
