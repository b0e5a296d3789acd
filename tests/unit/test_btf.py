# SPDX-License-Identifier: GPL-2.0-only
"""Records become the bytes that the C structs have, by the layouts in the object's own type information."""

from __future__ import annotations

import inspect
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from mptm import tables, template
from mptm.errors import MptmError, NotFound
from mptm.kernel import btf
from mptm.kernel.objects import DATA_PLANE, object_path

RECORDS = [
    record
    for _, record in inspect.getmembers(tables, inspect.isclass)
    if issubclass(record, tuple) and record.__module__ == tables.__name__
]
HOST_ORDER = "<" if sys.byteorder == "little" else ">"


@pytest.fixture(scope="module")
def types() -> btf.Types:
    return btf.load_types(object_path(DATA_PLANE))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_each_record_has_the_fields_of_its_struct(types: btf.Types, record: Any) -> None:
    layout = types.struct_of(record)
    fields = layout.unpack(bytes(layout.size))
    assert sorted(fields) == sorted(record._fields)
    assert layout.pack(record(**fields | ({"patches": ()} if "patches" in fields else {}))) == bytes(
        layout.size
    )


def test_integers_stand_in_host_order_and_be32_addresses_as_they_came(types: btf.Types) -> None:
    key = tables.FlowKeyV4(network=0x01020304, source=b"\x0a\xfa\x01\x64", destination=b"\x0a\xfa\x01\x65")
    packed = types.struct("flow_key_v4").pack(key)
    assert packed == b"\x0a\xfa\x01\x64\x0a\xfa\x01\x65" + struct.pack(HOST_ORDER + "I", 0x01020304)


def test_an_integer_in_a_be32_field_is_written_in_network_order(types: btf.Types) -> None:
    assert types.struct("host_key_v4").pack(tables.HostKeyV4(7, 0x0A000100))[:4] == b"\x0a\x00\x01\x00"


def test_reserved_room_is_zero_and_short_byte_strings_are_padded(types: btf.Types) -> None:
    port = tables.Port(ifindex=3, network=1, mtu=1500, role=1, lookups=2, mac=b"")
    packed = types.struct("port").pack(port)
    assert packed == struct.pack(HOST_ORDER + "IIIBB", 3, 1, 1500, 1, 2) + bytes(18)


def test_a_tunnel_holds_its_template_and_as_many_patches_as_it_has(types: btf.Types) -> None:
    layout = types.struct("tunnel")
    tunnel = tables.Tunnel(
        outer=bytes(range(50)),
        patches=(tables.Patch(2, 14, -14), tables.Patch(1, 38, -34)),
        outer_len=50,
        strip=0,
        patch_count=2,
        max_len=1514,
        egress_ifindex=4,
        counter=9,
        flags=0,
        tos_mask=3,
        ttl_mask=0,
        inner_families=0,
    )
    packed = layout.pack(tunnel)
    assert len(packed) == layout.size == 256
    assert packed[:128] == bytes(range(50)) + bytes(78)
    assert packed[128:136] == struct.pack(HOST_ORDER + "BBhBBh", 2, 14, -14, 1, 38, -34)
    assert packed[136:160] == bytes(24)
    unpacked = layout.unpack(packed)
    assert unpacked["patches"][1] == {"op": 1, "offset": 38, "bias": -34}
    assert (unpacked["max_len"], unpacked["tos_mask"]) == (1514, 3)
    assert "reserved" not in unpacked


def test_what_is_packed_unpacks_to_the_same_fields(types: btf.Types) -> None:
    hop = tables.NextHop(kind=2, flags=1, mac=b"\x02\0\0\0\0\x07", id=4095)
    layout = types.struct("next_hop")
    assert layout.unpack(layout.pack(hop)) == hop._asdict()


