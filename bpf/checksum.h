/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sums over packets (RFC 1071). A sum is 16 bits in the order of the wire, not complemented; -1: beyond the
 * packet.
 */
#ifndef MPTM_CHECKSUM_H
#define MPTM_CHECKSUM_H

#include "packet.h"

#define SUM_OFFSET_MASK	  0x3fff /* packets of up to 16 KB */
#define SUM_MAX		  (SUM_OFFSET_MASK + 1)
#define SUM_CHUNK	  512 /* bytes at most that one helper call adds up */
#define TCP_CHECKSUM_END  18  /* where its checksum field ends, in a TCP header */
#define UDP_CHECKSUM_END  8
#define ICMP_CHECKSUM_END 4
#define SUM_CHUNKS	  (SUM_OFFSET_MASK / SUM_CHUNK + 1)

/*
 * Adds up `size` bytes, a constant, when `len` has that bit. Up to 64 are added word by word: a helper call
 * takes longer, and headers are that short.
 */
#define SUM_STEP(size)                                                                                       \
	do {                                                                                                 \
		if (len & (size)) {                                                                          \
			at = packet_start(ctx) + (offset & SUM_OFFSET_MASK);                                 \
			if (at + (size) > packet_end(ctx))                                                   \
				return -1;                                                                   \
			if ((size) > 64)                                                                     \
				sum += (__u32)bpf_csum_diff(NULL, 0, at, size, 0);                           \
			else                                                                                 \
				_Pragma("unroll") for (int i = 0; i < (size) / 4; i++) sum +=                \
				    ((const any_u32 *)at)[i];                                                \
			offset += (size);                                                                    \
		}                                                                                            \
	} while (0)

/* The same for what is left below four bytes. */
#define SUM_TAIL(type, size, word)                                                                           \
	do {                                                                                                 \
		if (len & (size)) {                                                                          \
			type *value = packet_start(ctx) + (offset & SUM_OFFSET_MASK);                        \
			if ((void *)(value + 1) > packet_end(ctx))                                           \
				return -1;                                                                   \
			sum += (word);                                                                       \
			offset += (size);                                                                    \
		}                                                                                            \
	} while (0)

/* 0 -> a piece of a packet that isn't in reach, per CPU, while it is summed up. Data plane writes and reads.
 */
struct sum_piece {
	__u8 bytes[SUM_CHUNK +
		   sizeof(__u32)]; /* as verifiers see it, rounding a length up to words may go there */
};
TABLE_ARRAY(sum_pieces, BPF_MAP_TYPE_PERCPU_ARRAY, 1, struct sum_piece);

/* The sum of bytes that are in reach only in part: they are copied piece by piece. */
static __always_inline int sum_pieces_of(hook_ctx *ctx, __u32 offset, __u32 len)
{
	__u32 zero = 0, sum = 0, size;
	struct sum_piece *piece = bpf_map_lookup_elem(&sum_pieces, &zero);

	if (!piece || !len)
		return piece ? 0 : -1;
	for (__u32 i = 0; i < SUM_CHUNKS && len > SUM_CHUNK; i++) {
		if (!read_bytes(ctx, offset, piece->bytes, SUM_CHUNK))
			return -1;
		sum = bpf_csum_diff(NULL, 0, (__be32 *)piece->bytes, SUM_CHUNK, sum);
		offset += SUM_CHUNK;
		len -= SUM_CHUNK;
	}
	size = ((len - 1) & (SUM_CHUNK - 1)) + 1;
	*(__u32 *)&piece->bytes[(size - 1) & (SUM_CHUNK - sizeof(__u32))] = 0;
	if (!read_bytes(ctx, offset, piece->bytes, size))
		return -1;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)piece->bytes, (size + 3) & ~3U, sum);
	return fold_checksum(sum);
}

/* Sum of `len` bytes at `offset`, which end within the first SUM_MAX: who calls has seen to it. */
static __always_inline int sum_bytes_inline(hook_ctx *ctx, __u32 offset, __u32 len)
{
	__u64 sum = 0;
	void *at;

	pull_packet(ctx, offset + len);
	if (!is_in_reach(ctx, offset + len))
		return sum_pieces_of(ctx, offset, len);
	for (__u32 i = 0; i < SUM_CHUNKS && len >= SUM_CHUNK; i++) {
		at = packet_start(ctx) + (offset & SUM_OFFSET_MASK);
		if (at + SUM_CHUNK > packet_end(ctx))
			return -1;
		sum += (__u32)bpf_csum_diff(NULL, 0, at, SUM_CHUNK, 0);
		offset += SUM_CHUNK;
		len -= SUM_CHUNK;
	}
	SUM_STEP(256);
	SUM_STEP(128);
	SUM_STEP(64);
	SUM_STEP(32);
	SUM_STEP(16);
	SUM_STEP(8);
	SUM_STEP(4);
	SUM_TAIL(__u16, 2, *value);
	SUM_TAIL(__u8, 1, bpf_htons((__u16)*value << 8));
	return fold_checksum(sum);
}

