# SPDX-License-Identifier: GPL-2.0-only
"""The command `mptm` itself: global options, and the list of commands, each imported when it is called."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from mptm.cli import netns_of_environment

COMMANDS: dict[str, tuple[str, str]] = {
    "network": ("mptm.cli.objects:network", "Networks: who may talk to whom."),
    "port": ("mptm.cli.objects:port", "Ports: interfaces with a program of MPTM."),
    "tunnel": ("mptm.cli.tunnel:tunnel", "Tunnels: ways to other nodes."),
    "group": ("mptm.cli.group:group", "Groups: tunnels that share flows."),
    "route": ("mptm.cli.objects:route", "Routes: where an inner address or prefix is."),
    "flow": ("mptm.cli.objects:flow", "Flows: exact pairs of inner addresses, looked up before routes."),
    "apply": ("mptm.cli.whole:apply", "Make the node what a file says, all or nothing."),
    "plan": ("mptm.cli.whole:plan", "Show what `apply` would change."),
    "export": ("mptm.cli.whole:export", "Write the whole node as a file for `apply`."),
    "restore": ("mptm.cli.whole:restore", "Bring the data plane back to what is stored (after a reboot)."),
    "status": ("mptm.cli.whole:status", "Show what is up, what is down, and why."),
    "purge": ("mptm.cli.whole:purge", "Detach everything and forget the node."),
    "counters": ("mptm.cli.observe:counters", "Packets and bytes per tunnel and port."),
    "drops": ("mptm.cli.observe:drops", "What was dropped or refused, and why."),
    "trace": (
        "mptm.cli.trace:trace",
        "What the data plane does with a packet, step by step; nothing is sent.",
    ),
    "table": ("mptm.cli.table:table", "The tables of the data plane, as they are."),
    "reset": ("mptm.cli.observe:reset", "Set counters and drops to zero."),
    "doctor": ("mptm.cli.doctor:doctor", "What this machine can do, what is missing, how to get it."),
    "lab": ("mptm.lab.cli:lab", "Two nodes in network namespaces, to try things on one machine."),
    "completion": ("mptm.cli.completion:completion", "Print the completion script of a shell."),
    "version": ("mptm.cli.completion:version", "Print the version."),
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and one-line help, and imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of the table: what is made first comes first."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command; None for a name that isn't one."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in --help, without importing a single command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_text) for name, (_, help_text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a misspelt name."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            if "Did you mean" in error.message or not (close := get_close_matches(args[0], COMMANDS, n=1)):
                raise
            raise click.UsageError(f"{error.message} Did you mean {close[0]!r}?", ctx) from None


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from mptm import __version__

        click.echo(f"mptm {__version__}")
        context.exit()


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option(
    "--instance",
    metavar="NAME",
    default="default",
    show_default=True,
    envvar="MPTM_INSTANCE",
    show_envvar=True,
    help="Which node: several can live on one machine, each with its state, maps and programs.",
)
@click.option(
    "--netns",
    metavar="NAME",
    help="Network namespace (a name of `ip netns`, or a path) that a new instance lives in. It is remembered.  "
    "[env var: MPTM_NETNS, which belongs to MPTM_INSTANCE where both are set]",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Print the version.",
)
@click.pass_context
def mptm(context: click.Context, /, **options: Any) -> None:
    """Multi Protocol Tunnel Multiplexer: puts packets of containers, VMs and gateways into tunnels, in the kernel.

    A node has networks, ports (interfaces), tunnels to other nodes, and routes that say which tunnel leads to which
    inner address. Commands change the stored state and the data plane in one step; traffic goes on when no mptm
    process runs.

    \b
    Example: a container behind veth-node1 reaches 10.250.1.101 on the node 10.30.30.2
      mptm network add blue --id 1
      mptm port add veth-node1 --role access --network blue
      mptm port add eth0 --role uplink
      mptm tunnel add to-node2 --protocol geneve --network blue --remote 10.30.30.2 --vni 100
      mptm route add 10.250.1.101/32 --network blue --via to-node2
      mptm route add 10.250.1.100/32 --network blue --port veth-node1

    Exit status: 0 done, 1 failed, 2 wrong usage. Files: /var/lib/mptm/INSTANCE (MPTM_STATE_DIR moves it),
    /sys/fs/bpf/mptm/INSTANCE.
    """
    options["netns"] = options["netns"] or netns_of_environment(options["instance"])
    context.obj = options
