# SPDX-License-Identifier: GPL-2.0-only
"""Maps, links, pins and facts of the running kernel. Interfaces live in namespaces made for the test."""

from __future__ import annotations

import dataclasses
import errno
import gc
import itertools
import os
import shutil
import socket
import stat
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from world import ip

from mptm import tables
from mptm.errors import (
    ForeignProgram,
    InvalidIntent,
    KernelError,
    MptmError,
    NotFound,
    NotSupported,
    TableFull,
)
from mptm.facts import Facts
from mptm.kernel import bpffs, libbpf, netlink, netns, segmenter, tc
from mptm.kernel.dataplane import NO_TCX, DataPlane, instance_directory, remove_instance
from mptm.kernel.maps import Map, possible_cpus
from mptm.kernel.objects import DATA_PLANE, DATA_PLANE_TC, EXTRAS, object_path
from mptm.kernel.testrun import Run
from mptm.tables import Attachment

ROOT = Path(__file__).resolve().parents[2]
XDP_PASS = 2
_numbers = itertools.count(1)


def command(*words: str) -> str:
    process = subprocess.run(words, capture_output=True, text=True)
    assert process.returncode == 0, f"{' '.join(words)}: {process.stderr}"
    return process.stdout


def bpftool(*arguments: str) -> str:
    return command("bpftool", *arguments)


def open_loaded(instance: str) -> DataPlane:
    data_plane = DataPlane.open(instance, load=True)
    assert data_plane is not None
    return data_plane


@pytest.fixture
def namespace() -> Iterator[Callable[[], str]]:
    """Makes namespaces, which are deleted after the test."""
    made: list[str] = []

    def make() -> str:
        name = f"mptmk{os.getpid()}-{next(_numbers)}"
        ip("netns", "add", name)
        made.append(name)
        ip("-n", name, "link", "set", "lo", "up")
        return name

    yield make
    for name in made:
        ip("netns", "del", name)


@pytest.fixture
def instance() -> Iterator[str]:
    """Name of an instance of the test's own, removed after it."""
    name = f"test-kernel-{os.getpid()}-{next(_numbers)}"
    yield name
    remove_instance(name)


@dataclass(frozen=True)
class Pair:
    """A veth pair between two namespaces; `up` is the interface that programs are attached to."""

    here: str
    there: str
    name: str
    ifindex: int


@pytest.fixture
def pair(namespace: Callable[[], str]) -> Pair:
    here, there = namespace(), namespace()
    return make_pair(here, there)


def make_pair(here: str, there: str, name: str = "up0") -> Pair:
    ip("-n", here, "link", "add", name, "type", "veth", "peer", "name", name, "netns", there)
    for each in (here, there):
        ip("-n", each, "link", "set", name, "up")
    with netns.inside(here):
        return Pair(here, there, name, socket.if_nametoindex(name))


def attachment(pair: Pair, *, role: str = "uplink", mode: str = "auto") -> Attachment:
    return Attachment(pair.ifindex, pair.name, role, mode)


# ---- tables ----------------------------------------------------------------------------------------------


@pytest.fixture
def table(dataplane: DataPlane) -> Iterator[Callable[[str], Map]]:
    """The table of a name, emptied after the test."""
    used: list[Map] = []

    def find(name: str) -> Map:
        used.append(dataplane.maps[name])
        return used[-1]

    yield find
    for each in used:
        each.delete(list(each.items()))


def host_entries(table: Map, count: int) -> dict[bytes, bytes]:
    return {
        table.key.pack(tables.HostKeyV4(1, struct.pack(">I", number))): table.value.pack(
            tables.NextHop(2, 1, b"\x02\0\0\0\0\x01", number)
        )
        for number in range(count)
    }


def test_a_hash_gives_back_what_was_written_and_forgets_what_was_deleted(table: Callable[[str], Map]) -> None:
    hosts = table("hosts_v4")
    entries = host_entries(hosts, 1000)
    hosts.update(entries)
    assert hosts.items() == entries
    first, *rest = entries
    assert hosts.get(first) == entries[first]
    assert hosts.value.unpack(entries[first])["kind"] == 2
    hosts.delete(rest)
    assert hosts.items() == {first: entries[first]}
    hosts.delete([first])
    assert hosts.get(first) is None
    assert hosts.items() == {}


def test_a_hundred_thousand_entries_are_written_listed_and_deleted(table: Callable[[str], Map]) -> None:
    hosts = table("hosts_v4")
    entries = host_entries(hosts, 100_000)
    hosts.update(entries)
    assert hosts.items() == entries
    hosts.delete(entries)
    assert hosts.items() == {}


def test_deleting_skips_keys_that_are_not_there(table: Callable[[str], Map]) -> None:
    hosts = table("hosts_v4")
    entries = host_entries(hosts, 10)
    keys = list(entries)
    hosts.update({key: entries[key] for key in keys[::2]})
    hosts.delete(keys)
    assert hosts.items() == {}


def test_an_entry_is_replaced_by_the_same_key(table: Callable[[str], Map]) -> None:
    hosts = table("hosts_v4")
    (key,) = host_entries(hosts, 1)
    for number in (1, 2):
        hosts.update({key: hosts.value.pack(tables.NextHop(4, 0, b"", number))})
    assert hosts.value.unpack(hosts.items()[key])["id"] == 2


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("prefixes_v4", tables.PrefixKeyV4(24, 1, bytes((10, 250, 1, 0)))),
        ("prefixes_v6", tables.PrefixKeyV6(64, 1, bytes((0xFD,)) + bytes(15))),
    ],
)
def test_prefixes_are_written_listed_and_deleted(table: Callable[[str], Map], name: str, key: object) -> None:
    prefixes = table(name)
    packed, hop = prefixes.key.pack(key), prefixes.value.pack(tables.NextHop(3, 0, b"", 0))
    prefixes.update({packed: hop})
    assert prefixes.items() == {packed: hop}
    assert prefixes.get(packed) == hop
    prefixes.delete([packed])
    assert prefixes.items() == {}


def test_an_array_lists_the_slots_in_use_and_a_deleted_slot_is_zero(table: Callable[[str], Map]) -> None:
    ports = table("ports")
    assert ports.items() == {}
    slots = [ports.key.pack(slot) for slot in (0, 63, 64, 4095)]
    value = ports.value.pack(tables.Port(7, 1, 1500, 1, 0, b"\x02\0\0\0\0\x07"))
    ports.update(dict.fromkeys(slots, value))
    assert ports.items() == dict.fromkeys(slots, value)
    ports.delete(slots[:2])
    assert ports.items() == dict.fromkeys(slots[2:], value)
    assert ports.get(slots[0]) == bytes(ports.value.size)


def test_a_slot_beyond_an_array_is_a_full_table(table: Callable[[str], Map]) -> None:
    ports = table("ports")
    with pytest.raises(TableFull, match="the table ports is full: it has room for 4096 entries"):
        ports.update({ports.key.pack(4096): bytes(ports.value.size)})


def test_an_entry_too_many_is_a_full_table_by_name_and_size(table: Callable[[str], Map]) -> None:
    full = table("locals")
    with pytest.raises(TableFull, match=rf"locals is full: it has room for {full.max_entries} entries"):
        full.update(
            {struct.pack(">IIII", 0, 0, 0, number): bytes(4) for number in range(full.max_entries + 1)}
        )


def test_counters_have_a_value_per_cpu_a_sum_and_can_be_zeroed(table: Callable[[str], Map]) -> None:
    counters = table("tunnel_counters")
    key = counters.key.pack(5)
    stride = counters.value.size
    per_cpu = [struct.pack("=QQQQ", cpu + 1, 10, 0, 0) for cpu in range(possible_cpus())]
    counters.update({key: b"".join(per_cpu)})
    assert counters.percpu(key) == per_cpu
    assert all(len(value) == stride for value in counters.percpu(key))
    total = sum(range(1, possible_cpus() + 1))
    assert counters.totals(key)["encap_packets"] == total
    assert counters.all_totals()[key]["encap_bytes"] == 10 * possible_cpus()
    counters.delete([key])
    assert counters.percpu_items() == {}
    assert counters.totals(key) == dict.fromkeys(
        ("encap_packets", "encap_bytes", "decap_packets", "decap_bytes"), 0
    )


