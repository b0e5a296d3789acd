/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Decapsulation: listener -> parser -> termination -> inner frame -> decision; only then the packet is
 * changed. Which header is read how is in decap/<family>.h.
 */
#ifndef MPTM_DECAP_H
#define MPTM_DECAP_H

#include "checksum.h"
#include "decap/geneve.h"
#include "decap/gre.h"
#include "decap/gtpu.h"
#include "decap/inner.h"
#include "decap/ip.h"
#include "decap/l2tp.h"
#include "decap/outer.h"
#include "decap/vlan.h"
#include "decap/vxlan.h"
#include "drop.h"
#include "lookup.h"
#include "room.h"

#define ECN_MASK    0x03
#define ECN_NOT_ECT 0x00
#define ECN_ECT_1   0x01
#define ECN_ECT_0   0x02
#define ECN_CE	    0x03

static __always_inline enum reason parse_tunnel_header(hook_ctx *ctx, const struct outer *outer,
						       struct inner *inner)
{
	switch (outer->parser) {
	case PARSER_GENEVE:
		return parse_geneve(ctx, outer, inner);
	case PARSER_VXLAN:
		return parse_vxlan(ctx, outer, inner);
	case PARSER_VLAN:
		return parse_vlan(ctx, outer, inner);
	case PARSER_VXLAN_GPE:
		return parse_vxlan_gpe(ctx, outer, inner);
	case PARSER_GRE:
		return parse_gre(ctx, outer, inner);
	case PARSER_IP:
		return parse_ip_in_ip(outer, inner);
	case PARSER_ETHERIP:
		return parse_etherip(ctx, outer, inner);
	case PARSER_GTPU:
		return parse_gtpu(ctx, outer, inner);
	case PARSER_L2TP_IP:
		return parse_l2tp(ctx, outer, inner, false);
	case PARSER_L2TP_UDP:
		return parse_l2tp(ctx, outer, inner, true);
	case PARSER_GUE:
		return parse_gue(ctx, outer, inner);
	case PARSER_MPLS:
		return parse_mpls(ctx, outer, inner);
	case PARSER_SRV6:
		return parse_srv6(ctx, outer, inner);
	default:
		return REASON_BAD_INNER;
	}
}

/*
 * Whose packet is this, and which tunnel header does it have? Fills in *outer and *inner, both zero before
 * but for outer->frame_len, as far as the packet goes. outer->parser stays PARSER_NONE for what we don't
 * listen for.
 */
static __always_inline enum reason parse_arrival(hook_ctx *ctx, struct outer *outer, struct inner *inner)
{
	enum reason reason;

	parse_outer(ctx, outer->frame_len, outer);
	if (!outer->parser) {
		trace(TRACE_NOT_LISTENING, outer->protocol, outer->number, outer->family);
		return REASON_NONE;
	}
	trace_address(TRACE_OUTER, outer->family, outer->number, outer->parser, outer->source);
	trace_address(TRACE_OUTER_DESTINATION, outer->protocol, outer->tos, 0, outer->destination);
	if (outer->is_fragment)
		return REFUSED_FRAGMENT;
	if (outer->problem)
		return outer->problem;
	reason = parse_tunnel_header(ctx, outer, inner);
	trace(TRACE_HEADER, inner->parser, inner->tunnel_id, reason);
	return reason;
}

/*
 * The termination for what the outer headers and the tunnel header say, by its more specific name
 * first; NULL: nobody may send us this.
 */
static __always_inline struct termination *find_termination(const struct outer *outer, struct inner *inner)
{
	struct termination_key key;
	struct termination *found = NULL;

#pragma unroll
	for (int i = 0; i < 2; i++) {
		copy_address(&key.words[0], outer->source);
		copy_address(&key.words[2], outer->destination);
		key.words[4] = inner->tunnel_id | (__u64)outer->number << 32 | (__u64)inner->parser << 48;
		found = lookup_termination(&key, !outer->family);
		if (found || !inner->other_parser)
			break;
		inner->tunnel_id = inner->other_id;
		inner->parser = inner->other_parser;
		inner->payload.offset = inner->other_offset;
		inner->other_parser = PARSER_NONE;
	}
	return found;
}

/*
 * The sum from `offset` to `end` that there will be once the transport checksum of the inner frame or packet
 * at inner_at is filled in; -1: that isn't what it waits for. A global function: off the fast path.
 */
__noinline int sum_finished(hook_ctx *ctx, __u32 offset, __u32 end, __u32 inner_at, __u32 kind)
{
	struct packet packet = {};
	__u32 l3_at = inner_at;
	bool is_parsed;

	if (end < inner_at)
		return -1;
	is_parsed = kind == INNER_IP ? parse_ip_packet(ctx, inner_at, end - inner_at, &packet)
				     : parse_frame(ctx, inner_at, end - inner_at, &packet);
	if (kind != INNER_IP)
		l3_at += packet.l3_offset;
	if (!is_parsed || !packet.family || !unfinished_at(ctx, &packet, l3_at))
		return -1;
	return sum_outer(ctx, &packet, offset, l3_at, end);
}

