/* SPDX-License-Identifier: GPL-2.0-only */
/* VXLAN on the receiving side: RFC 7348 §5. Reserved bits are ignored, as it says. */
#ifndef MPTM_DECAP_VXLAN_H
#define MPTM_DECAP_VXLAN_H

#include "inner.h"

#define VXLAN_VNI_VALID 0x08000000
#define VXLAN_VNI_SHIFT 8

struct vxlan_header {
	__be32 flags_reserved;
	__be32 vni_reserved;
};

static __always_inline enum reason parse_vxlan(const struct xdp_md *ctx, const struct outer *outer,
					       struct inner *inner)
{
	struct vxlan_header *vxlan = packet_at(ctx, outer->payload_offset);

	if ((void *)(vxlan + 1) > packet_end(ctx) || outer->payload_len < sizeof(*vxlan))
		return REASON_VXLAN_TRUNCATED;
	if (!(vxlan->flags_reserved & bpf_htonl(VXLAN_VNI_VALID)))
		return REASON_VXLAN_FLAGS;
	inner->tunnel_id = bpf_ntohl(vxlan->vni_reserved) >> VXLAN_VNI_SHIFT;
	inner->is_identified = 1;
	inner->offset = outer->payload_offset + sizeof(*vxlan);
	inner->len = outer->payload_len - sizeof(*vxlan);
	return REASON_NONE;
}

#endif