def test_a_per_cpu_hash_is_listed_and_deleted(table: Callable[[str], Map]) -> None:
    drops = table("drops")
    key = struct.pack("=HHI", 1, 2, 3)
    drops.update({key: struct.pack("=QQ", 4, 400)})
    assert drops.key.unpack(key) == {"reason": 1, "scope": 2, "id": 3}
    assert drops.all_totals() == {key: {"packets": 4 * possible_cpus(), "bytes": 400 * possible_cpus()}}
    drops.delete([key, key])
    assert drops.items() == {}


def test_a_redirect_target_is_an_interface_of_the_writers_namespace(
    table: Callable[[str], Map], pair: Pair
) -> None:
    tx_ports = table("tx_ports")
    key = tx_ports.key.pack(pair.ifindex)
    with netns.inside(pair.here):
        tx_ports.update({key: key})
        assert tx_ports.items() == {key: key}
        ip("link", "del", pair.name)
    assert tx_ports.items() == {}, "the kernel forgets it along with the interface"
    missing = tx_ports.key.pack(987654)
    with netns.inside(pair.here), pytest.raises(KernelError, match="interface 987654 is not in this network"):
        tx_ports.update({missing: missing})


def test_keys_and_values_of_the_wrong_size_are_refused(table: Callable[[str], Map]) -> None:
    hosts = table("hosts_v4")
    with pytest.raises(ValueError, match="hosts_v4: a key has 12 bytes, not 7"):
        hosts.update({bytes(7): bytes(12)})
    with pytest.raises(ValueError, match="hosts_v4: a value has 12 bytes, not 13"):
        hosts.update({bytes(12): bytes(13)})


# ---- programs --------------------------------------------------------------------------------------------


def test_a_packet_that_is_nobodys_passes_as_it_came(run: Callable[..., Run]) -> None:
    packet = b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5" + bytes(range(46))
    for program in ("mptm_encap_xdp", "mptm_decap_xdp"):
        result = run(program, packet)
        assert (result.verdict, result.data) == (XDP_PASS, packet)


def test_a_packet_too_short_for_ethernet_is_an_error_in_words(run: Callable[..., Run]) -> None:
    with pytest.raises(KernelError, match="the kernel doesn't run a packet of 3 bytes"):
        run("mptm_encap_xdp", bytes(3))


def test_an_unknown_program_is_not_found(dataplane: DataPlane) -> None:
    with pytest.raises(NotFound, match="no program nobody"):
        dataplane.program_fd("nobody")


def test_the_extra_programs_load() -> None:
    with libbpf.Object(object_path(EXTRAS)) as extras:
        extras.load()
        programs = extras.program_fds()
    assert {"mptm_redirect", "mptm_pass"} <= programs.keys()
    for fd in programs.values():
        os.close(fd)


def test_a_rejected_program_says_why(tmp_path: Path, clang: Callable[..., Path]) -> None:
    path = clang(
        tmp_path / "bad.o",
        """
        #include <linux/bpf.h>
        #include <bpf/bpf_helpers.h>
        char LICENSE[] SEC("license") = "GPL";
        SEC("xdp") int bad(struct xdp_md *ctx) { return *(volatile int *)(long)ctx->data; }
        """,
    )
    with (
        libbpf.Object(path) as bad,
        pytest.raises(KernelError, match=r"the kernel doesn't take bad\.o") as caught,
    ):
        bad.load()
    assert "invalid access to packet" in (caught.value.hint or "")


def test_a_file_that_is_no_object_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "no.o").write_bytes(b"nothing")
    with pytest.raises(KernelError, match=r"no\.o can't be opened"):
        libbpf.Object(tmp_path / "no.o")


# ---- pins ------------------------------------------------------------------------------------------------


def test_nothing_is_loaded_unless_asked_for(instance: str) -> None:
    assert DataPlane.open(instance, load=False) is None
    assert not instance_directory(instance).exists()


def test_what_was_loaded_is_found_again_with_its_entries(instance: str) -> None:
    with open_loaded(instance) as data_plane:
        hosts = data_plane.maps["hosts_v4"]
        entries = host_entries(hosts, 3)
        hosts.update(entries)
        program_id = data_plane.program_id("mptm_encap_xdp")
    for load in (True, False):
        found = DataPlane.open(instance, load=load)
        assert found is not None
        with found:
            assert found.maps["hosts_v4"].items() == entries
            assert found.program_id("mptm_encap_xdp") == program_id
            assert not found.upgrade_needed


def test_pins_are_where_bpftool_looks_for_them_and_root_only(instance: str) -> None:
    open_loaded(instance).close()
    root = instance_directory(instance)
    assert {pin.name for pin in (root / "progs").iterdir()} == {"mptm_encap_xdp", "mptm_decap_xdp"}
    assert '"name": "tunnel_counters"' in bpftool(
        "-jp", "map", "show", "pinned", str(root / "maps/tunnel_counters")
    )
    assert '"outer_len"' in bpftool(
        "-j", "map", "lookup", "pinned", str(root / "maps/tunnels"), "key", "0", "0", "0", "0"
    )
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o700 for path in (root, root / "maps", root / "progs"))


def test_a_name_with_dots_can_be_pinned(pair: Pair, namespace: Callable[[], str]) -> None:
    name = f"test.kernel.{os.getpid()}"
    dotted = make_pair(pair.here, pair.there, "up0.100")
    try:
        with netns.inside(pair.here), open_loaded(name) as data_plane:
            assert data_plane.attach(attachment(dotted)) == "native"
            assert [each.name for each in data_plane.attachments()] == ["up0.100"]
            data_plane.detach("up0.100")
            assert data_plane.attachments() == []
    finally:
        remove_instance(name)
    assert not instance_directory(name).exists()


def test_removing_leaves_nothing_and_can_be_repeated(instance: str, pair: Pair) -> None:
    with netns.inside(pair.here):
        data_plane = open_loaded(instance)
        data_plane.attach(attachment(pair))
        data_plane.remove()
        assert netlink.xdp_states() == []
    assert not instance_directory(instance).exists()
    remove_instance(instance)


def test_what_bpftool_loaded_is_adopted(instance: str, pair: Pair) -> None:
    root = instance_directory(instance)
    root.mkdir(parents=True)
    bpftool(
        *("prog", "loadall", str(object_path(DATA_PLANE)), str(root / "progs"), "type", "xdp"),
        *("pinmaps", str(root / "maps")),
    )
    with open_loaded(instance) as data_plane:
        assert not data_plane.upgrade_needed
        by_bpftool = bpftool("-jp", "prog", "show", "pinned", str(root / "progs/mptm_decap_xdp"))
        assert f'"id": {data_plane.program_id("mptm_decap_xdp")}' in by_bpftool
        with netns.inside(pair.here):
            bpftool(
                "net", "attach", "xdp", "id", str(data_plane.program_id("mptm_decap_xdp")), "dev", pair.name
            )
            assert data_plane.attach(attachment(pair)) == "adopted"
            (attached,) = data_plane.attachments()
            assert (attached.ifindex, attached.name, attached.mode, attached.program) == (
                *(pair.ifindex, pair.name),
                *("adopted", "mptm_decap_xdp"),
            )
            assert data_plane.attach(attachment(pair, role="access")) == "adopted"
            assert data_plane.attachments()[0].program == "mptm_encap_xdp"
            data_plane.detach(pair.name)
            assert data_plane.attachments() == []
            assert netlink.xdp_states() == []


