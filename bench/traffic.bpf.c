/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Both ends of a benchmark chain.
 *
 * bench_generate   run on live frames (BPF_F_TEST_XDP_LIVE_FRAMES): writes the packet and sends it
 * bench_sink       attached at the far end in XDP: counts what arrives, keeps samples, drops
 * bench_sink_tc    the same at TC, for what arrives as an skb
 *
 * And between them, in one of the chains:
 *
 * bench_redirect_tc   sends every packet on, at TC: to an interface, or to the far end of a veth
 */
#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define FRAME_WORDS   8 /* of 8 bytes: the smallest Ethernet frame, and the start of a longer one */
#define CPUS	      64
#define FLOWS	      1024
#define SAMPLES	      256
#define SAMPLE_EVERY  256
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

/* The packet to send, and the destination port that the sink counts; written before a run. */
struct {
	struct frame frame;
	__be16 destination_port;
} settings SEC(".bss");

/* How many packets each CPU has sent, a cache line each. */
struct {
	__u64 sent;
	__u64 unused[7];
} senders[CPUS] SEC(".bss.senders");

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

struct target {
	__u32 ifindex;
	__u32 is_peer; /* received at the far end of that veth at once */
};

/* ingress ifindex -> where packets go on to. User space writes, bench_redirect_tc reads. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16);
	__type(key, __u32);
	__type(value, struct target);
} targets SEC(".maps");

/* Frames come back as the last round left them: the start is written each time. */
SEC("xdp") int bench_generate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 cpu = bpf_get_smp_processor_id() % CPUS;
	__u64 *words = data;

	if (data + sizeof(struct frame) > end)
		return XDP_ABORTED;
#pragma unroll
	for (int i = 0; i < FRAME_WORDS; i++)
		words[i] = settings.frame.words[i];
	*(__be16 *)(data + SOURCE_OFFSET) = bpf_htons(FIRST_PORT + senders[cpu].sent % FLOWS);
	*(__u64 *)(data + NUMBER_OFFSET) = senders[cpu].sent++;
	return XDP_TX;
}

/* Counts a frame; false: it isn't one of ours. */
static __always_inline bool count(const void *data, const void *end, __u32 len)
{
	struct received *counters;
	const __u64 *words = data;
	struct frame *sample;
	__u32 slot = 0;

	if (data + sizeof(struct frame) > end || *(__be16 *)(data + PORT_OFFSET) != settings.destination_port)
		return false;
	counters = bpf_map_lookup_elem(&received, &slot);
	if (!counters)
		return true;
	counters->bytes += len;
	if (counters->packets++ % SAMPLE_EVERY)
		return true;
	counters->last_ns = bpf_ktime_get_ns();
	if (!counters->first_ns)
		counters->first_ns = counters->last_ns;
	counters->packets_between = counters->packets - 1;
	slot = counters->packets / SAMPLE_EVERY % SAMPLES;
	sample = bpf_map_lookup_elem(&samples, &slot);
	if (!sample)
		return true;
#pragma unroll
	for (int i = 0; i < FRAME_WORDS; i++)
		sample->words[i] = words[i];
	return true;
}

SEC("xdp") int bench_sink(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	return count(data, end, end - data) ? XDP_DROP : XDP_PASS;
}

SEC("tc") int bench_sink_tc(struct __sk_buff *skb)
{
	if (skb->data + sizeof(struct frame) > skb->data_end && bpf_skb_pull_data(skb, sizeof(struct frame)))
		return TC_ACT_OK;
	return count((void *)(long)skb->data, (void *)(long)skb->data_end, skb->len) ? TC_ACT_SHOT
										     : TC_ACT_OK;
}

SEC("tc") int bench_redirect_tc(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct target *target = bpf_map_lookup_elem(&targets, &ifindex);

	if (!target)
		return TC_ACT_OK;
	return target->is_peer ? bpf_redirect_peer(target->ifindex, 0) : bpf_redirect(target->ifindex, 0);
}

char LICENSE[] SEC("license") = "GPL";
