# make check | unit | one T=tests/test_product.py | chapter N=06 | format | test | book | course | lab | clean
# make ipynb | dist | review: what the workflows of a release ask for
# BUDGET=smoke | laptop | gpu      PYTHON=python3.12      PINS=/dev/null: newest versions
.PHONY: check unit one chapter format test book course lab ipynb dist review clean
.DELETE_ON_ERROR:

PYTHON ?= python3
PINS ?= constraints.txt
BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
INSTALLED := .venv/.installed
book ipynb lab: BUDGET ?= laptop
unit one chapter test: BUDGET ?= smoke
export MSD_TEACH_BUDGET = $(BUDGET)
ifneq ($(filter-out smoke laptop gpu,$(BUDGET)),)
$(error BUDGET is $(BUDGET); it may be smoke, laptop or gpu)
endif

# Two at a time, chapters one at a time on a GPU; chapters whose outputs are still right are skipped.
PYTEST = $(BIN)/pytest -q -n 2 --dist worksteal
EXECUTE = $(BIN)/pytest -q -n $(if $(filter gpu,$(BUDGET)),1,2) --dist worksteal notebooks

# Not yet cut to 88 columns (tests/test_source.py, TO_COME): 05, 06 and 08.
EDITED = $(filter-out notebooks/05% notebooks/06% notebooks/08%,$(wildcard notebooks/*.py))

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright

unit: $(INSTALLED)
	$(PYTEST) -m "not slow" tests

one: $(INSTALLED)
	$(BIN)/pytest -q $(or $(T),$(error which one? make one T=tests/test_product.py))

chapter: $(INSTALLED)
	$(BIN)/pytest -q $(or $(wildcard notebooks/$(N)_*.py),$(error N is "$(N)"; it is a chapter: make chapter N=06))

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/jupytext --quiet --pipe "$(BIN)/ruff format --line-length 88 -" $(EDITED)

# What fails fastest comes first.
test: check unit
	$(EXECUTE)
	$(BIN)/python book/build.py $(BUDGET)
	$(PYTEST) -m slow tests
	@echo "All tests passed. Executed chapters: executed/$(BUDGET)/"

book: $(INSTALLED)
	$(EXECUTE)
	$(BIN)/python book/build.py $(BUDGET)

# The executed notebooks of the book, which install the package where it is missing, and what a Binder needs.
ipynb: book
	rm -rf _build/ipynb && mkdir _build/ipynb
	cp _build/$(BUDGET)/source/*.ipynb _build/ipynb/
	cp -R .binder _build/ipynb/

dist: $(INSTALLED)
	$(BIN)/hatchling build -d _build/dist

# Tools that want versions of their own, in an environment of their own.
review:
	test -x .venv/review/bin/zizmor || ($(PYTHON) -m venv .venv/review && .venv/review/bin/pip install -q "sp-repo-review[cli]" zizmor)
	.venv/review/bin/repo-review .
	.venv/review/bin/zizmor --offline .

course: $(INSTALLED)
	$(BIN)/python book/course.py

lab: $(INSTALLED)
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=/lab/tree/notebooks/00_start_here.py

clean:
	rm -rf executed _build .pytest_cache .ruff_cache .hypothesis

# torch first: by far the largest, and what everything else is built against.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('Python 3.11 or later is needed: make PYTHON=python3.12')"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q torch hatchling editables -c $(PINS)
	$(BIN)/pip install -q --no-build-isolation -c $(PINS) -e .[notebooks,book,diffusion,dev]
	touch $@
