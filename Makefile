# The one list of commands. `make help` prints it.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
SERVE := .venv
TEST := .venv-test
PURKINJE := $(SERVE)/bin/purkinje
CORES ?= $(shell nproc)
export OMP_NUM_THREADS ?= 1

INPUT ?=
OUT ?=
LOG ?= sqlite
KEEP ?=
METHOD ?= echo
SEED ?= 1
N ?= 10
ROTATE ?=
GPU ?=

.PHONY: help demo viewer verify test test-fast lint bench bench-gpu tensorrt clean serve-environment test-environment system-demo system-test

help: ## Print the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

demo: serve-environment system-demo ## One CMR, one echo, one ECG: C-STORE in, reports out. INPUT=path OUT=dir LOG=kafka KEEP=1
	@$(PURKINJE) demo --log $(LOG) $(if $(INPUT),--input "$(INPUT)") $(if $(OUT),--out "$(OUT)") $(if $(KEEP),--keep)

viewer: serve-environment system-demo deploy/viewer/node_modules/.installed ## The demo kept up, with OHIF in front
	@$(PURKINJE) demo --log $(LOG) $(if $(INPUT),--input "$(INPUT)") $(if $(OUT),--out "$(OUT)") --viewer --keep

verify: serve-environment system-demo ## New phantom studies through the whole way against the truth. METHOD=echo|ecg|cmr SEED=s N=n ROTATE=1 OUT=dir
	@$(PURKINJE) verify --method $(METHOD) --seed $(SEED) --count $(N) $(if $(ROTATE),--rotate) $(if $(OUT),--out "$(OUT)")

test: test-environment system-test deploy/viewer/node_modules/.installed ## Everything: unit, contract, integration, e2e, fuzz
	@$(TEST)/bin/ruff check . && $(TEST)/bin/ruff format --check . && $(TEST)/bin/mypy && $(TEST)/bin/lint-imports
	@$(TEST)/bin/python -m pytest tests/unit tests/contract tests/fuzz -n $(CORES) $(PYTEST)
	@$(TEST)/bin/python -m pytest tests/integration tests/e2e $(PYTEST)

test-fast: test-environment ## Unit and contract tests without the slow ones, about two minutes
	@$(TEST)/bin/python -m pytest tests/unit tests/contract -m "not slow" -n $(CORES) $(PYTEST)

lint: test-environment ## Formatting, types, import directions
	@$(TEST)/bin/ruff check . && $(TEST)/bin/ruff format --check . && $(TEST)/bin/mypy && $(TEST)/bin/lint-imports

bench: test-environment system-demo ## Benchmarks, results as JSON and a table under out/bench
	@$(TEST)/bin/python tests/benchmarks/run.py --out $(if $(OUT),"$(OUT)",out/bench)

bench-gpu: test-environment ## Engines on a GPU in under 25 minutes, results as JSON and a table under out/bench-gpu. GPU=cpu shows the form
	@timeout --signal=INT --kill-after=20 1490 $(TEST)/bin/python -m tests.benchmarks.bench_gpu \
		--out $(if $(OUT),"$(OUT)",out/bench-gpu) $(if $(GPU),--device $(GPU))

tensorrt: serve-environment ## TensorRT into .venv from Maven Central and PyPI, where NVIDIA's package index cannot be reached
	@deploy/setup/tensorrt.sh $(SERVE)

clean: ## Remove what the commands made
	@rm -rf $(SERVE) $(TEST) out build dist ./*.egg-info deploy/kafka/libs deploy/viewer/node_modules

serve-environment: $(SERVE)/.installed
test-environment: $(TEST)/.installed

$(SERVE)/.installed: pyproject.toml
	@deploy/setup/python.sh $(PYTHON) $(SERVE) serve

$(TEST)/.installed: pyproject.toml
	@deploy/setup/python.sh $(PYTHON) $(TEST) dev,train,rtx

deploy/viewer/node_modules/.installed: deploy/viewer/package.json
	@deploy/setup/viewer.sh

system-demo:
	@deploy/setup/system.sh $(if $(filter kafka,$(LOG)),kafka) demo

system-test:
	@deploy/setup/system.sh demo test kafka
