/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Encapsulation, the same for every protocol: copy the tunnel's template in front of the packet and patch the
 * fields that depend on it. How a protocol's template looks is in src/mptm/protocols/<name>.py.
 */
#ifndef MPTM_ENCAP_H
#define MPTM_ENCAP_H

#include "checksum.h"
#include "counters.h"
#include "drop.h"
#include "forward.h"
#include "lookup.h"
#include "room.h"
#include "segments.h"
#include "trace.h"

#define EPHEMERAL_FIRST	    0xc000 /* 49152: RFC 7348 §5, RFC 8926 §3.3 */
#define EPHEMERAL_MASK	    0x3fff
#define FLOW_LABEL_MASK	    0xfffff
#define ERSPAN_TIME_UNIT_NS 100

/* Copies 2^n bytes when `len` has that bit; a ladder of fixed-size copies costs 1-6 ns at every length. */
#define COPY_STEP(type, size)                                                                                \
	do {                                                                                                 \
		if (len & (size)) {                                                                          \
			if (to + (size) > end)                                                               \
				return false;                                                                \
			_Pragma("unroll") for (int i = 0; i < (int)((size) / sizeof(type));                  \
					       i++)((type *)to)[i] = ((const type *)from)[i];                \
			to += (size);                                                                        \
			from += (size);                                                                      \
		}                                                                                            \
	} while (0)

static __always_inline bool copy_template(const hook_ctx *ctx, const struct tunnel *tunnel, __u32 len)
{
	void *to = packet_start(ctx), *end = packet_end(ctx);
	const void *from = tunnel->outer;

	COPY_STEP(__u64, 128);
	COPY_STEP(__u64, 64);
	COPY_STEP(__u64, 32);
	COPY_STEP(__u64, 16);
	COPY_STEP(__u64, 8);
	COPY_STEP(__u32, 4);
	COPY_STEP(__u16, 2);
	return true;
}

/*
 * Fills in total length, TOS and TTL, and folds them, and the identification that PATCH_IPV4_ID wrote over a
 * zero, into the checksum of the template (RFC 1624).
 */
static __always_inline void patch_ipv4(struct iphdr *ip, __be16 total_len, __u8 tos, __u8 ttl)
{
	__u32 sum = (__u16)~ip->check;

	ip->tot_len = total_len;
	ip->tos |= tos;
	ip->ttl |= ttl;
	sum += ip->id + total_len + bpf_htons(tos) + bpf_htons((__u16)ttl << 8);
	ip->check = ~fold_checksum(sum);
}

static __always_inline void patch_ipv6(struct ipv6hdr *ip, __be16 payload_len, __u8 tos, __u8 ttl, __u32 hash)
{
	*(__be32 *)ip |= bpf_htonl((__u32)tos << 20 | (hash & FLOW_LABEL_MASK));
	ip->payload_len = payload_len;
	ip->hop_limit |= ttl;
}

/* The UDP source port that says which flow a packet is of. */
static __always_inline __be16 flow_port(__u32 hash)
{
	return bpf_htons(EPHEMERAL_FIRST | (hash >> 18 & EPHEMERAL_MASK));
}

/* What the patches of one packet have in common. */
struct patching {
	__u32 len;	 /* of the outgoing frame */
	__u32 l3_offset; /* of the inner IP header, from the start of the outgoing frame */
	__u32 hash;	 /* of the inner flow */
	__u32 counter;	 /* of the tunnel */
	__u8 tos;
	__u8 ttl;
};

static __always_inline __be32 next_sequence(__u32 counter)
{
	__u32 *sequence = bpf_map_lookup_elem(&sequences, &counter);

	return sequence ? bpf_htonl(__sync_fetch_and_add(sequence, 1)) : 0;
}

/* The checksum from `from` to the end of the packet, in which the field itself is zero. */
static __always_inline bool patch_checksum(hook_ctx *ctx, __u32 offset, __u32 from,
					   const struct packet *packet, const struct patching *patching)
{
	int sum = sum_outer(ctx, packet, from, patching->l3_offset, patching->len);
	__be16 *field = packet_at(ctx, offset);

	if (sum < 0 || (void *)(field + 1) > packet_end(ctx))
		return false;
	*field = ~sum;
	return true;
}

