/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The tables of the data plane. Each line says: key -> value, who writes, who reads.
 * Sizes here are defaults; max_entries may be raised before the object is loaded.
 */
#ifndef MPTM_MAPS_H
#define MPTM_MAPS_H

#include <stddef.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

#define MPTM_ENTRIES	       (1 << 18) /* per kernel hash */
#define MPTM_NEXT_HOP_SEGMENTS 1024
#define MPTM_TUNNELS	       (1 << 14)
#define MPTM_DROP_ENTRIES      (1 << 13)

#define TABLE_HASH(name, key_type, value_type)                                                               \
	struct {                                                                                             \
		__uint(type, BPF_MAP_TYPE_HASH);                                                             \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                                        \
		__uint(max_entries, MPTM_ENTRIES);                                                           \
		__type(key, key_type);                                                                       \
		__type(value, value_type);                                                                   \
	} name SEC(".maps")

/* A directory of ARRAYs of one element, which the control plane makes and writes through mmap. */
#define TABLE_SEGMENTS(name, entries, segment_type)                                                          \
	struct {                                                                                             \
		__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);                                                    \
		__uint(max_entries, entries);                                                                \
		__type(key, __u32);                                                                          \
		__array(                                                                                     \
		    values, struct {                                                                         \
			    __uint(type, BPF_MAP_TYPE_ARRAY);                                                \
			    __uint(map_flags, BPF_F_MMAPABLE);                                               \
			    __uint(max_entries, 1);                                                          \
			    __type(key, __u32);                                                              \
			    __type(value, segment_type);                                                     \
		    });                                                                                      \
	} name SEC(".maps")

/*
 * Slots that programs index themselves: to the kernel it is an ARRAY with one element of all of them, whose
 * look-up doesn't have to wait for the number of the slot. The control plane writes it through mmap. The
 * number of slots is a power of two.
 */
