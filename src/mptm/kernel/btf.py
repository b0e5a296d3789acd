# SPDX-License-Identifier: GPL-2.0-only
"""Layouts of C structs, read from BTF, and the packing of records by them.

BTF (Documentation/bpf/btf.rst of the kernel) is the type information in a compiled object and in the maps that
were loaded from it. Nothing here needs a kernel.
"""

from __future__ import annotations

import re
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from mptm.errors import MptmError, NotFound

_MAGIC = 0xEB9F
_BIG_ENDIAN_TYPEDEFS = frozenset(("__be16", "__be32", "__be64"))
_INTEGER_CODES = {1: "B", 2: "H", 4: "I", 8: "Q"}

_INT, _POINTER, _ARRAY, _STRUCT, _UNION, _ENUM, _FORWARD, _TYPEDEF = range(1, 9)
_VOLATILE, _CONST, _RESTRICT, _FUNCTION, _PROTOTYPE, _VARIABLE, _SECTION = range(9, 16)
_FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = range(16, 20)
_MODIFIERS = frozenset((_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG))


@dataclass(frozen=True)
class Layout:
    """How a value lies in memory, in the host's byte order but for fields of type __be16, __be32 and __be64.

    `name` is the struct's, or empty for a plain integer; `size` is in bytes. Two layouts are equal when values can
    be copied between them byte for byte.
    """

    name: str
    size: int

    def pack(self, record: Any) -> bytes:
        """The bytes of a record of `mptm.tables` (or of an int, where the layout is a plain integer).

        Raises TypeError for a field that only one of the two has, and ValueError for a value that doesn't fit; both
        name the field.
        """
        raise NotImplementedError

    def unpack(self, data: bytes) -> dict[str, Any]:
        """Fields by name, without the reserved ones; a plain integer is the field `value`.

        Integers come in host order, byte arrays as bytes, nested structs as dicts, arrays of them as lists.
        """
        raise NotImplementedError

    def _decode(self, data: bytes) -> Any:
        return self.unpack(data)


@dataclass(frozen=True)
class IntegerLayout(Layout):
    """An integer or enum."""

    signed: bool = False
    big_endian: bool = False

    def pack(self, record: Any) -> bytes:
        """Bytes of an int; of a big-endian field also of bytes, which are copied."""
        if isinstance(record, bytes):
            if not self.big_endian or len(record) != self.size:
                raise ValueError(f"{len(record)} bytes where an integer of {self.size} bytes belongs")
            return record
        if not isinstance(record, int):
            raise TypeError(f"{type(record).__name__} where an int belongs")
        try:
            return record.to_bytes(self.size, self._order, signed=self.signed)
        except OverflowError:
            raise ValueError(f"{record} doesn't fit {self.size} bytes") from None

    def unpack(self, data: bytes) -> dict[str, Any]:
        """The integer as the field `value`."""
        return {"value": self._decode(data)}

    def _decode(self, data: bytes) -> int:
        return int.from_bytes(data, self._order, signed=self.signed)

    @property
    def _order(self) -> Any:
        return "big" if self.big_endian else sys.byteorder


@dataclass(frozen=True)
class BytesLayout(Layout):
    """An array of bytes."""

    def pack(self, record: Any) -> bytes:
        """The bytes as they are, padded with zeroes."""
        if not isinstance(record, bytes):
            raise TypeError(f"{type(record).__name__} where bytes belong")
        if len(record) > self.size:
            raise ValueError(f"{len(record)} bytes where {self.size} fit")
        return record.ljust(self.size, b"\0")

    def _decode(self, data: bytes) -> bytes:
        return data

    def unpack(self, data: bytes) -> dict[str, Any]:
        """The bytes as the field `value`."""
        return {"value": data}


