"""Runs each fuzz target for a while; ARCBOX_FUZZ_SECONDS=600 for longer."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import random
import subprocess
import sys
import time

import pytest

from arcbox_agent import wire
from tests.fuzz.targets import TARGETS
from tests.wire.test_vectors import VECTORS

#: Other inputs for the run without atheris: ARCBOX_SEED=7.
SEED = int(os.environ.get("ARCBOX_SEED", "1"))
SECONDS = int(os.environ.get("ARCBOX_FUZZ_SECONDS", "5"))
ROOT = pathlib.Path(__file__).resolve().parents[2]

each_target = pytest.mark.parametrize("name", TARGETS)


def seeds(name: str) -> list[bytes]:
    """Valid inputs, from which the fuzzer finds its way."""
    encoded = [(message, bytes.fromhex(data)) for message, data in VECTORS]
    if name == "messages":
        return [bytes([index]) + data for index in range(64) for _, data in encoded[index : index + 1]]
    if name == "errors":
        return [bytes.fromhex("00000190000000036f6e65"), b"", bytes(8)]
    stream = b"".join(
        wire.encode_message(message, trace)
        for message, _ in encoded
        if message.TYPE is not None
        for trace in (None, "", "trace")
    )
    head = {"frames": [b"\x00\x03", b"\x01\x07", b"\x02\x01"], "batches": [b""]}[name]
    return [start + stream[:size] for start in head for size in (60, 600, 6000)]


@each_target
def test_the_target_takes_the_seeds_and_random_changes_of_them(name: str) -> None:
    generator = random.Random(20261123)
    for seed in seeds(name):
        TARGETS[name](seed)
        for _ in range(30):
            TARGETS[name](change(seed, generator))


def change(seed: bytes, generator: random.Random) -> bytes:
    changed = bytearray(seed)
    for _ in range(generator.randint(1, 4)):
        if changed:
            changed[generator.randrange(len(changed))] = generator.randrange(256)
    del changed[generator.randint(0, len(changed)) or len(changed) :]
    return bytes(changed)


@each_target
def test_fuzzing_finds_nothing(name: str, tmp_path: pathlib.Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        # It has no build for every Python and machine: without its guidance, then.
        generator = random.Random(SEED)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for seed in seeds(name):
                data = change(seed, generator)
                try:
                    TARGETS[name](data)
                except Exception as error:
                    error.add_note(f"TARGETS[{name!r}](bytes.fromhex({data.hex()!r}))")
                    raise
        return
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for index, seed in enumerate(seeds(name)):
        (corpus / f"{index}").write_bytes(seed)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.fuzz.targets",
            name,
            str(corpus),
            f"-max_total_time={SECONDS}",
            "-max_len=8192",
            "-rss_limit_mb=1024",
            "-malloc_limit_mb=64",
            "-timeout=10",
            f"-artifact_prefix={tmp_path}/",
        ],
        cwd=ROOT,
        env=dict(os.environ, PYTHONPATH=f"{ROOT / 'src'}:{ROOT}"),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=SECONDS + 120,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "DONE" in done.stderr or "Done" in done.stderr
