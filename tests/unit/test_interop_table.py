# SPDX-License-Identifier: GPL-2.0-only
"""docs/interop.md: its tables have the protocols, peers and cases that there are, and how a table is made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from interop_page import interop_document
from matrix import Case
from peers import PEERS
from results import HEADER, OVER, Notes, PeerResults, Result, rows, summary_cell
from run_matrix import SLOWEST_FIRST

from mptm.protocols import PROTOCOLS

DOCUMENT = Path(__file__).parents[2] / "docs" / "interop.md"
FORGOTTEN = "run `make test-interop interop-table`"


def sections() -> dict[str, list[list[str]]]:
    """Cells of the table of each section, by its heading; without header."""
    found: dict[str, list[list[str]]] = {}
    for section in DOCUMENT.read_text(encoding="utf-8").split("\n## ")[1:]:
        heading, _, rest = section.partition("\n")
        lines = [line for line in rest.splitlines() if line.startswith("|")]
        found[heading] = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return found


def test_the_page_has_every_peer_in_order() -> None:
    titles = [heading for heading in sections() if heading != "Protocols and peers"]
    assert len(titles) == len(PEERS), FORGOTTEN
    for title, peer in zip(titles, PEERS.values(), strict=True):
        assert title.startswith(f"{peer.title} "), FORGOTTEN


def test_the_summary_has_exactly_the_protocols_there_are() -> None:
    summary = sections()["Protocols and peers"]
    assert [row[:2] for row in summary] == [
        [protocol.title, f"`{name}`"] for name, protocol in PROTOCOLS.items()
    ], FORGOTTEN
    assert {len(row) for row in summary} == {2 + len(PEERS)}, FORGOTTEN


@pytest.mark.parametrize("name", PEERS)
def test_a_peers_table_has_exactly_its_cases_and_nothing_fails(name: str) -> None:
    peer = PEERS[name]
    (table,) = [table for heading, table in sections().items() if heading.startswith(peer.title + " ")]
    cases = [[case.protocol, case.form, OVER[case.underlay]] for case in peer.cases()]
    assert [row[:3] for row in table] == cases, FORGOTTEN
    assert not [row for row in table if "fails" in " ".join(row)]


def test_the_page_names_no_dates() -> None:
    assert not re.search(r"\b20\d\d\b|\d+:\d\d", DOCUMENT.read_text(encoding="utf-8"))


def test_the_whole_matrix_has_every_peer() -> None:
    assert sorted(SLOWEST_FIRST) == sorted(PEERS)


# ---- how it is made ----------------------------------------------------------------------------------------------


def found(*results: Result, unable: dict[str, str] | None = None) -> PeerResults:
    return PeerResults("peer", "A peer", "1", unable or {}, list(results))


def result(check: str, outcome: str = "passed", note: str = "", form: str = "") -> Result:
    return Result("gre", form, 4, check, outcome, note)


@pytest.mark.parametrize(
    ("results", "cell"),
    [
        (found(result("ping4"), result("tcp4")), "yes"),
        (found(result("ping4"), result("tcp4", "failed")), "**fails**"),
        (found(unable={"gre": "no gre"}), "no (1)"),
        (found(), "not tried"),
        (found(result("ping4"), result("unanswered", note="too new", form="x")), "partly (1)"),
        (found(result("unanswered", note="too new")), "no (1)"),
        (found(result("ping4"), result("refused", note="counted as X", form="x")), "yes"),
    ],
)
def test_a_peers_cell_sums_up_its_cases(results: PeerResults, cell: str) -> None:
    assert summary_cell(results, "gre", Notes()) == cell


def test_a_row_sums_up_both_ip_versions_and_has_one_note_per_reason() -> None:
    notes = Notes()
    lost = [result(f"tcp{version}", "explained", "it loses packets") for version in (4, 6)]
    half = [result("ping4"), result("ping6", "explained", "it loses packets")]
    fragments = result("fragments", note="none sent")
    assert rows(found(*half, *lost, fragments), notes) == [
        ["gre", "", "IPv4", "partly (1)", "no (1)", "", "", "none sent"]
    ]
    assert notes.lines() == ["1. it loses packets"]
    assert len(HEADER) == 8


def test_the_page_has_a_column_and_a_table_per_peer() -> None:
    page = interop_document({"peer": found(result("ping4"))}, {"gre": "GRE"})
    assert "| GRE | `gre` | yes |" in page
    assert "## A peer 1\n\n| protocol |" in page
    assert "| gre |  | IPv4 | yes |" in page


def test_results_are_read_back_as_they_were_written() -> None:
    written = found(result("ping4", "failed", "a note"), unable={"vlan": "none"})
    assert PeerResults.from_dict(written.to_dict()) == written


def test_a_case_is_tried_with_the_ip_versions_it_has_or_only_for_what_must_fail() -> None:
    assert Case("peer", "gre", 4, inner=(6,)).checks() == [
        "ping6",
        "tcp6",
        "largest6",
        "too big6",
        "fragments",
    ]
    assert Case("peer", "gre", 4, refused="REASON_X").checks() == ["refused"]
    assert Case("peer", "gre", 4, unanswered="deaf").checks() == ["unanswered"]
