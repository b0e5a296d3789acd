/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Every table look-up of the data plane. Tables that the control plane lays out itself are ARRAYs, whose
 * look-ups the JIT inlines; the others are kernel hashes and tries. Callers don't see which.
 */
#ifndef MPTM_LOOKUP_H
#define MPTM_LOOKUP_H

#include "maps.h"
#include "packet.h"
#include "trace.h"

/*
 * A look-up in one table and no other. Left alone, clang merges the calls for two tables into one, and a call
 * that may be for either is not inlined by the verifier: 15 ns more.
 */
#define LOOKUP(table, key)                                                                                   \
	({                                                                                                   \
		void *entry = bpf_map_lookup_elem(&(table), (key));                                          \
		asm volatile("" : "+r"(entry) : "i"(__COUNTER__));                                           \
		entry;                                                                                       \
	})

/* The port of an interface and, in *slot, where its counters are; NULL: none of ours. */
static __always_inline struct port *lookup_port(__u32 ifindex, __u32 *slot)
{
#pragma clang loop unroll(disable)
	for (__u32 probe = 0; probe < MPTM_PORT_PROBES; probe++) {
		__u32 at = (ifindex + probe) % MPTM_PORT_SLOTS;
		struct port *port = bpf_map_lookup_elem(&ports, &at);

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
	__u32 at = ((kind - 1) * 65536 + number) / MPTM_LISTEN_ROW;
	struct listener_row *row = bpf_map_lookup_elem(&listeners, &at);

	return row ? row->parsers[number % MPTM_LISTEN_ROW] : PARSER_NONE;
}

struct termination_key {
	__u64 words[5]; /* the first 40 bytes of struct termination, can_reply as 0 */
};

#define TERMINATION_INTERFACE_MASK                                                                           \
	0xffffffff00000000ULL			   /* of the last destination word: VLAN's interface         \
						    */
#define TERMINATION_KEY_MASK 0x00ffffffffffffffULL /* of the last word: what is key, not value */

#define NOT_FOUND -1

/* The slot that holds the key, of a few from `home` on, or NOT_FOUND. */
static __always_inline int probe_termination(__u32 home, const struct termination_key *key)
{
#pragma clang loop unroll(disable)
	for (__u32 probe = 0; probe < MPTM_TERMINATION_PROBES; probe++) {
		__u32 at = (home + probe) % MPTM_TERMINATION_SLOTS;
		struct termination *found = bpf_map_lookup_elem(&terminations, &at);
		const __u64 *words = (const void *)found;

		if (found && (words[4] & TERMINATION_KEY_MASK) == key->words[4] &&
		    words[0] == key->words[0] && words[1] == key->words[1] && words[2] == key->words[2] &&
		    words[3] == key->words[3])
			return at;
	}
	return NOT_FOUND;
}

static __always_inline int lookup_termination_exact(const struct termination_key *key)
{
	__u64 hash = key->words[0] * 0x9E3779B97F4A7C15ULL + key->words[1] * 0xC2B2AE3D27D4EB4FULL +
		     key->words[2] * 0x165667B19E3779F9ULL + key->words[3] * 0x27D4EB2F165667C5ULL +
		     key->words[4] * 0x85EBCA77C2B2AE63ULL;
	int found;

	hash ^= hash >> 32;
	hash *= 0x9E3779B97F4A7C15ULL;
	found = probe_termination(hash >> 16, key);
	return found != NOT_FOUND ? found : probe_termination(hash >> 40, key);
}

/*
 * Who accepts this packet: the slot of the termination for its sender, else of one that accepts any sender,
 * else NOT_FOUND. Where destinations are MAC addresses, who accepts any sender accepts any destination, at
 * its own interface.
 */
static __always_inline int lookup_termination(struct termination_key *key, bool is_l2)
{
	int found = lookup_termination_exact(key);

	if (found != NOT_FOUND)
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

/* Not inlined: its keys have no room in the frame of who calls. */
static __noinline struct next_hop *lookup_flow(__u32 network, const struct packet *packet)
{
	if (packet->family == 4) {
		struct flow_key_v4 key = {network, packet->source[0], packet->destination[0]};

		return LOOKUP(flows_v4, &key);
	}
	struct flow_key_v6 key = {.network = network};

	__builtin_memcpy(key.source, packet->source, sizeof(key.source));
	__builtin_memcpy(key.destination, packet->destination, sizeof(key.destination));
	return LOOKUP(flows_v6, &key);
}

static __always_inline struct next_hop *lookup_host(__u32 network, __u8 family, const __be32 *address)
{
	if (family == 4) {
		struct host_key_v4 key = {network, address[0]};

		return LOOKUP(hosts_v4, &key);
	}
	struct host_key_v6 key = {.network = network};

	__builtin_memcpy(key.address, address, sizeof(key.address));
	return LOOKUP(hosts_v6, &key);
}

static __always_inline struct next_hop *lookup_prefix(__u32 network, __u8 family, const __be32 *address)
{
	if (family == 4) {
		struct prefix_key_v4 key = {64, bpf_htonl(network), address[0]};

		return LOOKUP(prefixes_v4, &key);
	}
	struct prefix_key_v6 key = {.prefix_len = 160, .network = bpf_htonl(network)};

	__builtin_memcpy(key.address, address, sizeof(key.address));
	return LOOKUP(prefixes_v6, &key);
}

/* Addresses that no prefix covers: loopback, link-local and groups (RFC 1122 §3.2.1.3, 3927, 4291 §2.4). */
static __always_inline bool is_routable(__u8 family, const __be32 *address)
{
	__u32 first = bpf_ntohl(address[0]);

	if (family == 4)
		return first >> 24 != 127 && first >> 16 != 0xa9fe && first >> 28 < 0xe;
	return first >> 22 != 0xfe80 >> 6 && first >> 24 != 0xff;
}

static __always_inline bool is_known(const struct known_address *known, __u32 generation, __u32 network,
				     __u32 kind, const __be32 *address)
{
	return known->generation == generation && known->network == network && known->kind == kind &&
	       known->address[0] == address[0] && known->address[1] == address[1] &&
	       known->address[2] == address[2] && known->address[3] == address[3];
}

/* Four words, zero behind an IPv4 address. */
struct ip_address {
	__be32 words[4];
};

/*
 * Where a network has an address, by the tables: the exact one, else the longest prefix if `uses_prefixes`;
 * 0: nowhere. A global function: off the fast path, with room of its own for the keys.
 */
__noinline int find_address(struct next_hop *next_hop, const struct ip_address *address, __u32 network,
			    __u32 family, __u32 uses_prefixes)
{
	struct next_hop *found;

	if (!next_hop || !address)
		return 0;
	found = lookup_host(network, family, address->words);
	if (found)
		trace(TRACE_NEXT_HOP, TABLE_HOSTS, found->kind, found->id);
	if (!found && uses_prefixes) {
		found = lookup_prefix(network, family, address->words);
		if (found)
			trace(TRACE_NEXT_HOP, TABLE_PREFIXES, found->kind, found->id);
	}
	if (!found) {
		trace(TRACE_NEXT_HOP, TABLE_NONE, 0, 0);
		return 0;
	}
	*next_hop = *found;
	return 1;
}

/*
 * The same, where what was found last for an address is kept per CPU, where no look-up needs a call, until
 * the tables change: the generation is read before them, so that a result from before a change is never taken
 * for one from after it. NULL: nowhere.
 */
static __always_inline struct next_hop *lookup_address(__u32 network, __u8 lookups, __u8 family,
						       const __be32 *address)
{
	bool uses_prefixes = lookups & LOOKUP_PREFIXES && is_routable(family, address);
	__u32 zero = 0, kind = family | (uses_prefixes ? 0x100 : 0), now;
	__u64 hash = (address[0] ^ (__u64)address[3] << 32) * 0x9E3779B97F4A7C15ULL +
		     ((__u64)network << 32 | (address[1] ^ address[2])) * 0xC2B2AE3D27D4EB4FULL;
	__u32 at = (hash >> 40) % MPTM_KNOWN_SLOTS;
	struct known_address *known = bpf_map_lookup_elem(&known_addresses, &at);
	__u32 *generation_now = bpf_map_lookup_elem(&generation, &zero);

	if (!known || !generation_now)
		return NULL;
	now = *(volatile __u32 *)generation_now;
	if (!TRACING && is_known(known, now, network, kind, address))
		return &known->next_hop;
	/* Whoever looks while this changes is on another CPU, and has its own. */
	known->generation = 0;
	if (!find_address(&known->next_hop, (const void *)address, network, family, uses_prefixes))
		return NULL;
	known->generation = now;
	known->network = network;
	known->kind = kind;
	__builtin_memcpy(known->address, address, sizeof(known->address));
	return &known->next_hop;
}

/* Where a packet of a network goes: by flow, else by destination; NULL: the network doesn't know it. */
static __always_inline struct next_hop *lookup_next_hop(__u32 network, __u8 lookups,
							const struct packet *packet)
{
	struct next_hop *found = NULL;

	if (!packet->family)
		return NULL;
	if (lookups & LOOKUP_FLOWS)
		found = lookup_flow(network, packet);
	if (found)
		trace(TRACE_NEXT_HOP, TABLE_FLOWS, found->kind, found->id);
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
