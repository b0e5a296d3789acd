/* SPDX-License-Identifier: GPL-2.0-only */
/* GTP-U on the receiving side: 3GPP TS 29.281 §5. Messages other than G-PDU are for a daemon of this host. */
#ifndef MPTM_DECAP_GTPU_H
#define MPTM_DECAP_GTPU_H

#include "inner.h"

#define GTPU_VERSION_PT_MASK 0xf0
#define GTPU_VERSION_1_PT    0x30
#define GTPU_EXTENSION	     0x04
#define GTPU_OPTIONAL	     0x07 /* any of E, S, PN: four bytes more */
#define GTPU_G_PDU	     255
#define GTPU_EXTENSIONS_MAX  4
#define GTPU_COMPREHENSION   0xc0 /* §5.2.1: both bits set: whoever receives it must understand it */
#define GTPU_PDU_SESSION     0x85 /* TS 38.415: carries the QFI, which says nothing to us */

struct gtpu_header {
	__u8 flags;
	__u8 type;
	__be16 len; /* of what follows the first 8 bytes */
	__be32 teid;
};

struct gtpu_optional {
	__be16 sequence;
	__u8 n_pdu;
	__u8 next_extension;
};

static __always_inline enum reason parse_gtpu(const struct xdp_md *ctx, const struct outer *outer,
					      struct inner *inner)
{
	struct gtpu_header *gtpu = packet_at(ctx, outer->payload_offset);
	__u32 offset = outer->payload_offset + sizeof(*gtpu), end;
	struct gtpu_optional *optional;
	__u8 next = 0;

	if ((void *)(gtpu + 1) > packet_end(ctx) || outer->payload_len < sizeof(*gtpu))
		return REASON_GTPU_TRUNCATED;
	if ((gtpu->flags & GTPU_VERSION_PT_MASK) != GTPU_VERSION_1_PT)
		return REFUSED_CONTROL;
	if (gtpu->type != GTPU_G_PDU)
		return REFUSED_CONTROL;
	identify(inner, PARSER_GTPU, bpf_ntohl(gtpu->teid));
	end = offset + bpf_ntohs(gtpu->len);
	if (end > outer->payload_offset + outer->payload_len)
		return REASON_GTPU_HEADER;
	if (gtpu->flags & GTPU_OPTIONAL) {
		optional = packet_at(ctx, offset);
		if ((void *)(optional + 1) > packet_end(ctx))
			return REASON_GTPU_TRUNCATED;
		if (gtpu->flags & GTPU_EXTENSION)
			next = optional->next_extension;
		offset += sizeof(*optional);
	}
#pragma clang loop unroll(disable)
	for (int i = 0; i < GTPU_EXTENSIONS_MAX && next; i++) {
		__u8 *extension = packet_at(ctx, offset), *last;

		if ((void *)(extension + 1) > packet_end(ctx) || !*extension)
			return REASON_GTPU_EXTENSION;
		if (next != GTPU_PDU_SESSION && (next & GTPU_COMPREHENSION) == GTPU_COMPREHENSION)
			return REASON_GTPU_EXTENSION;
		offset += *extension * 4;
		last = packet_at(ctx, offset - 1);
		if (offset > end || (void *)(last + 1) > packet_end(ctx))
			return REASON_GTPU_EXTENSION;
		next = *last;
	}
	if (next || offset > end)
		return REASON_GTPU_EXTENSION;
	inner->payload.kind = INNER_IP;
	inner->payload.offset = offset;
	inner->payload.end = end;
	return REASON_NONE;
}

#endif
