/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Sums over packets (RFC 1071). A sum is 16 bits in the order of the wire, not complemented; -1: beyond the
 * packet.
 */
#ifndef MPTM_CHECKSUM_H
#define MPTM_CHECKSUM_H

#include "packet.h"

#define SUM_OFFSET_MASK 0x3fff /* packets of up to 16 KB */
#define SUM_CHUNK	512    /* bytes at most that one helper call adds up */
#define SUM_CHUNKS	(SUM_OFFSET_MASK / SUM_CHUNK + 1)

/* Adds up `size` bytes, a constant, when `len` has that bit. */
#define SUM_STEP(size)                                                                                       \
	do {                                                                                                 \
		if (len & (size)) {                                                                          \
			at = (void *)(long)ctx->data + (offset & SUM_OFFSET_MASK);                           \
			if (at + (size) > packet_end(ctx))                                                   \
				return -1;                                                                   \
			sum = bpf_csum_diff(NULL, 0, at, size, sum);                                         \
			offset += (size);                                                                    \
		}                                                                                            \
	} while (0)

/* The same for what is left below four bytes. */
#define SUM_TAIL(type, size, word)                                                                           \
	do {                                                                                                 \
		if (len & (size)) {                                                                          \
			type *value = (void *)(long)ctx->data + (offset & SUM_OFFSET_MASK);                  \
			if ((void *)(value + 1) > packet_end(ctx))                                           \
				return -1;                                                                   \
			sum = fold_checksum((__u64)sum + (word));                                            \
			offset += (size);                                                                    \
		}                                                                                            \
	} while (0)

/* Sum of `len` bytes at `offset`. A global function: the verifier sees the loop once. */
__noinline int sum_bytes(struct xdp_md *ctx, __u32 offset, __u32 len)
{
	__u32 sum = 0;
	void *at;

	for (__u32 i = 0; i < SUM_CHUNKS && len >= SUM_CHUNK; i++) {
		at = (void *)(long)ctx->data + (offset & SUM_OFFSET_MASK);
		if (at + SUM_CHUNK > packet_end(ctx))
			return -1;
		sum = bpf_csum_diff(NULL, 0, at, SUM_CHUNK, sum);
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

#endif
