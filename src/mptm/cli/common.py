# SPDX-License-Identifier: GPL-2.0-only
"""What the commands share: the node they work on, options, tables for people and JSON for programs."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from mptm.intent import Intent
    from mptm.node import Node, Plan

Command = TypeVar("Command", bound=Callable[..., Any])
Thing = TypeVar("Thing")

SHOWN_FROM = 10_000
"""Things to do from which on a progress bar is shown: fewer are done before anyone looks."""

LINES_AT_ONCE = 1000
"""That many are printed in one piece."""

Columns = Mapping[str, str | Callable[[Any], object]]
"""Of a table of objects: heading -> the attribute that stands there, or what is made of the object."""

json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")


def current_node() -> Node:
    """The node that the global options choose. Raises InvalidIntent for an impossible instance name."""
    from mptm.cli import remark_on
    from mptm.errors import InvalidIntent
    from mptm.node import Node

    options = click.get_current_context().find_root().obj
    try:
        node = Node(options["instance"], netns=options["netns"], progress=note)
    except InvalidIntent as error:
        raise click.UsageError(str(error)) from error
    if remark := remark_on(node):
        note(remark)
    return node


@contextlib.contextmanager
def usage_errors() -> Iterator[None]:
    """Turn a value that makes no sense into a usage error: for objects built from the command line."""
    from mptm.errors import InvalidIntent

    try:
        yield
    except InvalidIntent as error:
        context = click.get_current_context()
        options = {text for option in context.command.get_params(context) for text in option.opts}
        flag = f"--{(error.field or '').replace('_', '-')}"
        where = f"{flag}: " if flag in options else ""
        hint = f"\n  {error.hint}" if error.hint else ""
        raise click.UsageError(f"{where}{error.message}{hint}", context) from error


def note(text: str) -> None:
    """Say something that is no result: on standard error."""
    click.echo(f"mptm: {text}", err=True)


def count(number: int, noun: str, plural: str | None = None) -> str:
    """`1 object`, `2 objects`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


@contextlib.contextmanager
def saying(text: str, bars: ProgressBars | None = None) -> Iterator[None]:
    """Say on standard error what is being done when it takes longer than a second, unless a bar shows it."""
    from mptm.progress import saying_later

    def say() -> None:
        if bars is None or not bars.are_shown:
            note(text)

    with saying_later(say):
        yield


class ProgressBars:
    """A bar for each thing that is being done, on standard error where that is a terminal; else nothing.

    Called with what is done, and how much of how much is. A context manager that finishes the last line.
    """

    def __init__(self) -> None:
        self._doing: str | None = None
        self._bar: Any = None
        self._on_terminal = sys.stderr.isatty()

    def __call__(self, doing: str, done: int, total: int) -> None:
        """See mptm.progress.Advance."""
        if not self._on_terminal or total < SHOWN_FROM:
            return
        if doing != self._doing:
            self._finish()
            self._doing = doing
            self._bar = click.progressbar(length=total, label=f"{doing:<20}", file=sys.stderr)
            self._bar.__enter__()
        self._bar.update(min(done, total) - self._bar.pos)

    @property
    def are_shown(self) -> bool:
        """Whether there has been one."""
        return self._doing is not None

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._finish()

    def _finish(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        self._bar = None


def warn_of(plan: Plan) -> None:
    """Print a plan's warnings."""
    for warning in plan.warnings:
        click.echo(f"mptm: warning: {warning}", err=True)


def note_moves(plan: Plan, but: str = "") -> None:
    """Say which ports, but one, a change has led to another hook."""
    for name, hook in plan.outcome.moved.items():
        if name != but:
            note(f"{name} is at {hook.upper()} now: `mptm port show {name}` says why")


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(document, indent=2, default=str))


def print_json_list(documents: Iterable[str]) -> None:
    """A list of what is JSON already, as `print_json` would print it, however long it is."""
    between = "["
    for some in _pieces(documents):
        click.echo(between + ",".join(f"\n{document}" for document in some), nl=False)
        between = ","
    click.echo("[]" if between == "[" else "\n]")


def print_table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, right: str = "") -> None:
    """Aligned columns; those whose heading is in `right` (space separated) are set to the right."""
    cells = [list(map(_cell, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    print_rows(headings, widths, cells, right=right)


def print_rows(
    headings: Sequence[str], widths: Sequence[int], rows: Iterable[Sequence[object]], *, right: str = ""
) -> None:
    """The same where the widths of columns are known before the rows, of which there may be very many."""
    columns = [
        f"{{:{'>' if heading in right.split() else '<'}{width}}}"
        for heading, width in zip(headings, widths, strict=True)
    ]
    pattern = "  ".join(columns)

    def line(row: Sequence[object]) -> str:
        return pattern.format(*map(_cell, row)).rstrip()

    heading = pattern.format(*headings).rstrip()
    click.echo(click.style(heading, bold=True) if sys.stdout.isatty() else heading)
    for some in _pieces(rows):
        click.echo("\n".join(map(line, some)))


def _cell(value: object) -> str:
    return "-" if value is None or value == "" else str(value)


def _pieces(things: Iterable[Thing]) -> Iterator[list[Thing]]:
    rest = iter(things)
    while some := list(itertools.islice(rest, LINES_AT_ONCE)):
        yield some


def of_network(intent: Intent, kind: str, network: str | None) -> list[Any]:
    """The objects of a kind that belong to a network; None: all of them. NotFound: there is no such network."""
    if network is not None:
        intent.get("network", network)
    return [each for each in intent.of_kind(kind).values() if network in (None, each.network)]


def print_objects(
    objects: Iterable[Any],
    columns: Columns,
    *,
    as_json: bool,
    defaults: bool = False,
    right: str = "",
) -> None:
    """A table of objects; or JSON, in which `defaults` says whether fields at their default are there as well."""
    if as_json:
        print_json([each.to_dict(defaults=defaults) for each in objects])
    else:
        rows = [
            [getattr(each, of) if isinstance(of, str) else of(each) for of in columns.values()]
            for each in objects
        ]
        print_table(list(columns), rows, right=right)


def print_fields(fields: dict[str, object]) -> None:
    """A field per line, names aligned; None and empty values as `-`."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        click.echo(f"{name.ljust(width)}  {in_words(value) or '-'}")


def in_words(value: object) -> str:
    """A value as people read it: yes and no, the items of a list with commas; None and empty ones as nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(in_words, value))
    return "" if value is None else str(value)


def complete_names(kind: str) -> Callable[[click.Context, click.Parameter, str], list[CompletionItem]]:
    """Completion of an argument by the names of stored objects; silent when the state can't be read."""

    def complete(context: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from mptm.errors import MptmError
        from mptm.store import Store, state_directory

        root = context.find_root()
        instance = (root.obj or root.params).get("instance") or "default"
        try:
            objects = getattr(Store(state_directory(instance)).read().intent, kind)
        except MptmError:
            return []
        return [CompletionItem(str(name)) for name in objects if str(name).startswith(incomplete)]

    return complete


network_option = click.option(
    "--network",
    required=True,
    shell_complete=complete_names("networks"),
    help="The network that it belongs to.",
)
only_network_option = click.option(
    "--network", shell_complete=complete_names("networks"), help="Only those of this network."
)


def complete_interfaces(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Completion by the names of the machine's interfaces."""
    import socket

    return [CompletionItem(name) for _, name in socket.if_nameindex() if name.startswith(incomplete)]
