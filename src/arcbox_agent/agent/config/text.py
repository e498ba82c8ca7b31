"""The settings as a user reads them: --help, and those in force."""

from __future__ import annotations

from arcbox_agent.agent.config.table import TABLE, show_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.config.table import Settings


def usage() -> str:
    """The text of --help."""
    import textwrap

    text = [
        "usage: arcbox-agent [OPTION]...",
        "",
        "The guest agent: runs containers and commands for the host, over vsock or a unix socket.",
        "",
    ]
    options = [
        (
            "--config FILE",
            "Read settings from a TOML file; its keys are the names below, with _ for -. The command line wins.",
        ),
        ("--check-config", "Check the settings, show them and exit."),
        ("--version", "Show the version and exit."),
        ("--help", "Show this and exit."),
    ]
    for line in TABLE.values():
        option = f"{line.option}, --no-{line.option[2:]}" if line.is_flag else f"{line.option} {line.metavar}"
        options.append((option, f"{line.help} Default: {line.shown_default()}."))
    for option, help in options:
        text.append(f"  {option}")
        text.extend(textwrap.wrap(help, 78, initial_indent=" " * 8, subsequent_indent=" " * 8))
    return "\n".join(text) + "\n"


def show(settings: Settings) -> str:
    """The settings in force, as TOML."""
    lines = []
    for name, line in TABLE.items():
        value = getattr(settings, name)
        if line.metavar == "SIZE":
            value = show_size(value)
        lines.append(f"{name} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'
    return f"{value:g}" if isinstance(value, float) else str(value)
