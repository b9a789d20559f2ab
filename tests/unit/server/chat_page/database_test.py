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


def test_who_reads_does_not_wait_for_another_process_that_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_S", 0.0)
    file = tmp_path / "users.sqlite"
    with (
        contextlib.closing(database.Database(file)) as users,
        contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other,
    ):
        people, table = accounts.Accounts(users), conversations.Conversations(users)
        people.put("ann", "annann12")
        place = table.create(1)
        other.execute("BEGIN IMMEDIATE")
        user = people.verify("ann", "annann12")
        assert user == people.find(1, 0) and people.count() == 1 and people.settings(user) == {}
        assert table.read(1, place) == [] and len(table.list_all(1)) == 1
        table.check_owner(1, place)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            table.create(1)


def test_an_answer_that_could_not_be_stored_is_stored_with_the_next(users):
    table = conversations.Conversations(users)
    turn = conversations.Turn(replaces=None, content="x", files=[])
    (first, lost), (second, other) = [
        (place, table.begin_turn(1, place, turn)[1]) for place in (table.create(1), table.create(1))
    ]
    with users.transaction() as connection:
        pass
    connection.execute("PRAGMA query_only = ON")
    with pytest.raises(sqlite3.OperationalError):
        table.save_answer(lost, "whole", "stop", None)
    connection.execute("PRAGMA query_only = OFF")
    table.save_answer(other, "next", None, None)
    assert [table.read(1, place)[1].content for place in (first, second)] == ["whole", "next"]
    assert table.read(1, first)[1].finish_reason == "stop"
    n_before = connection.total_changes
    table.save_answer(other, "next", "stop", None)
    assert connection.total_changes == n_before + 1


def test_a_transaction_is_whole_or_not_at_all(users):
    with pytest.raises(ZeroDivisionError), users.transaction() as connection:
        connection.execute("DELETE FROM users")
        raise ZeroDivisionError
    assert accounts.Accounts(users).count() == 2
