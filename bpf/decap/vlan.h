/* SPDX-License-Identifier: GPL-2.0-only */
/* A VLAN tag on the receiving side: IEEE 802.1Q §9.6. The tag stands between the MAC addresses and the rest.
 */
#ifndef MPTM_DECAP_VLAN_H
#define MPTM_DECAP_VLAN_H

#include "inner.h"

#define VLAN_VID_MASK 0x0fff

static __always_inline enum reason parse_vlan(const struct xdp_md *ctx, const struct outer *outer,
					      struct inner *inner)
{
	struct vlan_tag *tag = packet_at(ctx, outer->payload_offset);

	if ((void *)(tag + 1) > packet_end(ctx))
		return REASON_VLAN_TRUNCATED;
	inner->tunnel_id = bpf_ntohs(tag->tci) & VLAN_VID_MASK;
	inner->is_identified = 1;
	/* Four bytes later a frame begins whose MAC addresses are not its own, but whose EtherType is. */
	inner->offset = VLAN_LEN;
	inner->len = outer->payload_len + ETH_HLEN - VLAN_LEN;
	inner->keeps_macs = 1;
	return REASON_NONE;
}

#endif
