# SPDX-License-Identifier: GPL-2.0-only
"""Objects of one kind by key, of which few are changed and many stay: no change copies the many, nor reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

Obj = TypeVar("Obj")


class Changed(Mapping[str, Obj]):
    """What `base` becomes by `changes`: key -> the object from now on, None where there is none any more."""

    def __init__(self, base: Mapping[str, Obj], changes: Mapping[str, Obj | None]) -> None:
        self.base = base
        self.changes = changes

    def __getitem__(self, key: str) -> Obj:
        found = self.changes[key] if key in self.changes else self.base[key]
        if found is None:
            raise KeyError(key)
        return found

    def __contains__(self, key: object) -> bool:
        return self.changes[str(key)] is not None if key in self.changes else key in self.base

    def __iter__(self) -> Iterator[str]:
        for key in self.base:
            if self.changes.get(key, self.base) is not None:
                yield key
        for key, obj in self.changes.items():
            if obj is not None and key not in self.base:
                yield key

    def __len__(self) -> int:
        before = sum(key in self.base for key in self.changes)
        return len(self.base) - before + sum(obj is not None for obj in self.changes.values())


def changed(section: Mapping[str, Obj], changes: Mapping[str, Obj | None]) -> Mapping[str, Obj]:
    """A section with changes: of a dict a new one, of any other (which stays as it is) one on top."""
    if isinstance(section, Changed):
        return Changed(section.base, {**section.changes, **changes})
    if not isinstance(section, dict):
        return Changed(section, changes)
    merged = {**section, **changes}
    return {key: obj for key, obj in merged.items() if obj is not None}


def changes_between(before: Mapping[str, Obj], after: Mapping[str, Obj]) -> Mapping[str, Obj | None] | None:
    """What `changed` made one section of the other by; None: it isn't made of it."""
    if after is before:
        return {}
    return after.changes if isinstance(after, Changed) and after.base is before else None
