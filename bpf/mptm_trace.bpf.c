/* SPDX-License-Identifier: GPL-2.0-only */
/* The programs of mptm.bpf.c, which record what they do with a packet (trace.h): for BPF_PROG_TEST_RUN only.
 */
#define MPTM_TRACE
#include "mptm.bpf.c"
