/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The path of a packet through MPTM, both ways, top to bottom.
 *
 * mptm_encap_xdp   on access ports: workload -> network -> next hop -> tunnel or local port
 * mptm_decap_xdp   on uplinks: underlay -> listener -> parser -> termination -> network -> local port
 *
 * Nothing is modified before the decision is made: what is not ours leaves the hook exactly as it came.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "counters.h"
#include "decap.h"
#include "drop.h"
#include "encap.h"
#include "forward.h"
#include "lookup.h"
#include "neighbour.h"
#include "packet.h"

/* An access port's ARP request or neighbour solicitation: answered out of the same port, or the kernel's. */
static __always_inline int answer_port(struct xdp_md *ctx, const struct packet *packet,
				       struct question *question, const struct port *port, __u32 slot)
{
	struct next_hop *next_hop = lookup_target(port->network, port->lookups, question);

	if (!next_hop)
		return XDP_PASS;
	if (next_hop->kind == NEXT_HOP_PORT ? next_hop->id == port->ifindex
					    : next_hop->kind != NEXT_HOP_TUNNEL)
		return XDP_PASS;
	__builtin_memcpy(question->answer_mac, next_hop->flags & NEXT_HOP_MAC ? next_hop->mac : port->mac,
			 ETH_ALEN);
	/* XDP_TX would not do: a veth whose other end has no XDP program leaves the frame in its ring. */
	if (bpf_redirect_map(&tx_ports, port->ifindex, XDP_DROP) != XDP_REDIRECT)
		return XDP_PASS;
	if (!write_answer(ctx, packet, question))
		return XDP_PASS;
	count_port_tx(slot, frame_len(ctx));
	return XDP_REDIRECT;
}

SEC("xdp") int mptm_encap_xdp(struct xdp_md *ctx)
{
	struct question question;
	struct packet packet = {};
	struct next_hop *next_hop;
	struct port *port, *local_port;
	__u32 slot, local_slot;

	port = lookup_port(ctx->ingress_ifindex, &slot);
	if (!port || port->role != PORT_ACCESS)
		return XDP_PASS;
	count_port_rx(slot, frame_len(ctx));
	if (!parse_frame(ctx, 0, frame_len(ctx), &packet))
		return XDP_PASS;
	if (parse_question(ctx, 0, &packet, &question))
		return answer_port(ctx, &packet, &question, port, slot);

	next_hop = lookup_next_hop(port->network, port->lookups, &packet);
	if (!next_hop)
		return XDP_PASS;
	switch (next_hop->kind) {
	case NEXT_HOP_TUNNEL:
		return encap(ctx, &packet, next_hop->id,
			     next_hop->flags & NEXT_HOP_MAC ? next_hop->mac : NULL, port, slot, true);
	case NEXT_HOP_PORT:
		if (next_hop->id == port->ifindex)
			return XDP_PASS;
		local_port = lookup_port(next_hop->id, &local_slot);
		if (!local_port)
			return drop_on_port(REASON_PORT_GONE, next_hop->id, packet.len);
		if (!fits_port(local_port, &packet))
			return drop_on_port(REASON_PORT_TOO_BIG, next_hop->id, packet.len);
		return deliver(ctx, &packet, next_hop, local_slot);
	case NEXT_HOP_DROP:
		return drop_on_port(REASON_ROUTE_DROP, port->ifindex, packet.len);
	default:
		return XDP_PASS;
	}
}

/* Whether a frame is addressed to the port's own MAC: others pass by, on a port that hears them. */
static __always_inline bool is_for(const struct xdp_md *ctx, const struct port *port)
{
	struct ethhdr *eth = (void *)(long)ctx->data;

	return (void *)(eth + 1) <= packet_end(ctx) && is_mac_of(port, eth->h_dest);
}

#define ACCEPTED -1 /* no XDP verdict */

/*
 * Is it a tunnel packet, from somebody who may send it, and what is inside? ACCEPTED with *accepted, *inner,
 * *packet and the ECN field that leaves the tunnel filled in; else the verdict.
 */
static __always_inline int accept(struct xdp_md *ctx, const struct port *port, __u64 len,
				  struct termination **accepted, struct payload *payload,
				  struct packet *packet, int *ecn)
{
	__u32 ifindex = ctx->ingress_ifindex;
	struct outer outer = {};
	struct inner inner = {};
	enum reason reason;

