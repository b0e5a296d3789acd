# SPDX-License-Identifier: GPL-2.0-only
"""`mptm trace`."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import click

from mptm.cli.common import complete_names, count, current_node, note

if TYPE_CHECKING:
    from mptm.packets.capture import Captured, CaptureWriter
    from mptm.trace import Trace, Tracer

STANDARD_INPUT = "-"

DUMPED = 256
"""Bytes of a packet that are shown."""

OUTCOMES = {"redirect": "sent", "pass": "handed to the kernel", "drop": "dropped"}
"""What a verdict comes to."""


@click.command()
@click.argument("port", shell_complete=complete_names("ports"))
@click.argument("packet", nargs=-1)
@click.option(
    "--scapy",
    "description",
    metavar="PACKET",
    help="The packet in scapy's syntax: layers with literal values, joined by /.",
)
@click.option(
    "--pcap-in", metavar="FILE", help="Trace the packets of a capture: pcap or pcapng (-: standard input)."
)
@click.option(
    "--pcap-out", metavar="FILE", help="Write the packets that leave, or are handed to the kernel, as pcap."
)
@click.option(
    "--count", "limit", type=click.IntRange(min=1), metavar="N", help="At most N packets of the capture."
)
@click.option("--decode", is_flag=True, help="Show what leaves field by field, as scapy does.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="One JSON document on standard output: a list, an object per packet.",
)
def trace(
    port: str,
    packet: tuple[str, ...],
    description: str | None,
    pcap_in: str | None,
    pcap_out: str | None,
    limit: int | None,
    decode: bool,
    as_json: bool,
) -> int:
    """Show what the data plane does with a packet that comes in at PORT, step by step (needs root).

    PACKET is an Ethernet frame in hexadecimal, also as tcpdump -xx, tshark -x or xxd print it (-: from standard input).
    It runs through the programs with the tables of now, but nothing is sent, counted or otherwise changed.

    In --scapy the layer Ether() may be left out, and so may MAC addresses and the source address of who is behind an
    access port.

    Exit status: 0 traced, whatever became of it; 1 a packet couldn't be traced, 2 wrong usage.

    \b
    Example:
      mptm trace veth-node1 --scapy 'IP(dst="10.250.1.101")/UDP(dport=53)'
      mptm trace eth0 --pcap-in came.pcap --pcap-out left.pcap
      mptm trace eth0 0200003000010200003000020800 4500...
      mptm trace eth0 - < dump-of-tcpdump-xx.txt
    """
    if sum((bool(packet), description is not None, pcap_in is not None)) != 1:
        raise click.UsageError("give one of PACKET, --scapy and --pcap-in")
    if limit is not None and pcap_in is None:
        raise click.UsageError("--count goes with --pcap-in")
    if decode:
        from mptm.packets.description import require_scapy

        require_scapy()
    with contextlib.ExitStack() as stack:
        if pcap_in is not None:
            packets = _captured(stack.enter_context(_opened(pcap_in)), pcap_in, limit)
        elif description is not None:
            packets = _described(description)
        else:
            packets = _given(packet)
        tracer = stack.enter_context(current_node().tracer(port))
        for warning in tracer.warnings:
            note(f"warning: {warning}")
        writer = stack.enter_context(_writing(pcap_out, pcap_in)) if pcap_out is not None else None
        is_capture = pcap_in is not None
        printer: _Printer = _JsonPrinter(decode) if as_json else _TextPrinter(decode, is_capture=is_capture)
        stack.enter_context(printer)
        return _trace_all(tracer, packets(tracer), printer, writer, is_capture=is_capture)


Packets = Callable[["Tracer"], "Iterator[Captured]"]
"""Yields the packets once it is known which port they come in at."""


class _Printer(AbstractContextManager["_Printer"], ABC):
    """Prints what was found out; within the block that it manages."""

    def __init__(self, decode: bool) -> None:
        self._decode = decode

    @abstractmethod
    def traced(self, number: int, result: Trace) -> None:
        """A packet that was traced; `number` counts from 1."""

    @abstractmethod
    def failed(self, number: int, message: str) -> None:
        """A packet that couldn't be traced."""


def _trace_all(
    tracer: Tracer,
    packets: Iterator[Captured],
    printer: _Printer,
    writer: CaptureWriter | None,
    *,
    is_capture: bool,
) -> int:
    """Trace one packet after the other; the exit status."""
    from mptm.errors import InvalidPacket

    failures = 0
    for each in packets:
        try:
            if each.wire_len > len(each.data):
                raise InvalidPacket(
                    f"only {len(each.data)} of {each.wire_len} bytes were captured (tcpdump -s 0 captures all)"
                )
            result = tracer.trace(each.data)
        except InvalidPacket as error:
            if not is_capture:
                raise click.UsageError(str(error)) from error
            failures += 1
            printer.failed(each.number, error.message)
            continue
        printer.traced(each.number, result)
        if writer is not None and result.leaves is not None:
            writer.write(result.leaves, each.time_ns)
    return 1 if failures else 0


# ---- where packets come from -----------------------------------------------------------------------------


def _given(words: tuple[str, ...]) -> Packets:
    from mptm.packets.hexadecimal import parse_hex

    with _usage_errors():
        data = parse_hex(sys.stdin.read() if words == (STANDARD_INPUT,) else " ".join(words))
    return lambda _: iter((_single(data),))


