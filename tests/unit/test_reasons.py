# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from c_headers import c_enum

from mptm import reasons


def test_reasons_are_those_of_the_data_plane():
    assert {reason.name: reason.value for reason in reasons.Reason} == c_enum("reason")


def test_every_reason_has_a_caption_of_its_own():
    assert reasons.CAPTIONS.keys() == c_enum("reason").keys()
    assert len(set(reasons.CAPTIONS.values())) == len(reasons.CAPTIONS)


def test_refusals_are_told_apart_from_drops():
    for name in c_enum("reason"):
        assert reasons.is_refusal(name) == name.startswith("REFUSED_")
        assert "left to the kernel" not in reasons.caption_of(name), "`mptm drops` says it beside the caption"


def test_a_reason_is_found_by_its_number():
    assert reasons.name_of(2) == "REASON_TOO_BIG"
    assert reasons.caption_of(reasons.name_of(2)) == "larger than the egress MTU once encapsulated"


def test_a_reason_of_a_newer_data_plane_is_still_shown():
    assert reasons.name_of(999) == "REASON_999"
    assert (
        reasons.caption_of("REASON_999")
        == "REASON_999: counted by a data plane that is newer than this program"
    )
