/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Look-ups in the tables that the control plane lays out itself: flows, hosts and prefixes.
 *
 * A table is a directory of segments, ARRAYs of one element, whose look-ups the JIT inlines: no call. A hash
 * of the key says which segment an entry is in, and in which two of its buckets it may be.
 *
 * The writer (mptm.kernel.hashtable) changes a table while we read. What makes that safe:
 * - An entry is written first and its next hop last, in one stroke with the network. We read them the other
 * way round: the next hop, and after it the key.
 * - A removed entry keeps its key until its whole segment is exchanged, and what next_hops has in a slot
 * stays until every program that might have seen it has ended (an RCU grace period).
 * - Nothing is moved inside a segment: a new one takes its place in the directory.
 */
#ifndef MPTM_TABLE_H
#define MPTM_TABLE_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "words.h"

/* The last word of an entry: two fields that are written and read in one stroke. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NETWORK_OF(word)  ((__u32)(word))
#define NEXT_HOP_OF(word) ((__u32)((word) >> 32))
#else
#define NETWORK_OF(word)  ((__u32)((word) >> 32))
#define NEXT_HOP_OF(word) ((__u32)(word))
#endif

/* mptm.kernel.hashtable has the same. */
static __always_inline __u64 hash_words(const __u64 *words, __u32 count, __u32 network)
{
	__u64 hash = network * 0xC2B2AE3D27D4EB4FULL + words[0] * 0x9E3779B97F4A7C15ULL;

	if (count > 1)
		hash += words[1] * 0x165667B19E3779F9ULL;
	if (count > 2)
		hash += words[2] * 0x27D4EB2F165667C5ULL;
	if (count > 3)
		hash += words[3] * 0x85EBCA77C2B2AE63ULL;
	hash ^= hash >> 32;
	hash *= 0x9E3779B97F4A7C15ULL;
	return hash ^ hash >> 32;
}

/* 0: an entry has these words. Without a branch for each: the verifier would follow both ways of all. */
static __always_inline __u64 compare_words(const volatile __u64 *entry, const __u64 *words, __u32 count)
{
	__u64 difference = entry[0] ^ words[0];

	if (count > 1)
		difference |= entry[1] ^ words[1];
	if (count > 2)
		difference |= entry[2] ^ words[2];
	if (count > 3)
		difference |= entry[3] ^ words[3];
	return difference;
}

/* The next hop of an entry of `count` words and a network, looked for in a bucket of `slots`; 0: none. */
static __always_inline __u32 probe_bucket(const void *bucket, const __u64 *words, __u32 count, __u32 network,
					  __u32 slots)
{
#pragma unroll
	for (__u32 slot = 0; slot < slots; slot++) {
		const volatile __u64 *entry = bucket + slot * (count + 1) * sizeof(__u64);
		__u64 last, nothing;

		if (compare_words(entry, words, count))
			continue;
		last = entry[count];
		if (NETWORK_OF(last) != network || (__s32)NEXT_HOP_OF(last) <= 0)
			continue;
		/*
		 * Whether it has this next hop with this key shows only now. An address that depends on what
		 * was read keeps even a CPU that reorders loads from reading the key before.
		 */
		nothing = last;
		asm volatile("%0 &= 0" : "+r"(nothing));
		if (compare_words((const void *)entry + nothing, words, count))
			continue;
		return NEXT_HOP_OF(last);
	}
	return 0;
}

/* Which bucket of its segment a key may be in: bits of its hash that say nothing else. */
#define FIRST_BUCKET(hash, buckets)  ((hash) & ((buckets)-1))
#define SECOND_BUCKET(hash, buckets) ((hash) >> 52 & ((buckets)-1))
#define SEGMENT_OF(hash)	     ((hash) >> 12)

/* The next hop of a key of `count` words and a network; 0: there is none. A slot in next_hops. */
#define FIND(table, head, segment_type, words, count, network)                                               \
	({                                                                                                   \
		const __u32 buckets =                                                                        \
		    sizeof(((segment_type *)0)->buckets) / sizeof(((segment_type *)0)->buckets[0]);          \
		const __u32 slots = sizeof(((segment_type *)0)->buckets[0].entries) /                        \
				    sizeof(((segment_type *)0)->buckets[0].entries[0]);                      \
		__u64 hash = hash_words(words, count, network);                                              \
		__u32 at = SEGMENT_OF(hash) & (head)->segment_mask, zero = 0, found = 0;                     \
		void *directory = LOOKUP(&(table), &at);                                                     \
		segment_type *segment = directory ? LOOKUP(directory, &zero) : NULL;                         \
                                                                                                             \
		if (segment) {                                                                               \
			found = probe_bucket(&segment->buckets[FIRST_BUCKET(hash, buckets)], words, count,   \
					     network, slots);                                                \
			if (!found)                                                                          \
				found = probe_bucket(&segment->buckets[SECOND_BUCKET(hash, buckets)], words, \
						     count, network, slots);                                 \
		}                                                                                            \
		found;                                                                                       \
	})

static __always_inline const struct table_head *table_head(__u32 number)
{
	return SLOT(table_heads, number);
}

/* What an entry points at; NULL: nothing. */
static __always_inline struct next_hop *next_hop_at(__u32 number)
{
	__u32 at = number / MPTM_NEXT_HOPS, zero = 0;
	struct next_hop_segment *segment;
	void *directory;

	if (!number)
		return NULL;
	if (number < MPTM_FIRST_NEXT_HOPS) {
		struct next_hop_slot *slot = SLOT(first_next_hops, number);

		return slot ? &slot->next_hop : NULL;
	}
	directory = LOOKUP(&next_hops, &at);
	if (!directory)
		return NULL;
	segment = LOOKUP(directory, &zero);
	if (!segment)
		return NULL;
	asm volatile("" : "+r"(segment)); /* no reckoning with it before */
	return &segment->slots[number % MPTM_NEXT_HOPS].next_hop;
}

