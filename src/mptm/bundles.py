# SPDX-License-Identifier: GPL-2.0-only
"""Flows by the million: as columns of numbers, from numpy arrays, CSV files and numpy's own files, and back.

A CSV file names its columns in the first line; `network` and `next_hop` may be given for the whole file instead.
A next hop is written as `mptm flow list` shows it, or is just the name of a tunnel:

    network,source,destination,next_hop
    blue,10.250.1.100,10.250.1.101,to-node2
    blue,10.250.1.100,10.250.1.102,group exits relay

A .npz file has arrays of the same names: source and destination as numbers (uint32: IPv4), bytes (uint8, n x 4 or
n x 16) or text; next_hop as text, or as indices into an array next_hops; network as text, of one or of every flow.
"""

from __future__ import annotations

import io
import itertools
import socket
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mptm import bundlefile
from mptm.errors import InvalidIntent, MptmError
from mptm.fields import parse_address
from mptm.intent import Bundle, NextHop
from mptm.memory import without_collection

COLUMNS = ("network", "source", "destination", "next_hop")
ADDRESS_SIZES = {4: 4, 6: 16}
"""Bytes by IP version."""

RECORDS = {
    version: np.dtype(
        [
            ("network", ">u4"),
            ("source", "u1", (size,)),
            ("destination", "u1", (size,)),
            ("next_hop", ">u4"),
        ]
    )
    for version, size in ADDRESS_SIZES.items()
}
"""A flow as it lies in a file (`mptm.bundlefile`), by IP version."""

Records = npt.NDArray[Any]
"""One of RECORDS, in the order of the bytes of their keys."""

Numbers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
Where = Callable[[int], str]
"""Says in words which row of the input is meant: `line 7`."""


@dataclass(frozen=True)
class BundleFlows:
    """The flows of a bundle, by IP version. Numbers of networks and next hops are places in the tuples."""

    networks: tuple[str, ...]
    next_hops: tuple[NextHop, ...]
    records: dict[int, Records]

    def __len__(self) -> int:
        return sum(map(len, self.records.values()))

    def encode(self) -> list[bytes]:
        """The parts of a file."""
        header = bundlefile.encode_header(
            self.networks, [str(each) for each in self.next_hops], *(len(self.records[v]) for v in (4, 6))
        )
        return [header, *(self.records[version].tobytes() for version in (4, 6))]

    @classmethod
    def decode(cls, data: bytes, name: str) -> BundleFlows:
        """From the contents of a file. MptmError: it isn't one."""
        header = bundlefile.decode_header(data, name)
        return cls(
            header.networks,
            tuple(map(NextHop.from_text, header.next_hops)),
            {
                version: np.frombuffer(data, RECORDS[version], header.counts[version], header.offset(version))
                for version in RECORDS
            },
        )

    def bundle(self, name: str, content: str) -> Bundle:
        """The object of the intent that stands for these flows, kept as `content`."""
        return Bundle(name=name, flows=len(self), next_hops=self.next_hops, content=content)

    def shared(self, other: BundleFlows) -> dict[int, npt.NDArray[np.bool_]]:
        """Of each flow, by IP version, whether the other has it, too."""
        names = sorted({*self.networks, *other.networks})
        return {
            version: _shared(
                _columns(self.records[version], _places(self.networks, names)),
                _columns(other.records[version], _places(other.networks, names)),
            )
            for version in RECORDS
        }

    def first_shared(self, other: BundleFlows) -> str | None:
        """A flow that both have, in words."""
        if set(self.networks).isdisjoint(other.networks):
            return None
        for version, shared in self.shared(other).items():
            if shared.any():
                return self.describe(version, int(shared.argmax()))
        return None

    def describe(self, version: int, row: int) -> str:
        """A flow in words."""
        return _describe(self.networks, self.records[version][row])

    def without(self, other: BundleFlows) -> BundleFlows:
        """The flows that the other doesn't have."""
        shared = self.shared(other)
        return BundleFlows(
            self.networks,
            self.next_hops,
            {version: records[~shared[version]] for version, records in self.records.items()},
        )


def _places(names: Sequence[str], among: Sequence[str]) -> Numbers:
    return np.array([among.index(name) for name in names], dtype=np.int64)


