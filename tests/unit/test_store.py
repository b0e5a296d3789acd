# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mptm.compile import Allocations, PortAllocation, TunnelAllocation
from mptm.errors import Busy, InvalidIntent, MptmError
from mptm.intent import Flow, Intent, Network, Port, Route, tunnel_from_dict
from mptm.kernel.dataplane import instance_directory
from mptm.store import MIGRATIONS, SCHEMA_VERSION, Store, _set_meta, instances, state_directory

INTENT = Intent.of(
    [
        Network(name="blue", id=1),
        Port(name="veth0", role="access", network="blue", mac="02:00:00:00:00:01"),
        tunnel_from_dict(
            {
                "name": "t",
                "protocol": "geneve",
                "network": "blue",
                "remote": "fd00::2",
                "vni": 5,
                "ttl": "inherit",
                "annotations": {"note": "ünïcode"},
            }
        ),
        tunnel_from_dict(
            {"name": "v", "protocol": "vlan", "network": "blue", "remote": "any", "egress": "eth0", "vid": 9}
        ),
        Route(network="blue", prefix="10.0.0.0/8", pass_=True),
        Flow(network="blue", source="10.0.0.1", destination="10.0.0.2", via="t", annotations={"a": "b"}),
    ]
)
ALLOCATIONS = Allocations(
    tunnels={"t": TunnelAllocation(3, 4, "ab")}, ports={"veth0": PortAllocation(7, 8)}, next_slot=4
)

