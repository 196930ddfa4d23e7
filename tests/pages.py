"""The pages of the documentation, and the code blocks in them."""

import ast
import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness import REPOSITORY

PAGES: Final = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
_FENCE: Final = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A code block of a page.

    Attributes:
        line: of its first line, in the page.
    """

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"

    @property
    def is_before(self) -> bool:
        """Whether it shows another library, as `# before` in its first line says: it runs for itself."""
        return self.text.startswith("# before")

    @property
    def defines(self) -> bool:
        """Whether it defines functions or classes, and so belongs into the page's module."""
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        return (
            self.language == "python"
            and not self.is_before
            and any(isinstance(node, kinds) for node in ast.parse(self.text).body)
        )


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, found.start(3)) + 1, found[2].strip(), textwrap.dedent(found[3]))
        for found in _FENCE.finditer(text)
    ]


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a console block, with what it should print; nothing if the page does not say."""

    text: str
    output: str

    @property
    def words(self) -> list[str]:
        """Without `sudo` and variables before it."""
        words = shlex.split(self.text, comments=True)
        while words and (words[0] == "sudo" or re.match(r"[A-Z_]+=", words[0])):
            words = words[1:]
        return words


def commands(text: str) -> Iterator[Command]:
    """The commands of a console block: what follows `$ `, with continued lines, and the output after it."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        count = next(number for number, line in enumerate(lines, 1) if not line.endswith("\\"))
        yield Command("\n".join(lines[:count]), "\n".join(lines[count:]).strip())
