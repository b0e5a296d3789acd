/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * VXLAN and its relatives on the receiving side.
 *
 * VXLAN      RFC 7348 §5: reserved bits are ignored, so VXLAN-GBP (draft-smith-vxlan-group-policy) is read,
 * too VXLAN-GPE  draft-ietf-nvo3-vxlan-gpe §3 NSH        RFC 8300 §2, behind VXLAN-GPE
 */
#ifndef MPTM_DECAP_VXLAN_H
#define MPTM_DECAP_VXLAN_H

#include "inner.h"

#define VXLAN_VNI_VALID 0x08000000
#define VXLAN_VNI_SHIFT 8

#define GPE_VERSION	  0x30000000
#define GPE_OAM		  0x01000000
#define GPE_NEXT_PROTOCOL 0x04000000
#define GPE_PROTOCOL_MASK 0xff

#define NSH_VERSION  0xc000
#define NSH_OAM	     0x2000
#define NSH_LEN_MASK 0x3f /* in units of 4 bytes */
#define NSH_LEN_MIN  2
#define NSH_LEN_MD1  6	  /* RFC 8300 §2.4 */
#define NSH_MD_MASK  0x0f /* the other bits are unassigned, and ignored (§2.2) */
#define NSH_MD1	     1
#define NSH_MD2	     2

struct vxlan_header {
	__be32 flags_reserved;
	__be32 vni_reserved;
};

struct nsh_header {
	__be16 version_ttl_len;
	__u8 md_type;
	__u8 next_protocol;
	__be32 path; /* service path identifier (24 bits), service index (8) */
};

static __always_inline enum reason parse_vxlan(const hook_ctx *ctx, const struct outer *outer,
					       struct inner *inner)
{
	struct vxlan_header *vxlan = packet_at(ctx, outer->payload_offset);

	if ((void *)(vxlan + 1) > packet_end(ctx) || outer->payload_len < sizeof(*vxlan))
		return REASON_VXLAN_TRUNCATED;
	if (!(vxlan->flags_reserved & bpf_htonl(VXLAN_VNI_VALID)))
		return REASON_VXLAN_FLAGS;
	identify(inner, PARSER_VXLAN, bpf_ntohl(vxlan->vni_reserved) >> VXLAN_VNI_SHIFT);
	set_payload(inner, outer, INNER_ETHERNET, outer->payload_offset + sizeof(*vxlan));
	return REASON_NONE;
}

/* The payload by its GPE or NSH protocol number; false: none that a tunnel here carries. */
static __always_inline bool set_payload_by_gpe(struct inner *inner, const struct outer *outer, __u8 protocol,
					       __u32 offset)
{
	if (protocol == GPE_ETHERNET)
		set_payload(inner, outer, INNER_ETHERNET, offset);
	else
		set_ip_payload(inner, outer, protocol == GPE_IPV4 ? 4 : 6, offset);
	return protocol == GPE_IPV4 || protocol == GPE_IPV6 || protocol == GPE_ETHERNET;
}

static __always_inline enum reason parse_nsh(hook_ctx *ctx, const struct outer *outer, struct inner *inner,
					     __u32 vni, __u32 offset)
{
	struct nsh_header *nsh = packet_at(ctx, offset);
	__u16 first;
	__u8 md_type, next_protocol;
	__u32 header_len;

	identify(inner, PARSER_NSH, vni);
	if ((void *)(nsh + 1) > packet_end(ctx) || !is_within(outer, offset + sizeof(*nsh)))
		return REASON_NSH_HEADER;
	first = bpf_ntohs(nsh->version_ttl_len);
	header_len = (first & NSH_LEN_MASK) * 4;
	md_type = nsh->md_type & NSH_MD_MASK;
	/* A TTL of 0 counts as 64 (§2.2): it is not looked at. */
	if (first & (NSH_VERSION | NSH_OAM) || header_len < NSH_LEN_MIN * 4 ||
	    (md_type == NSH_MD1 ? header_len != NSH_LEN_MD1 * 4 : md_type != NSH_MD2))
		return REASON_NSH_HEADER;
	if (!is_within(outer, offset + header_len))
		return REASON_NSH_HEADER;
	next_protocol = nsh->next_protocol;
	pull_packet(ctx, PULL_LEN_MAX);
	if (!set_payload_by_gpe(inner, outer, next_protocol, offset + header_len))
		return REASON_NSH_HEADER;
	return REASON_NONE;
}

static __always_inline enum reason parse_vxlan_gpe(hook_ctx *ctx, const struct outer *outer,
						   struct inner *inner)
{
	struct vxlan_header *vxlan = packet_at(ctx, outer->payload_offset);
	__u32 flags, vni, offset = outer->payload_offset + sizeof(*vxlan);

	if ((void *)(vxlan + 1) > packet_end(ctx) || outer->payload_len < sizeof(*vxlan))
		return REASON_GPE_TRUNCATED;
	flags = bpf_ntohl(vxlan->flags_reserved);
	if (!(flags & VXLAN_VNI_VALID) || flags & GPE_VERSION)
		return REASON_GPE_FLAGS;
	vni = bpf_ntohl(vxlan->vni_reserved) >> VXLAN_VNI_SHIFT;
	identify(inner, PARSER_VXLAN_GPE, vni);
	if (flags & GPE_NEXT_PROTOCOL && (flags & GPE_PROTOCOL_MASK) == GPE_NSH)
		identify(inner, PARSER_NSH, vni);
	if (flags & GPE_OAM)
		return REASON_GPE_FLAGS;
	if (!(flags & GPE_NEXT_PROTOCOL)) {
		set_payload(inner, outer, INNER_ETHERNET, offset);
		return REASON_NONE;
	}
	if ((flags & GPE_PROTOCOL_MASK) == GPE_NSH)
		return parse_nsh(ctx, outer, inner, vni, offset);
	return set_payload_by_gpe(inner, outer, flags & GPE_PROTOCOL_MASK, offset) ? REASON_NONE
										   : REASON_GPE_PROTOCOL;
}

#endif
