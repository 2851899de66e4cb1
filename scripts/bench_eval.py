"""Measures how many answers a second an evaluation makes, together and one by one, and that both say the same.

    python scripts/bench_eval.py --questions 120 --rounds 3
    python scripts/bench_eval.py --model big

Together is what ``mlxforge eval`` does (mlx-lm's batch generator), one by one is ``mlxforge generate`` for each question. Both
are run in turn, so that other work on the machine falls on both; the ratio is the median over the rounds. ``big`` is a random
model of 41 million parameters; its answers are noise that never ends, so both always write as much as they may.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mlxforge.core.blas import load_blas

load_blas()  # before anything imports MLX

from mlxforge.core.rows import Chat  # noqa: E402
from mlxforge.models.streaming import Sampling  # noqa: E402
from mlxforge.models.tiny import make_tiny  # noqa: E402
from mlxforge.runs.eval_sets import Spec, read_set  # noqa: E402
from mlxforge.runs.subject_mlx import MlxSubject  # noqa: E402
from mlxforge.runs.subjects import info_of, name_models  # noqa: E402
from mlxforge.runs.talk import reply_to_chat  # noqa: E402

BIG = {
    "hidden_size": 768,
    "num_hidden_layers": 8,
    "intermediate_size": 2048,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 396,  # of the tokenizer: ids without a token are shown by one program and not by the other
}


def together(subject: MlxSubject, chats: Sequence[Chat], max_tokens: int) -> list[str]:
    """The answers of an evaluation."""
    found = dict(subject.answers(chats, max_tokens))
    return [found[place].text for place in range(len(chats))]


def alone(subject: MlxSubject, chats: Sequence[Chat], max_tokens: int) -> list[str]:
    """The answers of ``mlxforge generate``."""
    answers = []
    for chat in chats:
        reply = reply_to_chat(subject.opened, chat.messages, Sampling(max_tokens))
        for _ in reply:
            pass
        answers.append(reply.answer.strip())
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a model as 'mlxforge eval' takes it, or 'big'")
    parser.add_argument("--data", default="sample:handbook/questions.test.jsonl")
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    chats = [row.prompt for row in read_set(Spec("questions", given.data), limit=given.questions).rows if row.prompt]
    with tempfile.TemporaryDirectory() as folder:
        model = str(make_tiny("llama3", Path(folder, "big"), **BIG)) if given.model == "big" else given.model
        (named,) = name_models([model], Path("runs"))
        assert named.base is not None
        with MlxSubject(named.base, info_of(named)) as subject:
            together(subject, chats[:4], 4), alone(subject, chats[:2], 4)  # warm up
            seconds: dict[str, list[float]] = {"together": [], "alone": []}
            for _ in range(given.rounds):
                texts = {}
                for name, answer in (("together", together), ("alone", alone)):
                    begun = time.perf_counter()
                    texts[name] = answer(subject, chats, given.max_tokens)
                    seconds[name].append(time.perf_counter() - begun)
                same = sum(one == other for one, other in zip(*texts.values(), strict=True))
                rates = {name: len(chats) / spent[-1] for name, spent in seconds.items()}
                print(f"together {rates['together']:.1f}/s, one by one {rates['alone']:.1f}/s, {same} of {len(chats)} the same")
    ratios = [one / other for one, other in zip(seconds["alone"], seconds["together"], strict=True)]
    print(f"{given.model}: {statistics.median(ratios):.1f} times as many answers a second")


if __name__ == "__main__":
    main()
