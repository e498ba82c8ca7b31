"""The agent's configuration: the settings' table, the directories they name, access by mode."""

from arcbox_agent.agent.config.invocation import load
from arcbox_agent.agent.config.table import Settings, unix_address

__all__ = ["Settings", "load", "unix_address"]
