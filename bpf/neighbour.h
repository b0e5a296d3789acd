/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Answers to "who has this address": ARP (RFC 826) and IPv6 neighbour solicitations (RFC 4861), for the
 * addresses that a network knows. The answer is built in place of the question.
 */
#ifndef MPTM_NEIGHBOUR_H
#define MPTM_NEIGHBOUR_H

#include <linux/icmpv6.h>

#include "checksum.h"
#include "lookup.h"
#include "packet.h"

#define ARP_ETHERNET	     1
#define ARP_REQUEST	     1
#define ARP_REPLY	     2
#define ND_SOLICIT	     135
#define ND_ADVERT	     136
#define ND_HOP_LIMIT	     255
#define ND_SOURCE_LINK_LAYER 1
#define ND_TARGET_LINK_LAYER 2
#define ND_OPTIONS_MAX                                                                                       \
	4 /* a solicitation has one, or a nonce instead (RFC 7527); more are the kernel's to read */
#define SOLICITED_NODE_FIRST 0xff020000
#define ND_SOLICITED	     0x40000000
#define ND_OVERRIDE	     0x20000000
#define IPV6_MULTICAST	     0xff

struct arp_packet {
	__be16 hardware_type;
	__be16 protocol_type;
	__u8 hardware_len;
	__u8 protocol_len;
	__be16 operation;
	__u8 sender_mac[ETH_ALEN];
	__u8 sender_ip[4];
	__u8 target_mac[ETH_ALEN];
	__u8 target_ip[4];
} __attribute__((packed));

struct nd_solicit {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 reserved;
	__be32 target[4];
};

struct nd_advert {
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 flags;
	__be32 target[4];
	__u8 option_type;
	__u8 option_len; /* in units of 8 bytes */
	__u8 mac[ETH_ALEN];
};

/* What is asked, and by whom. */
struct question {
	__u8 family;   /* 4: ARP, 6: neighbour solicitation */
	__u8 is_own;   /* the target is a gateway address, which is ours; else we answer for somebody else */
	__u8 is_probe; /* the asker looks for a duplicate of its own address (RFC 5227, RFC 4862) */
	__u8 asker_mac[ETH_ALEN];
	__be32 asker[4];
	__be32 target[4];
	__u8 answer_mac[ETH_ALEN]; /* filled in by who knows the answer */
};

static __always_inline bool parse_arp(const hook_ctx *ctx, __u64 offset, struct question *question)
{
	struct arp_packet *arp = packet_at(ctx, offset);

	if ((void *)(arp + 1) > packet_end(ctx))
		return false;
	if (arp->hardware_type != bpf_htons(ARP_ETHERNET) || arp->protocol_type != bpf_htons(ETH_P_IP) ||
	    arp->hardware_len != ETH_ALEN || arp->protocol_len != 4 ||
	    arp->operation != bpf_htons(ARP_REQUEST))
		return false;
	__builtin_memset(question, 0, sizeof(*question));
	question->family = 4;
	__builtin_memcpy(question->asker_mac, arp->sender_mac, ETH_ALEN);
	__builtin_memcpy(question->asker, arp->sender_ip, 4);
	__builtin_memcpy(question->target, arp->target_ip, 4);
	question->is_probe = question->asker[0] == 0;
	return question->asker[0] != question->target[0]; /* an announcement asks nothing */
}

/* To the solicited-node group of an address: ff02::1:ffXX:XXXX (RFC 4291 §2.7.1). */
static __always_inline bool is_solicited_node(const struct in6_addr *address)
{
	const __be32 *words = (const void *)address;

	return words[0] == bpf_htonl(SOLICITED_NODE_FIRST) && !words[1] && words[2] == bpf_htonl(1) &&
	       bpf_ntohl(words[3]) >> 24 == 0xff;
}

/*
 * Whether the neighbour solicitation whose IPv6 header is at `offset` is one that RFC 4861 §7.1.1 lets us
 * answer. A global function: the verifier goes through its options once.
 */
