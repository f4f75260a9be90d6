# make test    set-up, ruff, pyright and the tests
# make demo    set-up and the demo: out/demo/index.html and out/demo/report.json
# make bench   attention timings on a GPU: out/bench/attention.json
# make support models served, on every ComfyUI found: docs/support.json and the README's table
# make compile-report   the kernels' machine code for every architecture, without a GPU
# make compile-versions the kernels compiled by Triton 3.3, 3.6 and the newest, without a GPU
# make lint    ruff and pyright only
#
# Variables:
#   PYTHON=python3.12        the Python that the virtual environment is made from
#   VENV=.venv               where the environment is
#   TORCH="torch==2.13.0"    what pip installs as torch (options such as --index-url may follow)
#   SYSTEM_TORCH=1           use the torch that PYTHON already has; nothing of torch is installed
#   DEMO_ARGS="--device cpu" options of demo/run.py
#   BENCH_ARGS="--quick"     options of benchmarks/attention.py
#   TEST_ARGS="-k plan"      options of pytest

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TRITON ?= triton==3.6.0
SYSTEM_TORCH ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
TEST_ARGS ?=
WORKERS ?= 2

DEMO_PACKAGES = numpy safetensors pillow
# Triton 3.6's interpreter turns one-element arrays into numbers, which numpy 2.4 refuses.
TEST_PACKAGES = "numpy<2.4" safetensors pillow einops \
  pytest==9.2.0 pytest-xdist==3.8.0 hypothesis==6.170.15 ruff==0.17.6 "pyright[nodejs]==1.1.414"

# Threads that wait must not spin: with several test processes on few cores it costs a factor.
export OMP_WAIT_POLICY ?= PASSIVE
# Keep freed memory (glibc): page faults of ever new tensors cost a fifth of the time on CPU.
export MALLOC_MMAP_THRESHOLD_ ?= 33554432
export MALLOC_TRIM_THRESHOLD_ ?= 1073741824
export MALLOC_TOP_PAD_ ?= 67108864

PY = $(VENV)/bin/python
PIP = $(PY) -m pip --disable-pip-version-check install --quiet
# A stamp keeps an environment from being filled again before the lists above change.
TORCH_STAMP = $(VENV)/.paro-torch
DEMO_STAMP = $(VENV)/.paro-demo
TEST_STAMP = $(VENV)/.paro-test

.PHONY: help test demo bench compile-report compile-versions support lint format readme clean
help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

$(PY):
	$(PYTHON) -m venv $(VENV)

# torch comes first and plainly: what is installed after it has to fit it, not the other way round.
$(TORCH_STAMP): | $(PY)
ifneq ($(SYSTEM_TORCH),)
	@# A .pth file is appended to sys.path, so that the environment's own packages stay in front.
	$(PYTHON) -c "import pathlib, torch; print(pathlib.Path(torch.__file__).parent.parent)" \
	  > "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/system_torch.pth"
else
	$(PIP) $(TORCH)
endif
	@$(PY) -W ignore -c "import torch; print('torch', torch.__version__)"
	@touch $@

$(DEMO_STAMP): $(TORCH_STAMP) Makefile
	$(PIP) $(DEMO_PACKAGES)
	@touch $@

# CUDA builds of torch bring their own Triton; a CPU build gets one for the interpreter (Linux only).
$(TEST_STAMP): $(TORCH_STAMP) Makefile
	$(PIP) $(TEST_PACKAGES)
	@$(PY) -c "import triton" 2>/dev/null || [ "$$(uname -s)" != Linux ] || $(PIP) $(TRITON)
	@touch $@

test: lint
	$(VENV)/bin/pytest -n $(WORKERS) $(TEST_ARGS)

lint: $(TEST_STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)

format: $(TEST_STAMP)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

demo: $(DEMO_STAMP)
	$(PY) demo/run.py $(DEMO_ARGS)

bench: $(DEMO_STAMP)
	$(PY) benchmarks/attention.py $(BENCH_ARGS)

compile-report: $(TEST_STAMP)
	$(PY) benchmarks/compile_report.py

compile-versions: $(TEST_STAMP)
	$(PY) benchmarks/compile_versions.py

support: $(TEST_STAMP)
	$(PY) tests/families/support.py

# Rewrites the measured figures in README.md from benchmarks/results/*.json.
readme:
	$(PYTHON) benchmarks/readme_tables.py

clean:
	rm -rf out build *.egg-info .pytest_cache .ruff_cache .hypothesis
