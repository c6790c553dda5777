# The two commands are `make demo` and `make test`; both run as root on Debian 12 and install what they lack.
NODES ?= 1
PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest

.PHONY: setup demo check test soak bench clean

setup:
	@./setup.sh base

demo:
	@./setup.sh demo
	@$(PYTHON) -m provisioner.lab.demo --nodes $(NODES)

# All that needs no emulated machine and is marked neither long nor slow, cheap tests first, two at a time.
check:
	@./setup.sh test
	@status=0; $(PYTEST) -n 2 tests/unit || status=1; \
	$(PYTEST) -n 2 --dist loadfile -m "not long and not slow" tests/integration || status=1; exit $$status

# A file of tests at a time on each core; what takes longest last, so that a mistake shows early.
test:
	@./setup.sh test
	@status=0; $(PYTEST) -n 2 tests/unit || status=1; \
	$(PYTEST) -n 2 --dist loadfile -m "not long" tests/integration || status=1; \
	$(PYTEST) -n 2 --dist loadfile -m long tests/integration || status=1; \
	$(PYTEST) -n 2 --dist loadfile tests/e2e || status=1; exit $$status

# What `make test` does a few times, very often.
soak:
	@./setup.sh test
	@status=0; CAPSULEKIT_SOAK=200 $(PYTEST) -s tests/integration/test_build_killed.py || status=1; \
	CAPSULEKIT_SOAK=200 $(PYTEST) tests/integration/test_vnfs_killed.py -k random || status=1; \
	CAPSULEKIT_SOAK=200 $(PYTEST) tests/integration/test_vnfs_edit_killed.py || status=1; \
	CAPSULEKIT_SOAK=100 $(PYTEST) tests/integration/test_registry_concurrent.py || status=1; exit $$status

bench:
	@./setup.sh bench
	@$(PYTHON) -m benchmarks $(ONLY)

clean:
	rm -rf .venv out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
