"""Export for Ollama: GGUF files, a Modelfile each, and the commands that make models of them. LM Studio's folders too."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxforge.core.errors import ConfigError, ModelError
from mlxforge.core.events import Emit, Noted, ignore
from mlxforge.core.files import write_atomic
from mlxforge.models.hub import resolve_model
from mlxforge.runs.opening import Base

if TYPE_CHECKING:
    from mlxforge.export.turns import Turns
    from mlxforge.models.template import ChatTemplate

ANOTHER_WAY = "--template FILE takes a Go text of your own; llama.cpp and LM Studio read the Jinja text: mlxforge export gguf"


def export_ollama(
    base: Base,
    output: Path,
    quants: Sequence[str],
    *,
    name: str | None = None,
    system: str = "",
    go: str | None = None,
    lmstudio: bool = False,
    verify: bool | None = None,
    force: bool = False,
    emit: Emit = ignore,
) -> dict[str, Any]:
    """Writes GGUF files of ``quants`` and a Modelfile for each into ``output``.

    Args:
        go: the text of TEMPLATE, instead of the one made of the chat template.
        lmstudio: GGUF files go to ``publisher/model/`` below ``output``, as LM Studio has them.
        verify: as for :func:`mlxforge.runs.export_gguf.export_gguf`.

    Returns:
        ``output``, ``name``, ``models`` (for each its ``quant``, ``file``, ``modelfile``, ``create`` and ``run``), ``notes``
        (in what TEMPLATE is not the chat template), ``parameters``, ``stop``, and ``gguf``: the result of that export.

    Raises:
        ModelError: the chat template cannot be written in Go.
        ConfigError: the output exists, or a name or text that Ollama does not take.
        MlxforgeError: see :func:`mlxforge.runs.export_gguf.export_gguf`.
    """
    from mlxforge.export.ollama import PUBLISHER, checked, model_name, modelfile, parameters, stops
    from mlxforge.export.quantize import quant_of
    from mlxforge.runs.export_gguf import export_gguf
    from mlxforge.runs.verify import template_of

    chosen = model_name(name, suggested(base))
    checked(system)
    checked_template(go or "")
    template = template_of(base, resolve_model(base.model))
    turns, notes = (None, []) if go is not None else table_of(template, optional=lmstudio)
    publisher, _, short = chosen.rpartition("/")
    home = output / (publisher or PUBLISHER) / short if lmstudio else output
    quants = list(dict.fromkeys(quants))
    for quant in quants:
        quant_of(quant)
    files = {quant: home / f"{short}.{quant}.gguf" for quant in quants}
    makes = {quant: output / ("Modelfile" if len(quants) == 1 else f"Modelfile.{quant}") for quant in quants}
    check_outputs(output, makes.values(), force)
    for note in notes:
        emit(Noted(message=note))
    target = files[quants[0]] if len(quants) == 1 else home / f"{short}.gguf"
    result = export_gguf(base, target, quants, verify=verify, force=force, emit=emit)
    for limit in result["notes"]:
        emit(Noted(message=limit))
    text = go if go is not None else written(turns, template, files[quants[0]])
    values, ends = (parameters(template.generation), stops(template)) if template else ({}, [])
    models = []
    for quant, file in files.items():
        model: dict[str, Any] = {"quant": quant, "file": str(file), "modelfile": None}
        if text is not None:
            place = file.relative_to(output).as_posix()
            write_atomic(makes[quant], modelfile(place, text, ends, values, system=system, notes=notes))
            tag = chosen if len(quants) == 1 else f"{chosen}:{quant}"
            create = f"ollama create {tag} -f {shlex.quote(str(makes[quant]))}"
            model |= {"modelfile": str(makes[quant]), "create": create, "run": f"ollama run {tag}"}
        models.append(model)
    found = {"output": str(output), "name": chosen, "models": models, "notes": notes, "parameters": values, "stop": ends}
    return found | {"gguf": result}


def table_of(template: ChatTemplate | None, *, optional: bool) -> tuple[Turns | None, list[str]]:
    """The turns of a chat template, and what is to be known of them; None where there are none.

    Raises:
        ModelError: the chat template cannot be written in Go, and a Modelfile is not ``optional``.
    """
    from mlxforge.export.turns import NoTable, turns_of

    if template is None:
        return None, ["the model has no chat template: prompts are sent as they are"]
    try:
        turns, differences = turns_of(template)
    except NoTable as error:
        what = f"cannot be written in Go, as Ollama needs it: {error.what}"
        if optional:
            return None, [f"no Modelfile: the chat template {what}"]
        raise ModelError(what, where="chat template", fix=ANOTHER_WAY) from error
    return turns, [f"TEMPLATE is not the chat template in: {one}" for one in differences]


def written(turns: Turns | None, template: ChatTemplate | None, file: Path) -> str | None:
    """The Go text for a GGUF file, which says whether a text's first token is added to it; None where there is none."""
    from mlxforge.export.gotemplate import RAW, go_text
    from mlxforge.export.ollama import adds_bos

    if template is None:
        return RAW
    if turns is None:
        return None
    begun = template.bos is not None and not adds_bos(file)
    return go_text(turns, begin=str(template.renderer.variables["bos_token"]) if begun else "")


def checked_template(go: str) -> str:
    """A Go text that a Modelfile can hold.

    Raises:
        ConfigError: it cannot.
    """
    if '"""' in go:
        raise ConfigError('three quotation marks in a row (""") end a text of a Modelfile', where="--template")
    return go


def suggested(base: Base) -> str:
    """A name by the run, the adapter or the model."""
    return base.label


def check_outputs(output: Path, files: Any, force: bool) -> None:
    """Refuses to write over what is there.

    Raises:
        ConfigError: a file is there without ``force``, or ``output`` is no folder.
    """
    if os.path.lexists(output) and not output.is_dir():
        raise ConfigError("is a file, not a folder", where=str(output), fix="name another folder")
    there = next((file for file in files if os.path.lexists(file)), None)
    if there is not None and not force:
        raise ConfigError("is there already", where=str(there), fix="--force replaces it")