def test_a_load_that_was_interrupted_is_finished_with_the_tables_and_links_there_are(
    instance: str, pair: Pair
) -> None:
    with netns.inside(pair.here):
        with open_loaded(instance) as data_plane:
            data_plane.attach(attachment(pair))
            data_plane.maps["hosts_v4"].update(entries := host_entries(data_plane.maps["hosts_v4"], 3))
        (instance_directory(instance) / "progs/mptm_encap_xdp").unlink()
        assert DataPlane.open(instance, load=False) is None
        with open_loaded(instance) as finished:
            assert not finished.upgrade_needed
            assert finished.maps["hosts_v4"].items() == entries
            assert finished.attach(attachment(pair)) == "native"
            (state,) = netlink.xdp_states()
            assert state.program_id == finished.program_id("mptm_decap_xdp")


def test_a_data_plane_that_is_forgotten_leaves_no_descriptor_open(instance: str) -> None:
    open_loaded(instance).close()
    gc.collect()  # what other tests forgot
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        assert open_loaded(instance).maps["ports"].key.size == 4
    gc.collect()
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("name", ["", "a/b", "x" * 65, "a b"])
def test_a_name_that_no_instance_can_have_is_refused(name: str) -> None:
    with pytest.raises(InvalidIntent, match="is no name for an instance"):
        remove_instance(name)


# ---- another build ---------------------------------------------------------------------------------------


BUILD = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "maps.h"
char LICENSE[] SEC("license") = "GPL";
SEC(KIND) int mptm_encap_xdp(struct xdp_md *ctx)
{
	if (ctx->ingress_ifindex == 12345)
		return bpf_redirect_map(&tx_ports, 1, XDP_DROP);
	return SLOT(ports, 0) ? VERDICT : XDP_ABORTED;
}
SEC(KIND) int mptm_decap_xdp(struct xdp_md *ctx)
{
	return SLOT(tunnels, 0) ? VERDICT : XDP_ABORTED;
}
"""


@pytest.fixture
def build(tmp_path: Path, clang: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """build(verdict, {old: new}): from now on, the object's programs give this verdict, and its tables are those
    of bpf/maps.h with text replaced. `kind` is the programs' section."""

    def use(verdict: str, replace: dict[str, str] | None = None, *, kind: str = "xdp.frags") -> None:
        directory = tmp_path / str(next(_numbers))
        directory.mkdir()
        for header in ("abi.h", "maps.h"):
            text = (ROOT / "bpf" / header).read_text()
            for old, new in (replace or {}).items():
                text = text.replace(old, new)
            (directory / header).write_text(text)
        clang(directory / DATA_PLANE, BUILD, f"-DVERDICT={verdict}", f'-DKIND="{kind}"', f"-I{directory}")
        monkeypatch.setenv("MPTM_OBJECT_DIR", str(directory))

    return use


def peer_is_dropped(pair: Pair) -> bool:
    """Sends a frame to the interface that runs the program; true when the stack behind it doesn't get it."""
    with netns.inside(pair.here):
        receiver = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
        receiver.bind((pair.name, 0x88B5))
        receiver.settimeout(0.2)
    with netns.inside(pair.there):
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        sender.bind((pair.name, 0))
    with receiver, sender:
        sender.send(b"\xff" * 6 + b"\x02\0\0\0\0\x01" + b"\x88\xb5" + bytes(46))
        try:
            receiver.recv(100)
        except TimeoutError:
            return True
        return False


def test_an_upgrade_keeps_tables_and_switches_links(
    instance: str, pair: Pair, build: Callable[..., None]
) -> None:
    build("XDP_PASS")
    with netns.inside(pair.here), open_loaded(instance) as old:
        old.attach(attachment(pair))
        old.maps["hosts_v4"].update(entries := host_entries(old.maps["hosts_v4"], 3))
        old_id = old.program_id("mptm_decap_xdp")
        link_id = link_id_of(instance, pair.name)
    assert not peer_is_dropped(pair)

    build("XDP_DROP")
    with netns.inside(pair.here):
        unloaded = DataPlane.open(instance, load=False)
        assert unloaded is not None
        assert unloaded.upgrade_needed
        unloaded.close()
        with open_loaded(instance) as new:
            assert new.upgrade_needed
            assert new.fresh_maps == frozenset()
            assert new.maps["hosts_v4"].items() == entries
            assert not peer_is_dropped(pair), "nothing changes before the links are switched"
            new.switch_links()
            assert not new.upgrade_needed
            assert new.program_id("mptm_decap_xdp") != old_id
            assert [each.program for each in new.attachments()] == ["mptm_decap_xdp"]
            new_id = new.program_id("mptm_decap_xdp")
    assert peer_is_dropped(pair)
    assert link_id_of(instance, pair.name) == link_id, "the link itself never went away"
    with open_loaded(instance) as again:
        assert not again.upgrade_needed
        assert again.program_id("mptm_decap_xdp") == new_id


def link_id_of(instance: str, interface: str) -> int:
    fd = libbpf.open_pin(instance_directory(instance) / "links" / bpffs.escape(interface))
    try:
        return libbpf.link_info(fd).id
    finally:
        os.close(fd)


def test_a_table_of_another_size_starts_empty_and_the_others_are_kept(
    instance: str, build: Callable[..., None]
) -> None:
    build("XDP_PASS", {"MPTM_SEGMENTS\t   256": "MPTM_SEGMENTS 4"})
    with open_loaded(instance) as old:
        key = old.maps["ports"].key.pack(1)
        value = old.maps["ports"].value.pack(tables.Port(7, 1, 1500, 1, 0, b""))
        old.maps["ports"].update({key: value})
        old.maps["hosts_v4"].update(host_entries(old.maps["hosts_v4"], 3))

    build("XDP_PASS", {"MPTM_SEGMENTS\t   256": "MPTM_SEGMENTS 8"})
    with open_loaded(instance) as new:
        assert {"hosts_v4", "prefixes_v6", "next_hops"} <= new.fresh_maps
        assert not {"ports", "tx_ports", "drops"} & new.fresh_maps
        assert new.maps["hosts_v4"].items() == {}
        assert new.maps["hosts_v4"].max_entries == 8 * 12288
        assert new.maps["ports"].items() == {key: value}
        new.switch_links()
    with open_loaded(instance) as again:
        assert again.maps["hosts_v4"].max_entries == 8 * 12288
        assert not again.upgrade_needed


def test_a_layout_that_changed_at_the_same_size_gets_a_fresh_table(
    instance: str, pair: Pair, build: Callable[..., None]
) -> None:
    build("XDP_PASS")
    with netns.inside(pair.here), open_loaded(instance) as old:
        old.attach(attachment(pair))
        key = old.maps["ports"].key.pack(1)
        value = old.maps["ports"].value.pack(tables.Port(7, 1, 1500, 1, 0, b""))
        old.maps["ports"].update({key: value})
        row = old.maps["listeners"].value.pack(tables.ListenerRow(bytes((0, 1, 0, 0, 0, 0, 0, 0))))
        old.maps["listeners"].update({key: row})

    build("XDP_DROP", {"__u32 mtu;": "__u32 longest;"})  # struct port gets a field of another name
    with netns.inside(pair.here):
        with open_loaded(instance) as interrupted:
            assert interrupted.fresh_maps == {"ports"}
        with open_loaded(instance) as new:
            assert new.upgrade_needed, "an upgrade that was not finished is found again"
            assert new.fresh_maps == {"ports"}
            assert new.maps["ports"].items() == {}
            assert len(new.maps["listeners"].items()) == 1
            assert not peer_is_dropped(pair)
            new.maps["ports"].update({key: value})
            assert [each.program for each in new.attachments()] == ["mptm_decap_xdp"]
            new.switch_links()
            assert peer_is_dropped(pair)
        found = DataPlane.open(instance, load=False)
        assert found is not None
        with found:
            assert found.maps["ports"].value.unpack(value)["longest"] == 1500
            assert found.maps["ports"].items() == {key: value}