#define TABLE_SLOTS(name, count, value_type)                                                                 \
	struct name##_slots {                                                                                \
		value_type slots[count];                                                                     \
	};                                                                                                   \
	struct {                                                                                             \
		__uint(type, BPF_MAP_TYPE_ARRAY);                                                            \
		__uint(map_flags, BPF_F_MMAPABLE);                                                           \
		__uint(max_entries, 1);                                                                      \
		__type(key, __u32);                                                                          \
		__type(value, struct name##_slots);                                                          \
	} name SEC(".maps")

/*
 * A look-up in one table and no other. Left alone, clang merges the calls for two tables into one, and a call
 * that may be for either is not inlined by the verifier: 15 ns more.
 */
#define LOOKUP(table, key)                                                                                   \
	({                                                                                                   \
		void *entry = bpf_map_lookup_elem((table), (key));                                           \
		asm volatile("" : "+r"(entry) : "i"(__COUNTER__));                                           \
		entry;                                                                                       \
	})

/*
 * The slot of that number, in bounds, of a table of slots; NULL: never, but older verifiers want it asked.
 * The barriers keep the compiler from leaving out what only the verifier doesn't know, and from reckoning
 * with a pointer before it is checked.
 */
#define SLOT(table, number)                                                                                  \
	({                                                                                                   \
		__u32 zero = 0, within = (number);                                                           \
		struct table##_slots *all = LOOKUP(&(table), &zero);                                         \
		typeof(&all->slots[0]) found_slot = NULL;                                                    \
                                                                                                             \
		if (all) {                                                                                   \
			asm volatile("" : "+r"(all), "+r"(within));                                          \
			within &= sizeof(all->slots) / sizeof(all->slots[0]) - 1;                            \
			found_slot = &all->slots[within];                                                    \
		}                                                                                            \
		found_slot;                                                                                  \
	})

#define TABLE_ARRAY(name, map_type, entries, value_type)                                                     \
	struct {                                                                                             \
		__uint(type, map_type);                                                                      \
		__uint(max_entries, entries);                                                                \
		__type(key, __u32);                                                                          \
		__type(value, value_type);                                                                   \
	} name SEC(".maps")

/* network -> its gateway addresses. Control plane writes, answers to packets that are too big read. */
TABLE_HASH(gateways, __u32, struct gateway);
/* port slot -> when its next such answer may go, in ns of CLOCK_MONOTONIC. Data plane reads and writes. */
TABLE_ARRAY(answer_times, BPF_MAP_TYPE_PERCPU_ARRAY, MPTM_PORT_SLOTS, __u64);
/* counter slot -> next sequence number. Encapsulation reads and writes. */
TABLE_ARRAY(sequences, BPF_MAP_TYPE_ARRAY, MPTM_TUNNELS, __u32);
/* slot -> port. Control plane writes, both programs read. */
TABLE_SLOTS(ports, MPTM_PORT_SLOTS, struct port);
/* Of directories clang describes the segments by name only; this has it describe them in full. */
const struct table_layouts *const table_layouts SEC(".rodata.layouts") __attribute__((used)) = 0;

/* number of a table -> how to look into it. Control plane writes, forwarding reads. */
TABLE_SLOTS(table_heads, TABLE_HEADS, struct table_head);
/* network, inner source and destination -> next hop. Control plane writes, forwarding reads. */
TABLE_SEGMENTS(flows_v4, MPTM_SEGMENTS, struct flow_segment_v4);
TABLE_SEGMENTS(flows_v6, MPTM_SEGMENTS, struct flow_segment_v6);
/* network, inner address -> next hop. Control plane writes, forwarding and ARP/ND answers read. */
TABLE_SEGMENTS(hosts_v4, MPTM_SEGMENTS, struct host_segment_v4);
TABLE_SEGMENTS(hosts_v6, MPTM_SEGMENTS, struct host_segment_v6);
/* network, inner prefix -> next hop. Control plane writes, forwarding and ARP/ND answers read. */
TABLE_SEGMENTS(prefixes_v4, MPTM_SEGMENTS, struct prefix_segment_v4);
TABLE_SEGMENTS(prefixes_v6, MPTM_SEGMENTS, struct prefix_segment_v6);
/* what entries of these six point at -> next hop: the first ones, and in segments those after them. Control
 * plane writes, forwarding reads. */
TABLE_SLOTS(first_next_hops, MPTM_FIRST_NEXT_HOPS, struct next_hop_slot);
TABLE_SEGMENTS(next_hops, MPTM_NEXT_HOP_SEGMENTS, struct next_hop_segment);
/* slot -> template. Control plane writes, encapsulation reads. */
TABLE_SLOTS(tunnels, MPTM_TUNNELS, struct tunnel);
/* slot -> which tunnel gets which flows. Control plane writes, forwarding reads. */
TABLE_ARRAY(groups, BPF_MAP_TYPE_ARRAY, MPTM_GROUPS, struct group);
/* row -> parsers of its numbers. Control plane writes, decapsulation reads. */
TABLE_SLOTS(listeners, MPTM_LISTEN_ROWS, struct listener_row);
/* slot -> who may send what to us. Control plane writes, decapsulation reads. */
TABLE_SLOTS(terminations, MPTM_TERMINATION_SLOTS, struct termination);
/* our own underlay address -> 1. Control plane writes, refusals read. */
TABLE_HASH(locals, struct local_key, __u32);

/* ifindex -> the same ifindex as a redirect target. Control plane writes, every redirect reads. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, MPTM_PORT_SLOTS);
	__type(key, __u32);
	__type(value, __u32);
} tx_ports SEC(".maps");

/* 0 -> the veth that makes segments of GSO packets at TC. Control plane writes, encapsulation reads; the
 * kernel takes a veth out that goes. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} segmenter SEC(".maps");

/* 0 -> what packets at TC say that are passed to the stack. Data plane writes and reads. */
TABLE_ARRAY(pass_words, BPF_MAP_TYPE_ARRAY, 1, __u64);

/* counter slot -> packets and bytes. Data plane writes, control plane reads and resets. */
TABLE_ARRAY(tunnel_counters, BPF_MAP_TYPE_PERCPU_ARRAY, MPTM_TUNNELS, struct tunnel_counters);
/* port slot -> packets and bytes. Data plane writes, control plane reads and resets. */
TABLE_ARRAY(port_counters, BPF_MAP_TYPE_PERCPU_ARRAY, MPTM_PORT_SLOTS, struct port_counters);

/* reason, scope -> packets and bytes. Data plane writes (on a drop only), control plane reads and resets. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, MPTM_DROP_ENTRIES);
	__type(key, struct drop_key);
	__type(value, struct drop_value);
} drops SEC(".maps");

#endif
