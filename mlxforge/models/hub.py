"""Where a model lies: the shipped one, a folder, or a copy from the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from mlxforge.core.errors import ModelError
from mlxforge.core.files import embedded

# What mlx-lm reads, without pickles and code; "model*" leaves out the second copy that some repositories hold.
DESCRIPTION = ["*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "merges.txt", "vocab.txt"]
WEIGHTS = ["model*.safetensors"]
SUFFIXES = {".gguf", ".ggml", ".safetensors", ".bin", ".pt", ".pth", ".npz", ".json", ".zip", ".tar", ".gz"}
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)

# Exception name -> what happened, how to mend it. By name: a look-up must not import the hub's client.
HUB_ERRORS = {
    "GatedRepoError": ("its owner asks you to accept the licence first", "accept it on the model's page, then: hf auth login"),
    "RepositoryNotFoundError": (
        "not a folder here, and not on the Hugging Face hub",
        "check the spelling; if private: hf auth login",
    ),
    "RevisionNotFoundError": ("this revision is not on the Hugging Face hub", "check the revision"),
    "HFValidationError": ("not a folder here, and no valid hub id", "give a folder, or an id such as Qwen/Qwen3-0.6B"),
    "OfflineModeIsEnabled": ("not a folder here, and the hub is switched off", "unset HF_HUB_OFFLINE, or give a folder"),
    "IncompleteSnapshotError": ("not wholly in the hub's cache, and no network", "give a folder, 'tiny', or connect once"),
}
UNREACHABLE = ("not a folder here, and the Hugging Face hub cannot be reached", "give a folder, 'tiny', or check the network")


def resolve_model(name: str, patterns: list[str] | None = None) -> Path:
    """The folder of a model: ``tiny`` (shipped), an existing folder, or a hub id, which is downloaded.

    ``patterns`` are the files to download, by default all that loading needs.

    Raises:
        ModelError: no such folder, not on the hub, gated, or the hub cannot be reached; one line each.
    """
    if name == "tiny":
        return _shipped(embedded("data", "tiny"))
    path = local(name)
    if is_folder(name):
        return path
    if path.is_file():
        fix = "GGUF files are an export, not a base" if path.suffix == ".gguf" else "give the folder that holds config.json"
        raise ModelError("a file, not a model folder", where=name, fix=fix)
    if looks_like_path(name):
        raise ModelError("no such model: not a folder here, and no hub id", where=name or "model", fix="check the path")
    return _download(name, patterns or DESCRIPTION + WEIGHTS)


def local(name: str) -> Path:
    """The path that a name would be on this disk."""
    try:
        return Path(name).expanduser()
    except RuntimeError:  # ~nobody
        return Path(name)


def is_folder(name: str) -> bool:
    """Whether a name is a folder here; ModelError where the disk refuses to say."""
    try:
        return bool(name) and local(name).is_dir()
    except OSError as error:
        raise ModelError(f"no such model: {error.strerror}", where=name[:80], fix="check the path") from error


def looks_like_path(name: str) -> bool:
    """Whether a name can only mean a place on this disk, so that asking the hub is pointless."""
    return (
        name.startswith((".", "/", "~"))
        or name.endswith("/")
        or Path(name).suffix.lower() in SUFFIXES
        or HUB_ID.fullmatch(name) is None
    )


def _shipped(path: Path) -> Path:
    if not path.is_dir():
        raise ModelError("the embedded model is missing", where=str(path), fix="reinstall mlxforge, or give another model")
    return path


def _download(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the client raises its HTTP library's own errors too, which share no base
        what, fix = hub_problem(error)
        raise ModelError(f"no such model: {what}", where=name, fix=fix) from error


def hub_problem(error: BaseException) -> tuple[str, str]:
    """What went wrong at the hub, and the fix; the cause behind an error counts before the error itself."""
    chain: list[str] = []
    link: BaseException | None = error
    while link is not None and len(chain) < 8:
        chain.extend(kind.__name__ for kind in type(link).__mro__)
        link = link.__cause__ or link.__context__
    known = next((HUB_ERRORS[kind] for kind in HUB_ERRORS if kind in chain), None)
    if known:
        return known
    network = {"ConnectError", "ConnectionError", "TimeoutException", "Timeout", "LocalEntryNotFoundError", "HfHubHTTPError"}
    if network & set(chain):
        return UNREACHABLE
    return f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}", "give a folder"


def display_name(path: Path) -> str:
    """The model's name for hints: the hub id behind a cached snapshot, else the folder's name."""
    cached = next((part for part in path.parts if part.startswith("models--")), None)
    return cached.removeprefix("models--").replace("--", "/") if cached else path.name
