# The first target asked for sets everything up: a virtual environment in .venv with the pinned torch, and vifast in it.
#   make demo     train and evaluate on synthetic people, ends with the path of an HTML report
#   make test     lint, tests, doctests, and the Triton kernels in the interpreter
#   make bench    time everything against its rivals
#   make gpu      build for the card of this machine, test and time on it (takes the Python that is there, no network);
#                 STEPS="build tests" those alone, see .ci/gpu
#   make lint | format | wheel | sanitize | triton-compat | clean

PYTHON  ?= python3
VENV    ?= .venv
TORCH   ?= torch==2.13.0
JOBS    ?= 2
# What pip installs: the checkout itself, or for CI a wheel of it.
INSTALL ?= --no-build-isolation -e '.[dev,bench]'

PY      := $(VENV)/bin/python
PIP     := $(PY) -m pip --disable-pip-version-check -q
# One torch thread a worker: the workers already fill the cores.
PYTEST  := OMP_NUM_THREADS=1 $(VENV)/bin/pytest -q -rs -n $(JOBS)
READY   := $(VENV)/.vifast
DEMO    := runs/demo
INTERPRET  := TRITON_INTERPRET=1 $(PYTEST) -m triton tests
OLD_TRITON := build/triton-3.6.0

.DELETE_ON_ERROR:
.PHONY: demo test unit interpret bench smoke lint format wheel sanitize triton-compat gpu clean

demo: $(READY)
	@rm -rf $(DEMO)
	@$(VENV)/bin/vifast demo --out $(DEMO)
	@echo "report: $(CURDIR)/$(DEMO)/report.html"

test: lint unit interpret

# Packaging builds once a session, on all cores by itself.
unit: $(READY)
	@echo "== tests and doctests"
	@$(PYTEST) -m "not gpu and not triton" --ignore tests/test_packaging.py tests
	@$(PYTEST) -n 0 tests/test_packaging.py

interpret: $(READY)
	@echo "== Triton kernels in the interpreter"
	@$(INTERPRET)

bench: $(READY)
	@$(PY) benchmarks/run.py

smoke: $(READY)
	@$(PY) benchmarks/run.py --smoke

lint: $(READY)
	@echo "== ruff"
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .

format: $(READY)
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .

wheel:
	@$(PYTHON) -m pip wheel . --no-deps -w dist

sanitize: $(READY)
	@PYTHON=$(PY) tests/cpp/run.sh

# The kernels again with the oldest Triton that is supported.
triton-compat: $(OLD_TRITON)
	@echo "== Triton kernels with $(notdir $(OLD_TRITON)), compiled and interpreted"
	@PYTHONPATH=$(CURDIR)/$(OLD_TRITON) $(PYTEST) tests/kernels/test_aot.py
	@PYTHONPATH=$(CURDIR)/$(OLD_TRITON) $(INTERPRET)

$(OLD_TRITON): | $(READY)
	@$(PIP) install --no-deps --target $@ triton==3.6.0 'numpy<2.4'  # its interpreter predates NumPy 2.4

gpu:
	@.ci/gpu $(STEPS)

clean:
	rm -rf build dist $(DEMO) $(READY) *.egg-info kernels/*.so .pytest_cache .ruff_cache .hypothesis .benchmarks

$(READY): pyproject.toml setup.py $(shell find csrc -type f)
	@test -x $(PY) || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing $(TORCH) and vifast into $(VENV)"
	@$(PIP) install "$(TORCH)" setuptools pybind11 ninja
	@$(PIP) install $(INSTALL)
	@touch $@
