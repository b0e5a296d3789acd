/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The path of a packet through MPTM, both ways, top to bottom.
 *
 * mptm_encap_xdp, mptm_encap_tc   on access ports: workload -> network -> next hop -> tunnel or local port
 * mptm_decap_xdp, mptm_decap_tc   on uplinks: underlay -> listener -> parser -> termination -> network ->
 * local port or tunnel
 *
 * Nothing is modified before the decision is made: what is not ours leaves the hook exactly as it came.
 */
#include <stddef.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "counters.h"
#include "decap.h"
#include "drop.h"
#include "encap.h"
#include "forward.h"
#include "icmp.h"
#include "lookup.h"
#include "neighbour.h"
#include "packet.h"
#include "relay.h"
#include "too_big.h"
#include "trace.h"

/* Of a GSO packet that was counted as one when it came in, the other segments; `outer_len` is in front of the
 * frame in each. */
static __always_inline void count_more_rx(__u32 slot, __u32 more, __u32 outer_len, __u32 header_len)
{
	if (more)
		count_port_rx(slot, more, more * (outer_len + header_len));
}

/* Sends what was written in place of a packet of an access port back out of that port. */
static __always_inline int answer(hook_ctx *ctx, __u32 ifindex, __u32 slot)
{
	count_port_tx(slot, 1, frame_len(ctx));
	trace(TRACE_ANSWERED, ifindex, 0, 0);
	/* XDP_TX would not do: a veth whose other end has no XDP program leaves the frame in its ring. */
	return redirect_to(ctx, ifindex);
}

/* The MAC address that whoever is behind `port` is told for a next hop. */
static __always_inline const __u8 *mac_for(const struct next_hop *next_hop, const struct port *port)
{
	return next_hop->flags & NEXT_HOP_MAC ? next_hop->mac : port->mac;
}

/* An access port's ARP request or neighbour solicitation: answered out of the same port, or the kernel's. */
static __always_inline int answer_question(hook_ctx *ctx, const struct packet *packet,
					   struct question *question, const struct port *port, __u32 slot)
{
	struct next_hop *next_hop = lookup_target(port->network, port->lookups, question);
	int written;

	if (!next_hop)
		return VERDICT_PASS;
	switch (next_hop->kind) {
	case NEXT_HOP_PORT:
		if (next_hop->id == port->ifindex)
			return VERDICT_PASS;
		break;
	case NEXT_HOP_TUNNEL:
	case NEXT_HOP_GROUP:
	case NEXT_HOP_GATEWAY:
		break;
	default:
		return VERDICT_PASS;
	}
	question->is_own = next_hop->kind == NEXT_HOP_GATEWAY;
	__builtin_memcpy(question->answer_mac, mac_for(next_hop, port), ETH_ALEN);
	written = write_answer(ctx, packet, question);
	if (written != 1)
		return written == SPOILED ? drop_on_port(REASON_ANSWER, port->ifindex, packet->len)
					  : VERDICT_PASS;
	return answer(ctx, port->ifindex, slot);
}

/* A packet that didn't fit, and was counted: its sender behind the access port is told where it may be. */
static __always_inline int answer_too_big(hook_ctx *ctx, const struct packet *packet, __u32 mtu,
					  const struct port *port, __u32 slot)
{
	if (!write_too_big(ctx, packet, port->network, mtu, slot)) {
		trace(TRACE_UNANSWERED, 0, 0, 0);
		return VERDICT_DROP;
	}
	return answer(ctx, port->ifindex, slot);
}

/* From an access port into the tunnel, or a tunnel of the group, of the next hop. */
static __always_inline int send(hook_ctx *ctx, struct packet *packet, const struct next_hop *next_hop,
				const struct port *port, __u32 port_slot)
{
	struct sending sending = {.writes_mac = next_hop->flags & NEXT_HOP_MAC};
	int slot = choose_tunnel(next_hop, packet), verdict;

	if (slot < 0)
		return drop_on_port(REASON_GROUP_EMPTY, port->ifindex, packet->len);
	sending.slot = slot;
	copy_mac(sending.mac, next_hop->mac);
	verdict = INLINES_ENCAP ? encap_inline(ctx, packet, &sending) : encap(ctx, packet, &sending);
	if (verdict != TOO_BIG)
		return verdict;
	return answer_too_big(ctx, packet, sending.mtu, port, port_slot);
}