/* RFC 8200 §8.1: over IPv6 a datagram's checksum counts the addresses too, and is never sent as zero. */
static __always_inline bool patch_udp6_checksum(hook_ctx *ctx, __u32 offset, const struct packet *packet,
						const struct patching *patching)
{
	int sum = sum_outer(ctx, packet, offset, patching->l3_offset, patching->len);
	struct udphdr *udp = packet_at(ctx, offset);
	struct ipv6hdr *ip = packet_at(ctx, offset - sizeof(*ip));
	const __u32 *addresses = (void *)&ip->saddr;
	__u64 pseudo;

	if (sum < 0 || (void *)(udp + 1) > packet_end(ctx) || (void *)(ip + 1) > packet_end(ctx))
		return false;
	pseudo = (__u64)sum + udp->len + bpf_htons(IPPROTO_UDP);
#pragma unroll
	for (int i = 0; i < 8; i++)
		pseudo += addresses[i];
	udp->check = ~fold_checksum(pseudo);
	if (!udp->check)
		udp->check = 0xffff;
	return true;
}

/* The patches of enum fixed_patch. */
static __always_inline bool apply_fixed(hook_ctx *ctx, __u32 fixed, const struct patching *patching)
{
	void *l3 = packet_start(ctx) + ETH_HLEN, *end = packet_end(ctx);
	__u32 header_len = sizeof(struct iphdr);
	struct udphdr *udp = l3 + sizeof(struct iphdr);

	if (fixed & FIXED_IPV4) {
		if (l3 + sizeof(struct iphdr) > end)
			return false;
		patch_ipv4(l3, bpf_htons(patching->len - ETH_HLEN), patching->tos, patching->ttl);
	} else {
		header_len = sizeof(struct ipv6hdr);
		udp = l3 + sizeof(struct ipv6hdr);
		if ((void *)udp > end)
			return false;
		patch_ipv6(l3, bpf_htons(patching->len - ETH_HLEN - header_len), patching->tos, patching->ttl,
			   patching->hash);
	}
	if (!(fixed & (FIXED_UDP_LEN | FIXED_FLOW16)))
		return true;
	if ((void *)(udp + 1) > end)
		return false;
	if (fixed & FIXED_FLOW16)
		udp->source = flow_port(patching->hash);
	if (fixed & FIXED_UDP_LEN)
		udp->len = bpf_htons(patching->len - ETH_HLEN - header_len);
	return true;
}

static __always_inline bool apply_patch(hook_ctx *ctx, const struct patch *patch, const struct packet *packet,
					const struct patching *patching)
{
	void *end = packet_end(ctx);
	__u32 offset = patch->offset & (MPTM_OUTER_SIZE - 1);
	void *field = packet_start(ctx) + offset;
	__be16 value = bpf_htons(patching->len + patch->bias);

	switch (patch->op) {
	case PATCH_LEN16:
		break;
	case PATCH_FLOW16:
		value = flow_port(patching->hash);
		break;
	case PATCH_IPV4_ID:
		value = bpf_get_prandom_u32();
		break;
	case PATCH_INNER_ETHERTYPE:
		value = packet->ethertype;
		break;
	case PATCH_IPV4:
		if (field + sizeof(struct iphdr) > end)
			return false;
		patch_ipv4(field, value, patching->tos, patching->ttl);
		return true;
	case PATCH_IPV6:
		if (field + sizeof(struct ipv6hdr) > end)
			return false;
		patch_ipv6(field, value, patching->tos, patching->ttl, patching->hash);
		return true;
	case PATCH_INNER_MACS:
		if (field + MACS_LEN > end)
			return false;
		copy_macs(field, &packet->macs);
		return true;
	case PATCH_FLOW8:
	case PATCH_INNER_PROTOCOL:
	case PATCH_INNER_GPE:
		if (field + 1 > end)
			return false;
		if (patch->op == PATCH_FLOW8)
			*(__u8 *)field = patching->hash >> 24;
		else if (patch->op == PATCH_INNER_PROTOCOL)
			*(__u8 *)field = packet->family == 4 ? IPPROTO_IPIP : IPPROTO_IPV6;
		else
			*(__u8 *)field = packet->family == 4 ? GPE_IPV4 : GPE_IPV6;
		return true;
	case PATCH_SEQUENCE:
		if (field + sizeof(__be32) > end)
			return false;
		*(__be32 *)field = next_sequence(patching->counter);
		return true;
	case PATCH_ERSPAN_TIME:
		if (field + sizeof(__be32) > end)
			return false;
		*(__be32 *)field = bpf_htonl(bpf_ktime_get_ns() / ERSPAN_TIME_UNIT_NS);
		return true;
	case PATCH_CHECKSUM:
		return patch_checksum(ctx, offset, offset + patch->bias, packet, patching);
	case PATCH_UDP6_CHECKSUM:
		return patch_udp6_checksum(ctx, offset, packet, patching);
	default:
		return false;
	}
	if (field + sizeof(value) > end)
		return false;
	*(__be16 *)field = value;
	return true;
}

