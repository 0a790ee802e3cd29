"""The tables of the embedded log, and each statement that reads or changes them.

Every function takes the connection of a transaction that ``sqlite_file`` opened. Used by ``sqlite_log``.
"""

from __future__ import annotations

import json
import sqlite3
import time

from orthanc_plugin.wire.log import LogRecord

APPLICATION_ID = 0x50524B4A  # "PRKJ"
FORMAT = 1
PARTITION = 0
_TRIM_ROWS = 1000

TABLES = """
CREATE TABLE topic (
    name TEXT PRIMARY KEY, first_offset INTEGER NOT NULL, next_offset INTEGER NOT NULL, bytes INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE record (
    topic TEXT NOT NULL, offset INTEGER NOT NULL, key TEXT NOT NULL, headers TEXT NOT NULL, value BLOB NOT NULL,
    timestamp_ms INTEGER NOT NULL, PRIMARY KEY (topic, offset)
);
CREATE INDEX record_by_time ON record (topic, timestamp_ms);
CREATE TABLE consumer (
    grp TEXT NOT NULL, topic TEXT NOT NULL, committed INTEGER NOT NULL, PRIMARY KEY (grp, topic)
) WITHOUT ROWID;
-- A record handed out (member set) or done beyond the committed offset (member null).
CREATE TABLE delivery (
    grp TEXT NOT NULL, topic TEXT NOT NULL, offset INTEGER NOT NULL, key TEXT NOT NULL, member TEXT,
    PRIMARY KEY (grp, topic, offset)
) WITHOUT ROWID;
CREATE INDEX delivery_by_key ON delivery (grp, topic, key);
CREATE TABLE member (
    id TEXT PRIMARY KEY, grp TEXT NOT NULL, boot TEXT NOT NULL, namespace TEXT NOT NULL, pid INTEGER NOT NULL,
    started TEXT NOT NULL, beat_s REAL NOT NULL
) WITHOUT ROWID;
"""

# The oldest record that is neither handed out nor done, and none of whose key is with another member.
NEXT = """
SELECT r.offset, r.key, r.headers, r.value, r.timestamp_ms FROM record r
WHERE r.topic = :topic AND r.offset >= (SELECT committed FROM consumer WHERE grp = :grp AND topic = :topic)
  AND NOT EXISTS (SELECT 1 FROM delivery d WHERE d.grp = :grp AND d.topic = :topic AND d.offset = r.offset)
  AND (r.key = '' OR NOT EXISTS (SELECT 1 FROM delivery d WHERE d.grp = :grp AND d.topic = :topic AND d.key = r.key
                                 AND d.member IS NOT NULL AND d.member <> :me))
ORDER BY r.offset LIMIT 1
"""


def append(db: sqlite3.Connection, topic: str, row: tuple[str, str, bytes, int]) -> int:
    """Add (key, headers, value, timestamp_ms) at the end; return its offset."""
    db.execute("INSERT OR IGNORE INTO topic VALUES (?, 0, 0, 0)", (topic,))
    offset = next_offset(db, topic)
    key, headers, value, _ = row
    size = len(key.encode()) + len(headers.encode()) + len(value)
    db.execute("INSERT INTO record VALUES (?, ?, ?, ?, ?, ?)", (topic, offset, *row))
    db.execute("UPDATE topic SET next_offset = next_offset + 1, bytes = bytes + ? WHERE name = ?", (size, topic))
    return offset


