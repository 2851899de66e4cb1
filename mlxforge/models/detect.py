"""Which family a model is of, and what follows: template, end-of-turn tokens, packing, GGUF name. Reads no weights."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlxforge.core.errors import ModelError
from mlxforge.models.families import ANY_LLAMA, FAMILIES, TEMPLATES, Family, Tells
from mlxforge.models.hub import DESCRIPTION, display_name, is_folder, resolve_model

BASE_NAME = re.compile(r"(?i)(^|[-_. ])(base|pt|pretrain(ed)?)([-_. ]|$)")
INSTRUCT_NAME = re.compile(r"(?i)(^|[-_. ])(instruct|inst|it|chat|dpo|sft|rlhf|zephyr|assistant)([-_. ]|$)")
# End-of-turn tokens that mean just that in any template; roles such as <|user|> do only in their own family's.
COMMON_EOT = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
    "<|END_OF_TURN_TOKEN|>",
    "<|end_of_turn|>",
    "[|endofturn|]",
)


@dataclass(frozen=True)
class Detected:
    """What is known of one model before its weights are read.

    Attributes:
        family: its row of the table, or a cautious one made for a type that only mlx-lm knows.
        model_type: as config.json says.
        instruct: it has been taught to chat: by its name, or because it brings a chat template.
        template: ``own``; or the key of the template to install; None without a tokenizer.
        eot: end-of-turn tokens that the tokenizer has, the usual one first.
        packable: documents can share a line.
        gguf: architecture name in a GGUF file, or None.
    """

    family: Family
    model_type: str
    instruct: bool
    template: str | None
    eot: list[str]
    packable: bool
    gguf: str | None


@dataclass(frozen=True)
class TokenizerFacts:
    """What a tokenizer's files say without building it."""

    tokens: frozenset[str] = frozenset()
    special: dict[str, str] = field(default_factory=dict)
    template: str | None = None
    present: bool = False


def detect(path_or_id: str) -> Detected:
    """The family of a model folder or hub id, from config.json first, the tokenizer next, the name last.

    Raises:
        ModelError: no such model, no readable config.json, or a family that mlx-lm does not know.
    """
    path = resolve_model(path_or_id, DESCRIPTION)
    return detect_folder(path, "" if is_folder(path_or_id) else path_or_id)


def detect_folder(path: Path, name: str = "") -> Detected:
    """:func:`detect` for a folder that is here; ``name`` is what the model is called."""
    config = read_config(path)
    facts = tokenizer_facts(path)
    name = name or display_name(path.resolve())
    model_type = str(config["model_type"])
    family = family_of(model_type, config, facts, name, path)
    return Detected(
        family=family,
        model_type=model_type,
        instruct=is_instruct(facts, name),
        template=template_for(family, facts),
        eot=end_of_turn(family, facts),
        packable=family.packable and positions_are_relative(config),
        gguf=family.gguf,
    )


def read_config(path: Path) -> dict[str, Any]:
    """config.json, which must be an object with a ``model_type``.

    Raises:
        ModelError: it is missing, no JSON, or says no model_type.
    """
    file = path / "config.json"
    if not file.is_file():
        if (path / "adapter_config.json").is_file():
            raise ModelError("an adapter, not a model: no config.json", where=str(path), fix="give its base model")
        raise ModelError("not a model folder: no config.json", where=str(path), fix="give the folder that holds config.json")
    config = read_json(file)
    if not isinstance(config.get("model_type"), str):
        raise ModelError("config.json names no model_type", where=str(file), fix="take it from the model's original repository")
    return config


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file; ModelError with the line where it breaks."""
    try:
        loaded = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ModelError(
            f"not valid JSON: {error.msg}", where=f"{file}:{error.lineno}", fix="download the file again"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from error
    if not isinstance(loaded, dict):
        raise ModelError("not a JSON object", where=str(file), fix="download the file again")
    return loaded


def read_template(file: Path) -> str:
    """The Jinja text of a file; ModelError where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> ModelError:
    return ModelError(f"cannot read: {getattr(error, 'strerror', None) or error}", where=str(file))


def setting(config: dict[str, Any], key: str) -> Any:
    """A value of config.json, or of the text part of a model that also sees or hears."""
    text = config.get("text_config")
    inner = text.get(key) if isinstance(text, dict) else None
    return config.get(key, inner)


def rope_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The rope's settings, old style (``rope_theta``, ``rope_scaling``) or new (``rope_parameters``)."""
    merged: dict[str, Any] = {"rope_theta": setting(config, "rope_theta")}
    for key in ("rope_scaling", "rope_parameters"):
        if isinstance(part := setting(config, key), dict):
            merged.update(part)
    return merged


def positions_are_relative(config: dict[str, Any]) -> bool:
    """False where the rope's base follows the line's length, so that a packed line would change its documents."""
    rope = rope_settings(config)
    return "dynamic" not in (rope.get("type"), rope.get("rope_type"))


