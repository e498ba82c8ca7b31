"""Builds the compiled part.  Everything else about the package is in pyproject.toml.

ARCBOX_WIRE_DEBUG=1 builds with bounds checks and assertions, and without optimisation.
ARCBOX_SANITIZE=1 builds with AddressSanitizer and UndefinedBehaviorSanitizer: tools/sanitized.py.
ARCBOX_COVERAGE=1 builds modules that tell coverage.py which of their lines run: tools/covered.py.
ARCBOX_PREBUILT=1 takes the modules as `setup.py build_ext --inplace` left them.
"""

import os
import sys

from Cython.Build import cythonize
from setuptools import Extension, setup

DEBUG = os.environ.get("ARCBOX_WIRE_DEBUG") == "1"
COVERAGE = os.environ.get("ARCBOX_COVERAGE") == "1"
SANITIZE = os.environ.get("ARCBOX_SANITIZE") == "1"
PREBUILT = os.environ.get("ARCBOX_PREBUILT") == "1"
PACKAGE = "src/arcbox_agent"

#: The compiled modules, and whether they need Linux (the others work on a macOS host too).
MODULES = {
    "_wire": False,
    "_classes": False,
    "_messages": False,
    "_frames": False,
    "_pings": False,
    "_lines": False,
    "_log_output": False,
    "_logs": False,
    "_logscan": False,
    "_log_file": True,
    "_log_history": True,
    "_spool": True,
    "_pump": True,
    "_inotify": True,
    "_spawn": True,
    "_entries": True,
    "_guest": True,
}

#: What a module includes by hand, so that a change rebuilds it.
HEADERS = {
    "_wire": [f"{PACKAGE}/short_values.h"],
    "_classes": [f"{PACKAGE}/short_values.h"],
    "_messages": [f"{PACKAGE}/short_values.h"],
    "_frames": [f"{PACKAGE}/short_values.h"],
    "_pings": [f"{PACKAGE}/short_values.h"],
    "_spawn": [f"{PACKAGE}/{name}.h" for name in ("spawn_child", "spawn_interpreter", "spawn_stack")],
    "_logs": [f"{PACKAGE}/file_read.h"],
    "_logscan": [f"{PACKAGE}/file_read.h"],
}

#: Here a spawned child runs on a stack of its own in the parent's memory, which ASan takes for an overflow.
NO_ASAN = {"_spawn": ["-fno-sanitize=address"]}

CFLAGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]
LDFLAGS: list[str] = []
if SANITIZE:
    LDFLAGS = ["-fsanitize=address,undefined"]
    CFLAGS += [*LDFLAGS, "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-O1", "-g1"]
elif COVERAGE:
    CFLAGS += ["-O1", "-g0", "-Wno-maybe-uninitialized"]  # which the tracing code hides from the compiler
elif DEBUG:
    CFLAGS += ["-O0", "-g", "-UNDEBUG"]
else:
    CFLAGS += ["-O3", "-g0"]  # Python's own flags say -g: megabytes that a guest would carry


def modules() -> list[Extension]:
    return [
        Extension(
            f"arcbox_agent.{name}",
            [f"{PACKAGE}/{name}.pyx"],
            include_dirs=[PACKAGE],
            depends=HEADERS.get(name, []),
            # Lines without the interpreter lock count too: they take it to tell.  Generated lines do not.
            define_macros=[("CYTHON_TRACE_NOGIL", "1")] if COVERAGE and name != "_messages" else [],
            extra_compile_args=CFLAGS + NO_ASAN.get(name, []) if SANITIZE else CFLAGS,
            extra_link_args=LDFLAGS,
        )
        for name, linux_only in MODULES.items()
        if not PREBUILT and os.path.exists(f"{PACKAGE}/{name}.pyx") and (sys.platform == "linux" or not linux_only)
    ]


setup(
    ext_modules=cythonize(
        modules(),
        # A .c beside its .pyx is never a source here: always made anew from the .pyx.
        # For coverage.py beside it all the same, which reads there what a line of it is.
        build_dir=None if COVERAGE else "build/cython",
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": DEBUG,
            "initializedcheck": DEBUG,
            "cdivision": not DEBUG,
            "embedsignature": True,
            "linetrace": COVERAGE,
        },
    ),
    # Each module is one translation unit: as many at once as there are cores.
    options={"build_ext": {"parallel": os.cpu_count()}},
)
