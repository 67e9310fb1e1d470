# make help      this list
# make run       set up and run the main job: three tasks, one strategy, a table at the end
# make dashboards  TensorBoard on the runs in `runs`; docs/dashboard.md says how to read it
# make test      set up and run the tests (under 15 minutes on 2 cores)
# make test-all  the slow ones too
# make coverage  the tests once more, and which lines they reach: htmlcov/index.html
# make kill      runs killed 72 times, 12 of them inside writes, and what became of them
# make fuzz      hostile configs, options, files, run folders and sweeps, under 15 minutes
# make bench     the benchmarks, as tables
# make gpu       checks and benchmarks on a GPU, under 9 minutes
# make lint      ruff, mypy and check-install
# make check-install  what is built, installed and required, on every Python; with OFFLINE=1 what needs no package index
# make docs      the site of docs/ into site/; a link that leads nowhere is an error
# make links     the folders under the name `lifelong`, for type checkers, editors and runs without an installation
# make clean     remove what these made, but no run

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHECK_INSTALL := $(BIN)/python -m tests.check_install $(if $(OFFLINE),--offline)
export OMP_NUM_THREADS ?= 1

.PHONY: run help dashboards test test-all coverage kill fuzz bench gpu docs lint links check-install clean

run: $(VENV)/.run
	$(BIN)/lifelong run quickstart

help:
	@sed -n 's/^# make/make/p' Makefile

dashboards: $(VENV)/.run
	@echo "how to read it: docs/dashboard.md"
	$(BIN)/tensorboard --logdir $(or $(RUNS),runs)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: $(VENV)/.test
	$(BIN)/python -m pytest -n 2

coverage: $(VENV)/.coverage
	$(BIN)/python -m pytest -n 2 -m "not slow" $(foreach f,agent envs replay kernels,--cov=$(f)) --cov-report=html --cov-report=term:skip-covered

kill: $(VENV)/.test
	$(BIN)/python -m pytest -s tests/agent/runtime/test_kills.py

fuzz: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 tests/test_fuzz.py

bench: $(VENV)/.test
	$(BIN)/pip install -q -c constraints.txt sb3-contrib
	for name in kernels train envs runners; do OMP_NUM_THREADS=2 $(BIN)/lifelong bench $$name || exit 1; done

gpu: links
	PYTHONPATH=.links:.$(if $(PYTHONPATH),:$(PYTHONPATH)) $(PYTHON) benchmarks/gpu.py

lint: $(VENV)/.lint links
	$(BIN)/ruff check setup.py agent envs replay kernels tests benchmarks
	$(BIN)/ruff format --check setup.py agent envs replay kernels tests benchmarks
	$(BIN)/mypy
	$(CHECK_INSTALL)

docs: $(VENV)/.docs links
	$(BIN)/zensical build --strict --clean

links: .links/lifelong/py.typed

.links/lifelong/py.typed: setup.py
	rm -rf .links && mkdir -p .links/lifelong
	for folder in agent envs replay kernels configs; do ln -s ../../$$folder .links/lifelong/$$folder; done
	for file in agent/api/*; do ln -s ../../$$file .links/lifelong/; done

check-install: $(VENV)/.lint
	$(CHECK_INSTALL)

clean:
	rm -rf .links $(VENV) *.egg-info build site htmlcov .coverage

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(VENV)/bin/pip pyproject.toml setup.py constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.test: $(VENV)/bin/pip pyproject.toml setup.py constraints.txt
	$(BIN)/pip install -q -c constraints.txt -e ".[test]"
	touch $@ $(VENV)/.run

$(VENV)/.docs: $(VENV)/.run
	$(BIN)/pip install -q -c constraints.txt -e ".[docs]"
	touch $@

$(VENV)/.coverage: $(VENV)/.test
	$(BIN)/pip install -q -c constraints.txt -e ".[test,coverage]"
	touch $@

$(VENV)/.lint: $(VENV)/.test
	$(BIN)/pip install -q -c constraints.txt -e ".[test,lint]"
	touch $@
