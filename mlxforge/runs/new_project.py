"""``init``: a folder with all that a project needs, from a template, an example, or a run that it shall reproduce."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mlxforge.core.errors import ConfigError, RunError, did_you_mean
from mlxforge.core.files import embedded, new_directory
from mlxforge.data.sources import parse_spec
from mlxforge.models.hub import is_folder
from mlxforge.runs.opening import resolve_base
from mlxforge.runs.project import ELSEWHERE, FILE, NAME, PATHS
from mlxforge.runs.record import changed_settings, find_run, read_config, read_record
from mlxforge.runs.text import RUN, SAMPLE

FOLDERS = ("documents", "data", "configs", "runs", "exports")
IGNORED = "# What a pipeline makes again.\n/runs/\n/exports/\n/.forge/\n*.sqlite\n*.sqlite-*\n"
# example -> what is copied: from the shipped data, to the project
EXAMPLES: dict[str, dict[str, str]] = {
    "handbook": {
        "handbook/documents": "documents",
        "handbook/heldout": "data/heldout",
        "handbook/questions.train.jsonl": "data/questions.train.jsonl",
        "handbook/questions.test.jsonl": "data/questions.test.jsonl",
        "handbook/pairs.train.jsonl": "data/pairs.train.jsonl",
        "handbook/pairs.test.jsonl": "data/pairs.test.jsonl",
        "projects/handbook/desk.yaml": "configs/desk.yaml",
    }
}
# Settings of a run that a project says otherwise.
SETTLED = ("name", "runs_dir", "model", "from_run", "adapter")


def new_project(
    folder: Path,
    *,
    example: str | None = None,
    from_run: str | None = None,
    model: str | None = None,
    copy: bool = False,
    runs_dir: Path = Path("runs"),
) -> dict[str, Any]:
    """Makes a project folder, which appears whole.

    Args:
        example: one of :data:`EXAMPLES`.
        from_run: a run whose settings, data and base it shall have, those of the runs below it too.
        model: the base; by default ``tiny``, or the run's.
        copy: of a run: bring its data into the folder.

    Returns:
        ``project``, ``file``, ``stages`` and ``next`` (commands).

    Raises:
        ConfigError: the folder is there and not empty, an unknown example, two choices.
        RunError: no such run.
    """
    name = folder.resolve().name
    if example and from_run:
        raise ConfigError("--example and --from-run are two choices", where="command line", fix="give one of them")
    if example and model:
        raise ConfigError("an example has its own model", where="--model", fix="leave it out, or change forge.yaml")
    if example is not None and example not in EXAMPLES:
        raise ConfigError(f"no example '{example}'", where="--example", fix=did_you_mean(example, EXAMPLES))
    if copy and not from_run:
        raise ConfigError("--copy is of a run's data", where="--copy", fix="leave it out, or name the run: --from-run RUN")
    if not NAME.fullmatch(name):
        raise ConfigError(f"'{name}' is no name for a project", where=str(folder), fix="use letters, digits, '-' and '_'")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("is there already", where=str(folder), fix="name a new folder")
    if model and model != "tiny" and is_folder(model):
        model = str(Path(model).expanduser().resolve())  # of here; in the file it would be meant from the project
    made = _of_run(from_run, name, model, runs_dir, copy) if from_run else None
    with new_directory(folder) as place:
        for one in FOLDERS:
            (place / one).mkdir()
        if made:
            text, copies = made
            _copy(copies, place)
        else:
            text = _template(example or "plain", name, model or "tiny")
            _copy({embedded("data", *source.split("/")): to for source, to in EXAMPLES.get(example or "", {}).items()}, place)
        (place / FILE).write_text(text, encoding="utf-8")
        (place / "README.md").write_text(_shipped("README.md").replace("PROJECT", name), encoding="utf-8")
        (place / ".gitignore").write_text(IGNORED, encoding="utf-8")
    file = folder / FILE
    stages = re.findall(r"^([a-z]+):(?:\s+#.*)?$", text, re.MULTILINE)
    fill = [] if example or from_run else [f"put your documents into {folder / 'documents'}"]
    command = f"mlxforge pipeline {shlex.quote(str(folder))}"
    steps = [*fill, f"{command} --dry-run", command]
    return {"project": str(folder), "file": str(file), "stages": stages, "next": steps}


def _template(kind: str, name: str, model: str) -> str:
    return _shipped(kind, FILE).replace("PROJECT", name).replace("MODEL", _scalar(model))


def _scalar(text: str) -> str:
    """A text as YAML has it, in quotes only where it needs them."""
    import yaml

    return yaml.safe_dump(text, allow_unicode=True, width=10_000).removesuffix("...\n").strip()


def _shipped(*parts: str) -> str:
    return embedded("data", "projects", *parts).read_text(encoding="utf-8")


def _copy(copies: Mapping[Path, str], place: Path) -> None:
    """Files and folders to their places."""
    for source, to in copies.items():
        target = place / to
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)


def _of_run(run: str, project: str, model: str | None, runs_dir: Path, copy: bool) -> tuple[str, dict[Path, str]]:
    """The project file that reproduces a run and those below it, and what is copied for it."""
    import yaml

    chain, base = _chain(find_run(run, runs_dir), runs_dir)
    copies: dict[Path, str] = {}
    sections: dict[str, Any] = {"name": project, "model": model or base}
    seeds = {kept.get("seed", 0) for _, _, kept in chain}
    if len(seeds) == 1:
        sections["seed"] = seeds.pop()
    for objective, folder, kept in chain:
        settings = _nested(changed_settings(kept, objective))
        section = {key: value for key, value in settings.items() if key not in SETTLED and key != "seed"}
        if "seed" not in sections:
            section["seed"] = kept.get("seed", 0)
        if kept.get("adapter"):
            section["adapter"] = kept["adapter"]
        for key in PATHS:
            if value := section.get(key):
                place = _placer(copies if copy else None, folder)
                section[key] = [place(one) for one in value] if isinstance(value, list) else place(value)
        sections[objective] = section
    shown = " -> ".join(f"{folder.name} ({objective})" for objective, folder, _ in chain)
    head = (
        f"# {project}: what {shown} did, over {sections['model']}. Paths are meant from this folder.\n"
        "#   mlxforge pipeline --dry-run     what would be done, and what it would take; writes nothing\n"
        "#   mlxforge pipeline               does it; what did not change is skipped, what was stopped goes on\n"
        "# More stages: ingest, synth, pairs, eval, fuse, export, verify. mlxforge init NAME shows each with its settings.\n\n"
    )
    return head + yaml.safe_dump(sections, sort_keys=False, allow_unicode=True, width=120), copies


def _chain(run: Path, runs_dir: Path) -> tuple[list[tuple[str, Path, dict[str, Any]]], str]:
    """A run and those that it was trained on, the first one first, each objective once; and the base below them."""
    found: list[tuple[str, Path, dict[str, Any]]] = []
    while True:
        record, kept = read_record(run), read_config(run)
        objective, model = str(record.get("objective")), str(kept.get("model"))
        if not kept:
            raise RunError("has no config.yaml that can be read", where=str(run), fix="name another run")
        if any(one == objective for one, _, _ in found):
            return found[::-1], f"{RUN}{run.resolve()}"  # a project has each stage once: the rest is its base
        found.append((objective, run, kept))
        below = resolve_base(model, runs_dir) if model.startswith(RUN) or Path(model).is_dir() else None
        if below is None or below.run is None:
            return found[::-1], model
        run = below.run


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as mappings."""
    nested: dict[str, Any] = {}
    for key, value in settings.items():
        head, dot, tail = key.partition(".")
        if dot:
            nested.setdefault(head, {})[tail] = value
        else:
            nested[head] = value
    return nested


def _placer(copies: dict[Path, str] | None, run: Path) -> Callable[[str], str]:
    """What a path of a run is in the project: shipped data by its name, a copy in ``data/``, or where it lies."""
    shipped = embedded("data").resolve()

    def place(spec: str) -> str:
        path = Path(parse_spec(spec).path)
        weight = spec[len(str(parse_spec(spec).path)) :]
        if spec.startswith(ELSEWHERE) or not path.is_absolute():
            return spec
        if shipped in path.parents:
            return f"{SAMPLE}{path.relative_to(shipped).as_posix()}{weight}"
        if copies is None:
            return spec
        if not path.exists():
            raise RunError(f"its data is gone: {path}", where=str(run), fix="leave --copy out, and mend the path in forge.yaml")
        taken = {to: source for source, to in copies.items()}
        name = f"data/{path.name}"
        while taken.get(name, path) != path:
            name = f"data/{run.name}-{Path(name).name}"
        copies[path] = name
        return f"{name}{weight}"

    return place
