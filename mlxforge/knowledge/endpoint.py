"""A server that speaks OpenAI's protocol: what may pass is tried again, keys stay here, replies are whole or none."""

from __future__ import annotations

import email.utils
import http.client
import ipaddress
import json
import os
import random
import re
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from mlxforge.core.errors import ConfigError, RunFailed

KEY = "OPENAI_API_KEY"
TRIES = 4
PAUSE = 0.5  # seconds before the second try, doubled before each one after it
LONGEST_PAUSE = 60.0
LONGEST_REPLY = 1 << 24  # bytes
BLOCK = 1 << 16
SHOWN = 160  # characters of what a server said

# Some servers refuse one of them for some models; what stands on the right takes its place.
OPTIONAL = {"temperature": None, "seed": None, "max_tokens": "max_completion_tokens", "max_completion_tokens": None}


class Refused(Exception):
    """The server's own words, its status, and for how many seconds it wants to be left alone."""

    def __init__(self, status: int, reason: str, wait: float = 0.0) -> None:
        self.status, self.reason, self.wait = status, reason, wait
        super().__init__(reason)

    @property
    def told(self) -> str:
        """One line."""
        if self.status < 300:
            return self.reason
        hint = f" (the key comes from ${KEY})" if self.status in (401, 403) else ""
        return f"the server refused with status {self.status}: {short(self.reason) or 'without a reason'}{hint}"

    @property
    def passes(self) -> bool:
        """Whether the same request may be answered later."""
        return self.status in (408, 429) or self.status >= 500


class Unreachable(RunFailed):
    """No answer after several tries."""


class Garbled(Unreachable):
    """Something answers, though not in JSON."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Prompts and the key go to the host that was named and to no other."""

    def redirect_request(self, *_: Any) -> None:
        """Never."""