def _columns(records: Records, networks: Numbers | None = None) -> list[npt.NDArray[np.uint64]]:
    """The keys of records as numbers, the most significant first; `networks` are other numbers for those of theirs."""
    size = records.dtype["source"].shape[0]
    width = min(size, 8)
    numbers = records["network"].astype(np.int64)
    columns = [(numbers if networks is None else networks[numbers]).astype(np.uint64)]
    for name in ("source", "destination"):
        whole = np.ascontiguousarray(records[name]).reshape(len(records), size)
        columns += [
            np.ascontiguousarray(whole[:, at : at + width]).view(f">u{width}").reshape(-1).astype(np.uint64)
            for at in range(0, size, width)
        ]
    if size == 4:
        columns = [columns[0], columns[1] << np.uint64(32) | columns[2]]
    return columns


def _order(columns: Sequence[npt.NDArray[np.uint64]]) -> Numbers:
    """In which order keys are sorted; columns in which all are equal decide nothing."""
    deciding = [column for column in columns if len(column) and (column != column[0]).any()]
    if len(deciding) == 1:
        return np.argsort(deciding[0], kind="stable")
    return np.lexsort(deciding[::-1]) if deciding else np.arange(len(columns[0]))


def _repeats(columns: Sequence[npt.NDArray[np.uint64]], order: Numbers) -> Numbers:
    """Places in the order at which a key is that of the place before."""
    same = np.ones(max(len(order) - 1, 0), dtype=bool)
    for column in columns:
        ordered = column[order]
        same &= ordered[1:] == ordered[:-1]
    return np.flatnonzero(same) + 1


def _shared(
    ours: Sequence[npt.NDArray[np.uint64]], theirs: Sequence[npt.NDArray[np.uint64]]
) -> npt.NDArray[np.bool_]:
    """Of each of our keys, whether it is among theirs; none is there twice on one side."""
    found = np.zeros(len(ours[0]), dtype=bool)
    both = [np.concatenate(pair) for pair in zip(ours, theirs, strict=True)]
    order = _order(both)
    found[order[_repeats(both, order) - 1]] = True  # stable: of equals, ours come first
    return found


def _describe(networks: Sequence[str], record: Any) -> str:
    source, destination = (ip_address(record[name].tobytes()) for name in ("source", "destination"))
    return f"{source} -> {destination} of network {networks[int(record['network'])]}"


# ---- from columns ----------------------------------------------------------------------------------------


