"""The agent's configuration: the settings' table, the directories they name, access by mode."""

from arcbox_agent.agent.config.table import Settings, load, show, unix_address, usage

__all__ = ["Settings", "load", "show", "unix_address", "usage"]
