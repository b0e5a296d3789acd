# SPDX-License-Identifier: GPL-2.0-only
"""Where the flows of bundles are kept: one file for each content, named by its SHA-256, which is never changed.

    MPTM flows 1
    {"networks": ["blue"], "next_hops": ["blue via t"], "v4": 2, "v6": 0}     one line, padded to 64 bytes
    16 bytes for each IPv4 flow, 40 for each IPv6 flow: number of the network, source, destination, number of the
    next hop; numbers are of 32 bits, big-endian, and the flows in the order of their bytes

Nothing here needs numpy, which takes longer to import than one flow to be found.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import mmap
import os
import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from socket import inet_ntoa
from typing import BinaryIO, NamedTuple

from mptm.errors import MptmError, NotFound
from mptm.facts import IPAddress

MAGIC = b"MPTM flows 1\n"
ALIGNMENT = 64
RECORD_SIZES = {4: 16, 6: 40}
"""Bytes of a flow by IP version."""

_NUMBER_SIZE = 4
_ROWS = {4: struct.Struct(">I4s4sI"), 6: struct.Struct(">I16s16sI")}
_TEXTS: dict[int, Callable[[bytes], str]] = {4: inet_ntoa, 6: lambda packed: str(IPv6Address(packed))}
"""An address as the rest of MPTM writes it, by IP version."""
_ROWS_AT_ONCE = 4096


class BundledFlow(NamedTuple):
    """A flow as it is kept; `next_hop` as `intent.NextHop` is written."""

    network: str
    source: str
    destination: str
    next_hop: str


@dataclass(frozen=True)
class Header:
    """What a file says before its flows; `counts` by IP version."""

    networks: tuple[str, ...]
    next_hops: tuple[str, ...]
    counts: dict[int, int]
    start: int
    """Where the first flow is, in bytes."""

    def offset(self, version: int) -> int:
        """Where the flows of an IP version begin, in bytes."""
        return self.start + (0 if version == 4 else self.counts[4] * RECORD_SIZES[4])


def encode_header(networks: Sequence[str], next_hops: Sequence[str], v4: int, v6: int) -> bytes:
    """The beginning of a file."""
    text = MAGIC + json.dumps({"networks": networks, "next_hops": next_hops, "v4": v4, "v6": v6}).encode()
    size = -(-(len(text) + 1) // ALIGNMENT) * ALIGNMENT
    return text.ljust(size - 1) + b"\n"


def decode_header(data: bytes | mmap.mmap, name: str) -> Header:
    """The header of a file. MptmError: it has none."""
    end = data.find(b"\n", len(MAGIC)) + 1
    try:
        if data[: len(MAGIC)] != MAGIC or not end:
            raise ValueError
        found = json.loads(data[len(MAGIC) : end])
        header = Header(
            tuple(found["networks"]), tuple(found["next_hops"]), {4: found["v4"], 6: found["v6"]}, end
        )
        if header.offset(6) + header.counts[6] * RECORD_SIZES[6] != len(data):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise MptmError(
            f"{name} holds no flows of a bundle, or not all of them",
            "load the bundle again: `mptm flow load`",
        ) from None
    return header


class BundleFiles:
    """The files of one instance, in `directory`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, content: str) -> Path:
        """Where a content is, or would be."""
        return self.directory / content

    def write(self, parts: Iterable[bytes]) -> str:
        """Keep a content, and return its name; it is there as a whole or not at all, also after a power failure.

        A damaged one is replaced.
        """
        data = b"".join(parts)
        content = hashlib.sha256(data).hexdigest()
        path = self.path(content)
        with suppress(OSError):
            if path.read_bytes() == data:
                return content
        new = path.with_suffix(".new")
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.rename(path)
            directory = os.open(self.directory, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise MptmError(f"{path} can't be written: {error.strerror}") from error
        return content

    def read(self, content: str) -> bytes:
        """A content. NotFound: it isn't kept here; MptmError: it can't be read, or isn't what it was."""
        try:
            data = self.path(content).read_bytes()
        except FileNotFoundError:
            raise self._missing(content) from None
        except OSError as error:
            raise self._unreadable(content, error) from error
        if hashlib.sha256(data).hexdigest() != content:
            raise self._damaged(content)
        return data

    def has(self, content: str) -> bool:
        """Whether a content is kept here."""
        return self.path(content).exists()

    def require(self, content: str) -> None:
        """Raise NotFound unless a content is kept here."""
        if not self.has(content):
            raise self._missing(content)

    def verify(self, content: str) -> None:
        """Raise NotFound or MptmError unless a content is kept here, and is what it was."""
        with self._opened(content):
            pass

    def counts(self, content: str) -> dict[int, int]:
        """How many flows there are, by IP version. Raises what `verify` does."""
        with self._opened(content) as file:
            return self._header_of(file, content).counts

    def flows(self, content: str) -> Iterator[BundledFlow]:
        """All flows, read piece by piece. Raises what `verify` does, before the first."""
        with self._opened(content) as file:
            header = self._header_of(file, content)
            file.seek(header.start)
            for version, row in _ROWS.items():
                text = _TEXTS[version]
                for start in range(0, header.counts[version], _ROWS_AT_ONCE):
                    count = min(header.counts[version] - start, _ROWS_AT_ONCE)
                    for network, source, destination, next_hop in row.iter_unpack(
                        file.read(count * row.size)
                    ):
                        yield BundledFlow(
                            header.networks[network],
                            text(source),
                            text(destination),
                            header.next_hops[next_hop],
                        )

    def find(self, content: str, network: str, source: IPAddress, destination: IPAddress) -> str | None:
        """The next hop of a flow, as `intent.NextHop` is written; None: it isn't in this content.

        Not all is looked at: who calls has seen by `verify` that the file isn't damaged.
        """
        path = self.path(content)
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = decode_header(data, str(path))
                if network not in header.networks:
                    return None
                start, size = header.offset(source.version), RECORD_SIZES[source.version]
                key = (
                    header.networks.index(network).to_bytes(_NUMBER_SIZE) + source.packed + destination.packed
                )
                at = bisect.bisect_left(
                    range(header.counts[source.version]),
                    key,
                    key=lambda row: data[start + row * size : start + row * size + len(key)],
                )
                found = data[start + at * size : start + (at + 1) * size]
                if at == header.counts[source.version] or found[: len(key)] != key:
                    return None
                return header.next_hops[int.from_bytes(found[len(key) :])]
        except FileNotFoundError:
            raise self._missing(content) from None
        except OSError as error:
            raise self._unreadable(content, error) from error
        except (ValueError, IndexError):  # nothing to map, or a number of a next hop that there isn't
            raise self._damaged(content) from None

    def tidy(self, used: Collection[str]) -> None:
        """Remove the contents that no bundle has any more."""
        if not self.directory.exists():
            return
        for path in self.directory.iterdir():
            if path.name not in used:
                path.unlink(missing_ok=True)

    def delete(self) -> None:
        """Remove everything."""
        self.tidy(())
        if self.directory.exists():
            self.directory.rmdir()

    @contextmanager
    def _opened(self, content: str) -> Iterator[BinaryIO]:
        """The file of a content, which is what it was. NotFound, MptmError."""
        try:
            with self.path(content).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != content:
                    raise self._damaged(content)
                yield file
        except FileNotFoundError:
            raise self._missing(content) from None
        except OSError as error:
            raise self._unreadable(content, error) from error

    def _header_of(self, file: BinaryIO, content: str) -> Header:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return decode_header(data, str(self.path(content)))

    def _unreadable(self, content: str, error: OSError) -> MptmError:
        return MptmError(f"{self.path(content)} can't be read: {error.strerror}")

    def _damaged(self, content: str) -> MptmError:
        return MptmError(
            f"{self.path(content)} is damaged", "load the bundle again: `mptm flow load`, or unload it"
        )

    def _missing(self, content: str) -> NotFound:
        return NotFound(
            f"the flows of the bundle with content {content[:12]}... are not on this machine",
            "a node file only names them: load them with `mptm flow load` (`mptm flow save` writes them to a file)",
        )