static __always_inline int encap_frame(hook_ctx *ctx)
{
	struct question question;
	struct packet packet = {};
	struct next_hop *next_hop;
	struct port *port, *local_port;
	__u32 slot, local_slot, len, longest;

	port = lookup_port(ingress_ifindex(ctx), &slot);
	if (!port || port->role != PORT_ACCESS) {
		trace(TRACE_NO_PORT, ingress_ifindex(ctx), 0, 0);
		return VERDICT_PASS;
	}
	trace(TRACE_PORT, port->ifindex, port->role, port->network);
	len = frame_len(ctx);
	count_port_rx(slot, 1, len);
	if (!parse_frame(ctx, 0, len, &packet)) {
		trace(TRACE_UNPARSED, len, 0, 0);
		return VERDICT_PASS;
	}
	longest = longest_len(ctx, 0, &packet, len);
	count_more_rx(slot, more_segments(ctx, &packet, longest), 0, header_of_each(ctx, longest));
	trace_address(TRACE_PACKET, packet.family, packet.protocol, packet.len, packet.destination);
	trace_address(TRACE_SOURCE, packet.ports, packet.ethertype, packet.tos, packet.source);
	if (parse_question(ctx, 0, &packet, &question)) {
		trace_address(TRACE_QUESTION, question.family, question.is_probe, 0, question.target);
		return answer_question(ctx, &packet, &question, port, slot);
	}

	next_hop = lookup_next_hop(port->network, port->lookups, &packet);
	if (!next_hop)
		return VERDICT_PASS;
	switch (next_hop->kind) {
	case NEXT_HOP_TUNNEL:
	case NEXT_HOP_GROUP:
		return send(ctx, &packet, next_hop, port, slot);
	case NEXT_HOP_PORT:
		if (next_hop->id == port->ifindex)
			return VERDICT_PASS;
		local_port = lookup_port(next_hop->id, &local_slot);
		if (!local_port)
			return drop_on_port(REASON_PORT_GONE, next_hop->id, packet.len);
		if (fits_port(ctx, 0, local_port, &packet))
			return deliver(ctx, &packet, next_hop, local_port, local_slot);
		trace(TRACE_TOO_BIG, local_port->mtu, 0, 0);
		count_reason(REASON_PORT_TOO_BIG, SCOPE_PORT, next_hop->id, packet.len);
		return answer_too_big(ctx, &packet, local_port->mtu, port, slot);
	case NEXT_HOP_GATEWAY:
		return write_echo_reply(ctx, &packet, slot) ? answer(ctx, port->ifindex, slot) : VERDICT_PASS;
	case NEXT_HOP_DROP:
		return drop_on_port(REASON_ROUTE_DROP, port->ifindex, packet.len);
	default:
		return VERDICT_PASS;
	}
}

HOOK_PROGRAM(mptm_encap)
{
	return enter_hook(ctx) ? leave_hook(ctx, encap_frame(ctx)) : VERDICT_PASS;
}

/* Whether a frame is addressed to the port's own MAC: others pass by, on a port that hears them. */
static __always_inline bool is_for(const hook_ctx *ctx, const struct port *port)
{
	struct ethhdr *eth = packet_start(ctx);

	return (void *)(eth + 1) <= packet_end(ctx) && is_mac_of(port, eth->h_dest);
}

/* Whether whoever sent this addressed us, and isn't just passing by. */
static __always_inline bool is_ours(const hook_ctx *ctx, const struct port *port, const struct outer *outer)
{
	return outer->family ? is_local(outer->destination) : is_for(ctx, port);
}

