"""Prints the table of settings for docs/configuration.md.

python -m tools.settings_page
"""

from __future__ import annotations

from arcbox_agent.agent.config.table import TABLE


def table() -> str:
    """Every setting of the agent, as a Markdown table."""
    rows = ["| key, option | value | default | meaning |", "| --- | --- | --- | --- |"]
    for name, line in TABLE.items():
        value = "true, false" if line.is_flag else f"list of {line.metavar}" if line.many else line.metavar
        rows.append(f"| `{name}`, `{line.option}` | {value} | `{line.shown_default()}` | {line.help} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
