/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * GTP-U on the receiving side: 3GPP TS 29.281 §5. Echo requests of known senders are answered where the
 * control plane says so; messages other than these and G-PDUs are for a daemon of this host.
 */
#ifndef MPTM_DECAP_GTPU_H
#define MPTM_DECAP_GTPU_H

#include "../checksum.h"
#include "inner.h"

#define GTPU_VERSION_PT_MASK 0xf0
#define GTPU_VERSION_1_PT    0x30
#define GTPU_EXTENSION	     0x04
#define GTPU_OPTIONAL	     0x07 /* any of E, S, PN: four bytes more */
#define GTPU_ECHO_REQUEST    1
#define GTPU_ECHO_RESPONSE   2
#define GTPU_G_PDU	     255
#define GTPU_SEQUENCE	     0x02
#define GTPU_RECOVERY	     14 /* §8.2: the restart counter, which TS 29.281 wants to be 0 */
#define GTPU_EXTENSIONS_MAX  4
#define GTPU_COMPREHENSION   0x80 /* §5.2.1: the endpoint, which we are, must understand it */
#define GTPU_PDU_SESSION     0x85 /* TS 38.415: carries the QFI, which says nothing to us */

struct gtpu_header {
	__u8 flags;
	__u8 type;
	__be16 len; /* of what follows the first 8 bytes */
	__be32 teid;
};

struct gtpu_optional {
	__be16 sequence;
	__u8 n_pdu;
	__u8 next_extension;
};

static __always_inline enum reason parse_gtpu(hook_ctx *ctx, const struct outer *outer, struct inner *inner)
{
	struct gtpu_header *gtpu = packet_at(ctx, outer->payload_offset);
	__u32 offset = outer->payload_offset + sizeof(*gtpu), end;
	struct gtpu_optional *optional;
	__u8 next = 0, flags;

	if ((void *)(gtpu + 1) > packet_end(ctx) || outer->payload_len < sizeof(*gtpu))
		return REASON_GTPU_TRUNCATED;
	if ((gtpu->flags & GTPU_VERSION_PT_MASK) != GTPU_VERSION_1_PT)
		return REFUSED_CONTROL;
	if (gtpu->type == GTPU_ECHO_REQUEST) {
		identify(inner, PARSER_GTPU_ECHO, 0);
		return REASON_NONE;
	}
	if (gtpu->type != GTPU_G_PDU)
		return REFUSED_CONTROL;
	identify(inner, PARSER_GTPU, bpf_ntohl(gtpu->teid));
	end = offset + bpf_ntohs(gtpu->len);
	if (end > outer->payload_offset + outer->payload_len)
		return REASON_GTPU_HEADER;
	flags = gtpu->flags;
	if (flags & GTPU_EXTENSION)
		pull_packet(ctx, PULL_LEN_MAX);
	if (flags & GTPU_OPTIONAL) {
		optional = packet_at(ctx, offset);
		if ((void *)(optional + 1) > packet_end(ctx) || offset + sizeof(*optional) > end)
			return REASON_GTPU_TRUNCATED;
		if (flags & GTPU_EXTENSION)
			next = optional->next_extension;
		offset += sizeof(*optional);
	}
#pragma clang loop unroll(disable)
	for (int i = 0; i < GTPU_EXTENSIONS_MAX && next; i++) {
		__u8 *extension = packet_at(ctx, offset), *last;

		if ((void *)(extension + 1) > packet_end(ctx) || !*extension)
			return REASON_GTPU_EXTENSION;
		if (next != GTPU_PDU_SESSION && next & GTPU_COMPREHENSION)
			return REASON_GTPU_EXTENSION;
		offset += *extension * 4;
		last = packet_at(ctx, offset - 1);
		if (offset > end || !is_within(outer, offset) || (void *)(last + 1) > packet_end(ctx))
			return REASON_GTPU_EXTENSION;
		next = *last;
	}
	if (next || offset > end)
		return REASON_GTPU_EXTENSION;
	inner->payload.kind = INNER_IP;
	inner->payload.offset = offset;
	inner->payload.end = end;
	return REASON_NONE;
}

/* An echo response: header, sequence number and recovery information element. */
struct gtpu_echo {
	struct gtpu_header header;
	struct gtpu_optional optional;
	__u8 recovery_type;
	__u8 recovery;
} __attribute__((packed, aligned(2))); /* no padding: it would be sent */

/* Addresses and ports of the datagram at `ip` exchanged, and its lengths and checksums made those of `len`
 * bytes. */
