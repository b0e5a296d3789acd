/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Encapsulation, the same for every protocol: copy the tunnel's template in front of the packet and patch the
 * fields that depend on it. How a protocol's template looks is in src/mptm/protocols/<name>.py.
 */
#ifndef MPTM_ENCAP_H
#define MPTM_ENCAP_H

#include "counters.h"
#include "drop.h"
#include "forward.h"
#include "lookup.h"

#define EPHEMERAL_FIRST 0xc000 /* 49152: RFC 7348 §5, RFC 8926 §3.3 */
#define EPHEMERAL_MASK	0x3fff
#define FLOW_LABEL_MASK 0xfffff

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

static __always_inline bool copy_template(const struct xdp_md *ctx, const struct tunnel *tunnel, __u32 len)
{
	void *to = (void *)(long)ctx->data, *end = packet_end(ctx);
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

static __always_inline bool apply_patch(const struct xdp_md *ctx, const struct patch *patch,
					const struct packet *packet, __u32 len, __u8 tos, __u8 ttl,
					__u32 hash)
{
	void *end = packet_end(ctx);
	void *field = (void *)(long)ctx->data + (patch->offset & (MPTM_OUTER_SIZE - 1));
	__be16 value = bpf_htons(len + patch->bias);

	switch (patch->op) {
	case PATCH_LEN16:
		break;
	case PATCH_FLOW16:
		value = bpf_htons(EPHEMERAL_FIRST | (hash >> 18 & EPHEMERAL_MASK));
		break;
	case PATCH_IPV4_ID:
		value = bpf_get_prandom_u32();
		break;
	case PATCH_IPV4:
		if (field + sizeof(struct iphdr) > end)
			return false;
		patch_ipv4(field, value, tos, ttl);
		return true;
	case PATCH_IPV6:
		if (field + sizeof(struct ipv6hdr) > end)
			return false;
		patch_ipv6(field, value, tos, ttl, hash);
		return true;
	case PATCH_INNER_MACS:
		if (field + MACS_LEN > end)
			return false;
		__builtin_memcpy(field, &packet->macs, MACS_LEN);
		return true;
	default:
		return false;
	}
	if (field + sizeof(value) > end)
		return false;
	*(__be16 *)field = value;
	return true;
}

/*
 * Puts the frame at the start of the packet into the tunnel of `slot` and sends it. `inner_mac`, if not NULL,
 * becomes the inner destination MAC; `ingress` is the port that the packet came by. Nothing is modified
 * unless the packet can go. Returns the XDP verdict; drops are counted.
 */
static __always_inline int encap(struct xdp_md *ctx, struct packet *packet, __u32 slot, const __u8 *inner_mac,
				 const struct port *ingress)
{
	struct tunnel *tunnel = bpf_map_lookup_elem(&tunnels, &slot);
	__u32 hash, len, port_slot;
	__u8 tos, ttl;

	if (!tunnel || !tunnel->outer_len)
		return drop_on_tunnel(REASON_TUNNEL_DOWN, tunnel ? tunnel->counter : slot, packet->len);
	len = packet->len - tunnel->strip + tunnel->outer_len;
	if (len > tunnel->max_len)
		return drop_on_tunnel(REASON_TOO_BIG, tunnel->counter, packet->len);
	if (inner_mac) {
		struct ethhdr *eth = (void *)(long)ctx->data;

		if ((void *)(eth + 1) > packet_end(ctx))
			return drop_on_tunnel(REASON_BAD_INNER, tunnel->counter, packet->len);
		__builtin_memcpy(eth->h_dest, inner_mac, ETH_ALEN);
		__builtin_memcpy(packet->macs.destination, inner_mac, ETH_ALEN);
	}
	if (bpf_xdp_adjust_head(ctx, (int)(tunnel->strip - tunnel->outer_len)))
		return drop_on_tunnel(REASON_NO_HEADROOM, tunnel->counter, packet->len);
	if (!copy_template(ctx, tunnel, tunnel->outer_len))
		return drop_on_tunnel(REASON_NO_HEADROOM, tunnel->counter, packet->len);

	hash = hash_flow(packet);
	tos = packet->tos & tunnel->tos_mask;
	ttl = packet->ttl & tunnel->ttl_mask;
	for (__u32 i = 0; i < MPTM_PATCHES && i < tunnel->patch_count; i++) {
		if (!apply_patch(ctx, &tunnel->patches[i], packet, len, tos, ttl, hash))
			return drop_on_tunnel(REASON_NO_HEADROOM, tunnel->counter, packet->len);
	}

	if (tunnel->flags & TUNNEL_TO_STACK) {
		count_encap(tunnel->counter, packet->len);
		return pass_to_stack(ctx, ingress);
	}
	if (bpf_redirect_map(&tx_ports, tunnel->egress_ifindex, XDP_DROP) != XDP_REDIRECT)
		return drop_on_tunnel(REASON_EGRESS_GONE, tunnel->counter, packet->len);
	count_encap(tunnel->counter, packet->len);
	if (lookup_port(tunnel->egress_ifindex, &port_slot))
		count_port_tx(port_slot, len);
	return XDP_REDIRECT;
}

#endif
