# The two commands are `make demo` and `make test`; both run as root on Debian 12 and install what they lack.
NODES ?= 1
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest

.PHONY: setup demo check test bench clean

setup:
	@./setup.sh base

demo:
	@./setup.sh demo
	@$(PYTHON) -m provisioner.lab.demo --nodes $(NODES)

# What needs no emulated machine and no second full build, cheap tests first.
check:
	@./setup.sh test
	@$(PYTEST) -m "not long" tests/unit tests/integration

test:
	@./setup.sh test
	@$(PYTEST) tests/unit tests/integration tests/e2e

bench:
	@./setup.sh bench
	@$(PYTHON) -m benchmarks $(ONLY)

clean:
	rm -rf .venv out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
