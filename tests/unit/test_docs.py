# SPDX-License-Identifier: GPL-2.0-only
"""The documents say what is so: commands parse, tables are complete, files load, the worked example works."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import document_protocols
import pytest
from c_headers import c_enum
from documents import DOCUMENTS, ROOT, Block, blocks, commands, prose, table

from mptm import config, reasons
from mptm.cli import mptm_user
from mptm.cli.root import mptm
from mptm.fields import fields_of
from mptm.protocols import PROTOCOLS

DOCS = ROOT / "docs"
PROGRAMS = ("mptm", "mptm_user")
OF_PARSERS = r"REASON_(GENEVE|VXLAN|VLAN|GRE|ERSPAN|GPE|NSH|ETHERIP|GTPU|L2TP|GUE|MPLS|SRV6)_"
SEPARATORS = re.compile(r"[|&;()<>]+")


def words_of(line: str) -> Iterator[list[str]]:
    """The simple commands of a shell line, those inside $(...) included; redirections end a command."""
    line = line.replace("\\\n", " ")
    for inner in re.findall(r"\$\(([^()]*)\)", line):
        yield from words_of(inner)
    line = re.sub(r"\$\([^()]*\)", "substituted", line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()<>")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    found: list[str] = []
    try:
        tokens = list(lexer)
    except ValueError:
        tokens = line.split()
    for token in [*tokens, ";"]:
        if SEPARATORS.fullmatch(token):
            if found:
                yield found
            found = []
        else:
            found.append(token)


def shown_commands(document: Path) -> Iterator[tuple[str, list[str]]]:
    """(where, words) of every command of ours in a code block."""
    lines = [(command.where, command.text) for command in commands(document)]
    for block in blocks(document, "sh"):
        text = block.text.replace("\\\n", " ")
        lines += [(f"{document.name}:{block.line}", line) for line in text.splitlines()]
    for where, line in lines:
        for words in words_of(line):
            if words[0] in PROGRAMS:
                yield where, words


def mentioned_commands(document: Path) -> Iterator[list[str]]:
    """Commands of ours that stand in the text."""
    for text in re.findall(r"`(mptm(?:_user)? [^`]+)`", prose(document)):
        yield next(words_of(" ".join(text.split())))


def parse(words: list[str], *, complete: bool = True) -> None:
    """Parse a command with the real command tree, without running it. Raises click.UsageError, mptm_user.Usage.

    Not `complete`: arguments, options and subcommands may be missing.
    """
    program, *arguments = words
    if program == "mptm_user":
        mptm_user.verify(mptm_user.parse([argument.replace("$", "") for argument in arguments]))
        return
    command: click.Command = mptm
    context: click.Context | None = None
    name: str | None = program
    while True:
        try:
            context = command.make_context(name, list(arguments), parent=context)
        except click.exceptions.Exit:  # --help
            return
        except (click.exceptions.NoArgsIsHelpError, click.MissingParameter):
            if complete:
                raise
            return
        if not isinstance(command, click.Group):
            break
        rest = [*context._protected_args, *context.args]
        if not rest and not complete:
            return
        name, found, arguments = command.resolve_command(context, rest)
        assert found is not None
        command = found
    inner = context.params.get("command")
    if command.name == "exec" and inner and inner[0] in PROGRAMS:
        parse(list(inner), complete=complete)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_shown_parses(document, monkeypatch):
    monkeypatch.setattr(mptm_user, "_padded_mac", lambda name, text: text)  # $variables stand there
    wrong = []
    for where, words in shown_commands(document):
        words = [re.sub(r"^\$\w+$", "02:00:00:00:00:01", word) for word in words]
        if words[-1:] == [";"]:
            words.pop()
        try:
            parse(words)
        except (click.UsageError, mptm_user.Usage) as error:
            wrong.append(f"{where}: {shlex.join(words)}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_mentioned_exists(document):
    wrong = []
    for words in mentioned_commands(document):
        if words[1:2] == ["COMMAND"]:
            continue
        try:
            parse(words, complete=False)
        except (click.UsageError, mptm_user.Usage) as error:
            wrong.append(f"{document.name}: {shlex.join(words)}: {error}")
    assert not wrong, "\n".join(wrong)


def test_the_commands_of_the_documents_are_found():
    shown = [words for document in DOCUMENTS for _, words in shown_commands(document)]
    assert len(shown) > 40
    assert {words[1] for words in shown if words[0] == "mptm"} >= {"port", "tunnel", "route", "apply", "lab"}
    with pytest.raises(click.UsageError, match="--nothere"):
        parse(["mptm", "lab", "exec", "node1", "--", "mptm", "counters", "--nothere"])
    with pytest.raises(click.UsageError, match="nothere"):
        parse(["mptm", "tunnel", "nothere"], complete=False)


def test_every_reason_stands_in_the_table_with_its_caption():
    rows = table(DOCS / "troubleshooting.md", "reason")
    assert [row[:2] for row in rows] == [
        [name, caption] for name, caption in reasons.CAPTIONS.items() if name != "REASON_NONE"
    ]
    assert all(row[2] for row in rows)


def test_every_map_stands_in_the_table():
    named = {name for row in table(DOCS / "architecture.md", "table") for name in re.findall(r"\w+", row[0])}
    text = (ROOT / "bpf" / "maps.h").read_text()
    declared = set(re.findall(r"^TABLE_\w+\((\w+),", text, re.MULTILINE))
    declared |= set(re.findall(r'^} (\w+) SEC\("\.maps"\)', text, re.MULTILINE))
    assert named == declared


def test_the_protocols_are_documented_as_the_registry_has_them():
    """`make docs` writes what is missing."""
    made = document_protocols.protocols_document()
    assert (DOCS / "protocols.md").read_text(encoding="utf-8") == made, "run `make docs`"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == document_protocols.readme(readme), "run `make docs`"


def test_every_protocol_stands_in_the_table_with_its_name_and_reference():
    rows = table(DOCS / "protocols.md", "protocol")
    assert sorted([re.sub(r"\[(.*)\].*", r"\1", row[0]), *row[1:3]] for row in rows) == sorted(
        [protocol.title, protocol.name, protocol.reference] for protocol in PROTOCOLS.values()
    )


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS.keys())
def test_every_option_is_documented_where_the_protocol_is(protocol):
    text = (DOCS / "protocols.md").read_text(encoding="utf-8")
    own = text.split(f"\n### {protocol.title}\n")[1].split("\n### ")[0]
    shared = text.split("\n## What every tunnel has\n")[1].split("\n## ")[0]
    assert "\nReceived: " in own, "the module's docstring says what is accepted"
    for field in fields_of(protocol.options):
        assert re.search(rf"`--{field.name.replace('_', '-')}`", own + shared), field.name


def test_the_reasons_of_a_parser_are_found_in_its_source():
    reasons_of = {name: document_protocols.reasons_of(protocol) for name, protocol in PROTOCOLS.items()}
    assert all(set(found) <= reasons.CAPTIONS.keys() for found in reasons_of.values())
    assert reasons_of["vxlan"] == ["REASON_VXLAN_TRUNCATED", "REASON_VXLAN_FLAGS"]
    assert "REASON_GRE_CHECKSUM" in reasons_of["gre-udp"]
    assert "REASON_NSH_HEADER" in reasons_of["nsh"]
    assert "REASON_L2TP_COOKIE" in reasons_of["l2tp"]
    of_parsers = {name for name in c_enum("reason") if re.match(OF_PARSERS, name)}
    assert {each for found in reasons_of.values() for each in found} >= of_parsers


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_and_paths_lead_somewhere(document):
    text = prose(document)
    targets = {target for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text) if target}
    missing = [target for target in sorted(targets) if not (document.parent / target).exists()]
    paths = set(re.findall(r"`((?:src|bpf|tests|docs|examples|packaging)/[\w./-]+)`", text))
    known = {path for path in paths if (ROOT / path).exists()}
    example = {block.lines[0] for block in blocks(DOCS / "adding-a-protocol.md")} and {
        "src/mptm/protocols/lisp.py",
        "bpf/decap/lisp.h",
    }
    assert not missing
    assert not paths - known - example


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_headings_that_are_linked_exist(document):
    text = prose(document)
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text):
        other = (document.parent / target) if target else document
        headings = re.findall(r"^#+ (.*)", prose(other), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_node_files_shown_load():
    for document in DOCUMENTS:
        for block in blocks(document, "yaml"):
            if "networks:" in block.text:
                assert config.load(block.text, document.name)


def test_names_that_python_examples_import_exist():
    examples = [block for document in DOCUMENTS for block in blocks(document, "python")]
    assert examples
    for block in examples:
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mptm"):
                module = importlib.import_module(node.module or "")
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{block.document.name}: {node.module}.{alias.name}"


def test_the_version_has_its_place_in_the_changelog():
    from mptm import __version__

    assert f"## [{__version__}] - " in (ROOT / "CHANGELOG.md").read_text()


# ---- the worked example ----------------------------------------------------------------------------------


def test_the_worked_example_compiles_and_builds_a_header(tmp_path):
    """The files and the changes of docs/adding-a-protocol.md, made to a copy of the tree."""
    document = DOCS / "adding-a-protocol.md"
    for directory in ("bpf", "src", "scripts", "tests/model"):
        shutil.copytree(ROOT / directory, tmp_path / directory, ignore=shutil.ignore_patterns("__pycache__"))
    (python,), (header,) = (list(blocks(document, kind)) for kind in ("python", "c"))
    (tmp_path / "src/mptm/protocols/lisp.py").write_text(python.text)
    (tmp_path / "bpf/decap/lisp.h").write_text(header.text)
    for changes in blocks(document, "diff"):
        change_files(tmp_path, changes)

    compiled = run(tmp_path, "scripts/compile_bpf.py", "build", "bpf/mptm.bpf.c")
    assert compiled == "built build/mptm.o\n"
    built = run(
        tmp_path,
        "-c",
        "from ipaddress import ip_address as ip\n"
        "from mptm.facts import Path\n"
        "from mptm.intent import tunnel_from_dict\n"
        "from mptm.protocols import PROTOCOLS\n"
        "from mptm.reasons import Reason, caption_of\n"
        "path = Path(2, ip('10.30.30.1'), bytes(6), None, bytes(6), 1500)\n"
        "values = dict(name='t', protocol='lisp', network='blue', remote='10.30.30.2', instance_id=7)\n"
        "template = PROTOCOLS['lisp'].build(tunnel_from_dict(values), path)\n"
        "print(template.outer.hex()[46:48], template.outer.hex()[-16:], template.overhead())\n"
        "print(caption_of(Reason['REASON_LISP_FLAGS'].name))\n",
    )
    assert built == "11 0800000000000700 36\nLISP without an instance identifier (I flag not set)\n"
    made = run(
        tmp_path,
        "-c",
        "from mptm.intent import tunnel_from_dict\n"
        "from model import decap, encap\n"
        "from model.encap.base import Fields\n"
        "from model.parse import parse_frame\n"
        "from model.way import Way\n"
        "values = dict(name='t', protocol='lisp', network='blue', remote='10.30.30.2', instance_id=7)\n"
        "options = tunnel_from_dict(values).options\n"
        "inner = parse_frame(bytes.fromhex('00' * 12 + '0800' + '4500001400000000' + '40ff' + '00' * 10))\n"
        "way = Way(2, 1500, bytes(6), bytes(6), bytes(4), bytes(4))\n"
        "wire = encap.encapsulate('lisp', options, way, inner, Fields(0))\n"
        "read = decap.read(decap.read_outer(wire, decap.arrivals('lisp', options)))\n"
        "print(wire[42:50].hex(), read.names[0].identifier, read.names[0].payload.data == inner.ip)\n",
    )
    assert made == "0800000000000700 7 True\n"


def change_files(root: Path, changes: Block) -> None:
    """Apply a diff whose hunks are found by their text: a document has no line numbers."""
    path, hunk = root, [""]
    for line in [*changes.lines, "@@"]:
        if line.startswith(("--- ", "+++ ", "@@")):
            before, after = (
                "".join(f"{each[1:]}\n" for each in hunk[1:] if each[:1] in (" ", sign)) for sign in "-+"
            )
            if len(hunk) > 1:
                text = path.read_text()
                assert text.count(before) == 1, f"{path.relative_to(root)} doesn't have once:\n{before}"
                path.write_text(text.replace(before, after))
            hunk = [""]
            if line.startswith("+++ b/"):
                path = root / line.removeprefix("+++ b/")
        else:
            hunk.append(line or " ")


def run(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env={"PYTHONPATH": "src:tests", "PATH": "/usr/bin:/bin:/usr/local/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