/* Whether an L3 tunnel carries the packet: it is IP, and of a version that the tunnel has. */
static __always_inline bool is_carried(const struct tunnel *tunnel, const struct packet *packet)
{
	__u8 wanted = packet->family == 4 ? INNER_IPV4 : packet->family == 6 ? INNER_IPV6 : 0;

	return tunnel->inner_families & wanted;
}

#define TOO_BIG -2 /* no verdict of a hook */

static __always_inline void write_inner_mac(struct ethhdr *eth, struct packet *packet, const __u8 *mac)
{
	copy_mac(eth->h_dest, mac);
	copy_mac(packet->macs.destination, mac);
}

/*
 * Puts the frame at the start of the packet into a tunnel and sends it. Nothing is modified unless the packet
 * can go. Returns the verdict, or TOO_BIG for a packet that doesn't fit; drops are counted, and so is
 * that.
 */
static __always_inline int encap_inline(hook_ctx *ctx, struct packet *packet, struct sending *sending)
{
	__u32 slot = sending->slot;
	struct tunnel *tunnel = SLOT(tunnels, slot);
	struct patching patching = {};
	__u32 strip, frame_bytes = packet->len, inner_bytes, overhead, inner_longest, longest, port_slot,
		     more;
	struct port *ingress;
	struct ethhdr *eth;
	enum room room;
	bool is_l3;

	if (!tunnel || !tunnel->outer_len)
		return tunnel && tunnel->flags & TUNNEL_CANT_SEND
			   ? drop_on_tunnel(REASON_TUNNEL_DOWN, tunnel->counter, packet->len)
			   : drop_on_port(REASON_TUNNEL_DOWN, arrival_ifindex(ctx, sending), packet->len);
	is_l3 = tunnel->flags & TUNNEL_L3;
	if (is_l3 && !is_carried(tunnel, packet))
		return sending->is_answer ? VERDICT_DROP
					  : drop_on_tunnel(REASON_INNER_FAMILY, tunnel->counter, packet->len);
	strip = is_l3 ? packet->l3_offset : tunnel->strip;
	if (tunnel->flags & TUNNEL_UNTAGGED)
		strip = packet->l3_offset - ETH_HLEN;
	if (is_l3)
		frame_bytes = packet->end; /* padding isn't IP's */
	patching.len = frame_bytes - strip + tunnel->outer_len;
	inner_bytes = frame_bytes - strip + (is_l3 ? ETH_HLEN : tunnel->strip);
	trace(TRACE_TUNNEL, slot, tunnel->counter, patching.len);
	inner_longest = longest_len(ctx, 0, packet, frame_bytes);
	/* Headers in the datagrams of a workload's own tunnel aren't counted there. */
	if (gso_size(ctx) && packet->protocol == IPPROTO_UDP && is_encapsulated(ctx))
		inner_longest = 0;
	longest = inner_longest - strip + tunnel->outer_len;
	if ((int)longest > (int)tunnel->max_len) {
		overhead = tunnel->outer_len + packet->l3_offset - strip;
		sending->mtu = tunnel->max_len > overhead ? tunnel->max_len - overhead : 0;
		trace(TRACE_TOO_BIG, sending->mtu, 0, 0);
		if (!sending->is_answer)
			count_reason(REASON_TOO_BIG, SCOPE_TUNNEL, tunnel->counter, packet->len);
		return TOO_BIG;
	}
	/* A GSO packet has no padding; cut, it would be one frame of all its bytes. */
	if (frame_bytes != packet->len &&
	    (gso_size(ctx) || !adjust_tail(ctx, (int)frame_bytes - (int)packet->len)))
		return drop_on_tunnel(REASON_BAD_INNER, tunnel->counter, packet->len);
	packet->len = frame_bytes;
	eth = packet_start(ctx);
	if ((void *)(eth + 1) > packet_end(ctx))
		return drop_on_tunnel(REASON_BAD_INNER, tunnel->counter, packet->len);
	if (sending->writes_mac)
		write_inner_mac(eth, packet, sending->mac);
	more = more_segments(ctx, packet, inner_longest);
	inner_bytes += more * (header_of_each(ctx, inner_longest) + inner_bytes - frame_bytes);
	/* Whether segments of unknown length fit is seen when they are there. */
	room = gso_size(ctx) && !inner_longest ? ROOM_SEGMENTS : push_outer(ctx, packet, tunnel, strip);
	if (room == ROOM_SEGMENTS)
		return send_segments(ctx, packet, tunnel, sending);
	if (room == ROOM_GSO)
		return drop_on_tunnel(REASON_GSO, tunnel->counter, packet->len);
	if (room == ROOM_NONE)
		return drop_on_tunnel(REASON_NO_HEADROOM, tunnel->counter, packet->len);
	if (!copy_template(ctx, tunnel, tunnel->outer_len))
		return drop_on_tunnel(REASON_NO_HEADROOM, tunnel->counter, packet->len);

	patching.hash = hash_flow(packet);
	patching.counter = tunnel->counter;
	patching.l3_offset = tunnel->outer_len + packet->l3_offset - strip;
	patching.tos = packet->tos & tunnel->tos_mask;
	patching.ttl = packet->ttl & tunnel->ttl_mask;
	if (APPLIES_FIXED && tunnel->fixed_patches && !apply_fixed(ctx, tunnel->fixed_patches, &patching))
		return drop_on_tunnel(REASON_NO_HEADROOM, tunnel->counter, packet->len);
	for (__u32 i = APPLIES_FIXED ? tunnel->fixed_count : 0; i < MPTM_PATCHES && i < tunnel->patch_count;
	     i++) {
		if (!apply_patch(ctx, &tunnel->patches[i], packet, &patching))
			return drop_on_tunnel(REASON_NO_HEADROOM, tunnel->counter, packet->len);
	}

	finish_room(ctx, room, patching.l3_offset);
	if (tunnel->flags & TUNNEL_TO_STACK) {
		ingress = arrival_port(ctx, sending);
		if (!ingress)
			return drop_on_tunnel(REASON_PORT_GONE, tunnel->counter, packet->len);
		count_encap(tunnel->counter, 1 + more, inner_bytes);
		trace(TRACE_TO_STACK, tunnel->outer_len, patching.hash, 0);
		return pass_to_stack(ctx, ingress, room == ROOM_NOTED);
	}
	if (redirect_to(ctx, tunnel->egress_ifindex) != VERDICT_REDIRECT)
		return drop_on_tunnel(REASON_EGRESS_GONE, tunnel->counter, packet->len);
	count_encap(tunnel->counter, 1 + more, inner_bytes);
	if (lookup_port(tunnel->egress_ifindex, &port_slot))
		count_port_tx(port_slot, 1 + more, patching.len + more * header_of_each(ctx, longest));
	trace(TRACE_ENCAPSULATED, tunnel->egress_ifindex, tunnel->outer_len, patching.hash);
	return VERDICT_REDIRECT;
}

/* The same as a global function, which the verifier goes through once: for paths that are long without it. */
__noinline int encap(hook_ctx *ctx, struct packet *packet, struct sending *sending)
{
	if (!packet || !sending)
		return VERDICT_DROP;
	return encap_inline(ctx, packet, sending);
}

#endif