__noinline int check_nd_solicit(hook_ctx *ctx, __u32 offset)
{
	struct ipv6hdr *ip = packet_at(ctx, offset);
	__u32 at = offset + sizeof(*ip) + sizeof(struct nd_solicit), message_len, end;
	bool is_probe, has_source_mac = false;
	const __u32 *addresses;
	__u64 sum;
	int message;

	if ((void *)(ip + 1) > packet_end(ctx) || ip->hop_limit != ND_HOP_LIMIT)
		return 0;
	addresses = (const void *)&ip->saddr;
	message_len = bpf_ntohs(ip->payload_len);
	sum = ip->payload_len + (__u64)bpf_htons(IPPROTO_ICMPV6);
#pragma unroll
	for (int i = 0; i < 8; i++)
		sum += addresses[i];
	is_probe = !(addresses[0] | addresses[1] | addresses[2] | addresses[3]);
	if (is_probe && !is_solicited_node(&ip->daddr))
		return 0;
	end = offset + sizeof(*ip) + message_len;
	if (at > end)
		return 0;
	message = sum_bytes(ctx, offset + sizeof(*ip), message_len);
	if (message < 0 || fold_checksum(sum + (__u32)message) != 0xffff)
		return 0;
	for (int i = 0; i < ND_OPTIONS_MAX && at < end; i++) {
		struct {
			__u8 type;
			__u8 len; /* in units of 8 bytes */
		} *option = packet_at(ctx, at);

		if (at > OFFSET_MAX || (void *)(option + 1) > packet_end(ctx) || !option->len)
			return 0;
		if (option->type == ND_SOURCE_LINK_LAYER)
			has_source_mac = true;
		at += option->len * 8;
	}
	return at == end && !(is_probe && has_source_mac);
}

static __always_inline bool parse_nd_solicit(hook_ctx *ctx, __u64 offset, const struct packet *packet,
					     struct question *question)
{
	struct nd_solicit *solicit = packet_at(ctx, offset + sizeof(struct ipv6hdr));

	if ((void *)(solicit + 1) > packet_end(ctx))
		return false;
	if (solicit->type != ND_SOLICIT || solicit->code != 0 || *(__u8 *)solicit->target == IPV6_MULTICAST)
		return false;
	__builtin_memset(question, 0, sizeof(*question));
	question->family = 6;
	__builtin_memcpy(question->asker_mac, packet->macs.source, ETH_ALEN);
	__builtin_memcpy(question->asker, packet->source, sizeof(question->asker));
	__builtin_memcpy(question->target, solicit->target, sizeof(question->target));
	question->is_probe =
	    !(question->asker[0] | question->asker[1] | question->asker[2] | question->asker[3]);
	return check_nd_solicit(ctx, offset);
}

/* What the frame at `offset` asks of its neighbours, read into *question; NULL: nothing. */
static __always_inline struct question *parse_question(hook_ctx *ctx, __u64 offset,
						       const struct packet *packet, struct question *question)
{
	offset += packet->l3_offset;
	if (packet->ethertype == bpf_htons(ETH_P_ARP))
		return packet->l3_offset + sizeof(struct arp_packet) <= packet->len &&
			       parse_arp(ctx, offset, question)
			   ? question
			   : NULL;
	if (packet->family == 6 && packet->protocol == IPPROTO_ICMPV6)
		return parse_nd_solicit(ctx, offset, packet, question) ? question : NULL;
	return NULL;
}

/* The next hop of the address asked for. A probe is answered only where a host is known by that very address.
 */
static __always_inline struct next_hop *lookup_target(__u32 network, __u8 lookups,
						      const struct question *question)
{
	return lookup_address(network, question->is_probe ? 0 : lookups, question->family, question->target);
}

