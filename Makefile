# make run: the demo on http://127.0.0.1:8181/    make test: the tests    make sanitize: with ASan
# GREENWS_HYPOTHESIS=full make test: with all examples of Hypothesis, not a tenth of them
# make bench: all of benchmarks/, about two hours, or one with ARGS="--seconds 1"; a part of it:
#   make bench CASES=32B-100 AGAINST=gevent-websocket ARGS="--rounds 3 --seconds 2"
# make fuzz SECONDS=120: the targets of fuzz/
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test coverage sanitize fuzz lint types wheel bench clean

run: $(VENV)/run
	$(BIN)/python run_server.py $(ARGS)

test: $(VENV)/test
	$(BIN)/python -m pytest $(ARGS)

# What the tests reach of the pure form, with branches; fails below the figure in pyproject.toml.
coverage: $(VENV)/test
	rm -rf build/coverage
	mkdir -p build/coverage
	GREENWS_PURE_PYTHON=1 $(BIN)/python -m coverage run -m pytest $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

# The compiled form under AddressSanitizer and UBSan; needs gcc.
sanitize: $(VENV)/test
	tests/sanitize $(ARGS)

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/lint
	$(BIN)/mypy

# The sdist, and from it the wheel, which must hold the compiled modules.
wheel: $(VENV)/lint
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -c "import glob, zipfile; names = zipfile.ZipFile(max(glob.glob('dist/*.whl'))).namelist(); assert any('websocket.cpython' in name for name in names), names"

bench: $(VENV)/bench
	$(BIN)/python benchmarks/run.py $(if $(CASES),--cases "$(CASES)") \
		$(if $(AGAINST),--against "$(AGAINST)") $(ARGS)

# Each target for so long. Of the pure form, since atheris sees the branches of Python only; with
# PURE= of the compiled one, blindly.
SECONDS := 120
PURE := 1
fuzz: $(VENV)/fuzz
	for target in fuzz/fuzz_*.py; do GREENWS_PURE_PYTHON=$(PURE) $(BIN)/python $$target \
		-max_total_time=$(SECONDS) -artifact_prefix=fuzz/ -verbosity=0 || exit 1; done

clean:
	rm -rf $(VENV) benchmarks/build benchmarks/node_modules $(filter-out %/_masking.c,$(wildcard $(foreach folder,. protocol hub,$(addprefix greenws/$(folder)/,*.so *.c)))) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run: requirements.txt | $(BIN)/python
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

# Editing a module that was compiled calls for compiling it again.
COMPILED := $(wildcard $(foreach folder,. protocol hub,$(addprefix greenws/$(folder)/,*.py *.pxd *.h))) \
	greenws/protocol/_masking.c

$(VENV)/test: setup.py pyproject.toml $(COMPILED) | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/lint: setup.py pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[test,lint]'
	touch $@

$(VENV)/fuzz: setup.py pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[test,fuzz]'
	touch $@

$(VENV)/bench: $(VENV)/test benchmarks/requirements.txt benchmarks/package.json
	$(BIN)/python benchmarks/run.py --install
	touch $@