HOLDER = """
import sys, time
from pathlib import Path
from mptm.store import Store
with Store(Path(sys.argv[1])).lock():
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "node")


@pytest.fixture
def holder(store: Store):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store.directory)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_reading_what_was_never_written_gives_an_empty_node_and_creates_nothing(store):
    assert store.read().intent == Intent()
    assert not store.read().interrupted
    assert not store.directory.exists()


def test_everything_that_is_written_is_read_back(store):
    generation = store.write(INTENT, ALLOCATIONS, {"netns": "n1"})
    store.mark_applied(generation, {"paths": "{}"})
    snapshot = store.read()
    assert snapshot.intent == snapshot.applied == INTENT
    assert snapshot.allocations == snapshot.applied_allocations == ALLOCATIONS
    assert snapshot.meta == {"netns": "n1", "paths": "{}"}
    assert (snapshot.generation, snapshot.applied_generation) == (1, 1)


def test_a_write_that_was_not_marked_applied_is_an_interrupted_one(store):
    store.mark_applied(store.write(INTENT, ALLOCATIONS))
    smaller = INTENT.remove("flow", "blue 10.0.0.1 10.0.0.2")
    store.write(smaller, Allocations())
    snapshot = store.read()
    assert snapshot.interrupted
    assert (snapshot.intent, snapshot.applied) == (smaller, INTENT)
    assert snapshot.applied_allocations == ALLOCATIONS


def test_rolling_back_wants_again_what_was_applied(store):
    store.mark_applied(store.write(INTENT, ALLOCATIONS))
    store.write(Intent(), Allocations())
    snapshot = store.roll_back()
    assert (snapshot.intent, snapshot.allocations) == (INTENT, ALLOCATIONS)
    assert not snapshot.interrupted


def test_rolling_back_the_first_write_leaves_an_empty_node(store):
    store.write(INTENT, ALLOCATIONS)
    assert store.roll_back().intent == Intent()


def test_a_failed_transaction_changes_nothing(store):
    store.mark_applied(store.write(INTENT, ALLOCATIONS))

    class Broken(Allocations, frozen=True):
        tunnels: object = object()  # type: ignore[assignment]

    with pytest.raises(TypeError):
        store.write(Intent(), Broken())
    assert store.read().intent == INTENT


def test_a_process_killed_while_it_writes_leaves_the_old_state(store, tmp_path):
    store.mark_applied(store.write(INTENT, ALLOCATIONS))
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom mptm import store\n"
        "from mptm.intent import Intent\nfrom mptm.compile import Allocations\n"
        "store._set_meta = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.Store(Path(sys.argv[1])).write(Intent(), Allocations())\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run(
        [sys.executable, "-c", script, str(store.directory)], env=environment, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert store.read().intent == INTENT


def test_the_lock_is_one_process_at_a_time_and_names_who_holds_it(store, holder):
    said: list[str] = []
    with pytest.raises(Busy, match=f"pid {holder.pid}"), store.lock(wait_seconds=0.1, progress=said.append):
        pass
    assert said == []


def test_waiting_for_the_lock_is_told_after_a_second(store, holder):
    said: list[str] = []
    with pytest.raises(Busy), store.lock(wait_seconds=1.3, progress=said.append):
        pass
    assert said == [f"waiting for another mptm command (pid {holder.pid})"]


def test_the_lock_of_a_killed_process_is_free(store, holder):
    holder.kill()
    holder.wait()
    with store.lock(wait_seconds=1):
        pass


def test_who_waits_while_the_state_is_purged_gets_the_new_lock(store):
    with store.lock():
        store.write(INTENT, ALLOCATIONS)
        stale = os.open(store.lock_path, os.O_RDWR)
        store.delete()
    assert not store.directory.exists()
    assert store._is_current(stale) is False
    os.close(stale)
    with store.lock(wait_seconds=0.5):
        assert store.read().intent == Intent()


def test_leaving_a_purged_instance_does_not_take_the_lock_of_who_came_next(store):
    other = Store(store.directory)
    with contextlib.ExitStack() as later:
        with store.lock():
            store.write(INTENT, ALLOCATIONS)
            store.delete()
            later.enter_context(other.lock())
        with pytest.raises(Busy), Store(store.directory).lock(wait_seconds=0.1):
            pass


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_owner_may_open_and_so_lock_the_files(store):
    with store.lock():
        store.write(INTENT, ALLOCATIONS)
        assert (mode_of(store.lock_path), mode_of(store.path)) == (0o600, 0o600)
    store.lock_path.chmod(0o644)
    store.path.chmod(0o644)
    with store.lock():
        assert mode_of(store.lock_path) == 0o600
        store.remember({"a": "b"})
        assert mode_of(store.path) == 0o600


def test_who_may_not_read_the_state_is_told_to_be_root(store, monkeypatch):
    store.write(INTENT, ALLOCATIONS)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(MptmError, match="instance node needs root") as caught:
        store.read()
    assert "sudo" in str(caught.value)


@pytest.mark.parametrize(
    "doing", [lambda store: store.read(), lambda store: store.write(INTENT, ALLOCATIONS)]
)
def test_a_file_that_somebody_has_locked_is_busy_and_not_called_damaged(store, monkeypatch, doing):
    store.write(INTENT, ALLOCATIONS)
    monkeypatch.setattr("mptm.store.LOCK_WAIT_SECONDS", 0.05)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Busy, match=r"has .*state\.db locked") as caught:
        doing(store)
    assert "purge" not in str(caught.value)
    other.close()
    doing(store)


def test_a_file_of_an_older_version_is_brought_up_to_date_by_who_reads_it(store, monkeypatch):
    store.mark_applied(store.write(INTENT, ALLOCATIONS))
    monkeypatch.setattr("mptm.store.SCHEMA_VERSION", SCHEMA_VERSION + 1)
    monkeypatch.setitem(
        MIGRATIONS, SCHEMA_VERSION, lambda connection: _set_meta(connection, {"migrated": "yes"})
    )
    with monkeypatch.context() as patch:
        patch.setattr("os.access", lambda _, how: how == os.R_OK)
        with pytest.raises(MptmError, match="older MPTM"):
            store.read()
    snapshot = store.read()
    assert (snapshot.intent, snapshot.meta) == (INTENT, {"migrated": "yes"})


def make_old(store: Store, version: int, applied: Intent) -> None:
    """Turn the file into one of version 1 or 2, which kept whole what was applied."""
    with sqlite3.connect(store.path) as connection:
        connection.execute("DROP TABLE undo")
        connection.execute(
            "CREATE TABLE applied (kind TEXT, key TEXT, body TEXT NOT NULL, PRIMARY KEY (kind, key))"
        )
        connection.executemany(
            "INSERT INTO applied VALUES (?, ?, ?)",
            [(obj.kind, obj.key, json.dumps(obj.to_dict())) for obj in applied.objects()],
        )
        connection.execute(f"PRAGMA user_version = {version}")
    connection.close()


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_of_an_older_version_is_read_and_from_then_on_of_this_version(store, version):
    store.mark_applied(store.write(INTENT, ALLOCATIONS))
    make_old(store, version, INTENT)
    snapshot = store.read()
    assert (snapshot.intent, snapshot.applied, snapshot.allocations) == (INTENT, INTENT, ALLOCATIONS)
    with sqlite3.connect(store.path) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    connection.close()


def test_of_a_file_of_version_2_of_an_interrupted_command_both_states_are_kept(store):
    route = INTENT.get("route", "blue 10.0.0.0/8")
    applied = INTENT.replace(Route(network="blue", prefix=route.prefix, drop=True))
    applied = applied.add(Network(name="red", id=2)).remove("flow", "blue 10.0.0.1 10.0.0.2")
    store.mark_applied(store.write(applied, Allocations()))
    store.write(INTENT, ALLOCATIONS)
    make_old(store, 2, applied)
    snapshot = store.read()
    assert (snapshot.intent, snapshot.applied, snapshot.interrupted) == (INTENT, applied, True)
    assert store.roll_back().intent == applied


def test_what_is_changed_twice_before_it_is_applied_is_rolled_back_to_what_was_applied(store):
    store.mark_applied(store.write(INTENT, ALLOCATIONS))
    other = Route(network="blue", prefix="10.0.0.0/8", drop=True)
    new = Route(network="blue", prefix="10.9.0.0/16", drop=True)
    store.write_changes({("route", other.key): other, ("route", new.key): new}, Allocations())
    store.write_changes({("route", other.key): None, ("route", new.key): None}, Allocations())
    snapshot = store.read()
    assert "blue 10.0.0.0/8" not in snapshot.intent.routes
    assert (snapshot.applied, snapshot.interrupted) == (INTENT, True)
    assert store.roll_back().intent == INTENT


def test_objects_that_are_read_one_by_one_are_those_last_applied(store):
    store.mark_applied(store.write(INTENT, ALLOCATIONS))
    snapshot = store.read(whole=False)
    key = "blue 10.0.0.0/8"
    new = Route(network="blue", prefix="10.9.0.0/16", drop=True)
    store.write_changes({("route", key): None, ("route", new.key): new}, ALLOCATIONS)
    assert (snapshot.intent.routes[key], len(snapshot.intent.routes)) == (INTENT.routes[key], 1)
    assert new.key not in snapshot.intent.routes
    snapshot.load()
    store.mark_applied(2)
    assert (snapshot.intent, snapshot.applied) == (INTENT, INTENT)
    assert store.read(whole=False).intent == INTENT.remove("route", key).add(new)


def test_of_an_interrupted_command_everything_is_read_at_once(store):
    store.mark_applied(store.write(INTENT, ALLOCATIONS))
    store.write(Intent(), Allocations())
    assert store.read(whole=False) == store.read()


def test_a_file_of_a_newer_version_is_refused_and_left_alone(store):
    store.write(INTENT, ALLOCATIONS)
    with sqlite3.connect(store.path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    with pytest.raises(MptmError, match="newer MPTM"):
        store.read()
    with pytest.raises(MptmError, match="newer MPTM"):
        store.write(Intent(), Allocations())


def test_a_damaged_file_is_an_error_in_words(store):
    store.directory.mkdir()
    store.path.write_bytes(b"this is no database, and long enough to look at" * 50)
    with pytest.raises(MptmError, match=r"state\.db is damaged"):
        store.read()


def test_a_file_that_was_created_and_not_yet_written_is_an_empty_node(store):
    store.directory.mkdir()
    store.path.touch()
    assert store.read().intent == Intent()


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden", "x" * 65, "a b", "a:b"])
def test_an_instance_name_that_could_be_a_path_is_refused(name):
    for use in (state_directory, instance_directory):
        with pytest.raises(InvalidIntent):
            use(name)


def test_instances_are_those_with_state(tmp_path, monkeypatch):
    monkeypatch.setenv("MPTM_STATE_DIR", str(tmp_path))
    Store(state_directory("b")).write(INTENT, ALLOCATIONS)
    Store(state_directory("a")).write(INTENT, ALLOCATIONS)
    (tmp_path / "other").mkdir()
    assert instances() == ["a", "b"]


def test_ten_thousand_routes_are_written_and_read_in_a_moment(store):
    routes = [Route(network="blue", prefix=f"10.{i // 250}.{i % 250}.1/32", drop=True) for i in range(10000)]
    intent = Intent.of([Network(name="blue", id=1), *routes])
    started = time.monotonic()
    store.mark_applied(store.write(intent, Allocations()))
    assert len(store.read().intent.routes) == 10000
    assert time.monotonic() - started < 5
