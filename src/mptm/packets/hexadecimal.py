# SPDX-License-Identifier: GPL-2.0-only
"""A packet from hexadecimal digits, as they are typed or as dumps show them.

Read are the dumps of `tcpdump -xx`, `tshark -x`, xxd, `hexdump -C`, `od -A x -t x1`, Wireshark's and `mptm`'s own: an
offset, bytes, and perhaps the same as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mptm.errors import InvalidPacket

_OFFSET = re.compile(r"\s*(?:0x)?([0-9a-f]{4,8})(:?)(\s+|$)", re.IGNORECASE)
_BARE = re.compile(r"\s*(?:0x)?[0-9a-f]{4,8}\s*", re.IGNORECASE)
_DIGITS = re.compile(r"(?:0x|\\x|[0-9a-f\s:,.\-])*", re.IGNORECASE)
_BYTES = re.compile(r"(?:[0-9a-f]{2})+", re.IGNORECASE)
_BETWEEN = re.compile(r"0x|\\x|[\s:,.\-]", re.IGNORECASE)
_TEXT_AFTER = re.compile(r"\s{3,}|\s*\|")
"""What stands between the bytes of a line and its text where the line has fewer bytes than others."""
_LINE_BYTES = 16


def parse_hex(text: str) -> bytes:
    """The packet. Raises InvalidPacket for anything else."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        raise InvalidPacket("there are no hexadecimal digits in the packet")
    dump = _parse_dump(lines)
    return dump if dump is not None else _parse_digits(text)


def _parse_digits(text: str) -> bytes:
    digits = _BETWEEN.sub("", text)
    wrong = re.search(r"[^0-9a-f]", digits, re.IGNORECASE)
    if wrong is not None:
        raise InvalidPacket(
            f"{wrong[0]!r} in the packet is no hexadecimal digit",
            "give the frame from its destination MAC address on, such as 'ffffffffffff 020000000001 0806 ...'",
        )
    if len(digits) % 2:
        raise InvalidPacket(f"the packet has {len(digits)} hexadecimal digits: half a byte is missing")
    return bytes.fromhex(digits)


def _parse_dump(lines: list[str]) -> bytes | None:
    """The bytes of a dump; None where it is none. What a program says of the packet before its dump is skipped."""
    start = next((at for at, line in enumerate(lines) if _offset_of(line) == 0), None)
    if start is None or any(_DIGITS.fullmatch(line) for line in lines[:start]):
        return None
    lines = lines[start:]
    if len(lines) > 1 and _BARE.fullmatch(lines[-1]):
        lines.pop()  # where the packet ends
    offsets = [_offset_of(line) for line in lines]
    if 0 in offsets[1:] or None in offsets:
        raise InvalidPacket(
            "there is more than one packet's dump", "give one packet; a capture goes with --pcap-in"
        )
    width = (offsets[1] if len(offsets) > 1 else None) or _LINE_BYTES
    data = bytearray()
    for number, (line, offset) in enumerate(zip(lines, offsets, strict=True), start + 1):
        if offset != len(data):
            raise InvalidPacket(
                f"line {number} of the packet is at offset {offset:#x}, behind {len(data)} bytes",
                "every line of the dump is needed, in order",
            )
        found = _OFFSET.match(line)
        assert found is not None
        for each in _groups(line[found.end() :]):
            if len(data) + len(each) > offset + width:
                break
            data += each
    return bytes(data)


def _offset_of(line: str) -> int | None:
    """The offset that a line begins with, None without one: it looks different from the bytes that follow."""
    found = _OFFSET.match(line)
    if found is None or found.end() == len(line):
        return None
    following = line[found.end() :].split(maxsplit=1)[0]
    if found[2] or len(found[3]) > 1 or len(following) != len(found[1]):
        return int(found[1], 16)
    return None


def _groups(line: str) -> Iterator[bytes]:
    """The groups of bytes that a line of a dump begins with, up to its text."""
    at = 0
    while (found := _BYTES.match(line, at)) is not None:
        after = line[found.end() : found.end() + 1]
        if after and not after.isspace():
            return
        yield bytes.fromhex(found[0])
        at = found.end()
        if _TEXT_AFTER.match(line, at):
            return
        at += len(line[at:]) - len(line[at:].lstrip())