/* A packet with a problem, and no tunnel known for it: a drop when it is for us, else left as it came. */
static __always_inline int reject(const hook_ctx *ctx, const struct port *port, const struct outer *outer,
				  enum reason reason)
{
	return is_ours(ctx, port, outer) ? drop_on_port(reason, port->ifindex, frame_len(ctx)) : VERDICT_PASS;
}

/* A sound packet that we don't take: counted when it is addressed to us, and left as it came either way. */
static __always_inline int refuse(const hook_ctx *ctx, const struct port *port, const struct outer *outer,
				  enum reason reason)
{
	return is_ours(ctx, port, outer) ? refuse_on_port(reason, port->ifindex, frame_len(ctx))
					 : VERDICT_PASS;
}

/* A known sender asks whether we are there: answered out of the same uplink, or the host's. */
static __always_inline int answer_echo(hook_ctx *ctx, const struct outer *outer, const struct port *port,
				       __u32 slot)
{
	int written = write_gtpu_echo(ctx, outer);

	if (written == SPOILED)
		return drop_on_port(REASON_ANSWER, port->ifindex, frame_len(ctx));
	return written ? answer(ctx, port->ifindex, slot) : refuse(ctx, port, outer, REFUSED_CONTROL);
}

/* A packet of the underlay that is being looked at, as far as it was read. */
struct arrival {
	struct outer outer;
	struct inner inner;
	struct packet packet;
	struct question question;
	int ecn; /* the ECN field that leaves the tunnel */
};

/*
 * 0 -> the arrival at hand, per CPU. Decapsulation writes and reads. It isn't on the stack, where there would
 * be no room for it, and where older verifiers go on telling apart all the ways in which it may have been
 * filled in.
 */
TABLE_ARRAY(arrivals, BPF_MAP_TYPE_PERCPU_ARRAY, 1, struct arrival);

/*
 * Is it a tunnel packet, from somebody who may send it, and what is inside? The termination, with *arrival,
 * zero before, filled in; NULL: *verdict says what becomes of the packet.
 */
static __always_inline struct termination *accept(hook_ctx *ctx, const struct port *port, __u32 port_slot,
						  struct arrival *arrival, int *verdict)
{
	struct outer *outer = &arrival->outer;
	struct inner *inner = &arrival->inner;
	struct packet *packet = &arrival->packet;
	enum reason reason = parse_arrival(ctx, outer, inner);
	struct termination *termination;

	*verdict = VERDICT_PASS;
	if (!outer->parser)
		return NULL;
	if (outer->family && !is_for(ctx, port)) {
		trace(TRACE_NOT_FOR_US, 0, 0, 0);
		return NULL;
	}
	if (reason >= REFUSED_SENDER_OR_ID) {
		*verdict = refuse(ctx, port, outer, reason);
		return NULL;
	}
	if (!inner->is_identified) {
		*verdict = reject(ctx, port, outer, reason);
		return NULL;
	}
	termination = find_termination(outer, inner);
	if (!termination) {
		*verdict = refuse(ctx, port, outer,
				  inner->parser == PARSER_GTPU_ECHO ? REFUSED_CONTROL : REFUSED_SENDER_OR_ID);
		return NULL;
	}
	trace(TRACE_TERMINATION, termination->network, termination->counter, inner->parser);
	if (!reason)
		reason = check_accepted(ctx, termination, outer, inner);
	if (!reason && inner->parser == PARSER_GTPU_ECHO) {
		*verdict = answer_echo(ctx, outer, port, port_slot);
		return NULL;
	}
	if (!reason)
		reason = parse_inner(ctx, inner, outer, packet);
	if (!reason && !(termination->flags & accept_flag(&inner->payload, packet)))
		reason = REASON_INNER_FAMILY;
	arrival->ecn = combine_ecn(packet->tos & ECN_MASK, outer->tos & ECN_MASK);
	if (!reason && packet->family && arrival->ecn < 0)
		reason = REASON_ECN_CE;
	if (reason) {
		*verdict = drop_on_tunnel(reason, termination->counter, frame_len(ctx));
		return NULL;
	}
	trace(TRACE_ECN, packet->tos & ECN_MASK, outer->tos & ECN_MASK, arrival->ecn);
	trace_address(TRACE_PACKET, packet->family, packet->protocol, packet->len, packet->destination);
	trace_address(TRACE_SOURCE, packet->ports, packet->ethertype, packet->tos, packet->source);
	return termination;
}

