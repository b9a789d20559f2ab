"""Accounts of the chat page: names, passwords as Argon2id hashes (RFC 9106), and settings."""

import dataclasses
import json
import re
import unicodedata
from typing import Any

import argon2

from gptjax.config import parse
from gptjax.server.chat_page.database import Database

NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")
MIN_PASSWORD_CHARS, MAX_PASSWORD_CHARS = 8, 1000


@dataclasses.dataclass(frozen=True)
class User:
    """A row of the table. epoch: sessions of an earlier one are over."""

    id: int
    name: str
    epoch: int


class Accounts:
    """The accounts of a database."""

    def __init__(self, database: Database):
        self._database, self._hasher = database, argon2.PasswordHasher()
        self._dummy = self._hasher.hash("")  # what an unknown name's password is compared with

    def put(self, name: str, password: str) -> bool:
        """Adds an account, or gives one a new password, which ends its sessions. Returns whether it
        is new. Raises ValueError for a name or password that is not allowed."""
        if not NAME.fullmatch(name):
            raise ValueError(
                f"{parse.quote(name)} is no name of an account: give 1 to 64 letters of ASCII, "
                "digits and . _ @ -"
            )
        if not MIN_PASSWORD_CHARS <= len(password) <= MAX_PASSWORD_CHARS:
            raise ValueError(
                f"the password has {len(password):,} characters: give {MIN_PASSWORD_CHARS} to "
                f"{MAX_PASSWORD_CHARS:,}"
            )
        digest = self._hasher.hash(_normalize(password))
        with self._database.transaction() as connection:
            is_new = not connection.execute(
                "SELECT 1 FROM users WHERE name = ?", (name,)
            ).fetchone()
            connection.execute(
                "INSERT INTO users (name, password, epoch, settings) VALUES (?, ?, 0, '{}') "
                "ON CONFLICT (name) DO UPDATE SET password = excluded.password, epoch = epoch + 1",
                (name, digest),
            )
        return is_new

    def count(self) -> int:
        """How many accounts there are."""
        with self._database.snapshot() as connection:
            return connection.execute("SELECT count(*) FROM users").fetchone()[0]

    def verify(self, name: str, password: str) -> User | None:
        """Returns whose name and password these are. How long it takes does not show whether there
        is an account of that name: one hash is computed in any case."""
        with self._database.snapshot() as connection:
            row = connection.execute("SELECT * FROM users WHERE name = ?", (name,)).fetchone()
        try:
            self._hasher.verify(row["password"] if row else self._dummy, _normalize(password))
        except argon2.exceptions.VerificationError:
            return None
        return _user(row) if row else None

    def find(self, user_id: int, epoch: int) -> User | None:
        """Returns the user of a session, if that is not over."""
        with self._database.snapshot() as connection:
            row = connection.execute(
                "SELECT * FROM users WHERE id = ? AND epoch = ?", (user_id, epoch)
            ).fetchone()
        return _user(row) if row else None

    def end_sessions(self, user: User) -> None:
        """Ends all sessions of a user."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE users SET epoch = epoch + 1 WHERE id = ?", (user.id,))

    def settings(self, user: User) -> dict[str, Any]:
        """The settings that were stored."""
        with self._database.snapshot() as connection:
            row = connection.execute("SELECT settings FROM users WHERE id = ?", (user.id,))
            return json.loads(row.fetchone()["settings"])

    def save_settings(self, user: User, settings: dict[str, Any]) -> None:
        """Stores settings, in place of those before."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE users SET settings = ? WHERE id = ?", (json.dumps(settings), user.id)
            )


def _normalize(password: str) -> bytes:
    """One spelling of characters that keyboards compose differently (NIST SP 800-63B, 5.1.1.2)."""
    return unicodedata.normalize("NFKC", password).encode(errors="surrogatepass")


def _user(row: Any) -> User:
    return User(row["id"], row["name"], row["epoch"])
