# SPDX-License-Identifier: GPL-2.0-only
"""`python -m mptm` is the command line `mptm`."""

from __future__ import annotations

from mptm.cli import main

if __name__ == "__main__":
    main()
