/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The underlay's headers: from the Ethernet header to where a tunnel header may begin.
 */
#ifndef MPTM_DECAP_OUTER_H
#define MPTM_DECAP_OUTER_H

#include "../lookup.h"
#include "../packet.h"

#define L2_IFINDEX_AT 12 /* where a destination that is a MAC address has the interface behind it */

/* What the outer headers say. Addresses as in struct termination. */
struct outer {
	__u8 source[16] __attribute__((aligned(8)));
	__u8 destination[16] __attribute__((aligned(8)));
	__u32 frame_len;      /* of the packet as it came */
	__u32 payload_offset; /* of the tunnel header, from the start of the packet */
	__u32 payload_len; /* bytes from there on, by the outer headers: padding of the frame is not in it */
	__u16 number;	   /* UDP destination port, IP protocol or EtherType */
	__u8 protocol;
	__u8 tos;
	__u8 family; /* 4, 6; 0: no IP packet */
	__u8 parser; /* enum parser of the listener; PARSER_NONE: not ours */
	__u8 is_fragment;
	__u8 problem; /* enum reason: what is wrong with the outer headers, if the packet is for us */
};

static __always_inline bool is_ipv4_header_sound(const struct iphdr *ip)
{
	const __u32 *words = (const void *)ip;
	__u64 sum = 0;

	if (ip->version != 4 || ip->ihl != 5)
		return false;
#pragma unroll
	for (int i = 0; i < 5; i++)
		sum += words[i];
	return fold_checksum(sum) == 0xffff;
}

/* Reads the UDP header at payload_offset and moves behind it. */
static __always_inline void parse_outer_udp(const hook_ctx *ctx, struct outer *outer)
{
	struct udphdr *udp = packet_at(ctx, outer->payload_offset);
	__u32 udp_len;

	if ((void *)(udp + 1) > packet_end(ctx))
		return;
	outer->number = bpf_ntohs(udp->dest);
	outer->parser = lookup_listener(LISTEN_UDP, outer->number);
	if (!outer->parser)
		return;
	udp_len = bpf_ntohs(udp->len);
	if (!outer->is_fragment && (udp_len < sizeof(*udp) || udp_len > outer->payload_len) &&
	    !outer->problem)
		outer->problem = REASON_BAD_OUTER_UDP;
	outer->payload_offset += sizeof(*udp);
	outer->payload_len = udp_len - sizeof(*udp);
}

static __always_inline void parse_outer_ip(const hook_ctx *ctx, struct outer *outer)
{
	if (outer->protocol == IPPROTO_UDP) {
		parse_outer_udp(ctx, outer);
		return;
	}
	outer->number = outer->protocol;
	outer->parser = lookup_listener(LISTEN_IP, outer->protocol);
}

/*
 * IPv4 with options is left to the kernel: no tunnel endpoint sends it. A header of ours that is wrong
 * otherwise is a problem that only counts when somebody of ours is addressed.
 */
static __always_inline void parse_outer_ipv4(const hook_ctx *ctx, __u64 len, struct outer *outer)
{
	struct iphdr *ip = packet_at(ctx, ETH_HLEN);
	__u32 total_len;

	if ((void *)(ip + 1) > packet_end(ctx) || ip->ihl > 5)
		return;
	total_len = bpf_ntohs(ip->tot_len);
	outer->family = 4;
	outer->protocol = ip->protocol;
	outer->tos = ip->tos;
	outer->is_fragment = (ip->frag_off & bpf_htons(IPV4_OFFSET_BITS | IPV4_MORE_FRAGMENTS)) != 0;
	((any_u64 *)outer->source)[1] = join_words(bpf_htonl(0xffff), ip->saddr);
	((any_u64 *)outer->destination)[1] = join_words(bpf_htonl(0xffff), ip->daddr);
	outer->payload_offset = ETH_HLEN + sizeof(*ip);
	outer->payload_len = total_len - sizeof(*ip);
	if (!is_ipv4_header_sound(ip) || total_len < sizeof(*ip) || ETH_HLEN + total_len > len)
		outer->problem = REASON_BAD_OUTER_IP;
	/* Behind the first fragment there is no header to tell whose it is. */
	if (ip->frag_off & bpf_htons(IPV4_OFFSET_BITS))
		return;
	parse_outer_ip(ctx, outer);
}

