"""The SQLite file of the chat page: accounts and conversations.

It is in WAL mode with every commit synced, so that what was answered as stored is there after a
`kill -9`. The file, which holds conversations and hashes of passwords, is for its owner alone.
"""

import contextlib
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

APPLICATION_ID = 0x67707463  # "gptc", of SQLite's header: another program's file is refused
BUSY_S = 10.0  # seconds for which another process may hold the file
SCHEMA = (
    """
    CREATE TABLE secrets (name TEXT PRIMARY KEY, value BLOB NOT NULL);
    CREATE TABLE users (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        password TEXT NOT NULL,
        epoch INTEGER NOT NULL,
        settings TEXT NOT NULL
    );
    CREATE TABLE conversations (
        id TEXT PRIMARY KEY,
        user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        title TEXT NOT NULL,
        created REAL NOT NULL,
        updated REAL NOT NULL
    );
    CREATE INDEX conversations_of_user ON conversations (user_id, updated);
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        role TEXT NOT NULL,
        content TEXT NOT NULL,
        files TEXT NOT NULL,
        finish_reason TEXT,
        tokens TEXT,
        created REAL NOT NULL
    );
    CREATE INDEX messages_of_conversation ON messages (conversation_id, id);
    """,
)  # the script i makes version i + 1 of version i


class Database:
    """A connection to the file, for all threads of this process.

    secret: random bytes of this file, with which sessions are signed. Raises ValueError for a file
    that is no such database, or is of a later version.
    """

    def __init__(self, file: Path):
        self._lock = threading.Lock()
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))  # SQLite's own mode is the umask's
        self._connection = sqlite3.connect(
            file, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(file)
        except sqlite3.DatabaseError as error:
            self.close()
            raise ValueError(
                f"{file} is no file of the chat page ({error}): give another"
            ) from None
        except BaseException:
            self.close()
            raise

    def _prepare(self, file: Path) -> None:
        self._connection.row_factory = sqlite3.Row
        for name, value in [("foreign_keys", "ON"), ("secure_delete", "ON")]:
            self._connection.execute(f"PRAGMA {name} = {value}")
        with self.transaction() as connection:
            version = _number(connection, "user_version")
            is_own = _number(connection, "application_id") == APPLICATION_ID
            is_empty = not connection.execute("SELECT 1 FROM sqlite_master").fetchone()
            if not (is_own or is_empty):
                raise ValueError(f"{file} is another program's database: give another file")
            if version > len(SCHEMA):
                raise ValueError(
                    f"{file} is of version {version} of the chat page's tables, which this program "
                    f"knows up to {len(SCHEMA)}: use the gptjax that wrote it"
                )
            for script in SCHEMA[version:]:
                for statement in script.split(";"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {len(SCHEMA)}")
            connection.execute(
                "INSERT OR IGNORE INTO secrets VALUES ('session', ?)", (secrets.token_bytes(32),)
            )
            row = connection.execute("SELECT value FROM secrets WHERE name = 'session'").fetchone()
        self.secret = bytes(row["value"])
        self._connection.execute("PRAGMA journal_mode = WAL")

    def transaction(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """Yields the connection in a transaction: all that is done is kept, or, after an exception,
        none of it."""
        return self._begin("BEGIN IMMEDIATE")

    def snapshot(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        """Yields the connection in a transaction for reading, which another process that writes
        does not hold up."""
        return self._begin("BEGIN DEFERRED")

    @contextlib.contextmanager
    def _begin(self, statement: str) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute(statement)
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def forget(self) -> None:
        """Empties the log of changes, so that what was deleted is in no file any more."""
        with self._lock:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()


def _number(connection: sqlite3.Connection, name: str) -> int:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]
