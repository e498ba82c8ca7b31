"""Executions: commands that do not belong to a connection, and outlive the agent."""
