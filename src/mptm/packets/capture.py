# SPDX-License-Identifier: GPL-2.0-only
"""Capture files of Ethernet frames: pcap (draft-ietf-opsawg-pcap) and pcapng (draft-ietf-opsawg-pcapng) are read, pcap
is written."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from mptm.errors import InvalidPacket

LINKTYPE_ETHERNET = 1
SNAPLEN = 262144
"""The longest packet that there is in a capture, as libpcap has it."""

_LINKTYPES = {
    0: "BSD loopback",
    9: "PPP",
    101: "raw IP",
    105: "IEEE 802.11",
    113: "Linux cooked",
    127: "IEEE 802.11 with radiotap",
    192: "PPI",
    276: "Linux cooked v2",
}
_PCAP = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}
"""Magic number -> nanoseconds in a unit of the fraction of a second."""
_PCAP_NANOSECONDS = 0xA1B23C4D
_PCAP_HEADER_LEN, _PCAP_RECORD_LEN = 24, 16
_GZIP = b"\x1f\x8b"
_SECTION, _INTERFACE, _PACKET, _SIMPLE_PACKET, _ENHANCED_PACKET = 0x0A0D0D0A, 1, 2, 3, 6
_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_BLOCK_MAX = 1 << 24
_OPTION_TSRESOL, _OPTION_TSOFFSET = 9, 14


@dataclass(frozen=True)
class Captured:
    """A frame of a capture: `number` counts from 1, `wire_len` is how long it was before the capture cut it."""

    number: int
    time_ns: int
    data: bytes
    wire_len: int


@dataclass(frozen=True)
class _Interface:
    """What a pcapng file says of where packets were captured."""

    linktype: int
    snaplen: int
    units_per_second: int = 10**6
    offset_seconds: int = 0

    def time_ns(self, units: int) -> int:
        return self.offset_seconds * 10**9 + units * 10**9 // self.units_per_second


def read_capture(file: BinaryIO, name: str) -> Iterator[Captured]:
    """The frames of a file, one by one.

    Raises InvalidPacket, naming the file, for what is no capture of Ethernet frames or is damaged; what comes before
    the damage has then been yielded.
    """
    magic = file.read(4)
    if magic[:2] == _GZIP:
        raise InvalidPacket(f"{name} is compressed", f"unpack it first: gunzip < {name} > {name}.pcap")
    if magic == _SECTION.to_bytes(4):
        yield from _Pcapng(file, name).packets()
        return
    for order in "<>":
        if len(magic) == 4 and (number := struct.unpack(f"{order}I", magic)[0]) in _PCAP:
            yield from _read_pcap(file, name, order, _PCAP[number])
            return
    what = "is empty" if not magic else "is no capture file"
    raise InvalidPacket(f"{name} {what}", "pcap and pcapng are read, as tcpdump and Wireshark write them")


def _read_pcap(file: BinaryIO, name: str, order: str, unit_ns: int) -> Iterator[Captured]:
    header = file.read(_PCAP_HEADER_LEN - 4)
    if len(header) < _PCAP_HEADER_LEN - 4:
        raise _cut_short(name, 0)
    _require_ethernet(name, struct.unpack_from(f"{order}I", header, 16)[0] & 0xFFFF)
    number = 0
    while record := file.read(_PCAP_RECORD_LEN):
        if len(record) < _PCAP_RECORD_LEN:
            raise _cut_short(name, number)
        seconds, fraction, captured_len, wire_len = struct.unpack(f"{order}IIII", record)
        if captured_len > SNAPLEN:
            raise _damaged(name, number)
        data = file.read(captured_len)
        if len(data) < captured_len:
            raise _cut_short(name, number)
        number += 1
        yield Captured(number, seconds * 10**9 + fraction * unit_ns, data, wire_len)


@dataclass
class _Pcapng:
    """Reads a pcapng file, whose first block type was read already."""

    file: BinaryIO
    name: str
    order: str = "<"
    interfaces: list[_Interface] = field(default_factory=list)
    count: int = 0

    def packets(self) -> Iterator[Captured]:
        """The packets of all sections."""
        block_type: int | None = _SECTION
        while block_type is not None:
            body = self._read_block(block_type)
            if block_type == _SECTION:
                self.interfaces = []
            elif block_type == _INTERFACE:
                self.interfaces.append(self._interface(body))
            elif block_type in (_PACKET, _SIMPLE_PACKET, _ENHANCED_PACKET):
                try:
                    yield self._packet(block_type, body)
                except (struct.error, IndexError):
                    raise _damaged(self.name, self.count) from None
            block_type = self._next_type()

    def _next_type(self) -> int | None:
        head = self.file.read(4)
        if not head:
            return None
        if head == _SECTION.to_bytes(4):  # the same in either byte order
            return _SECTION
        return int(struct.unpack(f"{self.order}I", self._whole(head, 4))[0])

    def _read_block(self, block_type: int) -> bytes:
        """What is between a block's two lengths."""
        length_bytes = self._whole(self.file.read(4), 4)
        start = b""
        if block_type == _SECTION:
            start = self._whole(self.file.read(4), 4)
            self.order = "<" if struct.unpack("<I", start)[0] == _BYTE_ORDER_MAGIC else ">"
            if struct.unpack(f"{self.order}I", start)[0] != _BYTE_ORDER_MAGIC:
                raise _damaged(self.name, self.count)
        (length,) = struct.unpack(f"{self.order}I", length_bytes)
        if length % 4 or not 12 + len(start) <= length <= _BLOCK_MAX:
            raise _damaged(self.name, self.count)
        rest = length - 8 - len(start)
        return (start + self._whole(self.file.read(rest), rest))[:-4]

    def _whole(self, data: bytes, length: int) -> bytes:
        if len(data) < length:
            raise _cut_short(self.name, self.count)
        return data

    def _interface(self, body: bytes) -> _Interface:
        if len(body) < 8:
            raise _damaged(self.name, self.count)
        linktype, snaplen = struct.unpack_from(f"{self.order}H2xI", body)
        options = self._options(body[8:])
        resolution = options.get(_OPTION_TSRESOL, b"\6")[:1] or b"\6"
        base, exponent = (2, resolution[0] & 0x7F) if resolution[0] & 0x80 else (10, resolution[0])
        offset = options.get(_OPTION_TSOFFSET, bytes(8))
        return _Interface(
            linktype,
            snaplen,
            base**exponent,
            struct.unpack(f"{self.order}q", offset)[0] if len(offset) == 8 else 0,
        )

    def _options(self, data: bytes) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        while len(data) >= 4:
            code, length = struct.unpack_from(f"{self.order}HH", data)
            if code == 0:
                break
            found[code] = data[4 : 4 + length]
            data = data[4 + -(-length // 4) * 4 :]
        return found

    def _packet(self, block_type: int, body: bytes) -> Captured:
        if block_type == _SIMPLE_PACKET:
            (wire_len,) = struct.unpack_from(f"{self.order}I", body)
            interface, time_units, at = self.interfaces[0], 0, 4
            captured_len = min(wire_len, interface.snaplen or wire_len)
        else:
            number = f"{self.order}HxxIIII" if block_type == _PACKET else f"{self.order}IIIII"
            index, high, low, captured_len, wire_len = struct.unpack_from(number, body)
            interface, time_units, at = self.interfaces[index], high << 32 | low, 20
        data = body[at : at + captured_len]
        if len(data) < captured_len:
            raise _damaged(self.name, self.count)
        self.count += 1
        _require_ethernet(self.name, interface.linktype, self.count)
        return Captured(self.count, interface.time_ns(time_units), data, wire_len)


def _require_ethernet(name: str, linktype: int, number: int | None = None) -> None:
    if linktype == LINKTYPE_ETHERNET:
        return
    shown = _LINKTYPES.get(linktype, "another kind")
    where = f"packet {number} of {name}" if number is not None else name
    raise InvalidPacket(
        f"{where} was captured on a link of {shown} (link type {linktype}), not Ethernet",
        "capture on the one interface, not on `any`" if "cooked" in shown else None,
    )


def _cut_short(name: str, count: int) -> InvalidPacket:
    return InvalidPacket(f"{name} ends in the middle, {_behind(count)}")


def _damaged(name: str, count: int) -> InvalidPacket:
    return InvalidPacket(f"{name} is damaged, {_behind(count)}")


def _behind(count: int) -> str:
    return f"behind packet {count}" if count else "before its first packet"


class CaptureWriter:
    """Writes Ethernet frames to a file, which is best unbuffered, as pcap with times in nanoseconds.

    Raises InvalidPacket, naming the file, when it can't be written.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self._put(struct.pack("=IHHiIII", _PCAP_NANOSECONDS, 2, 4, 0, 0, SNAPLEN, LINKTYPE_ETHERNET))

    def write(self, data: bytes, time_ns: int) -> None:
        """Append a frame."""
        seconds, nanoseconds = divmod(time_ns, 10**9)
        self._put(struct.pack("=IIII", seconds & 0xFFFFFFFF, nanoseconds, len(data), len(data)) + data)

    def _put(self, data: bytes) -> None:
        try:
            written = self._file.write(data)
        except OSError as error:
            raise InvalidPacket(f"{self._name} can't be written: {error.strerror}") from None
        if written < len(data):
            raise InvalidPacket(f"{self._name} can't be written: there is no room for all of a packet")
