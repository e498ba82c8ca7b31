"""Executions under a proxy that cuts connections and an agent that is killed: a short cut run (tools/cuts.py)."""

from __future__ import annotations

import asyncio

import pytest

from tools.cuts import a_run


@pytest.mark.slow
def test_every_byte_and_every_code_comes_once() -> None:
    with a_run(seed=20261127, cuts=300) as run:
        asyncio.run(run.run(commands=40, kills=10))
        assert run.wrong == [], run.agent.log()
        assert run.proxy.cuts >= 300
        assert run.counts["agent killed"] + run.counts["keeper killed"] == 10
