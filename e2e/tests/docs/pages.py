"""What stands in README.md and docs/: blocks with their language, and commands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rouse_e2e import paths

DOCS = paths.REPOSITORY / "docs"
PAGES = [paths.REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]

#: Of every block that is fenced: it says what is in it.
LANGUAGES = ("bash", "text", "yaml", "json")
#: What begins a command, in a block or between backquotes in a sentence.
PROGRAMS = (
    *("make", "kubectl", "helm", "docker", "kind", "grpcurl", "git", "curl", "apt-get", "pip"),
    *("buildah", "promtool", "python3", "rouse-operator", "rouse-agent"),
)
#: Fewer words are a program's name, or a verb of it, and no command.
LEAST_WORDS = {"kubectl": 3, "helm": 3}


@dataclass(frozen=True)
class Block:
    page: Path
    line: int  # of its first fence
    language: str
    text: str

    def __str__(self) -> str:
        return f"{name(self.page)}:{self.line}"


@dataclass(frozen=True)
class Command:
    page: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{name(self.page)}:{self.line}: {self.text}"


def name(page: Path) -> str:
    return str(page.relative_to(paths.REPOSITORY))


def blocks(page: Path) -> list[Block]:
    found, lines = [], page.read_text().splitlines()
    begin, language = 0, ""
    for number, line in enumerate(lines, 1):
        if not line.startswith("```"):
            continue
        if begin:
            found.append(Block(page, begin, language, "\n".join(lines[begin : number - 1]) + "\n"))
            begin = 0
        else:
            begin, language = number, line[3:].strip()
    assert begin == 0, f"{name(page)}:{begin}: a block that does not end"
    return found


def without_blocks(page: Path) -> list[tuple[int, str]]:
    """Lines outside of blocks, with their numbers."""
    found, inside = [], False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            found.append((number, line))
    return found


def of_block(block: Block) -> list[Command]:
    """Its lines, without comments; one that ends in a backslash goes on in the next."""
    found, text, begin = [], "", 0
    for number, line in enumerate(block.text.splitlines(), block.line + 1):
        line = re.sub(r"(^|\s)#.*$", "", line).rstrip()
        begin = begin or number
        if line.endswith("\\"):
            text += line[:-1].rstrip() + " "
            continue
        if text + line.strip():
            found.append(Command(block.page, begin, text + line.strip()))
        text, begin = "", 0
    return found


def in_sentences(page: Path) -> list[Command]:
    """Between backquotes: a program, or a script of ours, and what it is given."""
    found = []
    for number, line in without_blocks(page):
        for text in re.findall(r"`([^`]+)`", line):
            words = text.split()
            program = words[0] in PROGRAMS or words[0].endswith((".py", ".sh"))
            if program and len(words) >= LEAST_WORDS.get(words[0], 2):
                found.append(Command(page, number, text))
    return found


def commands(page: Path) -> list[Command]:
    """In the order in which they stand there."""
    found = [x for block in blocks(page) if block.language == "bash" for x in of_block(block)]
    return sorted(found + in_sentences(page), key=lambda x: x.line)
