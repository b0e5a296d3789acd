/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Answers to packets that don't fit into their tunnel: ICMP "fragmentation needed" (RFC 792, RFC 1191 §4) and
 * ICMPv6 "packet too big" (RFC 4443 §3.2), from the gateway address of the network, out of the port that the
 * packet came by.
 */
#ifndef MPTM_TOO_BIG_H
#define MPTM_TOO_BIG_H

#include "checksum.h"
#include "icmp.h"
#include "maps.h"
#include "packet.h"
#include "room.h"

#define ICMP_UNREACHABLE	   3
#define ICMP_FRAGMENTATION_NEEDED  4
#define ICMP_SOURCE_QUENCH	   4
#define ICMP_REDIRECT		   5
#define ICMP_TIME_EXCEEDED	   11
#define ICMP_PARAMETER_PROBLEM	   12
#define ICMPV6_REDIRECT		   137
#define ICMPV6_PACKET_TOO_BIG	   2
#define ICMP4_QUOTED		   548	/* RFC 1812 §4.3.2.3: at most, in an answer of 576 bytes */
#define ICMP6_QUOTED		   1232 /* RFC 4443 §2.4: at most, in an answer of 1280 bytes */
#define ICMPV6_FIRST_INFORMATIONAL 128
#define IPV4_MTU_MIN		   68	/* RFC 791 §3.2 */
#define IPV6_MTU_MIN		   1280 /* RFC 8200 §5; who is told less ignores it (RFC 8201 §4) */
#define ANSWERS_PER_SECOND	   100
#define ANSWER_INTERVAL_NS	   (1000000000ULL / ANSWERS_PER_SECOND)
#define ANSWER_BURST		   10

/* ICMP and ICMPv6 have the MTU at the same place: ICMP uses the lower half of the word. */
struct icmp_error {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 mtu;
};

/* Whether a port may answer now: a token bucket whose time, not its tokens, is stored. */
static __always_inline bool may_answer(__u32 port_slot)
{
	__u64 now = bpf_ktime_get_ns(), earliest = now - ANSWER_BURST * ANSWER_INTERVAL_NS;
	__u64 *next = bpf_map_lookup_elem(&answer_times, &port_slot);

	if (!next || *next > now)
		return false;
	*next = (*next < earliest ? earliest : *next) + ANSWER_INTERVAL_NS;
	return true;
}

/* RFC 1122 §3.2.2: no errors about these; others are queries. */
static __always_inline bool is_icmp_error(__u8 type)
{
	return type == ICMP_UNREACHABLE || type == ICMP_SOURCE_QUENCH || type == ICMP_REDIRECT ||
	       type == ICMP_TIME_EXCEEDED || type == ICMP_PARAMETER_PROBLEM;
}

/*
 * RFC 1122 §3.2.2: no errors about errors, about fragments that aren't the first, about what went to groups,
 * or to who is no single host. RFC 4443 §2.4: the same, but for groups, whose packets may well be too big.
 */
static __always_inline bool deserves_answer(const hook_ctx *ctx, const struct packet *packet)
{
	void *at = packet_at(ctx, packet->l3_offset);
	__u8 *type;

	if (!is_single_host(packet->family, packet->source))
		return false;
	if (packet->family == 4) {
		struct iphdr *ip = at;

		if ((void *)(ip + 1) > packet_end(ctx) || !(ip->frag_off & bpf_htons(IPV4_DONT_FRAGMENT)) ||
		    ip->frag_off & bpf_htons(IPV4_OFFSET_BITS) || packet->macs.destination[0] & MAC_GROUP ||
		    !is_single_host(4, packet->destination))
			return false;
		type = at + ip->ihl * 4;
		if ((void *)(type + 1) > packet_end(ctx))
			return false;
		return ip->protocol != IPPROTO_ICMP || !is_icmp_error(*type);
	}
	type = at + sizeof(struct ipv6hdr);
	if ((void *)(type + 1) > packet_end(ctx))
		return false;
	return packet->protocol != IPPROTO_ICMPV6 ||
	       (*type >= ICMPV6_FIRST_INFORMATIONAL && *type != ICMPV6_REDIRECT);
}

