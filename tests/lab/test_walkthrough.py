# SPDX-License-Identifier: GPL-2.0-only
"""The documents' commands, typed as they stand there: docs/original-walkthrough.md, docs/tracing.md and the tutorial of
README.md.

Each runs in a lab of its own, so names that begin with the lab's prefix are renamed on their way in and out.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from documents import ROOT, Command, blocks, commands

from mptm.lab.topology import Lab

DOCUMENTS = {
    "walkthrough": ROOT / "docs" / "original-walkthrough.md",
    "tutorial": ROOT / "README.md",
    "tracing": ROOT / "docs" / "tracing.md",
}
OURS = re.compile(r"(?:mptm|mptm_user)\b")
PROGRESS = re.compile(r"(mptm|mptm_user): \w+ing .*")
"""What a command says when it takes long; only sometimes does it."""
BPF_PROG_TYPE_TRACING = 26
SENTINEL = "--- exit status"


@dataclass(frozen=True)
class Typed:
    """A command of a document, what it printed, with the documents' names, and its exit status."""

    command: Command
    output: tuple[str, ...]
    status: int

    @property
    def text(self) -> str:
        return "\n".join(self.output)


class Terminals:
    """A shell in each place that a document types commands in; variables and background jobs stay."""

    def __init__(self, lab: Lab, tools: Path):
        self._lab, self._tools = lab, tools
        self._shells: dict[str, subprocess.Popen[str]] = {}

    def type(self, command: Command) -> Typed:
        shell = self._shells.get(command.place) or self._open(command.place)
        assert shell.stdin is not None and shell.stdout is not None
        shell.stdin.write(f"{{ {self._ours(command.text)}\n}} </dev/null\nprintf '\\n{SENTINEL} %s\\n' $?\n")
        shell.stdin.flush()
        lines: list[str] = []
        for line in shell.stdout:
            if line.startswith(SENTINEL):
                break
            lines.append(self._theirs(line.rstrip("\n")))
        else:
            raise AssertionError(f"{command.where}: the shell ended: {lines}")
        while lines and not lines[-1]:
            lines.pop()
        return Typed(command, tuple(lines), int(line.split()[-1]))

    def close(self) -> None:
        for shell in self._shells.values():
            shell.kill()
            shell.communicate()

    def _open(self, place: str) -> subprocess.Popen[str]:
        bash = ["bash", "--noprofile", "--norc"]
        instances = {node.name: node.instance for node in self._lab.topology.nodes}
        environment = os.environ | {"PATH": f"{self._tools}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
        environment.pop("MPTM_INSTANCE", None)
        if place in instances:
            environment["MPTM_INSTANCE"] = instances[place]
        self._shells[place] = subprocess.Popen(
            self._lab.command(place, bash) if place else bash,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=ROOT,
            env=environment,
        )
        return self._shells[place]

    def _ours(self, text: str) -> str:
        prefix = self._lab.topology.prefix
        text = re.sub(r"\bmptm lab (up|down|status|exec)\b", rf"mptm lab \1 --prefix {prefix}", text)
        return re.sub(r"(/mptm/|--instance )(node\d)", rf"\1{prefix}-\2", text)

    def _theirs(self, text: str) -> str:
        prefix = self._lab.topology.prefix
        text = text.replace(f" --prefix {prefix}", "").replace(f"/run/netns/{prefix}-", "/run/netns/mptm-")
        return text.replace(f"{prefix}-", "")


@functools.cache
def can_trace() -> bool:
    """Whether the kernel loads fentry programs, which xdpdump is made of: a kernel that is locked down doesn't."""
    library = ctypes.CDLL("libbpf.so.1")
    return bool(library.libbpf_probe_bpf_prog_type(BPF_PROG_TYPE_TRACING, None) == 1)


@pytest.fixture(scope="module", params=DOCUMENTS)
def transcript(
    request: pytest.FixtureRequest, lab_prefix: Callable[[], str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Typed]]:
    """A document's commands, all typed. Where xdpdump can't work it is left out, and its test says so."""
    tools = tmp_path_factory.mktemp("tools")
    for name, module in (("mptm", "mptm"), ("mptm_user", "mptm.cli.mptm_user")):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT}/src exec {sys.executable} -m {module} "$@"\n')
        tool.chmod(0o755)
    lab = Lab(lab_prefix())
    terminals = Terminals(lab, tools)
    try:
        yield [
            terminals.type(command)
            for command in commands(DOCUMENTS[request.param])
            if can_trace() or "xdpdump" not in command.text
        ]
    finally:
        terminals.close()
        lab.down()


