/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * GSO packets that the kernel can't make segments of behind a tunnel's header (enum gso_kind) are made
 * segments of before: the frame goes through a veth of ours that takes none, so the stack makes them, and at
 * its other end each is encapsulated (mptm_segment_tc). The tunnel is in skb->mark, which stays within a
 * namespace, and the slot of the port that the packet came by in skb->tc_index.
 */
#ifndef MPTM_SEGMENTS_H
#define MPTM_SEGMENTS_H

#include "drop.h"
#include "hook.h"
#include "lookup.h"
#include "packet.h"

#ifdef MPTM_TC

/* Sends the frame at the start of the packet to where it becomes segments for the tunnel of `slot`. */
static __always_inline int send_segments(hook_ctx *ctx, const struct packet *packet,
					 const struct tunnel *tunnel, __u32 slot)
{
	__u32 zero = 0, *ifindex = bpf_map_lookup_elem(&segmenter, &zero), port_slot;

	/* What comes from there, and is still none, would go round. */
	if (!ifindex || !*ifindex || ctx->mark >> 16 == MARK_OURS)
		return drop_on_tunnel(REASON_GSO, tunnel->counter, packet->len);
	if (!lookup_port(ingress_ifindex(ctx), &port_slot))
		return drop_on_tunnel(REASON_PORT_GONE, tunnel->counter, packet->len);
	ctx->tc_index = port_slot;
	restore_tag(ctx);
	ctx->mark = MARK_OURS << 16 | (slot & 0xffff);
	return bpf_redirect(*ifindex, 0);
}

/* The port that the packet came by, or the one that it is a segment of did; NULL: there is none any more. */
static __always_inline struct port *arrival_port(hook_ctx *ctx)
{
	__u32 slot;
	struct port *port = lookup_port(ingress_ifindex(ctx), &slot);

	if (port || ctx->mark >> 16 != MARK_OURS)
		return port;
	port = SLOT(ports, ctx->tc_index);
	return port && port->ifindex ? port : NULL;
}

#else

static __always_inline int send_segments(hook_ctx *ctx __attribute__((unused)), const struct packet *packet,
					 const struct tunnel *tunnel, __u32 slot __attribute__((unused)))
{
	return drop_on_tunnel(REASON_GSO, tunnel->counter, packet->len);
}

static __always_inline struct port *arrival_port(hook_ctx *ctx)
{
	__u32 slot;

	return lookup_port(ingress_ifindex(ctx), &slot);
}

#endif

#endif
