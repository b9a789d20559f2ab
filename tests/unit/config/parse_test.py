"""JSON, paths and numbers as users and damage leave them: read, or refused in one line."""

import argparse
import json
import math
import os
from pathlib import Path

import pytest

from gptjax.config import parse

BAD_JSON = {
    "cut short": b'{"a": [1, 2',
    "empty": b"",
    "not UTF-8": b'{"a": "\xff"}',
    "nested 100,000 deep": b"[" * 100_000 + b"]" * 100_000,
    "objects 100,000 deep": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "an integer of 5,000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "UTF-16": '{"a": 1}'.encode("utf-16"),
}


@pytest.mark.parametrize("content", BAD_JSON.values(), ids=list(BAD_JSON))
def test_bad_json_is_one_line_that_names_the_file(content):
    with pytest.raises(ValueError) as caught:
        parse.json_value(content, "x/config.json")
    assert type(caught.value) is ValueError
    assert (
        str(caught.value).startswith("x/config.json ")
        and "\n" not in str(caught.value)
        and len(str(caught.value)) < 200
    )


def test_good_json_is_read():
    assert parse.json_value(b'\xef\xbb\xbf{"a": [1, 2.5, null]}', "x") == {"a": [1, 2.5, None]}
    assert parse.json_value('\ufeff"text"', "x") == "text"


def test_the_byte_order_mark_is_removed(tmp_path):
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9\xef\xbb\xbf\n")
    assert parse.read_text(tmp_path / "x") == "caf\u00e9\ufeff\n" and parse.utf8(b"", "x") == ""
    for content, line in [
        (b"\xef\xbb\xbfa\xe9", "x is not UTF-8 text: byte 0xe9 at offset 4"),
        ("ab".encode("utf-16-le"), "x is not text: a zero byte at offset 1; give UTF-8 text"),
    ]:
        with pytest.raises(ValueError, match=line):
            parse.utf8(content, "x")


@pytest.mark.parametrize("content", [b"[]", b"1", b'"a"', b"null"])
def test_only_a_json_object_is_accepted(content):
    with pytest.raises(ValueError, match="x holds a JSON .*, not an object"):
        parse.json_object(content, "x")


def test_a_file_is_read_or_named(tmp_path):
    with pytest.raises(ValueError, match="none.json cannot be read: No such file"):
        parse.read_json(tmp_path / "none.json")
    with pytest.raises(ValueError, match="cannot be read: Is a directory"):
        parse.read_json(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # reading one that nobody writes to would never end
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(
            ValueError, match=f"{path.name} cannot be read: it is a pipe or device, not a file"
        ):
            parse.read_json(path)
    (tmp_path / "a.json").write_text(json.dumps({"a": 1}))
    assert parse.read_json(tmp_path / "a.json") == {"a": 1}


@pytest.mark.parametrize(
    "value, kind",
    [
        (True, int),
        (1.0, int),
        ("1", int),
        (None, int),
        (math.nan, float),
        (math.inf, float),
        (10**400, float),
        (10**5000, str),
        ([], dict),
    ],
    ids=range(9),
)
def test_a_member_of_another_type_is_refused(value, kind):
    with pytest.raises(ValueError, match="config.json: 'n_layer' is .*; it must be") as caught:
        parse.member({"n_layer": value}, "n_layer", kind, "config.json")
    assert len(str(caught.value)) < 200


def test_a_member_is_read():
    assert parse.member({"a": 3}, "a", int, "x") == 3
    assert type(parse.member({"a": 3}, "a", float, "x")) is float
    with pytest.raises(ValueError, match="x has no 'b'"):
        parse.member({"a": 3}, "b", int, "x")


def test_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert parse.path("~/x") == Path("/home/someone/x") and parse.path(".") == Path(".")
    for bad in ("", "~nobody-of-this-name/x", "a\0b"):
        with pytest.raises(ValueError):
            parse.path(bad)
        with pytest.raises(argparse.ArgumentTypeError):
            parse.path_argument(bad)
    with pytest.raises(
        argparse.ArgumentTypeError,
        match="'gs://bucket/x': give a file or directory of this machine",
    ):
        parse.path_argument("gs://bucket/x")


@pytest.mark.parametrize(
    "text", ["0", "-1", "11", "1.5", "nan", "inf", "", "x", "9" * 5000, "1e400", "²"], ids=range(11)
)
def test_whole_numbers_out_of_range_are_refused(text):
    with pytest.raises(
        argparse.ArgumentTypeError, match="give a whole number from 1 to 10"
    ) as caught:
        parse.int_argument(1, 10)(text)
    assert len(str(caught.value)) < 200


def test_whole_numbers_are_read():
    read = parse.int_argument()
    assert (read("7"), read("1e6"), read("500_000")) == (7, 1_000_000, 500_000)
    with pytest.raises(argparse.ArgumentTypeError, match="give a whole number of 1 or more"):
        read("1e19")


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "", "x", "1e308", "101"])
def test_numbers_out_of_range_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="give a number above 0 and at most 100"):
        parse.float_argument(0, 100, above=True)(text)


def test_numbers_are_read():
    assert parse.float_argument(0, 1)("0.5") == 0.5 and parse.float_argument(0, 1)("0") == 0