def test_an_upgrade_from_programs_for_whole_frames_to_those_for_several_buffers(
    instance: str, pair: Pair, build: Callable[..., None]
) -> None:
    """The kernel refuses a DEVMAP that serves both kinds, but not tx_ports, which is a DEVMAP_HASH."""
    build("XDP_PASS", kind="xdp")
    with netns.inside(pair.here), open_loaded(instance) as old:
        old.attach(attachment(pair))
        target = {old.maps["tx_ports"].key.pack(pair.ifindex): old.maps["tx_ports"].value.pack(pair.ifindex)}
        old.maps["tx_ports"].update(target)
        redirects = old.maps["tx_ports"].items()
    assert not peer_is_dropped(pair)

    build("XDP_DROP", kind="xdp.frags")
    with netns.inside(pair.here), open_loaded(instance) as new:
        assert new.upgrade_needed
        assert new.fresh_maps == frozenset()
        assert new.maps["tx_ports"].items() == redirects
        new.switch_links()
    assert peer_is_dropped(pair)
    with open_loaded(instance) as again:
        assert not again.upgrade_needed


def test_an_upgrade_switches_adopted_programs_too(
    instance: str, pair: Pair, build: Callable[..., None]
) -> None:
    build("XDP_PASS")
    with netns.inside(pair.here), open_loaded(instance) as old:
        bpftool("net", "attach", "xdpgeneric", "id", str(old.program_id("mptm_decap_xdp")), "dev", pair.name)
    build("XDP_DROP", {"__u32 mtu;": "__u32 longest;"})
    with netns.inside(pair.here), open_loaded(instance) as new:
        new.switch_links()
        (state,) = netlink.xdp_states()
        assert (state.program_id, state.mode) == (new.program_id("mptm_decap_xdp"), "generic")
    assert peer_is_dropped(pair)


