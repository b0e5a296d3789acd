/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The steps of one packet, for `mptm trace`. Only the object mptm_trace.o records them: it is the same
 * source, built with MPTM_TRACE, and is never attached. Everywhere else trace() is nothing.
 */
#ifndef MPTM_TRACE_H
#define MPTM_TRACE_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

#ifdef MPTM_TRACE

#define TRACING 1

/* slot -> a step of the packet; slot 0's `step` counts them. Traced programs write, the control plane reads.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MPTM_TRACE_STEPS);
	__type(key, __u32);
	__type(value, struct trace_record);
} trace_records SEC(".maps");

static __noinline void record_step(__u32 step, __u32 first, __u32 second, __u32 third, const __be32 *address)
{
	__u32 at = 0;
	struct trace_record *record = bpf_map_lookup_elem(&trace_records, &at);

	if (!record)
		return;
	at = ++record->step;
	record = bpf_map_lookup_elem(&trace_records, &at);
	if (!record)
		return;
	record->step = step;
	record->values[0] = first;
	record->values[1] = second;
	record->values[2] = third;
	if (address)
		__builtin_memcpy(record->address, address, sizeof(record->address));
}

#define trace(step, first, second, third)	      record_step(step, first, second, third, NULL)
#define trace_address(step, first, second, third, at) record_step(step, first, second, third, (void *)(at))

#else

#define TRACING					      0
#define trace(step, first, second, third)	      ((void)0)
#define trace_address(step, first, second, third, at) ((void)0)

#endif

#endif
