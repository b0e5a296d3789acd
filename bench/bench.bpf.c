/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a packet costs: the real programs, each followed by the undoing of what it did to the packet, so that
 * BPF_PROG_TEST_RUN can repeat it on one packet; and the floor that they are measured against.
 *
 * Before each of them a field of the packet may be changed, so that packets belong to many flows or tunnels.
 * The choosing and the undoing are the same in all of them, and cancel out of every difference.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* The programs become part of the ones below, and nothing else: no entry points of their own. */
#undef SEC
#define SEC(name) __attribute__((section(name)))
static __always_inline int mptm_encap_xdp(struct xdp_md *ctx);
static __always_inline int mptm_decap_xdp(struct xdp_md *ctx);
#include "../bpf/mptm.bpf.c"

#define SAVED_WORDS  10 /* of 8 bytes: what any program may have written over */
#define CHANGED_SIZE 64 /* bytes: a field that is changed is among the first ones */

/* Written before a run. */
struct {
	__s32 head_delta;     /* how far the floor moves the head */
	__u32 egress_ifindex; /* where it sends to */
	__u32 restores_all;   /* 0: the first two words where they changed, 1: all SAVED_WORDS */
	__u32 count;	      /* how many values the field has; 0: no field is changed */
	__u32 offset;	      /* of the field, 4 bytes */
	__u32 base;	      /* the field becomes (base + one of count numbers) << shift */
	__u32 shift;
	__u32 turn; /* how many packets there were */
} settings SEC(".bss");

/* The packet as it was. One CPU at a time runs these programs. */
struct {
	__u64 words[SAVED_WORDS];
	__u64 len;
} saved SEC(".bss.saved");

/* Another flow or tunnel for each packet, in an order that no cache foresees. */
static __always_inline bool change(const struct xdp_md *ctx)
{
	__be32 *field = (void *)(long)ctx->data + (settings.offset & (CHANGED_SIZE - 1));
	__u32 number;

	if (!settings.count)
		return true;
	if ((void *)(field + 1) > packet_end(ctx))
		return false;
	number = settings.turn++ * 0x9E3779B1U;
	number ^= number >> 15;
	number *= 0x85EBCA77U;
	number = (__u64)number * settings.count >> 32;
	*field = bpf_htonl((settings.base + number) << (settings.shift & 31));
	return true;
}

static __always_inline bool save(const struct xdp_md *ctx)
{
	__u64 *words = (void *)(long)ctx->data, len = frame_len(ctx);

	asm volatile("" : "+r"(len)); /* a number from here on, no difference of pointers */
	saved.len = len;
	if ((void *)(words + 2) > packet_end(ctx))
		return false;
	saved.words[0] = words[0];
	saved.words[1] = words[1];
	if (!settings.restores_all)
		return true;
	if ((void *)(words + SAVED_WORDS) > packet_end(ctx))
		return false;
#pragma unroll
	for (int i = 2; i < SAVED_WORDS; i++)
		saved.words[i] = words[i];
	return true;
}

/* Undoes what a program did to the packet; the verdict stays, unless the packet is lost. */
static __always_inline int undo(struct xdp_md *ctx, int verdict)
{
	__u64 *words, len = frame_len(ctx);

	asm volatile("" : "+r"(len));
	if (bpf_xdp_adjust_head(ctx, (int)len - (int)saved.len))
		return XDP_ABORTED;
	words = (void *)(long)ctx->data;
	if ((void *)(words + 2) > packet_end(ctx))
		return XDP_ABORTED;
	if (settings.restores_all) {
		if ((void *)(words + SAVED_WORDS) > packet_end(ctx))
			return XDP_ABORTED;
#pragma unroll
		for (int i = 0; i < SAVED_WORDS; i++)
			words[i] = saved.words[i];
		return verdict;
	}
	/* Written only when needed: a load right behind a store that it straddles would wait for it. */
	if (words[0] != saved.words[0] || words[1] != saved.words[1]) {
		words[0] = saved.words[0];
		words[1] = saved.words[1];
	}
	return verdict;
}

__attribute__((section("xdp.frags"), used)) int bench_encap(struct xdp_md *ctx)
{
	return change(ctx) && save(ctx) ? undo(ctx, mptm_encap_xdp(ctx)) : XDP_ABORTED;
}

__attribute__((section("xdp.frags"), used)) int bench_decap(struct xdp_md *ctx)
{
	return change(ctx) && save(ctx) ? undo(ctx, mptm_decap_xdp(ctx)) : XDP_ABORTED;
}

/* The floor: what every program that moves the head and redirects has to pay. */
__attribute__((section("xdp.frags"), used)) int bench_floor(struct xdp_md *ctx)
{
	if (!change(ctx) || !save(ctx) || bpf_xdp_adjust_head(ctx, settings.head_delta))
		return XDP_ABORTED;
	return undo(ctx, bpf_redirect_map(&tx_ports, settings.egress_ifindex, XDP_DROP));
}

/* One more undoing than nothing: what has to be taken off the others to see them as they run on a port. */
__attribute__((section("xdp.frags"), used)) int bench_undo(struct xdp_md *ctx)
{
	return change(ctx) && save(ctx) ? undo(ctx, XDP_PASS) : XDP_ABORTED;
}

__attribute__((section("xdp.frags"), used)) int bench_pass(struct xdp_md *ctx __attribute__((unused)))
{
	return XDP_PASS;
}
