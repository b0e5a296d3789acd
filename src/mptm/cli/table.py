# SPDX-License-Identifier: GPL-2.0-only
"""`mptm table`: the tables of the data plane as they are, with the fields that bpf/abi.h names."""

from __future__ import annotations

import ipaddress
from dataclasses import fields
from typing import Any

import click

from mptm.cli.common import current_node, json_option, print_json, print_table
from mptm.errors import NotFound
from mptm.tables import Tables

ADDRESSES = frozenset(("source", "destination", "address"))
V4_LEN, V6_LEN, MAC_LEN = 4, 16, 6


@click.group()
def table() -> None:
    """Look into the tables of the data plane.

    \b
    Example:
      mptm table list
      mptm table dump flows_v4
    """


@table.command("list")
@json_option
def list_tables(as_json: bool) -> None:
    """List flows, hosts and prefixes: entries, the room there is, and the memory they take.

    \b
    Example:
      mptm table list
    """
    from mptm.kernel.hashtable import HashTable

    with current_node().data_plane() as data_plane:
        found = [
            {
                "name": name,
                "entries": each.entry_count(),
                "max_entries": each.max_entries,
                "memory_bytes": each.memory_bytes(),
            }
            for name, each in sorted(data_plane.maps.items())
            if isinstance(each, HashTable)
        ]
    if as_json:
        print_json(found)
        return
    rows = [[each["name"], each["entries"], each["max_entries"], each["memory_bytes"]] for each in found]
    print_table(["NAME", "ENTRIES", "MAX", "BYTES"], rows, right="ENTRIES MAX BYTES")


TABLES = [each.name for each in fields(Tables)]


@table.command(epilog=f"Tables: {', '.join(TABLES)}")
@click.argument("name", metavar="TABLE", type=click.Choice(TABLES))
def dump(name: str) -> None:
    """Print all entries of TABLE as JSON, each with its key and its value.

    Fields have the names and numbers of bpf/abi.h; empty slots of arrays are left out.

    \b
    Example:
      mptm table dump flows_v4
    """
    with current_node().data_plane() as data_plane:
        found = data_plane.maps.get(name)
        if found is None:
            raise NotFound(
                f"the loaded data plane is of another build, without a table {name}", "run: mptm restore"
            )
        print_json(
            [
                {"key": _readable(found.key.unpack(key)), "value": _readable(found.value.unpack(value))}
                for key, value in sorted(found.items().items())
            ]
        )


def _readable(value: Any) -> Any:
    """A struct's fields as JSON has them: addresses as text, other bytes in hexadecimal."""
    if isinstance(value, dict):
        if set(value) == {"value"}:
            return _readable(value["value"])
        return {name: _in_text(name, each) for name, each in value.items()}
    if isinstance(value, list):
        return [_readable(each) for each in value]
    return value.hex() if isinstance(value, bytes) else value


def _in_text(name: str, value: Any) -> Any:
    if name in ADDRESSES and isinstance(value, int):
        return str(ipaddress.IPv4Address(value))
    if name in ADDRESSES and isinstance(value, bytes) and len(value) in (V4_LEN, V6_LEN):
        return str(ipaddress.ip_address(value))
    if isinstance(value, bytes) and len(value) == MAC_LEN:
        return value.hex(":")
    return _readable(value)
