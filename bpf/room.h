/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Making room in front of a frame, and cutting headers off it. Offsets are those of the wire at both hooks.
 *
 * At TC the kernel keeps notes of what is where in the packet, and only with them right can it make segments
 * of a GSO packet later, or have hardware do it: bpf_skb_adjust_room makes room behind the Ethernet header
 * and takes notes, so what was in front is written again. It wants IP inside and out. bpf_skb_change_head
 * makes room in front of everything and takes none: for packets that leave as they are.
 */
#ifndef MPTM_ROOM_H
#define MPTM_ROOM_H

#include <linux/errno.h>

#include "checksum.h"
#include "hook.h"
#include "packet.h"

enum room {
	ROOM_MADE = 0,
	ROOM_NONE = 1,	   /* there is none: the packet can only be dropped */
	ROOM_SEGMENTS = 2, /* a GSO packet, as it was, that becomes no segments behind this header */
	ROOM_GSO = 3,	   /* nor without: it can only be dropped */
	ROOM_NOTED = 4,	   /* made, and the kernel knows where the outer IP header is */
};

struct payload;

#ifdef MPTM_TC

/* linux/bpf.h of Linux 6.3: what an older kernel answers with EINVAL. */
#define ADJ_ROOM_DECAP_L3_IPV4 (1ULL << 7)
#define ADJ_ROOM_DECAP_L3_IPV6 (1ULL << 8)

#define TAGS_MAX	4 /* VLAN tags that are taken off a frame, one of them the stand-in of enter_hook */
#define IPV6_HEADER_LEN 40
#define IP_PACKET_MAX	65535

/* The Ethernet header of a frame with up to two VLAN tags; `rest` has EtherTypes and tags. */
struct l2_header {
	struct mac_pair macs;
	__be16 rest[5];
	__be16 padding;
};

/* Reads the header of the frame at `offset`, but for the MAC addresses, which *packet has. */
static __always_inline bool read_l2(const hook_ctx *ctx, __u32 offset, const struct packet *packet,
				    struct l2_header *l2)
{
	__be16 *rest = packet_at(ctx, offset + MACS_LEN);

	copy_macs(&l2->macs, &packet->macs);
#pragma unroll
	for (int i = 0; i < 5; i++) {
		if ((void *)(rest + i + 1) > packet_end(ctx))
			return i > 0;
		l2->rest[i] = rest[i];
	}
	return true;
}

/* Writes it, `len` bytes of it, to `offset`. */
static __always_inline bool write_l2(hook_ctx *ctx, __u32 offset, const struct l2_header *l2, __u32 len)
{
	__u8 *at = packet_at(ctx, offset);

	if (len == ETH_HLEN) {
		if ((void *)(at + ETH_HLEN) > packet_end(ctx))
			return false;
		copy_macs(at, &l2->macs);
		*(__be16 *)(at + MACS_LEN) = l2->rest[0];
		return true;
	}
	if (len < ETH_HLEN || len > L2_MAX)
		return false;
	return !bpf_skb_store_bytes(ctx, offset, l2, len, 0);
}

static __always_inline bool is_tagged(const hook_ctx *ctx)
{
	return ctx->vlan_present || is_vlan(ctx->protocol);
}

/* Takes all VLAN tags off the frame, beside the data and in it; false: there are more than we know of. */
static __always_inline bool untag(hook_ctx *ctx)
{
	for (int i = 0; i < TAGS_MAX && is_tagged(ctx); i++)
		bpf_skb_vlan_pop(ctx);
	return !is_tagged(ctx);
}

/* What the kernel is told of the outer headers, for bpf_skb_adjust_room; `kept` bytes of inner L2 header. */
static __always_inline __u64 room_flags(const struct tunnel *tunnel, __u32 kept)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;

	flags |= tunnel->outer_version == 6 ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;
	if (tunnel->gso == GSO_UDP)
		flags |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
	if (tunnel->gso == GSO_GRE)
		flags |= BPF_F_ADJ_ROOM_ENCAP_L4_GRE;
	if (kept)
		flags |= BPF_F_ADJ_ROOM_ENCAP_L2(kept) | BPF_F_ADJ_ROOM_ENCAP_L2_ETH;
	return flags;
}

/*
 * Whether the kernel notes of the packet that it is encapsulated: by a tunnel of the workload's own, or of
 * ours. Room for an inner L2 header that is larger than all there is to be made is refused, but first it is
 * refused to encapsulate twice (bpf_skb_net_grow). A tag in the data hides it: then it may be.
 */
static __always_inline bool is_encapsulated(hook_ctx *ctx)
{
	long answer = bpf_skb_adjust_room(ctx, 0, BPF_ADJ_ROOM_MAC,
					  BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 |
					      BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN));

	return answer != -EINVAL;
}

/*
 * Makes room so that the frame at the start of the packet, without its first `strip` bytes, has the tunnel's
 * header in front of it. What of it is in front of the IP header is then where it belongs, but the header
 * itself is yet to be written.
 */
