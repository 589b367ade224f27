"""Messages in the words of whoever called: what a container advises is what the host can follow.

The toolkit's messages name its own commands (``toolkit dataset prepare DIR``). Who works through make or
through ``toolkit container`` has no such command; :meth:`Caller.reword` says what to type instead.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from toolkit.container.verbs import OTHERS, PREDICTED, VERBS

VARIABLE = "TOOLKIT_CALLER"
"""Environment variable with :meth:`Caller.encode`'s text. Make sets it, and what starts a container does."""

OPTIONS = ("profile", "data", "base", "image", "runs")
"""Options of ``toolkit container`` that are variables of make."""

UNTIED = ("ps", "logs", "attach", "stop", "prune")
"""Commands of ``toolkit container`` that are about containers and not about an image."""

_COMMAND = re.compile(r"(?<![\w./-])toolkit ((?:(?:dataset|container|bench) )?[a-z]+)\b(?![=.])")
_FLAG = re.compile(rf"(?<!\S)(`?)--({'|'.join(OPTIONS)})(?:=([^\s,;`]+))?(?![\w=-])")
_TOKEN = re.compile(r" ([^\s`]+)")
_PIP = re.compile(r"`?pip install ([\w.-]+)`?")

TakesValue = Callable[[Sequence[str], str], bool]


@dataclass(frozen=True)
class Caller:
    """How the toolkit was called.

    Attributes:
        style: by a target of make, or by ``toolkit container``.
        options: those of :data:`OPTIONS` that were given and that the next command must repeat.
        takes_value: whether an option of one of the toolkit's commands is followed by a value.
        inside: whether this process runs in the container.
    """

    style: Literal["make", "container"]
    options: Mapping[str, str] = field(default_factory=dict)
    takes_value: TakesValue = lambda command, flag: True
    inside: bool = False

    def encode(self) -> str:
        """This as one line, for :data:`VARIABLE`."""
        return shlex.join([self.style, *(f"{name}={value}" for name, value in self.options.items())])

    @staticmethod
    def decode(text: str, takes_value: TakesValue, *, inside: bool) -> Caller | None:
        """What :meth:`encode` made; None for anything else."""
        style, *options = shlex.split(text) or [""]
        if style not in ("make", "container"):
            return None
        pairs = dict(option.split("=", 1) for option in options if "=" in option)
        return Caller("make" if style == "make" else "container", pairs, takes_value, inside)

    def reword(self, text: str) -> str:
        """``text`` with the toolkit's commands, and options that make has a variable for, replaced."""
        parts, done = [], 0
        for match in _COMMAND.finditer(text):
            command = match[1].split()
            if match.start() < done or not _is_command(command):
                continue
            quoted = text[: match.start()].endswith("`")
            given, end = self._arguments(command, text, match.end(), quoted=quoted)
            parts += [self._flags(text[done : match.start()]), self.command(command, given)]
            done = end
        return "".join([*parts, self._flags(text[done:])])

    def command(self, command: Sequence[str], arguments: Sequence[str]) -> str:
        """What to type instead of a command of the toolkit."""
        name, given, options = command[-1], list(arguments), dict(self.options)
        if command[0] == "container" and name in UNTIED:
            options = {}
        elif command[0] == "container":
            given = _take(given, options)
        elif name in VERBS and command[0] in ("dataset", name):
            if VERBS[name].folder and given and not given[0].startswith("-"):
                options["data"] = given.pop(0)
            if VERBS[name].flag:
                given = _take(given, options, ("data",))
            if name == "predict" and tuple(given) == PREDICTED:
                given = []
            if name == "submit" and "--zip" in given:
                given.remove("--zip")
        elif name != "doctor":
            name, given = "run", ["toolkit", *command, *given]
        options = {key: _short(value) if key == "data" else value for key, value in options.items()}
        given = [_short(value) for value in given]
        if self.style == "container":
            named = [f"--{key} {shlex.quote(value)}" for key, value in options.items()]
            return " ".join(["toolkit container", name, *named, *map(shlex.quote, given)])
        named = [f"{key.upper()}={shlex.quote(value)}" for key, value in options.items()]
        if given and command[0] == "container" and name in UNTIED:
            named.append(f"NAME={shlex.quote(given.pop(0))}")
        if given:
            named.append(f"ARGS={shlex.quote(shlex.join(given))}")
        return " ".join([f"make docker-{name}", *named])

    def _arguments(
        self, command: Sequence[str], text: str, start: int, *, quoted: bool
    ) -> tuple[list[str], int]:
        """The arguments that follow a command in a sentence, and where they end."""
        if quoted and (end := text.find("`", start)) >= 0:
            return shlex.split(text[start:end]), end
        given: list[str] = []
        value_due = False
        while (match := _TOKEN.match(text, start)) is not None:
            token = match[1].rstrip(";,:.)")
            is_path = "/" in token or re.search(r"\.(pt|json|yaml|zip)$", token) is not None
            if not (value_due or is_path or token.startswith("--") or token.isupper()):
                break
            given.append(token)
            start = match.start() + 1 + len(token)
            if token != match[1]:
                break
            value_due = token.startswith("--") and "=" not in token and self.takes_value(command, token)
        return given, start

    def _flags(self, text: str) -> str:
        if self.inside:
            text = _PIP.sub(r"a line `\1` in docker/extra.txt puts it into the image", text)
        if self.style != "make":
            return text
        return _FLAG.sub(lambda match: f"{match[1]}{match[2].upper()}={match[3] or ''}", text)


def _is_command(command: Sequence[str]) -> bool:
    return len(command) > 1 or command[0] in (*VERBS, *OTHERS)


def _take(given: list[str], options: dict[str, str], names: Sequence[str] = OPTIONS) -> list[str]:
    """Move options of ``names`` from ``given`` to ``options``, and return what is left."""
    left: list[str] = []
    waiting = iter(given)
    for one in waiting:
        name, equals, value = one.removeprefix("--").partition("=")
        if one.startswith("--") and name in names:
            options[name] = value if equals else next(waiting, "")
        else:
            left.append(one)
    return left


def _short(path: str) -> str:
    """A path below the folder that one works in as one types it."""
    here = f"{Path.cwd()}/"
    return path.removeprefix(here) if path.startswith(here) else path


def takes_value(application: Any) -> TakesValue:
    """Looks options up in a command line's own declaration, a Typer application."""

    def look_up(command: Sequence[str], flag: str) -> bool:
        import typer.main

        found: Any = typer.main.get_command(application)
        for name in command:
            found = getattr(found, "commands", {}).get(name, found)
        options = [one for one in found.params if flag in getattr(one, "opts", ())]
        return bool(options) and not options[0].is_flag

    return look_up