def test_an_upgrade_that_was_killed_after_switching_is_finished_by_the_next(
    instance: str, pair: Pair, build: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    build("XDP_PASS")
    with netns.inside(pair.here), open_loaded(instance) as old:
        old.attach(attachment(pair))
    build("XDP_DROP")
    with netns.inside(pair.here):
        with open_loaded(instance) as killed, monkeypatch.context() as patch:
            patch.setattr(killed, "_pin", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                killed.switch_links()
        with open_loaded(instance) as finished:
            assert finished.upgrade_needed
            assert [each.mode for each in finished.attachments()] == ["native"]
            finished.switch_links()
            (state,) = netlink.xdp_states()
            assert state.program_id == finished.program_id("mptm_decap_xdp")
    assert peer_is_dropped(pair)


def test_without_its_object_a_loaded_data_plane_still_opens(
    instance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_loaded(instance).close()
    monkeypatch.setenv("MPTM_OBJECT_DIR", str(tmp_path))
    found = DataPlane.open(instance, load=False)
    assert found is not None
    assert not found.upgrade_needed
    found.close()
    with pytest.raises(MptmError, match="make build"):
        DataPlane.open(instance, load=True)


# ---- attaching -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "used"), [("auto", "native"), ("native", "native"), ("generic", "generic")])
def test_a_program_is_attached_in_the_mode_that_was_asked_for(
    instance: str, pair: Pair, mode: str, used: str
) -> None:
    with netns.inside(pair.here), open_loaded(instance) as data_plane:
        assert data_plane.attach(attachment(pair, mode=mode)) == used
        (attached,) = data_plane.attachments()
        assert (attached.ifindex, attached.name, attached.mode, attached.program) == (
            *(pair.ifindex, pair.name),
            *(used, "mptm_decap_xdp"),
        )
        (state,) = netlink.xdp_states()
        assert (state.program_id, state.mode) == (data_plane.program_id("mptm_decap_xdp"), used)
        assert data_plane.attach(attachment(pair, mode=mode)) == used, "a second time changes nothing"
        data_plane.detach(pair.name)
        data_plane.detach(pair.name)
        assert netlink.xdp_state(pair.ifindex) is None


def test_an_interface_whose_driver_has_no_xdp_gets_it_generic(
    instance: str, namespace: Callable[[], str]
) -> None:
    here = namespace()
    ip("-n", here, "link", "add", "plain", "type", "bridge")
    with netns.inside(here), open_loaded(instance) as data_plane:
        plain = Attachment(socket.if_nametoindex("plain"), "plain", "access", "native")
        with pytest.raises(
            NotSupported, match="mptm_encap_xdp can't be attached to plain in native"
        ) as caught:
            data_plane.attach(plain)
        assert "--mode generic" in (caught.value.hint or "")
        assert data_plane.attach(dataclasses.replace(plain, mode="auto")) == "generic"


def test_another_mode_or_role_is_taken_over_from_the_attachment(instance: str, pair: Pair) -> None:
    with netns.inside(pair.here), open_loaded(instance) as data_plane:
        assert data_plane.attach(attachment(pair)) == "native"
        assert data_plane.attach(attachment(pair, mode="generic")) == "generic"
        assert data_plane.attach(attachment(pair, role="access")) == "generic"
        (attached,) = data_plane.attachments()
        assert attached.program == "mptm_encap_xdp"


def test_a_foreign_program_is_refused_named_and_left_alone(
    instance: str, pair: Pair, clang: Callable[..., Path], tmp_path: Path
) -> None:
    foreign = clang(
        tmp_path / "foreign.o",
        """
        #include <linux/bpf.h>
        #include <bpf/bpf_helpers.h>
        SEC("xdp") int somebody(struct xdp_md *ctx) { return XDP_PASS; }
        """,
    )
    with netns.inside(pair.here), open_loaded(instance) as data_plane, libbpf.Object(foreign) as loaded:
        loaded.load()
        fd = loaded.program_fds()["somebody"]
        bpftool("net", "attach", "xdp", "id", str(libbpf.program_info(fd).id), "dev", pair.name)
        os.close(fd)
        (before,) = netlink.xdp_states()
        with pytest.raises(
            ForeignProgram, match=rf"up0 already has an XDP program: somebody \(id {before.program_id}\)"
        ):
            data_plane.attach(attachment(pair))
        assert data_plane.attachments() == []
        data_plane.detach(pair.name)
        assert netlink.xdp_states() == [before]


def test_the_program_of_another_instance_is_foreign_and_the_instance_is_named(
    instance: str, pair: Pair
) -> None:
    other = f"{instance}-other"
    try:
        with netns.inside(pair.here), open_loaded(other) as theirs, open_loaded(instance) as ours:
            theirs.attach(attachment(pair))
            with pytest.raises(ForeignProgram, match=f"mptm_decap_xdp .* of the instance {other}"):
                ours.attach(attachment(pair))
            assert ours.attachments() == []
    finally:
        remove_instance(other)


def test_an_interface_that_is_not_there_is_named(instance: str, namespace: Callable[[], str]) -> None:
    gone = Attachment(4711, "gone", "uplink", "auto")
    with (
        netns.inside(namespace()),
        open_loaded(instance) as data_plane,
        pytest.raises(NotFound, match="there is no interface gone"),
    ):
        data_plane.attach(gone)


def test_a_deleted_interface_is_reported_and_its_successor_gets_the_program(
    instance: str, pair: Pair
) -> None:
    with netns.inside(pair.here), open_loaded(instance) as data_plane:
        data_plane.attach(attachment(pair))
        ip("link", "del", pair.name)
        (dead,) = data_plane.attachments()
        assert (dead.ifindex, dead.name, dead.mode) == (0, pair.name, "")
        again = make_pair(pair.here, pair.there)
        assert data_plane.attach(attachment(again)) == "native"
        (alive,) = data_plane.attachments()
        assert (alive.ifindex, alive.mode) == (again.ifindex, "native")
        ip("link", "del", pair.name)
        data_plane.detach(pair.name)
        assert data_plane.attachments() == []


def test_a_renamed_interface_keeps_its_link_under_the_new_name(instance: str, pair: Pair) -> None:
    with netns.inside(pair.here), open_loaded(instance) as data_plane:
        data_plane.attach(attachment(pair))
        link_id = link_id_of(instance, pair.name)
        ip("link", "set", pair.name, "down")
        ip("link", "set", pair.name, "name", "renamed")
        assert data_plane.attach(Attachment(pair.ifindex, "renamed", "uplink", "auto")) == "native"
        assert [each.name for each in data_plane.attachments()] == ["renamed"]
    assert link_id_of(instance, "renamed") == link_id


def test_links_outlive_the_process_that_made_them(instance: str, pair: Pair) -> None:
    script = f"""
        import os, signal
        from mptm.kernel import netns
        from mptm.kernel.dataplane import DataPlane
        from mptm.tables import Attachment
        netns.enter({pair.here!r})
        DataPlane.open({instance!r}, load=True).attach(Attachment({pair.ifindex}, {pair.name!r}, "uplink", "auto"))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.returncode == -9
    with netns.inside(pair.here):
        found = DataPlane.open(instance, load=False)
        assert found is not None
        with found:
            assert [(each.ifindex, each.mode) for each in found.attachments()] == [(pair.ifindex, "native")]
            (state,) = netlink.xdp_states()
            assert state.program_id == found.program_id("mptm_decap_xdp")


# ---- namespaces ------------------------------------------------------------------------------------------


def test_a_namespace_is_entered_and_left_again(namespace: Callable[[], str]) -> None:
    name, before = namespace(), os.readlink("/proc/thread-self/ns/net")
    with pytest.raises(RuntimeError), netns.inside(name):
        assert os.stat("/proc/thread-self/ns/net").st_ino == os.stat(f"/run/netns/{name}").st_ino
        raise RuntimeError
    assert os.readlink("/proc/thread-self/ns/net") == before
    with netns.inside(f"/run/netns/{name}"):
        assert [name for _, name in socket.if_nameindex()] == ["lo"]
    with pytest.raises(NotFound, match="there is no network namespace mptm-nowhere"):
        netns.enter("mptm-nowhere")


def test_a_hidden_bpf_file_system_is_an_error_that_says_how_to_go_on(namespace: Callable[[], str]) -> None:
    name = namespace()
    if subprocess.run(["ip", "netns", "exec", name, "true"], capture_output=True).returncode:
        pytest.skip("`ip netns exec` doesn't work here: it needs a mount point at /, which a chroot isn't")
    script = "from mptm.kernel import bpffs; bpffs.ensure_mounted()"
    process = subprocess.run(
        ["ip", "netns", "exec", name, sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert "nsenter --net=/run/netns/NAME" in process.stderr


def test_the_bpf_file_system_is_mounted_where_it_is_missing() -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip(
            "no private mount namespace to be had here: it needs a mount point at /, which a chroot isn't"
        )
    script = """
from mptm.kernel import bpffs
assert not bpffs.is_mounted()
bpffs.ensure_mounted()
assert bpffs.is_mounted()
"""
    # mount and process namespaces of its own: a machine whose first process sees what this one sees
    process = subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-c"),
            *('umount /sys/fs/bpf && exec "$0" -c "$1"', sys.executable, script),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr


def test_a_kernel_without_type_information_is_told_apart() -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip(
            "no private mount namespace to be had here: it needs a mount point at /, which a chroot isn't"
        )
    script = """
from mptm.errors import NotSupported
from mptm.kernel import libbpf
from mptm.kernel.objects import DATA_PLANE, object_path
with libbpf.Object(object_path(DATA_PLANE)) as loading:
    try:
        loading.load()
    except NotSupported as error:
        assert "has no type information" in str(error) and "CONFIG_DEBUG_INFO_BTF" in error.hint, error
    else:
        raise AssertionError("it was loaded")
"""
    process = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c"),
            *('mount -t tmpfs none /sys/kernel/btf && exec "$0" -c "$1"', sys.executable, script),
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr


# ---- facts -----------------------------------------------------------------------------------------------


@dataclass
class Tunnel:
    """What gather_facts reads of a tunnel."""

    name: str
    remote: str | None
    local: str | None = None
    remote_mac: str | None = None
    local_mac: str | None = None
    egress: str | None = None

    @property
    def destination(self) -> str | None:
        """Where packets go first."""
        return self.remote


def mac_of(namespace: str, name: str) -> bytes:
    with netns.inside(namespace):
        return netlink.gather_facts([]).links[name].mac


@pytest.fixture
def underlay(pair: Pair) -> Pair:
    for namespace, host in ((pair.here, "1"), (pair.there, "2")):
        ip("-n", namespace, "addr", "add", f"10.30.30.{host}/24", "dev", pair.name)
        ip("-n", namespace, "addr", "add", f"fd30::{host}/64", "dev", pair.name, "nodad")
    ip("-n", pair.here, "route", "add", "10.40.0.0/16", "via", "10.30.30.2", "mtu", "1400")
    ip("-n", pair.here, "route", "add", "10.41.0.0/16", "via", "10.30.30.77")
    ip("-n", pair.here, "route", "add", "10.42.0.0/16", "via", "inet6", "fd30::2")
    ip("-n", pair.here, "-6", "route", "add", "fd40::/16", "via", "fd30::2")
    return pair


def facts_of(pair: Pair, *tunnels: Tunnel) -> Facts:
    with netns.inside(pair.here):
        return netlink.gather_facts(tunnels, resolve_timeout_seconds=0.5)


@pytest.mark.parametrize(
    ("remote", "local", "gateway", "mtu"),
    [
        ("10.30.30.2", "10.30.30.1", None, 1500),
        ("fd30::2", "fd30::1", None, 1500),
        ("10.40.1.1", "10.30.30.1", "10.30.30.2", 1400),
        ("10.42.1.1", "10.30.30.1", "fd30::2", 1500),
        ("fd40::1", "fd30::1", "fd30::2", 1500),
    ],
)
def test_the_way_to_a_remote_is_found_and_its_neighbour_asked(
    underlay: Pair, remote: str, local: str, gateway: str | None, mtu: int
) -> None:
    facts = facts_of(underlay, Tunnel("t", remote))
    path = facts.paths["t"]
    assert (str(path.local), path.mtu, path.problem) == (local, mtu, None)
    assert (None if path.gateway is None else str(path.gateway)) == gateway
    assert path.egress_ifindex == underlay.ifindex
    assert path.local_mac == mac_of(underlay.here, "up0")
    assert path.next_hop_mac == mac_of(underlay.there, "up0")
    assert facts.problems == {}


def test_a_failed_neighbour_is_asked_again(underlay: Pair) -> None:
    ip("-n", underlay.here, "neigh", "add", "10.30.30.2", "dev", "up0", "nud", "failed")
    assert facts_of(underlay, Tunnel("t", "10.30.30.2")).paths["t"].next_hop_mac == mac_of(
        underlay.there, "up0"
    )


@pytest.mark.parametrize(
    ("remote", "problem"),
    [
        ("10.30.30.99", "10.30.30.99 is on-link at up0 but doesn't answer ARP"),
        ("fd30::99", "fd30::99 is on-link at up0 but doesn't answer neighbour solicitations"),
        ("10.41.0.1", "the gateway 10.30.30.77 at up0 doesn't answer ARP"),
    ],
)
def test_a_silent_neighbour_is_a_problem_in_words(underlay: Pair, remote: str, problem: str) -> None:
    path = facts_of(underlay, Tunnel("t", remote)).paths["t"]
    assert (path.next_hop_mac, path.problem) == (None, problem)


@pytest.mark.parametrize(
    ("tunnel", "problem"),
    [
        (Tunnel("t", "192.0.2.1"), "there is no route to 192.0.2.1"),
        (Tunnel("t", "2001:db8::1"), "there is no route to 2001:db8::1"),
        (Tunnel("t", "10.30.30.1"), "10.30.30.1 is an address of this node itself"),
        (Tunnel("t", "fd30::1"), "fd30::1 is an address of this node itself"),
        (Tunnel("t", "10.30.30.255"), "10.30.30.255 is no address of a single node"),
        (Tunnel("t", "10.30.30.2", egress="eth9"), "the egress interface eth9 doesn't exist"),
        (Tunnel("t", "any", egress="eth9"), "the egress interface eth9 doesn't exist"),
    ],
)
def test_a_remote_without_a_path_is_a_problem_in_words(underlay: Pair, tunnel: Tunnel, problem: str) -> None:
    facts = facts_of(underlay, tunnel)
    assert facts.paths == {}
    assert facts.problems == {"t": problem}


def test_what_a_tunnel_says_itself_is_used_as_it_is(underlay: Pair) -> None:
    tunnel = Tunnel("t", "10.30.30.99", "10.9.9.9", "02:00:00:00:00:99", "02:00:00:00:00:11", egress="up0")
    path = facts_of(underlay, tunnel).paths["t"]
    assert str(path.local) == "10.9.9.9"
    assert path.next_hop_mac == bytes.fromhex("020000000099")
    assert path.local_mac == bytes.fromhex("020000000011")
    assert path.problem is None


def test_a_tunnel_without_a_remote_address_needs_no_path(underlay: Pair) -> None:
    facts = facts_of(underlay, Tunnel("a", "any"), Tunnel("b", None, egress="up0"))
    assert (facts.paths, facts.problems) == ({}, {})


@pytest.mark.parametrize(
    ("preparation", "problem"),
    [
        (
            ["route add 10.50.0.0/16 dev lo"],
            "10.50.0.1 is behind lo, but lo is the loopback interface, which has no neighbours",
        ),
        (
            ["link set up0 arp off", "route add 10.50.0.0/16 dev up0"],
            "10.50.0.1 is behind up0, but up0 does no ARP",
        ),
        (
            ["tuntap add mode tun name p2p", "link set p2p up", "route add 10.50.0.0/16 dev p2p"],
            "10.50.0.1 is behind p2p, but p2p is a point-to-point link without MAC addresses",
        ),
    ],
)
def test_an_interface_without_neighbours_is_a_problem_unless_the_tunnel_has_the_mac(
    underlay: Pair, preparation: list[str], problem: str
) -> None:
    for line in preparation:
        ip("-n", underlay.here, *line.split())
    facts = facts_of(
        underlay, Tunnel("without", "10.50.0.1"), Tunnel("with", "10.50.0.1", remote_mac="02:00:00:00:00:01")
    )
    assert facts.paths["without"].problem == problem
    assert facts.paths["with"].problem is None


def test_many_silent_neighbours_are_waited_for_together(underlay: Pair) -> None:
    tunnels = [Tunnel(f"t{host}", f"10.30.30.{host}") for host in range(2, 60)]
    start = time.monotonic()
    facts = facts_of(underlay, *tunnels)
    assert time.monotonic() - start < 2
    assert [name for name, path in facts.paths.items() if path.problem is None] == ["t2"]


def test_links_are_listed_with_the_mac_of_a_veths_other_end(underlay: Pair) -> None:
    ip("-n", underlay.here, "link", "add", "left", "type", "veth", "peer", "name", "right")
    links = facts_of(underlay).links
    assert links["up0"].kind == "veth"
    assert links["up0"].up
    assert not links["left"].up
    assert links["up0"].mtu == 1500
    assert links["up0"].peer_mac == mac_of(underlay.there, "up0")
    assert links["left"].peer_mac == links["right"].mac
    assert links["lo"].peer_mac is None
    assert links["up0"].xdp_prog_id is None


def test_links_tell_their_xdp_program(underlay: Pair, instance: str) -> None:
    with netns.inside(underlay.here), open_loaded(instance) as data_plane:
        data_plane.attach(attachment(underlay))
        assert netlink.gather_facts([]).links["up0"].xdp_prog_id == data_plane.program_id("mptm_decap_xdp")


# ---- TC --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["tcx", "clsact"])
def tc_mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How programs are attached at TC: as kernels do from 6.6 on, and as those before."""
    if request.param == "clsact":
        monkeypatch.setattr(libbpf, "create_tcx_link", lambda *_: -errno.EINVAL)
    return str(request.param)


def at_tc(pair: Pair, role: str = "uplink") -> Attachment:
    return Attachment(pair.ifindex, pair.name, role, "auto", "tc")


def attached(data_plane: DataPlane) -> list[tuple[str, str, str, str]]:
    return [(each.name, each.hook, each.mode, each.program) for each in data_plane.attachments()]


def segmenter_of(data_plane: DataPlane) -> int:
    table = data_plane.maps["segmenter"]
    return int.from_bytes(table.get(table.key.pack(0)) or b"", sys.byteorder)


@pytest.mark.parametrize("role", ["access", "uplink"])
def test_a_port_at_tc_is_attached_stays_and_leaves_nothing(
    instance: str, pair: Pair, tc_mode: str, role: str
) -> None:
    program = {"access": "mptm_encap_tc", "uplink": "mptm_decap_tc"}[role]
    with netns.inside(pair.here), open_loaded(instance) as data_plane:
        assert data_plane.attach(at_tc(pair, role)) == tc_mode
        assert attached(data_plane) == [(pair.name, "tc", tc_mode, program)]
    with netns.inside(pair.here), open_loaded(instance) as data_plane:
        assert not data_plane.upgrade_needed, "it is the build that is loaded"
        assert data_plane.attach(at_tc(pair, role)) == tc_mode
        assert attached(data_plane) == [(pair.name, "tc", tc_mode, program)]
        data_plane.detach(pair.name)
        assert attached(data_plane) == []
        assert libbpf.tcx_programs(pair.ifindex) == [] and tc.filters() == []


def test_a_port_moves_between_the_hooks(instance: str, pair: Pair, tc_mode: str) -> None:
    with netns.inside(pair.here), open_loaded(instance) as data_plane:
        data_plane.attach(attachment(pair))
        data_plane.attach(at_tc(pair))
        assert attached(data_plane) == [(pair.name, "tc", tc_mode, "mptm_decap_tc")]
        assert netlink.xdp_states() == []
        assert data_plane.attach(attachment(pair)) == "native"
        assert attached(data_plane) == [(pair.name, "xdp", "native", "mptm_decap_xdp")]


def test_what_makes_segments_is_there_as_long_as_a_port_is_at_tc(
    instance: str, pair: Pair, tc_mode: str
) -> None:
    with netns.inside(pair.here), open_loaded(instance) as data_plane:
        other = make_pair(pair.here, pair.there, "up1")
        assert segmenter.find(instance) is None
        data_plane.attach(at_tc(pair))
        data_plane.attach(at_tc(other))
        found = segmenter.find(instance)
        assert found is not None and segmenter_of(data_plane) == found.entry
        features = command("ethtool", "-k", segmenter.names(instance)[0])
        assert "tx-checksumming: off" in features, "without it a GSO packet can't be sent as one"
        data_plane.detach("up1")
        assert segmenter.find(instance) == found
        data_plane.detach("up0")
        assert segmenter.find(instance) is None and segmenter_of(data_plane) == 0


def test_what_makes_segments_is_made_again_when_somebody_deletes_it(
    instance: str, pair: Pair, tc_mode: str
) -> None:
    with netns.inside(pair.here), open_loaded(instance) as data_plane:
        data_plane.attach(at_tc(pair))
        segmenter.remove(instance)
        data_plane.attach(at_tc(pair))
        found = segmenter.find(instance)
        assert found is not None and segmenter_of(data_plane) == found.entry
        programs = libbpf.tcx_programs(found.exit) or [
            each.program_id for each in tc.filters() if each.ifindex == found.exit
        ]
        assert programs == [data_plane.program_id("mptm_segment_tc")]


def test_programs_of_others_at_tc_stay(
    instance: str, pair: Pair, tc_mode: str, clang: Callable[..., Path], tmp_path: Path
) -> None:
    theirs = clang(
        tmp_path / "theirs.o",
        """
        #include <linux/bpf.h>
        #include <bpf/bpf_helpers.h>
        SEC("tc") int theirs(struct __sk_buff *skb) { return -1; }
        char LICENSE[] SEC("license") = "GPL";
        """,
    )
    with netns.inside(pair.here), libbpf.Object(theirs) as loading, open_loaded(instance) as data_plane:
        loading.load()
        fd = loading.program_fds()["theirs"]
        number = libbpf.program_info(fd).id
        link = libbpf.library().bpf_link_create(fd, pair.ifindex, libbpf.TCX_INGRESS, None)
        libbpf.check(link, "theirs can't be attached")
        data_plane.attach(at_tc(pair))
        assert libbpf.tcx_programs(pair.ifindex)[0] == number
        data_plane.detach(pair.name)
        assert libbpf.tcx_programs(pair.ifindex) == [number]
        os.close(link)


ALL_OF_THEIRS = """
    #include <linux/bpf.h>
    #include <bpf/bpf_helpers.h>
    SEC("tc") int theirs(struct __sk_buff *skb) { return -1; }
    SEC("xdp") int theirs_xdp(struct xdp_md *ctx) { return XDP_PASS; }
    char LICENSE[] SEC("license") = "GPL";
"""


@pytest.fixture
def theirs(clang: Callable[..., Path], tmp_path: Path) -> Iterator[dict[str, int]]:
    """Descriptors of somebody else's programs by name."""
    with libbpf.Object(clang(tmp_path / "theirs.o", ALL_OF_THEIRS)) as loading:
        loading.load()
        programs = loading.program_fds()
        yield programs
        for fd in programs.values():
            os.close(fd)


def way_to(pair: Pair) -> tuple[bool, str]:
    with netns.inside(pair.here):
        link = netlink.gather_facts((), resolve_timeout_seconds=0).links[pair.name]
        return link.hands_over, link.detour


def add_filter(pair: Pair, fd: int, parent: int) -> None:
    with netns.inside(pair.here), netlink.open_netlink() as messages:
        messages.tc(
            "add-filter", "bpf", pair.ifindex, fd=fd, name="theirs", parent=parent, prio=1, protocol=3,
            classid=1, direct_action=True,
        )  # fmt: skip


def test_packets_are_handed_over_where_nothing_is_on_the_way(pair: Pair, theirs: dict[str, int]) -> None:
    assert way_to(pair) == (True, "")
    with netns.inside(pair.here):
        command(
            "tc",
            "qdisc",
            "add",
            "dev",
            pair.name,
            "root",
            "tbf",
            "rate",
            "1gbit",
            "burst",
            "1m",
            "lat",
            "9ms",
        )
        assert way_to(pair) == (False, "it has a qdisc tbf")
        command("tc", "qdisc", "del", "dev", pair.name, "root")
        command("tc", "qdisc", "add", "dev", pair.name, "clsact")
        assert way_to(pair) == (True, "")
        add_filter(pair, theirs["theirs"], 0xFFFFFFF3)
        assert way_to(pair) == (False, "it has filters at its TC egress")
        command("tc", "qdisc", "del", "dev", pair.name, "clsact")
        link = libbpf.library().bpf_link_create(theirs["theirs"], pair.ifindex, libbpf.TCX_EGRESS, None)
        if link >= 0:
            assert way_to(pair) == (False, "it has programs at its TC egress")
            os.close(link)
    with netns.inside(pair.there):
        libbpf.attach_xdp(socket.if_nametoindex(pair.name), theirs["theirs_xdp"], 0)
    assert way_to(pair) == (False, "its other end has an XDP program")


def test_packets_are_not_handed_over_where_nobody_can_look(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> list[int]:
        raise KernelError("the TC programs can't be listed", errno.EPERM)

    monkeypatch.setattr(libbpf, "tcx_programs", refuse)
    hands_over, detour = way_to(pair)
    assert not hands_over
    assert "can't be looked at" in detour


def test_whose_programs_are_before_ours_is_told(instance: str, pair: Pair, theirs: dict[str, int]) -> None:
    with netns.inside(pair.here), open_loaded(instance) as data_plane:
        link = libbpf.library().bpf_link_create(theirs["theirs"], pair.ifindex, libbpf.TCX_INGRESS, None)
        if -link in NO_TCX:
            pytest.skip("this kernel has no tcx")
        data_plane.attach(at_tc(pair))
        number = libbpf.program_info(theirs["theirs"]).id
        assert data_plane.programs_before(pair.ifindex) == [f"theirs (id {number})"]
        os.close(link)
        behind = libbpf.library().bpf_link_create(theirs["theirs"], pair.ifindex, libbpf.TCX_INGRESS, None)
        assert data_plane.programs_before(pair.ifindex) == []
        os.close(behind)


def qdiscs(pair: Pair) -> list[str]:
    shown = command("tc", "qdisc", "show", "dev", pair.name)
    return [line.split()[1] for line in shown.splitlines() if "noqueue" not in line]


@pytest.fixture
def without_tcx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libbpf, "create_tcx_link", lambda *_: -errno.EINVAL)


@pytest.mark.usefixtures("without_tcx")
def test_a_qdisc_that_we_added_goes_with_our_filter(instance: str, pair: Pair) -> None:
    with netns.inside(pair.here):
        with open_loaded(instance) as data_plane:
            data_plane.attach(at_tc(pair))
            assert qdiscs(pair) == ["clsact"]
        with open_loaded(instance) as data_plane:
            data_plane.attach(at_tc(pair))
            data_plane.detach(pair.name)
            assert qdiscs(pair) == []
            assert os.listdir(instance_directory(instance) / "qdiscs") == []


@pytest.mark.usefixtures("without_tcx")
def test_a_qdisc_of_somebody_elses_stays(instance: str, pair: Pair) -> None:
    with netns.inside(pair.here), open_loaded(instance) as data_plane:
        command("tc", "qdisc", "add", "dev", pair.name, "clsact")
        data_plane.attach(at_tc(pair))
        data_plane.detach(pair.name)
        assert qdiscs(pair) == ["clsact"]


@pytest.mark.usefixtures("without_tcx")
@pytest.mark.parametrize("parent", [0xFFFFFFF2, 0xFFFFFFF3], ids=["ingress", "egress"])
def test_a_qdisc_with_somebody_elses_filter_stays(
    instance: str, pair: Pair, theirs: dict[str, int], parent: int
) -> None:
    with netns.inside(pair.here), open_loaded(instance) as data_plane:
        data_plane.attach(at_tc(pair))
        add_filter(pair, theirs["theirs"], parent)
        data_plane.detach(pair.name)
        assert qdiscs(pair) == ["clsact"]
        assert "theirs" in command(
            "tc", "filter", "show", "dev", pair.name, "ingress" if parent == 0xFFFFFFF2 else "egress"
        )


@pytest.mark.usefixtures("without_tcx")
def test_a_qdisc_of_another_interface_of_that_name_is_not_taken_for_ours(instance: str, pair: Pair) -> None:
    with netns.inside(pair.here), open_loaded(instance) as data_plane:
        data_plane.attach(at_tc(pair))
        ip("-n", pair.here, "link", "del", pair.name)
        again = make_pair(pair.here, pair.there)
        command("tc", "qdisc", "add", "dev", again.name, "clsact")
        data_plane.attach(at_tc(again))
        data_plane.detach(again.name)
        assert qdiscs(again) == ["clsact"]
        assert os.listdir(instance_directory(instance) / "qdiscs") == [], "what was noted of it is forgotten"


def count_descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("of", ["mptm_decap_tc", "mptm_encap_tc"])
def test_a_link_at_tc_that_lost_its_pin_is_taken_over(instance: str, pair: Pair, of: str) -> None:
    with netns.inside(pair.here), open_loaded(instance) as data_plane:
        data_plane.require_tc()
        link = libbpf.create_tcx_link(data_plane.program_fd(of), pair.ifindex)  # as of who keeps it
        if -link in NO_TCX:
            pytest.skip("this kernel has no tcx")
        program = data_plane.program_id("mptm_decap_tc")
        assert attached(data_plane) == [(pair.name, "tc", "adopted", of)]
        before = count_descriptors()
        assert data_plane.attach(at_tc(pair)) == "tcx"
        assert count_descriptors() == before
        assert libbpf.tcx_programs(pair.ifindex) == [program], "a second one would see each packet again"
        assert attached(data_plane) == [(pair.name, "tc", "tcx", "mptm_decap_tc")]
        os.close(link)
        assert libbpf.tcx_programs(pair.ifindex) == [program], "it is ours now"
        data_plane.detach(pair.name)
        assert libbpf.tcx_programs(pair.ifindex) == []


def attach_without_link(data_plane: DataPlane, pair: Pair, program: str) -> None:
    result = libbpf.library().bpf_prog_attach_opts(
        data_plane.program_fd(program), pair.ifindex, libbpf.TCX_INGRESS, None
    )
    if -result in NO_TCX:
        pytest.skip("this kernel has no tcx")
    libbpf.check(result, "the test's program can't be attached")


@pytest.mark.parametrize("of", ["mptm_decap_tc", "mptm_encap_tc"])
def test_a_program_at_tc_without_a_link_is_adopted(instance: str, pair: Pair, of: str) -> None:
    with netns.inside(pair.here), open_loaded(instance) as data_plane:
        data_plane.require_tc()
        attach_without_link(data_plane, pair, of)
        assert attached(data_plane) == [(pair.name, "tc", "adopted", of)]
        before = count_descriptors()
        for _ in range(2):
            assert data_plane.attach(at_tc(pair)) == "adopted"
            assert libbpf.tcx_programs(pair.ifindex) == [data_plane.program_id("mptm_decap_tc")]
        assert count_descriptors() - before <= len(data_plane.maps)
        assert attached(data_plane) == [(pair.name, "tc", "adopted", "mptm_decap_tc")]
        data_plane.detach(pair.name)
        assert libbpf.tcx_programs(pair.ifindex) == []
        assert attached(data_plane) == []


def test_what_makes_segments_stays_for_a_port_without_a_link(instance: str, pair: Pair) -> None:
    other = make_pair(pair.here, pair.there, "up1")
    with netns.inside(pair.here), open_loaded(instance) as data_plane:
        data_plane.require_tc()
        attach_without_link(data_plane, pair, "mptm_decap_tc")
        data_plane.attach(at_tc(pair))
        data_plane.attach(at_tc(other))
        data_plane.detach(other.name)
        assert data_plane.segmenter_problem() == ""
        data_plane.detach(pair.name)
        assert "are gone" in data_plane.segmenter_problem()


def test_two_programs_of_ours_at_tc_become_one(instance: str, pair: Pair) -> None:
    with netns.inside(pair.here), open_loaded(instance) as data_plane:
        data_plane.require_tc()
        attach_without_link(data_plane, pair, "mptm_encap_tc")
        attach_without_link(data_plane, pair, "mptm_decap_tc")
        assert data_plane.attach(at_tc(pair)) == "adopted"
        assert libbpf.tcx_programs(pair.ifindex) == [data_plane.program_id("mptm_decap_tc")]


def test_an_upgrade_switches_what_was_adopted_at_tc(
    instance: str, pair: Pair, clang: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with netns.inside(pair.here), open_loaded(instance) as old:
        old.require_tc()
        attach_without_link(old, pair, "mptm_decap_tc")
    build_another(clang, tmp_path, monkeypatch)
    with netns.inside(pair.here), open_loaded(instance) as new:
        assert new.upgrade_needed
        new.switch_links()
        assert libbpf.tcx_programs(pair.ifindex) == [new.program_id("mptm_decap_tc")]
        assert attached(new) == [(pair.name, "tc", "adopted", "mptm_decap_tc")]


def test_a_port_at_tc_that_was_renamed_keeps_its_link(instance: str, pair: Pair) -> None:
    with netns.inside(pair.here), open_loaded(instance) as data_plane:
        data_plane.attach(at_tc(pair))
        before = libbpf.tcx_programs(pair.ifindex)
        ip("-n", pair.here, "link", "set", pair.name, "down")
        ip("-n", pair.here, "link", "set", pair.name, "name", "renamed")
        assert data_plane.attach(Attachment(pair.ifindex, "renamed", "uplink", "auto", "tc")) == "tcx"
        assert libbpf.tcx_programs(pair.ifindex) == before
        assert [each.name for each in data_plane.attachments()] == ["renamed"]


def test_a_port_at_tc_whose_interface_is_gone_says_so(instance: str, pair: Pair) -> None:
    with netns.inside(pair.here), open_loaded(instance) as data_plane:
        data_plane.attach(at_tc(pair))
        ip("-n", pair.here, "link", "del", pair.name)
        assert [(each.ifindex, each.mode) for each in data_plane.attachments()] == [(0, "")]
        with pytest.raises(NotFound, match="there is no interface up0"):
            data_plane.attach(at_tc(pair))
        again = make_pair(pair.here, pair.there)
        assert data_plane.attach(at_tc(again)) == "tcx"
        assert [each.ifindex for each in data_plane.attachments()] == [again.ifindex]


def build_another(clang: Callable[..., Path], directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the programs for TC, to be used from now on."""
    shutil.copy(object_path(DATA_PLANE), directory)
    source = (ROOT / "bpf" / "mptm_tc.bpf.c").read_text().replace('"mptm', f'"{ROOT}/bpf/mptm')
    clang(directory / DATA_PLANE_TC, source + 'SEC("tc") int more(hook_ctx *ctx) { return ctx->len; }')
    monkeypatch.setenv("MPTM_OBJECT_DIR", str(directory))


def test_an_upgrade_switches_what_is_at_tc(
    instance: str,
    pair: Pair,
    tc_mode: str,
    clang: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another build of the programs for TC."""
    with netns.inside(pair.here), open_loaded(instance) as old:
        old.attach(at_tc(pair))
        before = old.program_id("mptm_decap_tc")
        old.maps["segmenter"].delete([old.maps["segmenter"].key.pack(0)])  # as one is that was made afresh
    build_another(clang, tmp_path, monkeypatch)
    with netns.inside(pair.here), open_loaded(instance) as new:
        assert new.upgrade_needed
        new.switch_links()
        after = new.program_id("mptm_decap_tc")
        assert after != before
        assert attached(new) == [(pair.name, "tc", tc_mode, "mptm_decap_tc")]
        programs = libbpf.tcx_programs(pair.ifindex) or [
            each.program_id for each in tc.filters() if each.ifindex == pair.ifindex
        ]
        assert programs == [after]
        found = segmenter.find(instance)
        assert found is not None and segmenter_of(new) == found.entry


def test_removing_the_instance_leaves_nothing_at_tc(instance: str, pair: Pair, tc_mode: str) -> None:
    with netns.inside(pair.here):
        data_plane = open_loaded(instance)
        data_plane.attach(at_tc(pair))
        data_plane.remove()
        assert libbpf.tcx_programs(pair.ifindex) == [] and tc.filters() == []
        assert segmenter.find(instance) is None