def test_every_command_succeeds(transcript: list[Typed]) -> None:
    failed = [
        f"{typed.command.where}: {typed.command.text}: status {typed.status}\n{typed.text}"
        for typed in transcript
        if typed.status
    ]
    assert not failed, "\n".join(failed)


def test_our_commands_print_what_the_document_shows(transcript: list[Typed]) -> None:
    for typed in transcript:
        if not OURS.match(typed.command.text):
            continue
        printed = iter([_plain(line) for line in typed.output])
        for line in typed.command.output:
            if line.strip() == "...":
                continue
            wanted = _plain(line)
            assert any(wanted == other for other in printed), (
                f"{typed.command.where}: {typed.command.text!r} doesn't print {line!r} there:\n{typed.text}"
            )
        if "..." not in (line.strip() for line in typed.command.output):
            shown, got = (
                [line for line in lines if not PROGRESS.fullmatch(line)]
                for lines in (typed.command.output, typed.output)
            )
            assert len(shown) == len(got), (
                f"{typed.command.where}: {typed.command.text!r} prints more:\n{typed.text}"
            )


def test_every_ping_is_answered(transcript: list[Typed]) -> None:
    pings = [
        typed
        for typed in transcript
        if re.search(r"\bping ", typed.command.text) and "> /dev/null" not in typed.command.text
    ]
    assert {typed.command.text.split()[-1].partition(".")[0] for typed in pings} >= {"10"}
    for typed in pings:
        counts = re.search(r"(\d+) packets transmitted, (\d+) received", typed.text)
        assert counts and counts[1] == counts[2] != "0", typed.text


@pytest.mark.parametrize("transcript", ["walkthrough"], indirect=True)
def test_ping_passes_both_ways(transcript: list[Typed]) -> None:
    places = {typed.command.place for typed in transcript if typed.command.text.startswith("ping -c")}
    assert places == {"node1-c1", "node2-c1"}


@pytest.mark.parametrize("transcript", ["walkthrough"], indirect=True)
def test_table_dump_has_named_fields(transcript: list[Typed]) -> None:
    (dump,) = (typed for typed in transcript if "table dump" in typed.command.text)
    for field in ("network", "source", "destination", "kind", "flags", "id"):
        assert f'"{field}":' in dump.text


@pytest.mark.parametrize("transcript", ["walkthrough"], indirect=True)
def test_xdpdump_shows_packets_at_entry_and_exit(transcript: list[Typed]) -> None:
    if not can_trace():
        pytest.skip(
            "this kernel loads no fentry programs (libbpf's probe says so), and xdpdump is made of them"
        )
    dumps = [typed.text for typed in transcript if "xdpdump" in typed.command.text]
    assert len(dumps) == 2
    for dump, program in zip(dumps, ("mptm_encap_xdp", "mptm_decap_xdp"), strict=True):
        assert f"{program}()@entry: packet size" in dump
        assert f"{program}()@exit[REDIRECT]: packet size" in dump


def test_the_python_of_the_tutorial_does_the_same(bare_lab: Lab) -> None:
    """As the README has it, in the lab that it names; the other end is brought up from its file."""
    (block,) = (block for block in blocks(DOCUMENTS["tutorial"], "python") if "Node()" in block.text)
    instance = bare_lab.topology.node("node1").instance
    program = block.text.replace("Node()", f"Node(instance={instance!r})")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("TunnelCounters(encap_packets=0,")
    bare_lab.node("node2").apply(bare_lab.intent("node2"))
    bare_lab.exec("node1-c1", ["ping", "-c", "1", "-W", "2", "10.250.1.101"])


@pytest.mark.parametrize("transcript", ["tutorial"], indirect=True)
def test_the_tutorial_routes_ipv6_too(transcript: list[Typed]) -> None:
    pings = [typed for typed in transcript if typed.command.text.endswith("fd00:250:1::101")]
    assert [typed.status for typed in pings] == [0]


def _plain(line: str) -> str:
    """A line without what differs from run to run: MAC addresses, numbers, digests, bytes, spacing."""
    line = line.replace("mptm-node", "node")
    line = re.sub(r"\b[0-9a-f]{1,2}(:[0-9a-f]{1,2}){5}\b", "MAC", line)
    line = re.sub(
        r"^(  [0-9a-f]{4})(  ?[0-9a-f]{2})+$", r"\1 BYTES", re.sub(r"(?<=\w)  (?=[0-9a-f]{2} )", " ", line)
    )
    line = re.sub(r"(?<=-)[0-9a-f]{8}\b", "DIGEST", line)
    line = re.sub(r"(?<![\w.:/-])\d+(\.\d+)?(?![\w.:/-])", "N", line)
    return " ".join(line.split())
