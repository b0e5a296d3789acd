/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * From one tunnel into another. A relay is a router: the inner TTL or hop limit goes down by one, so no loop
 * lasts (RFC 1812 §5.3.1, RFC 8200 §3), and nothing goes back to where it came from (split horizon).
 */
#ifndef MPTM_RELAY_H
#define MPTM_RELAY_H

#include "lookup.h"
#include "packet.h"

/* Whether the packet may go into the tunnel of `slot`; an enum reason. Modifies nothing. */
static __always_inline enum reason check_relay(const struct termination *accepted,
					       const struct packet *packet, __u32 slot)
{
	const struct tunnel *from = SLOT(tunnels, accepted->tunnel), *to = SLOT(tunnels, slot);

	if (!from || !to)
		return REASON_TUNNEL_DOWN;
	if (to->counter == accepted->counter ||
	    (to->split_horizon && to->split_horizon == from->split_horizon))
		return REASON_SPLIT_HORIZON;
	return packet->ttl <= 1 ? REASON_HOP_LIMIT : REASON_NONE;
}

/* TTL or hop limit of the frame at the start of the packet less one; an IPv4 checksum follows (RFC 1624). */
static __always_inline bool decrement_ttl(hook_ctx *ctx, struct packet *packet)
{
	void *at = packet_at(ctx, packet->l3_offset);

	if (packet->family == 4) {
		struct iphdr *ip = at;

		if ((void *)(ip + 1) > packet_end(ctx))
			return false;
		ip->check = ~fold_checksum((__u64)(__u16)~ip->check + (__u16)~bpf_htons((__u16)ip->ttl << 8) +
					   bpf_htons((__u16)(ip->ttl - 1) << 8));
		ip->ttl--;
	} else {
		struct ipv6hdr *ip = at;

		if ((void *)(ip + 1) > packet_end(ctx))
			return false;
		ip->hop_limit--;
		update_sum(ctx, bpf_htonl(packet->ttl), bpf_htonl(packet->ttl - 1));
	}
	packet->ttl--;
	trace(TRACE_RELAYED, packet->ttl, 0, 0);
	return true;
}

#endif
