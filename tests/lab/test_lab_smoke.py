# SPDX-License-Identifier: GPL-2.0-only
"""The lab itself: it stands, it carries traffic, it goes without a trace, and it leaves other people's things alone."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from traffic import at_hook

from mptm.errors import AlreadyExists, InvalidIntent, MptmError, NotFound
from mptm.intent import Network
from mptm.kernel.dataplane import instance_directory
from mptm.lab import demo, topology
from mptm.lab.topology import Lab, two_nodes
from mptm.node import Node

NETNS = Path("/run/netns")


@pytest.fixture
def new_lab(lab_prefix: Callable[[], str]) -> Iterator[Lab]:
    """A lab that isn't built yet; what the test builds is taken down."""
    lab = Lab(lab_prefix())
    yield lab
    lab.down()


@pytest.fixture
def foreign_namespace(lab_prefix: Callable[[], str]) -> Iterator[tuple[str, str]]:
    """A prefix, and a namespace somebody else made whose name a lab of that prefix would use."""
    prefix = lab_prefix()
    name = f"{prefix}-node2"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield prefix, name
    subprocess.run(["ip", "netns", "delete", name], check=True)


def standing(lab: Lab) -> list[str]:
    return [name for name in lab.topology.namespaces().values() if (NETNS / name).exists()]


def ping(lab: Lab, container: str, address: str) -> None:
    lab.exec(container, ["ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", address])


@pytest.mark.parametrize("container", ["c1", "c2"])
@pytest.mark.parametrize("address", ["10.250.1.10{}", "fd00:250:1::10{}"])
def test_containers_ping_both_ways(lab: Lab, container: str, address: str) -> None:
    ping(lab, f"node1-{container}", address.format(1))
    ping(lab, f"node2-{container}", address.format(0))


@pytest.mark.parametrize("container", ["c1", "c2"])
def test_tcp_passes_between_containers(lab: Lab, container: str) -> None:
    server = lab.popen(f"node2-{container}", ["iperf3", "-s", "-1", "--forceflush"])
    assert server.stdout is not None
    while "listening" not in (line := server.stdout.readline()):
        assert line, "the iperf3 server ended"
    client = lab.exec(f"node1-{container}", ["iperf3", "-c", "10.250.1.101", "-t", "1", "-J"])
    assert json.loads(client.stdout)["end"]["sum_received"]["bytes"] > 1_000_000


def test_up_leaves_a_lab_that_is_up_as_it_is(lab: Lab) -> None:
    before = [(NETNS / name).stat().st_ino for name in lab.topology.namespaces().values()]
    lab.node("node1").remove("route", "blue 10.250.1.101/32")
    changed = lab.node("node1").intent
    try:
        lab.up()
        assert [(NETNS / name).stat().st_ino for name in lab.topology.namespaces().values()] == before
        assert lab.node("node1").intent == changed
    finally:
        lab.node("node1").apply(lab.intent("node1"))
    ping(lab, "node1-c1", "10.250.1.101")


def mptm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mptm", *arguments], capture_output=True, text=True, check=True, timeout=60
    )


def test_up_tells_what_it_leaves_otherwise_than_was_asked_for(bare_lab: Lab) -> None:
    prefix = bare_lab.topology.prefix
    assert bare_lab.up(bare=True) == []
    bare_lab.node("node1").add(Network(name="mine", id=7))
    said = mptm("lab", "up", "--prefix", prefix).stderr.splitlines()
    assert said[1] == (
        "But node1 is configured otherwise than by its file, and stays as it is: "
        f"`mptm --instance {prefix}-node1 purge --yes` and `mptm lab up --prefix {prefix}` change that."
    )
    assert len(said) == 2
    assert list(bare_lab.node("node1").intent.networks) == ["mine"]
    # Another process brought it up, by its file, which says nothing of hooks.
    assert bare_lab.node("node2").intent == at_hook(bare_lab.intent("node2"), "auto")
    said = mptm("lab", "up", "--bare", "--prefix", prefix).stderr.splitlines()
    assert [line.partition(",")[0] for line in said[1:]] == ["But node1 is not bare", "But node2 is not bare"]


