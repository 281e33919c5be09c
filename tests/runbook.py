"""The commands of docs/operations.md, as people would paste them."""

import re
import shlex
from pathlib import Path

TEXT = (Path(__file__).parents[1] / "docs" / "operations.md").read_text()


def commands(*programs: str) -> list[str]:
    """Lines of the console blocks, in order, that begin with one of these programs (after variables)."""
    lines = [
        line for block in re.findall(r"```console\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()
    ]
    return [line for line in lines if program_of(line) in programs]


def program_of(line: str) -> str:
    """The first word of a command that is no assignment."""
    return next(word for word in line.lstrip("(").split() if not re.match(r"[A-Z_]+=", word))


def pieces(line: str, program: str) -> list[list[str]]:
    """The words of every call of a program in a line, those in pipes and in `$(…)` too."""
    inner = re.findall(r'"\$\((.*?)\)"', line)
    outer = re.sub(r'"\$\(.*?\)"', "NAME", line)
    calls = [shlex.split(part) for text in (outer, *inner) for part in re.split(r"\||&&", text)]
    return [words for words in calls if words and words[0] == program]
