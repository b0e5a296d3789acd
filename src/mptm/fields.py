# SPDX-License-Identifier: GPL-2.0-only
"""Values that an operator writes: how each is checked, brought into one form, and explained when it is wrong.

A field says what it takes by its type alone (`Annotated[int, Meta(ge=0, le=4095)]`, `Literal[...]`, `Mac | None`);
the check, the message and the command line's help follow from that.
"""

from __future__ import annotations

import difflib
import functools
import ipaddress
import re
import socket
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

import msgspec
from msgspec import Meta

from mptm.errors import InvalidIntent
from mptm.facts import IPAddress

INTERFACE_NAME_BYTES = 15
"""Linux: IFNAMSIZ - 1."""

MAC_LEN = 6

SHOWN_LENGTH = 80
"""Longest value that a message shows in full, in characters."""

SUGGESTED_FROM = 2000
"""Most names that a mistyped one is compared with: it takes a second from some ten thousand on."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,40}|0[xX][0-9a-fA-F]{1,32}")
"""Of as many digits as any field may need: Python refuses to read numbers of thousands."""
_BOUNDS = ("ge", "gt", "le", "lt", "multiple_of", "pattern", "min_length", "max_length", "tz")
"""What Meta may demand of a value."""
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def mac_bytes(text: str) -> bytes:
    """The 6 bytes of a MAC address written as 02:00:00:00:00:01 (or with dashes). ValueError: it isn't one."""
    text = text.strip().lower().replace("-", ":")
    if not _MAC.fullmatch(text):
        raise ValueError(text)
    return bytes.fromhex(text.replace(":", ""))


def mac_text(mac: bytes) -> str:
    """A MAC address as the project writes it: lower case, colons."""
    return mac.hex(":")


@functools.lru_cache(maxsize=1024)  # the same few names are in every route and flow
def _normalise_name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError
    return text


@functools.lru_cache(maxsize=1024)
def _normalise_interface(text: str) -> str:
    if not 0 < len(text.encode()) <= INTERFACE_NAME_BYTES or text in (".", ".."):
        raise ValueError
    if any(character.isspace() or character in "/:%" or not character.isprintable() for character in text):
        raise ValueError
    return text


def _normalise_mac(text: str) -> str:
    mac = mac_bytes(text)
    if mac[0] & 1:
        raise InvalidIntent(f"{text} is a multicast MAC address; one of a single station is needed")
    if not any(mac):
        raise InvalidIntent(f"{text} is no station's MAC address")
    return mac_text(mac)


def parse_address(text: str) -> IPAddress:
    """An IPv4 or IPv6 address. ValueError: it isn't one; InvalidIntent: it is one that isn't usable here."""
    if "%" in text:
        raise InvalidIntent(
            f"{text} carries a zone; write {text.split('%')[0]} and name the interface as egress"
        )
    address = ipaddress.ip_address(text.strip())
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        raise InvalidIntent(f"{text} is an IPv4 address in IPv6 clothes; write {address.ipv4_mapped}")
    return address


def _is_plain_ipv4(text: str) -> bool:
    """Whether text is an IPv4 address in its one form: what most addresses of large files are, told quickly."""
    try:
        return socket.inet_ntop(socket.AF_INET, socket.inet_pton(socket.AF_INET, text)) == text
    except (OSError, ValueError):
        return False


def _normalise_address(text: str) -> str:
    return text if _is_plain_ipv4(text) else str(parse_address(text))


def _normalise_unicast(text: str) -> str:
    address = parse_address(text)
    if address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255":
        raise InvalidIntent(f"{address} is no address of a single machine")
    return str(address)


def _normalise_remote(text: str) -> str:
    return text if text == "any" else _normalise_unicast(text)


def _normalise_prefix(text: str) -> str:
    address, _, length = text.partition("/")
    if length == "32" and _is_plain_ipv4(address):
        return text
    parse_address(address)
    try:
        return str(ipaddress.ip_network(text.strip()))
    except ValueError:
        right = ipaddress.ip_network(text.strip(), strict=False)
    raise InvalidIntent(
        f"{text} has host bits set; the prefix is {right}, the single address {address}/{right.max_prefixlen}"
    )


class _Extra(typing.TypedDict):
    normalise: Callable[[str], str]
    expected: str