/* Sum of what an outer UDP checksum counts in front of the UDP header (RFC 768, RFC 8200 §8.1). */
static __always_inline __u64 sum_pseudo_header(const struct outer *outer, __u32 len)
{
	/* ::ffff:0:0/96 in front of IPv4 addresses would count, so only their last word does. */
	const __u32 *source = (const void *)outer->source, *destination = (const void *)outer->destination;
	__u64 pseudo = (__u64)source[3] + destination[3] + bpf_htons(len) + bpf_htons(IPPROTO_UDP);

	if (outer->family == 6)
		pseudo += (__u64)source[0] + source[1] + source[2] + destination[0] + destination[1] +
			  destination[2];
	return pseudo;
}

/*
 * Whether the outer UDP checksum is what the termination wants, an enum reason: RFC 768, RFC 8200 §8.1, RFC
 * 6935. A global function: off the fast path.
 */
__noinline int check_udp_checksum(hook_ctx *ctx, const struct outer *outer, __u32 flags)
{
	__u32 at, len;
	struct udphdr *udp;
	__u64 pseudo;
	int sum;

	if (!outer)
		return REASON_UDP_CHECKSUM;
	at = outer->payload_offset - sizeof(*udp);
	len = outer->payload_len + sizeof(*udp);
	udp = packet_at(ctx, at);
	if ((void *)(udp + 1) > packet_end(ctx))
		return REASON_UDP_CHECKSUM;
	if (!udp->check)
		return flags & REQUIRE_UDP_CHECKSUM ? REASON_UDP_CHECKSUM : REASON_NONE;
	if (gso_size(ctx))
		return REASON_NONE;
	if (at + len > SUM_MAX)
		return REASON_CHECKSUM_SPAN;
	pseudo = sum_pseudo_header(outer, len);
	sum = sum_bytes(ctx, at, len);
	return sum >= 0 && fold_checksum(pseudo + (__u32)sum) == 0xffff ? REASON_NONE : REASON_UDP_CHECKSUM;
}

/* The same of a checksum that is wrong as long as the inner one isn't filled in. */
static __always_inline enum reason check_unfinished_udp(hook_ctx *ctx, const struct outer *outer,
							const struct termination *accepted,
							const struct inner *inner)
{
	__u32 at = outer->payload_offset - sizeof(struct udphdr),
	      len = outer->payload_len + sizeof(struct udphdr);
	__u32 inner_at = inner->payload.offset + accepted->cookie_len + accepted->sublayer_len;
	struct udphdr *udp = packet_at(ctx, at);
	int sum;

	if ((void *)(udp + 1) > packet_end(ctx) || !udp->check)
		return REASON_UDP_CHECKSUM;
	sum = sum_finished(ctx, at, at + len, inner_at, inner->payload.kind);
	return sum >= 0 && fold_checksum(sum_pseudo_header(outer, len) + (__u32)sum) == 0xffff
		   ? REASON_NONE
		   : REASON_UDP_CHECKSUM;
}

static __always_inline __u8 accept_flag(const struct payload *payload, const struct packet *packet)
{
	if (payload->kind == INNER_ETHERNET)
		return ACCEPT_ETHERNET;
	return packet->family == 4 ? ACCEPT_IPV4 : ACCEPT_IPV6;
}

/* What only the termination knows how to check: cookies and checksums. */
static __always_inline enum reason check_accepted(hook_ctx *ctx, const struct termination *accepted,
						  const struct outer *outer, struct inner *inner)
{
	int reason = REASON_NONE;

	if (accepted->flags & VERIFY_UDP_CHECKSUM && outer->protocol == IPPROTO_UDP)
		reason = check_udp_checksum(ctx, outer, accepted->flags);
	if (HAS_UNFINISHED_SUMS && reason == REASON_UDP_CHECKSUM)
		reason = check_unfinished_udp(ctx, outer, accepted, inner);
	if (reason)
		return reason;
	if (inner->parser == PARSER_L2TP_IP || inner->parser == PARSER_L2TP_UDP)
		return parse_l2tp_cookie(ctx, accepted, inner);
	/* A GSO packet has the checksum of none of its segments: whoever put them together has verified
	 * those. */
	if (!inner->checksum_at || accepted->flags & ACCEPT_BAD_CHECKSUM || gso_size(ctx))
		return REASON_NONE;
	if (inner->payload.end > SUM_MAX)
		return REASON_CHECKSUM_SPAN;
	if (sum_bytes(ctx, inner->checksum_at, inner->payload.end - inner->checksum_at) == 0xffff)
		return REASON_NONE;
	if (HAS_UNFINISHED_SUMS && sum_finished(ctx, inner->checksum_at, inner->payload.end,
						inner->payload.offset, inner->payload.kind) == 0xffff)
		return REASON_NONE;
	return REASON_GRE_CHECKSUM;
}

