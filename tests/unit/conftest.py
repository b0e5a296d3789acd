# SPDX-License-Identifier: GPL-2.0-only
"""What unit tests share: nothing here needs root or a kernel."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