/* RFC 8200 §4.5. */
struct fragment_header {
	__u8 next_header;
	__u8 reserved;
	__be16 offset_more; /* offset << 3, reserved bits, more fragments */
	__be32 identification;
};

/* RFC 2473 §4.1.1: destination options that say how deep tunnels may be nested; what a tunnel end may ignore.
 */
struct encapsulation_limit {
	__u8 next_header;
	__u8 len;
	__u8 type;
	__u8 type_len;
	__u8 limit;
	__u8 padding[3]; /* one PadN */
};

#define IPV6_DESTINATION_OPTIONS   60
#define OPTION_PADN		   1
#define OPTION_ENCAPSULATION_LIMIT 4

/* Moves behind a header with the encapsulation limit, as Linux sends it by default. */
static __always_inline void skip_encapsulation_limit(const hook_ctx *ctx, struct outer *outer)
{
	struct encapsulation_limit *header = packet_at(ctx, outer->payload_offset);

	if ((void *)(header + 1) > packet_end(ctx) || outer->payload_len < sizeof(*header) || header->len ||
	    header->type != OPTION_ENCAPSULATION_LIMIT || header->type_len != 1 ||
	    header->padding[0] != OPTION_PADN || header->padding[1] != 1)
		return;
	outer->protocol = header->next_header;
	outer->payload_offset += sizeof(*header);
	outer->payload_len -= sizeof(*header);
}

/* Moves behind a fragment header; behind one that isn't the first's there is nothing to tell whose it is. */
static __always_inline bool parse_fragment_header(const hook_ctx *ctx, struct outer *outer)
{
	struct fragment_header *header = packet_at(ctx, outer->payload_offset);

	if ((void *)(header + 1) > packet_end(ctx) || header->offset_more & bpf_htons(0xfff8))
		return false;
	outer->is_fragment = 1;
	outer->protocol = header->next_header;
	outer->payload_offset += sizeof(*header);
	outer->payload_len -= sizeof(*header);
	return true;
}

static __always_inline void parse_outer_ipv6(const hook_ctx *ctx, __u64 len, struct outer *outer)
{
	struct ipv6hdr *ip = packet_at(ctx, ETH_HLEN);

	if ((void *)(ip + 1) > packet_end(ctx))
		return;
	outer->family = 6;
	outer->protocol = ip->nexthdr;
	outer->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	copy_address(outer->source, &ip->saddr);
	copy_address(outer->destination, &ip->daddr);
	outer->payload_offset = ETH_HLEN + sizeof(*ip);
	outer->payload_len = bpf_ntohs(ip->payload_len);
	if (ip->version != 6 || outer->payload_offset + outer->payload_len > len)
		outer->problem = REASON_BAD_OUTER_IP;
	if (outer->protocol == IPV6_DESTINATION_OPTIONS)
		skip_encapsulation_limit(ctx, outer);
	else if (outer->protocol == IPV6_FRAGMENT && !parse_fragment_header(ctx, outer))
		return;
	parse_outer_ip(ctx, outer);
}

/* Finds out whose packet this is: fills in *outer as far as the packet goes, which must be zero before. */
static __always_inline void parse_outer(const hook_ctx *ctx, __u64 len, struct outer *outer)
{
	struct ethhdr *eth = packet_start(ctx);
	__u32 ifindex = ingress_ifindex(ctx);
	__be16 ethertype;

	if ((void *)(eth + 1) > packet_end(ctx))
		return;
	ethertype = ethertype_of(eth);
	if (ethertype == bpf_htons(ETH_P_IP)) {
		parse_outer_ipv4(ctx, len, outer);
	} else if (ethertype == bpf_htons(ETH_P_IPV6)) {
		parse_outer_ipv6(ctx, len, outer);
	} else {
		outer->number = bpf_ntohs(ethertype);
		outer->parser = lookup_listener(LISTEN_ETHERTYPE, outer->number);
		outer->payload_offset = ETH_HLEN;
		outer->payload_len = len - ETH_HLEN;
		copy_mac(outer->source, eth->h_source);
		copy_mac(outer->destination, eth->h_dest);
		__builtin_memcpy(outer->destination + L2_IFINDEX_AT, &ifindex, sizeof(ifindex));
	}
}

#endif
