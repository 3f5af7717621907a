# Two commands for a newcomer: `make demo` and `make test`. Everything is installed into .venv; nothing outside changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUBS := .venv-stubs
MLFLOWS := .venv-mlflow
WHEELS := .venv-wheels
DOCS := .venv-docs
# Two for each processor of a small machine: many of the tests wait, for times that run out and for disks.
TEST_PROCESSES ?= 4
FETCH = $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: -d $(WHEELS)
PIP := -m pip install --quiet --disable-pip-version-check --no-compile
# Compiled on all processors, which pip does on one. Some packages have files for other versions of Python.
COMPILE := -m compileall -q -j 0

.PHONY: demo test test-slow test-dist picture soak soak-disk kills shared-kills power-cuts faults fuzz check stubs bench dist docs lock clean

$(VENV)/done: requirements.lock pyproject.toml client/pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --no-deps --require-hashes -r requirements.lock
	$(BIN)/python $(PIP) --no-deps --no-build-isolation -e client -e .
	$(BIN)/python $(COMPILE) $(VENV)/lib client cacheserver tests >/dev/null 2>&1 || true
	touch $@

# The stubs must load with the oldest grpcio and protobuf that the client supports, so these make them.
$(STUBS)/done:
	$(PYTHON) -m venv .venv-stubs
	$(STUBS)/bin/python $(PIP) 'grpcio-tools==1.62.3' 'protobuf==4.25.9' 'setuptools==80.9.0'
	touch $@

