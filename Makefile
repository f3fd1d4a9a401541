# make demo | make test | make lint | make bench: each installs what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
APT_PACKAGES := fuse3 libfuse3-dev pkg-config gcc python3-dev python3-venv
# For tests only: a real Ceph on this machine, exercisers of file systems, and programs that write in ways of their own.
APT_TEST_PACKAGES := ceph-mon ceph-mgr ceph-osd ceph-common python3-rados fio rsync stress-ng vim
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
WORKERS ?= 2

.PHONY: help install test lint bench bench-read bench-write demo clean
help:
	@echo "make demo    mount a bucket and train on it, on this machine, in under five minutes"
	@echo "make test    all tests, with real servers"
	@echo "make lint    ruff and mypy"
	@echo "make bench   measured comparisons with the peers (benchmarks/README.md)"
	@echo "make clean   remove what these made"

install: $(VENV)/.installed

# The stamp depends on what decides the environment, so a change of pyproject.toml installs again.
$(VENV)/.installed: pyproject.toml Makefile
	@missing=""; for p in $(APT_PACKAGES) $(APT_TEST_PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; fi
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e '.[dev]'
	@# The repository root is the package `forebay`; type checkers find it under that name through this link.
	mkdir -p $(VENV)/src && ln -sfn ../.. $(VENV)/src/forebay
	touch $@

test: install
	$(BIN)/pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=$(VENV)/src $(BIN)/mypy -p forebay

bench: bench-read bench-write

bench-read: $(VENV)/.installed-bench
	$(BIN)/python -m forebay.benchmarks.mount $(ARGS)

bench-write: $(VENV)/.installed-bench
	$(BIN)/python -m forebay.benchmarks.write $(ARGS)

demo: $(VENV)/.installed-demo
	$(BIN)/python -m forebay.demo.run

$(VENV)/.installed-%: $(VENV)/.installed
	$(BIN)/pip install --quiet -e '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
