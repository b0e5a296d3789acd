/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The hook that the programs are compiled for: XDP, or with MPTM_TC the TC ingress of an interface. Only this
 * file and room.h know which; everything else is the same source for both.
 *
 * At TC a packet is an skb. Only its first bytes may be in reach (pull_packet), it may be a GSO packet that
 * becomes many on the wire (gso_size), and its outermost VLAN tag is beside the data: enter_hook puts it
 * where it is on the wire, restore_tag puts it back.
 */
#ifndef MPTM_HOOK_H
#define MPTM_HOOK_H

#include <stdbool.h>
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

#define PULL_LEN     192 /* as far as headers go, but for those that say themselves how long they are */
#define PULL_LEN_MAX 1024

#ifdef MPTM_TC

typedef struct __sk_buff hook_ctx;

#define HOOK_PROGRAM(name) SEC("tc") int name##_tc(hook_ctx *ctx)

/* Pass: to the programs behind this one, then to the kernel's stack. */
#define VERDICT_PASS	 TC_ACT_UNSPEC
#define VERDICT_DROP	 TC_ACT_SHOT
#define VERDICT_REDIRECT TC_ACT_REDIRECT

/* Checksums of what is sent by a stack of this machine may be yet to be filled in (CHECKSUM_PARTIAL). */
#define HAS_UNFINISHED_SUMS 1
#define INLINES_ENCAP	    0 /* with what TC needs besides, the stack would be too small for it */
#define APPLIES_FIXED                                                                                        \
	0 /* nor for the patches at places that are known beforehand: they are in the list, too */

/*
 * skb->tc_index of packets that come back to us: what only passes, and segments (segments.h). Nobody but a
 * program at TC writes it, so it is trusted; skb->mark is the user's, and stays as it is.
 */
#define INDEX_PASS    0x4d50 /* "MP" */
#define INDEX_SEGMENT 0x4d53
#define TOLD_PASS     0x4d50 /* in skb->cb[0], which is nobody's: as BPF_PROG_TEST_RUN tells the verdict */

/*
 * A load from the context by its offset, for what the verifier takes for a pointer or a bound: clang would
 * add the offset to the context first, and keep that, which the verifier refuses ("modified ctx ptr").
 */
#define LOAD_FIELD(field)                                                                                    \
	({                                                                                                   \
		__u64 loaded;                                                                                \
		asm volatile("%0 = *(u32 *)(%1 + %2)"                                                        \
			     : "=r"(loaded)                                                                  \
			     : "r"(ctx), "i"(offsetof(struct __sk_buff, field)));                            \
		loaded;                                                                                      \
	})

static __always_inline void *packet_start(const hook_ctx *ctx)
{
	return (void *)LOAD_FIELD(data);
}

static __always_inline void *packet_end(const hook_ctx *ctx)
{
	return (void *)LOAD_FIELD(data_end);
}

static __always_inline __u32 ingress_ifindex(const hook_ctx *ctx)
{
	return LOAD_FIELD(ifindex);
}

/* Length of the frame in bytes; of a GSO packet, of all its segments. */
static __always_inline __u64 frame_len(const hook_ctx *ctx)
{
	return LOAD_FIELD(len);
}

/* Bytes of payload in each segment that a GSO packet becomes; 0: it goes as it is. */
static __always_inline __u32 gso_size(const hook_ctx *ctx)
{
	return LOAD_FIELD(gso_size);
}

/* How many segments those are; 0: the kernel hasn't counted them (of a VM, by a tap). */
static __always_inline __u32 gso_segs(const hook_ctx *ctx)
{
	return LOAD_FIELD(gso_segs);
}

/* Puts the first `len` bytes, if there are as many, in reach. Pointers into the packet are void afterwards.
 */
static __always_inline void pull_packet(hook_ctx *ctx, __u32 len)
{
	if (len > frame_len(ctx))
		len = frame_len(ctx);
	if (packet_end(ctx) - packet_start(ctx) < (long)len)
		bpf_skb_pull_data(ctx, len);
}

/* Whether the first `len` bytes are in reach: pull_packet has seen to it, as far as there are so many. */
static __always_inline bool is_in_reach(const hook_ctx *ctx __attribute__((unused)),
					__u32 len __attribute__((unused)))
{
	return true;
}

