"""Tests of the server need requirements-serve.txt, which `make test` installs."""

import importlib.util

if importlib.util.find_spec("starlette") is None:
    collect_ignore_glob = ["*_test.py"]
