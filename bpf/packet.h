/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Reading packets. A parser gets the context and an offset, checks every byte against data_end before it
 * reads it, modifies nothing, and says false when the packet is not what it parses.
 */
#ifndef MPTM_PACKET_H
#define MPTM_PACKET_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "hook.h"
#include "words.h"

#define OFFSET_MASK	  0x3ff /* bound of every variable offset into a packet, for the verifier */
#define OFFSET_MAX	  (OFFSET_MASK - 127) /* what a parser goes to, and still reads a header behind */
#define VLAN_LEN	  4
#define INNER_TAGS	  2
#define L2_MAX		  (ETH_HLEN + INNER_TAGS * VLAN_LEN)
#define PORTS_LEN	  4
#define MAC_GROUP	  0x01 /* in the first byte: broadcast or multicast */
#define IPV6_FRAGMENT	  44
#define IPV6_OPTION_JUMBO 0xc2 /* RFC 2675 §2 */
#ifndef IPPROTO_ETHERNET
#define IPPROTO_ETHERNET 143 /* RFC 8986 §4.9 */
#endif

#define IPV4_OFFSET_BITS    0x1fff
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_DONT_FRAGMENT  0x4000

/* Of what writes an answer in the packet's place: it is none yet, but the packet isn't as it came either. */
#define SPOILED -1

#define ANSWER_TTL 64 /* TTL or hop limit of what we write ourselves */

/* Next protocol numbers that VXLAN-GPE and NSH share: draft-ietf-nvo3-vxlan-gpe §3.3, RFC 8300 §2.2. */
#define GPE_IPV4     1
#define GPE_IPV6     2
#define GPE_ETHERNET 3
#define GPE_NSH	     4

struct vlan_tag {
	__be16 tci;
	__be16 ethertype; /* of what follows */
};

/* The hop-by-hop header that Linux (6.18, not its successors) puts into TCP over IPv6 of more than 64 KB, and
 * takes out of its segments. */
struct jumbo_header {
	__u8 next;
	__u8 len;
	__u8 option;
	__u8 option_len;
	__be32 payload_len;
};

struct mac_pair {
	__u8 destination[ETH_ALEN];
	__u8 source[ETH_ALEN];
} __attribute__((aligned(4)));

/* An Ethernet frame of the overlay as far as forwarding needs it. */
struct packet {
	__u32 len;	  /* of the frame, Ethernet header included */
	__u32 l3_offset;  /* from the start of the frame: 14, plus 4 per VLAN tag */
	__be16 ethertype; /* after the VLAN tags */
	__u8 family;	  /* 4, 6, or 0 when it is no IP packet */
	__u8 protocol;	  /* IP protocol / next header, of IPv6 behind a jumbo header of Linux's */
	__u8 tos;	  /* TOS or traffic class; 0 when it is no IP packet */
	__u8 ttl;	  /* TTL or hop limit; 64 when it is no IP packet */
	struct mac_pair macs;
	__u32 end;   /* of the IP packet, from the start of the frame: what follows is padding */
	__u32 ports; /* source and destination port as on the wire; 0 for fragments and what has none */
	__be32 source[4] __attribute__((aligned(8))); /* IPv4: only the first word is used */
	__be32 destination[4] __attribute__((aligned(8)));
};

static __always_inline __be16 ethertype_of(const struct ethhdr *eth)
{
	return *(const any_u16 *)((const void *)eth + MACS_LEN);
}

static __always_inline void *packet_at(const hook_ctx *ctx, __u64 offset)
{
	return packet_start(ctx) + (offset & OFFSET_MASK);
}

static __always_inline bool is_vlan(__be16 ethertype)
{
	return ethertype == bpf_htons(ETH_P_8021Q) || ethertype == bpf_htons(ETH_P_8021AD);
}

/* Whether an address can be that of one host, to which an answer may go (RFC 1122 §3.2.2, RFC 4443 §2.4). */
static __always_inline bool is_single_host(__u8 family, const __be32 *address)
{
	__u32 first = bpf_ntohl(address[0]);

	if (family == 4)
		return first && first >> 24 != 127 && first >> 24 < 224;
	return first >> 24 != 0xff && (address[0] | address[1] | address[2] | (address[3] & bpf_htonl(~1U)));
}

/* Protocols whose first four bytes are the source and the destination port. */
static __always_inline bool has_ports(__u8 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP;
}

