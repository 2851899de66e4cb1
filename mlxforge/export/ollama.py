"""A Modelfile for Ollama, and where LM Studio looks for a model.

Ollama does not read the Jinja template of a GGUF file: at ``ollama create`` it compares it with the few it knows by edit
distance, takes the Go template of the nearest if that is near enough (100 characters), and else sends prompts as they are.
So TEMPLATE, stop strings and sampling are written out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlxforge.core.errors import ConfigError
from mlxforge.models.template import ChatTemplate

PUBLISHER = "mlxforge"
LM_STUDIO = "~/.lmstudio/models"
# Ollama's name of a parameter -> generation_config.json's. transformers' own max_length of 20 means nothing.
PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "num_ctx": "max_length",
}
LEAST_CONTEXT = 256
NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


def parameters(generation: Mapping[str, Any]) -> dict[str, float | int]:
    """Ollama's parameters by the model's generation_config.json.

    Without ``do_sample`` an answer is greedy. A repetition penalty is switched off where none is named, since Ollama has had
    one of its own.
    """
    found = {name: generation[key] for name, key in PARAMETERS.items() if _number(generation.get(key))}
    if found.get("num_ctx", LEAST_CONTEXT) < LEAST_CONTEXT:
        del found["num_ctx"]
    if generation.get("do_sample") is False:
        found = {"temperature": 0} | {name: found[name] for name in ("repeat_penalty", "num_ctx") if name in found}
    return {"repeat_penalty": 1.0} | found


def stops(template: ChatTemplate) -> list[str]:
    """The tokens at which an answer ends, the usual one first."""
    named = template.codec.tokenizer
    texts = [named.id_to_token(index) for index in sorted(template.stop)]
    return list(dict.fromkeys([*template.ends.values(), *(text for text in texts if text)]))


def adds_bos(file: Path) -> bool:
    """Whether a GGUF file asks for the beginning token before each text."""
    from gguf import GGUFReader

    field = GGUFReader(file).fields.get("tokenizer.ggml.add_bos_token")
    return bool(field and field.contents())


def modelfile(
    file: str, go: str, stop: Iterable[str], values: Mapping[str, float | int], *, system: str = "", notes: Iterable[str] = ()
) -> str:
    """The text of a Modelfile beside (or above) ``file``.

    Raises:
        ConfigError: the system message has what a Modelfile cannot hold.
    """
    lines = ["# Made by mlxforge. TEMPLATE is the chat template of training, in Go's form.", *(f"# {note}" for note in notes)]
    lines += [f"FROM ./{file}", f'TEMPLATE """{go}"""']
    lines += [f'SYSTEM """{checked(system)}"""'] if system else []
    lines += [f"PARAMETER {name} {value:g}" for name, value in values.items()]
    lines += [f'PARAMETER stop "{text}"' for text in stop]
    return "\n".join(lines) + "\n"


def checked(system: str) -> str:
    """A text for SYSTEM as it is.

    Raises:
        ConfigError: Ollama's reader would cut it, or leave characters out.
    """
    if '"""' in system:
        raise ConfigError('three quotation marks in a row (""") end a text of a Modelfile', where="--system")
    lost = next((one for one in system if not one.isprintable() and one not in "\n\t"), None)
    if lost is not None:
        raise ConfigError(f"Ollama leaves out U+{ord(lost):04X}, which cannot be printed", where="--system", fix="drop it")
    return system


def model_name(given: str | None, suggested: str) -> str:
    """The name for ``ollama create``: what was given, or one made of a run's or model's name.

    Raises:
        ConfigError: no name that Ollama takes.
    """
    if given is None:
        return re.sub(r"[^a-z0-9._-]+", "-", suggested.lower()).strip("-._") or "model"
    if not NAME.fullmatch(given) or len(given) > 80:
        raise ConfigError("no name for a model", where=f"--name {given}", fix="letters, digits, '.', '_', '-', one '/'")
    return given


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