static __always_inline int write_arp_reply(hook_ctx *ctx, __u64 offset, const struct question *question)
{
	struct arp_packet *arp = packet_at(ctx, offset);

	if ((void *)(arp + 1) > packet_end(ctx))
		return 0;
	arp->operation = bpf_htons(ARP_REPLY);
	__builtin_memcpy(arp->sender_mac, question->answer_mac, ETH_ALEN);
	__builtin_memcpy(arp->sender_ip, question->target, 4);
	__builtin_memcpy(arp->target_mac, question->asker_mac, ETH_ALEN);
	__builtin_memcpy(arp->target_ip, question->asker, 4);
	return 1;
}

static __always_inline int write_nd_advert(hook_ctx *ctx, __u64 offset, const struct question *question,
					   __u32 len)
{
	__u32 new_len = offset + sizeof(struct ipv6hdr) + sizeof(struct nd_advert);
	/* RFC 4861 §7.2.8: who answers for others doesn't override what they say themselves. */
	struct nd_advert advert = {.type = ND_ADVERT,
				   .flags = bpf_htonl((question->is_own ? ND_OVERRIDE : 0) |
						      (question->is_probe ? 0 : ND_SOLICITED)),
				   .option_type = ND_TARGET_LINK_LAYER,
				   .option_len = 1};
	__be32 asker[4] = {bpf_htonl(0xff020000), 0, 0, bpf_htonl(1)}; /* all nodes */
	const __u32 *words = (const void *)&advert;
	__u64 sum = bpf_htonl(sizeof(advert)) + (__u64)bpf_htonl(IPPROTO_ICMPV6);
	struct ipv6hdr *ip;

	if (!adjust_tail(ctx, (int)new_len - (int)len))
		return 0;
	ip = packet_at(ctx, offset);
	if ((void *)(ip + 1) + sizeof(advert) > packet_end(ctx))
		return SPOILED;
	if (!question->is_probe)
		__builtin_memcpy(asker, question->asker, sizeof(asker));
	__builtin_memcpy(advert.target, question->target, sizeof(advert.target));
	__builtin_memcpy(advert.mac, question->answer_mac, ETH_ALEN);
#pragma unroll
	for (__u32 i = 0; i < 4; i++)
		sum += (__u64)asker[i] + question->target[i];
#pragma unroll
	for (__u32 i = 0; i < sizeof(advert) / sizeof(*words); i++)
		sum += words[i];
	advert.checksum = ~fold_checksum(sum);
	*(__be32 *)ip = bpf_htonl(6U << 28);
	ip->payload_len = bpf_htons(sizeof(advert));
	ip->nexthdr = IPPROTO_ICMPV6;
	ip->hop_limit = ND_HOP_LIMIT;
	__builtin_memcpy(&ip->saddr, question->target, sizeof(ip->saddr));
	__builtin_memcpy(&ip->daddr, asker, sizeof(ip->daddr));
	__builtin_memcpy(ip + 1, &advert, sizeof(advert));
	return 1;
}

/*
 * Turns the question at the start of the packet into its answer, from question->answer_mac; VLAN tags stay.
 * 0: could not be answered; the packet is as it came. SPOILED: it can only be dropped. A global function, so
 * the verifier sees it once.
 */
__noinline int write_answer(hook_ctx *ctx, const struct packet *packet, const struct question *question)
{
	struct ethhdr *eth;
	int written;

	if (!packet || !question)
		return 0;
	written = question->family == 4 ? write_arp_reply(ctx, packet->l3_offset, question)
					: write_nd_advert(ctx, packet->l3_offset, question, packet->len);
	if (written != 1)
		return written;
	eth = packet_start(ctx);
	if ((void *)(eth + 1) > packet_end(ctx))
		return SPOILED;
	__builtin_memcpy(eth->h_dest, packet->macs.source, ETH_ALEN);
	if (question->family == 6 && question->is_probe) {
		/* To all nodes, 33:33:00:00:00:01 (RFC 2464 §7): the asker has no address yet. */
		*(__be16 *)eth->h_dest = bpf_htons(0x3333);
		*(__be32 *)(eth->h_dest + 2) = bpf_htonl(1);
	}
	__builtin_memcpy(eth->h_source, question->answer_mac, ETH_ALEN);
	return 1;
}

#endif