def trim(db: sqlite3.Connection, topic: str, retention_s: float, retention_bytes: int) -> bool:
    """Drop the oldest records that every group has committed and that exceed a limit; True if any."""
    floor, total = db.execute(
        "SELECT coalesce((SELECT min(committed) FROM consumer WHERE topic = name), next_offset), bytes"
        " FROM topic WHERE name = ?",
        (topic,),
    ).fetchone()
    oldest_ms = time.time() * 1000 - retention_s * 1000
    dropped_to = None
    rows = db.execute(
        "SELECT offset, timestamp_ms, length(value) + length(CAST(key AS BLOB)) + length(CAST(headers AS BLOB))"
        " FROM record WHERE topic = ? AND offset < ? ORDER BY offset LIMIT ?",
        (topic, floor, _TRIM_ROWS),
    )
    for offset, timestamp_ms, size in rows:
        if timestamp_ms >= oldest_ms and total <= retention_bytes:
            break
        dropped_to, total = offset + 1, total - size
    if dropped_to is None:
        return False
    db.execute("DELETE FROM record WHERE topic = ? AND offset < ?", (topic, dropped_to))
    db.execute("UPDATE topic SET first_offset = ?, bytes = ? WHERE name = ?", (dropped_to, total, topic))
    return True


def record(topic: str, row: tuple[int, str, str, bytes, int]) -> LogRecord:
    """Record from (offset, key, headers, value, timestamp_ms)."""
    offset, key, headers, value, timestamp_ms = row
    return LogRecord(topic, PARTITION, offset, key, json.loads(headers), value, timestamp_ms)


def next_offset(db: sqlite3.Connection, topic: str) -> int:
    """Offset of the record that is appended next; 0 for a topic not known."""
    row = db.execute("SELECT next_offset FROM topic WHERE name = ?", (topic,)).fetchone()
    return int(row[0]) if row else 0


def first_offset(db: sqlite3.Connection, topic: str) -> int:
    """Offset of the oldest record that is kept."""
    row = db.execute("SELECT first_offset FROM topic WHERE name = ?", (topic,)).fetchone()
    return int(row[0]) if row else 0


def offset_at_time(db: sqlite3.Connection, topic: str, timestamp_ms: int) -> int:
    """Offset of the first record not older than this; the end if there is none."""
    query = "SELECT min(offset) FROM record WHERE topic = ? AND timestamp_ms >= ?"
    found = db.execute(query, (topic, timestamp_ms)).fetchone()[0]
    return next_offset(db, topic) if found is None else int(found)


def committed(db: sqlite3.Connection, group: str, topic: str) -> int:
    """End of what the group has done without a gap; the oldest offset for a new group."""
    row = db.execute("SELECT committed FROM consumer WHERE grp = ? AND topic = ?", (group, topic)).fetchone()
    return int(row[0]) if row else first_offset(db, topic)


def is_done(db: sqlite3.Connection, group: str, record: LogRecord) -> bool:
    """True when the group has this record as done, whoever did it."""
    query = "SELECT 1 FROM delivery WHERE grp = ? AND topic = ? AND offset = ? AND member IS NULL"
    beyond = db.execute(query, (group, record.topic, record.offset)).fetchone() is not None
    return beyond or record.offset < committed(db, group, record.topic)


def advance(db: sqlite3.Connection, group: str, topic: str) -> None:
    """Move the committed offset to the end of the contiguous done prefix."""
    end = committed(db, group, topic)
    done = "SELECT offset FROM delivery WHERE grp = ? AND topic = ? AND offset >= ? AND member IS NULL ORDER BY offset"
    for (offset,) in db.execute(done, (group, topic, end)):
        if offset != end:
            break
        end += 1
    db.execute("UPDATE consumer SET committed = ? WHERE grp = ? AND topic = ?", (end, group, topic))
    db.execute("DELETE FROM delivery WHERE grp = ? AND topic = ? AND offset < ?", (group, topic, end))


def move(db: sqlite3.Connection, group: str, topic: str, offset: int) -> None:
    """Set the committed offset within what exists; whatever was handed out is fenced."""
    end = min(max(offset, first_offset(db, topic)), next_offset(db, topic))
    db.execute("UPDATE consumer SET committed = ? WHERE grp = ? AND topic = ?", (end, group, topic))
    db.execute("DELETE FROM delivery WHERE grp = ? AND topic = ?", (group, topic))


def bury(db: sqlite3.Connection, member: str) -> None:
    """Remove a member; its records are free again."""
    db.execute("DELETE FROM delivery WHERE member = ?", (member,))
    db.execute("DELETE FROM member WHERE id = ?", (member,))