	parse_outer(ctx, len, &outer);
	if (!outer.parser || (outer.family && !is_for(ctx, port)))
		return XDP_PASS;
	if (outer.is_fragment)
		return refuse(&outer, REFUSED_FRAGMENT, ifindex, len);
	if (outer.problem)
		return reject(&outer, outer.problem, ifindex, len);
	reason = parse_tunnel_header(ctx, &outer, &inner);
	if (reason >= REFUSED_SENDER_OR_ID)
		return refuse(&outer, reason, ifindex, len);
	if (!inner.is_identified)
		return reject(&outer, reason, ifindex, len);
	*accepted = find_termination(&outer, &inner);
	if (!*accepted)
		return refuse(&outer, REFUSED_SENDER_OR_ID, ifindex, len);
	if (!reason)
		reason = check_accepted(ctx, *accepted, &inner);
	if (reason)
		return drop_on_tunnel(reason, (*accepted)->counter, len);
	if (!parse_inner(ctx, &inner, &outer, packet))
		return drop_on_tunnel(REASON_BAD_INNER, (*accepted)->counter, len);
	*ecn = combine_ecn(packet->tos & ECN_MASK, outer.tos & ECN_MASK);
	if (packet->family && *ecn < 0)
		return drop_on_tunnel(REASON_ECN_CE, (*accepted)->counter, len);
	*payload = inner.payload;
	return ACCEPTED;
}

SEC("xdp") int mptm_decap_xdp(struct xdp_md *ctx)
{
	struct payload payload;
	struct packet packet = {};
	struct question question;
	struct port *port, *local_port = NULL;
	struct termination *accepted;
	struct next_hop *next_hop;
	__u64 len = frame_len(ctx);
	__u32 slot, local_slot = 0;
	bool is_question;
	int ecn, verdict;

	port = lookup_port(ctx->ingress_ifindex, &slot);
	if (!port || port->role != PORT_UPLINK)
		return XDP_PASS;
	count_port_rx(slot, len);
	verdict = accept(ctx, port, len, &accepted, &payload, &packet, &ecn);
	if (verdict != ACCEPTED)
		return verdict;

	/* Where does it go? */
	is_question =
	    payload.kind == INNER_ETHERNET && parse_question(ctx, payload.offset, &packet, &question);
	next_hop = is_question ? lookup_target(accepted->network, accepted->lookups, &question)
			       : lookup_next_hop(accepted->network, accepted->lookups, &packet);
	/* With `remote: any` a VLAN may have others on it, whose frames are theirs. */
	if (!next_hop && payload.keeps_macs && !is_mac_of(port, packet.macs.destination))
		return XDP_PASS;
	if (!next_hop)
		return drop_on_tunnel(REASON_NO_ROUTE, accepted->counter, len);
	switch (next_hop->kind) {
	case NEXT_HOP_PORT:
		local_port = lookup_port(next_hop->id, &local_slot);
		if (!local_port)
			return drop_on_port(REASON_PORT_GONE, next_hop->id, packet.len);
		if (!fits_port(local_port, &packet))
			return drop_on_port(REASON_PORT_TOO_BIG, next_hop->id, packet.len);
		break;
	case NEXT_HOP_PASS:
		break;
	case NEXT_HOP_TUNNEL:
		return drop_on_tunnel(REASON_NO_RELAY, accepted->counter, len);
	default:
		return drop_on_tunnel(REASON_ROUTE_DROP, accepted->counter, len);
	}

	/* It is ours: from here on the packet is changed. */
	if (!strip_outer(ctx, &payload, &packet, len, ecn, local_port ? local_port->mac : port->mac))
		return drop_on_tunnel(REASON_BAD_INNER, accepted->counter, len);
	count_decap(accepted->counter, packet.len);
	if (next_hop->kind == NEXT_HOP_PASS)
		return pass_to_stack(ctx, port);
	if (!is_question)
		return deliver(ctx, &packet, next_hop, local_slot);
	/* The asker is behind the tunnel: the answer goes back through it. */
	__builtin_memcpy(question.answer_mac, next_hop->mac, ETH_ALEN);
	if (!accepted->can_reply || !write_answer(ctx, &packet, &question))
		return drop_on_tunnel(REASON_NO_ROUTE, accepted->counter, len);
	__builtin_memcpy(packet.macs.destination, packet.macs.source, ETH_ALEN);
	__builtin_memcpy(packet.macs.source, next_hop->mac, ETH_ALEN);
	packet.len = frame_len(ctx);
	return encap(ctx, &packet, accepted->tunnel, NULL, port, slot, false);
}

/* Never loaded: keeps the enums in the object's BTF, where Python reads them. */
struct {
	enum port_role port_role;
	enum lookup_flag lookup_flag;
	enum next_hop_kind next_hop_kind;
	enum next_hop_flag next_hop_flag;
	enum patch_op patch_op;
	enum tunnel_flag tunnel_flag;
	enum inner_family inner_family;
	enum termination_flag termination_flag;
	enum listener_kind listener_kind;
	enum parser parser;
	enum reason reason;
	enum drop_scope drop_scope;
} abi_enums SEC(".abi");

char LICENSE[] SEC("license") = "GPL";