class Pace:
    """At most ``per_minute`` requests, evenly spaced; 0 for no limit. For all threads together."""

    def __init__(self, per_minute: float) -> None:
        self.gap = 60.0 / per_minute if per_minute else 0.0
        self._next, self._lock = 0.0, threading.Lock()

    def wait(self) -> None:
        """Until it is the caller's turn."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self.gap
        if turn > now:
            time.sleep(turn - now)


@dataclass
class Endpoint:
    """The address of a server.

    The key in ``$OPENAI_API_KEY`` is sent over https and to this machine alone, and appears in no message.

    Attributes:
        url: such as ``http://127.0.0.1:8080/v1``.
        option: the flag that named it, for messages.
        timeout: seconds for one whole reply.
        per_minute: requests at most; 0 for no limit.

    Raises:
        ConfigError: not a URL, or a key that cannot be sent.
    """

    url: str
    option: str = "--url"
    timeout: float = field(default=120.0, repr=False)
    per_minute: float = field(default=0.0, repr=False)

    def __post_init__(self) -> None:
        parts = _split(self.url, self.option)
        self.url = self.url.rstrip("/")
        near = is_here(parts.hostname or "")
        handlers = [_NoRedirects(), *([urllib.request.ProxyHandler({})] if near else [])]
        self._opener = urllib.request.build_opener(*handlers)
        key = os.environ.get(KEY, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise ConfigError("a key has letters of ASCII in one line", where=f"${KEY}", fix="set it anew, or unset it")
        self.withholds_key = bool(key) and not (near or parts.scheme == "https")
        self._key = "" if self.withholds_key else key
        self._pace = Pace(self.per_minute)
        self._instead: dict[str, str | None] = {}

    def model(self, named: str, *, flag: str, start: str) -> str:
        """The model to ask: ``named``, or the only one that the server has. Shows that the server answers.

        Args:
            flag: how a user names a model, such as ``--model NAME``.
            start: what to do where nothing answers.

        Raises:
            ConfigError: nothing answers there, or the server has several models.
        """
        try:
            reply = self.ask("models", tries=1)
            names = [str(one["id"]) for one in reply["data"]]
        except Garbled as error:
            # mlx_lm.server cannot list its models where there is no cache of the hub.
            if not named:
                raise ConfigError(error.what, where=self.url, fix=f"name the model: {flag}") from None
            return named
        except RunFailed as error:
            raise ConfigError(error.what, where=self.url, fix=start) from None
        except Refused as refused:
            if refused.status in (401, 403):
                raise ConfigError(refused.told, where=self.url) from None
            if not named:
                raise ConfigError(refused.told, where=self.url, fix=f"name the model: {flag}") from None
            return named
        except (LookupError, TypeError):
            names = []
        if not named and len(names) != 1:
            had = f"the server has {len(names)} models" + (f": {short(', '.join(names))}" if names else "")
            raise ConfigError(had, where=self.url, fix=f"name one: {flag}")
        return named or names[0]

    def chat(self, model: str, messages: list[dict[str, str]], **options: Any) -> dict[str, Any]:
        """The server's reply to a conversation, ``choices`` and all. Options that it refuses by name are left out from then on.

        Raises:
            Refused: an answer that trying again does not change.
            Unreachable: no answer after several tries.
        """
        body: dict[str, Any] = {"model": model, "messages": messages}
        for name, value in options.items():
            while name in self._instead:
                name = self._instead[name] or ""
            if name:
                body[name] = value
        try:
            reply = self.ask("chat/completions", body)
        except Refused as refused:
            named = [name for name in OPTIONAL if name in body and re.search(rf"\b{name}\b", refused.reason)]
            if refused.status not in (400, 422) or not named:
                raise
            for name in named:
                self._instead[name] = OPTIONAL[name]
            return self.chat(model, messages, **options)
        if not isinstance(reply, dict):
            raise Refused(200, f"not a reply of OpenAI's protocol: {short(json.dumps(reply))}")
        return reply

    def ask(self, path: str, body: dict[str, Any] | None = None, tries: int = 0) -> Any:
        """The JSON of an answer; what may pass is tried again, more slowly each time and as ``Retry-After`` says.

        Raises:
            Refused: an answer that trying again does not change.
            Unreachable: no answer after several tries.
        """
        last, tries = "", tries or TRIES
        kind: type[Unreachable] = Unreachable
        for attempt in range(tries):
            # Jitter: many clients that were refused together must not come back together.
            wait = PAUSE * 2**attempt * random.uniform(0.75, 1.25)
            self._pace.wait()
            try:
                return self._request(path, body)
            except Refused as refused:
                if not refused.passes:
                    raise
                last, kind, wait = refused.told, Unreachable, max(wait, refused.wait)
            except (OSError, http.client.HTTPException) as error:
                last, kind = self._clean(self._reason(error)), Unreachable
            except ValueError:
                last, kind = "not JSON: is this an OpenAI-compatible server?", Garbled
            if attempt < tries - 1:
                time.sleep(min(wait, LONGEST_PAUSE))
        raise kind(f"{last}, tried {tries} times" if tries > 1 else last, where=self.url)

    def _reason(self, error: Exception) -> str:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            return f"no answer within {self.timeout:g} seconds"
        if isinstance(reason, http.client.IncompleteRead):
            return "the connection was cut in the middle of an answer"
        return f"no answer: {short(getattr(reason, 'strerror', None) or str(reason) or type(reason).__name__)}"

    def _request(self, path: str, body: dict[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self._key}"} if self._key else {})}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{path}", data, headers)
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                content = _whole(response, time.monotonic() + self.timeout)
        except urllib.error.HTTPError as error:
            with error:
                reason = self._clean(_message(error.read(LONGEST_REPLY)))
                raise Refused(error.code, reason, _seconds(error.headers.get("Retry-After"))) from None
        return json.loads(content)

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "…") if self._key else text


def short(text: str) -> str:
    """A text as one line of at most 160 printable characters."""
    line = "".join(letter if letter.isprintable() else " " for letter in " ".join(text.split()))
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"


def is_here(host: str) -> bool:
    """Whether ``host`` is this machine and nothing else; false where there is no such host."""
    try:
        addresses = [address[0] for *_, address in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)]
        return all(ipaddress.ip_address(address).is_loopback for address in addresses)
    except (OSError, ValueError):
        return False


def _split(url: str, option: str) -> urllib.parse.SplitResult:
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or not url.isprintable() or " " in url:
        raise ConfigError(f"not a URL: {short(url)}", where=option, fix="such as http://127.0.0.1:8080/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        fix = f"leave user, password and query out: a key comes from ${KEY}"
        raise ConfigError("more than an address", where=option, fix=fix)
    return parts


def _whole(response: Any, deadline: float) -> bytes:
    """The body. A server that sends a byte now and then does not hold the caller for ever."""
    parts: list[bytes] = []
    size = 0
    while part := response.read1(BLOCK):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline:
            raise TimeoutError
        if size > LONGEST_REPLY:
            raise OSError("an answer of more than 16 MB")
    told = response.headers.get("Content-Length", "")
    if told.isdigit() and size < int(told):
        raise http.client.IncompleteRead(b"", int(told) - size)
    return b"".join(parts)


def _message(content: bytes) -> str:
    """The message in an error's body."""
    text = content.decode("utf-8", "replace")
    try:
        values = json.loads(text)
    except ValueError:
        return re.sub(r"<[^>]*>", " ", text)
    error = values.get("error", values) if isinstance(values, dict) else values
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _seconds(value: str | None) -> float:
    """``Retry-After``: seconds, or a date."""
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value or "").timestamp() - time.time())
    except (TypeError, ValueError):
        return 0.0
