/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tunnels whose header is little or nothing, on the receiving side.
 *
 * IP in IP        RFC 2003, 4213, 2473; and FOU: a UDP port behind which the inner packet begins
 * EtherIP         RFC 3378 §3
 * GUE             draft-ietf-intarea-gue §3: variant 0 with a header, variant 1 without
 * MPLS in UDP     RFC 7510, label stack RFC 3032 §2.1
 * SRv6            RFC 8754 §2: a segment routing header whose segments are used up, or none; RFC 8986 §4.5,
 * §4.9
 */
#ifndef MPTM_DECAP_IP_H
#define MPTM_DECAP_IP_H

#include "inner.h"

#define IPPROTO_ETHERIP 97
#define ETHERIP_VERSION 0x3000
#define ETHERIP_LEN	2

#define GUE_VARIANT_SHIFT 6
#define GUE_CONTROL	  0x20
#define GUE_LEN_MASK	  0x1f /* in units of 4 bytes, without the first 4 */

#define MPLS_LABELS_MAX	 8
#define MPLS_BOTTOM	 0x100
#define MPLS_LABEL_SHIFT 12

#define SRH_TYPE 4

struct gue_header {
	__u8 variant_len;
	__u8 protocol;
	__be16 flags;
};

struct segment_routing_header {
	__u8 next_header;
	__u8 len; /* in units of 8 bytes, without the first 8 */
	__u8 type;
	__u8 segments_left;
	__be32 rest;
};

static __always_inline enum reason parse_ip_in_ip(const struct outer *outer, struct inner *inner)
{
	identify(inner, PARSER_IP, 0);
	set_payload(inner, outer, INNER_IP, outer->payload_offset);
	if (outer->protocol == IPPROTO_IPIP || outer->protocol == IPPROTO_IPV6)
		inner->payload.version = outer->protocol == IPPROTO_IPIP ? 4 : 6;
	if (outer->family == 6 && outer->protocol != IPPROTO_UDP) {
		inner->other_parser = PARSER_SRV6; /* reduced to no header at all: RFC 8986 §5.2 */
		inner->other_offset = outer->payload_offset;
	}
	return REASON_NONE;
}

static __always_inline enum reason parse_etherip_at(const hook_ctx *ctx, const struct outer *outer,
						    struct inner *inner, __u32 offset)
{
	__be16 *header = packet_at(ctx, offset);

	if ((void *)(header + 1) > packet_end(ctx) || !is_within(outer, offset + ETHERIP_LEN) ||
	    *header != bpf_htons(ETHERIP_VERSION))
		return REASON_ETHERIP_HEADER;
	set_payload(inner, outer, INNER_ETHERNET, offset + ETHERIP_LEN);
	return REASON_NONE;
}

static __always_inline enum reason parse_etherip(const hook_ctx *ctx, const struct outer *outer,
						 struct inner *inner)
{
	identify(inner, PARSER_ETHERIP, 0);
	return parse_etherip_at(ctx, outer, inner, outer->payload_offset);
}

static __always_inline enum reason parse_gue(hook_ctx *ctx, const struct outer *outer, struct inner *inner)
{
	struct gue_header *gue = packet_at(ctx, outer->payload_offset);
	__u32 offset;
	__u8 protocol;

	identify(inner, PARSER_GUE, 0);
	if ((void *)(gue + 1) > packet_end(ctx) || outer->payload_len < sizeof(*gue))
		return REASON_GUE_HEADER;
	set_payload(inner, outer, INNER_IP, outer->payload_offset);
	if (gue->variant_len >> GUE_VARIANT_SHIFT == 1)
		return REASON_NONE; /* 01: the first two bits of an IP version */
	/* Flags that we don't know may change what the payload is. */
	if (gue->variant_len >> GUE_VARIANT_SHIFT || gue->variant_len & GUE_CONTROL || gue->flags)
		return REASON_GUE_HEADER;
	offset = outer->payload_offset + sizeof(*gue) + (gue->variant_len & GUE_LEN_MASK) * 4;
	protocol = gue->protocol;
	if (!is_within(outer, offset))
		return REASON_GUE_HEADER;
	if (offset != outer->payload_offset + sizeof(*gue))
		pull_packet(ctx, PULL_LEN_MAX);
	if (protocol == IPPROTO_ETHERIP)
		return parse_etherip_at(ctx, outer, inner, offset);
	if (protocol == IPPROTO_ETHERNET)
		return REASON_GUE_HEADER;
	return set_payload_by_protocol(inner, outer, protocol, offset) ? REASON_NONE : REASON_GUE_HEADER;
}

/* The tunnel id is the label at the bottom of the stack. */
static __always_inline enum reason parse_mpls(const hook_ctx *ctx, const struct outer *outer,
					      struct inner *inner)
{
	__u32 offset = outer->payload_offset;

#pragma clang loop unroll(disable)
	for (int i = 0; i < MPLS_LABELS_MAX; i++) {
		__be32 *entry = packet_at(ctx, offset);

		if ((void *)(entry + 1) > packet_end(ctx) || !is_within(outer, offset + sizeof(*entry)))
			return REASON_MPLS_STACK;
		offset += sizeof(*entry);
		if (*entry & bpf_htonl(MPLS_BOTTOM)) {
			identify(inner, PARSER_MPLS, bpf_ntohl(*entry) >> MPLS_LABEL_SHIFT);
			set_payload(inner, outer, INNER_IP, offset);
			return REASON_NONE;
		}
	}
	return REASON_MPLS_STACK;
}

/* Segments that are left are somebody else's business: only the last one decapsulates. */
static __always_inline enum reason parse_srv6(hook_ctx *ctx, const struct outer *outer, struct inner *inner)
{
	struct segment_routing_header *srh = packet_at(ctx, outer->payload_offset);
	__u32 offset = outer->payload_offset;
	__u8 next = outer->protocol;

	if (outer->family != 6)
		return REFUSED_CONTROL;
	if (next == IPPROTO_ROUTING) {
		if ((void *)(srh + 1) > packet_end(ctx) || !is_within(outer, offset + sizeof(*srh))) {
			identify(inner, PARSER_SRV6, 0);
			return REASON_SRV6_HEADER;
		}
		if (srh->type != SRH_TYPE || srh->segments_left)
			return REFUSED_CONTROL;
		next = srh->next_header;
		offset += sizeof(*srh) + srh->len * 8;
		pull_packet(ctx, PULL_LEN_MAX);
	}
	identify(inner, PARSER_SRV6, 0);
	if (!is_within(outer, offset))
		return REASON_SRV6_HEADER;
	return set_payload_by_protocol(inner, outer, next, offset) ? REASON_NONE : REASON_SRV6_HEADER;
}

#endif
