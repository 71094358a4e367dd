"""Text by key, for tables that may hold more keys than memory does."""

import sqlite3
from collections.abc import Iterator


class Lookup:
    """Entries by key, of which the first counts; a few MB stay in memory, and the rest goes to a file that has no name.

    An entry is a number (the row it was read from) and a text.
    """

    def __init__(self) -> None:
        self._entries = sqlite3.connect("", isolation_level=None)  # SQLite's own temporary database
        for setting in ("journal_mode = off", "synchronous = off", "cache_size = -8192"):
            self._entries.execute(f"PRAGMA {setting}")
        self._entries.execute("CREATE TABLE entries (key TEXT PRIMARY KEY, number INT, text TEXT) WITHOUT ROWID")
        self._entries.execute("BEGIN")

    def add(self, key: str, number: int, text: str = "") -> bool:
        """Whether the key was free; where it was not, its entry stays as it is."""
        added = self._entries.execute("INSERT OR IGNORE INTO entries VALUES (?, ?, ?)", (key, number, text))
        return added.rowcount == 1

    def text(self, key: str) -> str:
        """The text of a key; empty where there is none."""
        entry = self._text(key)
        return entry[0] if entry else ""

    def __contains__(self, key: str) -> bool:
        return self._text(key) is not None

    def _text(self, key: str) -> tuple[str] | None:
        return self._entries.execute("SELECT text FROM entries WHERE key = ?", (key,)).fetchone()

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Keys and numbers, by number."""
        return iter(self._entries.execute("SELECT key, number FROM entries ORDER BY number"))
