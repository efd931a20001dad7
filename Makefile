# One command each for the demo and the tests, from a fresh clone; needs python3 (3.10 or later) and make.
PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin/python
PIP_INSTALL := $(BIN) -m pip --disable-pip-version-check install --quiet

# Each step leaves a stamp, so that a second make does no work twice.
HAS_VENV := $(VENV)/.stamp-venv
HAS_REQUIREMENTS := $(VENV)/.stamp-requirements
HAS_DETECTRON2 := $(VENV)/.stamp-detectron2
READY := $(VENV)/.stamp-ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow lint format clean

help:
	@echo "make demo       train OneNet on handwritten digits, evaluate it and draw what it sees"
	@echo "make test       run the tests that take seconds"
	@echo "make test-slow  run the tests that take minutes"
	@echo "make lint       check style, formatting, and which package imports which"
	@echo "make format     format the code"
	@echo "make clean      remove $(VENV), caches and build leftovers; data and outputs stay"
	@echo
	@echo "Options: ARGS=\"...\" is handed to the demo or to pytest; PYTHON=python3.11 chooses the Python."
	@echo "The first call makes $(VENV), about 6 GB; nothing is installed outside this folder."

demo: $(READY)
	@PYTHONWARNINGS=ignore::FutureWarning,ignore::UserWarning:torch.functional $(BIN) demo/digits.py $(ARGS)

test: $(READY)
	@$(BIN) -m pytest $(ARGS)

test-slow: $(READY)
	@$(BIN) -m pytest -m "slow and not gpu" $(ARGS)

lint: $(HAS_REQUIREMENTS)
	@$(BIN) -m ruff check . && $(BIN) -m ruff format --check . && cd projects/OneNet && \
	  PYTHONPATH=. ../../$(VENV)/bin/lint-imports --no-cache ../../pyproject.toml

format: $(HAS_REQUIREMENTS)
	@$(BIN) -m ruff check --select I --fix . && $(BIN) -m ruff format .

clean:
	rm -rf $(VENV) build dist projects/OneNet/*.egg-info .pytest_cache .ruff_cache .hypothesis
	find projects tests demo tools configs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

$(HAS_VENV):
	@"$(PYTHON)" -c "import sys" >/dev/null 2>&1 || { \
	  echo "No working Python was found under the name $(PYTHON): install Python 3.10 or later, or name one with 'make PYTHON=python3.11 ...'." >&2; exit 1; }
	@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 10))" || { \
	  echo "OneNet needs Python 3.10 or later, but $(PYTHON) is $$("$(PYTHON)" -V 2>&1): name a newer one with 'make PYTHON=python3.11 ...'." >&2; exit 1; }
	@"$(PYTHON)" -c "import ensurepip, venv" 2>/dev/null || { \
	  echo "$(PYTHON) cannot create virtual environments: install its venv module, on Debian and Ubuntu with 'apt install python3-venv'." >&2; exit 1; }
	@echo "Creating $(VENV) with $$("$(PYTHON)" -V 2>&1) ..."
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

# requirements.txt is complete, hence --no-deps; the last line adds the CUDA packages that torch pins for itself.
$(HAS_REQUIREMENTS): requirements.txt $(HAS_VENV)
	@echo "Installing the pinned packages into $(VENV) (the first time about 6 GB, some minutes) ..."
	@$(PIP_INSTALL) --no-deps "$$(grep '^setuptools==' requirements.txt)"
	@$(PIP_INSTALL) --no-deps --use-pep517 --no-build-isolation --requirement requirements.txt
	@$(PIP_INSTALL) --constraint requirements.txt torch torchvision
	@touch $@

$(HAS_DETECTRON2): tools/install_detectron2.py $(HAS_REQUIREMENTS)
	@$(BIN) tools/install_detectron2.py
	@touch $@

$(READY): setup.py $(HAS_DETECTRON2)
	@echo "Installing the package onenet into $(VENV) ..."
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@
