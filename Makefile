# What a person or CI runs here: `make help` lists it.
#
# Everything happens in .venv, which is made on first use with $(PYTHON); a file in
# .venv/stamps says that a step was done, so that it is done again only when what it
# depends on has changed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
PIP := $(BIN)/python -m pip --disable-pip-version-check
# pip may say what it collects and what it has installed; its errors are on stderr.
PIP_INSTALL := set -o pipefail; $(PIP) install --progress-bar off
QUIETER := | { grep -E '^(Collecting|Successfully installed)' || true; }

SOURCES := setup.py $(wildcard src/arcbox_agent/*.pyx src/arcbox_agent/*.pxd src/arcbox_agent/*.h)

PYTEST_ARGS ?=
BENCH_ARGS ?=
SOAK_ARGS ?=
MUTANTS_ARGS ?=
FUZZ_ARGS ?=
EXECUTIONS ?=
SECONDS ?= 120
KILLS ?= 600
SEED ?=

# Bytecode is kept, whatever the shell says: a test starts agents by the hundred, and one that
# compiles its modules first takes three times as long.
export PYTHONDONTWRITEBYTECODE :=

SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

.PHONY: help demo test test-quick coverage vm-test vm vm-bench vm-soak check check-sanitized fuzz mutants bench soak faults cuts build install clean

help: ## this list
	@echo 'make TARGET [PYTHON=python3.12]'; echo
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

demo: $(STAMPS)/run ## the agent and arcboxctl at work: a container's life, its log followed, a command in it
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python tools/demo.py

test: $(STAMPS)/test $(STAMPS)/debian ## every test, two files at a time where that is possible (PYTEST_ARGS=... goes to pytest)
	@$(BIN)/python -m tools.suite $(PYTEST_ARGS)

# Fewer kills, examples and seconds of the tests that go by chance; nothing that is marked slow.
QUICK := ARCBOX_WIRE_EXAMPLES=5 ARCBOX_LOGS_EXAMPLES=20 ARCBOX_LOGS_SOAK_SECONDS=1 ARCBOX_CAPTURE_KILLS=1 \
    ARCBOX_FUZZ_SECONDS=1 ARCBOX_FOLLOW_LINES=100000

test-quick: $(STAMPS)/test ## the tests without virtual machines and without the slow ones, two at a time
	@$(QUICK) $(BIN)/python -m pytest --ignore=tests/vm -m 'not slow' -n 2 --dist loadfile \
	    --durations=15 $(PYTEST_ARGS)

coverage: $(STAMPS)/test ## what test-quick reaches of the Python and Cython code, its processes included: build/coverage/html
	@$(QUICK) $(BIN)/python -m tools.covered --ignore=tests/vm -m 'not slow' $(PYTEST_ARGS)

vm-test: $(STAMPS)/test $(STAMPS)/debian ## the tests in a virtual machine alone
	@$(BIN)/python -m pytest tests/vm --durations=15 $(PYTEST_ARGS)

vm: $(STAMPS)/test $(STAMPS)/debian ## a virtual machine with the agent, for arcboxctl in another terminal
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.vm.run

vm-bench: $(STAMPS)/test $(STAMPS)/debian ## boot to first answer, round trip over vsock, footprint in the guest
	@$(BIN)/python -m tests.vm.bench

vm-soak: $(STAMPS)/test $(STAMPS)/debian ## the soak in a virtual machine, over vsock (SECONDS=600 SEED=7)
	@$(BIN)/python -m tests.vm.soak --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(SOAK_ARGS)

check: $(STAMPS)/check ## generated files up to date, lint, format, types, stubs against the compiled modules
	$(BIN)/python tools/generate_messages.py --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@# cython-lint starts pycodestyle by its name.
	PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint src
	$(BIN)/python -m mypy
	@# With its own directory as the root: so it reads the package as one that is installed.
	$(BIN)/pyright --project tests/typing --pythonpath $(BIN)/python
	$(BIN)/python -m mypy.stubtest --concise --ignore-disjoint-bases --allowlist tools/stubtest-allowlist.txt \
	    --ignore-unused-allowlist $(patsubst src/arcbox_agent/%.pyi,arcbox_agent.%,$(wildcard src/arcbox_agent/_*.pyi))

check-sanitized: $(STAMPS)/test ## the compiled modules under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(BIN)/python -m tools.sanitized
	@$(BIN)/python -m tools.fuzz --seconds 30

fuzz: $(STAMPS)/test ## every compiled module on inputs that nobody would write, under both sanitizers (SECONDS=600 EXECUTIONS=10000000 SEED=7 FUZZ_ARGS="--parts messages,logs")
	@$(BIN)/python -m tools.fuzz $(if $(EXECUTIONS),--executions $(EXECUTIONS),--seconds $(SECONDS)) \
	    $(if $(SEED),--seed $(SEED)) $(FUZZ_ARGS)

bench: $(STAMPS)/test ## the figures, each with its rival in the same run (BENCH_ARGS=...)
	@$(BIN)/python -m pytest benchmarks --benchmark-enable --benchmark-quiet $(BENCH_ARGS)

soak: $(STAMPS)/test ## mixed load with faults at random (SECONDS=600 SEED=7)
	@$(BIN)/python -m tools.soak --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(SOAK_ARGS)

faults: $(STAMPS)/test ## agent, keeper or both killed at random moments: nothing may be lost (KILLS=600 SECONDS=600 SEED=7)
	@$(BIN)/python -m tools.faults --kills $(KILLS) $(if $(filter command line,$(origin SECONDS)),--seconds $(SECONDS)) \
	    $(if $(SEED),--seed $(SEED))

cuts: $(STAMPS)/test ## executions whose connections are cut, and whose agent and keeper are killed (COMMANDS=1000 CUTS=10000 KILLS=200 SEED=7)
	@$(BIN)/python -m tools.cuts --commands $(or $(COMMANDS),1000) --cuts $(or $(CUTS),10000) --kills $(if $(filter command line,$(origin KILLS)),$(KILLS),200) \
	    $(if $(SEED),--seed $(SEED))

mutants: $(STAMPS)/test ## small faults put into the code, each of which a test must catch (SECONDS=600 SEED=7 MUTANTS_ARGS="--files agent/serving/")
	@$(BIN)/python -m tools.mutants --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) $(MUTANTS_ARGS)

build: $(STAMPS)/test ## sdist and wheel, in dist/
	@rm -rf dist
	$(PIP_INSTALL) 'build>=1.2' $(QUIETER)
	$(BIN)/python -m build --no-isolation --outdir dist .
	@ls -l dist

install: $(STAMPS)/run ## .venv/bin/arcbox-agent and .venv/bin/arcboxctl, to try by hand
	@echo 'Ready: $(BIN)/arcbox-agent and $(BIN)/arcboxctl'

clean: ## away with everything that was built, .venv too
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmarks
	rm -f src/arcbox_agent/*.so
	find . -name __pycache__ -prune -exec rm -rf {} +

$(STAMPS)/venv: tools/make-venv.sh
	@CC='$(CC)' tools/make-venv.sh '$(PYTHON)' $(VENV)
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/build-requires: $(STAMPS)/venv
	@echo '==> Installing what the build needs'
	@$(PIP_INSTALL) 'setuptools>=77' 'Cython>=3.1' $(QUIETER)
	@touch $@

$(STAMPS)/extensions: $(STAMPS)/build-requires $(SOURCES)
	@echo '==> Compiling the extensions (the first time takes a minute or two)'
	@$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

# The extensions are compiled in place already: ARCBOX_PREBUILT keeps pip from doing it once more.
$(STAMPS)/run: $(STAMPS)/extensions pyproject.toml
	@echo '==> Installing arcbox-agent in $(VENV)'
	@ARCBOX_PREBUILT=1; export ARCBOX_PREBUILT; \
	    $(PIP_INSTALL) --no-build-isolation -e '.[cli]' $(QUIETER)
	@touch $@

$(STAMPS)/test: $(STAMPS)/run pyproject.toml
	@echo '==> Installing what the tests need'
	@ARCBOX_PREBUILT=1; export ARCBOX_PREBUILT; \
	    $(PIP_INSTALL) --no-build-isolation -e '.[test]' $(QUIETER)
	@touch $@

$(STAMPS)/check: $(STAMPS)/test pyproject.toml
	@echo '==> Installing what the checks need'
	@ARCBOX_PREBUILT=1; export ARCBOX_PREBUILT; \
	    $(PIP_INSTALL) --no-build-isolation -e '.[test,check]' $(QUIETER)
	@touch $@

$(STAMPS)/debian: tools/apt-packages.txt tools/setup-debian.sh | $(STAMPS)/venv
	@tools/setup-debian.sh --advise --file tools/apt-packages.txt
	@# Not where it was advice alone: root may come later, or the packages.
	@[ "$$(id -u)" != 0 ] || touch $@
