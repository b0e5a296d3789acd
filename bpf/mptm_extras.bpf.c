/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Programs that don't look at packets.
 *
 * mptm_redirect   sends every packet to the interface that redirect_ports names for its ingress interface
 * mptm_pass       passes every packet: on a veth's far end it enables NAPI, without which a redirect into the
 *                 veth delivers nothing
 * mptm_drop       drops every packet: at the idle devices that bring GRO (src/mptm/kernel/gro.py)
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/* ingress ifindex -> egress ifindex. Whoever attaches mptm_redirect writes, mptm_redirect reads. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, __u32);
} redirect_ports SEC(".maps");

SEC("xdp.frags") int mptm_redirect(struct xdp_md *ctx)
{
	return bpf_redirect_map(&redirect_ports, ctx->ingress_ifindex, XDP_PASS);
}

SEC("xdp.frags") int mptm_pass(struct xdp_md *ctx __attribute__((unused)))
{
	return XDP_PASS;
}

SEC("xdp.frags") int mptm_drop(struct xdp_md *ctx __attribute__((unused)))
{
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "GPL";