static __always_inline bool read_bytes(hook_ctx *ctx, __u32 offset, void *to, __u32 len)
{
	return !bpf_skb_load_bytes(ctx, offset, to, len);
}

/* Whether the program is to look at the packet, which is then as it is on the wire. */
static __always_inline bool enter_hook(hook_ctx *ctx)
{
	if (ctx->tc_index == INDEX_PASS) {
		ctx->tc_index = 0;
		return false;
	}
	/* The kernel writes the tag that is there into the packet when there is another one to take its
	 * place.
	 */
	if (ctx->vlan_present && bpf_skb_vlan_push(ctx, bpf_htons(ETH_P_8021Q), 0))
		return false;
	pull_packet(ctx, PULL_LEN);
	return true;
}

/* Back to how packets are outside of our programs: the outermost tag beside the data. */
static __always_inline void restore_tag(hook_ctx *ctx)
{
	if (ctx->vlan_present)
		bpf_skb_vlan_pop(ctx);
}

static __always_inline int leave_hook(hook_ctx *ctx, int verdict)
{
	if (verdict == VERDICT_PASS)
		restore_tag(ctx);
	return verdict;
}

/*
 * Cuts or grows the end of the frame by `change` bytes; false: it can't be done, as with what the kernel
 * takes for encapsulated yet: whole from a sender on this machine, or put together by GRO.
 */
static __always_inline bool adjust_tail(hook_ctx *ctx, int change)
{
	return !change || !bpf_skb_change_tail(ctx, (int)frame_len(ctx) + change, 0);
}

/* To the other side of an interface that tx_ports has. */
static __always_inline int redirect_to(hook_ctx *ctx, __u32 ifindex)
{
	if (!bpf_map_lookup_elem(&tx_ports, &ifindex))
		return VERDICT_DROP;
	restore_tag(ctx);
	return bpf_redirect(ifindex, 0);
}

/*
 * To the other end of a veth in a namespace of its own: received there at once. The stack takes the packet
 * for what the kernel thinks that it is, so that has to be right: `ethertype` of a frame to a single host,
 * without tags, and for this host, whatever MAC it came with (kernels that don't see to that themselves drop
 * it). Nor does a mark of this namespace mean anything there.
 */
static __always_inline int redirect_to_peer(hook_ctx *ctx, __u32 ifindex, __be16 ethertype)
{
	if (ctx->protocol != ethertype || ctx->vlan_present)
		return redirect_to(ctx, ifindex);
	if (!bpf_map_lookup_elem(&tx_ports, &ifindex))
		return VERDICT_DROP;
	if (ctx->pkt_type != PACKET_HOST && bpf_skb_change_type(ctx, PACKET_HOST))
		return VERDICT_DROP;
	ctx->mark = 0;
	return bpf_redirect_peer(ifindex, 0);
}

/*
 * To the stack of this node, as received by the port of `ifindex`; `ethertype` is what the frame, addressed
 * to that port, has become. `is_noted`: the kernel knows where its IP header is.
 */
static __always_inline int pass_frame(hook_ctx *ctx, __u32 ifindex, __be16 ethertype, bool is_noted)
{
	if (is_noted && ctx->ifindex == ifindex && ctx->protocol == ethertype &&
	    !bpf_skb_change_type(ctx, PACKET_HOST))
		return VERDICT_PASS;
	restore_tag(ctx);
	/* Received once more, it is looked at by the kernel again, and not by us. */
	ctx->tc_index = INDEX_PASS;
	ctx->cb[0] = TOLD_PASS;
	bpf_redirect(ifindex, BPF_F_INGRESS);
	return VERDICT_REDIRECT;
}

/* Keeps the sum right that a driver may have made of what it received: `to` was written over `from`. */
static __always_inline void update_sum(hook_ctx *ctx, __be32 from, __be32 to)
{
	bpf_csum_update(ctx, bpf_csum_diff(&from, sizeof(from), &to, sizeof(to), 0));
}

#else

typedef struct xdp_md hook_ctx;

/* xdp.frags: frames may be in several buffers, of which only the first is in reach (Linux 5.18). */
#define HOOK_PROGRAM(name) SEC("xdp.frags") int name##_xdp(hook_ctx *ctx)

