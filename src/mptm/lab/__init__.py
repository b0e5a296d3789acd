# SPDX-License-Identifier: GPL-2.0-only
"""The two-node lab: network namespaces that stand for two machines, for tutorials, the demo and the tests."""
