"""Conversations of the chat page. Every function takes whose they are: another user's conversation
is not found."""

import dataclasses
import json
import secrets
import sqlite3
import threading
import time
from typing import Any

from gptjax.server.chat_page.database import Database

MAX_TITLE_CHARS = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Message:
    """A message of a conversation.

    files: {name, text} of what was sent with it. finish_reason, of answers: "stop" or "length" as
    in OpenAI's API, "content_filter" by a policy, "stopped" by the user, "interrupted"; None while
    it is written. tokens, of
    answers: log-probabilities as in OpenAI's API, if they were wanted. created: Unix time.
    """

    id: int
    role: str
    content: str
    files: list[dict[str, str]]
    finish_reason: str | None
    tokens: list[dict[str, Any]] | None
    created: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turn:
    """A change of a conversation, after which an answer is written. Messages from `replaces` on go;
    None: none. content, files: of the user's new message; content None: there is none, the last
    answer is written again."""

    replaces: int | None
    content: str | None
    files: list[dict[str, str]]


class NotFound(Exception):
    """There is no such conversation, or message in it, of this user."""


class Conversations:
    """The conversations of a database."""

    def __init__(self, database: Database):
        self._database = database
        self._saving = threading.Lock()
        self._unsaved: dict[int, tuple] = {}  # id of an answer -> what is not stored of it yet
        with database.transaction() as connection:  # what a server that ended had not written
            connection.execute(
                "UPDATE messages SET finish_reason = 'interrupted' "
                "WHERE role = 'assistant' AND finish_reason IS NULL"
            )

    def list_all(self, user_id: int) -> list[dict[str, Any]]:
        """The user's conversations, the last changed first: id, title, created, updated."""
        with self._database.snapshot() as connection:
            rows = connection.execute(
                "SELECT id, title, created, updated FROM conversations WHERE user_id = ? "
                "ORDER BY updated DESC, rowid DESC",
                (user_id,),
            ).fetchall()
        return [dict(row) for row in rows]

    def create(self, user_id: int) -> str:
        """Begins a conversation; returns its id."""
        conversation_id, now = secrets.token_urlsafe(12), time.time()
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO conversations VALUES (?, ?, '', ?, ?)",
                (conversation_id, user_id, now, now),
            )
        return conversation_id

    def check_owner(self, user_id: int, conversation_id: str) -> None:
        """Raises NotFound unless it is the user's."""
        with self._database.snapshot() as connection:
            _check_owner(connection, user_id, conversation_id)

    def read(self, user_id: int, conversation_id: str) -> list[Message]:
        """The messages of a conversation. Raises NotFound."""
        with self._database.snapshot() as connection:
            _check_owner(connection, user_id, conversation_id)
            rows = connection.execute(
                "SELECT * FROM messages WHERE conversation_id = ? ORDER BY id", (conversation_id,)
            ).fetchall()
        return [_message(row) for row in rows]

    def begin_turn(self, user_id: int, conversation_id: str, turn: Turn) -> tuple[int | None, int]:
        """Stores a turn with an empty answer. Returns the ids of the user's message, if there is
        one, and of the answer. Raises NotFound."""
        now, user_message = time.time(), None
        with self._database.transaction() as connection:
            title = _check_owner(connection, user_id, conversation_id)
            if turn.replaces is not None:
                connection.execute(
                    "DELETE FROM messages WHERE conversation_id = ? AND id >= ?",
                    (conversation_id, turn.replaces),
                )
            if turn.content is not None:
                user_message = _insert(
                    connection, conversation_id, "user", turn.content, turn.files, now
                )
            answer = _insert(connection, conversation_id, "assistant", "", [], now)
            connection.execute(
                "UPDATE conversations SET title = ?, updated = ? WHERE id = ?",
                (title or _make_title(turn), now, conversation_id),
            )
        return user_message, answer

    def save_answer(
        self,
        message_id: int,
        content: str,
        finish_reason: str | None,
        tokens: list[dict[str, Any]] | None,
    ) -> None:
        """Stores what has been written of an answer; of no effect if that was deleted. What cannot
        be stored now is stored with the next."""
        row = content, finish_reason, tokens and json.dumps(tokens), message_id
        with self._saving:
            self._unsaved[message_id] = row
            with self._database.transaction() as connection:
                connection.executemany(
                    "UPDATE messages SET content = ?, finish_reason = ?, tokens = ? WHERE id = ?",
                    self._unsaved.values(),
                )
            self._unsaved.clear()

    def delete(self, user_id: int, conversation_id: str) -> None:
        """Deletes a conversation. Raises NotFound."""
        with self._database.transaction() as connection:
            _check_owner(connection, user_id, conversation_id)
            connection.execute("DELETE FROM conversations WHERE id = ?", (conversation_id,))
        self._database.forget()

    def delete_all(self, user_id: int) -> None:
        """Deletes all conversations of a user, and the settings."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM conversations WHERE user_id = ?", (user_id,))
            connection.execute("UPDATE users SET settings = '{}' WHERE id = ?", (user_id,))
        self._database.forget()

    def export(self, user_id: int) -> list[dict[str, Any]]:
        """All conversations of a user with their messages, for JSON."""
        return [
            head | {"messages": [dataclasses.asdict(m) for m in self.read(user_id, head["id"])]}
            for head in self.list_all(user_id)
        ]


def _check_owner(connection: sqlite3.Connection, user_id: int, conversation_id: str) -> str:
    """Returns the title."""
    row = connection.execute(
        "SELECT title FROM conversations WHERE id = ? AND user_id = ?", (conversation_id, user_id)
    ).fetchone()
    if row is None:
        raise NotFound
    return row["title"]


def _insert(
    connection: sqlite3.Connection,
    conversation_id: str,
    role: str,
    content: str,
    files: list[dict[str, str]],
    now: float,
) -> int:
    row = connection.execute(
        "INSERT INTO messages (conversation_id, role, content, files, created) "
        "VALUES (?, ?, ?, ?, ?) RETURNING id",
        (conversation_id, role, content, json.dumps(files), now),
    ).fetchone()
    return row["id"]


def _message(row: sqlite3.Row) -> Message:
    fields = dict(row) | {
        "files": json.loads(row["files"]),
        "tokens": row["tokens"] and json.loads(row["tokens"]),
    }
    del fields["conversation_id"]
    return Message(**fields)


def _make_title(turn: Turn) -> str:
    text = " ".join((turn.content or "").split()) or "".join(f["name"] for f in turn.files[:1])
    is_long = len(text) > MAX_TITLE_CHARS
    return text[: MAX_TITLE_CHARS - 1] + "\u2026" if is_long else text
