# moescope's doors for people who work on it. `make` alone explains them.
#
# Needs Linux, make and Python 3.11 or newer; everything else goes into .venv (see devkit/setup-env.sh).

SHELL := bash
.DEFAULT_GOAL := help

# vLLM's modules are imported by every process of every test; cached bytecode makes that three times as fast.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
PYTHON ?= python3
ARGS ?=
PACKAGES := moescope.capture moescope.client moescope.service moescope.dashboards
# Debian packages that the end-to-end tests drive.
DEBIAN := prometheus prometheus-alertmanager chromium-headless-shell iproute2
# Groups of tests that `test` runs side by side, those that take longest first.
PARTS := tests-alerts tests-e2e tests-service tests-rest tests-store tests-browser tests-api
ALERTS := tests/e2e/test_notifications.py tests/e2e/test_service_alerts.py
APART := tests/service/api tests/service/store tests/service/traces
ELSEWHERE := tests/e2e/ tests/service/ tests/browser/ tests/dashboards/ tests/__pycache__/
REST := $(filter-out $(ELSEWHERE),$(wildcard tests/*/)) $(wildcard tests/test_*.py)
# Generated cases are the same each time.
PYTEST := $(BIN)/python -m pytest --hypothesis-profile=ci
# Two ranks of vLLM that share a core with others wait for each other by spinning, so they go first.
BEHIND := nice -n 5

.PHONY: help env demo test packages lint types kernels tests $(PARTS) test-gpu bare containers soak matrix bench format clean

# $(call stage,name,command): runs the command between its name and its time.
stage = @echo "== $(1)"; start=$$SECONDS; $(2); status=$$?; echo "== $(1): $$((SECONDS - start)) s"; exit $$status

# $(call install,needs,packages): installs Debian packages, and those that have what devkit/libraries.py misses.
install = lacking=$$($(BIN)/python -m devkit.libraries $(1)) && devkit/setup-debian.sh $(2) $$lacking

help:  ## this text
	@echo "make <target> [ARGS='...']"; echo
	@sed -n 's/^\([a-z-]*\):.*##/  \1\t/p' $(MAKEFILE_LIST) | expand -t 12
	@echo; echo "examples:"
	@echo "  make demo ARGS='--requests 50 --exit'    a demo that ends by itself; --help lists its flags"
	@echo "  make tests ARGS='-m \"not e2e\" -x'        only the quick tests, up to the first failure"
	@echo "  make matrix ARGS='0.26.0 0.31.0'          two releases of vLLM; the others' rows stay"

env:  ## create or update .venv
	@devkit/setup-env.sh

demo:  ## a real vLLM on this machine's CPUs, observed by moescope (ARGS=--help)
	@devkit/setup-env.sh $(if $(filter --simulate --help -h,$(ARGS)),service,vllm)
	@$(if $(filter --simulate --help -h,$(ARGS)),,$(call install,vllm))
	@$(BIN)/python -m devkit.demo $(ARGS)

# Five at a time on two cores, as each waits for something half of its time, and the one of alerts nearly all of it.
test: env packages  ## everything that must pass before a commit; about 20 minutes on two cores
	+@$(MAKE) --no-print-directory -j5 --output-sync=target lint $(PARTS) kernels types

packages: env  ## Debian packages that the tests drive or need
	$(call stage,packages,$(call install,vllm browser compiler,$(DEBIAN)))

lint: env  ## ruff: rules and format
	$(call stage,lint,$(BIN)/ruff check . && $(BIN)/ruff format --check .)

types: env  ## mypy, strict, on an installed copy (it can't follow the editable install)
	$(call stage,types,devkit/check-types.sh $(PACKAGES))

kernels: env  ## the Triton kernels against their torch reference, interpreted: no GPU needed
	$(call stage,kernels,TRITON_INTERPRET=1 $(BEHIND) $(BIN)/python -m pytest -q tests/kernels)

tests: env  ## pytest (ARGS: its arguments), all in one process
	$(call stage,tests,$(PYTEST) $(ARGS))

# The parts of `tests` that `test` runs: every test is in one of them. `tests-rest` has the files and folders that are in
# no other, and the service's tests that import vLLM, as others of them do.
tests-alerts: env
	$(call stage,$@,$(PYTEST) $(ARGS) tests/dashboards $(ALERTS))

tests-e2e: env
	$(call stage,$@,$(PYTEST) $(ARGS) tests/e2e $(ALERTS:%=--ignore=%))

tests-service: env
	$(call stage,$@,$(BEHIND) $(PYTEST) $(ARGS) tests/service $(APART:%=--ignore=%))

tests-api: env
	$(call stage,$@,$(BEHIND) $(PYTEST) $(ARGS) tests/service/api)

tests-store: env
	$(call stage,$@,$(BEHIND) $(PYTEST) $(ARGS) tests/service/store)

tests-browser: env
	$(call stage,$@,$(BEHIND) $(PYTEST) $(ARGS) tests/browser)

tests-rest: env
	$(call stage,$@,$(BEHIND) $(PYTEST) $(ARGS) $(REST) tests/service/traces)

test-gpu:  ## tests on a CUDA GPU, with the Python that has vLLM and moescope (PYTHON=python3)
	$(call stage,test-gpu,$(PYTHON) -m pytest tests/gpu tests/kernels $(ARGS))

bare:  ## both commands on a minimal Debian, made for it; takes root, and longer than test (ARGS=--help)
	@devkit/bare.sh $(ARGS)

containers: env  ## build and run the images, compose with Prometheus too; takes root and minutes (ARGS=--help)
	@$(if $(filter --help -h,$(ARGS)),,devkit/setup-debian.sh buildah podman runc netavark aardvark-dns debootstrap)
	$(call stage,containers,$(BIN)/python -m devkit.containers $(ARGS))

soak: env  ## the gates that take long: load, faults, network, bad and expensive input; a table into docs/gates.md (ARGS=--help)
	$(call stage,soak,$(BIN)/python -m devkit.soak $(ARGS))

matrix: env  ## each supported release of vLLM, run on CPUs; a table into docs/versions.md (ARGS=--help)
	$(call stage,matrix,$(call install,vllm) && $(BIN)/python -m devkit.matrix $(ARGS))

bench: env  ## the benchmarks that need no GPU, compared with their committed ratios (ARGS=--help)
	$(call stage,bench,$(BIN)/python -m benchmarks.compare $(ARGS))

format: env  ## rewrite the code in its format, with the fixes that ruff can make
	@$(BIN)/ruff check --fix-only -q .; $(BIN)/ruff format .

clean:  ## remove what these targets made, .venv too
	rm -rf .venv .kit .demo .matrix build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path ./.git -prune -o \( -name __pycache__ -o -name '*.egg-info' \) -print0 | xargs -0 rm -rf
