/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * L2TPv3 data messages on the receiving side: RFC 3931 §4.1. How long cookie and L2-specific sublayer are
 * isn't in the packet: the termination says, once the session is known.
 */
#ifndef MPTM_DECAP_L2TP_H
#define MPTM_DECAP_L2TP_H

#include "inner.h"

#define L2TP_UDP_DATA	    0x0003 /* T = 0, version 3 */
#define L2TP_UDP_FLAGS_MASK 0x800f

/* Over IP the session id comes first; over UDP a word with flags and version precedes it. */
static __always_inline enum reason parse_l2tp(const hook_ctx *ctx, const struct outer *outer,
					      struct inner *inner, bool over_udp)
{
	__be32 *words = packet_at(ctx, outer->payload_offset);
	__u32 header_len = over_udp ? 8 : 4;
	__be32 session;

	if ((void *)(words + (over_udp ? 2 : 1)) > packet_end(ctx) || outer->payload_len < header_len)
		return REASON_L2TP_TRUNCATED;
	if (over_udp && (bpf_ntohl(words[0]) >> 16 & L2TP_UDP_FLAGS_MASK) != L2TP_UDP_DATA)
		return REFUSED_CONTROL;
	session = words[over_udp ? 1 : 0];
	if (!session)
		return REFUSED_CONTROL; /* §4.1.1.2: session 0 is the control connection */
	identify(inner, over_udp ? PARSER_L2TP_UDP : PARSER_L2TP_IP, bpf_ntohl(session));
	set_payload(inner, outer, INNER_ETHERNET, outer->payload_offset + header_len);
	return REASON_NONE;
}

/* Checks the cookie and moves behind it and the sublayer. */
static __always_inline enum reason parse_l2tp_cookie(const hook_ctx *ctx, const struct termination *accepted,
						     struct inner *inner)
{
	__be32 *cookie = packet_at(ctx, inner->payload.offset);
	const __be32 *wanted = (const void *)accepted->cookie;

	if (inner->payload.offset + accepted->cookie_len > inner->payload.end)
		return REASON_L2TP_TRUNCATED;
	if (accepted->cookie_len) {
		if ((void *)(cookie + 1) > packet_end(ctx))
			return REASON_L2TP_TRUNCATED;
		if (cookie[0] != wanted[0])
			return REASON_L2TP_COOKIE;
	}
	if (accepted->cookie_len == 8) {
		if ((void *)(cookie + 2) > packet_end(ctx))
			return REASON_L2TP_TRUNCATED;
		if (cookie[1] != wanted[1])
			return REASON_L2TP_COOKIE;
	}
	inner->payload.offset += accepted->cookie_len + accepted->sublayer_len;
	return inner->payload.offset > inner->payload.end ? REASON_L2TP_TRUNCATED : REASON_NONE;
}

#endif
