/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What every tunnel header parser yields. A parser returns REASON_NONE or what is wrong; it sets tunnel_id
 * and is_identified as soon as the id can be read, so that a bad packet is counted for the tunnel it came by,
 * and a packet of somebody else's tunnel stays untouched.
 */
#ifndef MPTM_DECAP_INNER_H
#define MPTM_DECAP_INNER_H

#include "../packet.h"
#include "outer.h"

struct inner {
	__u32 tunnel_id;
	__u32 offset; /* of the inner Ethernet header; for VLAN that of the frame without its tag */
	__u32 len;    /* of the inner frame */
	__u8 is_identified;
	__u8 keeps_macs; /* 1: the inner MAC addresses are the outer ones, to be written back after the strip
			  */
};

#endif
