"""Opens what a user names as a model: ``tiny``, a folder, a hub id, an adapter, or a run with its adapter over its base."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxforge.core.blas import load_blas
from mlxforge.core.errors import ConfigError, ModelError, RunError
from mlxforge.core.files import file_hash
from mlxforge.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_file, adapter_settings, is_peft
from mlxforge.models.hub import display_name, is_folder, local, looks_like_path, resolve_model
from mlxforge.runs.checkpoints import checkpoint, published, step_of
from mlxforge.runs.record import (
    EVENTS,
    LAST,
    RECORD,
    beside,
    find_checkpoint,
    is_live,
    list_runs,
    read_config,
    read_record,
)

if TYPE_CHECKING:
    from mlxforge.models.load import Loaded
    from mlxforge.models.template import ChatTemplate

RUN = "run:"
TRAINED_THOUGHTS = {True: ("with", "false"), False: ("without", "true")}
TEMPLATE = "chat_template.jinja"  # written by a training run


@dataclass(frozen=True)
class Base:
    """What a name stands for.

    Attributes:
        model: the base as :func:`mlxforge.models.load.load` takes it.
        adapter: folder of the adapter over it, if any.
        run: the run directory that the adapter belongs to, if any.
        below: folders of adapters under it, the first one first; only what is merged or exported has them.
        step: of which checkpoint of the run the adapter is, where it is not the run's best.
    """

    model: str
    adapter: Path | None = None
    run: Path | None = None
    below: tuple[Path, ...] = ()
    step: int | None = field(default=None, compare=False)

    @property
    def adapters(self) -> tuple[Path, ...]:
        """All adapters over the base, the first one first."""
        return (*self.below, *([self.adapter] if self.adapter else []))

    @property
    def named(self) -> str:
        """The run as commands take it: ``run:NAME``, or ``run:NAME@STEP`` of a checkpoint that is not its best; else empty."""
        if self.run is None:
            return ""
        return f"{RUN}{self.run.name}" + (f"@{self.step}" if self.step is not None else "")

    @property
    def label(self) -> str:
        """What to call a file made of it: the run's name, with ``-STEP`` of a checkpoint, the adapter's, or the model's."""
        if self.run:
            return self.run.name + (f"-{self.step}" if self.step is not None else "")
        return self.adapter.name if self.adapter else Path(self.model).name


@dataclass(frozen=True)
class Opened:
    """A model ready to talk: weights with the adapter applied, and the template that its training used.

    ``name`` is what to call it: ``run:last`` has become the run's own name.
    """

    loaded: Loaded
    base: Base
    template: ChatTemplate
    name: str

    @property
    def thinks(self) -> bool:
        """Whether it thinks before it answers, unless told otherwise: as it was trained, else as its family does."""
        from mlxforge.models.render import LOCK_NOTE

        trained = [thoughts for thoughts, note in TRAINED_THOUGHTS.items() if LOCK_NOTE % note in self.template.text]
        usual = self.loaded.detected.family.thinking != "none" or self.loaded.tokenizer.has_thinking
        return trained[0] if trained else bool(usual)


