/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The contract between the data plane and the control plane: every struct and number that both read.
 *
 * This is the only place where a layout stands. Python reads it from the BTF of the compiled object
 * (mptm.kernel.btf), so a field that is renamed here is renamed there, or its test fails.
 * Byte order: __be16/__be32 are network order, everything else is the host's.
 */
#ifndef MPTM_ABI_H
#define MPTM_ABI_H

#define MPTM_OUTER_SIZE		128 /* capacity of an outer header, Ethernet included */
#define MPTM_PATCHES		8   /* fields that one template may have patched per packet */
#define MPTM_PORT_SLOTS		4096
#define MPTM_PORT_PROBES	8 /* how far from its home slot a port may stand */
#define MPTM_LISTEN_ROW		8 /* numbers in a row of listeners */
#define MPTM_LISTEN_ROWS	(4 * 65536 / MPTM_LISTEN_ROW) /* the first 65536 numbers stay unused */
#define MPTM_TERMINATION_SLOTS	(1 << 16)
#define MPTM_TERMINATION_PROBES 4
#define MPTM_TRACE_STEPS	64
#define MPTM_GROUPS		256
#define MPTM_GROUP_SLOTS	4096 /* a power of two */

/* ---- what a packet is steered by ------------------------------------------------------------------ */

enum port_role {
	PORT_ACCESS = 1, /* a workload is behind it: its packets are looked up and encapsulated */
	PORT_UPLINK = 2, /* the underlay is behind it: tunnel packets for us are decapsulated */
};

/* Which tables a network uses: a lookup that can't hit is not made. */
enum lookup_flag {
	LOOKUP_FLOWS = 1,
	LOOKUP_PREFIXES = 2,
};

enum port_flag {
	PORT_HAS_PEER = 1, /* a veth whose other end is in another namespace: TC hands packets over to it */
};

/* ports: one slot per attached interface, found by linear probing from ifindex % MPTM_PORT_SLOTS. */
struct port {
	__u32 ifindex; /* 0: the slot is free */
	__u32 network; /* access ports: the network of the workload */
	__u32 mtu;     /* bytes of an IP packet that fit */
	__u8 role;     /* enum port_role */
	__u8 lookups;  /* enum lookup_flag, of the port's network */
	__u8 mac[6];   /* the gateway MAC: what ARP and neighbour solicitations are answered with */
	__u8 flags;    /* enum port_flag */
	__u8 reserved[11];
};

enum next_hop_kind {
	NEXT_HOP_NONE = 0,
	NEXT_HOP_PORT = 1,   /* id: ifindex of a local access port */
	NEXT_HOP_TUNNEL = 2, /* id: slot in tunnels */
	NEXT_HOP_PASS = 3,   /* to the kernel's stack */
	NEXT_HOP_DROP = 4,
	NEXT_HOP_GROUP = 5,   /* id: slot in groups */
	NEXT_HOP_GATEWAY = 6, /* the network's gateway address: neighbours and pings are answered */
};

enum next_hop_flag {
	NEXT_HOP_MAC = 1,   /* mac is the inner destination MAC to write, and what ARP is answered with */
	NEXT_HOP_RELAY = 2, /* packets that came out of a tunnel may go here, too */
};

/* Value of flows, hosts and prefixes. */
struct next_hop {
	__u8 kind;  /* enum next_hop_kind */
	__u8 flags; /* enum next_hop_flag */
	__u8 mac[6];
	__u32 id;
};

/*
 * Keys of flows, hosts and prefixes. The words that are compared first stand first, the network last: behind
 * it an entry has its next hop, so that the two are written in one stroke.
 */
struct flow_key_v4 {
	__be32 source;
	__be32 destination;
	__u32 network;
};

struct flow_key_v6 {
	__u8 source[16];
	__u8 destination[16];
	__u32 network;
};

struct host_key_v4 {
	__be32 address;
	__u32 reserved;
	__u32 network;
};

struct host_key_v6 {
	__u8 address[16];
	__u32 network;
};

/* The bits of the address behind the prefix are zero. */
struct prefix_key_v4 {
	__be32 address;
	__u32 prefix_len;
	__u32 network;
};

struct prefix_key_v6 {
	__u8 address[16];
	__u32 prefix_len;
	__u32 reserved;
	__u32 network;
};

/* ---- tables that the control plane lays out itself (table.h reads, mptm.kernel.hashtable writes) ----- */

