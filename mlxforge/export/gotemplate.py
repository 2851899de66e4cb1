"""A table of turns as a Go template in Ollama's terms.

Ollama gives ``.Messages`` (``.Role``, ``.Content``, ``.Thinking``), where neighbours of one role have been joined by an empty
line, ``.System`` (all system messages), ``.Think`` and ``.IsThinkSet``. It adds the beginning token itself where the GGUF file
asks for that. A last message of the assistant is to be gone on with, so it is not ended.
"""

from __future__ import annotations

import re

from mlxforge.export.turns import Around, Turns

BEGIN = "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
CONTENT, ROLE, CLOSE = "{{ .Content }}", 'eq .Role "%s"', "{{ end }}"
SILENT = "and $.IsThinkSet (not $.Think)"
RAW = "{{ .Prompt }}"  # what is asked goes to the model as it is
ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def go_text(turns: Turns, begin: str = "") -> str:
    """The text for TEMPLATE; it writes ``begin`` and what ``turns.render`` writes."""
    opening = literal(turns.opening)
    if turns.silent is not None:
        opening = when(SILENT, literal(turns.silent), opening)
    first, lead = (literal(begin + text) for text in turns.lead)
    system, user = _asked(turns)
    same = first == lead
    return "".join(
        [
            '{{ $system := "" }}' if turns.fold == "first" else "",
            (lead if same else "") + BEGIN + ("" if same else when("eq $i 0", when(ROLE % "system", first, lead))),
            "{{ if " + ROLE % "system" + " }}" + system,
            "{{ else if " + ROLE % "user" + " }}" + user,
            "{{ else if " + ROLE % "assistant" + " }}" + _said(turns, opening) + CLOSE,
            when('and $last (ne .Role "assistant")', opening) if opening else "",
            CLOSE,
        ]
    )


def _asked(turns: Turns) -> tuple[str, str]:
    """What is written for a system message, and for a user's."""
    user = _around(turns.user)
    if turns.fold == "turn":
        return _inside(_around(turns.system), CONTENT), _inside(user, CONTENT)
    if turns.fold == "last":
        system = when("and $last $.System", _inside(_around(turns.system), "{{ $.System }}"))
        return "", _inside(user, system + CONTENT)
    form = quoted("%s".join(part.replace("%", "%%") for part in turns.system))
    asked = _inside(user, "{{ $system }}" + CONTENT) + '{{ $system = "" }}'
    return "{{ $system = printf " + form + " .Content }}", asked


def _said(turns: Turns, opening: str) -> str:
    """What is written for an assistant's message; the last one is left open."""
    before, after = _around(turns.assistant)
    going_on, thoughts = opening + CONTENT, ""
    if turns.thoughts:
        # Ollama learns the tags of thoughts from this branch: nothing else may stand in it.
        thoughts = when(".Thinking", _inside(_around(turns.thoughts), "{{ .Thinking }}"))
        going_on = when(".Thinking", before, opening) + thoughts + CONTENT
    said = before + (thoughts if turns.keeps else "") + CONTENT
    return said + when("not $last", after) if going_on == said else when("$last", going_on, said + after)


def when(condition: str, yes: str, no: str = "") -> str:
    """An ``if`` action."""
    return "{{ if " + condition + " }}" + yes + ("{{ else }}" + no if no else "") + CLOSE


def literal(text: str) -> str:
    """Text outside actions; what Go or a Modelfile would read as something else goes into a string."""
    return re.sub(r'(\{+|""")|[^\n\t]', _shown, text)


def quoted(text: str) -> str:
    """A Go string."""
    return '"' + "".join(ESCAPES.get(one) or (one if one.isprintable() else f"\\U{ord(one):08x}") for one in text) + '"'


def _shown(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() and not found[1] else "{{ " + quoted(found[0]) + " }}"


def _around(around: Around) -> Around:
    return literal(around[0]), literal(around[1])


def _inside(around: Around, text: str) -> str:
    return around[0] + text + around[1]
