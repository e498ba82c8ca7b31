"""The fuzz targets, for a while, on the ordinary build; ARCBOX_FUZZ_SECONDS=600 for longer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.fuzz.guided import PARTS
from tools.fuzz.record import Record
from tools.fuzz.target import load, parts

#: Other inputs: ARCBOX_SEED=7.
SEED = os.environ.get("ARCBOX_SEED", "1")
SECONDS = int(os.environ.get("ARCBOX_FUZZ_SECONDS", "2"))
#: Of each part without guidance, beside what begins it.
EXECUTIONS = 300

HERE = dict(os.environ, PYTHONPATH=f"{REPOSITORY / 'src'}:{REPOSITORY}")


def test_every_compiled_module_has_a_target_of_its_own() -> None:
    modules = {path.stem.removeprefix("_") for path in (REPOSITORY / "src" / "arcbox_agent").rglob("*.pyx")}
    assert "messages" in modules
    assert set(parts()) == modules


@pytest.mark.parametrize("part", parts())
def test_a_target_takes_its_corpus_and_changes_of_it(part: str, tmp_path: Path) -> None:
    record = Record(tmp_path / "record", create=True)
    command = [sys.executable, "-m", "tools.fuzz.worker", part, str(tmp_path / "record"), SEED, str(EXECUTIONS), "0"]
    done = subprocess.run(
        command, cwd=REPOSITORY, env={**HERE, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{record.data!r}\n{done.stderr}"
    assert record.executions >= EXECUTIONS


@pytest.mark.parametrize("part", PARTS)
def test_fuzzing_led_by_the_plain_rules_finds_nothing(part: str, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index, seed in enumerate(load(part).corpus()):
        (corpus / f"{index}").write_bytes(seed)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.fuzz.guided",
            part,
            str(corpus),
            f"-max_total_time={SECONDS}",
            "-max_len=8192",
            "-rss_limit_mb=1024",
            "-malloc_limit_mb=64",
            "-timeout=10",
            f"-artifact_prefix={tmp_path}/",
        ],
        cwd=REPOSITORY,
        env=HERE,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS + 120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "DONE" in done.stderr or "Done" in done.stderr