def written_as(normalise: Callable[[str], str], expected: str, examples: list[str] | None = None) -> Meta:
    """What a text field, or an item of a list, is brought into by `normalise`; `expected` follows "is not"."""
    return Meta(extra=dict(_Extra(normalise=normalise, expected=expected)), examples=examples)


def hex_bytes(*lengths: int) -> Meta:
    """Text that holds this many bytes in hexadecimal, in lower case."""

    def normalise(text: str) -> str:
        data = bytes.fromhex(text.lower().removeprefix("0x").replace(":", ""))
        if len(data) not in lengths:
            raise ValueError
        return data.hex()

    examples = [bytes(range(1, length + 1)).hex() for length in lengths]
    return written_as(normalise, f"{_alternatives(map(str, lengths))} bytes in hexadecimal", examples)


Name = Annotated[
    str, written_as(_normalise_name, "a name of 1 to 64 letters, digits, dots, dashes and underscores")
]
InterfaceName = Annotated[
    str, written_as(_normalise_interface, "an interface name of 1 to 15 bytes such as eth0")
]
Mac = Annotated[str, written_as(_normalise_mac, "a MAC address such as 02:00:00:00:00:01")]
Address = Annotated[str, written_as(_normalise_address, "an IPv4 or IPv6 address")]
UnicastAddress = Annotated[str, written_as(_normalise_unicast, "an IPv4 or IPv6 address")]
Remote = Annotated[str, written_as(_normalise_remote, "an IPv4 or IPv6 address, or any")]
Prefix = Annotated[
    str, written_as(_normalise_prefix, "an IPv4 or IPv6 prefix such as 10.1.0.0/16 or fd00::/64")
]


class Field(NamedTuple):
    """A field of a Checked class as an operator sees it: `name` is that of the file, `attribute` Python's."""

    name: str
    attribute: str
    type: Any
    required: bool
    default: Any
    description: str
    """For help texts; "" where the type says it all."""
    expected: str
    """What the field takes, in words that follow "is not"."""
    hexadecimal: bool
    """Shown as 0x..., as the field is written in the standards."""
    normalise: Callable[[str], str] | None
    """Brings text into its one form; ValueError or InvalidIntent where there is none."""
    taken_as_is: type | None
    """Values of just this type need no check but `normalise`."""
    examples: tuple[Any, ...]
    """Values that differ in kind, for documents and tests: bounds of numbers, all words; () where none are known."""


def _metas(annotation: Any) -> list[Meta]:
    """Every Meta of a type, outermost first, through unions."""
    found = [meta for meta in getattr(annotation, "__metadata__", ()) if isinstance(meta, Meta)]
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return found + _metas(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType, tuple):
        return [meta for part in typing.get_args(annotation) for meta in _metas(part)]
    return found


def _item_type(annotation: Any) -> Any:
    """The type of a list field's items; None for any other field."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _item_type(typing.get_args(annotation)[0])
    return typing.get_args(annotation)[0] if origin is tuple else None


def _part_type(annotation: Any) -> type[Checked] | None:
    """The class of a list field's items where they have fields themselves."""
    item = _item_type(annotation)
    return item if isinstance(item, type) and issubclass(item, Checked) else None


def _extra(annotation: Any, key: str) -> Any:
    return next((meta.extra[key] for meta in _metas(annotation) if meta.extra and key in meta.extra), None)


def _is_hexadecimal(annotation: Any) -> bool:
    return bool(_extra(annotation, "hexadecimal"))


