/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a packet costs: the real programs, each followed by the undoing of what it did to the packet, so that
 * BPF_PROG_TEST_RUN can repeat it on one packet; and the floor that they are measured against.
 *
 * The undoing is the same in all of them: the head goes back to where it was, and the first bytes, which a
 * VLAN tunnel overwrites, are restored. So it cancels out of every difference.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* The programs become part of the ones below, and nothing else: no entry points of their own. */
#undef SEC
#define SEC(name) __attribute__((section(name)))
static __always_inline int mptm_encap_xdp(struct xdp_md *ctx);
static __always_inline int mptm_decap_xdp(struct xdp_md *ctx);
#include "../bpf/mptm.bpf.c"

/* How far the floor moves the head, and where it sends to. Written before a run. */
struct {
	__s32 head_delta;
	__u32 egress_ifindex;
} settings SEC(".bss");

/* The packet as it was. */
struct before {
	__u64 len;
	__u64 words[2]; /* its first bytes: MAC addresses and a VLAN tag */
};

static __always_inline bool save(const struct xdp_md *ctx, struct before *before)
{
	__u64 *words = (void *)(long)ctx->data;

	before->len = frame_len(ctx);
	asm volatile("" : "+r"(before->len)); /* a number from here on, no difference of pointers */
	if ((void *)(words + 2) > packet_end(ctx))
		return false;
	before->words[0] = words[0];
	before->words[1] = words[1];
	return true;
}

/* Undoes what a program did to the packet; the verdict stays, unless the packet is lost. */
static __always_inline int undo(struct xdp_md *ctx, const struct before *before, int verdict)
{
	__u64 *words, len = frame_len(ctx);

	asm volatile("" : "+r"(len));
	if (bpf_xdp_adjust_head(ctx, (int)len - (int)before->len))
		return XDP_ABORTED;
	words = (void *)(long)ctx->data;
	if ((void *)(words + 2) > packet_end(ctx))
		return XDP_ABORTED;
	/* Written only when needed: a load right behind a store that it straddles would wait for it. */
	if (words[0] != before->words[0] || words[1] != before->words[1]) {
		words[0] = before->words[0];
		words[1] = before->words[1];
	}
	return verdict;
}

__attribute__((section("xdp.frags"), used)) int bench_encap(struct xdp_md *ctx)
{
	struct before before;

	return save(ctx, &before) ? undo(ctx, &before, mptm_encap_xdp(ctx)) : XDP_ABORTED;
}

__attribute__((section("xdp.frags"), used)) int bench_decap(struct xdp_md *ctx)
{
	struct before before;

	return save(ctx, &before) ? undo(ctx, &before, mptm_decap_xdp(ctx)) : XDP_ABORTED;
}

/* The floor: what every program that moves the head and redirects has to pay. */
__attribute__((section("xdp.frags"), used)) int bench_floor(struct xdp_md *ctx)
{
	struct before before;

	if (!save(ctx, &before) || bpf_xdp_adjust_head(ctx, settings.head_delta))
		return XDP_ABORTED;
	return undo(ctx, &before, bpf_redirect_map(&tx_ports, settings.egress_ifindex, XDP_DROP));
}

/* One more undoing than nothing: what has to be taken off the others to see them as they run on a port. */
__attribute__((section("xdp.frags"), used)) int bench_undo(struct xdp_md *ctx)
{
	struct before before;

	return save(ctx, &before) ? undo(ctx, &before, XDP_PASS) : XDP_ABORTED;
}

__attribute__((section("xdp.frags"), used)) int bench_pass(struct xdp_md *ctx __attribute__((unused)))
{
	return XDP_PASS;
}
