# make train   set up .venv and train the config nano on the embedded corpus
# make test    set up .venv and pass the tests
# make docs    draw the pictures of docs/ again
# PYTHON=python3.13 VENV=.venv313 chooses another Python.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: train test test-slow check docs clean

train: $(VENV)/installed
	$(RUN) -m gptjax.train --config=nano

test: $(VENV)/installed-dev
	$(RUN) -m pytest -n 2

test-slow: $(VENV)/installed-dev
	$(RUN) -m pytest -m slow

check: $(VENV)/installed-dev
	$(VENV)/bin/ruff format --check . && $(VENV)/bin/ruff check . && $(VENV)/bin/pyright --pythonpath $(RUN)

docs: $(VENV)/installed
	$(RUN) -m gptjax.report.pictures docs/patterns.png

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
