# SPDX-License-Identifier: GPL-2.0-only
"""The command line `mptm`: each command is one call of `mptm.node.Node`, and prints what came back.

Exit status 0 done, 1 failed, 2 wrong usage. Results go to standard output, errors, notes and progress to standard
error. Nothing that takes long to import is imported before a command needs it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from mptm.node import Node

OUTPUT_ERRORS = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO))
"""Of write(2), where the file is full or broken."""

STANDARD_OUTPUT = 1
"""Its file descriptor."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point of `mptm`; `arguments` default to those of the process. Never returns."""
    occupy_closed_streams()
    sys.exit(run(arguments))


def occupy_closed_streams() -> None:
    """Put /dev/null where standard input, output or error is closed (`mptm status >&-`).

    Otherwise the next file that is opened, such as the store, takes the number, and messages of libraries go into it.
    What is written to a closed output still fails, as long as somebody wants to write: it can only be read.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is not None:
            continue
        flags = os.O_WRONLY if name == "stderr" else os.O_RDONLY
        null = os.open(os.devnull, flags)
        if null != number:
            os.dup2(null, number)
            os.close(null)
        setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - for the whole run


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; errors have been printed."""
    import click

    from mptm.cli.root import mptm
    from mptm.errors import MptmError

    try:
        result = mptm.main(
            args=None if arguments is None else list(arguments), prog_name="mptm", standalone_mode=False
        )
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except click.UsageError as error:
        if error.ctx is not None:
            print(error.ctx.get_usage(), file=sys.stderr)
        _complain(error.format_message())
        if error.ctx is not None:
            print(f"  `{error.ctx.command_path} --help` has the options and an example", file=sys.stderr)
        return 2
    except click.ClickException as error:
        _complain(error.format_message())
        return 1
    except (click.Abort, KeyboardInterrupt):
        print(file=sys.stderr)
        return 130
    except MptmError as error:
        _complain(str(error))
        return 1
    except Exception as error:
        return explain(error, "mptm", _complain)
    return result if isinstance(result, int) else 0


def explain(error: Exception, program: str, complain: Callable[[str], None]) -> int:
    """Complain of what nobody expected: the output's problem, or our own. Returns the exit status.

    With MPTM_DEBUG our own is raised again.
    """
    if isinstance(error, BrokenPipeError):
        discard_output()
    elif (problem := output_problem(error)) is not None:
        complain(problem)
    elif os.environ.get("MPTM_DEBUG"):
        raise error
    else:
        complain(
            f"internal error: {type(error).__name__}: {error}\n"
            f"  this is a fault of {program}; the same command with MPTM_DEBUG=1 shows where"
        )
    return 1


def netns_of_environment(instance: str) -> str | None:
    """MPTM_NETNS, unless MPTM_INSTANCE stands beside it and is another instance than the one that is worked on."""
    if os.environ.get("MPTM_INSTANCE") not in (None, "", instance):
        return None
    return os.environ.get("MPTM_NETNS") or None


def remark_on(node: Node) -> str | None:
    """What is worth saying of a node that isn't there yet while others are: its name may be mistyped."""
    from mptm.store import instances

    others = [] if node.store.exists() else instances()
    are = "is" if len(others) == 1 else "are"
    return f"there is no instance {node.instance} yet; there {are} {', '.join(others)}" if others else None


def output_problem(error: Exception) -> str | None:
    """What is wrong with standard output (what is left for it is then discarded); None: it is another problem.

    What is written elsewhere says where: its errors have a file name, or have become MptmErrors.
    """
    if not isinstance(error, OSError) or error.filename is not None:
        return None
    closed = error.errno == errno.EBADF and _is_read_only(STANDARD_OUTPUT)
    if error.errno not in OUTPUT_ERRORS and not closed:
        return None
    discard_output()
    return f"standard output can't be written: {'it is closed' if closed else error.strerror}"


def _is_read_only(descriptor: int) -> bool:
    """Whether a file was opened for reading only, as that of a closed standard output is."""
    return fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


def discard_output() -> None:
    """Let what is still to be written to standard output go nowhere, instead of failing again on exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(text: str) -> None:
    print(f"mptm: error: {text}", file=sys.stderr)
