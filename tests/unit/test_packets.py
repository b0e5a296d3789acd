# SPDX-License-Identifier: GPL-2.0-only
"""Packets as people give them: hexadecimal digits and dumps, descriptions in scapy's syntax, capture files."""

from __future__ import annotations

import contextlib
import io
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw
from scapy.utils import PcapNgWriter, rdpcap, wrpcap

from mptm.errors import InvalidPacket, MptmError
from mptm.headers import describe_frame, hexdump
from mptm.packets import description
from mptm.packets.capture import Captured, CaptureWriter, read_capture
from mptm.packets.description import Defaults, build_described
from mptm.packets.hexadecimal import parse_hex

WORKLOAD, GATEWAY = "02:00:00:00:c1:01", "02:00:00:00:99:01"
DEFAULTS = Defaults(
    bytes.fromhex(WORKLOAD.replace(":", "")),
    bytes.fromhex(GATEWAY.replace(":", "")),
    {4: "10.250.1.100", 6: "fd00:250:1::100"},
)
FRAME = bytes(
    Ether(src=WORKLOAD, dst=GATEWAY)
    / IP(src="10.250.1.100", dst="10.250.1.101")
    / UDP(sport=0xABCD, dport=53)
    / Raw(b"hello")
)
"""47 bytes: the last line of its dumps is a short one."""


# ---- hexadecimal -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        FRAME.hex(),
        FRAME.hex().upper(),
        FRAME.hex(" "),
        FRAME.hex(":"),
        FRAME.hex("-"),
        FRAME.hex(" ", 2),
        "0x" + FRAME.hex(),
        " ".join(f"0x{byte:02x}" for byte in FRAME),
        ", ".join(f"0x{byte:02x}" for byte in FRAME),
        "".join(f"\\x{byte:02x}" for byte in FRAME),
        f"\n  {FRAME[:20].hex(' ')}\n{FRAME[20:].hex(' ')}\n",
        f"{FRAME[:6].hex(':')} {FRAME[6:12].hex(':')} {FRAME[12:].hex()}",
    ],
)
def test_digits_are_read_however_they_are_grouped(text):
    assert parse_hex(text) == FRAME


def test_a_frame_that_begins_with_zeroes_isnt_taken_for_a_dump():
    frame = bytes(2) + FRAME[2:]
    for text in (frame.hex(" ", 2), frame.hex(" ", -2), frame.hex(" "), frame.hex()):
        assert parse_hex(text) == frame
        assert parse_hex(text.replace(" ", "\n")) == frame


def dump_lines(data: bytes, offset: str, group: int, *, middle: str = " ", text: str | None = None) -> str:
    """A dump as programs print it: `text` is what stands before the characters, None without them."""
    lines = []
    for at in range(0, len(data), 16):
        line = data[at : at + 16]
        groups = [line[i : i + group].hex() for i in range(0, len(line), group)]
        half = 8 // group
        body = " ".join(groups[:half]) + (middle if len(groups) > half else "") + " ".join(groups[half:])
        full = 16 // group * (2 * group + 1) - 1 + len(middle) - 1
        characters = "".join(chr(byte) if 0x20 < byte < 0x7F else "." for byte in line)
        tail = "" if text is None else " " * (full - len(body)) + text + characters
        lines.append(offset.format(at) + body + tail)
    return "\n".join(lines) + "\n"


DUMPS = {
    "tcpdump -xx": ("\t0x{:04x}:  ", 2, {}),
    "tcpdump -XX": ("\t0x{:04x}:  ", 2, {"text": "  "}),
    "xxd": ("{:08x}: ", 2, {"text": "  "}),
    "tshark -x": ("{:04x}  ", 1, {"text": "   "}),
    "hexdump -C": ("{:08x}  ", 1, {"middle": "  ", "text": "  |"}),
    "od -A x -t x1": ("{:06x} ", 1, {}),
    "wireshark": ("{:04x}   ", 1, {}),
}


@pytest.mark.parametrize(("offset", "group", "more"), DUMPS.values(), ids=DUMPS)
@pytest.mark.parametrize(
    "data",
    [
        FRAME, FRAME[:46], FRAME[:16], FRAME[:14], FRAME[:32], FRAME[:42] + b"abcdef0123456789" * 9,
        FRAME[:15] + b"a" * 40,
    ],
    ids=len,
)  # fmt: skip
def test_dumps_are_read_without_their_offsets_and_text(data, offset, group, more):
    assert parse_hex(dump_lines(data, offset, group, **more)) == data


