# The entry points of the project. Everything is installed into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
	--constraint requirements.lock
BUILD := $(BIN)/jupyter-book build . -W -n --keep-going

.PHONY: book test lab sync clean

book: $(VENV)/.book  ## Build the book, always anew: it takes seconds
	@rm -rf _build
	$(BUILD)
	@echo
	@echo "The book is at $(CURDIR)/_build/html/index.html"
	@echo "Open it in a browser, or run: $(BIN)/python -m webbrowser" \
		"file://$(CURDIR)/_build/html/index.html"

test: $(VENV)/.test  ## Run all checks; tests/test_book.py builds the book
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/sync_notebooks.py --check
	$(BIN)/python -m pytest --nbval --numprocesses auto --dist loadfile

lab: $(VENV)/.test  ## Open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

sync: $(VENV)/.test  ## Put the package's text in the notebooks, run them
	$(BIN)/python tools/sync_notebooks.py

clean:
	rm -rf _build $(VENV) build *.egg-info .pytest_cache .ruff_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, found:"; \
		$(PYTHON) --version; \
		echo "Name another one with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.book: book/requirements.txt requirements.lock | $(BIN)/python
	$(PIP) -r book/requirements.txt
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.book tests/requirements.txt
	$(PIP) --editable '.[test]'
	@touch $@
