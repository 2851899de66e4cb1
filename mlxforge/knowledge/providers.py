"""Who writes: one table of providers, each answering many requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from mlxforge.core.errors import ConfigError, did_you_mean
from mlxforge.knowledge.asked import ProviderSettings, Reply, Request


class Provider(Protocol):
    """Answers requests. ``model`` is what provenance calls it."""

    @property
    def model(self) -> str: ...

    def complete(self, requests: Iterable[Request]) -> Iterator[Reply]:
        """A reply to each request, each key once, in any order; requests are taken as they are needed.

        Raises:
            CostReached: the next call could exceed the ceiling. All begun before are answered first.
            RunFailed: the provider does not work.
        """
        ...


def _mlx(settings: ProviderSettings) -> Provider:
    from mlxforge.knowledge.local import LocalProvider

    return LocalProvider(settings)


def _openai(settings: ProviderSettings) -> Provider:
    from mlxforge.knowledge.remote import RemoteProvider

    return RemoteProvider(settings)


PROVIDERS: dict[str, Callable[[ProviderSettings], Provider]] = {"mlx": _mlx, "openai": _openai}


def provider(name: str, settings: ProviderSettings) -> Provider:
    """A provider of the table, ready.

    Raises:
        ConfigError: no such provider, nothing answers at its URL, or no such model.
        MissingExtraError: ``mlx`` without the package ``llguidance``.
    """
    if name not in PROVIDERS:
        raise ConfigError(f"unknown provider '{name}'", where="--provider", fix=did_you_mean(name, PROVIDERS))
    return PROVIDERS[name](settings)
