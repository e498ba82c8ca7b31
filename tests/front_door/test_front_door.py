"""What stands before the package: make, CI's rules, the set-up scripts."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import PATIENCE, REPOSITORY

#: Before a command that is to run as an ordinary user.
AS_A_USER = [] if os.geteuid() else ["setpriv", "--reuid=65534", "--clear-groups"]

TESTS = """
import pytest


def test_runs():
    pass


@pytest.mark.{mark}
def test_marked():
    assert False
"""


def pytest_in(directory: Path, mark: str, ci: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(REPOSITORY / "conftest.py", directory)
    (directory / "test_it.py").write_text(TESTS.format(mark=mark))
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(directory), str(directory)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ, "CI": ci},
        check=False,
    )


def test_in_ci_a_skipped_test_fails_the_run(tmp_path: Path) -> None:
    done = pytest_in(tmp_path, "skip(reason='no root here')", "true")
    assert done.returncode == 1
    assert "skipped, which CI does not allow" in done.stdout and "no root here" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("1 passed, 1 error")


def test_elsewhere_a_skipped_test_is_a_skipped_test(tmp_path: Path) -> None:
    done = pytest_in(tmp_path, "skip(reason='no root here')", "")
    assert (done.returncode, done.stdout.splitlines()[-1].split(" in ")[0]) == (0, "1 passed, 1 skipped")


def test_in_ci_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    done = pytest_in(tmp_path, "xfail", "true")
    assert (done.returncode, done.stdout.splitlines()[-1].split(" in ")[0]) == (0, "1 passed, 1 xfailed")


def test_in_ci_a_module_that_is_skipped_whole_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text("import pytest\npytest.skip('not here', allow_module_level=True)\n")
    done = pytest_in(tmp_path, "xfail", "true")
    assert done.returncode not in (0, 5)
    assert "skipped, which CI does not allow" in done.stdout


def test_make_alone_lists_every_target() -> None:
    listed = subprocess.run(
        ["make", "--no-print-directory", "-C", str(REPOSITORY)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("MAKE")},
    ).stdout
    makefile = (REPOSITORY / "Makefile").read_text()
    phony = {name for line in re.findall(r"^\.PHONY:(.*)$", makefile, re.MULTILINE) for name in line.split()}
    assert phony >= {"demo", "test", "check", "bench", "soak", "build", "clean"}
    assert {line.split()[1] for line in listed.splitlines() if line.startswith("  make ")} == phony


def test_set_up_does_nothing_where_nothing_is_missing() -> None:
    done = subprocess.run(
        [str(REPOSITORY / "tools/setup-debian.sh"), "dpkg", "bash"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("advise", "code"), [([], 1), (["--advise"], 0)])
def test_set_up_tells_an_ordinary_user_what_is_missing(advise: list[str], code: int) -> None:
    # In a place that an ordinary user can read, which a checkout of root's need not be.
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        script = shutil.copy(REPOSITORY / "tools/setup-debian.sh", directory)
        packages = Path(directory, "packages.txt")
        packages.write_text("# why\n\nbash  # is there\nno-such-package-anywhere  # why\n")
        done = subprocess.run(
            [*AS_A_USER, script, *advise, "--file", str(packages)],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == (
        "setup-debian: missing packages; to install them: sudo apt-get install no-such-package-anywhere\n"
    )


def test_a_python_that_is_too_old_is_told_of(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\ncase "$2" in *print*) echo 3.9 ;; *) exit 1 ;; esac\n')
    old.chmod(0o755)
    done = subprocess.run(
        [str(REPOSITORY / "tools/make-venv.sh"), str(old), str(tmp_path / "venv")],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == f"make-venv: {old} is Python 3.9; this needs 3.11 or later: make PYTHON=/path/to/python3\n"
    assert not (tmp_path / "venv").exists()


def test_arcboxctl_without_click_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['click'] = None; from arcbox_agent.cli import main; main()"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "src")},
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "arcboxctl needs click: pip install 'arcbox-agent[cli]'\n"


def test_the_demo_shows_what_it_says(tmp_path: Path) -> None:
    for program, module in (("arcboxctl", "arcbox_agent.cli"), ("arcbox-agent", "arcbox_agent.agent")):
        (tmp_path / program).write_text(f'#!/bin/sh\nexec {sys.executable} -m {module} "$@"\n')
        (tmp_path / program).chmod(0o755)
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tools/demo.py")],
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY / "src")},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\nAll of it was as expected.\n")
    commands = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("$ arcboxctl ")]
    assert commands == [
        "--wait", "info", "create", "start", "ps", "logs", "exec", "exec", "stop", "ps", "logs", "rm", "ps", "run",
    ]  # fmt: skip
