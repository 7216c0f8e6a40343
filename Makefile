# make run: the demo on http://127.0.0.1:8181/    make test: the tests    make sanitize: with ASan
# GREENWS_HYPOTHESIS=full make test: with all examples of Hypothesis, not a tenth of them
# make docs: the documentation, docs/_build/html
# make bench: all of benchmarks/, about three hours, or two with ARGS="--seconds 1"; a part of it:
#   make bench CASES=32B-100 AGAINST=gevent-websocket ARGS="--rounds 3 --seconds 2"
# make test-pythons: some tests on each other Python    make test-all: all tests on all Pythons
# make check: unit tests, lint and types, in under a minute    make fuzz SECONDS=120: the targets of fuzz/
# make autobahn: all cases of the Autobahn testsuite; needs Python 2.7 (PYTHON27=...)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test test-pythons test-all check autobahn coverage untraced sanitize fuzz lint types docs pictures wheel wheels bench clean

run: $(VENV)/run
	$(BIN)/python run_server.py $(ARGS)

test: $(VENV)/test
	$(BIN)/python -m pytest $(ARGS)

# A part of the tests on the other Pythons that are found, in the pure form; or all of them, on this
# one too, in both forms, which takes long.
test-pythons: $(VENV)/test
	.ci/pythons short $(ARGS)
test-all: test
	GREENWS_PURE_PYTHON=1 $(BIN)/python -m pytest $(ARGS)
	.ci/pythons all $(ARGS)

# The tests without other programs, whole servers or attacks, with a tenth of Hypothesis's examples.
BEYOND_UNITS := autobahn demo docs hostile integrations server rooms/redis test_autobahn.py \
	test_benchmarks.py test_clients.py test_django_chat.py test_examples.py test_forking.py test_form.py \
	test_fuzz.py test_installation.py test_liveness.py test_soak.py
check: $(VENV)/lint
	GREENWS_HYPOTHESIS=quick $(BIN)/python -m pytest -q -n 2 $(BEYOND_UNITS:%=--ignore=tests/%) $(ARGS)
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

# Against both forms at once, or with ARGS=pure, against one.
autobahn: $(VENV)/test
	$(BIN)/python tests/autobahn/run.py $(ARGS)

# What the tests reach of the pure form, with branches; fails below the figure in pyproject.toml. Tests
# that are the same in both forms (marked one_form) run in `make test` alone. With tracing a test takes
# three times as long, so those below, which reach hardly a line that others do not, are left to
# `make untraced`, which runs them in the pure form without it.
UNTRACED := $(addprefix tests/,client/test_servers.py client/test_threads.py hostile/test_memory.py \
	hostile/test_peers.py hostile/test_requests.py integrations/django/test_connections.py \
	integrations/test_celery.py integrations/test_conversation.py integrations/test_gunicorn.py \
	integrations/test_mariadb.py integrations/test_other_servers.py integrations/test_pytest.py \
	protocol/test_frames.py protocol/test_messages.py protocol/test_oracles.py \
	rooms/redis/test_spread.py rooms/test_stateful.py \
	server/test_fairness.py server/test_stop.py autobahn demo test_autobahn.py test_clients.py \
	test_distribution.py test_django_chat.py test_examples.py test_forking.py test_form.py test_fuzz.py \
	test_layers.py test_soak.py)
# Rooms are not compiled: what takes long of their tests runs in `make test` alone, as is marked one_form.
ONE_FORM := $(addprefix tests/rooms/redis/,test_broker.py test_redis_random.py test_several.py test_workers.py)
coverage: $(VENV)/test
	rm -rf build/coverage
	mkdir -p build/coverage
	GREENWS_PURE_PYTHON=1 $(BIN)/python -m coverage run -m pytest -m "not one_form" \
		--ignore=tests/docs $(UNTRACED:%=--ignore=%) $(ONE_FORM:%=--ignore=%) $(ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report
untraced: $(VENV)/test
	GREENWS_PURE_PYTHON=1 $(BIN)/python -m pytest -m "not one_form" $(UNTRACED) $(ARGS)

# The compiled form under AddressSanitizer and UBSan; needs gcc.
sanitize: $(VENV)/test
	tests/sanitize $(ARGS)

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The examples do without annotations, as most programs; their bodies are checked all the same.
EXAMPLES := $(wildcard examples examples/chat examples/django_chat/chat examples/tutorial/*)
types: $(VENV)/lint
	$(BIN)/mypy
	for folder in $(EXAMPLES); do $(BIN)/mypy --check-untyped-defs --allow-untyped-defs \
		--allow-untyped-calls --allow-untyped-decorators --allow-subclassing-any \
		--no-warn-unused-ignores --cache-dir .mypy_cache/examples $$folder/*.py || exit 1; done
	$(BIN)/pyright

# docs/_build/html; a warning is an error.
docs: $(VENV)/docs
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html

# Those of the documentation; look at them.
pictures: $(VENV)/docs
	$(BIN)/python docs/pictures.py --demo

# The sdist, and from it the wheel; then a check of what they hold. What later compilers (gcc 14, clang 16)
# take for errors are errors here, too: a module that is not compiled is missing from the wheel.
STRICT := -Werror=incompatible-pointer-types -Werror=int-conversion -Werror=implicit-function-declaration \
	-Werror=implicit-int
wheel: $(VENV)/lint
	rm -f *.egg-info/SOURCES.txt # setuptools would add what an old one lists
	GREENWS_CFLAGS="$(STRICT)" $(BIN)/python -m build --outdir dist .
	$(BIN)/python .ci/check_distributions.py

# A wheel of each Python that is found, as a release has it, tested once installed; some minutes.
# Of one of them: make wheels ARGS=3.12
wheels: wheel
	.ci/wheels $(ARGS)

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
	rm -rf $(VENV) benchmarks/build benchmarks/node_modules $(filter-out %/_masking.c,$(wildcard $(foreach folder,. protocol hub http server,$(addprefix greenws/$(folder)/,*.so *.c)))) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run: requirements.txt | $(BIN)/python
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

# Editing a module that was compiled calls for compiling it again.
COMPILED := $(wildcard $(foreach folder,. protocol hub http server,$(addprefix greenws/$(folder)/,*.py *.pxd *.h))) \
	greenws/protocol/_masking.c

$(VENV)/test: setup.py pyproject.toml $(COMPILED) | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/lint: setup.py pyproject.toml $(COMPILED) | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[test,lint]'
	touch $@

$(VENV)/docs: setup.py pyproject.toml $(COMPILED) | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[test,docs]'
	touch $@

$(VENV)/fuzz: setup.py pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --editable '.[test,fuzz]'
	touch $@

# For tests, lint, documentation and fuzzing at once. greenws is built, once, while the rest comes from
# the network; Python compiles of it what is imported. It is built with the flags of the wheel, so that
# with CC="ccache gcc" each module is compiled once for both.
$(VENV)/all: setup.py pyproject.toml $(COMPILED) | $(BIN)/python
	$(BIN)/python .ci/dependencies.py test lint docs fuzz >$(VENV)/dependencies
	GREENWS_CFLAGS="$(STRICT)" $(BIN)/pip install --quiet --no-deps --editable . & built=$$!; \
		$(BIN)/pip install --quiet --no-compile -r $(VENV)/dependencies; code=$$?; \
		wait $$built && exit $$code
	touch $@ $(VENV)/test $(VENV)/lint $(VENV)/docs $(VENV)/fuzz

$(VENV)/bench: $(VENV)/test benchmarks/requirements.txt benchmarks/package.json
	$(BIN)/python benchmarks/run.py --install
	touch $@
