"""The checks of a GGUF file: llama.cpp must read, tokenize, prompt and answer as the model that was trained.

The reference is MLX on the CPU in float32, llama.cpp computes on the CPU too. A float file is held against the model itself; a
quantized one against its own tensors in MLX, since on small models quantization alone changes most answers: how far the tensors
moved is a check of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlxforge.core.events import Emit, Progress, ignore
from mlxforge.core.rows import Message, Messages
from mlxforge.export.fuzz import fuzz_texts
from mlxforge.export.layout import Placed
from mlxforge.export.llama import FLOOR, LlamaCpp, LlamaFailed
from mlxforge.export.restored import Compared, compare, limit, log_probabilities, model_of, precision, stored
from mlxforge.export.source import Source, text_config
from mlxforge.export.vocabulary import Vocabulary, portable
from mlxforge.models.render import TemplateRefused
from mlxforge.models.template import ChatTemplate

FUZZ, SEED = 600, 7  # texts for the tokenizers, and what they are drawn from
TOP = 4096  # most likely tokens whose log-probabilities are compared; the rest counts as one
PLACES = 6  # of each prompt at which they are
ANSWER = 12  # tokens of a greedy answer
LOGITS = 0.05  # largest difference of log-probabilities
# Kullback-Leibler divergence in nats. llama.cpp rounds what goes into a product to the weights' own kind of number.
DIVERGENCE = {"float": 1e-5, "bf16": 1e-4, "quantized": 5e-3}
# In which half precision, and how many times as far, a model may be from itself: blocks of 8 bits are coarser than bfloat16.
NOISE = {"float": ("float16", 1), "bf16": ("bfloat16", 1), "quantized": ("bfloat16", 4)}
FLIPS = 0.1  # share of the positions of a mixture of experts at which a near tie may choose other experts
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")

TALKS: dict[str, Messages] = {
    "a question": (Message("user", "What is 12 + 3456? Don't guess.\n\n1. Count\n2. Say"),),
    "a system message": (Message("system", "Be brief."), Message("user", "Hm?")),
    "turns": (
        Message("user", "Hi"),
        Message("assistant", "Hello! What's up?"),
        Message("user", "The mill's wheel:\n\tturns 100 times, doesn't it?"),
        Message("assistant", "It does.\n\nAbout 99.5 times."),
        Message("user", "And at 17:45?"),
    ),
    "unicode": (
        Message("system", "Réponds en français – s'il te plaît."),
        Message("user", "Größe? 你好,世界! 😀👍🏽 ½ € Ελλάδα नमस्ते"),
        Message("assistant", "C'est « ça » … 漢字"),
        Message("user", "مرحبا 1234567"),
    ),
}
PLAIN = "The old mill by the river was built in 1984 and it's been there ever since.\n\nThey're open from 10:30"


@dataclass(frozen=True)
class Check:
    """One check. ``passed`` is None where it was not made; ``detail`` says why, or what differs where."""

    name: str
    passed: bool | None
    value: float | None = None
    limit: float | None = None
    detail: str = ""


@dataclass(frozen=True)
class Subject:
    """What a file is held against.

    Attributes:
        source: the tensors, adapters merged.
        placed: where each stands in a GGUF file.
        vocabulary: what was to be written of the tokenizer.
        encode: ids of a text with the special tokens that it names, nothing added.
        start: ids that go before a text that is no chat.
        stop: ids at which generation ends.
        template: None where the model has no chats.
        model: makes the trained model itself in MLX, in float32; None: it is made of ``source``.
    """

    source: Source
    placed: Sequence[Placed]
    vocabulary: Vocabulary
    encode: Callable[[str], list[int]]
    start: tuple[int, ...] = ()
    stop: frozenset[int] = frozenset()
    template: ChatTemplate | None = None
    model: Callable[[], Any] | None = None


@dataclass
class Probe:
    """What llama.cpp answered: a sequence, the length of its prompt, and the top log-probabilities after some prefixes."""

    ids: list[int]
    prompt: int
    tops: dict[int, tuple[np.ndarray, np.ndarray]]


def verify(file: Path, subject: Subject, *, fuzz: int = FUZZ, emit: Emit = ignore) -> tuple[list[Check], Compared]:
    """All checks of one file, and its tensors beside the source's.

    A file that llama.cpp cannot open has failed the first check; the others are not made then.

    Raises:
        MissingExtraError: no xllamacpp.
        ModelError: the reference cannot be built.
    """
    try:
        with LlamaCpp(file) as llama:
            tell(emit, "llama.cpp", 0)
            reader = opened(file)
            checks = [Check("loads", True, detail=f"{llama.info['n_vocab']:,} tokens"), *texts(llama, subject, fuzz)]
            tell(emit, "llama.cpp", 1)
            checks += [template_text(reader, subject), chats(llama, subject), stops(llama, reader, subject)]
            probes = probed(llama, subject)
            tell(emit, "llama.cpp", 2)
    except LlamaFailed as error:
        return [Check("loads", False, detail=error.what)], Compared()
    sort = sort_of({tensor.tensor_type.name for tensor in reader.tensors})
    kind = precision(subject.placed)
    keep = kind is not None and sort != "float"
    compared = compare(reader.tensors, subject.source, subject.placed, keep=keep, half=kind == "float16", emit=emit)
    checks.append(tensors(compared))
    if compared.strange or kind is None:
        why = "the tensors are not the model's" if compared.strange else "not enough memory for the model in MLX"
        return [*checks, Check("logits", None, detail=f"not checked: {why}")], compared
    import mlx.core as mx

    with on_device(mx.cpu):
        model = reference(subject, compared.weights, kind == "float16", sort)
        compared.weights.clear()
        checks += answers(probes, model, subject, sort)
    return checks, compared


def sort_of(types: set[str]) -> str:
    """``float`` for a file that holds what was trained to within the limits, else ``bf16`` or ``quantized``."""
    if types <= {"F32", "F16"}:
        return "float"
    return "bf16" if types <= {"F32", "F16", "BF16"} else "quantized"


def tell(emit: Emit, task: str, done: int) -> None:
    """Progress of what llama.cpp is asked."""
    emit(Progress(task=f"asking {task}", done=done, total=2))


def opened(file: Path) -> Any:
    """The file in gguf's reader.

    Raises:
        LlamaFailed: it cannot be read.
    """
    from gguf import GGUFReader

    try:
        return GGUFReader(file)
    except Exception as error:  # a damaged file fails in many ways
        raise LlamaFailed(f"no whole GGUF file: {error}", where=str(file)) from error


def texts(llama: LlamaCpp, subject: Subject, count: int) -> Iterator[Check]:
    """Token ids of the fuzz set, special tokens' names among it, and what goes before a text."""
    wrong: list[str] = []
    drawn = fuzz_texts(SEED, max(count, FUZZ), specials(subject))
    # The first ones are single pieces, so a few are taken from all over.
    chosen = subject.vocabulary.comparable(drawn[:: max(1, len(drawn) // max(count, 1))])
    for text in chosen:
        own, theirs = subject.encode(text), llama.tokenize(text, special=True)
        if own != theirs:
            wrong.append(f"{text!r} is {shown(theirs)}, not {shown(own)}")
    yield Check("tokens", not wrong, len(wrong), 0, wrong[0] if wrong else f"{len(chosen)} texts")
    own, theirs = [*subject.start, *subject.encode(PLAIN)], llama.tokenize(PLAIN, special=True, bos=True)
    detail = "" if own == theirs else f"llama.cpp begins a text with {shown(theirs[:3])}, training with {shown(own[:3])}"
    yield Check("start of text", own == theirs, float(own != theirs), 0, detail)


def specials(subject: Subject) -> list[str]:
    """Names of special tokens, to mix into texts."""
    return sorted(subject.template.codec.special) if subject.template else []


def shown(ids: Sequence[int]) -> str:
    """Ids in a few letters."""
    return f"[{', '.join(map(str, ids[:12]))}{', …' if len(ids) > 12 else ''}]"


def template_text(reader: Any, subject: Subject) -> Check:
    """The file's template is the one of training."""
    own = read_field(reader, "tokenizer.chat_template")
    wanted = portable(subject.template) if subject.template else None
    detail = "" if own == wanted else "the file has none" if own is None else "another text than that of training"
    if wanted is None and own is None:
        detail = "the model has none"
    return Check("template", own == wanted, float(own != wanted), 0, detail)


def read_field(reader: Any, key: str) -> Any:
    """A value of the file's metadata; None where there is none."""
    found = reader.get_field(key)
    return None if found is None else found.contents()


def talks(template: ChatTemplate) -> Iterator[tuple[str, Messages, list[int]]]:
    """The conversations that a template takes, with the ids of their prompts."""
    for name, messages in TALKS.items():
        try:
            yield name, messages, template.prompt(messages)
        except TemplateRefused:
            continue


def plain(messages: Messages) -> list[dict[str, Any]]:
    """Messages as a client of llama.cpp sends them."""
    return [{"role": message.role, "content": message.content} for message in messages]


def chats(llama: LlamaCpp, subject: Subject) -> Check:
    """Ids of conversations, rendered by llama.cpp from the file's own template, are those of training."""
    if subject.template is None:
        return Check("chats", None, detail="not checked: the model has no chat template")
    wrong, count = [], 0
    for name, messages, own in talks(subject.template):
        count += 1
        try:
            theirs = llama.chat_ids(plain(messages))
        except LlamaFailed as error:
            wrong.append(f"{name}: {error.what}")
            continue
        if own != theirs:
            at = next((i for i, (a, b) in enumerate(zip(own, theirs)) if a != b), min(len(own), len(theirs)))  # noqa: B905
            wrong.append(f"{name}: from token {at} it is {shown(theirs[at:])}, not {shown(own[at:])}")
    return Check("chats", not wrong, len(wrong), 0, wrong[0] if wrong else f"{count} conversations")


def stops(llama: LlamaCpp, reader: Any, subject: Subject) -> Check:
    """Generation ends at each stop id of training, and the file names no other token as its end."""
    prompt = next((ids for _, _, ids in talks(subject.template)), []) if subject.template else []
    prompt = prompt or [*subject.start, *subject.encode(PLAIN)]
    wrong = [f"generation goes on after token {index}" for index in sorted(subject.stop) if not llama.stops_at(prompt, index)]
    for key in ("eos", "eot", "eom"):
        index = read_field(reader, f"tokenizer.ggml.{key}_token_id")
        if index is not None and int(index) not in subject.stop:
            wrong.append(f"{key}_token_id {int(index)} is no end of a turn or a text")
    detail = wrong[0] if wrong else f"ends at {', '.join(map(str, sorted(subject.stop)))}"
    return Check("stop", not wrong, len(wrong), 0, detail)


def probed(llama: LlamaCpp, subject: Subject) -> list[Probe]:
    """Prompts, greedily continued, with llama.cpp's log-probabilities at some places."""
    prompts = [ids for _, _, ids in talks(subject.template)] if subject.template else []
    prompts.append([*subject.start, *subject.encode(PLAIN)])
    probes = []
    for prompt in prompts:
        # In ascending order, so that llama.cpp reads each prompt once.
        places = sorted({*np.linspace(1, len(prompt), PLACES, dtype=int).tolist()})
        tops = {end: llama.logprobs(prompt[:end], TOP) for end in places}
        ids = [*prompt, *llama.greedy(prompt, ANSWER)]
        tops |= {end: llama.logprobs(ids[:end], TOP) for end in range(len(prompt) + 4, len(ids), 4)}
        probes.append(Probe(ids, len(prompt), tops))
    return probes


def tensors(compared: Compared) -> Check:
    """Every tensor is there once, and as near to its source as its type allows."""
    if compared.strange:
        return Check("tensors", False, len(compared.strange), 0, compared.strange[0])
    worst = compared.worst
    kind = compared.types[worst]
    more = f" and {len(compared.beyond) - 1} more" if len(compared.beyond) > 1 else ""
    detail = f"relative RMS error of {worst} ({kind}){more}"
    return Check("tensors", not compared.beyond, compared.errors[worst], limit(kind), detail)


def reference(subject: Subject, weights: Mapping[str, np.ndarray], half: bool, sort: str) -> Any:
    """The MLX model that llama.cpp's answers are held against."""
    if sort != "float":
        return model_of(subject.source, weights)
    if subject.model is not None and not half:
        return subject.model()
    return model_of(subject.source, stored(subject.source, subject.placed, half))


@dataclass(frozen=True)
class Gaps:
    """How far answers are from MLX's: largest difference of log-probabilities and divergence at each place, and by how much
    each token of the greedy answers falls short of MLX's first choice."""

    largest: list[float]
    divergences: list[float]
    lost: list[float]


def answers(probes: Sequence[Probe], model: Any, subject: Subject, sort: str) -> Iterator[Check]:
    """Log-probabilities and greedy answers beside MLX's.

    A model whose answers hang on the last bits is further from itself where it is computed in half precision: where a limit
    is not met, the model in MLX's own half precision says how far that is.
    """
    own = [log_probabilities(model, probe.ids) for probe in probes]  # (T, V) each
    gaps = gaps_of(probes, own)
    flips = int(FLIPS * len(gaps.largest)) if is_mixture(subject.source) else 0
    logits, most, why = LOGITS, DIVERGENCE[sort], ""
    if not mean_of(gaps.divergences, most, flips).passed or (
        sort == "float" and not judged(gaps.largest, logits, flips).passed
    ):
        kind, times = NOISE[sort]
        with on_device(None):
            noise = noise_of(probes, own, model, kind)
        logits, most = (float(np.fmax(a, b)) for a, b in ((logits, noise[0]), (most, times * noise[1])))
        why = f"; MLX in {kind} is {noise[0]:.2g} and {noise[1]:.2g} nats from itself"
    if sort == "float":
        yield judged(gaps.largest, logits, flips, why)
    yield mean_of(gaps.divergences, most, flips, why)
    if sort == "float":
        yield greedy(gaps.lost, logits, flips)


def gaps_of(probes: Sequence[Probe], own: Sequence[np.ndarray]) -> Gaps:
    """llama.cpp's answers beside MLX's log-probabilities (T, V) of the same sequences."""
    gaps = Gaps([], [], [])
    for probe, values in zip(probes, own, strict=True):
        for end, (ids, theirs) in probe.tops.items():
            mine = np.maximum(values[end - 1][ids], FLOOR)
            gaps.largest.append(float(np.max(np.abs(mine - theirs))))
            gaps.divergences.append(divergence(mine, theirs))
        for place in range(probe.prompt, len(probe.ids)):
            gaps.lost.append(float(values[place - 1].max() - values[place - 1][probe.ids[place]]))
    return gaps


def noise_of(probes: Sequence[Probe], own: Sequence[np.ndarray], model: Any, kind: str) -> tuple[float, float]:
    """(largest difference, mean divergence) of the model from itself in half precision; it stays in that."""
    from mlxforge.models.load import cast

    cast(model, kind)
    gaps = Gaps([], [], [])
    for probe, values in zip(probes, own, strict=True):
        half = log_probabilities(model, probe.ids)
        for end, (ids, _) in probe.tops.items():
            mine, theirs = (np.maximum(one[end - 1][ids], FLOOR) for one in (values, half))
            gaps.largest.append(float(np.max(np.abs(mine - theirs))))
            gaps.divergences.append(divergence(mine, theirs))
    return max(gaps.largest), float(np.mean(gaps.divergences))


def divergence(mine: np.ndarray, theirs: np.ndarray) -> float:
    """KL(MLX || llama.cpp) in nats over the tokens compared and, as one more, all others together.

    As p log(p / q) - p + q, which is the same for what sums to 1, and does not mind that float32 sums to a little else.
    """
    p, q = (np.exp(one.astype(np.float64)) for one in (mine, theirs))
    p, q = (np.append(one, max(1 - one.sum(), 1e-6)) for one in (p, q))
    return float(np.sum(p * np.log(p / q) - p + q))


def is_mixture(source: Source) -> bool:
    """Whether routers choose experts: near ties may then fall differently."""
    config = text_config(source.config)
    return any(int(config.get(key) or 0) > 1 for key in EXPERTS)


def judged(values: Sequence[float], most: float, flips: int, why: str = "") -> Check:
    """All differences below a limit, but for some positions of a mixture of experts; a NaN fails."""
    above = sum(not value < most for value in values)
    passed = above <= flips
    detail = f"log-probabilities at {len(values)} positions"
    if above:
        detail += f", {above} above the limit" + (f" (a mixture of experts may have {flips})" if flips else "")
    kept = sorted(values)[: len(values) - above] if passed and above else values
    return Check("logits", passed, max(kept, default=0.0), most, detail + why)


def mean_of(values: Sequence[float], most: float, flips: int, why: str = "") -> Check:
    """The mean divergence below a limit, without the largest ``flips``; single positions are what ``judged`` is for."""
    mean = float(np.mean(sorted(values)[: len(values) - flips])) if np.all(np.isfinite(values)) else float("nan")
    without = f", without {flips} near ties of experts" if flips else ""
    detail = f"nats, mean of {len(values)} positions (largest {max(values):.2g}){without}"
    return Check("divergence", mean < most, mean, most, detail + why)


def greedy(lost: Sequence[float], most: float, flips: int) -> Check:
    """llama.cpp's tokens are MLX's own first choices; another one may be only where two are nearly alike."""
    others = [gap for gap in lost if gap > 0]
    wrong = [gap for gap in lost if not gap < most]
    detail = f"{len(lost)} tokens, {len(others)} of them near ties" if others else f"{len(lost)} tokens"
    if wrong:
        detail = f"{len(wrong)} of {len(lost)} tokens are others than MLX's"
    return Check("greedy", len(wrong) <= flips, max(lost, default=0.0), most, detail)


@contextmanager
def on_device(device: Any) -> Iterator[None]:
    """MLX computes there meanwhile; None: where it does by default.

    The reference is computed on the CPU, since a GPU may round float32 products to fewer bits.
    """
    import mlx.core as mx

    before = mx.default_device()
    chosen = (mx.gpu if mx.metal.is_available() else mx.cpu) if device is None else device
    mx.set_default_device(chosen)
    try:
        yield
    finally:
        mx.set_default_device(before)


def as_json(check: Check) -> dict[str, Any]:
    """A check as the report holds it."""
    return asdict(check)