def resolve_base(name: str, runs_dir: Path) -> Base:
    """What ``name`` stands for; no weights are read, but for a checkpoint of a run over another one, which is made whole.

    ``tiny``, a model folder or a hub id is a base alone. ``run:NAME``, ``run:last`` and the path of a run directory are the
    run's base and its best adapter (``run:NAME@best`` too); ``run:NAME@last`` and ``run:NAME@STEP`` are a kept checkpoint of
    it; a folder with an adapter (a checkpoint of a run too) is that adapter over its base.

    Raises:
        RunError: no such run or checkpoint, or a run without a finished adapter.
        ModelError: an adapter that names no base.
    """
    if name.startswith(RUN):
        return _of_run(*find_checkpoint(name, runs_dir))
    if not is_folder(name):
        if "@" in name and is_folder(name.rpartition("@")[0]):  # a run directory's checkpoint
            return _of_run(*find_checkpoint(name, runs_dir))
        if name != "tiny" and {name, name.rpartition("@")[0]} & {run.name for run in list_runs(runs_dir)}:
            raise ModelError("a run, not a model", where=name, fix=f"did you mean '{RUN}{name}'?")
        return Base(name)
    folder = local(name)
    if (folder / RECORD).is_file() or (folder / EVENTS).is_file():
        return _of_run(folder)
    if (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file():
        return _of_adapter(folder)
    return Base(name)


def subject(name: str | None, model: str | None, adapter: Path | Sequence[Path] | None, runs_dir: Path) -> Base:
    """What a command works on: a run or a model by its name, or ``--model`` with any ``--adapter`` over it, in order.

    ``name`` is a run's (``run:`` may be left out), ``last``, or all that :func:`resolve_base` knows. Without ``model`` the
    first adapter names its base. No weights are read; ``adapter`` of what comes back is None where a plain model was named.

    Raises:
        ConfigError: nothing is named, or two things are.
        ModelError: ``model`` is a run or an adapter itself, with one over it; or an adapter holds the one below already.
        RunError: no such run, or one without a finished adapter.
    """
    chosen = [adapter] if isinstance(adapter, Path) else list(adapter or ())
    if bool(name) == bool(model or chosen):
        what = "a RUN and --model or --adapter are two things" if name else "nothing is named"
        raise ConfigError(what, where="command line", fix="name a RUN or a MODEL, or --model M --adapter DIR")
    if name:
        return _named(name, runs_dir)
    over = [_named_adapter(one, runs_dir, model) for one in chosen]
    below = resolve_base(str(model), runs_dir) if model else Base(over[0].model)
    if not over:
        return below
    if below.adapter:
        raise ModelError("a run or an adapter, not a base", where=str(model), fix="name the base, or the RUN alone")
    folders = [one.adapter for one in over if one.adapter]
    for one in over[1:]:
        if one.run and (read_record(one.run).get("lineage") or {}).get("parent"):
            raise ModelError("holds the runs below it already", where=str(one.run), fix="give this --adapter alone")
    return Base(below.model, folders[-1], over[-1].run, tuple(folders[:-1]), over[-1].step)


def changed_base(base: Base, path: Path) -> str:
    """A warning where the model at ``path`` has other content than the one that the run was trained on; else empty.

    Its shapes may fit all the same, so that nothing else tells. It may be meant: the float original of a packed base.
    """
    from mlxforge.models.check import model_hash

    record = read_record(base.run) if base.run and (base.run / RECORD).is_file() else {}
    trained = ((record.get("lineage") or {}).get("model") or {}).get("hash")
    if not base.run or not trained or trained == model_hash(path):
        return ""
    return f"{display_name(path)} is not the model that '{base.run.name}' was trained on, or has changed since: other content"


def _named(name: str, runs_dir: Path) -> Base:
    known = (name, name.rpartition("@")[0])
    if LAST in known or any((runs_dir / one / RECORD).is_file() for one in known if one):
        return resolve_base(f"{RUN}{name}", runs_dir)
    if name.startswith(RUN) or name == "tiny" or is_folder(name):
        return resolve_base(name, runs_dir)
    if "@" in name:
        return resolve_base(f"{RUN}{name}", runs_dir)
    if looks_like_path(name):
        resolve_model(name)  # says what is wrong with it
    # The hub's ids have an owner; one that has none is taken as --model.
    return Base(name) if "/" in name else resolve_base(f"{RUN}{name}", runs_dir)


def _named_adapter(folder: Path, runs_dir: Path, model: str | None) -> Base:
    """An adapter by its folder, or a run's by folder or ``run:NAME``; what it is over matters only where no base is given."""
    if str(folder).startswith(RUN):
        return resolve_base(str(folder), runs_dir)
    place = local(str(folder))
    if (place / RECORD).is_file():
        return _of_run(place)
    if not (place / ADAPTER_CONFIG).is_file():
        what = "no adapter: there is no adapter_config.json" if place.is_dir() else "no such adapter folder"
        raise ModelError(what, where=str(folder), fix="name the folder of a run or an adapter")
    return Base(model, place) if model and is_peft(place) else resolve_base(str(folder), runs_dir)


def open_model(name: str, runs_dir: Path, dtype: str = "auto") -> Opened:
    """Loads what ``name`` stands for, applies its adapter and takes the chat template saved at training, else the base's own.

    Raises:
        RunError, ModelError: see :func:`resolve_base` and :func:`mlxforge.models.load.load`; or the adapter is of another base.
    """
    base = resolve_base(name, runs_dir)
    load_blas()
    from mlxforge.models.load import load
    from mlxforge.models.template import load_template

    loaded = load(base.model, dtype)
    if base.adapter is not None:
        import mlx.core as mx

        from mlxforge.models.lora import apply_adapter

        apply_adapter(loaded.model, base.adapter)
        mx.eval(loaded.model.parameters())
    template = load_template(loaded.path, loaded.detected, saved=_saved_template(base))
    shown = base.named if base.run and name.startswith(RUN) else name
    return Opened(loaded, base, template, shown)


def default_model(runs_dir: Path) -> str:
    """The newest run that has an adapter and is not being written, as ``run:NAME``; ``tiny`` where there is none."""
    for run in reversed(list_runs(runs_dir)):
        path = Path(run.path)
        if not run.damaged and (path / ADAPTER_WEIGHTS).is_file() and not is_live(path):
            return f"{RUN}{run.name}"
    return "tiny"


def _of_run(run: Path, at: str = "") -> Base:
    if is_live(run):
        raise RunError("this run is being trained now", where=str(run), fix="wait for its end, or name another model")
    if not (run / ADAPTER_WEIGHTS).is_file():
        raise RunError(
            "this run has saved no adapter yet", where=str(run), fix=f"go on with it: --resume {shlex.quote(run.name)}"
        )
    folder = checkpoint(run, at) if at else None
    if folder is None:
        return Base(_base_of(run), run, run)
    return Base(_base_of(run), _whole(folder, run), run, step=step_of(folder))


def _whole(step: Path, run: Path) -> Path:
    """A checkpoint's adapter over the run's base; one that was trained over another adapter holds only what it adds to it."""
    kept = read_config(run)
    try:
        below = resolve_base(beside(str(kept.get("model") or "tiny"), run), run.parent).adapter
    except RunError as error:
        what = f"holds only what it adds to what it was trained over: {error.what}"
        raise RunError(what, where=str(step), fix=f"'{RUN}{run.name}' holds both") from None
    if below is None:
        return step
    parent = (read_record(run).get("lineage") or {}).get("parent") or {}
    if not kept.get("adapter") and parent.get("hash") not in (None, file_hash(adapter_file(below))):
        what, fix = "what it was trained over has changed since", f"'{RUN}{run.name}' holds both as they were"
        raise RunError(what, where=str(below), fix=fix)
    return published(step, below, _base_of(run), str(kept.get("dtype") or "auto"))


def _of_adapter(folder: Path) -> Base:
    run = folder.resolve().parent.parent
    if folder.resolve().parent.name == "checkpoints" and (run / RECORD).is_file():
        return Base(_base_of(run), _whole(folder, run), run, step=step_of(folder))
    return Base(_placed(_named_base(folder), folder), folder)


def _base_of(run: Path) -> str:
    record = read_record(run)
    recorded = _first_base(record) or record.get("model")
    if not isinstance(recorded, str) or not recorded or recorded.startswith(RUN):
        recorded = _named_base(run)
    return _placed(recorded, run)


def _first_base(record: dict[str, Any]) -> Any:
    """The base below all runs and adapters: what the adapter's config says may be a place that an update of mlxforge moves."""
    try:
        return record["lineage"]["model"]["name"]
    except (KeyError, TypeError):
        return None


def _saved_template(base: Base) -> Path | None:
    folders = (folder for folder in (base.run, base.adapter) if folder is not None)
    return next((folder for folder in folders if (folder / TEMPLATE).is_file()), None)


def _named_base(folder: Path) -> str:
    """The base that an adapter's config names."""
    config = adapter_settings(folder)
    named = config.get("model") or config.get("base_model_name_or_path")
    if not isinstance(named, str):
        fix = 'add "model": the base it was trained on, or name both: --model M --adapter DIR'
        raise ModelError("the adapter names no base", where=str(folder / ADAPTER_CONFIG), fix=fix)
    return named


def _placed(model: str, folder: Path) -> str:
    """A relative path is meant from where training ran: here, else the folder that holds ``runs/``, else the adapter's own."""
    if model == "tiny" or Path(model).is_absolute():
        return model
    places = (Path(model), folder.resolve().parent.parent / model, folder.resolve() / model)
    return next((str(place) for place in places if place.is_dir()), model)
