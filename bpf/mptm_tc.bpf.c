/* SPDX-License-Identifier: GPL-2.0-only */
/* The programs of mptm.bpf.c for TC, and the one that encapsulates what was made segments of (segments.h). */
#define MPTM_TC
#include "mptm.bpf.c"

SEC("tc") int mptm_segment_tc(hook_ctx *ctx)
{
	struct sending sending = {};
	struct packet packet = {};
	struct tunnel *tunnel;
	struct port *port;
	int verdict;

	/* Of others only what a host says by itself on each of its interfaces: it belongs to no tunnel. */
	if (!take_segment(ctx, &sending))
		return VERDICT_DROP;
	tunnel = SLOT(tunnels, sending.slot);
	if (!tunnel)
		return VERDICT_DROP;
	if (!enter_hook(ctx))
		return drop_on_tunnel(REASON_NO_HEADROOM, tunnel->counter, frame_len(ctx));
	if (!parse_frame(ctx, 0, frame_len(ctx), &packet))
		return drop_on_tunnel(REASON_BAD_INNER, tunnel->counter, frame_len(ctx));
	verdict = encap(ctx, &packet, &sending);
	if (verdict != TOO_BIG)
		return verdict;
	/* Who sent what an uplink brought is behind a tunnel that isn't known here. */
	port = arrival_port(ctx, &sending);
	if (!port || port->role != PORT_ACCESS) {
		trace(TRACE_UNANSWERED, 0, 0, 0);
		return VERDICT_DROP;
	}
	return answer_too_big(ctx, &packet, sending.mtu, port, sending.segment_of - 1);
}
