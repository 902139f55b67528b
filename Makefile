# Two commands matter: `make book` and `make test`. The work itself is in the `repro` command (repro/cli.py).
PYTHON ?= python3
# `make test CONSTRAINTS=` installs the newest versions instead of the pinned ones.
CONSTRAINTS ?= -c constraints.txt
JOBS ?= 2
READY := .venv/.ready
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help book test serve lab archive clean

help:
	@echo "make book    run the chapters whose record is missing or stale, build the site in _build/html"
	@echo "make test    everything that proves the book right"
	@echo "make serve   show the built site at a local address"
	@echo "make lab     open the chapters in JupyterLab"
	@echo "make archive one zip file with site and notebooks, for a room without internet"
	@echo "make clean   remove what was built; make clean ENV=1 removes .venv too"

book: $(READY)
	@$(BIN)/repro book

test: $(READY)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/repro lint
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile \
	  --nbval --nbval-current-env --nbval-sanitize-with tests/nbval_sanitize.cfg chapters book/tools tests

serve: $(READY)
	@$(BIN)/repro serve

lab: $(READY)
	@$(BIN)/jupyter lab chapters

archive: book
	@$(BIN)/repro archive

clean:
	rm -rf _build .pytest_cache .ruff_cache .mypy_cache .jupyter_cache $(if $(ENV),.venv)

$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "This book needs Python 3.11 or newer; $(PYTHON) is older or missing. Try: make PYTHON=python3.12"; exit 1; }
	@echo "Preparing .venv from constraints.txt (some minutes the first time; 2 to 7 GB, most of it PyTorch) ..."
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { \
	  echo "No virtual environment could be made; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(CONSTRAINTS) -e ".[book,test,peers,cluster]"
	@touch $@
