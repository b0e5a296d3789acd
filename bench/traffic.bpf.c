/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Both ends of a benchmark chain.
 *
 * bench_generate   run on live frames (BPF_F_TEST_XDP_LIVE_FRAMES): writes the packet and sends it
 * bench_sink       attached at the far end: counts what arrives, keeps samples, drops
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define FRAME_WORDS   8 /* of 8 bytes: the smallest Ethernet frame */
#define FLOWS	      1024
#define SAMPLES	      256
#define SAMPLE_EVERY  1024
#define FIRST_PORT    1024
#define SOURCE_OFFSET (ETH_HLEN + sizeof(struct iphdr))
#define PORT_OFFSET   (SOURCE_OFFSET + 2)
#define NUMBER_OFFSET (SOURCE_OFFSET + sizeof(struct udphdr))

struct frame {
	__u64 words[FRAME_WORDS];
};

struct received {
	__u64 packets;
	__u64 bytes;
	/* Of samples: the time between them is free of what starting and ending a run takes. */
	__u64 first_ns;
	__u64 last_ns;
	__u64 packets_between;
};

/* The packet to send, written before a run; and how many were sent, by one CPU at a time. */
struct {
	struct frame frame;
	__u64 sent;
	__be16 destination_port; /* what the sink counts */
} settings SEC(".bss");

/* 0 -> what arrived. User space resets before a run, the sink writes, user space reads. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct received);
} received SEC(".maps");

/* slot -> one of the frames that arrived. The sink writes, user space reads. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SAMPLES);
	__type(key, __u32);
	__type(value, struct frame);
} samples SEC(".maps");

/* Frames come back as the last round left them: every byte is written each time. */
SEC("xdp") int bench_generate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 *words = data;

	if (data + sizeof(struct frame) > end)
		return XDP_ABORTED;
#pragma unroll
	for (int i = 0; i < FRAME_WORDS; i++)
		words[i] = settings.frame.words[i];
	*(__be16 *)(data + SOURCE_OFFSET) = bpf_htons(FIRST_PORT + settings.sent % FLOWS);
	*(__u64 *)(data + NUMBER_OFFSET) = settings.sent++;
	return XDP_TX;
}

SEC("xdp") int bench_sink(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct received *counters;
	const __u64 *words = data;
	struct frame *sample;
	__u32 slot = 0;

	if (data + sizeof(struct frame) > end || *(__be16 *)(data + PORT_OFFSET) != settings.destination_port)
		return XDP_PASS;
	counters = bpf_map_lookup_elem(&received, &slot);
	if (!counters)
		return XDP_ABORTED;
	counters->bytes += end - data;
	if (counters->packets++ % SAMPLE_EVERY)
		return XDP_DROP;
	counters->last_ns = bpf_ktime_get_ns();
	if (!counters->first_ns)
		counters->first_ns = counters->last_ns;
	counters->packets_between = counters->packets - 1;
	slot = counters->packets / SAMPLE_EVERY % SAMPLES;
	sample = bpf_map_lookup_elem(&samples, &slot);
	if (!sample)
		return XDP_ABORTED;
#pragma unroll
	for (int i = 0; i < FRAME_WORDS; i++)
		sample->words[i] = words[i];
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "GPL";
