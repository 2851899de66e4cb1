"""A model in MLX as a subject of evaluation."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

from mlxforge.core.blas import load_blas
from mlxforge.core.errors import DataError, ModelError
from mlxforge.core.rows import Chat, Kto, Preference
from mlxforge.evals.graded import Answer, Likelihood, Timing
from mlxforge.evals.report import ModelInfo
from mlxforge.runs.opening import Base, Opened
from mlxforge.runs.subject import WINDOW, Asked

if TYPE_CHECKING:
    from mlxforge.data.pair_encoder import PairEncoder
    from mlxforge.data.tokens import Encoder
    from mlxforge.models.scoring import Scorer

ANY_LENGTH = 1 << 30


@dataclass
class MlxSubject:
    """See :class:`mlxforge.runs.subject.Subject`."""

    base: Base
    info: ModelInfo
    window: int = WINDOW
    thinking: bool | None = None
    no_chat: str = ""
    no_likelihood: str = ""
    _opened: Opened | None = field(default=None, repr=False)

    def __enter__(self) -> MlxSubject:
        load_blas()
        import mlx.core as mx

        from mlxforge.models.load import load
        from mlxforge.models.lora import apply_adapter
        from mlxforge.runs.verify import template_of

        loaded = load(self.base.model)
        for adapter in self.base.adapters:
            apply_adapter(loaded.model, adapter)
        mx.eval(loaded.model.parameters())
        template: Any = None
        try:
            template = template_of(self.base, loaded.path)
        except ModelError as error:
            self.no_chat = str(error)
        if template is None:
            self.no_chat = self.no_chat or "the model has no chat template"
        self._opened = Opened(loaded, self.base, template, self.info.name)
        mx.reset_peak_memory()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        import mlx.core as mx

        self._opened = None
        self.__dict__.pop("scorer", None)
        gc.collect()
        mx.clear_cache()

    @property
    def opened(self) -> Opened:
        """The model, which is open."""
        assert self._opened is not None, "not open"
        return self._opened

    @property
    def decides(self) -> list[str]:
        """See :class:`Subject`."""
        from importlib.metadata import version

        from mlxforge.models.check import written_at

        template, loaded = self.opened.template, self.opened.loaded
        programs = loaded.dtype, version("mlx"), version("mlx-lm"), written_at(loaded.path)
        return [self.encoder.key, template.key if template else "", *programs]

    @property
    def notes(self) -> list[str]:
        """See :class:`Subject`."""
        alone = "mlx-lm's batch generator does not take this model: prompts of the same length are answered together"
        return [] if self.batched else [alone]

    @cached_property
    def scorer(self) -> Scorer:
        """What computes its log-probabilities."""
        from mlxforge.models.scoring import Scorer

        return Scorer(self.opened.loaded.model)

    @cached_property
    def encoder(self) -> Encoder:
        """What turns its texts into tokens."""
        from mlxforge.models.load import fast_tokenizer
        from mlxforge.runs.text import make_encoder

        loaded = self.opened.loaded
        return make_encoder(loaded.tokenizer, loaded.path, fast_tokenizer(loaded.path))

    @cached_property
    def limit(self) -> int | None:
        """Positions that the model has."""
        from mlxforge.models.streaming import context_length

        return context_length(self.opened.loaded.config)

    def prompt(self, conversation: Chat) -> list[int]:
        """The ids that training would put before the answer."""
        thinking = self.opened.thinks if self.thinking is None else self.thinking
        return self.opened.template.prompt(conversation.messages, conversation.tools, thinking=thinking)

    @cached_property
    def batched(self) -> bool:
        """Whether mlx-lm's batch generator takes this model; else prompts of the same length are answered together."""
        from mlxforge.models.generate import batches

        return batches(self.opened.loaded.model)

    def answers(self, conversations: Sequence[Chat], max_tokens: int) -> Iterator[tuple[int, Answer]]:
        """See :class:`Subject`."""
        from mlxforge.models.generate import greedy_batches, greedy_groups
        from mlxforge.models.streaming import answer_in, markers

        loaded, template = self.opened.loaded, self.opened.template
        prompts = [self.prompt(conversation) for conversation in conversations]
        rooms = [max_tokens if self.limit is None else min(max_tokens, self.limit - len(prompt)) for prompt in prompts]
        for index in (index for index, room in enumerate(rooms) if room <= 0):
            yield index, Answer("", "length", 0, len(prompts[index]))
        fitting = [index for index, room in enumerate(rooms) if room > 0]
        cuts = markers(loaded.detected, template.think)
        made = (greedy_batches if self.batched else greedy_groups)(
            loaded.model, [prompts[i] for i in fitting], [rooms[i] for i in fitting], template.stop
        )
        for place, tokens, ended in made:
            prompt = prompts[fitting[place]]
            text = answer_in(loaded.tokenizer, cuts, prompt, tokens)
            yield fitting[place], Answer(text, "stop" if ended else "length", len(tokens), len(prompt))

    def likelihoods(self, documents: Sequence[Sequence[str]]) -> Iterator[tuple[int, list[Likelihood]]]:
        """See :class:`Subject`."""
        from mlxforge.data.boundaries import token_marks
        from mlxforge.models.likelihood import log_likelihoods
        from mlxforge.runs.passages import Passages, spelled

        window = min(self.window, self.limit or self.window)
        marks = token_marks(self.encoder.tokenizer, self.encoder.vocabulary)
        held = Passages(documents, spelled(self.encoder, documents), marks, window)
        for index, values in log_likelihoods(self.scorer, held.windows):
            yield from held.add(index, values)

    @cached_property
    def pairs(self) -> PairEncoder:
        """What puts answers behind their prompts."""
        from mlxforge.data.pair_encoder import PairEncoder

        return PairEncoder(self.opened.template, max_length=self.limit or ANY_LENGTH, overlong="split")

    def continuations(self, asked: Sequence[Asked]) -> Iterator[tuple[int, list[Likelihood]]]:
        """See :class:`Subject`.

        Raises:
            DataError: an answer or a prompt is empty, two answers are the same, or the template refuses.
        """
        import numpy as np

        from mlxforge.models.likelihood import log_likelihoods

        owners: list[tuple[int, int]] = []
        lines, masks, starts = [], [], []
        for index, one in enumerate(asked):
            for number, (prompt, answer, mask) in enumerate(self._encoded(one, index)):
                owners.append((index, number))
                lines.append(np.concatenate((prompt, answer)))
                masks.append(np.concatenate((np.zeros(len(prompt), np.bool_), mask))[1:])
                starts.append(int(masks[-1].argmax()) + 1)
        found: dict[int, dict[int, Likelihood]] = {}
        for line, values in log_likelihoods(self.scorer, lines, starts):
            index, number = owners[line]
            said = sum(len(message.content.encode()) for message in asked[index].answers[number])
            of_row = found.setdefault(index, {})
            of_row[number] = Likelihood(-float(values[masks[line]].sum()), int(masks[line].sum()), said)
            if len(of_row) == len(asked[index].answers):
                yield index, [one for _, one in sorted(found.pop(index).items())]

    def _encoded(self, one: Asked, index: int) -> list[tuple[Any, Any, Any]]:
        """(prompt, answer, mask of what is asked for) of each answer; of two answers as the training on pairs has them."""
        from mlxforge.data.formats import BadRow

        try:
            if len(one.answers) == 2:
                row = self.pairs.pair(Preference(one.prompt, one.answers[0], one.answers[1], one.tools))
                assert row is not None
                return [(row.prompt, row.chosen, row.chosen_mask), (row.prompt, row.rejected, row.rejected_mask)]
            found = [self.pairs.answer(Kto(one.prompt, answer, True, one.tools)) for answer in one.answers]
            return [(row.prompt, row.answer, row.mask) for row in found if row is not None]
        except BadRow as bad:
            raise DataError(f"row {index + 1}: {bad.reason}", where=self.info.label, fix=bad.fix) from bad

    def timed(self, conversation: Chat, max_tokens: int) -> Timing | None:
        """See :class:`Subject`."""
        from mlxforge.models.streaming import Sampling
        from mlxforge.runs.talk import reply_to_chat

        prompt = self.prompt(conversation)
        if self.limit is not None and len(prompt) >= self.limit:
            return None
        reply = reply_to_chat(self.opened, conversation.messages, Sampling(max_tokens), thinking=self.thinking)
        reply.prompt = prompt
        began = time.perf_counter()
        for _ in reply:
            pass
        total = time.perf_counter() - began
        return Timing(total - reply.seconds, total, reply.tokens)

    def peak_memory(self) -> int | None:
        """See :class:`Subject`: what MLX held, weights included."""
        import mlx.core as mx

        peak = int(mx.get_peak_memory())
        mx.reset_peak_memory()
        return peak