def test_templates_and_the_data_plane_agree_on_sizes_and_patch_ops(types: btf.Types) -> None:
    tunnel = types.struct("tunnel").unpack(bytes(types.struct("tunnel").size))
    assert len(tunnel["outer"]) == template.OUTER_SIZE
    assert len(tunnel["patches"]) == template.PATCHES
    in_c = {name: value for name, value in types.enum("patch_op").items() if value}
    assert in_c == {f"PATCH_{op.name}": op.value for op in template.PatchOp}


def test_a_record_of_another_struct_is_refused(types: btf.Types) -> None:
    with pytest.raises(TypeError, match="HostKeyV4 is no record of struct flow_key_v4"):
        types.struct("flow_key_v4").pack(tables.HostKeyV4(1, bytes(4)))
    with pytest.raises(TypeError, match="int is no record of struct port"):
        types.struct("port").pack(7)


def test_a_field_that_only_one_side_has_is_named(types: btf.Types) -> None:
    class LocalKey(NamedTuple):
        address: bytes
        zone: int

    class HostKeyV4(NamedTuple):
        network: int

    with pytest.raises(TypeError, match="struct local_key has no field zone"):
        types.struct("local_key").pack(LocalKey(bytes(16), 1))
    with pytest.raises(TypeError, match="HostKeyV4 lacks the field address"):
        types.struct("host_key_v4").pack(HostKeyV4(1))


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        (tables.HostKeyV4(1 << 32, bytes(4)), "host_key_v4.network: 4294967296 doesn't fit 4 bytes"),
        (tables.HostKeyV4(-1, bytes(4)), "host_key_v4.network: -1 doesn't fit 4 bytes"),
        (tables.HostKeyV4(1, bytes(3)), "host_key_v4.address: 3 bytes where an integer of 4 bytes belongs"),
        (tables.HostKeyV6(1, bytes(17)), "host_key_v6.address: 17 bytes where 16 fit"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(types: btf.Types, record: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        types.struct_of(type(record)).pack(record)


def test_a_missing_type_is_an_error_that_says_what_to_do(types: btf.Types) -> None:
    with pytest.raises(NotFound, match="make build"):
        types.struct("nobody")
    with pytest.raises(NotFound, match="enum nobody"):
        types.enum("nobody")


@pytest.mark.parametrize("content", [b"", b"\x7fELF\x02" + bytes(100), b"no object at all"])
def test_a_file_that_is_no_object_is_an_error_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.o"
    path.write_bytes(content)
    with pytest.raises(MptmError, match=r"broken\.o"):
        btf.load_types(path)


def test_every_cut_of_the_type_information_is_refused_or_read(types: btf.Types) -> None:
    elf = object_path(DATA_PLANE).read_bytes()
    blob = btf._elf_section(elf, b".BTF")
    for length in range(0, len(blob), 97):
        try:
            btf.Types(blob[:length])
        except MptmError as error:
            assert "can't be read" in error.message


def test_layouts_are_equal_only_when_entries_can_be_copied(types: btf.Types) -> None:
    again = btf.load_types(object_path(DATA_PLANE))
    assert types.struct("next_hop") == again.struct("next_hop")
    assert types.struct("next_hop") != types.struct("flow_key_v4")
    # tunnel and port counters have the same size and types; their fields have other names
    assert types.struct("tunnel_counters") != types.struct("port_counters")


def test_the_object_directory_can_be_overridden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPTM_OBJECT_DIR", str(tmp_path))
    with pytest.raises(MptmError, match="make build"):
        object_path(DATA_PLANE)
    (tmp_path / DATA_PLANE).touch()
    assert object_path(DATA_PLANE) == tmp_path / DATA_PLANE


def test_importing_the_kernel_layer_loads_neither_libbpf_nor_pyroute2() -> None:
    script = """
import sys
from mptm.kernel import bpffs, btf, dataplane, libbpf, maps, netlink, netns, objects, testrun
assert not [name for name in sys.modules if name.startswith("pyroute2")]
assert "libbpf.so" not in open("/proc/self/maps").read()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
