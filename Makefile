# make check | unit | one T=tests/test_product.py | chapter N=06 | format | test | book | course | lab | clean
# BUDGET=smoke | laptop | gpu      PYTHON=python3.12
.PHONY: check unit one chapter format test book course lab clean
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
book lab: BUDGET ?= laptop
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
	$(BIN)/pip install -q torch hatchling editables -c constraints.txt
	$(BIN)/pip install -q --no-build-isolation -c constraints.txt -e .[notebooks,book,diffusion,dev]
	touch $@
