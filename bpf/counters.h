/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Counting packets that go on: per CPU, so plain additions. A GSO packet counts as its segments, each with
 * all headers (more_segments).
 */
#ifndef MPTM_COUNTERS_H
#define MPTM_COUNTERS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

static __always_inline void count_port_rx(__u32 slot, __u32 packets, __u64 bytes)
{
	struct port_counters *counters = bpf_map_lookup_elem(&port_counters, &slot);

	if (counters) {
		counters->rx_packets += packets;
		counters->rx_bytes += bytes;
	}
}

static __always_inline void count_port_tx(__u32 slot, __u32 packets, __u64 bytes)
{
	struct port_counters *counters = bpf_map_lookup_elem(&port_counters, &slot);

	if (counters) {
		counters->tx_packets += packets;
		counters->tx_bytes += bytes;
	}
}

static __always_inline void count_encap(__u32 slot, __u32 packets, __u64 inner_bytes)
{
	struct tunnel_counters *counters = bpf_map_lookup_elem(&tunnel_counters, &slot);

	if (counters) {
		counters->encap_packets += packets;
		counters->encap_bytes += inner_bytes;
	}
}

static __always_inline void count_decap(__u32 slot, __u32 packets, __u64 inner_bytes)
{
	struct tunnel_counters *counters = bpf_map_lookup_elem(&tunnel_counters, &slot);

	if (counters) {
		counters->decap_packets += packets;
		counters->decap_bytes += inner_bytes;
	}
}

#endif