static __always_inline void turn_ipv4(struct iphdr *ip, __u32 len)
{
	const __u32 *words = (const void *)ip;
	__be32 source = ip->saddr;
	__u64 sum = 0;

	ip->saddr = ip->daddr;
	ip->daddr = source;
	ip->tos = 0;
	ip->tot_len = bpf_htons(len);
	ip->id = 0;
	ip->frag_off = bpf_htons(IPV4_DONT_FRAGMENT);
	ip->ttl = ANSWER_TTL;
	ip->check = 0;
#pragma unroll
	for (int i = 0; i < 5; i++)
		sum += words[i];
	ip->check = ~fold_checksum(sum);
}

static __always_inline void turn_ipv6(struct ipv6hdr *ip, __u32 payload_len)
{
	struct in6_addr source = ip->saddr;

	ip->saddr = ip->daddr;
	ip->daddr = source;
	*(__be32 *)ip = bpf_htonl(6U << 28);
	ip->payload_len = bpf_htons(payload_len);
	ip->hop_limit = ANSWER_TTL;
}

/*
 * Turns an echo request into its response (§7.2.2). 0: it is the host's, and as it came; SPOILED: it can
 * only be dropped. A global function: the verifier goes through it once.
 */
__noinline int write_gtpu_echo(hook_ctx *ctx, const struct outer *outer)
{
	__u32 at, udp_at, len = sizeof(struct udphdr) + sizeof(struct gtpu_echo);
	struct gtpu_optional *optional;
	struct gtpu_echo *echo;
	struct udphdr *udp;
	struct ethhdr *eth;
	__u8 mac[ETH_ALEN];
	__be16 sequence = 0, port;
	__u64 pseudo = 0;
	int sum;

	if (!outer || outer->payload_len < sizeof(struct gtpu_header))
		return 0;
	at = outer->payload_offset;
	udp_at = at - sizeof(struct udphdr);
	/* Behind extensions of the outer IPv6 header an echo is the host's. */
	if (at != ETH_HLEN + (outer->family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)) +
		      sizeof(struct udphdr))
		return 0;
	echo = packet_at(ctx, at);
	optional = packet_at(ctx, at + sizeof(struct gtpu_header));
	if ((void *)(optional + 1) <= packet_end(ctx)) {
		struct gtpu_header *header = packet_at(ctx, at);

		if ((void *)(header + 1) <= packet_end(ctx) && header->flags & GTPU_SEQUENCE &&
		    outer->payload_len >= sizeof(*header) + sizeof(*optional))
			sequence = optional->sequence;
	}
	if (!adjust_tail(ctx, (int)(at + sizeof(*echo)) - (int)frame_len(ctx)))
		return 0;
	eth = packet_start(ctx);
	echo = packet_at(ctx, at);
	udp = packet_at(ctx, udp_at);
	if ((void *)(eth + 1) > packet_end(ctx) || (void *)(echo + 1) > packet_end(ctx) ||
	    (void *)(udp + 1) > packet_end(ctx))
		return SPOILED;
	__builtin_memcpy(mac, eth->h_dest, ETH_ALEN);
	__builtin_memcpy(eth->h_dest, eth->h_source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, mac, ETH_ALEN);
	__builtin_memset(echo, 0, sizeof(*echo));
	echo->header.flags = GTPU_VERSION_1_PT | GTPU_SEQUENCE;
	echo->header.type = GTPU_ECHO_RESPONSE;
	echo->header.len = bpf_htons(sizeof(*echo) - sizeof(echo->header));
	echo->optional.sequence = sequence;
	echo->recovery_type = GTPU_RECOVERY;
	port = udp->source;
	udp->source = udp->dest;
	udp->dest = port;
	udp->len = bpf_htons(len);
	udp->check = 0;
	if (outer->family == 4) {
		struct iphdr *ip = packet_at(ctx, ETH_HLEN);

		if ((void *)(ip + 1) > packet_end(ctx))
			return SPOILED;
		turn_ipv4(ip, sizeof(*ip) + len);
		pseudo = (__u64)ip->saddr + ip->daddr;
	} else {
		struct ipv6hdr *ip = packet_at(ctx, ETH_HLEN);
		const __u32 *addresses = (const void *)&ip->saddr;

		if ((void *)(ip + 1) > packet_end(ctx))
			return SPOILED;
		turn_ipv6(ip, len);
#pragma unroll
		for (int i = 0; i < 8; i++)
			pseudo += addresses[i];
	}
	sum = sum_bytes(ctx, udp_at, len);
	udp = packet_at(ctx, udp_at);
	if (sum < 0 || (void *)(udp + 1) > packet_end(ctx))
		return SPOILED;
	udp->check = ~fold_checksum(pseudo + (__u32)sum + bpf_htons(len) + bpf_htons(IPPROTO_UDP));
	if (!udp->check)
		udp->check = 0xffff;
	return 1;
}

#endif
