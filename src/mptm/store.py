# SPDX-License-Identifier: GPL-2.0-only
"""Where the intent of an instance survives: one SQLite file, and a lock file beside it.

Both are for root only: who may read a file may also lock it, and so keep every command waiting.

What is wanted is kept whole (`objects`), what the data plane was last brought to as the difference from it (`undo`):
an object as it was, or that there was none. `generation` counts changes of the first, `applied_generation` is the one
that the second stands for. When they differ a command was interrupted, and the next one completes it or goes back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from mptm.bundlefile import BundleFiles
from mptm.errors import Busy, MptmError
from mptm.instance import check_instance_name
from mptm.memory import without_collection

if TYPE_CHECKING:
    from mptm.compile import Allocations
    from mptm.intent import Intent, Object

Bodies = dict[tuple[str, str], str | None]
"""Objects as they are stored, by kind and key; None: there is none."""

SCHEMA_VERSION = 3
LOCK_WAIT_SECONDS = 10.0
LOCK_POLL_SECONDS = 0.02
DEFAULT_STATE_DIRECTORY = Path("/var/lib/mptm")

_PRIVATE = 0o600
_DAMAGED = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))
_NO_ROOM = frozenset((sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR))
_LOCKED = frozenset((sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED))

_SCHEMA = """
CREATE TABLE objects (kind TEXT, key TEXT, body TEXT NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE TABLE undo (kind TEXT, key TEXT, body TEXT, PRIMARY KEY (kind, key)) WITHOUT ROWID;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""


def _migrate_to_3(connection: sqlite3.Connection) -> None:
    """Of what was applied, which stood there whole, keep what isn't as it is wanted."""
    connection.execute(
        "CREATE TABLE undo (kind TEXT, key TEXT, body TEXT, PRIMARY KEY (kind, key)) WITHOUT ROWID"
    )
    for query in (
        "SELECT kind, key, applied.body FROM applied LEFT JOIN objects USING (kind, key)"
        " WHERE objects.body IS NOT applied.body",
        "SELECT kind, key, NULL FROM objects LEFT JOIN applied USING (kind, key) WHERE applied.body IS NULL",
    ):
        connection.execute(f"INSERT INTO undo {query}")
    connection.execute("DROP TABLE applied")


MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {
    1: lambda _: (
        None
    ),  # the tables are the same; objects have fields, and are of kinds, that version 1 refuses
    2: _migrate_to_3,
}
"""Schema version -> what brings a file of that version to the next one; runs inside the writing transaction."""


def state_directory(instance: str) -> Path:
    """Directory of an instance's state: below MPTM_STATE_DIR or /var/lib/mptm. Raises InvalidIntent for the name."""
    check_instance_name(instance)
    return Path(os.environ.get("MPTM_STATE_DIR") or DEFAULT_STATE_DIRECTORY) / instance


def instances() -> list[str]:
    """Names of the instances that have state on this machine."""
    base = Path(os.environ.get("MPTM_STATE_DIR") or DEFAULT_STATE_DIRECTORY)
    try:
        return sorted(entry.name for entry in base.iterdir() if (entry / "state.db").exists())
    except OSError:
        return []


@dataclass(frozen=True)
class Snapshot:
    """What the store held at one moment.

    `allocations` belong to `intent`; `applied` and `applied_allocations` are what the data plane was last brought to.
    """

    intent: Intent
    allocations: Allocations
    applied: Intent
    applied_allocations: Allocations
    generation: int = 0
    applied_generation: int = 0
    meta: dict[str, str] = field(default_factory=dict)
    stored: tuple[StoredObjects, ...] = ()
    """Sections of the intent that are read when they are needed."""

    def load(self) -> None:
        """Read what hasn't been read yet: before anything is written."""
        for section in self.stored:
            section.load()

    @property
    def interrupted(self) -> bool:
        """A command wrote its intent and didn't live to apply it."""
        return self.generation != self.applied_generation


class Store:
    """The state of one instance in `directory` (created at the first write)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "state.db"
        self.lock_path = directory / "lock"
        self.bundles = BundleFiles(directory / "bundles")

    def exists(self) -> bool:
        """Whether anything was ever written."""
        try:
            return self.path.stat().st_size > 0
        except OSError:
            return False

    @contextlib.contextmanager
    def lock(
        self, *, wait_seconds: float = LOCK_WAIT_SECONDS, progress: Callable[[str], None] | None = None
    ) -> Iterator[None]:
        """Hold the instance; one process at a time. Raises Busy, naming the process that holds it."""
        descriptor = self._acquire(time.monotonic() + wait_seconds, progress)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, 0)
            # After a purge the lock file that is there now, if any, is another command's.
            if self._is_current(descriptor) and not self.exists():
                self.delete()
            os.close(descriptor)

    def _acquire(self, deadline: float, progress: Callable[[str], None] | None) -> int:
        said = progress is None
        started = time.monotonic()
        while True:
            descriptor = self._open_lock_file()
            if descriptor is None:
                continue
            try:
                flock(descriptor, LOCK_EX | LOCK_NB)
                if self._is_current(descriptor):
                    return descriptor
            except BlockingIOError:
                holder = self._holder()
            else:
                os.close(descriptor)
                continue
            os.close(descriptor)
            if time.monotonic() >= deadline:
                raise Busy(
                    f"another mptm command{holder} holds instance {self.directory.name}",
                    "wait for it to end, or look what it is doing",
                )
            if not said and progress is not None and time.monotonic() - started > 1:
                progress(f"waiting for another mptm command{holder}")
                said = True
            time.sleep(LOCK_POLL_SECONDS)

    def _open_lock_file(self) -> int | None:
        """None when a purge removed the directory right now."""
        self._make_directory()
        try:
            return _open_private(self.lock_path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _cannot("write", self.lock_path, error) from error

    def _is_current(self, descriptor: int) -> bool:
        """False when the lock file was deleted (purge) between open and lock."""
        try:
            return os.fstat(descriptor).st_ino == self.lock_path.stat().st_ino
        except FileNotFoundError:
            return False

    def _holder(self) -> str:
        try:
            pid = self.lock_path.read_text().strip()
        except OSError:
            pid = ""
        return f" (pid {pid})" if pid else ""

    def read(self, *, whole: bool = True) -> Snapshot:
        """The state as it is; an empty one where nothing was written. Raises MptmError when it can't be read.

        Not `whole`, for who holds the lock: routes and flows of a state that is applied are read one by one when they
        are needed, for as long as nothing more has been marked applied.
        """
        from mptm.compile import Allocations
        from mptm.intent import KINDS, STEERING, Intent

        nothing = Snapshot(Intent(), Allocations(), Intent(), Allocations())
        if not self.exists():
            return nothing
        with self._connect(write=False) as connection:
            if _version(connection) == 0:  # the very first write was interrupted, and has just been undone
                return nothing
            meta = dict(connection.execute("SELECT key, value FROM meta"))
            later = () if whole or _is_interrupted(meta) else STEERING
            now = [kind for kind in KINDS if kind not in later]
            objects = _read_objects(connection, "objects", now if later else None)
            undone = _undone(connection)
        with without_collection():
            intent = _intent_of(objects)
            applied = _intent_of({**objects, **undone}) if undone else intent
        stored = tuple(StoredObjects(self, kind) for kind in later)
        if stored:
            sections = {f"{section.kind}s": section for section in stored}
            intent = applied = msgspec.structs.replace(intent, **sections)
        return Snapshot(
            intent=intent,
            allocations=_decode_allocations(meta.pop("allocations", None)),
            applied=applied,
            applied_allocations=_decode_allocations(meta.pop("applied_allocations", None)),
            generation=int(meta.pop("generation", 0)),
            applied_generation=int(meta.pop("applied_generation", 0)),
            meta=meta,
            stored=stored,
        )

    def write(self, intent: Intent, allocations: Allocations, meta: dict[str, str] | None = None) -> int:
        """Store what is wanted in one transaction, and return its generation. The caller holds the lock."""
        wanted = _objects_of(intent)
        with self._connect(write=True) as connection:
            stored = _read_objects(connection, "objects")
            changes: Bodies = {key: None for key in stored if key not in wanted}
            changes |= {key: body for key, body in wanted.items() if stored.get(key) != body}
            return _store(connection, changes, allocations, meta)

    def write_changes(
        self,
        changes: Mapping[tuple[str, str], Object | None],
        allocations: Allocations,
        meta: dict[str, str] | None = None,
    ) -> int:
        """The same for what changes only: by kind and key, None for what there is none of any more."""
        bodies = {key: None if obj is None else _encode(obj) for key, obj in changes.items()}
        with self._connect(write=True) as connection:
            return _store(connection, bodies, allocations, meta)

    def remember(self, meta: dict[str, str]) -> None:
        """Store facts beside the intent, which stays as it is. The caller holds the lock."""
        with self._connect(write=True) as connection:
            _set_meta(connection, meta)

    def mark_applied(self, generation: int, meta: dict[str, str] | None = None) -> None:
        """The data plane now does what `generation` wants. The caller holds the lock."""
        with self._connect(write=True) as connection:
            connection.execute("DELETE FROM undo")
            _set_meta(
                connection,
                {
                    "applied_generation": str(generation),
                    "applied_allocations": _get_meta(connection, "allocations") or "{}",
                    **(meta or {}),
                },
            )

    def roll_back(self) -> Snapshot:
        """Want again what was last applied; returns the state. The caller holds the lock, and synchronises."""
        with self._connect(write=True) as connection:
            connection.execute(
                "DELETE FROM objects WHERE (kind, key) IN (SELECT kind, key FROM undo WHERE body IS NULL)"
            )
            connection.execute("INSERT OR REPLACE INTO objects SELECT * FROM undo WHERE body IS NOT NULL")
            connection.execute("DELETE FROM undo")
            _set_meta(
                connection,
                {
                    "generation": _get_meta(connection, "applied_generation") or "0",
                    "allocations": _get_meta(connection, "applied_allocations") or "{}",
                },
            )
        return self.read()

    def tidy_bundles(self) -> None:
        """Remove the flows of bundles that are neither wanted nor applied. The caller holds the lock.

        Raises MptmError.
        """
        if not self.bundles.directory.exists():
            return
        used: set[str] = set()
        if self.exists():
            with self._connect(write=False) as connection:
                for table in ("objects", "undo"):
                    bodies = _read_objects(connection, table, ("bundle",)).values()
                    used |= {msgspec.json.decode(body)["content"] for body in bodies if body}
        try:
            self.bundles.tidy(used)
        except OSError as error:
            raise _cannot("tidy", self.bundles.directory, error) from error

    def delete(self) -> None:
        """Remove every trace of the instance. The caller holds the lock."""
        for path in (self.path, self.path.with_name("state.db-journal"), self.lock_path):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.bundles.delete()
            self.directory.rmdir()

    def _make_directory(self) -> None:
        try:
            self.directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot("create", self.directory, error) from error

    @contextlib.contextmanager
    def _connect(self, *, write: bool) -> Iterator[sqlite3.Connection]:
        """A connection within one transaction of the current schema version: all of it or nothing of it."""
        # Reading, too, is done with the right to write where there is one: what a killed command half wrote is undone,
        # and a file of an older version brought to this one, by who reads next.
        may_write = write or (os.access(self.path, os.W_OK) and os.access(self.directory, os.W_OK))
        if write:
            self._create()
        elif not os.access(self.path, os.R_OK):
            raise MptmError(
                f"reading the state of instance {self.directory.name} needs root ({self.path})",
                "run it with sudo",
            )
        try:
            connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={'rw' if may_write else 'ro'}",
                uri=True,
                isolation_level=None,
                timeout=LOCK_WAIT_SECONDS,
            )
            try:
                if may_write and not write and 0 < _version(connection) < SCHEMA_VERSION:
                    connection.execute("BEGIN IMMEDIATE")
                    self._check_version(connection, write=True)
                    connection.execute("COMMIT")
                if write:
                    connection.execute(
                        "PRAGMA journal_mode = TRUNCATE"
                    )  # a file is not made and deleted each time
                connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                self._check_version(connection, write)
                yield connection
                connection.execute("COMMIT")
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def _create(self) -> None:
        """See to it that there is a state file, for its owner only.

        One that is there isn't opened for it: closing it would end the locks that this process has on it (fcntl(2)).
        """
        self._make_directory()
        try:
            if not self.path.exists():
                os.close(_open_private(self.path))
            elif stat.S_IMODE(self.path.stat().st_mode) != _PRIVATE:
                self.path.chmod(_PRIVATE)
        except OSError as error:
            raise _cannot("write", self.path, error) from error

    def _failure(self, error: sqlite3.Error) -> MptmError:
        code = (
            getattr(error, "sqlite_errorcode", 0) & 0xFF
        )  # the rest of an extended code says it in more detail
        if code in _LOCKED:
            return Busy(
                f"another process has {self.path} locked",
                f"`fuser -v {self.path}` names it; try again when it has ended",
            )
        if code in _DAMAGED:
            return MptmError(
                f"{self.path} is damaged: {error}",
                "put back a copy of it; or `mptm purge`, and `mptm apply` of a file that `mptm export` wrote",
            )
        if code in _NO_ROOM:
            return MptmError(
                f"{self.path}: {error}", f"`df {self.directory}` and `dmesg` say how the disk is"
            )
        return MptmError(f"{self.path}: {error}", f"check the rights: `ls -la {self.directory}`")

    def _check_version(self, connection: sqlite3.Connection, write: bool) -> None:
        version = _version(connection)
        if version > SCHEMA_VERSION:
            raise MptmError(
                f"{self.path} was written by a newer MPTM (schema {version}, this one knows {SCHEMA_VERSION})",
                "install that version again, or `mptm purge`",
            )
        if version == SCHEMA_VERSION or (version == 0 and not write):
            return
        if not write:
            raise MptmError(
                f"{self.path} is of an older MPTM (schema {version})",
                "any command run as root brings it up to date",
            )
        if version == 0:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
        else:
            for old in range(version, SCHEMA_VERSION):
                MIGRATIONS[old](connection)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _open_private(path: Path) -> int:
    """A descriptor of a file that is made where it isn't there, and that nobody but its owner may open any more."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE)
    if stat.S_IMODE(os.fstat(descriptor).st_mode) != _PRIVATE:
        os.fchmod(descriptor, _PRIVATE)
    return descriptor


def _cannot(verb: str, path: Path, error: OSError) -> MptmError:
    hint = None
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = "run it as root (sudo), or set MPTM_STATE_DIR to a directory of yours"
    return MptmError(f"can't {verb} {path}: {os.strerror(error.errno or 0)}", hint)


def _version(connection: sqlite3.Connection) -> int:
    """The file's schema version; 0 when nothing was written yet."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _read_objects(
    connection: sqlite3.Connection, table: str, kinds: Collection[str] | None = None
) -> dict[tuple[str, str], str]:
    """Bodies by kind and key, of some kinds or all; rows of others aren't looked at."""
    where = "" if kinds is None else f"WHERE kind IN ({', '.join('?' * len(kinds))})"
    rows = connection.execute(
        f"SELECT kind, key, body FROM {table} {where} ORDER BY kind, key", tuple(kinds or ())
    )
    return {(kind, key): body for kind, key, body in rows}


def _undone(connection: sqlite3.Connection) -> Bodies:
    """What was applied where that differs from what is wanted."""
    return {(kind, key): body for kind, key, body in connection.execute("SELECT kind, key, body FROM undo")}


def _store(
    connection: sqlite3.Connection, changes: Bodies, allocations: Allocations, meta: dict[str, str] | None
) -> int:
    """Change objects, remembering how those were that haven't changed since the last that was applied."""
    connection.executemany(
        "INSERT OR IGNORE INTO undo VALUES (?1, ?2, (SELECT body FROM objects WHERE kind = ?1 AND key = ?2))",
        changes,
    )
    connection.executemany(
        "DELETE FROM objects WHERE kind = ? AND key = ?",
        [key for key, body in changes.items() if body is None],
    )
    connection.executemany(
        "INSERT OR REPLACE INTO objects VALUES (?, ?, ?)",
        [(*key, body) for key, body in changes.items() if body is not None],
    )
    generation = int(_get_meta(connection, "generation") or 0) + 1
    encoded = msgspec.json.encode(allocations).decode()
    _set_meta(connection, {"generation": str(generation), "allocations": encoded, **(meta or {})})
    return generation


class StoredObjects(Mapping[str, Any]):
    """The objects of a kind that were last applied, each read when it is asked for. See `Store.read`."""

    def __init__(self, store: Store, kind: str) -> None:
        self.kind = kind
        self._store = store
        self._all: dict[str, Any] | None = None

    def load(self) -> dict[str, Any]:
        """Read all of them; what is written afterwards makes no difference."""
        if self._all is None:
            with self._store._connect(write=False) as connection:
                bodies: Bodies = {**_read_objects(connection, "objects", (self.kind,))}
                bodies |= {key: body for key, body in _undone(connection).items() if key[0] == self.kind}
            with without_collection():
                self._all = {key: _decode(self.kind, body) for (_, key), body in bodies.items() if body}
        return self._all

    def __getitem__(self, key: str) -> Any:
        if self._all is not None:
            return self._all[key]
        with self._store._connect(write=False) as connection:
            for table in ("undo", "objects"):
                row = connection.execute(
                    f"SELECT body FROM {table} WHERE kind = ? AND key = ?", (self.kind, key)
                ).fetchone()
                if row is not None:
                    break
        if row is None or row[0] is None:
            raise KeyError(key)
        return _decode(self.kind, row[0])

    def __iter__(self) -> Iterator[str]:
        return iter(self.load())

    def __len__(self) -> int:
        if self._all is None:
            with self._store._connect(write=False) as connection:
                if not _undone(connection):
                    count = connection.execute("SELECT count(*) FROM objects WHERE kind = ?", (self.kind,))
                    return int(count.fetchone()[0])
        return len(self.load())


def _get_meta(connection: sqlite3.Connection, key: str) -> str | None:
    row = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if row is None else str(row[0])


def _set_meta(connection: sqlite3.Connection, values: dict[str, str]) -> None:
    connection.executemany("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", values.items())


def _is_interrupted(meta: Mapping[str, str]) -> bool:
    return meta.get("generation") != meta.get("applied_generation")


def _encode(obj: Object) -> str:
    return msgspec.json.encode(obj.to_dict()).decode()


def _decode(kind: str, body: str) -> Object:
    from mptm.intent import object_from_dict

    return object_from_dict(kind, msgspec.json.decode(body))


def _objects_of(intent: Intent) -> dict[tuple[str, str], str]:
    return {(obj.kind, obj.key): _encode(obj) for obj in intent.objects()}


def _intent_of(objects: Mapping[tuple[str, str], str | None]) -> Intent:
    from mptm.intent import Intent

    return Intent.of(_decode(kind, body) for (kind, _), body in objects.items() if body is not None)


def _decode_allocations(text: str | None) -> Allocations:
    from mptm.compile import Allocations

    return Allocations() if text is None else msgspec.json.decode(text, type=Allocations)