def test_what_tcpdump_says_before_the_dump_is_skipped():
    text = "12:00:00.1 IP 10.250.1.100.1 > 10.250.1.101.53: UDP, length 5\n" + dump_lines(
        FRAME, "\t0x{:04x}:  ", 2
    )
    assert parse_hex(text) == FRAME
    with pytest.raises(InvalidPacket, match="more than one packet"):
        parse_hex(text + text)


@given(st.binary(min_size=14, max_size=200))
def test_our_own_dump_is_read_back(data):
    assert parse_hex("\n".join(hexdump(data))) == data


@pytest.mark.parametrize("program", ["xxd", "hexdump", "od"])
def test_dumps_of_the_programs_themselves_are_read(program):
    if shutil.which(program) is None:
        pytest.skip(f"{program} isn't installed")
    arguments = {"xxd": [], "hexdump": ["-C"], "od": ["-A", "x", "-t", "x1"]}[program]
    for data in (FRAME, FRAME[:16], FRAME[:33]):
        done = subprocess.run([program, *arguments], input=data, capture_output=True, check=True)
        assert parse_hex(done.stdout.decode()) == data


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no hexadecimal digits"),
        ("  \n ", "no hexadecimal digits"),
        ("fff", "3 hexadecimal digits: half a byte"),
        ("ffgg", "'g' in the packet is no hexadecimal digit"),
        ("not a packet", "'n' in the packet"),
        ("0000: 0001 0203\n0020: 0405", "line 2 of the packet is at offset 0x20, behind 4 bytes"),
    ],
)
def test_what_is_no_packet_says_why(text, message):
    with pytest.raises(InvalidPacket, match=message):
        parse_hex(text)


@given(st.text())
def test_any_text_is_a_packet_or_an_error(text):
    with contextlib.suppress(InvalidPacket):
        parse_hex(text)


# ---- descriptions ------------------------------------------------------------------------------------------


def test_what_a_description_leaves_out_is_the_ports():
    assert (
        build_described('Ether()/IP(dst="10.250.1.101")/UDP(sport=0xABCD,dport=53)/b"hello"', DEFAULTS)
        == FRAME
    )
    assert build_described('IP(dst="10.250.1.101") / UDP(sport=43981, dport=53) / "hello"', DEFAULTS) == FRAME


def test_it_may_have_several_lines():
    for end in ("\n", "\\\n"):
        text = f'IP(dst="10.250.1.101"){end}  /UDP(sport=43981,{end} dport=53)/{end}"hello"\n'
        assert build_described(text, DEFAULTS) == FRAME


def test_what_it_says_stays():
    text = (
        'Ether(src="02:00:00:00:00:07",dst="02:00:00:00:00:08")/IP(src="1.2.3.4",dst="5.6.7.8",ttl=3)/ICMP()'
    )
    packet = Ether(build_described(text, DEFAULTS))
    assert (packet.src, packet.dst) == ("02:00:00:00:00:07", "02:00:00:00:00:08")
    assert (packet[IP].src, packet[IP].dst, packet[IP].ttl) == ("1.2.3.4", "5.6.7.8", 3)


@pytest.mark.parametrize(
    ("text", "mac"),
    [
        ('IP(dst="224.1.2.3")/UDP()', "01:00:5e:01:02:03"),
        ('IP(dst="255.255.255.255")/UDP()', "ff:ff:ff:ff:ff:ff"),
        ('IPv6(dst="ff02::1:ff00:101")/UDP()', "33:33:ff:00:01:01"),
        ('Dot1Q(vlan=7)/IPv6(dst="ff02::1")/UDP()', "33:33:00:00:00:01"),
        ('IPv6()/ICMPv6ND_NS(tgt="fd00::1")', "33:33:00:00:00:01"),
        ('ARP(pdst="10.250.1.1")', "ff:ff:ff:ff:ff:ff"),
        ('ARP(op=2,pdst="10.250.1.1")', GATEWAY),
        ('IP(dst="10.1.1.1")', GATEWAY),
    ],
)
def test_a_frame_for_a_group_has_the_groups_mac(text, mac):
    assert Ether(build_described(text, DEFAULTS)).dst == mac


