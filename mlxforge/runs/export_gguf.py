"""Export as GGUF: opened once, written once a quantization, each file verified by llama.cpp before it gets its name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxforge.core.errors import ConfigError, MissingExtraError, MlxforgeError
from mlxforge.core.events import Emit, Noted, Warned, ignore
from mlxforge.core.files import disk_errors
from mlxforge.models.hub import display_name
from mlxforge.runs.opening import Base, changed_base
from mlxforge.runs.origin import BESIDE, beside_gguf, write_origin
from mlxforge.runs.verify import Material, NotVerified, checked, material

if TYPE_CHECKING:
    from mlxforge.export.header import Key

NOT_INSTALLED = "not verified: the package 'xllamacpp' is not installed (pip install 'mlxforge[gguf]')"
NOT_WANTED = "not verified: --no-verify"


def export_gguf(
    base: Base,
    output: Path | None,
    quants: Sequence[str],
    *,
    verify: bool | None = None,
    force: bool = False,
    fuzz: int | None = None,
    emit: Emit = ignore,
) -> dict[str, Any]:
    """Writes ``base`` with its adapters merged as GGUF: ``out.gguf``, or of several quants ``out.f16.gguf`` and so on.

    A file that fails a check is named ``out.gguf.unverified``; its report lies beside it all the same.

    Args:
        output: None for ``NAME.QUANT.gguf`` here, by the name of the run, the adapter or the model.
        verify: None verifies where the extra ``gguf`` is installed, and says so where it is not.
        fuzz: texts for the tokenizers.

    Returns:
        ``base``, ``files`` (what the writer says of each, with ``passed``, ``report`` and ``checks``), ``passed``
        (None where nothing was verified), ``notes`` and ``unverified`` (why, else empty).

    Raises:
        ConfigError: an unknown quantization, or an output exists.
        ModelError: a model that llama.cpp does not run, or an adapter of another base.
        MissingExtraError: verification is asked for, or a type needs ggml, and the extra is not installed.
        NotVerified: a check failed.
        MlxforgeError: the disk is too small.
    """
    from mlxforge.export.gguf import check_output, check_quant, check_space
    from mlxforge.export.llama import available
    from mlxforge.export.quantize import quant_of

    chosen = list(dict.fromkeys(quants))
    for quant in chosen:
        quant_of(quant)
    if verify and not available():
        raise MissingExtraError("xllamacpp", "gguf", "--verify")
    files = names(output, chosen, suggested(base))
    for file in files.values():
        check_output(file, force)
        check_report(file, force)
    made = material(base)
    if warning := changed_base(base, made.path):
        emit(Warned(message=warning))
    keys = keys_of(made)
    # Of several files none is begun where the last could not be made.
    check_space(next(iter(files.values())), sum(check_quant(made.placed, keys, quant) for quant in chosen))
    why = "" if verify or (verify is None and available()) else NOT_INSTALLED if verify is None else NOT_WANTED
    written = [one_file(made, file, quant, verify=not why, force=force, fuzz=fuzz, emit=emit) for quant, file in files.items()]
    if why:
        emit(Noted(message=why))
    passed = None if why else all(file["passed"] for file in written)
    result: dict[str, Any] = {"base": made.against, "files": written, "passed": passed}
    result |= {"notes": list(made.vocabulary.limits), "unverified": why}
    failed = [file for file in written if file["passed"] is False]
    if failed:
        what = f"not as it was trained: {failed[0]['failed']}"
        fix = f"the file was left as {Path(failed[0]['file']).name}, its report beside it"
        raise NotVerified(what, result, where=failed[0]["file"], fix=fix)
    return result


def suggested(base: Base) -> str:
    """A name by the run, the adapter or the model."""
    return base.label


def names(output: Path | None, quants: Sequence[str], name: str) -> dict[str, Path]:
    """The file of each quantization.

    Raises:
        ConfigError: the name does not end in .gguf, or is a folder's.
    """
    if output is None:
        return {quant: Path(f"{name}.{quant}.gguf") for quant in quants}
    if output.is_dir():
        raise ConfigError("is a folder", where=str(output), fix="name a file such as out.gguf")
    if output.suffix != ".gguf":
        raise ConfigError("a GGUF file's name ends in .gguf", where=str(output), fix=f"-o {output}.gguf")
    if len(quants) == 1:
        return {quants[0]: output}
    return {quant: output.with_name(f"{output.stem}.{quant}.gguf") for quant in quants}


def check_report(file: Path, force: bool) -> None:
    """Raises ConfigError where a file that failed, or a report of another, would be written over."""
    from mlxforge.export.report import report_path, unverified

    for path in (report_path(file), unverified(file)):
        if os.path.lexists(path) and not force:
            raise ConfigError("is there already", where=str(path), fix="--force replaces it")


def keys_of(made: Material) -> list[Key]:
    """The file's keys of architecture and vocabulary."""
    from mlxforge.export.layout import metadata

    return [*metadata(made.source), *made.vocabulary.keys]


def one_file(
    made: Material, file: Path, quant: str, *, verify: bool, force: bool, fuzz: int | None, emit: Emit
) -> dict[str, Any]:
    """Writes and verifies one file. It has its own name only once it has passed."""
    from mlxforge.export.gguf import write_gguf
    from mlxforge.export.report import failure, report_path, unverified, write_report

    keys = keys_of(made)
    below = display_name(made.path) if made.base.adapter else ""
    place = unverified(file) if verify else file
    written = write_gguf(place, made.source, made.placed, keys, quant, name=made.name, base_model=below, force=force, emit=emit)
    if not verify:
        # What an earlier export left must not be taken for this one's.
        for old in (report_path(file), unverified(file)):
            old.unlink(missing_ok=True)
        write_origin(file, made.base, made.path, "gguf", quant=quant)
        return {**written, "passed": None}
    try:
        found = checked(place, made, written, fuzz=fuzz, emit=emit)
    except KeyboardInterrupt:
        emit(Warned(message=f"stopped before it was verified: {place} is whole; 'mlxforge verify' goes on"))
        raise
    except MlxforgeError:
        place.unlink(missing_ok=True)
        raise
    if found["passed"]:
        with disk_errors(file):
            for old in (report_path(file), beside_gguf(file, BESIDE)):
                old.unlink(missing_ok=True)
            os.replace(place, file)
        found["file"], written["file"] = file.name, str(file)
    path = report_path(file)
    write_report(path, found)
    kept = {key: found[key] for key in ("passed", "checks", "sha256")}
    return {**written, **kept, "report": str(path), "failed": failure(found)}