def test_a_node_that_is_purged_in_the_lab_begins_anew_in_its_namespace(bare_lab: Lab) -> None:
    inside = (
        "lab",
        "exec",
        "--prefix",
        bare_lab.topology.prefix,
        "node1",
        "--",
        sys.executable,
        "-m",
        "mptm",
    )
    mptm(*inside, "purge", "--yes")
    mptm(*inside, "network", "add", "blue")
    node = Node(bare_lab.topology.node("node1").instance)
    assert node.netns == bare_lab.topology.node("node1").namespace
    assert "eth0" in node.links()


def test_in_a_nodes_shell_the_other_node_can_be_named(bare_lab: Lab) -> None:
    prefix = bare_lab.topology.prefix
    bare_lab.node("node2").add(Network(name="blue", id=1))
    inside = ("lab", "exec", "--prefix", prefix, "node1", "--", sys.executable, "-m", "mptm")
    assert "blue" in mptm(*inside, "--instance", f"{prefix}-node2", "network", "list").stdout


def test_the_demo_says_that_nothing_was_dropped(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    lab.node("node1").reset_counters()
    demo._command(lab, "node1", "drops")
    assert capsys.readouterr().out.splitlines()[1:] == ["mptm: nothing was dropped"]


def test_up_configures_a_lab_that_was_built_bare(bare_lab: Lab) -> None:
    assert bare_lab.up() == []
    ping(bare_lab, "node1-c2", "10.250.1.101")


def test_underlay_carries_both_address_families_between_the_nodes(bare_lab: Lab) -> None:
    ping(bare_lab, "node1", "10.30.30.2")
    ping(bare_lab, "node1", "fd00:30:30::2")


def test_down_leaves_nothing_behind(new_lab: Lab) -> None:
    new_lab.up()
    instances = [node.instance for node in new_lab.topology.nodes]
    assert new_lab.is_up()
    assert all(instance_directory(instance).exists() for instance in instances)
    sleeper = subprocess.Popen(new_lab.command("node1-c1", ["sleep", "600"]))
    new_lab.down()
    assert sleeper.wait(5) < 0
    assert not new_lab.is_up()
    assert not standing(new_lab)
    assert not [instance for instance in instances if instance_directory(instance).exists()]
    assert not [path for path in topology.RUN_DIRECTORY.iterdir() if path.stem == new_lab.topology.prefix]
    new_lab.down()


def test_interrupted_build_is_taken_down_at_once(new_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(topology.Lab, "_build_node", interrupt)
    with pytest.raises(KeyboardInterrupt):
        new_lab.up(bare=True)
    assert not standing(new_lab)


def test_killed_build_is_replaced_by_the_next_up(new_lab: Lab) -> None:
    """The build is killed when it has made the namespaces, and no `finally` runs."""
    script = (
        "import os, signal, sys; from mptm.lab import topology\n"
        "topology.configure = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "topology.Lab(sys.argv[1]).up(bare=True)"
    )
    killed = subprocess.run([sys.executable, "-c", script, new_lab.topology.prefix], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert standing(new_lab)
    assert not new_lab.is_up()
    new_lab.up(bare=True)
    ping(new_lab, "node1", "10.30.30.2")


def test_namespace_of_somebody_else_is_left_alone(foreign_namespace: tuple[str, str]) -> None:
    prefix, name = foreign_namespace
    lab = Lab(prefix)
    with pytest.raises(AlreadyExists, match=name):
        lab.up(bare=True)
    lab.down()
    assert standing(lab) == [name]


def test_instance_of_somebody_else_is_left_alone(new_lab: Lab) -> None:
    foreign = Node(new_lab.topology.node("node1").instance)
    foreign.add(Network(name="precious", id=7))
    try:
        with pytest.raises(AlreadyExists, match=foreign.instance):
            new_lab.up()
        new_lab.down()
        assert list(foreign.intent.networks) == ["precious"]
        assert not standing(new_lab)
    finally:
        foreign.purge()


def test_failing_command_is_reported_with_its_output(bare_lab: Lab) -> None:
    with pytest.raises(MptmError, match="nothere"):
        bare_lab.exec("node1", ["ip", "link", "show", "nothere"])
    with pytest.raises(NotFound, match="node7"):
        bare_lab.exec("node7", ["true"])


def test_default_prefix_has_the_short_instance_names() -> None:
    assert [node.instance for node in two_nodes().nodes] == ["node1", "node2"]
    assert [node.instance for node in two_nodes("other").nodes] == ["other-node1", "other-node2"]
    with pytest.raises(InvalidIntent):
        two_nodes("a/b")