def test_lengths_and_checksums_are_filled_in_through_all_layers():
    text = (
        'IP(src="10.30.30.2",dst="10.30.30.1")/UDP(dport=4789)/VXLAN(vni=200)/Ether()'
        '/IP(src="10.250.1.101",dst="10.250.1.100")/TCP(flags="S",options=[("MSS",1460)])/Raw(b"x"*100)'
    )
    made = build_described(text, DEFAULTS)
    again = Ether(made)
    assert bytes(again) == made
    assert again[UDP].len == len(made) - 34
    assert again[TCP].options[0] == ("MSS", 1460)
    for layer in (IP, UDP):
        del again[layer].chksum
    assert bytes(again) == made


@pytest.mark.parametrize(
    "text",
    [
        'ARP(pdst="10.250.1.1")',
        'IP(dst="10.1.1.1")/GRE(key_present=1,key=7)/IP(src="10.9.9.9",dst="10.8.8.8")/ICMP()',
        'IP(dst="10.1.1.1")/UDP(dport=6081)/GENEVE(vni=9,proto=0x6558)/Ether()/ARP(psrc="1.1.1.1",pdst="1.1.1.2")',
        'IP(dst="10.1.1.1")/UDP()/GTP_U_Header(teid=7)/IP(src="10.9.9.9",dst="10.8.8.8")',
        'IP(dst="10.1.1.1")/UDP(dport=6635)/MPLS(label=16,s=1)/IP(src="10.9.9.9",dst="10.8.8.8")',
        'IPv6(dst="fd00::1")/IPv6ExtHdrSegmentRouting(addresses=["fd00::2"])/IP(src="10.9.9.9",dst="10.8.8.8")',
        'IP(dst="10.1.1.1")/UDP()/DNS(rd=1,qd=DNSQR(qname="example.org"))',
        'IP(dst="10.1.1.1",options=[IPOption_NOP(), IPOption_NOP()])/SCTP()',
        'IP(dst="10.1.1.1")/UDP()/BOOTP()/DHCP(options=[("message-type","discover"),"end"])',
        'Ether()/"payload"',
        'Dot1AD(vlan=3)/Dot1Q(vlan=-0)/IP(dst="10.1.1.1")',
    ],
)
def test_layers_of_many_protocols_are_known(text):
    assert len(build_described(text, DEFAULTS)) >= 14


REFUSED = {
    '__import__("os").system("touch /nowhere/x")': "there is no layer __import__",
    'os.system("id")': "os.system has no place",
    "open('/etc/passwd')": "there is no layer open",
    'IP(dst=open("/etc/hostname").read())': "there is no layer open",
    'IP(dst=__import__("os"))': "there is no layer __import__",
    "(lambda: 1)()": "plain name",
    "[x for x in (1,)]": "begins with a layer",
    'IP(dst=[x for x in ("10.0.0.1",)])': "a literal",
    'IP(dst=f"{1}0.0.0.1")': "a literal",
    'IP(dst="10.0.0.1" if 1 else "")': "a literal",
    'IP(dst="10.0.0.1")/(UDP() or 1)': "literal",
    "IP(dst=name)": "name has no place",
    'IP(dst={"a": 1})': "literal",
    'IP(dst="10.0.0.1")[0]': "begins with a layer",
    'IP(dst="10.0.0.1").show()': "plain name",
    'IP(**{"dst": "10.0.0.1"})': "no room for",
    'IP(*["x"])': "given by name",
    'IP("10.0.0.1")': "given by name",
    'IP(dst="10.0.0.1", _pkt=b"x")': "no field _pkt",
    'IP(dst="10.0.0.1", nothere=1)': "no field nothere",
    'IP(dst="10.0.0.1")/5': "joined by /",
    'IP(dst="10.0.0.1")+UDP()': "joined by /",
    'IP(dst="10.0.0.1")/UDP()//UDP()': "joined by /",
    'IP(dst="10.0.0.1")/Raw(b"x"*99999999)': "more than any packet",
    'IP(dst="10.0.0.1")/Raw(10**8)': "a literal",
    "IP(dst=9*9)": "repeated",
    'b"\\x02"': "begins with a layer",
    "Packet()": "there is no layer Packet",
    "RandIP()": "there is no layer RandIP",
    "Ipv6(dst='::1')": "did you mean IPv6?",
    'IP(dst="example.org")': "a name or a net",
    'IP(dst="10.0.0.0/24")': "a name or a net",
    'IPv6(dst="example.org")': "a name or a net",
    'ARP(pdst="example.org")': "no IPv4 address",
    'ARP(pdst="10.0.0.1",hwsrc="nobody")': "no MAC address",
    'IP(dst=["10.0.0.1","10.0.0.2"])': "several packets",
    'IP(dst="10.0.0.1")/UDP(dport=[1,2])': "several packets",
    'IP(dst="10.0.0.1")/UDP(dport=(1,2))': "several packets",
    'IP(dst="10.0.0.1",ttl=300)': "can't make the packet",
    'IP(dst="10.0.0.1",ttl="x")': "can't make the packet",
    'Ether(dst="02:00")/IP(dst="10.0.0.1")': "no MAC address",
    "IP()": r"IP\(\) needs dst",
    'IPv6(src="fd00::1")/UDP()': r"IPv6\(\) needs dst",
    "ARP()": r"ARP\(\) needs pdst",
    'IP(dst="10.0.0.1")/IP(dst="10.0.0.2")': r"IP\(\) needs src",
    "Dot3()/LLC()": "needs its MAC addresses",
    "IP(": "can't be read",
    "": "can't be read",
    "\0": "can't be read",
    "x = 1": "can't be read",
    "(" * 5000: "can't be read",
    "-" * 5000 + "1": "can't be read|has no place",
    "Ether()" + "/Ether()" * 9000: "longer than",
}


