# SPDX-License-Identifier: GPL-2.0-only
"""Commands on the whole node: `apply`, `plan`, `export`, `restore`, `status`, `purge`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from mptm.cli.common import (
    ProgressBars,
    count,
    current_node,
    json_option,
    note,
    note_moves,
    print_fields,
    print_json,
    print_table,
    saying,
    warn_of,
)

if TYPE_CHECKING:
    from mptm.intent import Intent
    from mptm.node import ObjectChange

file_option = click.option(
    "-f",
    "--file",
    "path",
    required=True,
    metavar="FILE",
    help="Node file (YAML or JSON); - is standard input.",
)

COLOURS = {"+": "green", "-": "red", "~": "yellow"}


def _load(path: str) -> Intent:
    """The intent of a file. Raises MptmError where it can't be read, InvalidIntent where it makes no sense."""
    from mptm.config import load
    from mptm.errors import InvalidIntent, MptmError

    try:
        if path == "-":
            text = sys.stdin.read()
        else:
            with open(path, encoding="utf-8") as file:
                text = file.read()
    except OSError as error:
        raise MptmError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidIntent(f"{path} is not UTF-8 text (byte {error.start})") from error
    with ProgressBars() as bars, saying(f"reading {_name_of(path)}", bars):
        return load(text, _name_of(path), bars)


def _name_of(path: str) -> str:
    """A file as it is called in messages."""
    return "standard input" if path == "-" else path


def _print_changes(changes: tuple[ObjectChange, ...]) -> None:
    for change in changes:
        line = str(change)
        click.echo(click.style(line, fg=COLOURS[line[0]]))


@click.command()
@file_option
@click.option("--quiet", "-q", is_flag=True, help="Don't print what was changed.")
def apply(path: str, quiet: bool) -> None:
    """Make the node what a file says: what is in the file is added or changed, everything else removed.

    All or nothing: when anything is wrong nothing is changed, and the error names line and field. Applying a file
    twice changes nothing the second time.

    \b
    Example:
      mptm apply -f node1.yaml
      mptm export | sed s/10.30.30.2/10.30.30.9/ | mptm apply -f -
    """
    wanted = _load(path)
    with saying(f"bringing the node to what {_name_of(path)} says"):
        plan = current_node().apply(wanted)
    warn_of(plan)
    if not quiet:
        _print_changes(plan.changes)
        note_moves(plan)
        note(f"{count(len(plan.changes), 'object')} changed" if plan.changes else "nothing to change")


@click.command()
@file_option
@json_option
def plan(path: str, as_json: bool) -> None:
    """Show what `apply` would change, and change nothing: + added, - removed, ~ changed.

    With root the machine is looked at, too: missing interfaces and remotes that don't answer are told.

    \b
    Example:
      mptm plan -f node1.yaml
    """
    wanted = _load(path)
    with saying(f"comparing {_name_of(path)} with the node"):
        found = current_node().plan(wanted)
    if as_json:
        print_json(found.to_dict())
        return
    warn_of(found)
    _print_changes(found.changes)
    if not found.changes:
        note("nothing to change")


@click.command()
@json_option
def export(as_json: bool) -> None:
    """Write the whole node as a file that `apply` takes.

    \b
    Example:
      mptm export > node1.yaml
    """
    intent = current_node().intent
    if as_json:
        from mptm.intent import KINDS

        print_json({f"{kind}s": [each.to_dict() for each in intent.of_kind(kind).values()] for kind in KINDS})
        return
    from mptm.config import dump

    click.echo(dump(intent), nl=False)


@click.command()
def restore() -> None:
    """Bring the data plane back to what is stored: after a reboot, or when interfaces or neighbours have changed.

    What can be brought up is; the exit status is 1 when a tunnel stays down because its remote doesn't answer.
    The systemd unit mptm-restore runs it at boot.

    \b
    Example:
      mptm restore
    """
    from mptm.sync import count_entries

    plan = current_node().restore()
    warn_of(plan)
    note_moves(plan)
    if plan.outcome.upgraded:
        note("the attached programs were exchanged for those of the installed build")
    changed = count_entries(plan.outcome.changes)
    if changed:
        note(f"{count(changed, 'entry', 'entries')} of the data plane changed")
    elif not plan.outcome.upgraded:
        note("the tables of the data plane were as they should be")
    if plan.down:
        note(f"not everything is up: {', '.join(f'{each.kind} {each.key}' for each in plan.down)}")
        raise click.exceptions.Exit(1)


@click.command()
@json_option
def status(as_json: bool) -> None:
    """Show how the node is now. The exit status is 1 when something that is wanted isn't up, or with any warning.

    \b
    Example:
      mptm status
    """
    found = current_node().status()
    if as_json:
        print_json(found.to_dict())
    else:
        print_fields(
            {
                "instance": found.instance,
                "network namespace": found.netns or "the machine's",
                "data plane": "loaded" if found.loaded else "not loaded",
                "generation": found.generation,
            }
        )
        if found.objects:
            click.echo()
            print_table(["KIND", "NAME", "STATE"], [tuple(each) for each in found.objects])
        for warning in found.warnings:
            note(f"warning: {warning}")
        if found.interrupted:
            note("warning: a command is at work, or was interrupted")
        if found.differences:
            stale = count(found.differences, "entry", "entries")
            note(f"warning: out of date in the data plane: {stale}; `mptm restore` renews them")
        if not found.loaded and found.objects:
            note("warning: the data plane is not loaded: `mptm restore` loads it")
    if not found.healthy:
        raise click.exceptions.Exit(1)


@click.command()
@click.option("--yes", is_flag=True, help="Don't ask.")
def purge(yes: bool) -> None:
    """Detach from every interface, unload the data plane and delete the stored node. Traffic stops.

    \b
    Example:
      mptm export > backup.yaml && mptm purge --yes
    """
    node = current_node()
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("nobody is there to be asked: give --yes to purge without a question")
    if not node.store.exists():
        note(f"nothing is stored of instance {node.instance}; what is left of it, if anything, is removed")
    if not yes:
        click.confirm(f"Detach and forget everything of instance {node.instance}?", abort=True, err=True)
    for warning in node.purge():
        click.echo(f"mptm: warning: {warning}", err=True)
