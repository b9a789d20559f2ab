"""The file: who may read it, what is no such file, and that kill -9 loses nothing."""

import contextlib
import sqlite3
import subprocess
import sys

import pytest

from gptjax.server.chat_page import accounts, conversations, database

WRITER = """
import os, pathlib, signal, sys
from gptjax.server.chat_page import accounts, conversations, database
users = database.Database(pathlib.Path(sys.argv[1]))
table = conversations.Conversations(users)
place = table.create(1)
turn = conversations.Turn(replaces=None, content="kept", files=[])
_, answer = table.begin_turn(1, place, turn)
table.save_answer(answer, "so far", None, None)
print(place, flush=True)
with users.transaction() as connection:
    connection.execute("DELETE FROM conversations")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_server_leaves_every_conversation(tmp_path):
    file = tmp_path / "users.sqlite"
    with contextlib.closing(database.Database(file)) as users:
        accounts.Accounts(users).put("ann", "annann12")
        secret = users.secret
    child = subprocess.run([sys.executable, "-c", WRITER, file], capture_output=True, text=True)
    assert child.returncode == -9, child.stderr
    with contextlib.closing(database.Database(file)) as users:
        table = conversations.Conversations(users)
        question, answer = table.read(1, child.stdout.strip())
        assert (question.content, answer.content) == ("kept", "so far")
        assert answer.finish_reason == "interrupted"
        assert users.secret == secret  # sessions go on


def test_it_is_for_its_owner_alone(users, tmp_path):
    files = list(tmp_path.iterdir())
    assert len(files) == 3 and {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_other_files_are_refused_and_left_alone(tmp_path):
    text, other, later = tmp_path / "text", tmp_path / "other.sqlite", tmp_path / "later.sqlite"
    text.write_text("no database at all" * 100)
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    database.Database(later).close()
    with contextlib.closing(sqlite3.connect(later)) as connection:
        connection.execute("PRAGMA user_version = 99")
    for file, words in [
        (text, "is no file of the chat page"),
        (other, "another program's database"),
        (later, "version 99"),
    ]:
        before = file.read_bytes()
        with pytest.raises(ValueError, match=words):
            database.Database(file)
        assert file.read_bytes() == before


def test_what_is_deleted_is_in_no_file(users, tmp_path):
    table = conversations.Conversations(users)
    place = table.create(1)
    turn = conversations.Turn(replaces=None, content="a secret word", files=[])
    table.begin_turn(1, place, turn)
    assert any(b"a secret word" in file.read_bytes() for file in tmp_path.iterdir())
    table.delete(1, place)
    assert not any(b"a secret word" in file.read_bytes() for file in tmp_path.iterdir())


def test_a_transaction_is_whole_or_not_at_all(users):
    with pytest.raises(ZeroDivisionError), users.transaction() as connection:
        connection.execute("DELETE FROM users")
        raise ZeroDivisionError
    assert accounts.Accounts(users).count() == 2