/* The same as a global function: the verifier sees the loop once. */
__noinline int sum_bytes(hook_ctx *ctx, __u32 offset, __u32 len)
{
	return sum_bytes_inline(ctx, offset, len);
}

/*
 * What is left of an IP packet's sum when its transport checksum is right: without a walk over the payload
 * (Linux, Documentation/networking/checksum-offloads.rst, "LCO"). -1: its checksum says nothing of the
 * payload.
 */
static __always_inline int sum_checksummed_ip(const hook_ctx *ctx, const struct packet *packet, __u32 at)
{
	void *end = packet_end(ctx);
	__u32 transport_at = at + packet->end - packet->l3_offset, header_len = sizeof(struct ipv6hdr);
	__u16 *udp_checksum;
	__u64 pseudo;

	if (packet->family == 4) {
		struct iphdr *ip = packet_start(ctx) + (at & SUM_OFFSET_MASK);

		if ((void *)(ip + 1) > end ||
		    ip->frag_off & bpf_htons(IPV4_OFFSET_BITS | IPV4_MORE_FRAGMENTS))
			return -1;
		header_len = ip->ihl * 4;
		pseudo = (__u64)ip->saddr + ip->daddr;
	} else {
		pseudo = 0; /* the addresses are in the header's sum as well, and go out against each other */
	}
	switch (packet->protocol) {
	case IPPROTO_ICMP:
		/* The header's sum and the message's are both all ones. */
		return packet->family == 4 && transport_at - at - header_len >= ICMP_CHECKSUM_END ? 0 : -1;
	case IPPROTO_UDP:
		udp_checksum = packet_start(ctx) + ((at + header_len) & SUM_OFFSET_MASK) + 6;
		if ((void *)(udp_checksum + 1) > end || !*udp_checksum ||
		    udp_checksum[-1] != bpf_htons(transport_at - at - header_len))
			return -1;
		break;
	case IPPROTO_TCP:
		if (transport_at - at - header_len < TCP_CHECKSUM_END)
			return -1;
		break;
	case IPPROTO_ICMPV6:
		if (packet->family == 6 && transport_at - at - header_len >= ICMP_CHECKSUM_END)
			break;
		return -1;
	default:
		return -1;
	}
	pseudo += bpf_htons(packet->protocol) + bpf_htons(transport_at - at - header_len);
	if (packet->family == 4)
		return (__u16)~fold_checksum(pseudo);
	{
		__u32 *words = packet_start(ctx) + (at & SUM_OFFSET_MASK);

		if ((void *)(words + 2) > end)
			return -1;
		return fold_checksum((__u64)words[0] + words[1] + (__u16)~fold_checksum(pseudo));
	}
}

/*
 * Where, from the IP header at l3_at on, a transport checksum begins that is to be filled in later: the sum
 * of the pseudo header stands there. 0: there is none such.
 */
static __always_inline __u32 unfinished_at(const hook_ctx *ctx, const struct packet *packet, __u32 l3_at)
{
	__u32 *words = (void *)packet_start(ctx) + (l3_at & SUM_OFFSET_MASK),
	      header_len = sizeof(struct ipv6hdr);
	void *end = packet_end(ctx);
	__u64 pseudo = bpf_htons(packet->protocol);
	__be16 *field;

	if ((void *)(words + sizeof(struct iphdr) / sizeof(*words)) > end)
		return 0;
	if (packet->family == 4)
		header_len = (*(__u8 *)words & 0xf) * 4;
#pragma unroll
	for (int i = 0; i < 4; i++)
		pseudo += (__u64)packet->source[i] + packet->destination[i];
	pseudo += bpf_htonl(packet->end - packet->l3_offset - header_len); /* may be more than 64 KB */
	field = (void *)packet_start(ctx) + ((l3_at + header_len) & SUM_OFFSET_MASK) +
		(packet->protocol == IPPROTO_TCP ? TCP_CHECKSUM_END : UDP_CHECKSUM_END) - sizeof(*field);
	if ((packet->protocol != IPPROTO_TCP && packet->protocol != IPPROTO_UDP) ||
	    (void *)(field + 1) > end || *field != fold_checksum(pseudo))
		return 0;
	return header_len;
}

/*
 * Sum of everything from `offset` to the end of a packet of `len` bytes whose inner frame or packet begins at
 * inner_at with its IP header at l3_at: by the inner transport checksum where it has one, else byte by byte.
 * A global function, and calls none: together the frames of who calls are near what BPF allows.
 */
__noinline int sum_outer(hook_ctx *ctx, const struct packet *packet, __u32 offset, __u32 l3_at, __u32 len)
{
	int sum, tail = 0;

	if (!packet || len < offset)
		return -1;
	len -= offset;
	if (packet->family && packet->end == packet->len && l3_at >= offset) {
		tail = sum_checksummed_ip(ctx, packet, l3_at);
		if (tail >= 0)
			len = l3_at - offset;
		else
			tail = 0;
	}
	if (offset + len > SUM_MAX)
		return -1; /* not by a tunnel's max_len, which the control plane makes that small */
	sum = sum_bytes_inline(ctx, offset, len);
	return sum < 0 ? sum : fold_checksum((__u64)sum + tail);
}

#endif
