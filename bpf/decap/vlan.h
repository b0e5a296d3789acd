/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * VLAN tags on the receiving side: IEEE 802.1Q §9.6. They stand between the MAC addresses and the rest. Two
 * tags are looked for as a pair first (QinQ, id = outer VID << 12 | inner VID), then by the outer one alone.
 */
#ifndef MPTM_DECAP_VLAN_H
#define MPTM_DECAP_VLAN_H

#include "inner.h"

#define VLAN_VID_MASK 0x0fff
#define VLAN_VID_BITS 12

static __always_inline enum reason parse_vlan(const hook_ctx *ctx, const struct outer *outer,
					      struct inner *inner)
{
	struct vlan_tag *tag = packet_at(ctx, outer->payload_offset);
	__u32 vid;

	if ((void *)(tag + 1) > packet_end(ctx))
		return REASON_VLAN_TRUNCATED;
	vid = bpf_ntohs(tag->tci) & VLAN_VID_MASK;
	inner->payload.keeps_macs = 1;
	/* A tag's length later a frame begins whose MAC addresses are not its own, but whose EtherType is. */
	set_payload(inner, outer, INNER_ETHERNET, VLAN_LEN);
	identify(inner, PARSER_VLAN, vid);
	if (tag->ethertype != bpf_htons(ETH_P_8021Q) || (void *)(tag + 2) > packet_end(ctx))
		return REASON_NONE;
	inner->other_parser = PARSER_VLAN;
	inner->other_id = vid;
	inner->other_offset = VLAN_LEN;
	inner->payload.offset = 2 * VLAN_LEN;
	identify(inner, PARSER_QINQ, vid << VLAN_VID_BITS | (bpf_ntohs(tag[1].tci) & VLAN_VID_MASK));
	return REASON_NONE;
}

#endif
