"""A folder as a model repository on the Hugging Face hub. The token comes from the environment or from the hub's login."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlxforge.core.errors import ConfigError, MlxforgeError, RunFailed
from mlxforge.models.hub import hub_problem

NO_TOKEN = "log in: hf auth login, or set HF_TOKEN"
# Status of an answer -> what happened, how to mend it.
STATUSES = {
    401: ("the hub does not accept the token", "log in again: hf auth login, or set another HF_TOKEN"),
    402: ("the account's storage does not allow it", "free storage at huggingface.co, or choose another owner"),
    403: ("the token may not write there", "use a token with write access to this owner, or name a repository of your own"),
    404: ("the hub knows no such owner or repository", "check --repo"),
    409: ("a repository of this name is there already", "choose another name, or --force for a new commit in it"),
    413: ("a file is larger than the hub takes", "split it: --max-shard-size of fuse"),
    429: ("the hub asks to wait: too many requests", "try again later"),
}
NETWORK = {"ConnectError", "ConnectionError", "TimeoutException", "Timeout", "OfflineModeIsEnabled"}


def check_repo(repo: str) -> None:
    """The name is one that a repository can have: ``owner/name``, or ``name`` alone for one's own.

    Raises:
        ConfigError: it is not.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"no name for a repository: {first}", where="--repo", fix="such as me/my-model") from error


def check_token() -> None:
    """There is a token.

    Raises:
        MlxforgeError: there is none, or the hub is switched off.
    """
    from huggingface_hub import constants, get_token

    if constants.is_offline_mode():
        raise MlxforgeError("the hub is switched off", where="HF_HUB_OFFLINE", fix="unset it, or use --dry-run")
    if get_token() is None:
        raise MlxforgeError("there is no token for the hub", fix=NO_TOKEN)


def upload(folder: Path, repo: str, *, private: bool, force: bool, message: str) -> dict[str, Any]:
    """Makes the repository and puts all files of ``folder`` into it.

    ``force`` takes a repository that is there already; one that is to be private must be so before anything is sent.

    Returns:
        ``repo`` (with its owner), ``url``, ``commit``.

    Raises:
        MlxforgeError: no token, not allowed, the name is taken, or the hub cannot be reached; nothing was made.
        RunFailed: the repository is made and the upload broke off.
    """
    from huggingface_hub import HfApi

    check_token()
    api = HfApi()
    try:
        made = api.create_repo(repo, private=True if private else None, exist_ok=force)
        if private and not api.repo_info(made.repo_id).private:
            fix = "make it private at the hub first, or choose another name"
            raise ConfigError("is there already and public", where=made.repo_id, fix=fix)
    except MlxforgeError:
        raise
    except Exception as error:  # the client raises its HTTP library's own errors too, which share no base
        what, fix = problem(error)
        raise MlxforgeError(what, where=repo, fix=fix) from error
    try:
        commit = api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message)
    except Exception as error:
        what, fix = problem(error)
        raise RunFailed(f"the upload broke off: {what}", where=made.repo_id, fix=f"{fix}; then again with --force") from error
    return {"repo": made.repo_id, "url": str(made), "commit": commit.oid}


def problem(error: BaseException) -> tuple[str, str]:
    """What went wrong at the hub, and the fix. No text of the hub's that could repeat the token is handed on."""
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if status in STATUSES:
        return STATUSES[status]
    if isinstance(status, int):
        return f"the hub answered with status {status}", "try again later"
    kinds = {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}
    if kinds & NETWORK:
        return "the hub cannot be reached", "check the network and HF_ENDPOINT, or use --dry-run"
    what, _ = hub_problem(error)
    return what, "see the hub's status, or use --dry-run"


def _chain(error: BaseException | None) -> list[BaseException]:
    chain: list[BaseException] = []
    while error is not None and len(chain) < 8:
        chain.append(error)
        error = error.__cause__ or error.__context__
    return chain