/* One's complement sum folded to 16 bits. */
static __always_inline __u16 fold_checksum(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/*
 * Whether an IP length of 0 means "to the end": TCP of more than 64 KB that is to become segments (Linux:
 * iph_totlen, "BIG TCP").
 */
static __always_inline bool is_big_tcp(const hook_ctx *ctx, __u8 protocol)
{
	return gso_size(ctx) && protocol == IPPROTO_TCP;
}

static __always_inline bool parse_ipv4(const hook_ctx *ctx, struct packet *packet, void *at)
{
	void *end = packet_end(ctx);
	struct iphdr *ip = at;
	__u32 header_len, total_len;

	if ((void *)(ip + 1) > end || ip->version != 4)
		return false;
	header_len = ip->ihl * 4;
	total_len = bpf_ntohs(ip->tot_len);
	if (!total_len && is_big_tcp(ctx, ip->protocol))
		total_len = packet->len - packet->l3_offset;
	if (header_len < sizeof(*ip) || total_len < header_len || packet->l3_offset + total_len > packet->len)
		return false;
	packet->family = 4;
	packet->end = packet->l3_offset + total_len;
	packet->protocol = ip->protocol;
	packet->tos = ip->tos;
	packet->ttl = ip->ttl;
	*(any_u64 *)packet->source = join_words(ip->saddr, 0);
	*(any_u64 *)packet->destination = join_words(ip->daddr, 0);
	if (has_ports(ip->protocol) && total_len >= header_len + PORTS_LEN &&
	    !(ip->frag_off & bpf_htons(IPV4_OFFSET_BITS | IPV4_MORE_FRAGMENTS))) {
		__u32 *ports = at + header_len;

		if ((void *)(ports + 1) <= end)
			packet->ports = *ports;
	}
	return true;
}

static __always_inline bool parse_ipv6(const hook_ctx *ctx, struct packet *packet, void *at)
{
	void *end = packet_end(ctx), *transport = at + sizeof(struct ipv6hdr);
	__u32 payload_len;
	struct ipv6hdr *ip = at;
	__u8 protocol;

	if ((void *)(ip + 1) > end || ip->version != 6)
		return false;
	payload_len = bpf_ntohs(ip->payload_len);
	protocol = ip->nexthdr;
	if (!payload_len && gso_size(ctx) && protocol == IPPROTO_HOPOPTS) {
		struct jumbo_header *jumbo = transport;

		if ((void *)(jumbo + 1) <= end && !jumbo->len && jumbo->option == IPV6_OPTION_JUMBO) {
			protocol = jumbo->next;
			transport = jumbo + 1;
		}
	}
	if (!payload_len && is_big_tcp(ctx, protocol) && packet->len >= packet->l3_offset + sizeof(*ip))
		payload_len = packet->len - packet->l3_offset - sizeof(*ip);
	packet->end = packet->l3_offset + sizeof(*ip) + payload_len;
	if (packet->end > packet->len)
		return false;
	packet->family = 6;
	packet->protocol = protocol;
	packet->tos = ip->priority << 4 | ip->flow_lbl[0] >> 4;
	packet->ttl = ip->hop_limit;
	copy_address(packet->source, &ip->saddr);
	copy_address(packet->destination, &ip->daddr);
	/* Behind an extension header there are no ports for us: all fragments of a packet hash alike. */
	if (has_ports(protocol) && payload_len >= PORTS_LEN) {
		__u32 *ports = transport;

		if ((void *)(ports + 1) <= end)
			packet->ports = *ports;
	}
	return true;
}

/*
 * Parses the frame at `offset` that is `len` bytes long. False: too short for what it says it is.
 * A frame that carries no IP is parsed, with family 0.
 */
static __always_inline bool parse_frame(const hook_ctx *ctx, __u64 offset, __u32 len, struct packet *packet)
{
	struct ethhdr *eth = packet_at(ctx, offset);
	void *end = packet_end(ctx);
	struct vlan_tag *tag = (void *)(eth + 1);

	if ((void *)(eth + 1) > end || len < sizeof(*eth))
		return false;
	packet->len = len;
	packet->ttl = 64;
	packet->ethertype = ethertype_of(eth);
	copy_macs(&packet->macs, eth);
	packet->l3_offset = sizeof(*eth);
#pragma unroll
	for (int tags = 0; tags < INNER_TAGS; tags++) {
		if (!is_vlan(packet->ethertype))
			break;
		if ((void *)(tag + 1) > end || packet->l3_offset + VLAN_LEN > len)
			return false;
		packet->ethertype = tag->ethertype;
		packet->l3_offset += VLAN_LEN;
		tag++;
	}
	if (packet->ethertype == bpf_htons(ETH_P_IP))
		return parse_ipv4(ctx, packet, tag);
	if (packet->ethertype == bpf_htons(ETH_P_IPV6))
		return parse_ipv6(ctx, packet, tag);
	return true;
}

/*
 * Reads the frame at the start of the packet, after something else was written there; 0: it is cut short. A
 * global function: off the fast path.
 */
__noinline int parse_again(hook_ctx *ctx, struct packet *packet)
{
	if (!packet)
		return 0;
	__builtin_memset(packet, 0, sizeof(*packet));
	return parse_frame(ctx, 0, frame_len(ctx), packet);
}

/*
 * Parses the IP packet at `offset`, `len` bytes long, as if it were a frame with an Ethernet header that is
 * yet to be written. False: no IP packet, or too short for what it says it is.
 */
static __always_inline bool parse_ip_packet(const hook_ctx *ctx, __u64 offset, __u32 len,
					    struct packet *packet)
{
	__u8 *first = packet_at(ctx, offset);

	if ((void *)(first + 1) > packet_end(ctx))
		return false;
	packet->l3_offset = ETH_HLEN;
	packet->len = len + ETH_HLEN;
	if (*first >> 4 == 4) {
		packet->ethertype = bpf_htons(ETH_P_IP);
		return parse_ipv4(ctx, packet, first);
	}
	packet->ethertype = bpf_htons(ETH_P_IPV6);
	return parse_ipv6(ctx, packet, first);
}

#define TCP_DATA_OFFSET_AT 12

/*
 * Length of the longest frame that the frame at `offset` becomes on the wire: `len`, but of a GSO packet that
 * of a segment, or 0 where only who makes the segments knows. Ethernet headers that are not there count.
 */
static __always_inline __u32 longest_len(const hook_ctx *ctx, __u32 offset, const struct packet *packet,
					 __u32 len)
{
	__u32 size = gso_size(ctx), header_len = sizeof(struct ipv6hdr);
	__u8 *at;

	if (!size)
		return len;
	at = packet_at(ctx, offset + packet->l3_offset);
	if ((void *)(at + sizeof(struct iphdr)) > packet_end(ctx))
		return 0;
	if (packet->family == 4)
		header_len = (*at & 0xf) * 4;
	else if (at[offsetof(struct ipv6hdr, nexthdr)] != packet->protocol)
		return 0;
	if (packet->protocol == IPPROTO_UDP)
		return packet->l3_offset + header_len + sizeof(struct udphdr) + size;
	at = packet_at(ctx, offset + packet->l3_offset + header_len + TCP_DATA_OFFSET_AT);
	if (packet->protocol != IPPROTO_TCP || (void *)(at + 1) > packet_end(ctx))
		return 0;
	return packet->l3_offset + header_len + (*at >> 4) * 4 + size;
}

/* How many segments besides the first a packet becomes that longest_len says `longest` of. */
static __always_inline __u32 more_segments(const hook_ctx *ctx, const struct packet *packet, __u32 longest)
{
	__u32 size = gso_size(ctx), count = gso_segs(ctx);

	if (!size)
		return 0;
	/* Of a VM, headers may say that they are longer than the packet. */
	if (!count && packet->len + size > longest && longest)
		count = (packet->len - (longest - size) + size - 1) / size;
	return count ? count - 1 : 0;
}

/* Bytes of headers in each of them; 0 where only who makes them knows. */
static __always_inline __u32 header_of_each(const hook_ctx *ctx, __u32 longest)
{
	return longest ? longest - gso_size(ctx) : 0;
}

/* Hash of the inner flow: addresses, protocol and, where there are any, ports. One flow, one value. */
static __always_inline __u32 hash_flow(const struct packet *packet)
{
	const any_u64 *source = (const void *)packet->source,
		      *destination = (const void *)packet->destination;
	__u64 hash = (source[0] + ((__u64)packet->protocol << 40)) * 0x9E3779B97F4A7C15ULL +
		     destination[0] * 0xC2B2AE3D27D4EB4FULL + packet->ports * 0x165667B19E3779F9ULL;

	if (packet->family == 6)
		hash += source[1] * 0x27D4EB2F165667C5ULL + destination[1] * 0x85EBCA77C2B2AE63ULL;
	hash ^= hash >> 32;
	hash *= 0x9E3779B97F4A7C15ULL;
	return hash >> 32;
}

/* The same hash stirred once more: members of a group get flows whose source ports still differ. */
static __always_inline __u32 hash_group(__u32 hash)
{
	return hash * 0x9E3779B1U >> 16;
}

#endif