def make_flows(
    networks: Sequence[str] | str,
    sources: Any,
    destinations: Any,
    next_hops: Sequence[str] | str,
    *,
    network_of: Any = None,
    next_hop_of: Any = None,
    where: Where = "flow {}".format,
) -> BundleFlows:
    """Flows from columns of equal length.

    networks, next_hops     a name, or next hop as `mptm flow list` writes it, for all flows; else those there are
    network_of, next_hop_of which of these each flow has: indices from 0
    sources, destinations   uint32 (IPv4, host byte order), uint8 of n x 4 or n x 16, or text
    where                   what messages call a row, counted from 0
    Raises InvalidIntent: something makes no sense, or a flow is there twice.
    """
    network_names = (networks,) if isinstance(networks, str) else tuple(networks)
    hop_texts = (next_hops,) if isinstance(next_hops, str) else tuple(next_hops)
    source, destination = _addresses(sources, "source", where), _addresses(destinations, "destination", where)
    count = len(source)
    if len(destination) != count:
        raise InvalidIntent(f"there are {count} sources, but {len(destination)} destinations")
    if not count:
        raise InvalidIntent("there are no flows in it", "to have none, unload the bundle")
    network = _indices(network_of, count, len(network_names), "network", where)
    hop = _indices(next_hop_of, count, len(hop_texts), "next hop", where)
    pairs, hop_of_pair = np.unique(network * len(hop_texts) + hop, return_inverse=True)
    hops = []
    for place, pair in enumerate(pairs.tolist()):
        try:
            hops.append(_next_hop(network_names[pair // len(hop_texts)], hop_texts[pair % len(hop_texts)]))
        except InvalidIntent as error:
            row = int((hop_of_pair.reshape(-1) == place).argmax())
            raise InvalidIntent(f"{where(row)}: {error.message}", error.hint) from None
    in_order = sorted(
        range(len(hops)), key=lambda place: str(hops[place])
    )  # the same flows are the same content
    hop_of_pair = np.argsort(in_order)[hop_of_pair.reshape(-1)]
    hops = [hops[place] for place in in_order]
    names = sorted({each.network for each in hops})
    places = np.array([names.index(name) if name in names else 0 for name in network_names], dtype=np.int64)
    records = {}
    for version in RECORDS:
        rows = source.rows(version)
        if not np.array_equal(rows, destination.rows(version)):
            raise _mixed(source, destination, where)
        found = np.empty(len(rows), RECORDS[version])
        found["network"] = places[network[rows]]
        found["source"], found["destination"] = source.of(version), destination.of(version)
        found["next_hop"] = hop_of_pair[rows]
        columns = _columns(found)
        order = _order(columns)
        if len(repeats := _repeats(columns, order)):
            first, again = (int(rows[order[repeats[0] + step]]) for step in (-1, 0))
            flow = _describe(names, found[order[repeats[0]]])
            raise InvalidIntent(f"{where(again)}: {flow} is there already, {where(first)}")
        records[version] = found[order]
    return BundleFlows(tuple(names), tuple(hops), records)


def _next_hop(network: str, text: str) -> NextHop:
    if len(network.split()) != 1:
        raise InvalidIntent(f"{network!r} is no network")
    return NextHop.from_text(
        f"{network} {text if ' ' in text or text in ('drop', 'pass') else f'via {text}'}"
    )


def _indices(given: Any, count: int, choices: int, what: str, where: Where) -> Numbers:
    if given is None:
        if choices != 1:
            raise InvalidIntent(f"there are {choices} {what}s: which flow has which?")
        return np.zeros(count, dtype=np.int64)
    found = np.asarray(given)
    if found.shape != (count,) or found.dtype.kind not in "iu":
        raise InvalidIntent(f"the {what} of each of {count} flows must be a whole number")
    wrong = np.flatnonzero((found < 0) | (found >= choices))
    if len(wrong):
        row = int(wrong[0])
        raise InvalidIntent(f"{where(row)}: there is no {what} {found[row]}; there are {choices}, from 0")
    return found.astype(np.int64)


class _Addresses:
    """A column of addresses: bytes by IP version, and which rows they are of."""

    def __init__(self, count: int, found: dict[int, tuple[Numbers, Bytes]]) -> None:
        self._count = count
        self._found = found

    def __len__(self) -> int:
        return self._count

    def rows(self, version: int) -> Numbers:
        """The rows that have an address of this version."""
        return self._found[version][0] if version in self._found else np.empty(0, dtype=np.int64)

    def of(self, version: int) -> Bytes:
        """Their addresses, n x 4 or n x 16 bytes."""
        if version in self._found:
            return self._found[version][1]
        return np.empty((0, ADDRESS_SIZES[version]), dtype=np.uint8)


def _mixed(source: _Addresses, destination: _Addresses, where: Where) -> InvalidIntent:
    row = int(np.setxor1d(source.rows(4), destination.rows(4))[0])
    return InvalidIntent(f"{where(row)}: one address is of IPv4, the other of IPv6")


def _addresses(given: Any, name: str, where: Where) -> _Addresses:
    if isinstance(given, list) or (isinstance(given, np.ndarray) and given.dtype.kind in "USO"):
        texts = given if isinstance(given, list) else given.tolist()
        return _addresses_from_text(
            texts if set(map(type, texts)) == {str} else [*map(_as_text, texts)], name, where
        )
    found: npt.NDArray[Any] = np.asarray(given)
    every = np.arange(len(found) if found.ndim else 0, dtype=np.int64)
    if found.ndim == 1 and found.dtype.kind in "iu":
        wrong = np.flatnonzero((found < 0) | (found > 0xFFFFFFFF))
        if len(wrong):
            row = int(wrong[0])
            raise InvalidIntent(f"{where(row)}: {name} {found[row]} is no number of 32 bits")
        return _Addresses(len(found), {4: (every, found.astype(">u4").view(np.uint8).reshape(-1, 4))})
    for version, size in ADDRESS_SIZES.items():
        if found.shape == (len(every), size) and found.dtype == np.uint8:
            return _Addresses(len(found), {version: (every, found)})
    raise InvalidIntent(
        f"{name} has the shape {found.shape} and type {found.dtype}; "
        "it must be uint32, uint8 of n x 4 or n x 16, or text"
    )


def _as_text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _addresses_from_text(texts: list[str], name: str, where: Where) -> _Addresses:
    every = range(len(texts))
    try:  # nearly always all are of one version
        return _Addresses(len(texts), {4: _packed(texts, every, 4)})
    except (OSError, ValueError):
        of_versions = {
            4: [row for row in every if ":" not in texts[row]],
            6: [row for row in every if ":" in texts[row]],
        }
    try:
        found = {version: _packed(texts, rows, version) for version, rows in of_versions.items()}
    except (OSError, ValueError):
        raise _wrong_address(texts, name, where) from None
    for row in of_versions[6]:
        if "." in texts[row]:
            _check_address(texts[row], row, name, where)
    return _Addresses(len(texts), found)


def _packed(texts: Sequence[str], rows: Sequence[int], version: int) -> tuple[Numbers, Bytes]:
    """Addresses of some rows, which are of one version. OSError or ValueError: one isn't."""
    of_version = texts if len(rows) == len(texts) else [texts[row] for row in rows]
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    packed = b"".join(map(socket.inet_pton, itertools.repeat(family, len(of_version)), of_version))
    return np.array(rows, dtype=np.int64), np.frombuffer(packed, np.uint8).reshape(-1, ADDRESS_SIZES[version])


def _wrong_address(texts: Iterable[str], name: str, where: Where) -> InvalidIntent:
    try:
        for row, text in enumerate(texts):
            _check_address(text, row, name, where)
    except InvalidIntent as error:
        return error
    return InvalidIntent(f"{name}: an address is written in an unusual way")


def _check_address(text: str, row: int, name: str, where: Where) -> None:
    try:
        parse_address(text)
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except InvalidIntent as error:
        raise InvalidIntent(f"{where(row)}: {name} {error.message}") from None
    except (ValueError, OSError):
        raise InvalidIntent(f"{where(row)}: {name} {text!r} is not an IPv4 or IPv6 address") from None


# ---- from files ------------------------------------------------------------------------------------------


def read_flows(path: str, *, network: str | None = None, next_hop: str | None = None) -> BundleFlows:
    """The flows of a CSV or .npz file; `network` and `next_hop` where the file has no such column.

    Raises InvalidIntent, which names the line of a mistake, and MptmError: the file can't be read.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise MptmError(f"{path}: {error.strerror}") from error
    try:
        with without_collection():
            if data.startswith(b"PK"):
                return _from_npz(data, network, next_hop)
            if path.endswith(".npz"):
                raise InvalidIntent("this is no file of numpy arrays, as numpy.savez writes them")
            return _from_csv(data, network, next_hop)
    except InvalidIntent as error:
        raise InvalidIntent(f"{path}: {error.message}", error.hint) from None


def _from_csv(data: bytes, network: str | None, next_hop: str | None) -> BundleFlows:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidIntent(f"this is no UTF-8 text (byte {error.start})") from None
    text = text.replace("\r\n", "\n").rstrip("\n")
    lines = text.split("\n")
    numbers: Sequence[int] = range(1, len(lines) + 1)
    if "\n\n" in text or "#" in text:
        numbers = [number for number in numbers if lines[number - 1] and lines[number - 1][0] != "#"]
        lines = [lines[number - 1] for number in numbers]
    if not text or not lines:
        raise InvalidIntent("there are no flows in it", "to have none, unload the bundle")
    names, rows, numbers = _column_names(numbers[0], lines[0]), lines[1:], numbers[1:]
    fields = [*map(methodcaller("count", ","), rows)]
    if set(fields) - {len(names) - 1}:
        row = next(row for row, commas in enumerate(fields) if commas != len(names) - 1)
        there_are = "there is 1 field" if not fields[row] else f"there are {fields[row] + 1} fields"
        found = f"{there_are}, not {len(names)} ({','.join(names)})"
        raise InvalidIntent(f"line {numbers[row]}: {found}")
    cells = ",".join(rows).split(",") if rows else []
    if any(space in text for space in (", ", " ,", "\n ", " \n", "\t")):
        cells = [cell.strip() for cell in cells]
    columns: dict[str, list[str]] = {name: cells[place :: len(names)] for place, name in enumerate(names)}
    return _from_columns(columns, network, next_hop, lambda row: f"line {numbers[row]}")


def _column_names(number: int, line: str) -> list[str]:
    names = [name.strip() for name in line.split(",")]
    if set(names) - set(COLUMNS) or len(set(names)) != len(names):
        raise InvalidIntent(
            f"line {number}: the first line must name the columns, each once: "
            f"source,destination and maybe network,next_hop; found {line[:80]}"
        )
    return names


def _from_npz(data: bytes, network: str | None, next_hop: str | None) -> BundleFlows:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            columns = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidIntent(f"this is no file of numpy arrays: {error}") from None
    if unknown := sorted(set(columns) - {*COLUMNS, "next_hops"}):
        known = ", ".join((*COLUMNS, "next_hops"))
        raise InvalidIntent(f"there is an array {unknown[0]} in it; those that are known are {known}")
    return _from_columns(columns, network, next_hop, lambda row: f"flow {row}")


def _from_columns(
    columns: dict[str, Any], network: str | None, next_hop: str | None, where: Where
) -> BundleFlows:
    for name in ("source", "destination"):
        if name not in columns:
            raise InvalidIntent(f"there is no column {name} in it")
    count = len(columns["source"])
    networks, network_of = _choices(columns, "network", network, "--network", count)
    if "next_hops" in columns:
        hops: Sequence[str] = [_as_text(each) for each in np.atleast_1d(columns["next_hops"])]
        hop_of = columns.get("next_hop")
    else:
        hops, hop_of = _choices(columns, "next_hop", next_hop, "--via or another next hop", count)
    return make_flows(
        networks,
        columns["source"],
        columns["destination"],
        hops,
        network_of=network_of,
        next_hop_of=hop_of,
        where=where,
    )


def _choices(
    columns: dict[str, Any], name: str, given: str | None, option: str, count: int
) -> tuple[Sequence[str], Any]:
    """The different texts of a column, and which each row has; or what is given for all."""
    if name not in columns:
        if given is None:
            raise InvalidIntent(f"there is no column {name} in it", f"give {option} for all of its flows")
        return [given], None
    if given is not None:
        raise InvalidIntent(f"the file has a column {name}", f"leave out {option}")
    texts = columns[name]
    if isinstance(texts, np.ndarray):
        texts = [*map(_as_text, np.atleast_1d(texts))]
    choices = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    if len(choices) == 1 and len(texts) in (1, count):
        return [*choices], None
    return [*choices], np.fromiter(map(choices.__getitem__, texts), np.int64, len(texts))


# ---- into files ------------------------------------------------------------------------------------------


def write_flows(flows: BundleFlows, path: str) -> None:
    """Write the flows as a CSV file, or where the name ends in .npz, as numpy's. MptmError: it can't be written."""
    try:
        if path.endswith(".npz"):
            _write_npz(flows, path)
        else:
            _write_csv(flows, path)
    except OSError as error:
        raise MptmError(f"{path}: {error.strerror}") from error


def _write_csv(flows: BundleFlows, path: str) -> None:
    hops = [str(each).partition(" ")[2] for each in flows.next_hops]
    with open(path, "w", encoding="utf-8") as file:
        file.write(",".join(COLUMNS) + "\n")
        for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
            size = ADDRESS_SIZES[version]
            records = flows.records[version]
            source, destination = records["source"].tobytes(), records["destination"].tobytes()
            numbers = zip(records["network"].tolist(), records["next_hop"].tolist(), strict=True)
            file.writelines(
                f"{flows.networks[network]},{socket.inet_ntop(family, source[at : at + size])},"
                f"{socket.inet_ntop(family, destination[at : at + size])},{hops[hop]}\n"
                for at, (network, hop) in zip(range(0, len(source), size), numbers, strict=True)
            )


def _write_npz(flows: BundleFlows, path: str) -> None:
    """Of one IP version as bytes, of both as text."""
    of_versions = {version: records for version, records in flows.records.items() if len(records)}
    if len(of_versions) > 1:
        raise MptmError(
            "a .npz file holds flows of one IP version, and this bundle has both", "save it as CSV"
        )
    (records,) = of_versions.values()
    with open(path, "wb") as file:
        np.savez(
            file,
            network=np.array(flows.networks)[records["network"].astype(np.int64)],
            source=records["source"],
            destination=records["destination"],
            next_hops=np.array([str(each).partition(" ")[2] for each in flows.next_hops]),
            next_hop=records["next_hop"].astype(np.uint32),
        )
