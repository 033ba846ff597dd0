# `make help` lists the commands. Works with GNU make 3.81, which macOS has.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help book test serve notebooks assignments grade pdf bundle bench links lock clean

help:
	@echo "make book       run the notebooks that changed and build the site into _build/html"
	@echo "make test       style, types, unit tests, every notebook, and the built site in a browser"
	@echo "make serve      build the site and show it on http://localhost:8000 (PORT=... for another port)"
	@echo "make notebooks  run every notebook and store its outputs in it, to be committed"
	@echo "make assignments  build students' notebooks, solutions and autograders (SEED=secret NAMES=file for a class)"
	@echo "make grade SUBMISSIONS=folder  grade what was handed in (with the same SEED and NAMES)"
	@echo "make pdf        the whole book as one PDF, printed by Chromium (a minute, once it is built)"
	@echo "make bundle     one archive for a room without a network: site, notebooks, wheels, model"
	@echo "make bench      measure speed and memory against a plain loop (six minutes, nothing else running)"
	@echo "make links      ask every link of the book whether it still leads somewhere"
	@echo "make lock       renew requirements.lock from pyproject.toml"
	@echo "make clean      remove what these commands made: $(VENV), _build, caches"
	@echo
	@echo "Each installs what it needs into $(VENV) first, once. PYTHON=/path/to/python chooses the Python for it."

book: $(READY)
	@$(BIN)/python tools/build_book.py

test: $(READY)
	@$(BIN)/python tools/run_tests.py

serve: book
	@$(BIN)/python tools/serve.py $(PORT)

notebooks: $(READY)
	@$(BIN)/python tools/run_notebooks.py

assignments: $(READY)
	@$(BIN)/python tools/assignments.py $(if $(SEED),--seed "$(SEED)") $(if $(NAMES),--names "$(NAMES)") $(if $(OUT),--out "$(OUT)")

grade: $(READY)
	@$(BIN)/python tools/grade.py "$(SUBMISSIONS)" $(if $(SEED),--seed "$(SEED)") $(if $(NAMES),--names "$(NAMES)") $(if $(OUT),--out "$(OUT)")

pdf: book
	@$(BIN)/python tools/pdf.py

bundle: book
	@$(BIN)/python tools/bundle.py

bench: $(READY)
	@$(BIN)/python benchmarks/speed.py

links: $(READY)
	@$(BIN)/python tools/build_book.py --committed --builder linkcheck

lock: $(READY)
	@$(BIN)/python tools/lock.py

clean:
	rm -rf $(VENV) _build build book/_static/mathjax book/_static/live_data .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find minilib tests tools notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

# The stamp is written last: an installation that was interrupted goes on at the next call.
# pip runs with its own configuration, so an index of CPU wheels that a reader has set is the one used.
$(READY): requirements.lock pyproject.toml
	@if ! $(BIN)/python tools/python_fits.py 2>/dev/null; then \
	  found=; \
	  for python in $(PYTHON) python3 python python3.12 python3.13 python3.11; do \
	    if "$$python" tools/python_fits.py 2>/dev/null; then found="$$python"; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "No Python 3.11, 3.12 or 3.13 with the venv module was found." >&2; \
	    echo "Install one (python.org; on Debian and Ubuntu: apt install python3 python3-venv)" >&2; \
	    echo "or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	  fi; \
	  echo "Making $(VENV) with $$found"; \
	  rm -rf $(VENV) && "$$found" -m venv $(VENV) || exit 1; \
	fi
	@echo "Installing the locked packages into $(VENV); the first time takes a few minutes"
	@$(BIN)/python -m pip install -r requirements.lock
	@$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	@touch $(READY)
