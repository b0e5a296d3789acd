# SPDX-License-Identifier: GPL-2.0-only
"""Packets as people have them: in hexadecimal, described in scapy's syntax, in capture files."""
