/* SPDX-License-Identifier: GPL-2.0-only */
/* GENEVE on the receiving side: RFC 8926 §3.4, §3.5. */
#ifndef MPTM_DECAP_GENEVE_H
#define MPTM_DECAP_GENEVE_H

#include "inner.h"

#define GENEVE_VERSION_SHIFT   6
#define GENEVE_OPTION_LEN_MASK 0x3f /* in units of 4 bytes */
#define GENEVE_CONTROL	       0x80

#define GENEVE_OPTION_CRITICAL 0x80
#define GENEVE_OPTIONS_MAX     63 /* options that fit into 63 words, if each has no data */
#define GENEVE_VNI_SHIFT       8

struct geneve_header {
	__u8 version_option_len;
	__u8 flags;
	__be16 protocol;
	__be32 vni_reserved;
};

struct geneve_option {
	__be16 class;
	__u8 type;
	__u8 reserved_len; /* data, in units of 4 bytes: 5 bits */
};

/*
 * Walks the options at `offset`: REASON_NONE when none is critical and the last ends where the area ends.
 * A global function: the verifier goes through the loop once, not once per way to get there.
 */
__noinline int check_geneve_options(hook_ctx *ctx, __u32 offset, __u32 words)
{
	pull_packet(ctx, PULL_LEN_MAX);
	for (__u32 i = 0; i < GENEVE_OPTIONS_MAX && words; i++) {
		struct geneve_option *option = packet_at(ctx, offset);
		__u32 option_words;

		if ((void *)(option + 1) > packet_end(ctx))
			return REASON_GENEVE_TRUNCATED;
		option_words = 1 + (option->reserved_len & 0x1f);
		if (option_words > words)
			return REASON_GENEVE_OPTION_LENGTH;
		if (option->type & GENEVE_OPTION_CRITICAL)
			return REASON_GENEVE_CRITICAL;
		offset += option_words * 4;
		words -= option_words;
	}
	return REASON_NONE;
}

static __always_inline enum reason parse_geneve(hook_ctx *ctx, const struct outer *outer, struct inner *inner)
{
	struct geneve_header *geneve = packet_at(ctx, outer->payload_offset);
	__u32 option_words, header_len;

	if ((void *)(geneve + 1) > packet_end(ctx) || outer->payload_len < sizeof(*geneve))
		return REASON_GENEVE_TRUNCATED;
	if (geneve->version_option_len >> GENEVE_VERSION_SHIFT)
		return REASON_GENEVE_VERSION;
	identify(inner, PARSER_GENEVE, bpf_ntohl(geneve->vni_reserved) >> GENEVE_VNI_SHIFT);
	option_words = geneve->version_option_len & GENEVE_OPTION_LEN_MASK;
	header_len = sizeof(*geneve) + option_words * 4;
	if (header_len > outer->payload_len)
		return REASON_GENEVE_TRUNCATED;
	if (geneve->flags & GENEVE_CONTROL)
		return REASON_GENEVE_CONTROL;
	if (!set_payload_by_ethertype(inner, outer, geneve->protocol, outer->payload_offset + header_len))
		return REASON_GENEVE_PROTOCOL;
	if (option_words)
		return check_geneve_options(ctx, outer->payload_offset + sizeof(*geneve), option_words);
	return REASON_NONE;
}

#endif