@dataclass(frozen=True)
class ArrayLayout(Layout):
    """An array of anything but bytes."""

    element: Layout
    count: int

    def pack(self, record: Any) -> bytes:
        """The elements, the missing ones zero."""
        if len(record) > self.count:
            raise ValueError(f"{len(record)} elements where {self.count} fit")
        if _is_plain(self.element):
            with suppress(struct.error):
                return struct.pack(f"={len(record)}{_code(self.element)}", *record).ljust(self.size, b"\0")
        return b"".join(self.element.pack(each) for each in record).ljust(self.size, b"\0")

    def _decode(self, data: bytes) -> list[Any]:
        if _is_plain(self.element):
            return list(struct.unpack(f"={self.count}{_code(self.element)}", data))
        step = self.element.size
        return [self.element._decode(data[at : at + step]) for at in range(0, self.size, step)]

    def unpack(self, data: bytes) -> dict[str, Any]:
        """The elements as the field `value`."""
        return {"value": self._decode(data)}


class Field(NamedTuple):
    """One member of a struct; `offset` in bytes."""

    name: str
    offset: int
    layout: Layout

    @property
    def reserved(self) -> bool:
        """True for room that nobody uses: always zero."""
        return self.name.startswith("reserved")


@dataclass(frozen=True)
class StructLayout(Layout):
    """A struct."""

    fields: tuple[Field, ...] = field(default=())

    def pack(self, record: Any) -> bytes:
        """The bytes of a NamedTuple that has the struct's name and fields."""
        values = [
            convert(record[index]) if convert is not None else record[index]
            for index, convert in self._plan(type(record))
        ]
        try:
            return self._format.pack(*values)
        except struct.error:
            pass
        for each, value in zip(self._used, values, strict=True):
            if not isinstance(value, bytes):
                _convert(self.name, each, value)
        raise ValueError(f"{self.name}: {record!r} doesn't fit")

    def unpack(self, data: bytes) -> dict[str, Any]:
        """The fields by name, without the reserved ones."""
        if len(data) != self.size:
            raise ValueError(f"{self.name} is {self.size} bytes long, not {len(data)}")
        return {
            each.name: each.layout._decode(data[each.offset : each.offset + each.layout.size])
            for each in self._used
        }

    @cached_property
    def _used(self) -> tuple[Field, ...]:
        return tuple(each for each in self.fields if not each.reserved)

    @cached_property
    def _format(self) -> struct.Struct:
        """Packs the used fields: plain integers as such, everything else as ready-made bytes."""
        code, end = "=", 0
        for each in self._used:
            code += f"{each.offset - end}x{_code(each.layout)}"
            end = each.offset + each.layout.size
        return struct.Struct(f"{code}{self.size - end}x")

    @cached_property
    def _plans(self) -> dict[type, list[tuple[int, Callable[[Any], bytes] | None]]]:
        return {}

    def _plan(self, record_type: type) -> list[tuple[int, Callable[[Any], bytes] | None]]:
        """Where in a record each used field stands, and how it becomes what `_format` takes."""
        if (known := self._plans.get(record_type)) is not None:
            return known
        names: tuple[str, ...] | None = getattr(record_type, "_fields", None)
        if names is None or struct_name(record_type) != self.name:
            raise TypeError(f"{record_type.__name__} is no record of struct {self.name}")
        wanted = {each.name for each in self._used}
        if missing := sorted(wanted - set(names)):
            raise TypeError(f"{record_type.__name__} lacks the field {missing[0]} of struct {self.name}")
        if unknown := sorted(set(names) - wanted):
            raise TypeError(f"struct {self.name} has no field {unknown[0]}, which {record_type.__name__} has")
        plan = [
            (names.index(each.name), None if _is_plain(each.layout) else _converter(self.name, each))
            for each in self._used
        ]
        self._plans[record_type] = plan
        return plan


def _is_plain(layout: Layout) -> bool:
    return isinstance(layout, IntegerLayout) and not layout.big_endian


