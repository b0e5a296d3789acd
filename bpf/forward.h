/* SPDX-License-Identifier: GPL-2.0-only */
/* Delivery of an inner frame: to a local port, or to this node's own stack. */
#ifndef MPTM_FORWARD_H
#define MPTM_FORWARD_H

#include "counters.h"
#include "drop.h"
#include "lookup.h"

/* Whether the inner frame at `offset` fits a local port; one VLAN tag doesn't count, a second one does
 * (xdp_ok_fwd_dev).
 */
static __always_inline bool fits_port(const hook_ctx *ctx, __u32 offset, const struct port *port,
				      const struct packet *packet)
{
	__u32 len = longest_len(ctx, offset, packet, packet->len);

	return (int)(len - packet->l3_offset) <= (int)port->mtu && len <= port->mtu + ETH_HLEN + VLAN_LEN;
}

static __always_inline bool is_mac_of(const struct port *port, const __u8 *mac)
{
	const __u16 *one = (const void *)mac, *other = (const void *)port->mac;

	return one[0] == other[0] && one[1] == other[1] && one[2] == other[2];
}

/*
 * Sends the frame at the start of the packet out of a local port, to the MAC of its next hop: the sender
 * addressed whatever MAC answered its ARP. Returns the verdict; drops are counted on the port.
 */
static __always_inline int deliver(hook_ctx *ctx, const struct packet *packet,
				   const struct next_hop *next_hop, const struct port *port, __u32 port_slot)
{
	__u32 longest = longest_len(ctx, 0, packet, packet->len), more = more_segments(ctx, packet, longest);
	__u32 bytes = packet->len + more * header_of_each(ctx, longest);
	struct ethhdr *eth = packet_start(ctx);
	bool has_peer;
	int verdict;

	if (!port || (void *)(eth + 1) > packet_end(ctx))
		return drop_on_port(REASON_BAD_INNER, next_hop->id, packet->len);
	if (next_hop->flags & NEXT_HOP_MAC)
		copy_mac(eth->h_dest, next_hop->mac);
	has_peer = port->flags & PORT_HAS_PEER && packet->l3_offset == ETH_HLEN;
	verdict = has_peer && !(eth->h_dest[0] & MAC_GROUP)
		      ? redirect_to_peer(ctx, next_hop->id, packet->ethertype)
		      : redirect_to(ctx, next_hop->id);
	if (verdict != VERDICT_REDIRECT)
		return drop_on_port(REASON_PORT_GONE, next_hop->id, packet->len);
	count_port_tx(port_slot, 1 + more, bytes);
	trace(TRACE_DELIVERED, next_hop->id, packet->len, 0);
	return VERDICT_REDIRECT;
}

/*
 * Gives the frame at the start of the packet to the kernel's stack, as received by a port, the one it came
 * by. `is_noted`: the kernel knows where the frame's IP header is.
 */
static __always_inline int pass_to_stack(hook_ctx *ctx, const struct port *ingress, bool is_noted)
{
	__be16 ethertype;
	struct ethhdr *eth = packet_start(ctx);

	if ((void *)(eth + 1) > packet_end(ctx))
		return drop_on_port(REASON_BAD_INNER, ingress->ifindex, frame_len(ctx));
	copy_mac(eth->h_dest, ingress->mac);
	ethertype = eth->h_proto;
	return pass_frame(ctx, ingress->ifindex, ethertype, is_noted);
}

#endif
