/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What every tunnel header parser yields. A parser returns REASON_NONE or what is wrong; it sets tunnel_id,
 * parser and is_identified as soon as they are known, so that a bad packet is counted for the tunnel it came
 * by, and a packet of somebody else's tunnel stays untouched.
 */
#ifndef MPTM_DECAP_INNER_H
#define MPTM_DECAP_INNER_H

#include "../packet.h"
#include "outer.h"

enum inner_kind {
	INNER_ETHERNET = 0,
	INNER_IP = 1,
};

/* Where the inner frame or packet is. */
struct payload {
	__u32 offset;	 /* of the inner Ethernet or IP header; for VLAN that of the frame without its tags */
	__u32 end;	 /* behind the last inner byte */
	__u8 kind;	 /* enum inner_kind */
	__u8 keeps_macs; /* 1: the inner MAC addresses are the outer ones, to be written back after the strip
			  */
	__u8 version;	 /* of INNER_IP, by the tunnel header: 4, 6; 0: it doesn't say */
};

struct inner {
	struct payload payload;
	__u32 tunnel_id;
	__u32 checksum_at; /* where a checksum over the rest of the packet begins that is to be verified; 0:
			      none */
	__u8 parser;	   /* enum parser: which kind of termination accepts it */
	__u8 is_identified;
	/* The same packet by its less specific name, if it has two: PARSER_NONE or what to look for next. */
	__u8 other_parser;
	__u32 other_id;
	__u32 other_offset;
};

/* Whether the outer headers say that there is something up to `end`: what is behind is padding of the frame.
 */
static __always_inline bool is_within(const struct outer *outer, __u32 end)
{
	return end <= outer->payload_offset + outer->payload_len && end <= OFFSET_MAX;
}

static __always_inline void identify(struct inner *inner, enum parser parser, __u32 tunnel_id)
{
	inner->parser = parser;
	inner->tunnel_id = tunnel_id;
	inner->is_identified = 1;
}

/* An Ethernet frame or IP packet from `offset` to the end of the outer payload. */
static __always_inline void set_payload(struct inner *inner, const struct outer *outer, enum inner_kind kind,
					__u32 offset)
{
	inner->payload.kind = kind;
	inner->payload.offset = offset;
	inner->payload.end = outer->payload_offset + outer->payload_len;
}

/* An IP packet of a version that the header names. */
static __always_inline void set_ip_payload(struct inner *inner, const struct outer *outer, __u8 version,
					   __u32 offset)
{
	set_payload(inner, outer, INNER_IP, offset);
	inner->payload.version = version;
}

/* The payload by its IP protocol number; false: none that a tunnel here carries. */
static __always_inline bool set_payload_by_protocol(struct inner *inner, const struct outer *outer,
						    __u8 protocol, __u32 offset)
{
	if (protocol == IPPROTO_ETHERNET)
		set_payload(inner, outer, INNER_ETHERNET, offset);
	else
		set_ip_payload(inner, outer, protocol == IPPROTO_IPIP ? 4 : 6, offset);
	return protocol == IPPROTO_IPIP || protocol == IPPROTO_IPV6 || protocol == IPPROTO_ETHERNET;
}

/* The payload by its EtherType; false: none that a tunnel here carries. */
static __always_inline bool set_payload_by_ethertype(struct inner *inner, const struct outer *outer,
						     __be16 ethertype, __u32 offset)
{
	if (ethertype == bpf_htons(ETH_P_TEB))
		set_payload(inner, outer, INNER_ETHERNET, offset);
	else
		set_ip_payload(inner, outer, ethertype == bpf_htons(ETH_P_IP) ? 4 : 6, offset);
	return ethertype == bpf_htons(ETH_P_IP) || ethertype == bpf_htons(ETH_P_IPV6) ||
	       ethertype == bpf_htons(ETH_P_TEB);
}

#endif
