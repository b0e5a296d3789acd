# SPDX-License-Identifier: GPL-2.0-only
"""What the documents show, taken apart for tests: code blocks, tables, and commands with their output.

In a `console` block a line `# command` is typed by root on the machine, `node1# command` by root in a shell on that
node of the lab (`mptm lab exec node1 -- bash`). A backslash continues a command. What follows is its output, in which
a line `...` stands for lines left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("examples/*/README.md")),
]

PROMPT = re.compile(r"(?P<place>[a-z][\w-]*)?# (?P<text>.*)")


@dataclass(frozen=True)
class Block:
    """A fenced code block; `line` is that of its first line, from 1."""

    document: Path
    language: str
    line: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """Its lines, each with its end."""
        return "".join(f"{line}\n" for line in self.lines)


@dataclass(frozen=True)
class Command:
    """A command of a `console` block, and the output that the document shows. `place` "": the machine."""

    where: str
    place: str
    text: str
    output: tuple[str, ...]


def blocks(document: Path, language: str | None = None) -> Iterator[Block]:
    """The fenced code blocks of a document, or those of one language."""
    opened: tuple[str, int] | None = None
    held: list[str] = []
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("```"):
            held.append(line)
        elif opened is None:
            opened, held = (line[3:].strip(), number + 1), []
        else:
            if language in (None, opened[0]):
                yield Block(document, *opened, tuple(held))
            opened = None
    assert opened is None, f"{document.name}:{opened[1]}: a code block isn't closed"


def commands(document: Path) -> Iterator[Command]:
    """The commands of a document's `console` blocks, in order."""
    for block in blocks(document, "console"):
        found: list[tuple[int, str, str, list[str]]] = []
        continued = False
        for number, line in enumerate(block.lines, block.line):
            prompt = PROMPT.fullmatch(line)
            if continued:
                at, place, text, output = found[-1]
                found[-1] = at, place, f"{text}\n{line}", output
                continued = line.endswith("\\")
            elif prompt:
                found.append((number, prompt["place"] or "", prompt["text"], []))
                continued = line.endswith("\\")
            else:
                assert found, f"{document.name}:{number}: a console block begins with a prompt"
                found[-1][3].append(line)
        for number, place, text, output in found:
            yield Command(f"{document.name}:{number}", place, text, tuple(output))


def table(document: Path, heading: str) -> list[list[str]]:
    """The rows of the first table whose first column is headed so; cells without backquotes around them."""
    rows: list[list[str]] = []
    inside = False
    for line in document.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
        if inside and not cells:
            break
        if cells and cells[0] == heading:
            inside = True
        elif inside and not re.fullmatch(r":?-+:?", cells[0]):
            rows.append([re.sub(r"^`(.*)`$", r"\1", cell) for cell in cells])
    return rows


def prose(document: Path) -> str:
    """A document without its code blocks."""
    return re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
