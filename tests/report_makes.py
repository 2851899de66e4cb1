"""A report made by hand: three models, three sets, tests, curves, and rows that say bad things."""

from __future__ import annotations

import random

from mlxforge.evals.report import ModelInfo, Report, SetInfo, Test, Value

HOSTILE = [
    "</script><script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "quotes \" ' ` & &amp; &lt;",
    "NUL \x00, escape \x1b[31mred\x1b[0m, bell \x07",
    "\u202eturned\u202c round",
    "مرحبا بالعالم",
    "<!-- <script>",
    "a | b *c* _d_ `e` [f](javascript:alert(1)) ![g](https://evil.example/x.png) @someone $x$",
    "]]> {{7*7}} ${window.hacked = 1}",
    "",
    "half a pair \ud83d",
    "one\u2028two\n\n  three\tfour",
]
LABELS = ("base", "cpt", "sft")


def value(one, low=None, high=None, n=40, better="higher", unit="", why=""):
    return Value(value=one, low=low, high=high, n=n, better=better, unit=unit, why=why)


def paired(name, metric, model, against, difference, low, high, p=0.001, n=40):
    return Test(set=name, metric=metric, model=model, against=against, difference=difference, low=low, high=high, p=p, n=n)


def report() -> Report:
    """``sft`` has learnt to answer and lost a little of the rest; ``cpt`` has no perplexity."""
    answers = {
        "base": {"exact_match": value(0.025, 0.0, 0.075), "bleu": value(3.21, 1.5, 6.25, unit="of 100")},
        "cpt": {"exact_match": value(0.05, 0.0, 0.125), "bleu": value(4.5, 2.25, 7.75, unit="of 100")},
        "sft": {"exact_match": value(0.6, 0.45, 0.75), "bleu": value(41.5, 33.25, 52.75, unit="of 100")},
    }
    retention = {
        "base": {"perplexity": value(12.34, 11.5, 13.25, better="lower"), "bpb": value(1.2, 1.1, 1.3, better="lower")},
        "cpt": {"perplexity": Value(value=None, better="lower", why="tokenizers differ"), "bpb": value(1.21, better="lower")},
        "sft": {"perplexity": value(12.5, 11.75, 13.5, better="lower"), "bpb": value(1.23, 1.12, 1.34, better="lower")},
    }
    speed = {
        label: {
            "tokens_per_second": value(812.5, 790.25, 830.75, 20, unit="tokens/s"),
            "peak_memory": value(1.24e9, n=0, better="lower", unit="bytes"),
        }
        for label in LABELS
    }
    results = {label: {"handbook": answers[label] | speed[label], "retention": retention[label]} for label in LABELS}
    return Report(
        mlxforge="0.1.0",
        created="2026-11-21T10:00:00+00:00",
        settings={"max_tokens": 64},
        models=[
            ModelInfo(
                label="base", name="tiny", kind="base", stage="base", size=14_800_000, family="llama", hash="ab12cd34ef56"
            ),
            ModelInfo(label="cpt", name="run:a", kind="run", stage="cpt", run="a", path="runs/a"),
            ModelInfo(label="sft", name="run:b", kind="run", stage="sft", run="b", path="runs/b"),
        ],
        sets=[
            SetInfo(name="handbook", path="test.jsonl", kind="chat", rows=40),
            SetInfo(name="retention", path="general.txt", kind="text", rows=40),
        ],
        results=results,
        tests=[
            paired("handbook", "exact_match", "cpt", "base", 0.025, -0.05, 0.1, 0.62),
            paired("handbook", "exact_match", "sft", "base", 0.575, 0.425, 0.725, 0.0005),
            paired("handbook", "exact_match", "sft", "cpt", 0.55, 0.4, 0.7, 0.0005),
            paired("retention", "bpb", "sft", "base", 0.03, 0.015, 0.045, 0.004),
        ],
        notes=["3 of 120 answers are empty: they count as wrong"],
        curves={
            "sft": [
                {"step": step, "loss": 3.0 / (1 + step / 50), "valid": 1.5 if step % 100 == 0 else None}
                for step in range(0, 401, 2)
            ]
        },
    )


def line(row, model, answer, exact, *, name="handbook", reference="at seven", prompt="When?", **more):
    """A line of rows.jsonl."""
    asked = [{"role": "user", "content": prompt}]
    known = {"prompt": asked, "reference": reference, "finish": "stop", "context": None, "source": None} | more
    return {"set": name, "row": row, "model": model, "answer": answer, "scores": {"exact_match": exact}, **known}


def rows(number=40, labels=LABELS):
    """Answers of which the first dozen are hostile, wherever text can be."""
    rng = random.Random(0)
    for row in range(number):
        bad = HOSTILE[row % len(HOSTILE)] if row < 2 * len(HOSTILE) else "at seven"
        for label in labels:
            context = [{"document": bad, "chunk": row, "text": bad}] if row % 3 == 0 else None
            right = float(rng.random() < 0.5)
            source = {"document": bad}
            yield line(row, label, bad, right, reference=bad, prompt=f"{row} {bad}", context=context, source=source)
