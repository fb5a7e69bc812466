# Every target makes the environment it needs: `make reproduce` and `make test` work on a fresh clone.
#   PYTHON=python3.12   the interpreter of a new environment
#   PIP_FLAGS=...       more options for pip, for example an index with CPU-only builds of torch
#   PROFILE=full        the profile that `reproduce` runs
#   SEEDS=0,1,2         seeds in place of the profile's
#   ONLY=02             the notebooks (of `gpu`: the steps) whose names start so
#   ON=slurm            where `workflow` runs its jobs
#   OUT=results/full/benchmarks   where `bench` writes
#   PY=python3 STAMP=   use an interpreter that has everything, and install nothing
PYTHON ?= python3
PROFILE ?= quick
PIP_FLAGS ?=
SEEDS ?=
ONLY ?=
ON ?= local
MINUTES ?=
OUT ?= out/benchmarks
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo reproduce workflow check-cluster test-slow test-cluster verify smoke test lint format docs docs-serve gpu bench wheel wheels lab clean distclean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-13s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sinklora needs Python 3.11 or newer; try make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e ".[notebooks,eval,real,chat,workflow,docs,dev]"
	touch $@

install: $(STAMP) ## make .venv and install the package with the pinned versions

demo: $(STAMP) ## show in a minute what a bounded cache keeps of a page, on a real model (downloads 93 MB once)
	$(PY) -m sinklora demo

reproduce: $(STAMP) ## run the notebooks of PROFILE (quick: reduced; full: what is committed, hours) into results/PROFILE
	$(PY) -m sinklora reproduce --profile $(PROFILE) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(ONLY),--only $(ONLY))

workflow: $(STAMP) ## the same as jobs that depend on one another, each fine-tune one; ON=slurm submits them
	$(PY) -m sinklora workflow run --profile $(PROFILE) --on $(ON) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(ONLY),--only $(ONLY))

check-cluster: $(STAMP) ## print what the jobs of the profile `paper` ask for with Llama-2-7B and with Llama-3-8B
	$(PY) -m sinklora workflow check --profile paper --recipe configs/recipes/llama2-7b.yaml --recipe configs/recipes/llama3-8b.yaml $(if $(ONLY),--only $(ONLY))

smoke: $(STAMP) ## the same at toy size, to see that every notebook runs
	$(PY) -m sinklora reproduce --profile smoke $(if $(ONLY),--only $(ONLY))

verify: $(STAMP) ## make a random few of the committed numbers again and compare them
	$(PY) -m sinklora verify

# Two processes of one thread each, also where a test starts another one; no test asks the hub.
test test-slow: export OMP_NUM_THREADS := 1
test test-slow: export HF_HUB_OFFLINE := 1
# Containers often forbid bytecode; dozens of processes would each compile the package.
test test-slow: export PYTHONDONTWRITEBYTECODE :=
test: $(STAMP) ## run the test suite
	$(PY) -m pytest -q -n 2 --dist worksteal

test-slow: $(STAMP) ## the further cases of which `make test` runs one, and what takes longest
	$(PY) -m pytest -q -n 2 --dist worksteal -m slow

test-cluster: $(STAMP) ## the tests that start a Slurm of one node and run workflows for minutes
	$(PY) -m pytest -q -m cluster

lint: $(STAMP) ## check style, format, types, the order of imports between rooms, pins and names
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -c "from importlinter.cli import lint_imports_command; lint_imports_command()" --no-logo --no-cache
	$(PY) scripts/check_repository.py
	$(PY) -m pip check

format: $(STAMP) ## rewrite the sources in the house format
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# The theme tells of its successor at every build. With --quiet, --strict would count no warnings.
docs docs-serve: export NO_MKDOCS_2_WARNING := 1
docs: $(STAMP) ## build the documentation site into out/site; a link to nothing is an error
	$(PY) -m mkdocs build --strict

docs-serve: $(STAMP) ## show the documentation site on this machine (127.0.0.1:8000)
	$(PY) -m mkdocs serve --dev-addr 127.0.0.1:8000

gpu: $(STAMP) ## run everything that wants a GPU into results/gpu; MINUTES=9 stops in time and goes on the next time
	$(PY) -m sinklora gpu $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ONLY),--only $(ONLY))

bench: $(STAMP) ## print time and memory of patterns, caches and training steps, as ratios to full attention
	$(PY) benchmarks/attention.py --out $(OUT)
	$(PY) benchmarks/kv_cache.py --out $(OUT)
	$(PY) benchmarks/kv_cache.py --only generation --prompts 32768 --batch 1 --repeats 2 --label 32k --out $(OUT)
	$(PY) benchmarks/training.py --out $(OUT)
	$(PY) benchmarks/real_model.py --out $(OUT)

wheel: $(STAMP) ## build the package into dist and use it outside of the checkout
	$(PY) scripts/check_wheel.py --keep dist

wheels: $(STAMP) ## the same on every supported Python that is there, with the oldest and the newest torch and transformers
	$(PY) -m nox

lab: $(STAMP) ## open JupyterLab on the notebooks
	$(PY) -m jupyterlab notebooks

clean: ## remove caches and scratch output; runs, results and the environment stay
	rm -rf out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find sinklora tests benchmarks notebooks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean ## also remove the environments and the trained runs
	rm -rf .venv .venv-* .nox runs .cache