/*
 * What of the quoted packet is yet to change: the kernel goes on with the transport checksum that it has
 * noted, and fills it in, in the quotation. The sum from there on is then known, whatever was cut off.
 */
struct later {
	__u32 at; /* from the quoted IP header on; 0: nothing changes */
	__u32 sum;
};

static __always_inline void expect_later(const hook_ctx *ctx, const struct packet *packet, __u32 quoted,
					 struct later *later)
{
	__u32 field_end = packet->protocol == IPPROTO_TCP ? TCP_CHECKSUM_END : UDP_CHECKSUM_END;
	__be16 *field;

	if (!HAS_UNFINISHED_SUMS)
		return;
	later->at = unfinished_at(ctx, packet, packet->l3_offset);
	field = packet_at(ctx, packet->l3_offset + later->at + field_end - sizeof(*field));
	if (!later->at || later->at + field_end > quoted || (void *)(field + 1) > packet_end(ctx)) {
		later->at = 0;
		return;
	}
	later->sum = (__u16) ~*field;
}

static __always_inline bool write_fragmentation_needed(hook_ctx *ctx, __u32 at, const struct packet *packet,
						       const struct gateway *gateway, __u32 mtu, __u32 quoted,
						       const struct later *later)
{
	__u32 icmp_at = at + sizeof(struct iphdr);
	struct iphdr *ip = packet_at(ctx, at);
	struct icmp_error *icmp = (void *)(ip + 1);
	const __u32 *words = (const void *)ip;
	__u64 ip_sum = 0;
	int sum;

	if ((void *)(icmp + 1) > packet_end(ctx))
		return false;
	__builtin_memset(ip, 0, sizeof(*ip) + sizeof(*icmp));
	ip->version = 4;
	ip->ihl = 5;
	ip->tot_len = bpf_htons(sizeof(*ip) + sizeof(*icmp) + quoted);
	ip->frag_off = bpf_htons(IPV4_DONT_FRAGMENT); /* RFC 6864 §4.1: so the ID may be anything */
	ip->ttl = ANSWER_TTL;
	ip->protocol = IPPROTO_ICMP;
	ip->saddr = gateway->address_v4;
	ip->daddr = packet->source[0];
#pragma unroll
	for (int i = 0; i < 5; i++)
		ip_sum += words[i];
	ip->check = ~fold_checksum(ip_sum);
	icmp->type = ICMP_UNREACHABLE;
	icmp->code = ICMP_FRAGMENTATION_NEEDED;
	icmp->mtu = bpf_htonl(mtu & 0xffff);
	sum = sum_bytes(ctx, icmp_at, sizeof(*icmp) + (later->at ? later->at : quoted));
	icmp = packet_at(ctx, icmp_at);
	if (sum < 0 || (void *)(icmp + 1) > packet_end(ctx))
		return false;
	icmp->checksum = ~fold_checksum((__u64)(__u32)sum + later->sum);
	return true;
}

