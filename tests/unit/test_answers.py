# SPDX-License-Identifier: GPL-2.0-only
"""What writes an answer in a packet's place never says "as it came" of a packet that it has begun to change.

Where a packet could spoil is behind checks that the verifier wants, and that no packet fails: it takes the source
to see. (An answer for which a driver leaves no room: tests/program/test_no_room.py.)
"""

from __future__ import annotations

import re

import pytest
from document_protocols import ROOT

CHANGES = ("adjust_tail(", "push_front(")


@pytest.mark.parametrize(
    ("header", "function"), [("neighbour.h", "write_nd_advert"), ("decap/gtpu.h", "write_gtpu_echo")]
)
def test_behind_the_first_change_nothing_is_as_it_came(header, function):
    source = (ROOT / "bpf" / header).read_text(encoding="utf-8")
    body = re.search(rf"^.*\bint {function}\(.*?^}}", source, re.MULTILINE | re.DOTALL)
    assert body is not None
    first = min(body[0].index(change) for change in CHANGES if change in body[0])
    _, _, after = body[0][first:].partition("return 0;")  # of the failed call itself, which changes nothing
    assert "return SPOILED;" in after
    assert "return 0;" not in after and "return false;" not in after
