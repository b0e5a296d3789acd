/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The real programs, each followed by the undoing of what it did to the packet's head, so that
 * BPF_PROG_TEST_RUN can repeat it on one packet; and the floor they are measured against.
 */
#include "../bpf/mptm.bpf.c"

/* How many bytes the measured program pushes (negative) or pulls (positive). */
volatile const __s32 head_delta = -50;
volatile const __u32 egress_ifindex = 1;

SEC("xdp") int bench_encap(struct xdp_md *ctx)
{
	int verdict = mptm_encap_xdp(ctx);

	return bpf_xdp_adjust_head(ctx, -head_delta) ? XDP_ABORTED : verdict;
}

SEC("xdp") int bench_decap(struct xdp_md *ctx)
{
	int verdict = mptm_decap_xdp(ctx);

	return bpf_xdp_adjust_head(ctx, -head_delta) ? XDP_ABORTED : verdict;
}

/* The floor: what any program that moves the head and redirects has to pay. */
SEC("xdp") int bench_floor(struct xdp_md *ctx)
{
	int verdict;

	if (bpf_xdp_adjust_head(ctx, head_delta))
		return XDP_ABORTED;
	verdict = bpf_redirect_map(&tx_ports, egress_ifindex, XDP_DROP);
	return bpf_xdp_adjust_head(ctx, -head_delta) ? XDP_ABORTED : verdict;
}

/* Just the helper calls that the undoing costs, to be read off the floor. */
SEC("xdp") int bench_undo(struct xdp_md *ctx)
{
	if (bpf_xdp_adjust_head(ctx, head_delta))
		return XDP_ABORTED;
	return bpf_xdp_adjust_head(ctx, -head_delta) ? XDP_ABORTED : XDP_PASS;
}
