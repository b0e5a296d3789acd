/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * GRE and what runs over it, on the receiving side, over IP (protocol 47) or UDP (RFC 8086).
 *
 * GRE     RFC 2784, key and sequence by RFC 2890: carries Ethernet, IPv4 or IPv6
 * NVGRE   RFC 7637: the key is VSID << 8 | FlowID
 * ERSPAN  draft-foschiano-erspan: II by EtherType 0x88BE, III by 0x22EB, both with a sequence number
 */
#ifndef MPTM_DECAP_GRE_H
#define MPTM_DECAP_GRE_H

#include "inner.h"

#define GRE_CHECKSUM	 0x8000
#define GRE_ROUTING	 0x4000
#define GRE_KEY		 0x2000
#define GRE_SEQUENCE	 0x1000
#define GRE_MUST_BE_ZERO (GRE_ROUTING | 0x0800 | 0x0400) /* RFC 2784 §2.3: bits 1, 4 and 5 */
#define GRE_VERSION	 0x0007
#define NVGRE_VSID_SHIFT 8

#define ETHERTYPE_ERSPAN_II  0x88be
#define ETHERTYPE_ERSPAN_III 0x22eb
#define ERSPAN_II_LEN	     8
#define ERSPAN_III_LEN	     12
#define ERSPAN_PLATFORM_LEN  8
#define ERSPAN_PLATFORM	     0x01 /* O bit in the last byte of the III header: a platform subheader follows */
#define ERSPAN_VERSION_SHIFT 12
#define ERSPAN_SESSION_MASK  0x03ff

struct gre_header {
	__be16 flags;
	__be16 protocol;
};

struct erspan_header {
	__be16 version_vlan;
	__be16 session;
	__be32 rest;
};

static __always_inline enum reason parse_erspan(const hook_ctx *ctx, const struct outer *outer,
						struct inner *inner, __u16 flags, __be16 ethertype,
						__u32 offset)
{
	struct erspan_header *erspan = packet_at(ctx, offset);
	__u32 header_len = ethertype == bpf_htons(ETHERTYPE_ERSPAN_II) ? ERSPAN_II_LEN : ERSPAN_III_LEN;
	__u32 version = ethertype == bpf_htons(ETHERTYPE_ERSPAN_II) ? 1 : 2;
	__u8 *last = packet_at(ctx, offset + ERSPAN_III_LEN - 1);

	if (!(flags & GRE_SEQUENCE) || (void *)(erspan + 1) > packet_end(ctx) ||
	    !is_within(outer, offset + sizeof(*erspan)))
		return REASON_ERSPAN_HEADER;
	identify(inner, PARSER_ERSPAN, bpf_ntohs(erspan->session) & ERSPAN_SESSION_MASK);
	if (bpf_ntohs(erspan->version_vlan) >> ERSPAN_VERSION_SHIFT != version)
		return REASON_ERSPAN_HEADER;
	if (version == 2) {
		if ((void *)(last + 1) > packet_end(ctx) || !is_within(outer, offset + header_len))
			return REASON_ERSPAN_HEADER;
		if (*last & ERSPAN_PLATFORM)
			header_len += ERSPAN_PLATFORM_LEN;
	}
	if (!is_within(outer, offset + header_len))
		return REASON_ERSPAN_HEADER;
	set_payload(inner, outer, INNER_ETHERNET, offset + header_len);
	return REASON_NONE;
}

static __always_inline enum reason parse_gre(const hook_ctx *ctx, const struct outer *outer,
					     struct inner *inner)
{
	struct gre_header *gre = packet_at(ctx, outer->payload_offset);
	__u32 offset = outer->payload_offset + sizeof(*gre), key;
	__be16 ethertype;
	__be32 *field;
	__u16 flags;

	if ((void *)(gre + 1) > packet_end(ctx) || outer->payload_len < sizeof(*gre))
		return REASON_GRE_TRUNCATED;
	flags = bpf_ntohs(gre->flags);
	ethertype = gre->protocol;
	if (flags & GRE_VERSION)
		return REFUSED_CONTROL; /* version 1 is PPTP's */
	if (flags & GRE_MUST_BE_ZERO)
		return REASON_GRE_FLAGS;
	if (flags & GRE_CHECKSUM) {
		inner->checksum_at = outer->payload_offset;
		offset += sizeof(*field);
	}
	if (flags & GRE_KEY) {
		field = packet_at(ctx, offset);
		if ((void *)(field + 1) > packet_end(ctx) || !is_within(outer, offset + sizeof(*field)))
			return REASON_GRE_TRUNCATED;
		key = bpf_ntohl(*field);
		offset += sizeof(*field);
		identify(inner, PARSER_GRE_KEY, key);
		if (ethertype == bpf_htons(ETH_P_TEB) && !(flags & (GRE_CHECKSUM | GRE_SEQUENCE))) {
			inner->other_parser = PARSER_NVGRE;
			inner->other_id = key >> NVGRE_VSID_SHIFT;
			inner->other_offset = offset;
		}
	} else {
		identify(inner, PARSER_GRE, 0);
	}
	if (flags & GRE_SEQUENCE)
		offset += sizeof(*field);
	if (!is_within(outer, offset))
		return REASON_GRE_TRUNCATED;
	if (ethertype == bpf_htons(ETHERTYPE_ERSPAN_II) || ethertype == bpf_htons(ETHERTYPE_ERSPAN_III))
		return parse_erspan(ctx, outer, inner, flags, ethertype, offset);
	return set_payload_by_ethertype(inner, outer, ethertype, offset) ? REASON_NONE : REASON_GRE_PROTOCOL;
}

#endif
