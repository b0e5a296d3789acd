/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * GSO packets that the kernel can't make segments of behind a tunnel's header (enum gso_kind) are made
 * segments of before: the frame goes through a veth of ours that takes none, so the stack makes them, and at
 * its other end each is encapsulated (mptm_segment_tc). INDEX_SEGMENT in skb->tc_index, or TOLD_SEGMENT in
 * skb->cb where somebody's filter on the way wrote the other, says that skb->hash is ours: the slot of the
 * tunnel and, in the upper half, that of the port that the packet came by. Segments have all of their
 * packet's, and a veth within a namespace leaves them.
 */
#ifndef MPTM_SEGMENTS_H
#define MPTM_SEGMENTS_H

#include "drop.h"
#include "hook.h"
#include "lookup.h"
#include "packet.h"

/* What goes into which tunnel, and what came of it. */
struct sending {
	__u32 slot;	  /* in tunnels */
	__u32 mtu;	  /* filled in with TOO_BIG: the largest inner IP packet that fits */
	__u16 writes_mac; /* 1: the inner destination MAC becomes `mac` */
	__u16 is_answer;  /* 1: our own answer to a packet that is counted already */
	__u32 segment_of; /* of a segment: slot in ports, of the port that the packet came by, + 1 */
	__u8 mac[ETH_ALEN];
};

#ifdef MPTM_TC

/* The port that the packet came by, or the one that it is a segment of did; NULL: there is none any more. */
static __always_inline struct port *arrival_port(hook_ctx *ctx, const struct sending *sending)
{
	__u32 slot;
	struct port *port;

	if (!sending->segment_of)
		return lookup_port(ingress_ifindex(ctx), &slot);
	port = SLOT(ports, sending->segment_of - 1);
	return port && port->ifindex ? port : NULL;
}

/* Its interface, or the one at which the packet is now. */
static __always_inline __u32 arrival_ifindex(hook_ctx *ctx, const struct sending *sending)
{
	struct port *port = sending->segment_of ? arrival_port(ctx, sending) : NULL;

	return port ? port->ifindex : ingress_ifindex(ctx);
}

/* Sends the frame at the start of the packet to where it becomes segments for the tunnel. */
static __always_inline int send_segments(hook_ctx *ctx, const struct packet *packet,
					 const struct tunnel *tunnel, const struct sending *sending)
{
	__u32 zero = 0, *ifindex = bpf_map_lookup_elem(&segmenter, &zero), port_slot;

	/* What comes from there, and is still none, would go round. */
	if (!ifindex || sending->segment_of)
		return drop_on_tunnel(REASON_GSO, tunnel->counter, packet->len);
	if (!lookup_port(ingress_ifindex(ctx), &port_slot))
		return drop_on_tunnel(REASON_PORT_GONE, tunnel->counter, packet->len);
	restore_tag(ctx);
	ctx->tc_index = INDEX_SEGMENT;
	ctx->cb[0] = TOLD_SEGMENT;
	bpf_set_hash(ctx, port_slot << 16 | (sending->slot & 0xffff));
	return bpf_redirect(*ifindex, 0);
}

/* Whether the packet at the segmenter's end is a segment of ours; *sending then says of what. */
static __always_inline bool take_segment(hook_ctx *ctx, struct sending *sending)
{
	if (ctx->tc_index != INDEX_SEGMENT && ctx->cb[0] != TOLD_SEGMENT)
		return false;
	sending->slot = ctx->hash & 0xffff;
	sending->segment_of = (ctx->hash >> 16) + 1;
	ctx->tc_index = 0;
	ctx->cb[0] = 0;
	bpf_set_hash_invalid(ctx);
	return true;
}

#else

static __always_inline int send_segments(hook_ctx *ctx __attribute__((unused)), const struct packet *packet,
					 const struct tunnel *tunnel,
					 const struct sending *sending __attribute__((unused)))
{
	return drop_on_tunnel(REASON_GSO, tunnel->counter, packet->len);
}

static __always_inline struct port *arrival_port(hook_ctx *ctx,
						 const struct sending *sending __attribute__((unused)))
{
	__u32 slot;

	return lookup_port(ingress_ifindex(ctx), &slot);
}

static __always_inline __u32 arrival_ifindex(hook_ctx *ctx,
					     const struct sending *sending __attribute__((unused)))
{
	return ingress_ifindex(ctx);
}

#endif

#endif
