# SPDX-License-Identifier: GPL-2.0-only
"""What can go wrong, as one tree.

MptmError                    anything that MPTM reports; `hint` says what to do next
├── InvalidIntent            a value, object or file that makes no sense; names field and line
├── InvalidPacket            a packet, its description or its file can't be read
├── NotFound                 the named object isn't there
├── AlreadyExists            the name or key is taken
├── InUse                    something else still refers to the object
├── Unresolved               no route, no local address or no neighbour for a remote
├── Busy                     another mptm command holds the instance
├── ForeignProgram           the interface already has somebody else's XDP program
├── TableFull                a table of the data plane has no room left
└── KernelError              a system call failed; `errno` says how
    └── NotSupported         this kernel or machine can't do it; says what is required
"""

from __future__ import annotations

import os


class MptmError(Exception):
    """Base of all errors that MPTM reports on purpose. `message` is one sentence; `hint` is what to do next."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class InvalidIntent(MptmError):
    """A value, object or file that makes no sense. `field` is a path such as `tunnels[0].vni`, `line` counts from 1."""

    def __init__(
        self, message: str, hint: str | None = None, *, field: str | None = None, line: int | None = None
    ) -> None:
        super().__init__(message, hint)
        self.field = field
        self.line = line

    def __str__(self) -> str:
        where = ": ".join(
            part
            for part in (f"line {self.line}" if self.line else None, self.field, super().__str__())
            if part is not None
        )
        return where


class InvalidPacket(MptmError):
    """A packet, its description or its file can't be read."""


class NotFound(MptmError):
    """The named object isn't there."""


class AlreadyExists(MptmError):
    """The name or key is taken."""


class InUse(MptmError):
    """Something else still refers to the object."""


class Unresolved(MptmError):
    """No route, no local address or no neighbour for a remote."""


class Busy(MptmError):
    """Another mptm command holds the instance."""


class ForeignProgram(MptmError):
    """The interface already has somebody else's XDP program."""


class TableFull(MptmError):
    """A table of the data plane has no room left."""


class KernelError(MptmError):
    """A system call failed; `errno` says how."""

    def __init__(self, message: str, errno: int, hint: str | None = None) -> None:
        super().__init__(f"{message}: {os.strerror(errno)}" if errno else message, hint)
        self.errno = errno


class NotSupported(KernelError):
    """This kernel or machine can't do it; the message says what is required."""

    def __init__(self, message: str, errno: int = 0, hint: str | None = None) -> None:
        super().__init__(message, errno, hint)
