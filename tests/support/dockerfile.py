"""Enough of a Dockerfile's language to carry ours out without a container engine."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

ROOT = pathlib.Path(__file__).parents[2]
_PATHS = re.compile(r"(?<![\w/.])/(src|opt|cache|models)\b")


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


class Image:
    """What a build stage leaves in a folder that stands for the root."""

    def __init__(self, folder: pathlib.Path, stages: list[Stage]) -> None:
        self.folder = folder
        self.build, self.last = stages
        self.environment = {
            "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
        }
        # The RUN lines that were carried out as they stand, and what all printed.
        self.ran: list[str] = []
        self.output = ""

    def inside(self, text: str) -> str:
        """`text` with the image's paths below the folder."""
        return _PATHS.sub(rf"{self.folder}/\1", text)

    def carry_out(self, adapt: Callable[[str], str] = str, **arguments: str) -> None:
        """Every instruction of the build stage. `adapt` may put another command in the place of
        what a RUN says, or an empty one. `arguments` are as those of `--build-arg`."""
        variables: dict[str, str] = {}
        directory = self.folder
        for instruction in self.build.instructions:
            if instruction.word == "ARG":
                variables |= instruction.assignments(variables) | arguments
            elif instruction.word == "WORKDIR":
                directory = pathlib.Path(self.inside(instruction.text))
                directory.mkdir(parents=True)
            elif instruction.word == "COPY":
                assert instruction.text == ". ."
                copy_context(directory)
            else:
                assert instruction.word == "RUN", instruction
                command = adapt(instruction.text)
                self._run(expand(command, variables), directory)
                if command == instruction.text:
                    self.ran.append(command)

    def _run(self, command: str, directory: pathlib.Path) -> None:
        done = subprocess.run(
            ["/bin/sh", "-c", self.inside(command)],
            cwd=directory,
            env=self.environment | {k: v for k, v in os.environ.items() if k.startswith("PIP_")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"RUN {command}\n{done.stdout}{done.stderr}"
        self.output += done.stdout

    def start_environment(self) -> dict[str, str]:
        """What ENV of the last stage says, with free ports."""
        found = self.last.only("ENV").assignments({"PATH": os.environ["PATH"]})
        ports = {"HEADRACE_GRPC_PORT": "0", "HEADRACE_HTTP_PORT": "0"}
        return {name: self.inside(value) for name, value in found.items()} | ports


def copy_context(target: pathlib.Path) -> None:
    """`COPY . .` of what .dockerignore lets through: what it names after `!`, but bytecode."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    for name in (line[1:] for line in lines if line.startswith("!")):
        source = ROOT / name
        if source.is_dir():
            skipped = shutil.ignore_patterns("__pycache__", "*.md")
            shutil.copytree(source, target / name, ignore=skipped)
        else:
            shutil.copy(source, target / name)
