/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Decapsulation: listener -> parser -> termination -> inner frame -> decision; only then the packet is
 * changed. Which header is read how is in decap/<family>.h.
 */
#ifndef MPTM_DECAP_H
#define MPTM_DECAP_H

#include "decap/geneve.h"
#include "decap/inner.h"
#include "decap/outer.h"
#include "decap/vlan.h"
#include "decap/vxlan.h"
#include "drop.h"
#include "lookup.h"

#define ECN_MASK    0x03
#define ECN_NOT_ECT 0x00
#define ECN_ECT_1   0x01
#define ECN_ECT_0   0x02
#define ECN_CE	    0x03

static __always_inline enum reason parse_tunnel_header(struct xdp_md *ctx, const struct outer *outer,
						       struct inner *inner)
{
	switch (outer->parser) {
	case PARSER_GENEVE:
		return parse_geneve(ctx, outer, inner);
	case PARSER_VXLAN:
		return parse_vxlan(ctx, outer, inner);
	case PARSER_VLAN:
		return parse_vlan(ctx, outer, inner);
	default:
		return REASON_BAD_INNER;
	}
}

/* The termination for what the outer headers and the tunnel header say; NULL: nobody may send us this. */
static __always_inline struct termination *find_termination(const struct outer *outer,
							    const struct inner *inner)
{
	struct termination_key key;

	__builtin_memcpy(&key.words[0], outer->source, 16);
	__builtin_memcpy(&key.words[2], outer->destination, 16);
	key.words[4] = inner->tunnel_id | (__u64)outer->number << 32 | (__u64)outer->parser << 48;
	return lookup_termination(&key, !outer->family);
}

/* A packet with a problem, and no tunnel known for it: a drop when it is for us, else left as it came. */
static __always_inline int reject(const struct outer *outer, enum reason reason, __u32 ifindex, __u64 len)
{
	if (!is_local(outer->destination))
		return XDP_PASS;
	return drop_on_port(reason, ifindex, len);
}

/* A sound packet that we don't take: counted when it is addressed to us, and left as it came either way. */
static __always_inline int refuse(const struct outer *outer, enum reason reason, __u32 ifindex, __u64 len)
{
	if (!is_local(outer->destination))
		return XDP_PASS;
	return refuse_on_port(reason, ifindex, len);
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
static __always_inline bool write_ecn(const struct xdp_md *ctx, const struct packet *packet, __u8 ecn)
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
		__be32 *word = at;

		if ((void *)(word + 1) > packet_end(ctx))
			return false;
		*word = (*word & ~bpf_htonl(ECN_MASK << 20)) | bpf_htonl((__u32)ecn << 20);
	}
	return true;
}

/*
 * Takes the outer headers and any padding behind the inner frame away, so that the packet is the inner frame.
 * False: the packet could not be cut.
 */
static __always_inline bool strip_outer(struct xdp_md *ctx, const struct inner *inner,
					const struct packet *packet, __u64 len, int ecn)
{
	__u32 end = inner->offset + inner->len;

	if (len > end && bpf_xdp_adjust_tail(ctx, (int)end - (int)len))
		return false;
	if (bpf_xdp_adjust_head(ctx, (int)inner->offset))
		return false;
	if (inner->keeps_macs) {
		void *eth = (void *)(long)ctx->data;

		if (eth + MACS_LEN > packet_end(ctx))
			return false;
		__builtin_memcpy(eth, &packet->macs, MACS_LEN);
	}
	if (packet->family && ecn != (packet->tos & ECN_MASK))
		return write_ecn(ctx, packet, ecn);
	return true;
}

#endif
