/* SPDX-License-Identifier: GPL-2.0-only */
/* The programs of mptm.bpf.c for TC, and the one that encapsulates what was made segments of (segments.h). */
#define MPTM_TC
#include "mptm.bpf.c"

SEC("tc") int mptm_segment_tc(hook_ctx *ctx)
{
	struct sending sending = {.slot = ctx->mark & 0xffff};
	struct packet packet = {};
	int verdict;

	if (ctx->mark >> 16 != MARK_OURS || !enter_hook(ctx))
		return VERDICT_DROP;
	if (!parse_frame(ctx, 0, frame_len(ctx), &packet))
		return VERDICT_DROP;
	verdict = encap(ctx, &packet, &sending);
	if (ctx->mark != MARK_PASS)
		ctx->mark = 0;
	return verdict == VERDICT_REDIRECT ? verdict : VERDICT_DROP;
}
