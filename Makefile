# make book | test | lab | clean      BUDGET=smoke | laptop | gpu      PYTHON=python3.12
.PHONY: book test lab clean
.DELETE_ON_ERROR:

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
book: BUDGET ?= laptop
test: BUDGET ?= smoke
lab: BUDGET ?= laptop
export MSD_TEACH_BUDGET = $(BUDGET)
ifneq ($(filter-out smoke laptop gpu,$(BUDGET)),)
$(error BUDGET is $(BUDGET); it may be smoke, laptop or gpu)
endif

# Chapters run two at a time, one at a time on a GPU; those whose outputs are still right are skipped.
EXECUTE = $(BIN)/pytest -q -n $(if $(filter gpu,$(BUDGET)),1,2) --dist worksteal notebooks

book: $(INSTALLED)
	$(EXECUTE)
	$(BIN)/python book/build.py $(BUDGET)

test: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright
	$(EXECUTE)
	$(BIN)/python book/build.py $(BUDGET)
	$(BIN)/pytest -q -n 2 --dist worksteal tests
	@echo "All tests passed. Executed chapters: executed/$(BUDGET)/"

lab: $(INSTALLED)
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=/lab/tree/notebooks/01_mean_shift.py

clean:
	rm -rf executed _build .pytest_cache .ruff_cache .hypothesis

# torch first: by far the largest, and what everything else is built against.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('Python 3.11 or later is needed: make PYTHON=python3.12')"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install -q torch hatchling editables -c constraints.txt
	$(BIN)/pip install -q --no-build-isolation -c constraints.txt -e .[notebooks,book,diffusion,dev]
	touch $@
