"""Records on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from arcbox_agent.agent.containers.record import Record
from arcbox_agent.agent.containers.store import Store


@pytest.mark.parametrize("durable", [True, False])
def test_a_record_is_on_disk_before_it_takes_the_place_of_the_former_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    store = Store(str(tmp_path / "state"), str(tmp_path / "run"))
    store.prepare()
    steps: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def watched_fsync(fd: int) -> None:
        steps.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))
        fsync(fd)

    def watched_rename(old: str, new: str) -> None:
        steps.append(("rename", os.path.basename(new)))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "rename", watched_rename)
    record = Record("x", command=["true"])
    store.write(record, durable)
    assert steps[:2] == [("sync", "x.json.tmp"), ("rename", "x.json")]
    assert steps[2:] == ([("sync", "containers")] if durable else [])
    assert [each.id for each in store.load()] == ["x"]
