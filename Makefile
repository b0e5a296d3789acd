# SPDX-License-Identifier: GPL-2.0-only
# Everything is reached by one command; what is missing on the machine is installed first (Debian, Ubuntu).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv/bin
export PATH := $(CURDIR)/$(VENV):$(PATH)

OBJECTS := $(patsubst bpf/%.bpf.c,build/%.o,$(wildcard bpf/*.bpf.c))
HEADERS := $(shell find bpf -name '*.h')
BENCH_OBJECTS := $(patsubst bench/%.bpf.c,build/%.o,$(wildcard bench/*.bpf.c))
C_FILES := $(wildcard bpf/*.bpf.c bench/*.bpf.c) $(HEADERS)
# Those of the first kind share nothing, so many run at once; those of the second wait for traffic, each process with
# namespaces of its own (tests/lab/apart.py).
TESTS   := $(wildcard tests/unit tests/program)
TRAFFIC := $(wildcard tests/lab)
# Those of tests/program that send packets: once more, at the other hook.
AT_TC   := $(filter-out $(addprefix %/test_,$(addsuffix .py,kernel_layer trace dissect tc hashtable table_races multi_buffer)), \
	$(wildcard tests/program/test_*.py))

# What matters most of lab and matrix, once more with all ports at XDP: elsewhere they are at the hook of the default.
AT_XDP  := $(wildcard $(addprefix tests/lab/test_,$(addsuffix .py,traffic every_protocol migration safety path_mtu)))

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

.PHONY: demo
demo: setup ## the two-node lab on real traffic: GENEVE and VXLAN side by side, then cleaned up
	@$(VENV)/mptm lab demo

.PHONY: test
test: setup peers bench-objects lint ## lint, types, unit, program and lab tests, and the quick part of the matrix of peers
	@$(VENV)/python -m pytest --numprocesses 6 $(TESTS)
	@MPTM_TEST_HOOK=tc $(VENV)/python -m pytest --numprocesses 6 $(AT_TC)
	@$(VENV)/python -m pytest --numprocesses 3 --dist worksteal $(TRAFFIC)
	@MPTM_TEST_HOOK=xdp $(VENV)/python -m pytest --numprocesses 3 --dist worksteal $(AT_XDP)
	@$(VENV)/python -m pytest tests/interop -k 'not linux' --hook xdp
	@$(if $(filter test-interop,$(MAKECMDGOALS)),: the whole matrix is asked for as well,$(VENV)/python -m pytest tests/interop -k 'not linux')

.PHONY: fuzz
fuzz: setup ## random packets through programs and reference model (MINUTES=10, SEED=N to begin there)
	@$(VENV)/python tests/fuzz.py --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

.PHONY: test-interop
test-interop: setup peers ## every protocol with real peers, printed as a table (ARGS='-k geneve': a part of it; '--hook xdp')
	@$(VENV)/python tests/interop/run_matrix.py $(ARGS)

.PHONY: test-kernels
test-kernels: setup peers ## the programs in Debian's kernels 6.1 and 6.12: the verifiers, and packet by packet as here
	@$(VENV)/python -m pytest --numprocesses 2 --dist loadgroup tests/vm

.PHONY: interop-table
interop-table: setup ## docs/interop.md and README's column of it, from what test-interop found
	@$(VENV)/python tests/interop/interop_page.py
	@$(VENV)/python scripts/document_protocols.py

.PHONY: lint
lint: setup ## ruff, mypy, clang-format: checks only
	@$(VENV)/ruff check --quiet .
	@$(VENV)/ruff format --check --quiet .
	@$(VENV)/mypy --strict src
	@$(VENV)/clang-format --dry-run -Werror $(C_FILES)

.PHONY: format
format: setup ## apply ruff's and clang-format's style
	@$(VENV)/ruff check --quiet --fix . || true
	@$(VENV)/ruff format --quiet .
	@$(VENV)/clang-format -i $(C_FILES)

.PHONY: docs
docs: setup ## docs/protocols.md and README's table of protocols, from the registry
	@$(VENV)/python scripts/document_protocols.py

.PHONY: bench
bench: setup peers bench-objects .venv/.bench-installed ## MPTM beside its peers, 15 minutes (ARGS=--quick: two)
	@$(VENV)/python -m bench $(ARGS)

.PHONY: bench-objects
bench-objects: $(BENCH_OBJECTS)
	@:

.PHONY: setup
setup: packages build .venv/.installed ## packages, BPF objects and the virtual environment
	@:

.PHONY: packages
packages: ## Debian/Ubuntu packages that are missing
	@scripts/setup.sh packages

.PHONY: peers
peers: packages ## what tests talk to (Open vSwitch) or boot other kernels with (qemu)
	@scripts/setup.sh peers

.venv/.installed: pyproject.toml hatch_build.py scripts/setup.sh | packages build
	@scripts/setup.sh venv

.venv/.bench-installed: .venv/.installed
	@scripts/setup.sh bench

.PHONY: build
build: $(OBJECTS) ## the BPF objects, build/*.o
	@:

build/%.o: bpf/%.bpf.c $(HEADERS) scripts/compile_bpf.py | packages
	@python3 scripts/compile_bpf.py build $<

build/%.o: bench/%.bpf.c $(HEADERS) $(wildcard bpf/*.bpf.c) scripts/compile_bpf.py | packages
	@python3 scripts/compile_bpf.py build $<

.PHONY: clean
clean: ## remove what was built (the virtual environment too)
	@rm -rf build dist .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