def show_value(value: object, hexadecimal: bool = False) -> str:
    """A value as a person would write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return hex(value) if hexadecimal else str(value)
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}..."


def _alternatives(words: Iterable[str]) -> str:
    *most, last = list(dict.fromkeys(words))
    return f"{', '.join(most)} or {last}" if most else last


def _expected(annotation: Any, hexadecimal: bool) -> str:
    origin = typing.get_origin(annotation)
    item = _item_type(annotation)
    if item is not None:
        return f"a list, each {_expected(item, hexadecimal)}"
    if origin is Annotated:
        if text := _extra(annotation, "expected"):
            return str(text)
        inner = typing.get_args(annotation)[0]
        bounds = [meta for meta in annotation.__metadata__ if isinstance(meta, Meta) and meta.ge is not None]
        if inner is int and bounds:
            return f"a whole number from {bounds[0].ge} to {bounds[0].le}"
        return _expected(inner, hexadecimal)
    if origin in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
        return _alternatives(_expected(part, hexadecimal) for part in parts)
    if origin is Literal:
        values = typing.get_args(annotation)
        return _alternatives(v if isinstance(v, str) else show_value(v, hexadecimal) for v in values)
    if isinstance(annotation, type) and issubclass(annotation, Checked):
        return annotation.expected
    plain = {int: "a whole number", bool: "true or false", str: "text"}
    if annotation in plain:
        return plain[annotation]
    return "a mapping of text to text" if origin is dict else "one of its options"


def _examples(annotation: Any) -> tuple[Any, ...]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        metas = [meta for meta in annotation.__metadata__ if isinstance(meta, Meta)]
        if given := next((meta.examples for meta in metas if meta.examples), None):
            return tuple(given)
        if bounds := [meta for meta in metas if meta.ge is not None]:
            return bounds[0].ge, bounds[0].le
        return _examples(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return tuple(value for part in typing.get_args(annotation) for value in _examples(part))
    if origin is Literal:
        return typing.get_args(annotation)
    if annotation is bool:
        return False, True
    return (None,) if annotation is types.NoneType else ()


@functools.cache
def fields_of(cls: type[msgspec.Struct]) -> tuple[Field, ...]:
    """The fields of a Checked class, in the order in which they are declared."""
    return tuple(
        Field(
            name=info.encode_name,
            attribute=info.name,
            type=info.type,
            required=info.required,
            default=info.default if info.default_factory is msgspec.NODEFAULT else info.default_factory(),
            description=next((meta.description for meta in _metas(info.type) if meta.description), ""),
            expected=_expected(info.type, _is_hexadecimal(info.type)),
            hexadecimal=_is_hexadecimal(info.type),
            normalise=_extra(info.type, "normalise"),
            taken_as_is=_taken_as_is(info.type),
            examples=_examples(info.type),
        )
        for info in msgspec.structs.fields(cls)
    )


def check_value(field: Field, value: Any) -> Any:
    """The value in its one form. InvalidIntent: it isn't what the field takes; `field` names it."""
    try:
        if type(value) is field.taken_as_is:
            return field.normalise(value) if field.normalise and isinstance(value, str) else value
        if isinstance(value, Checked):
            return value
        if _item_type(field.type) is not None and isinstance(value, str | int | Mapping):
            value = (value,)  # a list of one may be written without brackets
        if (part := _part_type(field.type)) is not None and isinstance(value, list | tuple):
            return tuple(map(part.from_value, value))
        value = msgspec.convert(value, field.type)
        if field.normalise and isinstance(value, tuple):
            return tuple(map(field.normalise, value))
        return field.normalise(value) if field.normalise and isinstance(value, str) else value
    except InvalidIntent as error:
        within = f"{error.field}: " if error.field else ""
        raise InvalidIntent(f"{within}{error.message}", error.hint, field=field.name) from None
    except (msgspec.ValidationError, ValueError, OverflowError):
        raise InvalidIntent(_problem(field, value), field=field.name) from None


def _problem(field: Field, value: Any) -> str:
    """What is wrong with a value that was refused; of a list, with its first wrong item."""
    item = _item_type(field.type)
    if item is None or not isinstance(value, list | tuple):
        return f"{show_value(value, field.hexadecimal)} is not {field.expected}"
    expected = _expected(item, field.hexadecimal)
    for each in value:
        try:
            converted = msgspec.convert(each, item)
            if field.normalise and isinstance(converted, str):
                field.normalise(converted)
        except (msgspec.ValidationError, ValueError, OverflowError):
            return f"{show_value(each, field.hexadecimal)} is not {expected}"
    return f"{len(value)} items are {'too many' if value else 'too few'}, each {expected}"


def value_from_text(field: Field, text: str) -> int | bool | str | list[int | bool | str]:
    """What a word of the command line means for a field; the value itself is checked when the object is built.

    Items of a list are separated by commas.
    """
    item = _item_type(field.type)
    if item is None:
        return _word(field.type, text)
    return [_word(item, part.strip()) for part in text.split(",") if part.strip()]


def _word(annotation: Any, text: str) -> int | bool | str:
    takes = _plain_types(annotation)
    if bool in takes and text.lower() in _TRUTH:
        return _TRUTH[text.lower()]
    if int in takes and _WHOLE_NUMBER.fullmatch(text):
        return int(text, 16 if text[:2].lower() == "0x" else 10)
    return text


