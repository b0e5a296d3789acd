/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every table look-up of the data plane. Tables that the control plane lays out itself are ARRAYs, whose
 * look-ups the JIT inlines (the bigger ones: table.h); the others are kernel hashes. Callers don't see which.
 */
#ifndef MPTM_LOOKUP_H
#define MPTM_LOOKUP_H

#include "maps.h"
#include "packet.h"
#include "table.h"
#include "trace.h"

/* The port of an interface and, in *slot, where its counters are; NULL: none of ours. */
static __always_inline struct port *lookup_port(__u32 ifindex, __u32 *slot)
{
#pragma clang loop unroll(disable)
	for (__u32 probe = 0; probe < MPTM_PORT_PROBES; probe++) {
		__u32 at = (ifindex + probe) % MPTM_PORT_SLOTS;
		struct port *port = SLOT(ports, at);

		if (port && port->ifindex == ifindex) {
			*slot = at;
			return port;
		}
	}
	return NULL;
}

/* The parser for what arrives at a UDP port, IP protocol or EtherType; PARSER_NONE: not ours. */
static __always_inline enum parser lookup_listener(enum listener_kind kind, __u16 number)
{
	__u32 at = (kind * 65536 + number) / MPTM_LISTEN_ROW;
	struct listener_row *row = SLOT(listeners, at);

	return row ? row->parsers[number % MPTM_LISTEN_ROW] : PARSER_NONE;
}

struct termination_key {
	__u64 words[5]; /* the first 40 bytes of struct termination, can_reply as 0 */
};

#define TERMINATION_INTERFACE_MASK                                                                           \
	0xffffffff00000000ULL			   /* of the last destination word: VLAN's interface         \
						    */
#define TERMINATION_KEY_MASK 0x00ffffffffffffffULL /* of the last word: what is key, not value */

/* The slot that holds the key, of a few from `home` on, or NULL. */
static __always_inline struct termination *probe_termination(__u32 home, const struct termination_key *key)
{
#pragma clang loop unroll(disable)
	for (__u32 probe = 0; probe < MPTM_TERMINATION_PROBES; probe++) {
		struct termination *found = SLOT(terminations, home + probe);
		const any_u64 *words = (const void *)found;

		if (found && (words[4] & TERMINATION_KEY_MASK) == key->words[4] &&
		    words[0] == key->words[0] && words[1] == key->words[1] && words[2] == key->words[2] &&
		    words[3] == key->words[3])
			return found;
	}
	return NULL;
}

static __always_inline struct termination *lookup_termination_exact(const struct termination_key *key)
{
	__u64 hash = key->words[0] * 0x9E3779B97F4A7C15ULL + key->words[1] * 0xC2B2AE3D27D4EB4FULL +
		     key->words[2] * 0x165667B19E3779F9ULL + key->words[3] * 0x27D4EB2F165667C5ULL +
		     key->words[4] * 0x85EBCA77C2B2AE63ULL;
	struct termination *found;

	hash ^= hash >> 32;
	hash *= 0x9E3779B97F4A7C15ULL;
	found = probe_termination(hash >> 16, key);
	return found ? found : probe_termination(hash >> 40, key);
}

/*
 * Who accepts this packet: the termination for its sender, else one that accepts any sender, else NULL. Where
 * destinations are MAC addresses, who accepts any sender accepts any destination, at its own interface.
 */
static __always_inline struct termination *lookup_termination(struct termination_key *key, bool is_l2)
{
	struct termination *found = lookup_termination_exact(key);

	if (found)
		return found;
	key->words[0] = 0;
	key->words[1] = 0;
	if (is_l2) {
		key->words[2] = 0;
		key->words[3] &= TERMINATION_INTERFACE_MASK;
	}
	return lookup_termination_exact(key);
}

/* Whether an underlay address is one of ours: off the fast path, to tell refused from passing through. */
static __always_inline bool is_local(const __u8 *address)
{
	return bpf_map_lookup_elem(&locals, address) != NULL;
}

/* Addresses that no prefix covers: loopback, link-local and groups (RFC 1122 §3.2.1.3, 3927, 4291 §2.4). */
static __always_inline bool is_routable(__u8 family, const __be32 *address)
{
	__u32 first = bpf_ntohl(address[0]);

	if (family == 4)
		return first >> 24 != 127 && first >> 16 != 0xa9fe && first >> 28 < 0xe;
	return first >> 22 != 0xfe80 >> 6 && first >> 24 != 0xff;
}

/* What was found in a table, in a trace too. */
static __always_inline struct next_hop *next_hop_of(enum trace_table table, __u32 number)
{
	struct next_hop *found = next_hop_at(number);

	(void)table;
	if (found)
		trace(TRACE_NEXT_HOP, table, found->kind, found->id);
	return found;
}

/* Where a network has an address: the exact one, else the longest prefix; NULL: nowhere. */
static __always_inline struct next_hop *lookup_address(__u32 network, __u8 lookups, __u8 family,
						       const __be32 *address)
{
	enum trace_table table = TABLE_HOSTS;
	__u32 number;

	number =
	    family == 4 ? find_host_v4(network, address[0]) : find_host_v6((const void *)address, network);
	if (!number && lookups & LOOKUP_PREFIXES && is_routable(family, address)) {
		table = TABLE_PREFIXES;
		number = family == 4 ? find_prefix_v4(address[0], network)
				     : find_prefix_v6((const void *)address, network);
	}
	if (!number)
		trace(TRACE_NEXT_HOP, TABLE_NONE, 0, 0);
	return next_hop_of(table, number);
}

/* Where a packet of a network goes: by flow, else by destination; NULL: the network doesn't know it. */
static __always_inline struct next_hop *lookup_next_hop(__u32 network, __u8 lookups,
							const struct packet *packet)
{
	struct next_hop *found;
	__u32 number = 0;

	if (!packet->family)
		return NULL;
	if (lookups & LOOKUP_FLOWS)
		number = packet->family == 4
			     ? find_flow_v4(network, packet->source[0], packet->destination[0])
			     : find_flow_v6((const void *)packet->source, (const void *)packet->destination,
					    network);
	found = next_hop_of(TABLE_FLOWS, number);
	/* What is sent to everybody on the link isn't routed (RFC 1812 §5.3.4). */
	if (packet->macs.destination[0] & MAC_GROUP)
		lookups &= ~LOOKUP_PREFIXES;
	return found ? found : lookup_address(network, lookups, packet->family, packet->destination);
}

/*
 * The slot of the tunnel that a packet takes at this next hop, a tunnel or a group: for one flow always the
 * same, fragments included, as their ports are never looked at. -1: the group has nobody.
 */
static __always_inline int choose_tunnel(const struct next_hop *next_hop, const struct packet *packet)
{
	__u32 id = next_hop->id, at;
	struct group *group;

	if (next_hop->kind == NEXT_HOP_TUNNEL)
		return id;
	group = bpf_map_lookup_elem(&groups, &id);
	if (!group)
		return -1;
	at = hash_group(hash_flow(packet)) % MPTM_GROUP_SLOTS;
	trace(TRACE_GROUP, id, at, group->tunnels[at]);
	return group->tunnels[at] - 1;
}

#endif