static __always_inline enum room push_outer(hook_ctx *ctx, const struct packet *packet,
					    const struct tunnel *tunnel, __u32 strip)
{
	__u32 front = tunnel->outer_len - strip, tags_len = packet->l3_offset - ETH_HLEN;
	__u32 kept = packet->l3_offset - strip, longest;
	struct l2_header l2 = {};
	bool is_noted, is_known = !tags_len || is_tagged(ctx);

	/* Tags that came out of a tunnel: the kernel takes them for the beginning of what they stand before.
	 */
	if (!is_known) {
		if (gso_size(ctx) && tunnel->gso != GSO_LINK)
			return ROOM_GSO;
		return bpf_skb_change_head(ctx, front, 0) ? ROOM_NONE : ROOM_MADE;
	}
	/* Without an outer IP header only what is more than 64 KB already is too long: whoever makes segments
	 * of that later wants it without a tag.
	 */
	longest = packet->len + (tunnel->gso == GSO_LINK ? -packet->l3_offset : front);
	if (gso_size(ctx) && (tunnel->gso == GSO_SEGMENTS || !packet->family || longest > IP_PACKET_MAX))
		return ROOM_SEGMENTS;
	if (!read_l2(ctx, 0, packet, &l2) || (is_tagged(ctx) && !untag(ctx)))
		return ROOM_NONE;
	is_noted = tunnel->gso && tunnel->gso != GSO_LINK && packet->family && kept <= L2_MAX &&
		   !bpf_skb_adjust_room(ctx, front + tags_len, BPF_ADJ_ROOM_MAC, room_flags(tunnel, kept));
	if (!is_noted && gso_size(ctx) && tunnel->gso != GSO_LINK) {
		if (tags_len &&
		    (bpf_skb_change_head(ctx, tags_len, 0) || !write_l2(ctx, 0, &l2, packet->l3_offset)))
			return ROOM_NONE;
		return ROOM_SEGMENTS;
	}
	if (!is_noted && bpf_skb_change_head(ctx, front + tags_len, 0))
		return ROOM_NONE;
	if ((is_noted && kept) || tags_len)
		return write_l2(ctx, front, &l2, packet->l3_offset) ? (is_noted ? ROOM_NOTED : ROOM_MADE)
								    : ROOM_NONE;
	return is_noted ? ROOM_NOTED : ROOM_MADE;
}

/*
 * A driver may have added up what it received, from the IP header on. What was written in front of that, up
 * to `end`, is added where the kernel takes it for a part of it.
 */
static __always_inline void finish_room(hook_ctx *ctx, enum room room, __u32 end)
{
	if (room == ROOM_NOTED && (__s64)bpf_csum_update(ctx, 0) >= 0)
		bpf_csum_update(ctx, sum_bytes(ctx, ETH_HLEN, end - ETH_HLEN));
}

/*
 * Takes `cut` bytes behind the Ethernet header away; 0: done. Before Linux 6.3 the kernel knows no flags, and
 * goes on taking the packet for what the outer header was.
 */
static __always_inline long shrink(hook_ctx *ctx, __u32 cut, __u64 flags)
{
	long failed = bpf_skb_adjust_room(ctx, -(int)cut, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO | flags);

	return failed ? bpf_skb_adjust_room(ctx, -(int)cut, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO) : 0;
}

/*
 * Takes the first `cut` bytes off, so that a frame is left whose IP header, if it has one, is where *packet
 * says. Its MAC addresses are those of *packet. False: it can't be done.
 */
static __always_inline bool cut_outer(hook_ctx *ctx, const struct packet *packet, __u32 cut, bool has_l2,
				      bool is_tag)
{
	__u64 flags = packet->family == 6 ? ADJ_ROOM_DECAP_L3_IPV6 : ADJ_ROOM_DECAP_L3_IPV4;
	__u32 tags_len = packet->l3_offset - ETH_HLEN;
	struct l2_header l2 = {};

	if (has_l2 ? !read_l2(ctx, cut, packet, &l2) : false)
		return false;
	if (!has_l2)
		l2.rest[0] = packet->ethertype;
	if (is_tag) {
		if (!untag(ctx))
			return false;
		if (tags_len && bpf_skb_change_head(ctx, tags_len, 0))
			return false;
		return write_l2(ctx, 0, &l2, packet->l3_offset);
	}
	/* The kernel wants an IP header's length to be left, 20 bytes, and before Linux 6.3 up to 40. */
	if (shrink(ctx, cut, flags) && (!adjust_tail(ctx, IPV6_HEADER_LEN) || shrink(ctx, cut, flags) ||
					!adjust_tail(ctx, -IPV6_HEADER_LEN)))
		return false;
	return write_l2(ctx, 0, &l2, ETH_HLEN);
}

/*
 * Room for `len` bytes in front of a frame that is about to be answered, and whose Ethernet header, with tags
 * that the kernel doesn't know of or none, is written next. The answer may go into a tunnel, so it is noted
 * where its IP header is, if that can be.
 */
static __always_inline bool push_front(hook_ctx *ctx, __u32 len)
{
	return !bpf_skb_adjust_room(ctx, len, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO) ||
	       !bpf_skb_change_head(ctx, len, 0);
}

#else

static __always_inline enum room push_outer(hook_ctx *ctx,
					    const struct packet *packet __attribute__((unused)),
					    const struct tunnel *tunnel, __u32 strip)
{
	return bpf_xdp_adjust_head(ctx, (int)(strip - tunnel->outer_len)) ? ROOM_NONE : ROOM_MADE;
}

static __always_inline void finish_room(hook_ctx *ctx __attribute__((unused)),
					enum room room __attribute__((unused)),
					__u32 end __attribute__((unused)))
{
}

static __always_inline bool is_encapsulated(hook_ctx *ctx __attribute__((unused)))
{
	return false;
}

static __always_inline bool cut_outer(hook_ctx *ctx, const struct packet *packet __attribute__((unused)),
				      __u32 cut, bool has_l2 __attribute__((unused)),
				      bool is_tag __attribute__((unused)))
{
	return !bpf_xdp_adjust_head(ctx, cut);
}

static __always_inline bool push_front(hook_ctx *ctx, __u32 len)
{
	return !bpf_xdp_adjust_head(ctx, -(int)len);
}

#endif

#endif