static __always_inline bool write_packet_too_big(hook_ctx *ctx, __u32 at, const struct packet *packet,
						 const struct gateway *gateway, __u32 mtu, __u32 quoted,
						 const struct later *later)
{
	__u32 icmp_at = at + sizeof(struct ipv6hdr), len = sizeof(struct icmp_error) + quoted;
	struct ipv6hdr *ip = packet_at(ctx, at);
	struct icmp_error *icmp = (void *)(ip + 1);
	const __u32 *gateway_words = (const void *)gateway->address_v6;
	__u64 pseudo = bpf_htonl(len) + (__u64)bpf_htonl(IPPROTO_ICMPV6);
	int sum;

	if ((void *)(icmp + 1) > packet_end(ctx))
		return false;
	__builtin_memset(ip, 0, sizeof(*ip) + sizeof(*icmp));
	ip->version = 6;
	ip->payload_len = bpf_htons(len);
	ip->nexthdr = IPPROTO_ICMPV6;
	ip->hop_limit = ANSWER_TTL;
	__builtin_memcpy(&ip->saddr, gateway->address_v6, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, packet->source, sizeof(ip->daddr));
	icmp->type = ICMPV6_PACKET_TOO_BIG;
	icmp->mtu = bpf_htonl(mtu);
#pragma unroll
	for (int i = 0; i < 4; i++)
		pseudo += (__u64)gateway_words[i] + packet->source[i];
	sum = sum_bytes(ctx, icmp_at, later->at ? sizeof(*icmp) + later->at : len);
	icmp = packet_at(ctx, icmp_at);
	if (sum < 0 || (void *)(icmp + 1) > packet_end(ctx))
		return false;
	icmp->checksum = ~fold_checksum(pseudo + (__u32)sum + later->sum);
	return true;
}

/*
 * Turns the packet of `network` into the answer to its sender, from the port of `port_slot`: `mtu` is the
 * largest IP packet that fits, but nobody is told of less than every link has. VLAN tags stay. 0: it deserves
 * none, may have none now, or its network has no gateway address; the packet is then to be dropped. A global
 * function: the verifier sees it once.
 */
__noinline int write_too_big(hook_ctx *ctx, const struct packet *packet, __u32 network, __u32 mtu,
			     __u32 port_slot)
{
	struct {
		struct mac_pair macs;
		__be16 rest[5]; /* EtherType, and two tags before it if they are there */
	} l2 = {};
	struct port *port = SLOT(ports, port_slot);
	__u32 quoted, header_len, l3_offset;
	struct later later = {};
	struct gateway *gateway;
	__be16 *rest;
	void *start;

	if (!packet || !port)
		return 0;
	gateway = bpf_map_lookup_elem(&gateways, &network);
	if (!gateway || !deserves_answer(ctx, packet))
		return 0;
	if (packet->family == 4 ? !gateway->has_v4 : !gateway->has_v6)
		return 0;
	if (mtu < (packet->family == 4 ? IPV4_MTU_MIN : IPV6_MTU_MIN))
		mtu = packet->family == 4 ? IPV4_MTU_MIN : IPV6_MTU_MIN;
	quoted = packet->family == 4 ? ICMP4_QUOTED : ICMP6_QUOTED;
	header_len = packet->family == 4 ? sizeof(struct iphdr) + sizeof(struct icmp_error)
					 : sizeof(struct ipv6hdr) + sizeof(struct icmp_error);
	l3_offset = packet->l3_offset;
	if (l3_offset < ETH_HLEN || l3_offset > L2_MAX || packet->end < l3_offset || !may_answer(port_slot))
		return 0;
	if (quoted > packet->end - l3_offset)
		quoted = packet->end - l3_offset;

	expect_later(ctx, packet, quoted, &later);
	rest = packet_start(ctx) + MACS_LEN;
#pragma unroll
	for (int i = 0; i < 5; i++) {
		if ((void *)(rest + i + 1) > packet_end(ctx))
			return 0;
		l2.rest[i] = rest[i];
	}
	__builtin_memcpy(l2.macs.destination, packet->macs.source, ETH_ALEN);
	__builtin_memcpy(l2.macs.source, port->mac, ETH_ALEN);
	if (!adjust_tail(ctx, (int)(l3_offset + quoted) - (int)packet->len) || !push_front(ctx, header_len))
		return 0;
	start = packet_start(ctx);
	if (start + sizeof(l2) > packet_end(ctx))
		return 0;
	/* All that a header with two tags would have; what belongs to a shorter one's IP header is written
	 * next. */
	__builtin_memcpy(start, &l2, sizeof(l2));
	return packet->family == 4
		   ? write_fragmentation_needed(ctx, l3_offset, packet, gateway, mtu, quoted, &later)
		   : write_packet_too_big(ctx, l3_offset, packet, gateway, mtu, quoted, &later);
}

#endif
