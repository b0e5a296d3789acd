/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Copies of a length that is known, in few and wide steps. Left to memcpy, what isn't declared as aligned is
 * copied byte by byte; and a CPU that reads as a word what was written in pieces waits until they have left
 * its store buffer, 4 ns each time. So what is read as a word is written as one.
 */
#ifndef MPTM_WORDS_H
#define MPTM_WORDS_H

#include <linux/if_ether.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

#define MACS_LEN (2 * ETH_ALEN)

typedef __u16 __attribute__((may_alias)) any_u16;
typedef __u32 __attribute__((may_alias)) any_u32;
typedef __u64 __attribute__((may_alias)) any_u64;

/* A MAC address, at even addresses where the stack is concerned. */
static __always_inline void copy_mac(void *to, const void *from)
{
	((any_u16 *)to)[0] = ((const any_u16 *)from)[0];
	((any_u16 *)to)[1] = ((const any_u16 *)from)[1];
	((any_u16 *)to)[2] = ((const any_u16 *)from)[2];
}

/* Both MAC addresses of a frame. */
static __always_inline void copy_macs(void *to, const void *from)
{
	((any_u32 *)to)[0] = ((const any_u32 *)from)[0];
	((any_u32 *)to)[1] = ((const any_u32 *)from)[1];
	((any_u32 *)to)[2] = ((const any_u32 *)from)[2];
}

/* An IPv6 address. */
static __always_inline void copy_address(void *to, const void *from)
{
	((any_u64 *)to)[0] = ((const any_u64 *)from)[0];
	((any_u64 *)to)[1] = ((const any_u64 *)from)[1];
}

/* The word that has `first` at its address and `second` behind it. */
static __always_inline __u64 join_words(__u32 first, __u32 second)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return (__u64)second << 32 | first;
#else
	return (__u64)first << 32 | second;
#endif
}

#endif