@pytest.mark.parametrize(("text", "message"), REFUSED.items(), ids=[each[:40] for each in REFUSED])
def test_nothing_but_layers_with_literals_is_taken(text, message):
    with pytest.raises(InvalidPacket, match=message):
        build_described(text, DEFAULTS)


def test_nobody_is_asked_for_an_address(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("somebody was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "send", refuse)
    monkeypatch.setattr(socket.socket, "sendto", refuse)
    for text in (
        'IP(dst="10.250.1.101")/UDP()',
        "IPv6()/ICMPv6ND_NS(tgt='fd00::1')",
        'ARP(pdst="10.250.1.1")',
    ):
        assert build_described(text, DEFAULTS)
    for text in ('IP(dst="example.org")', "Dot3()", 'IP(dst="localhost")'):
        with pytest.raises(InvalidPacket):
            build_described(text, DEFAULTS)


def test_scapy_is_as_it_was_afterwards():
    from scapy.base_classes import Net
    from scapy.config import conf

    before = conf.neighbor, conf.route, conf.route6, vars(Net)["name2addr"]
    build_described('IP(dst="10.250.1.101")/UDP()', DEFAULTS)
    with pytest.raises(InvalidPacket):
        build_described('IP(dst="example.org")', DEFAULTS)
    assert (conf.neighbor, conf.route, conf.route6, vars(Net)["name2addr"]) == before


def test_where_nothing_is_known_of_the_sender_its_address_is_to_be_given():
    unknown = Defaults(DEFAULTS.source_mac, DEFAULTS.destination_mac)
    with pytest.raises(InvalidPacket, match=r"IP\(\) needs src"):
        build_described('IP(dst="10.250.1.101")', unknown)


def test_without_scapy_the_error_says_how_to_get_it(tmp_path):
    (tmp_path / "scapy.py").write_text("raise ModuleNotFoundError('No module named scapy', name='scapy')\n")
    done = subprocess.run(
        [sys.executable, "-m", "mptm", "trace", "veth-a", "--scapy", 'IP(dst="10.0.0.1")', "--decode"],
        env={"PYTHONPATH": f"{tmp_path}:{Path(description.__file__).parents[2]}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr == "mptm: error: this needs scapy, which isn't installed\n  pip install 'mptm[trace]'\n"
    )


# ---- capture files -----------------------------------------------------------------------------------------

TIMES = (1_700_000_000_123_456_000, 1_700_000_001_000_000_000)
FRAMES = (FRAME, bytes(Ether(src=WORKLOAD, dst=GATEWAY) / IPv6(dst="::1", src="::2") / ICMPv6EchoRequest()))


def captured(data: bytes) -> list[Captured]:
    return list(read_capture(io.BytesIO(data), "some.pcap"))


def expected(*lengths: int) -> list[Captured]:
    return [
        Captured(number, time, frame, len(frame))
        for number, (time, frame) in enumerate(zip(TIMES, FRAMES, strict=True), 1)
    ]


def pcap(order: str, magic: int, unit_ns: int, linktype: int = 1) -> bytes:
    data = struct.pack(f"{order}IHHiIII", magic, 2, 4, 0, 0, 65535, linktype)
    for time, frame in zip(TIMES, FRAMES, strict=True):
        seconds, rest = divmod(time, 10**9)
        data += struct.pack(f"{order}IIII", seconds, rest // unit_ns, len(frame), len(frame)) + frame
    return data


def block(order: str, kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    return struct.pack(f"{order}II", kind, len(body) + 12) + body + struct.pack(f"{order}I", len(body) + 12)


def section(order: str) -> bytes:
    return block(order, 0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))


def enhanced(order: str, interface: int, units: int, frame: bytes, wire_len: int | None = None) -> bytes:
    head = struct.pack(
        f"{order}IIIII", interface, units >> 32, units & 0xFFFFFFFF, len(frame), wire_len or len(frame)
    )
    return block(order, 6, head + frame)


def pcapng(order: str, linktype: int = 1) -> bytes:
    """Interface 0 counts microseconds, interface 1 nanoseconds; other blocks are in between."""
    nanoseconds = struct.pack(f"{order}HHB3xHH", 9, 1, 9, 0, 0)
    return (
        section(order)
        + block(order, 1, struct.pack(f"{order}H2xI", linktype, 0))
        + block(order, 5, bytes(20))
        + enhanced(order, 0, TIMES[0] // 1000, FRAMES[0])
        + block(order, 1, struct.pack(f"{order}H2xI", linktype, 65535) + nanoseconds)
        + enhanced(order, 1, TIMES[1], FRAMES[1])
        + block(order, 0x0BAD, b"private")
    )


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcap_is_read_in_either_byte_order_and_unit_of_time(order):
    assert captured(pcap(order, 0xA1B2C3D4, 1000)) == expected()
    assert captured(pcap(order, 0xA1B23C4D, 1)) == expected()


@pytest.mark.parametrize("order", ["<", ">"])
def test_pcapng_is_read_with_several_interfaces_and_sections(order):
    assert captured(pcapng(order)) == expected()
    other = pcapng("<" if order == ">" else ">")
    assert [each.data for each in captured(pcapng(order) + other)] == [*FRAMES, *FRAMES]
    assert [each.number for each in captured(pcapng(order) + other)] == [1, 2, 3, 4]


def test_simple_and_obsolete_packet_blocks_of_pcapng_are_read():
    simple = block("<", 3, struct.pack("<I", len(FRAME)) + FRAME)
    obsolete = block("<", 2, struct.pack("<HHIIII", 0, 0, 0, 7, len(FRAME), len(FRAME)) + FRAME)
    interface = block("<", 1, struct.pack("<H2xI", 1, 40))
    found = captured(section("<") + interface + block("<", 3, struct.pack("<I", 47) + FRAME[:40]) + obsolete)
    assert [(each.data, each.wire_len, each.time_ns) for each in found] == [
        (FRAME[:40], 47, 0),
        (FRAME, 47, 7000),
    ]
    assert captured(section("<") + block("<", 1, struct.pack("<H2xI", 1, 0)) + simple)[0].data == FRAME


def test_what_scapy_writes_is_read(tmp_path):
    wrpcap(str(tmp_path / "classic"), [Ether(frame) for frame in FRAMES])
    with PcapNgWriter(str(tmp_path / "ng")) as writer:
        for frame in FRAMES:
            writer.write(Ether(frame))
    for name in ("classic", "ng"):
        assert [each.data for each in captured((tmp_path / name).read_bytes())] == list(FRAMES)


def test_what_is_written_scapy_reads(tmp_path):
    with (tmp_path / "out.pcap").open("wb") as file:
        writer = CaptureWriter(file, "out.pcap")
        for time, frame in zip(TIMES, FRAMES, strict=True):
            writer.write(frame, time)
    assert captured((tmp_path / "out.pcap").read_bytes()) == expected()
    read = rdpcap(str(tmp_path / "out.pcap"))
    assert [bytes(each) for each in read] == list(FRAMES)
    assert float(read[0].time) == pytest.approx(TIMES[0] / 1e9, abs=1e-6)


def test_a_frame_that_was_cut_says_how_long_it_was():
    data = (
        struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 20, 1)
        + struct.pack("<IIII", 1, 0, 20, 47)
        + FRAME[:20]
    )
    assert captured(data) == [Captured(1, 10**9, FRAME[:20], 47)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "some.pcap is empty"),
        (b"abc", "no capture file"),
        (b"hello, world", "no capture file"),
        (b"\x1f\x8b\x08\x00", "is compressed"),
        (pcap("<", 0xA1B2C3D4, 1000, 113), "a link of Linux cooked"),
        (pcap(">", 0xA1B2C3D4, 1000, 101), "a link of raw IP"),
        (pcap(">", 0xA1B2C3D4, 1000, 4711), r"another kind \(link type 4711\)"),
        (pcapng("<", 276), "packet 1 of some.pcap was captured on a link of Linux cooked v2"),
        (pcap("<", 0xA1B2C3D4, 1000)[:20], "ends in the middle, before its first packet"),
        (pcap("<", 0xA1B2C3D4, 1000)[:-5], "ends in the middle, behind packet 1"),
        (pcapng(">")[:-50], "ends in the middle, behind packet 1"),
        (pcap("<", 0xA1B2C3D4, 1000)[:32] + b"\xff" * 40, "damaged, before its first packet"),
        (section("<")[:8] + b"\0" * 20, "damaged"),
        (section("<") + enhanced("<", 0, 0, FRAME), "damaged, before its first packet"),
        (section("<") + struct.pack("<II", 6, 13), "damaged"),
        (section("<") + struct.pack("<II", 1, 0), "damaged"),
    ],
)
def test_what_is_no_capture_of_ethernet_says_so(data, message):
    with pytest.raises(InvalidPacket, match=message):
        captured(data)


@given(st.sampled_from([pcap("<", 0xA1B2C3D4, 1000), pcapng("<"), pcapng(">")]), st.data())
def test_any_damage_is_an_error_or_goes_unnoticed(data, draw):
    changed = bytearray(data[: draw.draw(st.integers(0, len(data)))])
    for at in draw.draw(st.lists(st.integers(0, max(0, len(changed) - 1)), max_size=5)):
        if changed:
            changed[at] = draw.draw(st.integers(0, 255))
    with contextlib.suppress(MptmError):
        captured(bytes(changed))


# ---- as text -----------------------------------------------------------------------------------------------

MACS = f"eth(dst={GATEWAY},src={WORKLOAD},type="


@pytest.mark.parametrize(
    ("packet", "text"),
    [
        (
            IP(src="10.0.0.1", dst="10.0.0.2", ttl=9, tos=4) / UDP(sport=1, dport=2, chksum=0x1234),
            "0x0800),ipv4(src=10.0.0.1,dst=10.0.0.2,proto=17,tos=0x4,ttl=9,frag=0x0),udp(src=1,dst=2,csum=0x1234)",
        ),
        (
            IP(src="10.0.0.1", dst="10.0.0.2", flags="DF") / TCP(sport=1, dport=2, flags="SA"),
            "0x0800),ipv4(src=10.0.0.1,dst=10.0.0.2,proto=6,tos=0x0,ttl=64,frag=0x4000),tcp(src=1,dst=2,flags=0x12)",
        ),
        (
            IP(src="10.0.0.1", dst="10.0.0.2", frag=5, proto=17) / Raw(bytes(40)),
            "0x0800),ipv4(src=10.0.0.1,dst=10.0.0.2,proto=17,tos=0x0,ttl=64,frag=0x5)",
        ),
        (
            Dot1Q(vlan=7, prio=3) / IPv6(src="fd00::1", dst="fd00::2", tc=8, fl=0x12345) / ICMPv6EchoRequest(),
            "0x8100),vlan(vid=7,pcp=3,type=0x86dd),ipv6(src=fd00::1,dst=fd00::2,label=0x12345,proto=58,tclass=0x8,"
            "hlimit=64),icmpv6(type=128,code=0)",
        ),
        (
            IP(src="10.0.0.1", dst="10.0.0.2") / ICMP(type=3, code=4, nexthopmtu=1400),
            "0x0800),ipv4(src=10.0.0.1,dst=10.0.0.2,proto=1,tos=0x0,ttl=64,frag=0x0),icmp(type=3,code=4,mtu=1400)",
        ),
        (
            ARP(op=2, hwsrc=WORKLOAD, psrc="10.0.0.1", hwdst=GATEWAY, pdst="10.0.0.2"),
            f"0x0806),arp(op=2,sip=10.0.0.1,tip=10.0.0.2,sha={WORKLOAD},tha={GATEWAY})",
        ),
        (Raw(b"x"), "0x9000)"),
    ],
)  # fmt: skip
def test_frames_are_described_in_the_style_of_open_vswitch(packet, text):
    assert describe_frame(bytes(Ether(src=WORKLOAD, dst=GATEWAY) / packet)) == MACS + text


@given(st.binary(max_size=120))
def test_any_bytes_are_described(data):
    for start in (b"", bytes.fromhex("0800"), bytes.fromhex("86dd"), bytes.fromhex("0806")):
        assert describe_frame(bytes(12) + start + data)
