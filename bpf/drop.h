/* SPDX-License-Identifier: GPL-2.0-only */
/* Verdicts that have a reason: one call counts the packet and names why it went no further. */
#ifndef MPTM_DROP_H
#define MPTM_DROP_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"
#include "trace.h"

/*
 * Counts one packet of `bytes` under `reason`. When the table is full, the reason is kept and the scope is
 * not. Not inlined: off the fast path, and called from many places.
 */
static __noinline void count_reason(__u32 reason, __u32 scope, __u32 id, __u64 bytes)
{
	struct drop_key key = {.reason = reason, .scope = scope, .id = id};
	struct drop_value first = {.packets = 1, .bytes = bytes};
	struct drop_value *value = bpf_map_lookup_elem(&drops, &key);

	trace(TRACE_REASON, reason, scope, id);
	if (!value) {
		if (bpf_map_update_elem(&drops, &key, &first, BPF_NOEXIST) == 0)
			return;
		/* Another CPU was first, or the table is full. */
		value = bpf_map_lookup_elem(&drops, &key);
		if (!value) {
			key.scope = SCOPE_OTHER;
			key.id = 0;
			value = bpf_map_lookup_elem(&drops, &key);
		}
		if (!value)
			return;
	}
	value->packets++;
	value->bytes += bytes;
}

static __always_inline int drop_on_port(enum reason reason, __u32 ifindex, __u64 bytes)
{
	count_reason(reason, SCOPE_PORT, ifindex, bytes);
	return VERDICT_DROP;
}

static __always_inline int drop_on_tunnel(enum reason reason, __u32 counter, __u64 bytes)
{
	count_reason(reason, SCOPE_TUNNEL, counter, bytes);
	return VERDICT_DROP;
}

/* Refused by us, left to the kernel as it came. */
static __always_inline int refuse_on_port(enum reason reason, __u32 ifindex, __u64 bytes)
{
	count_reason(reason, SCOPE_PORT, ifindex, bytes);
	return VERDICT_PASS;
}

#endif