/* Sends the frame at the start of the packet, which is an answer, back through the tunnel that asked. */
static __always_inline int answer_tunnel(hook_ctx *ctx, struct packet *packet,
					 const struct termination *accepted, struct sending *sending)
{
	int verdict;

	trace(TRACE_ANSWERED_BACK, accepted->counter, 0, 0);
	sending->slot = accepted->tunnel;
	sending->writes_mac = 0;
	verdict = encap(ctx, packet, sending);
	return verdict == TOO_BIG ? VERDICT_DROP : verdict;
}

/* Out of one tunnel, into the next, whose slot is in *sending; `port_slot` is of what the packet came by. */
static __always_inline int relay(hook_ctx *ctx, struct packet *packet, const struct next_hop *next_hop,
				 const struct termination *accepted, struct sending *sending, __u32 port_slot)
{
	int verdict;

	if (!decrement_ttl(ctx, packet))
		return drop_on_tunnel(REASON_BAD_INNER, accepted->counter, packet->len);
	sending->writes_mac = next_hop->flags & NEXT_HOP_MAC;
	copy_mac(sending->mac, next_hop->mac);
	verdict = encap(ctx, packet, sending);
	if (verdict != TOO_BIG)
		return verdict;
	/* It was counted; its sender, behind the tunnel that it came by, is told where it may be. */
	if (!accepted->can_reply || !write_too_big(ctx, packet, accepted->network, sending->mtu, port_slot) ||
	    !parse_again(ctx, packet)) {
		trace(TRACE_UNANSWERED, 0, 0, 0);
		return VERDICT_DROP;
	}
	sending->is_answer = 1;
	return answer_tunnel(ctx, packet, accepted, sending);
}

/* An accepted packet, on which nothing was changed yet: where does it go, and off it goes. */
static __always_inline int forward(hook_ctx *ctx, const struct port *port, const struct termination *accepted,
				   struct arrival *arrival, __u32 port_slot)
{
	const struct payload *payload = &arrival->inner.payload;
	struct packet *packet = &arrival->packet;
	struct question *question = NULL;
	struct port *local_port = NULL;
	struct sending sending = {};
	struct next_hop *next_hop;
	__u32 len = arrival->outer.frame_len, longest, more;
	__u32 local_slot = 0;
	enum reason reason;
	int to = -1;

	if (payload->kind == INNER_ETHERNET)
		question = parse_question(ctx, payload->offset, packet, &arrival->question);
	if (question)
		trace_address(TRACE_QUESTION, question->family, question->is_probe, 0, question->target);
	next_hop = question ? lookup_target(accepted->network, accepted->lookups, question)
			    : lookup_next_hop(accepted->network, accepted->lookups, packet);
	/* With `remote: any` a VLAN may have others on it, whose frames are theirs. */
	if (!next_hop && payload->keeps_macs && !is_mac_of(port, packet->macs.destination))
		return VERDICT_PASS;
	if (!next_hop || next_hop->kind == NEXT_HOP_GATEWAY)
		return drop_on_tunnel(REASON_NO_ROUTE, accepted->counter, len);
	switch (next_hop->kind) {
	case NEXT_HOP_PORT:
		local_port = lookup_port(next_hop->id, &local_slot);
		if (!local_port)
			return drop_on_port(REASON_PORT_GONE, next_hop->id, packet->len);
		if (!fits_port(ctx, inner_frame_at(payload), local_port, packet))
			return drop_on_port(REASON_PORT_TOO_BIG, next_hop->id, packet->len);
		break;
	case NEXT_HOP_PASS:
		break;
	case NEXT_HOP_TUNNEL:
	case NEXT_HOP_GROUP:
		if (!(next_hop->flags & NEXT_HOP_RELAY))
			return drop_on_tunnel(REASON_NO_RELAY, accepted->counter, len);
		to = choose_tunnel(next_hop, packet);
		if (to < 0)
			return drop_on_tunnel(REASON_GROUP_EMPTY, accepted->counter, len);
		reason = check_relay(accepted, packet, to);
		if (reason && !(question && reason == REASON_HOP_LIMIT))
			return drop_on_tunnel(reason, accepted->counter, len);
		break;
	default:
		return drop_on_tunnel(REASON_ROUTE_DROP, accepted->counter, len);
	}

