# SPDX-License-Identifier: GPL-2.0-only
"""`mptm completion` and `mptm version`."""

from __future__ import annotations

import click

from mptm import __version__


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that completes commands, options and the names of objects in SHELL.

    \b
    Example:
      mptm completion bash > /etc/bash_completion.d/mptm
      mptm completion zsh > ~/.zfunc/_mptm
      mptm completion fish > ~/.config/fish/completions/mptm.fish
    """
    from click.shell_completion import get_completion_class

    completer = get_completion_class(shell)
    assert completer is not None
    click.echo(completer(context.find_root().command, {}, "mptm", "_MPTM_COMPLETE").source())


@click.command()
def version() -> None:
    """Print the version of MPTM.

    \b
    Example:
      mptm version
    """
    click.echo(f"mptm {__version__}")
