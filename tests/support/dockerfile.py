"""Enough of a Dockerfile's language to carry ours out without a container engine."""

from __future__ import annotations

import json
import pathlib
import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Instruction:
    """One instruction: its word in capitals, and what follows with its lines joined."""

    word: str
    text: str

    def command(self) -> list[str]:
        """The words of an instruction in its JSON form."""
        words = json.loads(self.text[self.text.index("[") :])
        assert all(isinstance(word, str) for word in words), self
        return list(words)

    def assignments(self, variables: Mapping[str, str]) -> dict[str, str]:
        """The `NAME=value` of ENV, ARG and LABEL, with `variables` filled in. An ARG without a
        value is left out."""
        pairs = re.findall(r'([\w.]+)=("[^"]*"|\S*)', self.text)
        return {name: expand(value.strip('"'), variables) for name, value in pairs}


@dataclass
class Stage:
    """The instructions from one FROM to the next."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)

    def only(self, word: str) -> Instruction:
        (found,) = (each for each in self.instructions if each.word == word)
        return found


def expand(text: str, variables: Mapping[str, str]) -> str:
    return string.Template(text).safe_substitute(variables)


def parse(file: pathlib.Path) -> list[Stage]:
    """The stages of a Dockerfile, the last of them the image. Raises AssertionError for an
    instruction before the first FROM that is not an ARG."""
    lines = [line for line in file.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    stages: list[Stage] = []
    for line in filter(str.strip, joined.splitlines()):
        word, _, text = line.partition(" ")
        if word == "FROM":
            base, _, name = text.partition(" AS ")
            stages.append(Stage(base, name))
        elif stages:
            stages[-1].instructions.append(Instruction(word, text.strip()))
        else:
            assert word == "ARG", f"{line!r} before the first FROM"
    return stages