#define VERDICT_PASS	 XDP_PASS
#define VERDICT_DROP	 XDP_DROP
#define VERDICT_REDIRECT XDP_REDIRECT

#define HAS_UNFINISHED_SUMS 0
#define INLINES_ENCAP	    1
#define APPLIES_FIXED	    1

static __always_inline void *packet_start(const hook_ctx *ctx)
{
	return (void *)(long)ctx->data;
}

static __always_inline void *packet_end(const hook_ctx *ctx)
{
	return (void *)(long)ctx->data_end;
}

static __always_inline __u32 ingress_ifindex(const hook_ctx *ctx)
{
	return ctx->ingress_ifindex;
}

/* What of the kernel's types is looked at: net/xdp.h; what Linux 6.6 came with. */
struct xdp_buff {
	__u32 flags;
} __attribute__((preserve_access_index));

enum bpf_attach_type___since_6_6 {
	BPF_TCX_INGRESS___since_6_6 = 46,
};

#define XDP_FLAGS_HAS_FRAGS 1

extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym __weak;

/*
 * Length of the frame in bytes, all its buffers together. There is a helper, whose call costs more than
 * looking whether there are others than the first.
 */
static __always_inline __u64 frame_len(const hook_ctx *ctx)
{
	__u64 data = ctx->data, data_end = ctx->data_end;
	struct xdp_buff *buff;

	if (!bpf_core_enum_value_exists(enum bpf_attach_type___since_6_6, BPF_TCX_INGRESS___since_6_6))
		return bpf_xdp_get_buff_len((hook_ctx *)ctx);
	buff = bpf_cast_to_kern_ctx((hook_ctx *)ctx);
	if (buff->flags & XDP_FLAGS_HAS_FRAGS)
		return bpf_xdp_get_buff_len((hook_ctx *)ctx);
	asm volatile("" : "+r"(data), "+r"(data_end));
	return data_end - data;
}

/*
 * Whether the first `len` bytes are in reach. The barrier keeps clang 14 from narrowing the subtraction to
 * 32-bit pointer loads, which the verifier refuses.
 */
static __always_inline bool is_in_reach(const hook_ctx *ctx, __u32 len)
{
	__u64 data = ctx->data, data_end = ctx->data_end;

	asm volatile("" : "+r"(data), "+r"(data_end));
	return data_end - data >= len;
}

/* Copies `len` bytes at `offset`, in reach or not; false: beyond the packet. */
static __always_inline bool read_bytes(hook_ctx *ctx, __u32 offset, void *to, __u32 len)
{
	return !bpf_xdp_load_bytes(ctx, offset, to, len);
}

static __always_inline __u32 gso_size(const hook_ctx *ctx __attribute__((unused)))
{
	return 0;
}

static __always_inline __u32 gso_segs(const hook_ctx *ctx __attribute__((unused)))
{
	return 0;
}

static __always_inline void pull_packet(hook_ctx *ctx __attribute__((unused)),
					__u32 len __attribute__((unused)))
{
}

static __always_inline bool enter_hook(hook_ctx *ctx __attribute__((unused)))
{
	return true;
}

static __always_inline int leave_hook(hook_ctx *ctx __attribute__((unused)), int verdict)
{
	return verdict;
}

static __always_inline bool adjust_tail(hook_ctx *ctx, int change)
{
	return !bpf_xdp_adjust_tail(ctx, change);
}

static __always_inline int redirect_to(hook_ctx *ctx __attribute__((unused)), __u32 ifindex)
{
	return bpf_redirect_map(&tx_ports, ifindex, XDP_DROP);
}

static __always_inline int redirect_to_peer(hook_ctx *ctx, __u32 ifindex,
					    __be16 ethertype __attribute__((unused)))
{
	return redirect_to(ctx, ifindex);
}

static __always_inline int pass_frame(hook_ctx *ctx __attribute__((unused)),
				      __u32 ifindex __attribute__((unused)),
				      __be16 ethertype __attribute__((unused)),
				      bool is_noted __attribute__((unused)))
{
	return XDP_PASS;
}

static __always_inline void update_sum(hook_ctx *ctx __attribute__((unused)),
				       __be32 from __attribute__((unused)), __be32 to __attribute__((unused)))
{
}

#endif

#endif
