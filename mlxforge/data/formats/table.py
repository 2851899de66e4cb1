"""The table of formats, and which of them a row is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlxforge.core.errors import DataError, did_you_mean
from mlxforge.data.formats import conversations, instructions, oasst, pairs
from mlxforge.data.formats.base import BadRow, Format, Values

ASKS = {"system": "system", "tools": "tools"}

# Where the keys of a row fit several, the first one takes it.
FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format(
            "oasst-tree",
            "OpenAssistant trees",
            "chat",
            {"prompt": "the tree"},
            ("prompt",),
            oasst.read_chat,
            fits=oasst.is_tree,
            also={"preference": oasst.read_pairs},
        ),
        Format(
            "oasst",
            "OpenAssistant messages",
            "chat",
            {
                "message_id": "tree",
                "parent_id": "tree",
                "role": "role",
                "text": "content",
                "rank": "order of replies",
                "deleted": "left out",
            },
            ("message_id", "role", "text"),
            oasst.read_message,
            also={"preference": oasst.read_message},
            gather=oasst.gather,
        ),
        Format(
            "kto-tag",
            "a conversation with kto_tag",
            "kto",
            {
                **ASKS,
                "messages": "prompt, completion",
                "conversations": "prompt, completion",
                "prompt": "prompt",
                "completion": "completion",
                "instruction": "prompt",
                "input": "prompt",
                "output": "completion",
                "history": "prompt",
                "kto_tag": "label",
            },
            ("kto_tag",),
            pairs.read_kto_tag,
        ),
        Format(
            "kto",
            "wanted or unwanted answers (KTO)",
            "kto",
            {**ASKS, "prompt": "prompt", "completion": "completion", "label": "label"},
            ("prompt", "completion", "label"),
            pairs.read_kto,
            pairs.write_kto,
        ),
        Format(
            "preference",
            "chosen and rejected answers (DPO)",
            "preference",
            {
                **ASKS,
                "prompt": "prompt",
                "question": "prompt",
                "instruction": "prompt",
                "input": "prompt",
                "conversations": "prompt",
                "messages": "prompt",
                "system_prompt": "system",
                "chosen": "chosen",
                "rejected": "rejected",
            },
            ("chosen", "rejected"),
            pairs.read_preference,
            pairs.write_preference,
        ),
        Format(
            "reward",
            "scored answers",
            "reward",
            {**ASKS, "prompt": "prompt", "response": "completion", "reward": "reward"},
            ("prompt", "response", "reward"),
            pairs.read_reward,
            pairs.write_reward,
        ),
        Format(
            "messages",
            "messages (OpenAI, ChatML)",
            "chat",
            {**ASKS, "functions": "tools", "messages": "turns"},
            ("messages",),
            conversations.read_messages,
            conversations.write_messages,
        ),
        Format(
            "sharegpt",
            "ShareGPT conversations",
            "chat",
            {**ASKS, "conversations": "turns"},
            ("conversations",),
            conversations.read_sharegpt,
            conversations.write_sharegpt,
        ),
        Format(
            "unnatural",
            "Unnatural Instructions",
            "chat",
            {"instruction": "user", "instances": "user, assistant", "reformulations": "user, assistant"},
            ("instruction", "instances"),
            instructions.read_unnatural,
        ),
        Format(
            "openorca",
            "OpenOrca",
            "chat",
            {"system_prompt": "system", "question": "user", "response": "assistant"},
            ("question", "response"),
            instructions.read_openorca,
            instructions.write_openorca,
        ),
        Format(
            "dolly",
            "Dolly",
            "chat",
            {"instruction": "user", "context": "user", "response": "assistant"},
            ("instruction", "response"),
            instructions.read_dolly,
            instructions.write_dolly,
        ),
        Format(
            "commands",
            "natural language to JSON commands",
            "chat",
            {"instruction": "user", "context": "user", "output": "assistant"},
            ("instruction", "output"),
            instructions.read_command,
            instructions.write_command,
            fits=instructions.is_command,
        ),
        Format(
            "alpaca",
            "Alpaca",
            "chat",
            {
                "instruction": "user",
                "input": "user",
                "context": "user",
                "output": "assistant",
                "system": "system",
                "history": "earlier turns",
            },
            ("instruction", "output"),
            instructions.read_alpaca,
            instructions.write_alpaca,
        ),
        Format(
            "prompt-completion",
            "prompt and completion",
            "chat",
            {**ASKS, "prompt": "prompt", "completion": "assistant"},
            ("prompt", "completion"),
            instructions.read_prompt_completion,
            instructions.write_prompt_completion,
        ),
        Format("text", "raw text", "text", {"text": "text"}, ("text",), instructions.read_text, instructions.write_text),
    )
}

# Keys of a question and its answer that mean no format by themselves.
QUESTIONS = ("prompt", "question", "query", "instruction", "input", "problem", "user")
ANSWERS = ("completion", "answer", "response", "output", "solution", "assistant", "target")
SIGNATURES = 4096  # remembered at most: rows whose keys are data could have one each


class Detector:
    """Finds the format of a row by its keys, and by its values where the keys do not decide.

    Raises:
        DataError: ``format`` or a key of ``mapping`` is not known.
    """

    def __init__(self, format: str | None = None, mapping: Mapping[str, str] | None = None) -> None:  # noqa: A002
        if format is not None and format not in FORMATS:
            raise DataError(f"no format '{format}'", where="format", fix=did_you_mean(format, FORMATS))
        self.formats = [FORMATS[format]] if format else list(FORMATS.values())
        known = {key for row in self.formats for key in row.keys}
        for key in mapping or {}:
            if key not in known:
                raise DataError(f"no format has a key '{key}'", where="map", fix=did_you_mean(key, known))
        self.mapping = {theirs: ours for ours, theirs in (mapping or {}).items()}
        self._candidates: dict[tuple[str, ...], list[Format]] = {}

    def renamed(self, values: Values) -> Values:
        """The row with the mapped keys under the names that formats know."""
        mapping = self.mapping
        taken = {mapping[key] for key in values if key in mapping}
        return {mapping.get(key, key): value for key, value in values.items() if key in mapping or key not in taken}

    def __call__(self, values: Values) -> Format:
        """The format of a row.

        Raises:
            BadRow: none fits.
        """
        keys = tuple(values)
        if None in values.values():
            keys = tuple(key for key in keys if values[key] is not None)
        candidates = self._candidates.get(keys)
        if candidates is None:
            if len(self._candidates) >= SIGNATURES:
                self._candidates.clear()
            candidates = [row for row in self.formats if all(key in keys for key in row.needs)]
            self._candidates[keys] = candidates
        for row in candidates:
            # A format that was asked for is no guess: its own reading says what is wrong.
            if len(self.formats) == 1 or row.fits is None or row.fits(values):
                return row
        raise self._misfit(values, keys)

    def kinds(self, values: Values) -> frozenset[str]:
        """The kinds that a row can be read as; none where no format fits."""
        try:
            return self(values).kinds
        except BadRow:
            return frozenset()

    def _misfit(self, values: Values, keys: tuple[str, ...]) -> BadRow:
        shown = ", ".join(key if len(key) < 40 else key[:39] + "…" for key in keys[:12]) or "none that is not null"
        for row in self.formats:
            if values.keys() >= set(row.needs) and (null := next((key for key in row.needs if values[key] is None), None)):
                return BadRow(f"'{null}' is null", "fill it in or remove the row")
        if len(self.formats) == 1:
            row = self.formats[0]
            lacking = next(key for key in row.needs if key not in keys)
            return BadRow(f"no '{lacking}' (keys: {shown})", self._advice(values, keys))
        return BadRow(f"no format has these keys: {shown}", self._advice(values, keys))

    def _advice(self, values: Values, keys: tuple[str, ...]) -> str:
        question = next((key for key in QUESTIONS if key in keys), None)
        reply = next((key for key in ANSWERS if key in keys), None)
        if question and reply:
            names = (("prompt", question), ("completion", reply))
            return " ".join(f"--map {ours}={theirs}" for ours, theirs in names if ours != theirs)
        for ours, mark in (("conversations", "from"), ("messages", "role")):
            if lists := [key for key in keys if _holds_turns(values[key], mark)]:
                return f"--map {ours}={lists[0]}"
        if near := [f"'{key}'? {hint}" for key in keys if (hint := _near(key))]:
            return near[0]
        if lacking := _lacking(set(keys)):
            return lacking
        texts = {key: len(value) for key, value in values.items() if isinstance(value, str)}
        if texts:
            return f"--map prompt=KEY --map completion=KEY, or --map text={max(texts, key=lambda key: texts[key])}"
        return f"formats: {', '.join(FORMATS)}"


def _holds_turns(value: Any, mark: str) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and mark in value[0]


def _near(key: str) -> str:
    """A hint where a key is a misspelt key of some format."""
    known = {needed for row in FORMATS.values() for needed in row.needs}
    hint = did_you_mean(key, known)
    return hint if key not in known and hint.startswith("did you mean") else ""


def _lacking(keys: set[str]) -> str:
    """What is missing where formats have one key more than a row does."""
    rest = {row.name: set(row.needs) - keys for row in FORMATS.values() if keys & set(row.needs)}
    missing = {lacks.pop(): name for name, lacks in rest.items() if len(lacks) == 1}
    return "add " + " or ".join(f"'{key}' ({name})" for key, name in missing.items()) if missing else ""
