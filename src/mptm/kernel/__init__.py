# SPDX-License-Identifier: GPL-2.0-only
"""The only place that talks to the kernel: bpf(2), bpffs, netlink and network namespaces.

Importing it needs neither root nor libbpf; both are asked for when something is first done.
"""