#define MPTM_SEGMENTS	   256 /* that a table may grow to; a power of two */
#define MPTM_SEGMENT_BYTES (1 << 18)
#define MPTM_BUCKET_V4	   64 /* bytes: a cache line */
#define MPTM_BUCKET_V6	   128
#define MPTM_NEXT_HOPS	   4096 /* next hops of a segment */

#define MPTM_FIRST_NEXT_HOPS (1 << 16) /* next hops that are found without a segment */

/* In place of a next hop: nobody ever was here; somebody was, whom a program may still be looking at. */
#define ENTRY_FREE    0
#define ENTRY_REMOVED 0x80000000U

/* An entry is there when next_hop, a slot in next_hops, is more than 0 as a signed number. */
#define TABLE_LAYOUT(kind, version)                                                                          \
	struct kind##_entry_##version {                                                                      \
		struct kind##_key_##version key;                                                             \
		__u32 next_hop;                                                                              \
	} __attribute__((aligned(8)));                                                                       \
	struct kind##_bucket_##version {                                                                     \
		struct kind##_entry_##version                                                                \
		    entries[MPTM_BUCKET_##version / sizeof(struct kind##_entry_##version)];                  \
	} __attribute__((aligned(MPTM_BUCKET_##version)));                                                   \
	struct kind##_segment_##version {                                                                    \
		struct kind##_bucket_##version buckets[MPTM_SEGMENT_BYTES / MPTM_BUCKET_##version];          \
	}

#define MPTM_BUCKET_v4 MPTM_BUCKET_V4
#define MPTM_BUCKET_v6 MPTM_BUCKET_V6

TABLE_LAYOUT(flow, v4);
TABLE_LAYOUT(flow, v6);
TABLE_LAYOUT(host, v4);
TABLE_LAYOUT(host, v6);
TABLE_LAYOUT(prefix, v4);
TABLE_LAYOUT(prefix, v6);

/*
 * first_next_hops and next_hops: what entries point at, the same for all that lead to the same place. Never
 * changed in use. Number 0 stays empty.
 */
struct next_hop_slot {
	struct next_hop next_hop;
	__u32 is_used;
};

struct next_hop_segment {
	struct next_hop_slot slots[MPTM_NEXT_HOPS];
};

/* What a segment of each table is. Nothing else says so in an object's type information. */
struct table_layouts {
	struct flow_segment_v4 flows_v4;
	struct flow_segment_v6 flows_v6;
	struct host_segment_v4 hosts_v4;
	struct host_segment_v6 hosts_v6;
	struct prefix_segment_v4 prefixes_v4;
	struct prefix_segment_v6 prefixes_v6;
	struct next_hop_segment next_hops;
};

/* Which table a head is of. */
enum table_number {
	FLOWS_V4 = 0,
	FLOWS_V6 = 1,
	HOSTS_V4 = 2,
	HOSTS_V6 = 3,
	PREFIXES_V4 = 4,
	PREFIXES_V6 = 5,
	TABLE_HEADS = 8, /* a power of two that has room for all */
};

/* table_heads: how to look into a table. */
struct table_head {
	__u64 segment_mask; /* number of segments, a power of two, less one */
	__u64 lengths[3]; /* of prefixes: bit n % 64 of n / 64 says that there are some with n bits less than
			   * an address has: the longest ones first */
	__u64 reserved[4];
};

/*
 * groups: who gets a flow, by 12 bits of its hash. The control plane gives each slot to the member with the
 * highest weighted score (rendezvous hashing), so that only a leaving member's flows move.
 */
struct group {
	__u16 tunnels[MPTM_GROUP_SLOTS]; /* slot in tunnels + 1; 0: nobody */
};

/* ---- encapsulation: the template ------------------------------------------------------------------ */

/*
 * What is patched into a copied template. Where a field is a length, it is "length of the whole outgoing
 * frame + bias", so one op serves IPv4, IPv6, UDP and every tunnel header that has a length.
 */
enum patch_op {
	PATCH_NONE = 0,
	PATCH_LEN16 = 1,   /* __be16 at offset: frame length + bias (UDP, GTP-U) */
	PATCH_IPV4 = 2,	   /* IPv4 header at offset: total length, TOS and TTL inheritance, checksum */
	PATCH_IPV6 = 3,	   /* IPv6 header at offset: payload length, traffic class, flow label, hop limit */
	PATCH_FLOW16 = 4,  /* __be16 at offset: 49152 | 14 bits of the inner flow's hash (source port) */
	PATCH_IPV4_ID = 5, /* __be16 at offset of the IPv4 header + 4: random, for packets without DF */
	PATCH_INNER_MACS = 6,	   /* 12 bytes at offset: the inner frame's own MAC addresses */
	PATCH_FLOW8 = 7,	   /* a byte at offset: 8 bits of the inner flow's hash (NVGRE FlowID) */
	PATCH_INNER_ETHERTYPE = 8, /* __be16 at offset: 0x0800 or 0x86dd by the inner packet */
	PATCH_INNER_PROTOCOL = 9,  /* a byte at offset: 4 or 41 by the inner packet (GUE, SRv6) */
	PATCH_INNER_GPE = 10,	   /* a byte at offset: 1 or 2 by the inner packet (VXLAN-GPE, NSH) */
	PATCH_SEQUENCE = 11,	   /* __be32 at offset: number of the packet in its tunnel, from 0 */
	PATCH_ERSPAN_TIME = 12,	   /* __be32 at offset: time in units of 100 ns */
	PATCH_CHECKSUM =
	    13, /* __be16 at offset: checksum from offset + bias to the end of the packet (GRE) */
	PATCH_UDP6_CHECKSUM =
	    14, /* UDP header at offset, behind its IPv6 header: the checksum of the datagram */
};

struct patch {
	__u8 op;     /* enum patch_op */
	__u8 offset; /* from the start of the outer header */
	__s16 bias;
};

/*
 * Patches that nearly every header has, behind an Ethernet header without tags: done first, at places that
 * the program knows, so they cost less than those that are gone through one by one.
 */
enum fixed_patch {
	FIXED_IPV4 = 1,	   /* PATCH_IPV4, with bias -14 */
	FIXED_IPV6 = 2,	   /* PATCH_IPV6, with bias -54 */
	FIXED_UDP_LEN = 4, /* PATCH_LEN16 of the UDP header behind, with the bias of that */
	FIXED_FLOW16 = 8,  /* PATCH_FLOW16 of its source port */
};

enum tunnel_flag {
	TUNNEL_TO_STACK = 1, /* after encapsulation passed on instead of a redirect: the kernel routes it */
	TUNNEL_L3 =
	    2, /* carries IP packets: the inner Ethernet header and VLAN tags are dropped, not `strip` */
	TUNNEL_UNTAGGED =
	    4, /* carries frames without their VLAN tags; PATCH_INNER_MACS behind `outer` moves the rest */
	TUNNEL_CANT_SEND = 128, /* in use without a template; what would go into it is counted for it */
};

/* What the kernel can be told of the outer headers at TC, so that it makes the segments of a GSO packet
 * behind them. */
enum gso_kind {
	GSO_SEGMENTS = 0, /* nothing: the segments are made before */
	GSO_UDP = 1,	  /* a UDP header, and what is the same in each segment */
	GSO_GRE = 2,	  /* a GRE header without checksum and sequence number */
	GSO_IP = 3,	  /* the inner IP header follows the outer one */
	GSO_LINK = 4,	  /* there is no outer IP header, so there is nothing to tell */
};

/* Inner IP versions that an L3 tunnel carries. */
enum inner_family {
	INNER_IPV4 = 1,
	INNER_IPV6 = 2,
};

/* tunnels: everything that encapsulation needs. A slot in use is never changed: a new template gets a new
 * slot. */
struct tunnel {
	__u8 outer[MPTM_OUTER_SIZE]; /* as it goes on the wire, patched fields zero, IPv4 checksum for that */
	struct patch patches[MPTM_PATCHES];
	__u32 outer_len; /* bytes of outer in use; even; 0: free, or TUNNEL_CANT_SEND */
	__u32 strip;	 /* bytes of the inner frame that are dropped first */
	__u32 patch_count;
	__u32 max_len; /* longest outgoing frame: egress MTU + link-layer header */
	__u32 egress_ifindex;
	__u32 counter; /* slot in tunnel_counters: stays when the template changes */
	__u32 flags;   /* enum tunnel_flag */
	__u8 tos_mask; /* bits of TOS / traffic class taken from the inner packet: 0x03 ECN only, 0xff all */
	__u8 ttl_mask; /* 0xff: TTL / hop limit of the inner packet, 0: the template's */
	__u8 inner_families; /* enum inner_family, of an L3 tunnel */
	__u8 split_horizon;  /* packets of a tunnel with the same number aren't relayed into this; 0: none */
	__u8 gso;	     /* enum gso_kind */
	__u8 outer_version;  /* of the outer IP header; 0: there is none */
	__u8 fixed_patches;  /* enum fixed_patch: what the first ones of patches are */
	__u8 fixed_count;    /* and how many they are */
	__u8 reserved[60];
};

/* ---- decapsulation: listener -> parser -> termination ---------------------------------------------- */

enum listener_kind {
	LISTEN_UDP = 1,	      /* number: UDP destination port */
	LISTEN_IP = 2,	      /* number: IP protocol / next header */
	LISTEN_ETHERTYPE = 3, /* number: EtherType */
};

/* Which parser reads what a listener gets; in a termination, which header it accepts. */
enum parser {
	PARSER_NONE = 0,
	PARSER_GENEVE = 1,
	PARSER_VXLAN = 2,
	PARSER_VLAN = 3,
	PARSER_VXLAN_GPE = 4,
	PARSER_GRE = 5, /* without key; as a listener all that follows here, too */
	PARSER_GRE_KEY = 6,
	PARSER_NVGRE = 7,
	PARSER_ERSPAN = 8, /* II and III */
	PARSER_IP = 9,	   /* IPv4 or IPv6 directly: IPIP, SIT, ..., FOU */
	PARSER_ETHERIP = 10,
	PARSER_GTPU = 11,
	PARSER_L2TP_IP = 12,
	PARSER_L2TP_UDP = 13,
	PARSER_GUE = 14,
	PARSER_MPLS = 15,
	PARSER_SRV6 = 16, /* with or without a segment routing header */
	PARSER_QINQ = 17,
	PARSER_NSH = 18,       /* behind VXLAN-GPE */
	PARSER_GTPU_ECHO = 19, /* in terminations only: whose echo requests are answered */
};

/* listeners: number is entry number % MPTM_LISTEN_ROW of row (kind * 65536 + number) / MPTM_LISTEN_ROW.
 */
struct listener_row {
	__u8 parsers[MPTM_LISTEN_ROW]; /* enum parser; PARSER_NONE: nobody listens */
};

/*
 * terminations: who may send what to us, and where it goes. One cache line, key first. Found at one of two
 * homes (mptm.compile places it, lookup.h reads it: termination_hash) and MPTM_TERMINATION_PROBES slots
 * after. Addresses: IPv6; IPv4 as ::ffff:a.b.c.d; for VLAN a MAC address and zeroes, with the ifindex that
 * the frame came in by in the last four bytes of destination (host byte order). A source of all zeroes
 * accepts anyone (remote: any); VLAN then has no MAC address in destination, only the ifindex.
 */
struct termination {
	__u8 source[16];
	__u8 destination[16];
	__u32 tunnel_id; /* as on the wire: VNI, VID, key, session, ... */
	__u16 number;	 /* of the listener */
	__u8 parser;	 /* enum parser; PARSER_NONE: the slot is free */
	__u8 can_reply;	 /* value from here on; 1: tunnel is a slot that can send */
	__u32 network;
	__u32 tunnel;	   /* slot in tunnels, for what is answered through it */
	__u32 counter;	   /* slot in tunnel_counters */
	__u8 lookups;	   /* enum lookup_flag, of the network */
	__u8 cookie_len;   /* L2TPv3: bytes of cookie between session id and payload */
	__u8 sublayer_len; /* L2TPv3: bytes of L2-specific sublayer behind the cookie */
	__u8 flags;	   /* enum termination_flag */
	__u8 cookie[8];
};

enum termination_flag {
	ACCEPT_BAD_CHECKSUM = 1,  /* a GRE checksum that is there is not verified */
	VERIFY_UDP_CHECKSUM = 2,  /* an outer UDP checksum that is there must be right */
	REQUIRE_UDP_CHECKSUM = 4, /* and it must be there */
	ACCEPT_ETHERNET = 8,	  /* what the tunnel may carry */
	ACCEPT_IPV4 = 16,
	ACCEPT_IPV6 = 32,
};

/* gateways: the address of a network from which its workloads are told that a packet was too big. */
struct gateway {
	__be32 address_v4;
	__u8 address_v6[16];
	__u8 has_v4;
	__u8 has_v6;
	__u8 reserved[2];
};

/* locals: addresses that a tunnel of ours has as its own; tells "refused" from "passing through". */
struct local_key {
	__u8 address[16]; /* IPv4 as ::ffff:a.b.c.d */
};

/* ---- what is counted ------------------------------------------------------------------------------ */

/* tunnel_counters: bytes are those of the inner frame, so both ends of a tunnel count the same. */
struct tunnel_counters {
	__u64 encap_packets;
	__u64 encap_bytes;
	__u64 decap_packets;
	__u64 decap_bytes;
};

/* port_counters: rx is what the port's program saw, tx what MPTM sent out of the port. */
struct port_counters {
	__u64 rx_packets;
	__u64 rx_bytes;
	__u64 tx_packets;
	__u64 tx_bytes;
};

/*
 * Why a packet went no further (REASON_*), or was refused and left to the kernel untouched (REFUSED_*).
 * Each has its caption in mptm/reasons.py; a test compares the two.
 */
enum reason {
	REASON_NONE = 0,
	REASON_ROUTE_DROP = 1,	   /* the route or flow says drop */
	REASON_TOO_BIG = 2,	   /* larger than the egress MTU once encapsulated */
	REASON_PORT_TOO_BIG = 3,   /* larger than the local port's MTU */
	REASON_TUNNEL_DOWN = 4,	   /* the tunnel has no template: unresolved neighbour or receive-only */
	REASON_EGRESS_GONE = 5,	   /* the interface to send from no longer exists */
	REASON_PORT_GONE = 6,	   /* the local port no longer exists */
	REASON_NO_HEADROOM = 7,	   /* the driver left no room for the outer header */
	REASON_NO_ROUTE = 8,	   /* decapsulated, but the network doesn't know the destination */
	REASON_ECN_CE = 9,	   /* RFC 6040: congestion marked, but the inner packet can't tell */
	REASON_NO_RELAY = 10,	   /* came out of a tunnel, would go into a tunnel */
	REASON_BAD_OUTER_IP = 11,  /* outer IP header: version, length or checksum */
	REASON_BAD_OUTER_UDP = 12, /* outer UDP header: length */
	REASON_BAD_INNER = 13,	   /* inner frame is cut short or no frame at all */
	REASON_GENEVE_TRUNCATED = 14,
	REASON_GENEVE_VERSION = 15,
	REASON_GENEVE_OPTION_LENGTH = 16, /* options run over the end of the option area */
	REASON_GENEVE_CRITICAL = 17,	  /* an option that must be understood, and isn't */
	REASON_GENEVE_CONTROL = 18,	  /* O bit: a control packet, not data */
	REASON_GENEVE_PROTOCOL = 19,	  /* the payload is no Ethernet frame */
	REASON_VXLAN_TRUNCATED = 20,
	REASON_VXLAN_FLAGS = 21, /* I bit not set: no valid VNI */
	REASON_VLAN_TRUNCATED = 22,
	REASON_INNER_FAMILY = 23, /* the tunnel carries no packets of this IP version, or no IP at all */
	REASON_GRE_TRUNCATED = 24,
	REASON_GRE_FLAGS = 25, /* bits that RFC 2784 wants zero, or a version other than 0 */
	REASON_GRE_CHECKSUM = 26,
	REASON_GRE_PROTOCOL = 27,  /* a payload that no tunnel here carries */
	REASON_ERSPAN_HEADER = 28, /* version, length or missing sequence */
	REASON_GPE_TRUNCATED = 29,
	REASON_GPE_FLAGS = 30, /* version, no VNI, OAM */
	REASON_GPE_PROTOCOL = 31,
	REASON_NSH_HEADER = 32, /* version, MD type, length, OAM or next protocol */
	REASON_ETHERIP_HEADER = 33,
	REASON_GTPU_TRUNCATED = 34,
	REASON_GTPU_HEADER = 35,    /* version, protocol type or length */
	REASON_GTPU_EXTENSION = 36, /* an extension header that must be understood, or one of length 0 */
	REASON_L2TP_TRUNCATED = 37,
	REASON_L2TP_COOKIE = 38,
	REASON_GUE_HEADER = 39,	   /* length, version or payload */
	REASON_MPLS_STACK = 40,	   /* no bottom of stack within reach */
	REASON_SRV6_HEADER = 41,   /* length or payload of the segment routing header */
	REASON_INNER_VERSION = 42, /* inner IP version other than the tunnel header says */
	REASON_UDP_CHECKSUM = 43,  /* outer UDP checksum: wrong, or missing where one is required */
	REASON_SPLIT_HORIZON = 44, /* relay into the tunnel it came by, or one of the same split horizon */
	REASON_HOP_LIMIT = 45,	   /* relay of a packet whose TTL or hop limit is used up */
	REASON_GROUP_EMPTY = 46,   /* the group has no tunnel for the flow */
	REASON_GSO = 47,	   /* a GSO packet that nobody makes the segments of */
	REASON_INNER_TAG = 48,	   /* the inner frame has a VLAN tag, which NVGRE forbids */
	REASON_CHECKSUM_SPAN = 49, /* a checksum to be verified covers more than the first 16 KB */
	REASON_ANSWER = 50,	   /* an answer could not be completed in the packet's place */
	REFUSED_SENDER_OR_ID = 64, /* no termination for this sender, VNI and port */
	REFUSED_FRAGMENT = 65,	   /* an outer fragment: the kernel may put it together */
	REFUSED_CONTROL = 66,	   /* a control message of a tunnel protocol: for a daemon of this host */
};

enum drop_scope {
	SCOPE_OTHER = 0,  /* id 0: the table was full, so only the reason is kept */
	SCOPE_PORT = 1,	  /* id: ifindex */
	SCOPE_TUNNEL = 2, /* id: slot in tunnel_counters */
};

struct drop_key {
	__u16 reason; /* enum reason */
	__u16 scope;  /* enum drop_scope */
	__u32 id;
};

struct drop_value {
	__u64 packets;
	__u64 bytes;
};

/* ---- what a traced packet goes through -------------------------------------------------------------- */

/* Each step has up to three values and an address (IPv4: the first word, or ::ffff:a.b.c.d for outer ones).
 */
enum trace_step {
	TRACE_NO_PORT = 1,  /* ifindex: no port of ours, or one of the other role */
	TRACE_PORT = 2,	    /* ifindex, role, network */
	TRACE_UNPARSED = 3, /* length: cut short, left to the kernel */
	TRACE_PACKET = 4,   /* IP version (0: no IP), protocol, length of the frame; destination */
	TRACE_QUESTION = 5, /* 4: ARP, 6: neighbour solicitation; 1: duplicate address detection; target */
	TRACE_NEXT_HOP = 6, /* enum trace_table, enum next_hop_kind, id */
	TRACE_GROUP = 7,    /* group, hash slot, slot in tunnels + 1 */
	TRACE_TUNNEL = 8,   /* slot in tunnels, counter, length of the outgoing frame */
	TRACE_TOO_BIG = 9,  /* largest inner IP packet that fits */
	TRACE_ENCAPSULATED = 10,  /* egress ifindex, bytes of outer header, flow hash */
	TRACE_TO_STACK = 11,	  /* handed to the kernel's stack */
	TRACE_DELIVERED = 12,	  /* ifindex, length */
	TRACE_ANSWERED = 13,	  /* ifindex: the answer leaves there */
	TRACE_NOT_LISTENING = 14, /* IP protocol, number, IP version: no tunnel packet of ours */
	TRACE_NOT_FOR_US = 15,	  /* the frame is for another MAC address */
	TRACE_OUTER = 16,	  /* IP version, listener's number, parser; outer source */
	TRACE_HEADER = 17,	  /* parser, identifier, reason */
	TRACE_TERMINATION = 18,	  /* network, counter, parser */
	TRACE_ECN = 19,		  /* inner, outer, what leaves */
	TRACE_STRIPPED = 20,	  /* bytes of outer header, kind of payload */
	TRACE_RELAYED = 21,	  /* TTL or hop limit that the packet has now */
	TRACE_REASON = 22,	  /* enum reason, enum drop_scope, id */
	TRACE_SOURCE = 23,	  /* of the same: ports and EtherType as on the wire (0: none), TOS; source */
	TRACE_OUTER_DESTINATION = 24, /* IP protocol, TOS; outer destination */
	TRACE_ANSWERED_BACK = 25,     /* counter: the answer goes back through that tunnel */
	TRACE_UNANSWERED = 26,	      /* the sender of what was too big isn't told */
};

/* Where a next hop was found. */
enum trace_table {
	TABLE_NONE = 0,
	TABLE_FLOWS = 1,
	TABLE_HOSTS = 2,
	TABLE_PREFIXES = 3,
};

struct trace_record {
	__u32 step; /* enum trace_step; in slot 0 the number of steps */
	__u32 values[3];
	__u8 address[16];
};

#endif
