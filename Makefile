# Two commands are enough: `make demo` and `make test`. Each makes its own environment.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OUT ?= demo-output
# Tests of a file stay together, so that what several of them read is made once.
WORKERS ?= -n auto --dist worksteal
LONG ?= long and not soak

# Python keeps the bytecode of what it imports, also where the environment forbids it: TensorFlow
# would be compiled again in each process, and the tests start many.
export PYTHONDONTWRITEBYTECODE =

OLDEST ?= .venv-oldest
TFMOT ?= .venv-tfmot
TUTORIALS ?= .venv-tutorials

.PHONY: demo docs wheel test lint unit test-long test-large test-soak test-oldest test-tfmot format bench \
	tutorials clean help

help:
	@echo "make demo   make a trained network small without labels; writes $(OUT)/"
	@echo "make test   lint, type-check and test"
	@echo "make test-long    notebooks, programs, several processes, all parameters of wide tests"
	@echo "make test-large   transfers of MobileNet, EfficientNet and ResNet; every layer with XLA"
	@echo "make test-soak    long runs, processes that are killed, workers that are lost"
	@echo "make test-oldest   the core tests, with the oldest TensorFlow and Keras that are supported"
	@echo "make test-tfmot    against the real tensorflow-model-optimization, and serving it"
	@echo "make bench  time a step against other implementations, and how its cost grows; writes"
	@echo "            benchmarks/results/"
	@echo "make tutorials   run all notebooks and save what they show"
	@echo "make docs   build the documentation into site/, strictly"
	@echo "make wheel  build the wheel, and try it with the newest and the oldest TensorFlow and Keras"

$(BIN)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --no-compile --editable . --group test --group lint
	touch $@

demo: $(BIN)/.ready
	$(BIN)/keras-ntt demo --output $(OUT)

test: lint unit

lint: $(BIN)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python docs/_wording.py

unit: $(BIN)/.ready
	$(BIN)/python -m pytest $(WORKERS)

test-long: $(BIN)/.ready
	$(BIN)/python -m pytest $(WORKERS) -m "$(LONG)" tests

test-large: $(BIN)/.ready
	$(BIN)/python -m pytest -m large tests/project/test_large.py tests/pruning/neural_tangent/test_scale.py

test-soak: $(BIN)/.ready
	$(BIN)/python -m pytest -m soak tests

# TensorFlow 2.16 exists for Python 3.9 to 3.12.
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --no-compile --upgrade "pip>=25.1"
	$(OLDEST)/bin/python -m pip install --quiet --no-compile --editable . --group oldest
	$(OLDEST)/bin/python -m pytest $(WORKERS) -m "oldest and not large and not soak" tests

# Apart from the others: importing tfmot makes tf.keras tf_keras for its process.
test-tfmot:
	$(PYTHON) -m venv $(TFMOT)
	$(TFMOT)/bin/python -m pip install --quiet --no-compile --upgrade "pip>=25.1"
	$(TFMOT)/bin/python -m pip install --quiet --no-compile --editable . --group tfmot
	$(TFMOT)/bin/python -m pytest tests/tfmot tests/project/test_notebooks.py -k tfmot

format: $(BIN)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BIN)/.ready
	$(BIN)/python -m benchmarks.speed.ntt_step
	$(BIN)/python -m benchmarks.speed.growth

# With tfmot, because one of them serves its users.
tutorials:
	$(PYTHON) -m venv $(TUTORIALS)
	$(TUTORIALS)/bin/python -m pip install --quiet --no-compile --upgrade "pip>=25.1"
	$(TUTORIALS)/bin/python -m pip install --quiet --no-compile --editable . --group tutorials
	$(TUTORIALS)/bin/python tutorials/save_outputs.py

# Nothing is fetched once the packages are there.
$(BIN)/.docs: $(BIN)/.ready
	$(BIN)/python -m pip install --quiet --no-compile --group docs
	touch $@

docs: $(BIN)/.docs
	$(BIN)/python docs/_figures.py
	$(BIN)/python docs/_pages.py build/site
	$(BIN)/zensical build --strict --config-file build/site/mkdocs.yml
	rm -rf site && mv build/site/html site
	@echo "Built: site/index.html"

wheel:
	PYTHON="$(PYTHON)" .ci/wheel

clean:
	rm -rf $(VENV) $(OLDEST) $(TFMOT) $(TUTORIALS) $(OUT) build dist site .pytest_cache .ruff_cache .mypy_cache