/*
 * Reads the inner frame or packet into *packet, which is zero before. What is behind an IP packet that has no
 * frame of its own is not taken for a part of it, as the kernel does it (ip_rcv).
 */
static __always_inline enum reason parse_inner(const hook_ctx *ctx, struct inner *inner,
					       const struct outer *outer, struct packet *packet)
{
	__u32 len;

	len = inner->payload.end - inner->payload.offset;
	if (inner->payload.kind == INNER_IP) {
		if (!parse_ip_packet(ctx, inner->payload.offset, len, packet))
			return REASON_BAD_INNER;
		packet->len = packet->end;
		inner->payload.end = inner->payload.offset + packet->end - ETH_HLEN;
		return inner->payload.version && inner->payload.version != packet->family
			   ? REASON_INNER_VERSION
			   : REASON_NONE;
	}
	if (!parse_frame(ctx, inner->payload.offset, len, packet))
		return REASON_BAD_INNER;
	if (inner->parser == PARSER_NVGRE && packet->l3_offset != ETH_HLEN)
		return REASON_INNER_TAG; /* RFC 7637 §3.3 */
	if (inner->payload.keeps_macs) {
		copy_mac(packet->macs.destination, outer->destination);
		copy_mac(packet->macs.source, outer->source);
	}
	return REASON_NONE;
}

/* RFC 6040 §4.2: the ECN field that leaves the tunnel, or -1 for "drop". */
static __always_inline int combine_ecn(__u8 inner, __u8 outer)
{
	if (outer == ECN_CE)
		return inner == ECN_NOT_ECT ? -1 : ECN_CE;
	if (outer == ECN_ECT_1 && inner == ECN_ECT_0)
		return ECN_ECT_1;
	return inner;
}

/* Writes the ECN field of the frame at the start of the packet; an IPv4 checksum follows (RFC 1624). */
static __always_inline bool write_ecn(hook_ctx *ctx, const struct packet *packet, __u8 ecn)
{
	void *at = packet_at(ctx, packet->l3_offset);

	if (packet->family == 4) {
		struct iphdr *ip = at;
		__u8 tos = (packet->tos & ~ECN_MASK) | ecn;

		if ((void *)(ip + 1) > packet_end(ctx))
			return false;
		ip->check = ~fold_checksum((__u64)(__u16)~ip->check + (__u16)~bpf_htons(packet->tos) +
					   bpf_htons(tos));
		ip->tos = tos;
	} else {
		__be32 *word = at, before, after;

		if ((void *)(word + 1) > packet_end(ctx))
			return false;
		before = *word;
		after = (before & ~bpf_htonl(ECN_MASK << 20)) | bpf_htonl((__u32)ecn << 20);
		*word = after;
		update_sum(ctx, before, after);
	}
	return true;
}

/* Where the frame that is to leave begins, if only in thought: its Ethernet header may be yet to be written.
 */
static __always_inline __u32 inner_frame_at(const struct payload *payload)
{
	return payload->offset - (payload->kind == INNER_IP ? ETH_HLEN : 0);
}

/*
 * Takes the outer headers and any padding behind the inner packet away, so that what is left is the inner
 * frame; an inner packet without an Ethernet header gets one, from `gateway_mac` to a MAC that the delivery
 * writes. False: the packet could not be cut.
 */
static __always_inline bool strip_outer(hook_ctx *ctx, const struct payload *payload, struct packet *packet,
					__u64 len, int ecn, const __u8 *gateway_mac)
{
	__u32 strip = inner_frame_at(payload);
	struct ethhdr *eth;

	if (len > payload->end && !adjust_tail(ctx, (int)payload->end - (int)len))
		return false;
	if (!cut_outer(ctx, packet, strip, payload->kind == INNER_ETHERNET, payload->keeps_macs))
		return false;
	eth = packet_start(ctx);
	if ((void *)(eth + 1) > packet_end(ctx))
		return false;
	if (payload->kind == INNER_IP) {
		copy_mac(eth->h_dest, gateway_mac);
		copy_mac(eth->h_source, gateway_mac);
		eth->h_proto = packet->ethertype;
		copy_macs(&packet->macs, eth);
	} else if (payload->keeps_macs) {
		copy_macs(eth, &packet->macs);
	}
	trace(TRACE_STRIPPED, strip, payload->kind, 0);
	if (packet->family && ecn != (packet->tos & ECN_MASK)) {
		if (!write_ecn(ctx, packet, ecn))
			return false;
		packet->tos = (packet->tos & ~ECN_MASK) | ecn;
	}
	return true;
}

#endif
