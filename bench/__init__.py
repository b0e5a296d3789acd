# SPDX-License-Identifier: GPL-2.0-only
"""What MPTM costs and carries on this machine, beside its peers. `make bench` runs it; docs/benchmarks/README.md."""
