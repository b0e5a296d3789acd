# SPDX-License-Identifier: GPL-2.0-only
"""What `mptm tunnel set` makes of a tunnel: other options, another protocol, more or fewer that are accepted.

Two nodes go from one protocol to another without losing a packet in three steps, each done on both before the next:
accept the new one, send the new one (and keep accepting the old one), accept the old one no more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mptm.errors import InvalidIntent, NotFound
from mptm.fields import Checked, fields_of, suggestion
from mptm.intent import Encapsulation, Tunnel, find_protocol, tunnel_from_dict

NEVER_CARRIED_OVER = "port"
"""The option that each protocol has its own of: one UDP port carries one protocol."""


def change_tunnel(
    tunnel: Tunnel,
    values: Mapping[str, Any],
    *,
    defaults: Iterable[str] = (),
    accept: Iterable[Mapping[str, Any]] = (),
    refuse: Iterable[str] = (),
) -> Tunnel:
    """The tunnel with other fields.

    values      fields and options as a file has them; of another `protocol`, what was sent goes on being accepted
    defaults    names of fields and options that get back their default
    accept      protocols, each with options, that are accepted from now on; those that aren't given are the tunnel's
    refuse      names of protocols that aren't accepted any more
    Raises InvalidIntent, and NotFound for a protocol that wasn't accepted.
    """
    protocol = find_protocol(values.get("protocol", tunnel.protocol), tunnel.label()).name
    accepted = {each.protocol: each for each in tunnel.accept}
    if protocol == tunnel.protocol:
        options = tunnel.options.to_dict()
    else:
        if tunnel.protocol in accepted:
            raise InvalidIntent(
                f"{tunnel.label()}: {tunnel.protocol} is accepted with other options already, "
                "and what was sent would have to be accepted, too",
                f"stop accepting it first: --no-accept {tunnel.protocol}",
                field="protocol",
            )
        known = accepted.pop(protocol, None)
        options = carried_over(tunnel, protocol) if known is None else known.options.to_dict()
        sent = Encapsulation(protocol=tunnel.protocol, options=tunnel.options)
        accepted = {sent.protocol: sent} | accepted
    common = tunnel.to_dict()
    for name in ("protocol", "accept", *tunnel.options.to_dict()):
        common.pop(name, None)
    wanted = {"protocol": protocol, **common, **options, **values}
    if "annotations" in values:
        wanted["annotations"] = {**tunnel.annotations, **values["annotations"]}
    for name in defaults:
        wanted.pop(_resettable(name, protocol, tunnel), None)
    changed = tunnel_from_dict(wanted)
    for given in accept:
        name = find_protocol(given["protocol"], tunnel.label()).name
        made = Encapsulation.from_dict({**carried_over(changed, name), **given})
        accepted[name] = made
    for name in refuse:
        if accepted.pop(find_protocol(name, tunnel.label()).name, None) is None:
            raise NotFound(
                f"{tunnel.label()} doesn't accept {name} beside what it sends",
                "it accepts " + (", ".join(accepted) or "nothing else"),
            )
    return tunnel_from_dict(wanted | {"accept": list(accepted.values())})


def carried_over(tunnel: Tunnel, protocol_name: str) -> dict[str, Any]:
    """The options of a tunnel that another protocol has, too; those at their default are left to that."""
    protocol = find_protocol(protocol_name)
    options_type: type[Checked] = protocol.options
    fields = {field.name: field for field in fields_of(options_type)}
    same = protocol.name == tunnel.protocol
    found = {
        name: value
        for name, value in tunnel.options.to_dict().items()
        if name in fields and (same or name != NEVER_CARRIED_OVER)
    }
    if "payload" in fields and not same:  # the default isn't the same everywhere; what is carried should be
        carries_ethernet = find_protocol(tunnel.protocol).inner_families(tunnel.options) is None
        found["payload"] = "l2" if carries_ethernet else "l3"
    return found


def _resettable(name: str, protocol: str, tunnel: Tunnel) -> str:
    """The field of that name, which has a default. InvalidIntent: there is none."""
    options_type: type[Checked] = find_protocol(protocol).options
    known = [
        field.name
        for field in (*fields_of(Tunnel), *fields_of(options_type))
        if not field.required and field.name != "accept"
    ]
    name = name.replace("-", "_")
    if name not in known:
        raise InvalidIntent(
            f"{tunnel.label()}: {name} has no default; these have one: {', '.join(known)}",
            suggestion(name, known),
            field="default",
        )
    return name
