/* SPDX-License-Identifier: GPL-2.0-only */
/* Answers to pings of a network's gateway address: RFC 792, RFC 4443 §4. */
#ifndef MPTM_ICMP_H
#define MPTM_ICMP_H

#include "maps.h"
#include "packet.h"

#define ICMP_ECHO_REPLY	    0
#define ICMP_ECHO_REQUEST   8
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY   129
#define ICMP_ECHO_LEN	    8 /* of the header, ICMPv6's too */

struct icmp_type {
	__u8 type;
	__u8 code;
	__be16 checksum;
};

/* Another type in an ICMP header; its checksum follows (RFC 1624). */
static __always_inline void write_icmp_type(struct icmp_type *icmp, __u8 type)
{
	icmp->checksum =
	    ~fold_checksum((__u64)(__u16)~icmp->checksum + (__u16)~bpf_htons((__u16)icmp->type << 8) +
			   bpf_htons((__u16)type << 8));
	icmp->type = type;
}

/*
 * Turns the echo request at the start of the packet into its reply, from the port of `port_slot`. 0: it is
 * no echo request, or a fragment of one; the packet is as it came. Exchanged addresses leave a sum as it is,
 * so only type and TTL are folded in. A global function: the verifier goes through it once.
 */
__noinline int write_echo_reply(hook_ctx *ctx, const struct packet *packet, __u32 port_slot)
{
	struct port *port = SLOT(ports, port_slot);
	struct ethhdr *eth = packet_start(ctx);
	struct icmp_type *icmp;
	void *at;

	if (!packet || !port || (void *)(eth + 1) > packet_end(ctx) ||
	    !is_single_host(packet->family, packet->source))
		return 0;
	at = packet_at(ctx, packet->l3_offset);
	if (packet->family == 4 && packet->protocol == IPPROTO_ICMP) {
		struct iphdr *ip = at;

		icmp = (void *)(ip + 1);
		if ((void *)(icmp + 1) > packet_end(ctx) || ip->ihl != 5 ||
		    packet->end < packet->l3_offset + sizeof(*ip) + ICMP_ECHO_LEN ||
		    icmp->type != ICMP_ECHO_REQUEST || icmp->code ||
		    ip->frag_off & bpf_htons(IPV4_OFFSET_BITS | IPV4_MORE_FRAGMENTS))
			return 0;
		write_icmp_type(icmp, ICMP_ECHO_REPLY);
		ip->check = ~fold_checksum((__u64)(__u16)~ip->check + (__u16)~bpf_htons((__u16)ip->ttl << 8) +
					   bpf_htons(ANSWER_TTL << 8));
		ip->ttl = ANSWER_TTL;
		ip->saddr = packet->destination[0];
		ip->daddr = packet->source[0];
	} else if (packet->family == 6 && packet->protocol == IPPROTO_ICMPV6) {
		struct ipv6hdr *ip = at;

		icmp = (void *)(ip + 1);
		if ((void *)(icmp + 1) > packet_end(ctx) || icmp->type != ICMPV6_ECHO_REQUEST || icmp->code ||
		    packet->end < packet->l3_offset + sizeof(*ip) + ICMP_ECHO_LEN)
			return 0;
		write_icmp_type(icmp, ICMPV6_ECHO_REPLY);
		ip->hop_limit = ANSWER_TTL;
		__builtin_memcpy(&ip->saddr, packet->destination, sizeof(ip->saddr));
		__builtin_memcpy(&ip->daddr, packet->source, sizeof(ip->daddr));
	} else {
		return 0;
	}
	__builtin_memcpy(eth->h_dest, packet->macs.source, ETH_ALEN);
	__builtin_memcpy(eth->h_source, port->mac, ETH_ALEN);
	return 1;
}

#endif