def _code(layout: Layout) -> str:
    if isinstance(layout, IntegerLayout) and _is_plain(layout):
        code = _INTEGER_CODES[layout.size]
        return code.lower() if layout.signed else code
    return f"{layout.size}s"


def _converter(struct_of: str, each: Field) -> Callable[[Any], bytes]:
    return lambda value: _convert(struct_of, each, value)


def _convert(struct_of: str, each: Field, value: Any) -> bytes:
    try:
        return each.layout.pack(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{struct_of}.{each.name}: {error}") from None


def struct_name(record_type: type) -> str:
    """Name of the C struct of a record type: FlowKeyV4 -> flow_key_v4."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", record_type.__name__).lower()


class _Member(NamedTuple):
    name: str
    type_id: int
    bit_offset: int
    bit_size: int


class _Type(NamedTuple):
    kind: int
    name: str
    size: int  # or the id of the type that a modifier refers to
    elements: int = 0
    signed: bool = False
    members: tuple[_Member, ...] = ()
    values: tuple[tuple[str, int], ...] = ()


class Types:
    """The types of one BTF blob. Raises MptmError where the blob can't be read."""

    def __init__(self, btf: bytes, source: str = "BTF") -> None:
        self._source = source
        self._layouts: dict[int, Layout] = {}
        try:
            self._types = _parse(btf)
        except (struct.error, IndexError, ValueError) as error:
            raise MptmError(f"{source}: the type information can't be read: {error}") from None
        self._ids = {
            (each.kind, each.name): type_id
            for type_id, each in enumerate(self._types)
            if each.kind in (_STRUCT, _ENUM) and each.name
        }

    def struct(self, name: str) -> Layout:
        """Layout of `struct name`. Raises NotFound."""
        return self.layout(self._find(_STRUCT, "struct", name))

    def struct_id(self, name: str) -> int:
        """The BTF id of `struct name`. Raises NotFound."""
        return self._find(_STRUCT, "struct", name)

    def struct_of(self, record_type: type) -> Layout:
        """Layout of the struct that a record type of `mptm.tables` stands for. Raises NotFound."""
        return self.struct(struct_name(record_type))

    def enum(self, name: str) -> dict[str, int]:
        """Names and values of `enum name`. Raises NotFound."""
        return dict(self._types[self._find(_ENUM, "enum", name)].values)

    def layout(self, type_id: int) -> Layout:
        """Layout of the type with this BTF id. Raises MptmError for unions, bit fields, pointers and the like."""
        if (known := self._layouts.get(type_id)) is None:
            known = self._layouts[type_id] = self._build(type_id)
        return known

    def _find(self, kind: int, word: str, name: str) -> int:
        if (found := self._ids.get((kind, name))) is None:
            raise NotFound(
                f"{self._source} has no {word} {name}", "the object is of another version: make build"
            )
        return found

    def _build(self, type_id: int) -> Layout:
        big_endian = False
        each = self._types[type_id]
        while each.kind in _MODIFIERS:
            big_endian = big_endian or (each.kind == _TYPEDEF and each.name in _BIG_ENDIAN_TYPEDEFS)
            each = self._types[each.size]
        if each.kind in (_INT, _ENUM):
            return IntegerLayout("", each.size, each.signed, big_endian)
        if each.kind == _ARRAY:
            element = self.layout(each.size)
            if element == IntegerLayout("", 1):
                return BytesLayout("", each.elements)
            return ArrayLayout("", element.size * each.elements, element, each.elements)
        if each.kind == _STRUCT:
            return StructLayout(each.name, each.size, tuple(self._field(each, at) for at in each.members))
        raise MptmError(f"{self._source}: type {each.name or type_id} is of a kind that no table may hold")

    def _field(self, owner: _Type, member: _Member) -> Field:
        if member.bit_size or member.bit_offset % 8:
            raise MptmError(
                f"{self._source}: {owner.name}.{member.name} is a bit field, which no table may hold"
            )
        return Field(member.name, member.bit_offset // 8, self.layout(member.type_id))


def _parse(btf: bytes) -> list[_Type]:
    magic, _version, _flags, header_len, type_offset, type_len, string_offset, string_len = (
        struct.unpack_from("=HBBIIIII", btf)
    )
    if magic != _MAGIC:
        raise ValueError("no BTF of this machine's byte order")
    strings = btf[header_len + string_offset : header_len + string_offset + string_len]
    at, end = header_len + type_offset, header_len + type_offset + type_len
    types = [_Type(0, "void", 0)]

    def text(offset: int) -> str:
        return strings[offset : strings.index(b"\0", offset)].decode()

    def records(code: str, count: int) -> list[tuple[int, ...]]:
        nonlocal at
        found = [
            struct.unpack_from(code, btf, at + number * struct.calcsize(code)) for number in range(count)
        ]
        at += count * struct.calcsize(code)
        return found

    while at < end:
        ((name_at, info, size),) = records("=III", 1)
        kind, count, flag, name = info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31), text(name_at)
        if kind == _INT:
            ((encoding,),) = records("=I", 1)
            types.append(_Type(kind, name, size, signed=bool(encoding >> 24 & 1)))
        elif kind == _ARRAY:
            ((element, _index, elements),) = records("=III", 1)
            types.append(_Type(kind, name, element, elements))
        elif kind in (_STRUCT, _UNION):
            members = tuple(
                _Member(text(member), type_id, offset & 0xFFFFFF, offset >> 24)
                if flag
                else _Member(text(member), type_id, offset, 0)
                for member, type_id, offset in records("=III", count)
            )
            types.append(_Type(kind, name, size, members=members))
        elif kind == _ENUM:
            values = tuple(
                (text(value), number) for value, number in records("=Ii" if flag else "=II", count)
            )
            types.append(_Type(kind, name, size, signed=flag, values=values))
        elif kind == _ENUM64:
            wide = tuple((text(value), low | high << 32) for value, low, high in records("=III", count))
            types.append(_Type(_ENUM, name, size, signed=flag, values=wide))
        else:
            if kind not in (_POINTER, _FORWARD, _FUNCTION, _FLOAT, *_MODIFIERS):
                records(
                    {_PROTOTYPE: "=II", _VARIABLE: "=I", _SECTION: "=III", _DECL_TAG: "=I"}[kind],
                    count if kind in (_PROTOTYPE, _SECTION) else 1,
                )
            types.append(_Type(kind, name, size))
    return types


def load_types(object_path: Path) -> Types:
    """Types of a compiled object (its ELF section .BTF). Raises MptmError when it can't be read or has none."""
    try:
        elf = object_path.read_bytes()
    except OSError as error:
        raise MptmError(f"{object_path} can't be read: {error.strerror}") from None
    try:
        return Types(_elf_section(elf, b".BTF"), object_path.name)
    except (struct.error, IndexError, ValueError) as error:
        raise MptmError(f"{object_path} is no BPF object with type information: {error}") from None


def _elf_section(elf: bytes, name: bytes) -> bytes:
    """Contents of a section of a 64-bit ELF file in this machine's byte order (System V ABI, chapter 4)."""
    if elf[:5] != b"\x7fELF\x02":
        raise ValueError("no 64-bit ELF file")
    (table_offset,) = struct.unpack_from("=Q", elf, 0x28)
    entry_size, count, names_index = struct.unpack_from("=HHH", elf, 0x3A)
    sections = [
        struct.unpack_from("=IIQQQQ", elf, table_offset + number * entry_size) for number in range(count)
    ]
    names_at = sections[names_index][4]
    for name_offset, _kind, _flags, _address, offset, size in sections:
        start = names_at + name_offset
        if elf[start : elf.index(b"\0", start)] == name:
            return elf[offset : offset + size]
    raise ValueError(f"no section {name.decode()}")