def tokenizer_facts(path: Path) -> TokenizerFacts:
    """Tokens, special tokens and chat template of a folder; empty where it has no tokenizer."""
    config_file, vocabulary = path / "tokenizer_config.json", path / "tokenizer.json"
    config = read_json(config_file) if config_file.is_file() else {}
    tokens = {str(entry["content"]) for entry in config.get("added_tokens_decoder", {}).values() if "content" in entry}
    if vocabulary.is_file():
        full = read_json(vocabulary)
        tokens.update(str(entry["content"]) for entry in full.get("added_tokens") or [])
        pieces = (full.get("model") or {}).get("vocab") or []
        tokens.update(pieces if isinstance(pieces, dict) else (str(piece[0]) for piece in pieces))
    special = {key: _content(config[key]) for key in ("bos_token", "eos_token") if config.get(key)}
    present = vocabulary.is_file() or (path / "tokenizer.model").is_file()
    return TokenizerFacts(frozenset(tokens), special, own_template(path, config), present)


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def own_template(path: Path, config: dict[str, Any]) -> str | None:
    """The chat template that a tokenizer brings: in its own file, or in tokenizer_config.json (one, or several by name)."""
    if (file := path / "chat_template.jinja").is_file():
        return read_template(file)
    template = config.get("chat_template")
    if template is None and (file := path / "chat_template.json").is_file():
        template = read_json(file).get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default") or next(iter(named.values()), None)
    return str(template) if template else None


def family_of(model_type: str, config: dict[str, Any], facts: TokenizerFacts, name: str, path: Path) -> Family:
    """The row for a ``model_type``; among rows that share it, the one with the strongest evidence.

    Raises:
        ModelError: mlx-lm has no such type.
    """
    rows = [family for family in FAMILIES.values() if model_type in family.model_types]
    if not rows:
        return generic_family(model_type, path)
    scores = [(evidence(family.tells, config, facts, name), family) for family in rows]
    best, family = max(scores, key=lambda scored: scored[0])
    rest = next((row for row in rows if row.tells is None), rows[0])
    return family if any(best[:3]) else rest


def evidence(tells: Tells | None, config: dict[str, Any], facts: TokenizerFacts, name: str) -> tuple[bool, bool, bool, bool]:
    """(vocabulary size, tokens, name, rope base): what speaks for a family, in order of weight."""
    if tells is None:
        return (False, False, False, False)
    return (
        setting(config, "vocab_size") in tells.vocab,
        facts.tokens.issuperset(tells.tokens),
        any(re.search(hint, name, re.IGNORECASE) for hint in tells.hints),
        rope_settings(config)["rope_theta"] in tells.rope_theta,
    )


def generic_family(model_type: str, path: Path) -> Family:
    """A cautious row for a type that mlx-lm has and the table has not: never packed, never exported."""
    known = mlx_lm_types()
    if remapped_type(model_type) in known:
        title = f"{model_type} (known to mlx-lm only)"
        return Family(model_type, title, (model_type,), replace(ANY_LLAMA, template="chatml"), None, packable=False)
    near = get_close_matches(model_type, [*known, *(kind for row in FAMILIES.values() for kind in row.model_types)], n=1)
    fix = f"did you mean '{near[0]}'?" if near else "see 'mlxforge models families', or upgrade mlx-lm"
    raise ModelError(f"mlx-lm does not know the family '{model_type}'", where=str(path / "config.json"), fix=fix)


@cache
def mlx_lm_types() -> frozenset[str]:
    """Model types that the installed mlx-lm implements, read from its files: importing it would load MLX."""
    spec = find_spec("mlx_lm")
    if spec is None or spec.origin is None:
        return frozenset()
    files = (Path(spec.origin).parent / "models").glob("*.py")
    return frozenset(file.stem for file in files if "\nclass Model(" in file.read_text(encoding="utf-8"))


def remapped_type(model_type: str) -> str:
    """The module that mlx-lm uses for a type: its own ``MODEL_REMAPPING``, read without importing."""
    return _remapping().get(model_type, model_type)


@cache
def _remapping() -> dict[str, str]:
    spec = find_spec("mlx_lm")
    if spec is None or spec.origin is None:
        return {}
    for node in ast.parse((Path(spec.origin).parent / "utils.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "MODEL_REMAPPING" for t in node.targets):
            table: dict[str, str] = ast.literal_eval(node.value)
            return table
    return {}


def is_instruct(facts: TokenizerFacts, name: str) -> bool:
    """A name that says 'base' wins, since many base models bring a template; then a template; then the name."""
    last = name.rsplit("/", 1)[-1]
    if BASE_NAME.search(last):
        return False
    return facts.template is not None or INSTRUCT_NAME.search(last) is not None


def template_for(family: Family, facts: TokenizerFacts) -> str | None:
    """``own``, else the family's, else ChatML, else plain: the first whose markers are tokens of this tokenizer."""
    if facts.template is not None:
        return "own"
    if not facts.present:
        return None
    return next(name for name in (family.chat.template, "chatml", "plain") if facts.tokens.issuperset(TEMPLATES[name]))


def template_text(name: str) -> str:
    """The Jinja text of a template of the table."""
    return (Path(__file__).parent / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


def end_of_turn(family: Family, facts: TokenizerFacts) -> list[str]:
    """End-of-turn tokens that this tokenizer has: those its template writes, else the family's, else the end of text."""
    eos = facts.special.get("eos_token")
    chosen = template_for(family, facts)
    text = facts.template or (template_text(chosen) if chosen else "")
    known = dict.fromkeys((*family.eot, *COMMON_EOT, *([eos] if eos else ())))
    written = [token for token in known if token in text or (token == eos and "eos_token" in text)]
    extra = [token for token in family.eot if chosen in ("own", family.chat.template) and token not in written]
    found = [token for token in (*written, *extra) if token in facts.tokens]
    return found or ([eos] if eos and eos in facts.tokens else [])
