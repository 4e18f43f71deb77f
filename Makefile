# Commands that do all of their own set-up: `make demo`, `make test` and, by hand, `make vllm`.
# Needs Python 3.11 or newer with venv, git and make.

PYTHON ?= python3
# Installed first and by itself, so that a machine can choose its own build: make demo TORCH=…
TORCH ?= torch==2.13.0

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check

.DELETE_ON_ERROR:
.PHONY: demo test check pytest vllm clean

demo: $(VENV)/.demo
	$(BIN)/personavec demo
	@echo "The report, opens in any browser:"
	@find "$(CURDIR)/runs/demo" -name report.html

# the checks of the code beside the tests
test: $(VENV)/.test
	@$(MAKE) --no-print-directory --jobs 2 check pytest

pytest: $(VENV)/.test
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --durations 15

check: $(VENV)/.test
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/check

# by hand: it installs vLLM for the CPU in an environment of its own
vllm: $(VENV)/.test
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/vllm

clean:
	rm -rf $(VENV) runs/demo dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "expected Python 3.11 or newer as $(PYTHON), got $$($(PYTHON) --version 2>&1); install it, or: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "expected Python with venv, got one without; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.torch: pyproject.toml $(VENV)/.created
	$(PIP) install "$(TORCH)"
	@touch $@

$(VENV)/.demo: $(VENV)/.torch
	$(PIP) install -e .
	@touch $@

$(VENV)/.test: $(VENV)/.torch
	$(PIP) install -e ".[dev]"
	@touch $@
