"""A made-up run and pseudo-terminals, as fixtures."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from screens import Terminal, make_run, terminals

from mlxforge.core import events as ev


@pytest.fixture
def run_events() -> Callable[..., list[ev.Event]]:
    return make_run


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    with terminals() as start:
        yield start
