"""Export to the Hugging Face hub: an adapter, a fused model or verified GGUF files, with a card made from the run's record."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxforge.core.blas import load_blas
from mlxforge.core.errors import MlxforgeError, RunFailed
from mlxforge.core.events import Emit, Noted, ignore
from mlxforge.models.hub import is_folder, resolve_model
from mlxforge.runs.cards import facts_of, shown_base
from mlxforge.runs.export_peft import export_peft
from mlxforge.runs.fuse import fuse
from mlxforge.runs.opening import Base
from mlxforge.runs.record import files_of

README = "README.md"
# Files that are made here, so that what they say of this disk is ours.
PLACE = re.compile(r"^(run:)?[~.]{0,2}/(?:.*/)?(?=[^/]+$)")  # all of a path but its last part
TEXTS = (README, "adapter_config.json", "*.report.json")


def export_hub(
    base: Base,
    repo: str,
    *,
    what: str = "adapter",
    private: bool = False,
    quants: Sequence[str] = ("q8_0",),
    named: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    emit: Emit = ignore,
) -> dict[str, Any]:
    """Makes the files in a temporary folder and uploads them in one go.

    Args:
        what: a key of ``MAKERS``.
        quants: of GGUF files; each has to pass its checks.
        named: see :func:`mlxforge.runs.export_peft.export_peft`.
        dry_run: makes the files, and asks nothing of the hub.

    Returns:
        ``repo``, ``what``, ``private``, ``files`` (``path`` and ``bytes``), ``bytes``, ``card``, ``dry_run``; after an upload
        ``url`` and ``commit``.

    Raises:
        ConfigError: the repository's name is none, or is taken.
        ModelError: there is nothing of this kind to export; see the exports themselves.
        MlxforgeError: no token, not allowed, no network.
        RunFailed: a GGUF file did not pass, or the upload broke off.
    """
    from mlxforge.export.hub import check_repo, check_token, upload

    check_repo(repo)
    if not dry_run:
        check_token()
    load_blas()
    with tempfile.TemporaryDirectory(prefix="mlxforge-hub-") as scratch:
        folder = Path(scratch) / "files"
        MAKERS[what](base, folder, Wish(quants, named, emit))
        hide(folder)
        files = [{"path": name, "bytes": size} for name, size in files_of(folder).items()]
        result: dict[str, Any] = {"repo": repo, "what": what, "private": private, "files": files, "dry_run": dry_run}
        result |= {"bytes": sum(files_of(folder).values()), "card": (folder / README).read_text(encoding="utf-8")}
        if dry_run:
            return result
        return result | upload(folder, repo, private=private, force=force, message=f"Upload {what} made by mlxforge")


@dataclass(frozen=True)
class Wish:
    """What is to be made: the quantizations of GGUF files, and what PEFT is to call the base."""

    quants: Sequence[str]
    named: str | None
    emit: Emit


def _adapter(base: Base, folder: Path, wish: Wish) -> None:
    path = resolve_model(base.model)
    export_peft(base, folder, named=wish.named, public=True, licence=licence(base, path, wish.emit))


def _fused(base: Base, folder: Path, wish: Wish) -> None:
    made = fuse(base, folder, emit=wish.emit)
    said = {"kind": made["kind"], "packing": made["packing"], "relation": "finetune", "library": "transformers"}
    _write_card(base, folder, wish.emit, **said)


def _gguf(base: Base, folder: Path, wish: Wish) -> None:
    from mlxforge.runs.export_gguf import export_gguf

    path, quants = resolve_model(base.model), list(wish.quants)
    folder.mkdir()
    name = base.run.name if base.run else shown_base(base, path).rpartition("/")[2]
    file = folder / (f"{name}.gguf" if len(quants) > 1 else f"{name}.{quants[0]}.gguf")
    made = export_gguf(base, file, quants, verify=True, emit=wish.emit)
    if made["passed"] is not True:
        raise RunFailed("a file that is not verified is not uploaded", where=file.name, fix="see mlxforge export gguf")
    lines = [f"`{Path(one['file']).name}`: {one['quant']}, verified with llama.cpp" for one in made["files"]]
    relation = "finetune" if base.adapter else "quantized"
    _write_card(base, folder, wish.emit, relation=relation, library="gguf", packing=", ".join(quants), files=lines)


MAKERS: dict[str, Callable[[Base, Path, Wish], None]] = {"adapter": _adapter, "fused": _fused, "gguf": _gguf}


def _write_card(base: Base, folder: Path, emit: Emit, **said: Any) -> None:
    from mlxforge.export.card import card

    path = resolve_model(base.model)
    facts = facts_of(base, path, licence=licence(base, path, emit), **said)
    (folder / README).write_text(card(shown_base(base, path), facts), encoding="utf-8")


def licence(base: Base, path: Path, emit: Emit) -> dict[str, str]:
    """The base's licence by its own card: of its folder, else of the hub, if that can be reached."""
    from mlxforge.export.card import is_hub_id, licence_of

    if found := licence_of(path):
        return found
    shown = shown_base(base, path)
    if base.model == "tiny" or is_folder(base.model) or not is_hub_id(shown):
        return {}
    from huggingface_hub import hf_hub_download

    try:
        return licence_of(Path(hf_hub_download(shown, README)).parent)
    except Exception as error:  # the client raises its HTTP library's own errors too, which share no base
        emit(Noted(message=f"the licence of {shown} is not known here ({type(error).__name__}): the card says 'not stated'"))
        return {}


def hide(folder: Path) -> None:
    """Takes this disk's folders out of the texts that were made here; of a path its last part stays.

    Raises:
        MlxforgeError: one is left.
    """
    places = {str(Path.home()), str(Path.cwd()), tempfile.gettempdir(), str(folder)}
    places |= {str(Path(place).resolve()) for place in places}
    for file in {file for pattern in TEXTS for file in folder.rglob(pattern)}:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            text = json.dumps(_hidden(json.loads(text)), indent=2, ensure_ascii=False) + "\n"
            file.write_text(text, encoding="utf-8")
        left = next((place for place in sorted(places) if len(place) > 1 and f"{place}/" in text), None)
        if left is not None:
            raise MlxforgeError(
                f"{file.name} would tell a folder of this disk ({left})", where="--repo", fix="please report this"
            )


def _hidden(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _hidden(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_hidden(one) for one in value]
    return PLACE.sub(r"\1", value) if isinstance(value, str) and "\n" not in value else value