# The other versions of MLflow that the plugin is compared with, and torch for its deep-learning flavour. Each is a
# folder that stands before the installed packages on the path of a test's process; what they depend on is there already.
# torch is the build without CUDA for Python 3.11 on x86-64; where that cannot be had, its test is skipped and says so.
$(MLFLOWS)/done: $(VENV)/done $(wildcard tests/mlflow-versions/*.txt)
	for file in tests/mlflow-versions/*.txt; do \
	    $(BIN)/python $(PIP) --no-deps --require-hashes --upgrade --target $(MLFLOWS)/$$(basename $$file .txt) \
	        -r $$file || [ $$file = tests/mlflow-versions/torch.txt ] || exit 1; done
	$(BIN)/python $(COMPILE) $(MLFLOWS) >/dev/null 2>&1 || true
	touch $@

# What clean environments are installed from, so that no test asks an index: what a host needs, and for the client the
# oldest and the newest that it supports, for each of its Pythons.
$(WHEELS)/done: $(VENV)/done requirements.lock $(wildcard tests/clients/*.txt)
	rm -rf $(WHEELS)
	mkdir $(WHEELS)
	$(BIN)/python -m tools.locked cacheserver > $(WHEELS)/requirements.txt
	$(FETCH) --require-hashes -r $(WHEELS)/requirements.txt
	for python in 3.10 3.11 3.12 3.13; do for file in tests/clients/*.txt; do \
	    case $$python:$$file in 3.13:*oldest.txt|3.1[012]:*oldest-3.13.txt) continue;; esac; \
	    $(FETCH) --require-hashes --python-version $$python -r $$file || exit 1; done; done
	touch $@

# The documentation's site, of which the product needs nothing.
$(DOCS)/done: docs/requirements.lock
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python $(PIP) --no-deps --require-hashes -r docs/requirements.lock
	touch $@

demo: $(VENV)/done  ## log a model to a real MLflow, fetch it cold, then warm
	$(BIN)/python demo.py

test: check $(MLFLOWS)/done $(WHEELS)/done $(DOCS)/done  ## everything that CI runs
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile -m 'not slow' $(PYTEST)

test-slow: $(MLFLOWS)/done  ## what takes minutes, and more cases of what takes seconds: 100,000 files, 5 GiB, older MLflow over S3
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile -m slow $(PYTEST)

test-dist: $(MLFLOWS)/done $(WHEELS)/done $(DOCS)/done  ## packages, the host's installation, the client's Pythons, the pages' examples
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile tests/test_packages.py tests/test_installed.py \
	    tests/test_clients.py tests/test_host_install.py tests/test_completion.py tests/test_site.py tests/test_pages.py $(PYTEST)

soak: $(MLFLOWS)/done  ## 64 clients of three users for 20 minutes; as root; PYTEST='--minutes 5 --seed 1' for others
	$(BIN)/python -m pytest -m slow -s -o faulthandler_timeout=0 tests/test_soak.py $(PYTEST)

soak-disk: $(MLFLOWS)/done  ## a disk of 1 GiB and 20 GiB of fetches, and 10,000 fetches that race sweeps; as root
	$(BIN)/python -m pytest -m slow -s tests/test_never_full.py tests/test_racing_sweeps.py $(PYTEST)

kills: $(MLFLOWS)/done  ## 1,000 kills of a daemon at random moments; PYTEST='--seed 1' makes those of a seed again
	$(BIN)/python -m pytest -m slow -s -o faulthandler_timeout=0 tests/test_kills.py $(PYTEST)

shared-kills: $(MLFLOWS)/done  ## 300 kills of hosts that share, and of the object store that they share by; as root
	$(BIN)/python -m pytest -m slow -s -o faulthandler_timeout=0 tests/test_shared_kills.py $(PYTEST)

power-cuts: $(MLFLOWS)/done  ## 200 power cuts of XFS and ext4; as root; PYTEST='--seed 1' makes those of a seed again
	$(BIN)/python -m pytest -m slow -s -o faulthandler_timeout=0 tests/test_power_cuts.py $(PYTEST)

fuzz: $(VENV)/done  ## 100,000 malformed inputs for each socket; PYTEST='--seed 1' sends those of a seed again
	$(BIN)/python -m pytest -s -o faulthandler_timeout=0 --timeout 7200 --inputs 100000 tests/test_fuzz.py $(PYTEST)

picture: $(VENV)/done  ## docs/page.png, of a real daemon in a real browser; needs chromium and chromedriver
	ARTIFACTCACHE_PICTURES=docs $(BIN)/python -m pytest tests/test_page_picture.py $(PYTEST)

faults: $(VENV)/done  ## every step of every verb fails in every way, or the daemon dies there; and long games against a dictionary
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist load --timeout 7200 -o faulthandler_timeout=0 -m slow -rP tests/unit/test_every_step.py \
	    tests/unit/test_model.py tests/test_model_socket.py $(PYTEST)

check: $(VENV)/done $(STUBS)/done  ## style, types, stubs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHON=$(STUBS)/bin/python sh proto/stubs.sh --check

stubs: $(STUBS)/done  ## make the gRPC stubs anew
	PYTHON=$(STUBS)/bin/python sh proto/stubs.sh

bench: $(VENV)/done  ## the README's figures: a table, and tests/bench/results.json
	$(BIN)/python -m tests.bench

dist: $(VENV)/done  ## both distributions as wheels and sources, a host's requirements, and their checksums, in dist/
	$(BIN)/python -m tools.dist dist

docs: $(VENV)/done $(DOCS)/done  ## the documentation as a site, in build/site/
	$(BIN)/python -m tools.site build/docs
	$(DOCS)/bin/mkdocs build --quiet --strict --config-file build/docs/mkdocs.yml --site-dir ../site

lock: $(VENV)/done  ## the newest versions that fit pyproject.toml
	$(BIN)/python $(PIP) uv
	$(BIN)/uv pip compile --quiet --universal --upgrade --generate-hashes --python-version 3.11 --no-header \
	    --no-annotate --no-emit-index-url --no-emit-find-links --no-emit-package artifactcache \
	    --all-extras --group test --group check pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) $(STUBS) $(MLFLOWS) $(WHEELS) $(DOCS) dist build client/build .mypy_cache .pytest_cache .ruff_cache
