# `make help` lists the commands. Works with GNU make 3.81, which macOS has.

VENV := .venv
BIN := $(VENV)/bin
PAGES := $(VENV)/.pages
READY := $(VENV)/.ready

.PHONY: help live live-test book check test serve address notebooks assignments grade pdf bundle bench processors links lock clean

help:
	@echo "make book       build the site from the stored outputs into _build/html (runs nothing)"
	@echo "make live       fetch the model that a page runs in the browser (93 MB, and npm's tokenizer), then make book"
	@echo "make live-test  compare that page with the library: ten edits, fifty answers, time, memory (half an hour)"
	@echo "make check      style, types and the fast tests: no real model, no browser"
	@echo "make test       style, types, unit tests, every notebook, and the built site in a browser"
	@echo "make serve      build the site and show it on http://localhost:8000 (PORT=... for another port)"
	@echo "make notebooks  run the notebooks whose outputs are stale and store what comes out (ALL=1: every one)"
	@echo "make assignments  build students' notebooks, solutions and autograders (SEED=secret NAMES=file for a class)"
	@echo "make grade SUBMISSIONS=folder  grade what was handed in (with the same SEED and NAMES)"
	@echo "make pdf        the whole book as one PDF, printed by Chromium (a minute, once it is built)"
	@echo "make bundle     one archive for a room without a network: site, notebooks, wheels, model"
	@echo "make bench      measure speed and memory against a plain loop (six minutes, nothing else running)"
	@echo "make address URL=https://github.com/you/yours  write the address of your copy everywhere"
	@echo "make processors  run notebooks and tests under settings that imitate other processors (hours; PATHS=... for some)"
	@echo "make links      ask every link of the book whether it still leads somewhere"
	@echo "make lock       renew requirements.lock from pyproject.toml"
	@echo "make clean      remove what these commands made: $(VENV), _build, caches"
	@echo
	@echo "Each installs what it needs into $(VENV) first, once. PYTHON=/path/to/python chooses the Python for it."

book: $(PAGES)
	@$(BIN)/python tools/build_book.py

live: $(PAGES)
	@$(BIN)/python tools/real_model.py
	@$(MAKE) --no-print-directory book

live-test: $(READY) live
	@$(BIN)/python benchmarks/real_page.py

check: $(READY)
	@$(BIN)/python tools/run_tests.py --fast

test: $(READY)
	@$(BIN)/python tools/run_tests.py

serve: book
	@$(BIN)/python tools/serve.py $(PORT)

notebooks: $(READY)
	@$(BIN)/python tools/run_notebooks.py $(if $(ALL),--all)

address:
	@python3 tools/address.py "$(URL)"

assignments: $(READY)
	@$(BIN)/python tools/assignments.py $(if $(SEED),--seed "$(SEED)") $(if $(NAMES),--names "$(NAMES)") $(if $(OUT),--out "$(OUT)")

grade: $(READY)
	@$(BIN)/python tools/grade.py "$(SUBMISSIONS)" $(if $(SEED),--seed "$(SEED)") $(if $(NAMES),--names "$(NAMES)") $(if $(OUT),--out "$(OUT)")

pdf: $(READY) book
	@$(BIN)/python tools/pdf.py

bundle: $(READY) book
	@$(BIN)/python tools/bundle.py

bench: $(READY)
	@$(BIN)/python benchmarks/speed.py

processors: $(READY)
	@$(BIN)/python tools/processors.py $(PATHS)

links: $(PAGES)
	@$(BIN)/python tools/build_book.py --builder linkcheck

lock: $(READY)
	@$(BIN)/python tools/lock.py

clean:
	rm -rf $(VENV) _build build book/_static/mathjax book/_static/live_data book/_static/real_data .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find minilib tests tools notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

# The Python that .venv has, or else one that fits; install.py says what it does, and its log what pip says.
define install
	found=; \
	for python in $(BIN)/python $(PYTHON) python3 python python3.12 python3.13 python3.11; do \
	  if "$$python" tools/python_fits.py 2>/dev/null; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "No Python 3.11, 3.12 or 3.13 with the venv module was found." >&2; \
	  echo "Install one (python.org; on Debian and Ubuntu: apt install python3 python3-venv)" >&2; \
	  echo "or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi; \
	"$$found" tools/install.py
endef

# The stamps are written last: an installation that was interrupted goes on at the next call.
# pip runs with its own configuration, so an index of CPU wheels that a reader has set is the one used.
$(PAGES): requirements-book.lock
	@$(install) book
	@touch $(PAGES)

$(READY): requirements.lock pyproject.toml
	@$(install) all
	@touch $(PAGES) $(READY)
