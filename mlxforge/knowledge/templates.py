"""Prompts are files: ``system``, a line ``---``, ``user``, with places such as ``{passage}``. Users copy and change them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlxforge.core.errors import ConfigError, did_you_mean
from mlxforge.core.files import bytes_hash

PROMPTS = Path(__file__).parent / "prompts"
PLACES = ("title", "heading", "passage", "count", "audience")
JUDGED = ("title", "passage", "conversation", "style")
WRITING = ("title", "passage", "entities", "audience")
COMPARED = ("conversation", "reference", "first", "second")
# What is known of others than the styles.
OTHERS = {
    "judge": JUDGED,
    "expand-entity": WRITING,
    "expand-relation": WRITING,
    "open-book": JUDGED,
    "rag": ("passages", "question"),
    "compare": COMPARED,
    "rubric": ("conversation", "reference", "answer"),
}
# What a prompt is nothing without, where that is not the passage.
NEEDED = {"rag": ("passages", "question"), "compare": ("conversation", "first", "second"), "rubric": ("conversation", "answer")}
PLACE = re.compile(r"\{([a-z_]+)\}")
BETWEEN = re.compile(r"^---[ \t]*\n", re.MULTILINE)


@dataclass(frozen=True)
class Prompt:
    """What a model is told; ``hash`` tells one wording from another, ``path`` where it stands."""

    system: str
    user: str
    hash: str
    path: Path

    def filled(self, values: Mapping[str, str]) -> tuple[dict[str, str], ...]:
        """The turns, with values in the places. What stands in a value is text and no place."""
        user = PLACE.sub(lambda found: values.get(found[1], found[0]), self.user)
        turns = [{"role": "system", "content": self.system}] if self.system else []
        return (*turns, {"role": "user", "content": user})


def read_prompt(name: str, folder: Path | None = None) -> Prompt:
    """The prompt ``name``: of ``folder`` where it has one, else the shipped one.

    Raises:
        ConfigError: no such folder, a file of another name in it, one that is no text or empty, an unknown place, a place above
            the ``---``, or no place for what the prompt is about.
    """
    if folder is not None and not folder.is_dir():
        fix = f"mlxforge synth prompts {folder} copies the shipped ones there"
        raise ConfigError("no such folder", where=f"--prompts {folder}", fix=fix)
    if folder is not None:
        _check_names(folder)
    path = next(path for path in ([folder / f"{name}.md"] if folder else []) + [PROMPTS / f"{name}.md"] if path.is_file())
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"not a text: {error}", where=str(path)) from error
    parts = BETWEEN.split(text, maxsplit=1)
    system, user = ("", parts[0]) if len(parts) == 1 else parts
    _check(path, text, OTHERS.get(name, PLACES), NEEDED.get(name, ("passage",)))
    return Prompt(system.strip(), user.strip(), bytes_hash(text)[:12], path)


def _check_names(folder: Path) -> None:
    """A misspelt file would be passed over, and the shipped one used in its place."""
    known = [path.name for path in PROMPTS.glob("*.md")]
    for path in sorted(folder.glob("*.md")):
        if path.name not in known or not path.is_file():
            raise ConfigError("no prompt of this name", where=str(path), fix=did_you_mean(path.name, known))


def _check(path: Path, text: str, known: tuple[str, ...], needed: tuple[str, ...]) -> None:
    for number, line in enumerate(text.splitlines(), 1):
        for place in PLACE.findall(line):
            if place not in known:
                raise ConfigError(f"no value for {{{place}}}", where=f"{path}:{number}", fix=did_you_mean(place, known))
    system = BETWEEN.split(text, maxsplit=1)[0] if BETWEEN.search(text) else ""
    for number, line in enumerate(system.splitlines(), 1):
        if place := PLACE.search(line):
            raise ConfigError(f"{place[0]} is filled below the --- only", where=f"{path}:{number}", fix="move it there")
    user = BETWEEN.split(text, maxsplit=1)[-1]
    for place in needed:
        if f"{{{place}}}" not in user:
            raise ConfigError(f"no place for {{{place}}}", where=str(path), fix=f"write it where the {place} is to stand")