def _described(text: str) -> Packets:
    from mptm.packets.description import build_described, parse_description

    with _usage_errors():
        parse_description(text)  # what is wrong whatever the port

    def build(tracer: Tracer) -> Iterator[Captured]:
        with _usage_errors():
            data = build_described(text, tracer.defaults)
        yield _single(data)

    return build


def _single(data: bytes) -> Captured:
    from mptm.packets.capture import Captured

    return Captured(1, time.time_ns(), data, len(data))


def _captured(file: BinaryIO, name: str, limit: int | None) -> Packets:
    from mptm.errors import InvalidPacket
    from mptm.packets.capture import read_capture

    packets = read_capture(file, name)
    first = next(packets, None)
    if first is None:
        raise InvalidPacket(f"{name} has no packets in it")
    return lambda _: itertools.islice(itertools.chain((first,), packets), limit)


@contextlib.contextmanager
def _opened(name: str) -> Iterator[BinaryIO]:
    from mptm.errors import InvalidPacket

    if name == STANDARD_INPUT:
        yield sys.stdin.buffer
        return
    try:
        file = open(name, "rb")  # noqa: SIM115 - closed below
        file.peek(1)
    except OSError as error:
        raise InvalidPacket(f"{name} can't be read: {error.strerror}") from None
    with file:
        yield file


@contextlib.contextmanager
def _writing(name: str, pcap_in: str | None) -> Iterator[CaptureWriter]:
    """A capture file to write."""
    from mptm.errors import InvalidPacket
    from mptm.packets.capture import CaptureWriter

    if (
        pcap_in not in (None, STANDARD_INPUT)
        and os.path.exists(name)
        and os.path.samefile(name, str(pcap_in))
    ):
        raise click.UsageError("--pcap-out would overwrite what --pcap-in reads")
    try:
        file = open(name, "wb", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise InvalidPacket(f"{name} can't be written: {error.strerror}") from None
    with file:
        yield CaptureWriter(file, name)


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    from mptm.errors import InvalidPacket

    try:
        yield
    except InvalidPacket as error:
        raise click.UsageError(str(error)) from error


# ---- what is said ----------------------------------------------------------------------------------------


class _TextPrinter(_Printer):
    """For people: a list of steps, the verdict, the packet that leaves."""

    def __init__(self, decode: bool, *, is_capture: bool) -> None:
        super().__init__(decode)
        self._is_capture = is_capture
        self._outcomes: Counter[str] = Counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._is_capture and kind is None:
            outcomes = ", ".join(f"{number} {what}" for what, number in self._outcomes.items())
            click.echo(f"{count(self._outcomes.total(), 'packet')}: {outcomes}")

    def traced(self, number: int, result: Trace) -> None:
        """See _Printer."""
        self._outcomes[OUTCOMES.get(result.verdict, result.verdict)] += 1
        start = f"packet {number}: " if self._is_capture else ""
        click.echo(f"{start}{len(result.packet)} bytes come in at {result.port}")
        click.echo(f"  {result.packet_summary}")
        width = max((len(step.step) for step in result.steps), default=0)
        for at, step in enumerate(result.steps, 1):
            click.echo(f"{at:3}  {step.step.replace('_', ' ').ljust(width)}  {step.text}")
        click.echo(f"verdict: {result.sentence} (XDP_{result.verdict.upper()})")
        if result.leaves is not None and result.leaves != result.packet:
            self._print_leaving(result, result.leaves)
        if self._is_capture:
            click.echo()

    def _print_leaving(self, result: Trace, leaves: bytes) -> None:
        from mptm.headers import hexdump

        where = f"leave by {result.interface}" if result.interface else "go to the kernel"
        click.echo(f"{len(leaves)} bytes {where}")
        click.echo(f"  {result.summary}")
        if not self._is_capture:
            for line in hexdump(leaves[:DUMPED]):
                click.echo(f"  {line}")
            if len(leaves) > DUMPED:
                click.echo(f"  {len(leaves) - DUMPED} bytes more: --pcap-out and --json have all")
        if self._decode:
            click.echo(_decoded(leaves))

    def failed(self, number: int, message: str) -> None:
        """See _Printer."""
        self._outcomes["not traced"] += 1
        note(f"packet {number}: {message}")


class _JsonPrinter(_Printer):
    """For programs: a list that is written as it grows, and is whole even when an error ends it."""

    def __init__(self, decode: bool) -> None:
        super().__init__(decode)
        self._is_empty = True

    def __enter__(self) -> Self:
        click.echo("[", nl=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        click.echo("\n]")

    def _print(self, document: dict[str, Any]) -> None:
        click.echo(f"{'' if self._is_empty else ','}\n{json.dumps(document, indent=2)}", nl=False)
        self._is_empty = False

    def traced(self, number: int, result: Trace) -> None:
        """See _Printer."""
        document = {"number": number, **result.to_dict(), "error": None}
        if self._decode and result.leaves is not None:
            document["leaves"]["decoded"] = _decoded(result.leaves)
        self._print(document)

    def failed(self, number: int, message: str) -> None:
        """See _Printer."""
        self._print({"number": number, "error": message})
        note(f"packet {number}: {message}")


def _decoded(frame: bytes) -> str:
    from mptm.packets.description import dissect

    return dissect(frame)