/* Four words, zero behind an IPv4 address. */
struct ip_address {
	__be32 words[4];
};

static __always_inline __u32 find_flow_v4(__u32 network, __be32 source, __be32 destination)
{
	const struct table_head *head = table_head(FLOWS_V4);
	__u64 words[1] = {join_words(source, destination)};

	return head ? FIND(flows_v4, head, struct flow_segment_v4, words, 1, network) : 0;
}

static __always_inline __u32 find_host_v4(__u32 network, __be32 address)
{
	const struct table_head *head = table_head(HOSTS_V4);
	__u64 words[1] = {join_words(address, 0)};

	return head ? FIND(hosts_v4, head, struct host_segment_v4, words, 1, network) : 0;
}

/* Global functions from here on: off the path of most packets, and verified once. */

__noinline int find_flow_v6(const struct ip_address *source, const struct ip_address *destination,
			    __u32 network)
{
	const struct table_head *head = table_head(FLOWS_V6);
	__u64 words[4];

	if (!source || !destination || !head)
		return 0;
	copy_address(words, source->words);
	copy_address(words + 2, destination->words);
	return FIND(flows_v6, head, struct flow_segment_v6, words, 4, network);
}

__noinline int find_host_v6(const struct ip_address *address, __u32 network)
{
	const struct table_head *head = table_head(HOSTS_V6);
	__u64 words[2];

	if (!address || !head)
		return 0;
	copy_address(words, address->words);
	return FIND(hosts_v6, head, struct host_segment_v6, words, 2, network);
}

/* Number of the lowest bit that is set: how many are below it. Without branches, for the verifier's sake. */
static __always_inline __u32 lowest_bit(__u64 bits)
{
	__u64 below = (bits & -bits) - 1;

	below -= below >> 1 & 0x5555555555555555ULL;
	below = (below & 0x3333333333333333ULL) + (below >> 2 & 0x3333333333333333ULL);
	below = (below + (below >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
	return below * 0x0101010101010101ULL >> 56;
}

/* The next hop of the prefix that is `shorter` bits shorter than the address. */
__noinline int find_prefix_of_v4(__be32 address, __u32 network, __u32 shorter)
{
	const struct table_head *head = table_head(PREFIXES_V4);
	__u64 words[1];

	if (!head || shorter > 32)
		return 0;
	words[0] =
	    join_words(bpf_htonl(bpf_ntohl(address) & (__u32)(0xffffffffULL << shorter)), 32 - shorter);
	return FIND(prefixes_v4, head, struct prefix_segment_v4, words, 1, network);
}

/* One probe for each length that the table has prefixes of, the longest first. */
__noinline int find_prefix_v4(__be32 address, __u32 network)
{
	const struct table_head *head = table_head(PREFIXES_V4);
	__u64 lengths;

	if (!head)
		return 0;
	lengths = head->lengths[0];
#pragma clang loop unroll(disable)
	for (__u32 probe = 0; probe <= 32 && lengths; probe++) {
		int found = find_prefix_of_v4(address, network, lowest_bit(lengths));

		lengths &= lengths - 1;
		if (found)
			return found;
	}
	return 0;
}

/* The next hop of the prefix that is `shorter` bits shorter than the address. */
__noinline int find_prefix_of_v6(const struct ip_address *address, __u32 network, __u32 shorter)
{
	const struct table_head *head = table_head(PREFIXES_V6);
	__u64 words[3];

	if (!address || !head || shorter > 128)
		return 0;
	copy_address(words, address->words);
	if (shorter >= 64)
		words[1] = 0;
	if (shorter >= 128)
		words[0] = 0;
	else if (shorter >= 64)
		words[0] = bpf_cpu_to_be64(bpf_be64_to_cpu(words[0]) & ~0ULL << (shorter & 63));
	else
		words[1] = bpf_cpu_to_be64(bpf_be64_to_cpu(words[1]) & ~0ULL << (shorter & 63));
	words[2] = join_words(128 - shorter, 0);
	return FIND(prefixes_v6, head, struct prefix_segment_v6, words, 3, network);
}

/* That of the longest prefix whose length `lengths` has: bit n for n + `shortest` bits less than an address.
 */
__noinline int find_prefix_among_v6(const struct ip_address *address, __u32 network, __u32 shortest,
				    __u64 lengths)
{
	if (!address)
		return 0;
#pragma clang loop unroll(disable)
	for (__u32 probe = 0; probe < 64 && lengths; probe++) {
		int found = find_prefix_of_v6(address, network, shortest + lowest_bit(lengths));

		lengths &= lengths - 1;
		if (found)
			return found;
	}
	return 0;
}

__noinline int find_prefix_v6(const struct ip_address *address, __u32 network)
{
	const struct table_head *head = table_head(PREFIXES_V6);
	int found = 0;

	if (!address || !head)
		return 0;
	if (head->lengths[0])
		found = find_prefix_among_v6(address, network, 0, head->lengths[0]);
	if (!found && head->lengths[1])
		found = find_prefix_among_v6(address, network, 64, head->lengths[1]);
	if (!found && head->lengths[2])
		found = find_prefix_among_v6(address, network, 128, head->lengths[2]);
	return found;
}

#endif
