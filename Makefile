# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: demo test test-slow check bench bench-gate install sample screenshots docs clean help

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch first, pinned: a newer one would pull gigabytes of CUDA packages.
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

install: $(STAMP) ## set up the virtual environment

demo: $(STAMP) ## the main job on the built-in parent: quantize, evaluate, compare, report
	$(BIN)/evalq run demo.yaml

sample: demo ## render the sample report that is in the repository from the demo's run
	rm -rf reports/demo && mkdir -p reports && cp -r runs/demo/report reports/demo

screenshots: $(STAMP) ## of the sample report, for the README and the site (needs Chromium)
	$(BIN)/python docs/hooks/screenshots.py

docs: $(STAMP) ## build the documentation site into build/site, strictly
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

test: check ## all fast tests
	# A process a core, one thread each: threads of several processes would wait for each other.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

test-slow: $(STAMP) ## the checks that take minutes
	$(BIN)/python -m pytest -m slow

check: $(STAMP) ## style, types, floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

bench: $(STAMP) ## measured ratios of kernels and of the engine; see benchmarks/RESULTS.md
	test -d runs/bench/w4 || $(BIN)/evalq quantize builtin --method rtn --bits 4 --out runs/bench/w4
	$(BIN)/evalq bench kernels --against torch-int4,torch-int8
	$(BIN)/evalq bench engine --artifact runs/bench/w4 --batch 1 --batch 8

bench-gate: $(STAMP) ## calibrate the release gate by simulation (minutes)
	$(BIN)/python -m benchmarks.gate_calibration --write

clean: ## remove what was built, not what was measured
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache dist build