	/* What we would answer goes back through the tunnel. */
	if (question && next_hop->kind != NEXT_HOP_PASS && !accepted->can_reply)
		return drop_on_tunnel(REASON_NO_ROUTE, accepted->counter, len);

	/* It is ours: from here on the packet is changed. */
	sending.slot = to;
	if (!strip_outer(ctx, payload, packet, len, arrival->ecn, local_port ? local_port->mac : port->mac))
		return drop_on_tunnel(REASON_BAD_INNER, accepted->counter, len);
	longest = longest_len(ctx, 0, packet, packet->len);
	more = more_segments(ctx, packet, longest);
	count_more_rx(port_slot, more, inner_frame_at(payload), header_of_each(ctx, longest));
	count_decap(accepted->counter, 1 + more, packet->len + more * header_of_each(ctx, longest));
	if (next_hop->kind == NEXT_HOP_PASS) {
		trace(TRACE_TO_STACK, 0, 0, 0);
		return pass_to_stack(ctx, port, true);
	}
	if (!question)
		return to >= 0 ? relay(ctx, packet, next_hop, accepted, &sending, port_slot)
			       : deliver(ctx, packet, next_hop, local_port, local_slot);
	/* The asker is behind the tunnel: the answer goes back through it. */
	__builtin_memcpy(question->answer_mac, mac_for(next_hop, port), ETH_ALEN);
	if (write_answer(ctx, packet, question) != 1)
		return drop_on_tunnel(REASON_ANSWER, accepted->counter, len);
	if (!parse_again(ctx, packet))
		return drop_on_tunnel(REASON_BAD_INNER, accepted->counter, len);
	return answer_tunnel(ctx, packet, accepted, &sending);
}

static __always_inline int decap_frame(hook_ctx *ctx)
{
	struct termination *accepted;
	struct arrival *arrival;
	struct port *port;
	__u32 slot, zero = 0;
	int verdict;

	port = lookup_port(ingress_ifindex(ctx), &slot);
	arrival = bpf_map_lookup_elem(&arrivals, &zero);
	if (!port || port->role != PORT_UPLINK || !arrival) {
		trace(TRACE_NO_PORT, ingress_ifindex(ctx), 0, 0);
		return VERDICT_PASS;
	}
	trace(TRACE_PORT, port->ifindex, port->role, port->network);
	__builtin_memset(arrival, 0, offsetof(struct arrival, question));
	arrival->outer.frame_len = frame_len(ctx);
	count_port_rx(slot, 1, arrival->outer.frame_len);
	accepted = accept(ctx, port, slot, arrival, &verdict);
	return accepted ? forward(ctx, port, accepted, arrival, slot) : verdict;
}

HOOK_PROGRAM(mptm_decap)
{
	return enter_hook(ctx) ? leave_hook(ctx, decap_frame(ctx)) : VERDICT_PASS;
}

/* Never loaded: keeps the enums in the object's BTF, where Python reads them. */
struct {
	enum port_role port_role;
	enum port_flag port_flag;
	enum gso_kind gso_kind;
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
	enum trace_step trace_step;
	enum trace_table trace_table;
} abi_enums SEC(".abi");

char LICENSE[] SEC("license") = "GPL";
