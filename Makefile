# Needs Python 3.11 or newer and make; creates .venv by itself. `make demo` and `make test` are all.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/installed
OUT ?= runs/demo
SECONDS ?= 120
SEED ?= 0

WORKERS ?= 2

# Where an environment forbids bytecode, each process of the tests would compile regraft again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test slow faults fuzz lint reference docs dist bench clean

demo: $(STAMP)
	$(BIN)/regraft demo --out $(OUT)

# One thread a process: there are two already, and some tests start more. Stolen work stays in its file, whose
# fixtures are made once.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test: $(STAMP)
	$(PYTEST) -m "not slow and not gpu"

# Files without slow tests are not read: that takes as long as some of the tests. The longest tests come first, so that
# no worker waits for one at the end. Some wait for processes and clocks: a third worker uses that time.
LONGEST := tests/end_to_end/test_wheel.py tests/test_docs.py tests/end_to_end/test_processes.py
slow: WORKERS = 3
slow: $(STAMP)
	$(PYTEST) -m "slow and not gpu" $(LONGEST) $(shell grep -rl 'mark\.slow' tests --include='test_*.py')

faults: $(STAMP)
	$(BIN)/python tools/faults.py

fuzz: $(STAMP)
	$(BIN)/python tools/fuzz.py --seconds $(SECONDS) --seed $(SEED)

lint: $(STAMP)
	$(BIN)/ruff check src tests tools benchmarks docs/*.py
	$(BIN)/ruff format --check src tests tools benchmarks docs/*.py
	$(BIN)/mypy

reference: $(STAMP)
	$(BIN)/python docs/build_reference.py
	$(BIN)/python docs/build_notebooks.py

docs: reference
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# Without isolation: the build tools are in .venv, so that nothing is downloaded.
dist: $(STAMP)
	$(BIN)/python -m build --no-isolation

bench: $(STAMP)
	$(BIN)/python benchmarks/layout.py
	@echo "The others need data, a GPU or an hour; each says so at its head. Against other tools, half an hour:"
	@echo "  $(BIN)/python benchmarks/epoch.py ants_bees WEIGHTS --out results.jsonl"
	@echo "  $(BIN)/python benchmarks/rows.py --out results.jsonl"
	@echo "Lightning and fastai take part where they are installed: pip install -c constraints.txt -e '.[bench]'"

clean:
	rm -rf .venv build dist site src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Installed once, and again only when what is to be installed has changed. pip would compile on one core; some
# packages bring files that are no Python to compile, as pip does not mind either. What is hardly ever imported is
# compiled when it is.
RARE := /tests?/|/testing/|/(transformers/models|sympy|mlflow|databricks|networkx|debugpy|pip|playwright|mypy|mypyc|fontTools|setuptools|torchgen|narwhals)/
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "regraft needs Python 3.11 or newer on the PATH (or PYTHON=...)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e '.[all]'
	@$(BIN)/python -m compileall -q -j 0 -x '$(RARE)' .venv/lib >/dev/null || true
	@touch $(STAMP)
