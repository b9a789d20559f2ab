"""--help of every program fits a terminal of 80 columns, loses no character of its text, and
explains every flag."""

import argparse
import importlib

import pytest

from gptjax import __main__ as programs

MODULES = sorted(set(programs.list_programs().values()) - {"gptjax.lm_eval"})


@pytest.mark.parametrize("module", MODULES)
def test_help(module, monkeypatch, capsys):
    parsers, original = [], argparse.ArgumentParser.parse_args

    def parse_args(self, *given, **named):
        parsers.append(self)
        return original(self, *given, **named)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(module).main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    too_long = [line for line in lines if len(line) > 80 and len(line.split()) > 1]
    (parser,) = parsers
    unexplained = [action.dest for action in parser._actions if not action.help]
    assert (too_long, unexplained) == ([], [])
    assert lines.index("example:") + 1 < len(lines)
    assert _without_space(parser.description) in _without_space(shown)
    assert _without_space(parser.epilog) in _without_space(shown.replace(" \\\n", "\n"))


def _without_space(text):
    return "".join(text.split())