def _plain_types(annotation: Any) -> set[type]:
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        return _plain_types(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(_plain_types, typing.get_args(annotation)))
    if origin is Literal:
        return {type(value) for value in typing.get_args(annotation)}
    return {annotation} if isinstance(annotation, type) else set()


def _taken_as_is(annotation: Any) -> type | None:
    """`str` or `bool` where a field takes every value of that type, apart from what `normalise` says."""
    origin = typing.get_origin(annotation)
    if origin is Annotated:
        inner, *metas = typing.get_args(annotation)
        bounds = [getattr(meta, bound, None) for meta in metas for bound in _BOUNDS]
        return _taken_as_is(inner) if all(bound is None for bound in bounds) else None
    if origin in (typing.Union, types.UnionType):
        parts = [part for part in typing.get_args(annotation) if part is not types.NoneType]
        return _taken_as_is(parts[0]) if len(parts) == 1 else None
    return annotation if annotation in (str, bool) else None


def _plain(value: Any, defaults: bool) -> Any:
    if isinstance(value, tuple):
        return [each.to_dict(defaults=defaults) if isinstance(each, Checked) else each for each in value]
    return value


class Checked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what an operator writes: built from right values only. InvalidIntent names the field otherwise."""

    expected: ClassVar[str] = "one of its options"
    """What stands for such an object, in words that follow "is not"."""

    def __post_init__(self) -> None:
        for field in fields_of(type(self)):
            value = getattr(self, field.attribute)
            if value is field.default:
                continue
            try:
                checked = check_value(field, value)
            except InvalidIntent as error:
                raise labelled(error, self.label()) from None
            if checked is not value:
                msgspec.structs.force_setattr(self, field.attribute, checked)
        self.check()

    def label(self) -> str:
        """What messages call the object: kind and name; "" for a part of something else."""
        return ""

    def check(self) -> None:
        """What fields must be together. InvalidIntent: they aren't."""

    def to_dict(self, *, defaults: bool = False) -> dict[str, Any]:
        """The fields by the names of the file, without those that are at their default unless `defaults`."""
        return {
            field.name: _plain(getattr(self, field.attribute), defaults)
            for field in fields_of(type(self))
            if defaults or field.required or getattr(self, field.attribute) != field.default
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of `to_dict`. InvalidIntent: a field is unknown, missing or wrong."""
        kind = str(getattr(cls, "kind", "object"))
        names = [
            values[name] for name in ("name", "network", "prefix", "source", "destination") if name in values
        ]
        try:
            keywords = arguments(cls, values, f"a {kind}")
        except InvalidIntent as error:
            named = names[:1] if "name" in values else names
            raise labelled(error, " ".join([kind, *map(str, named)])) from None
        return cls(**keywords)

    @classmethod
    def from_value(cls, value: Any) -> Self:
        """From what stands for such an object in a list: its fields. InvalidIntent: there is none like that."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            return cls.from_dict(value)
        raise InvalidIntent(f"{show_value(value)} is not {cls.expected}")


def parts_of(obj: Checked) -> dict[str, tuple[Checked, ...]]:
    """The fields whose items have fields themselves, by name."""
    return {
        field.name: getattr(obj, field.attribute)
        for field in fields_of(type(obj))
        if _part_type(field.type) is not None
    }


_AnyChecked = TypeVar("_AnyChecked", bound=Checked)


def labelled(error: InvalidIntent, label: str) -> InvalidIntent:
    """The same error, its message starting with the object that it is about."""
    message = f"{label}: {error.message}" if label else error.message
    return InvalidIntent(message, error.hint, field=error.field, line=error.line)


def suggestion(word: str, known: Collection[str]) -> str | None:
    """A hint for a word that was probably mistyped; none among too many names."""
    if len(known) > SUGGESTED_FROM:
        return None
    near = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {near[0]}?" if near else None


def arguments(cls: type[msgspec.Struct], values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Keyword arguments for `cls` from the fields of a file or command. InvalidIntent: unknown or missing ones."""
    known = {field.name: field for field in fields_of(cls)}
    for name in values:
        if name not in known:
            raise InvalidIntent(
                f"{what} has no field {name}; it has {', '.join(known)}",
                suggestion(str(name), known),
                field=str(name),
            )
    for field in known.values():
        if field.required and field.name not in values:
            raise InvalidIntent(f"{what} needs {field.name}: {field.expected}", field=field.name)
    return {known[name].attribute: value for name, value in values.items()}
