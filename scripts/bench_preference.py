"""DPO beside mlx-lm-lora and TRL (PyTorch on the CPU): same model, pairs, LoRA, batch; interleaved on one machine.

    python scripts/bench_preference.py                       # vocabulary of 8,000
    python scripts/bench_preference.py --vocabulary 131072   # where the logits rule
    python scripts/bench_preference.py --only mlxforge mlx-lm-lora --rounds 3

The model is a random llama (hidden 256, 4 layers, 4 heads of which 2 for keys, feed-forward 1,024, tied head, float32), the
same weights for all. Pairs have prompts of 300 tokens and answers of 80 to 150, template included; LoRA of rank 8 on all
seven linear layers, AdamW, beta 0.1, 8 pairs a step (4 with a large vocabulary), one epoch. Each trainer runs in a process of
its own, in turn.

"pairs/s" is of the steps after the first ones, which compile. "with reference" is of the whole epoch: mlxforge computes the
reference's log-probabilities once before the first step, with an empty cache; the peers compute them in every step. The first
loss has to be ln 2. "log p" is the mean of the chosen answers, which tells that the same tokens are scored (mlx-lm-lora draws
its batches with repetition and so differs a little).

Peers are installed at the first run, into environments of their own below $MLXFORGE_CACHE or ~/.cache/mlxforge (0.6 GB for
mlx-lm-lora, 1.5 GB for TRL; a minute or two), and reused. On Linux torch is a build for the CPU, from download.pytorch.org or
from what pip is set up to find; where there is none, PyPI's own comes with several GB of CUDA. mlx-lm-lora gets OpenBLAS on
Linux, without which it would be 30 times slower; TRL runs without gradient checkpointing, its default, so that it is faster.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

# Workers of the peers run this file too, where mlxforge is not installed: it is imported where it is used.
PROMPT, LEAST, MOST = 300, 80, 150  # tokens, template included
SLACK = 8  # tokens that a pair may be longer: words are whole
WARMUP = 2
RANK, ALPHA, BETA, LEARNING_RATE, LENGTH = 8, 16.0, 0.1, 5e-6, 512
BODY = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
SYLLABLES = "ba ke mi no ru ta li so ve da po ga fe hu ri la me to ne si".split()
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LINUX = sys.platform.startswith("linux")
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
PEERS = {
    "mlx-lm-lora": ["mlx-lm-lora==5.10.2", "mlx[cpu]" if LINUX else "mlx"],
    "TRL": ["trl==1.16.0", "peft==0.21.2"],
}


# --- the peers' environments ---


def environment(name: str) -> Path:
    """The Python of a peer's environment, which is made unless a run before made it."""
    from mlxforge.core.files import cache_dir

    version = f"{PEERS[name][0].replace('==', '-')}-py{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache_dir() / "bench" / version
    python, whole = folder / "bin" / "python", folder / "whole"
    if whole.exists():
        return python
    print(f"installing {name} into {folder}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    install([sys.executable, "-m", "venv", str(folder)])
    pip = [str(python), "-m", "pip"]
    if name == "TRL":
        install([*pip, "install", *torch_for_cpu(pip)])
    install([*pip, "install", *PEERS[name]])
    whole.touch()
    return python


def install(words: list[str]) -> None:
    """One command, quiet unless it fails."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr[-2000:]}")


def torch_for_cpu(pip: list[str]) -> list[str]:
    """What pip is to install for a torch without CUDA: the newest build that is marked so, wherever pip finds one."""
    if not LINUX:
        return ["torch"]
    where = ["--extra-index-url", CPU_WHEELS] if reachable(CPU_WHEELS) else []
    known = subprocess.run([*pip, "index", "versions", "torch", *where], capture_output=True, text=True, check=False).stdout
    if builds := re.findall(r"[\d.]+\+cpu", known):
        return [f"torch=={builds[0]}", *where]
    print("no build of torch for the CPU found: PyPI's own comes with several GB of CUDA", file=sys.stderr)
    return ["torch"]


def reachable(address: str) -> bool:
    """Whether a server answers within seconds. pip itself would try for minutes."""
    try:
        with urllib.request.urlopen(f"{address}/", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


# --- pairs ---


def write_pairs(folder: Path, model: Path, count: int) -> None:
    """The same pairs twice: as messages (``chats.jsonl``) and, for mlx-lm-lora, as strings (``train.jsonl``)."""
    from mlx_lm.utils import load_tokenizer

    tokenizer = load_tokenizer(model)
    rng = random.Random(0)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(2000)]
    lengths = {word: len(tokenizer.encode(f" {word}", add_special_tokens=False)) for word in words}

    def text(tokens: int) -> str:
        """Made-up words; a word's pieces do not depend on its neighbours, so their numbers add up."""
        chosen: list[str] = []
        while tokens > 0:
            word = rng.choice([word for word in words if lengths[word] <= tokens] or [min(words, key=lengths.__getitem__)])
            chosen.append(word)
            tokens -= lengths[word]
        return " ".join(chosen)

    frame = len(tokenizer.apply_chat_template([turn("user", "")], tokenize=True, add_generation_prompt=True))
    folder.mkdir()
    with (folder / "train.jsonl").open("w") as strings, (folder / "chats.jsonl").open("w") as chats:
        for _ in range(count):
            answers = [text(rng.randint(LEAST, MOST) - 1) for _ in range(2)]
            row = {"prompt": text(PROMPT - frame), "chosen": answers[0], "rejected": answers[1]}
            roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
            print(json.dumps(row), file=strings)
            print(json.dumps({key: [turn(roles[key], content)] for key, content in row.items()}), file=chats)


def turn(role: str, content: str) -> dict[str, str]:
    """A message."""
    return {"role": role, "content": content}


# --- trainers, each run in a process of its own ---


def run_mlxforge(job: dict[str, Any]) -> dict[str, Any]:
    """mlxforge, measured by its events; the reference's own are before the first step."""
    import numpy as np

    from mlxforge import LoraSettings, train
    from mlxforge.core.events import Event, Progress, RunStarted, StepDone
    from mlxforge.core.files import cache_dir
    from mlxforge.core.settings import DpoConfig

    times: list[float] = []  # of all events
    begun: list[float] = []
    seen: list[tuple[float, StepDone]] = []

    def listen(event: Event) -> None:
        times.append(time.perf_counter())
        if isinstance(event, Progress) and event.task == "reference":
            # Its first event may already tell of a batch, which began no earlier than the event before.
            begun.append(times[-2] if event.done else times[-1])
        elif isinstance(event, RunStarted):
            begun.append(times[-1])
        elif isinstance(event, StepDone):
            seen.append((times[-1], event))

    folder = Path(job["folder"])
    config = DpoConfig(
        model=job["model"], data=[str(folder / "data" / "chats.jsonl")], runs_dir=str(folder / "runs"),
        name=f"r{time.time_ns()}", max_length=LENGTH, batch_tokens=job["batch_tokens"], share_prompt=job["share_prompt"],
        valid_split=0.0, sample_tokens=0, save_every=10**9, eval_every=10**9, epochs=1.0, learning_rate=LEARNING_RATE,
        schedule="constant", warmup=0.0, beta=BETA, lora=LoraSettings(rank=RANK, alpha=ALPHA),
    )  # fmt: skip
    ended = train(config, [listen])
    tokens = [event.tokens for _, event in seen]
    # Steps need not be of one size: a step has its share of the epoch's pairs by its share of the tokens.
    pairs = [job["pairs"] * count / sum(tokens) for count in tokens]
    # All rows at once, as the start of training sees them; a step's own mean would need its number of pairs.
    (cached,) = (cache_dir() / "reference").glob("*.npy")
    return speeds(begun[0], [now for now, _ in seen], pairs) | {
        "loss": seen[0][1].loss,
        "logps": float(np.load(cached)[:, 0].mean()),
        "peak": ended.result["peak_memory_bytes"],
    }


def run_mlx_lm_lora(job: dict[str, Any]) -> dict[str, Any]:
    """``mlx_lm_lora.train --train-mode dpo``, measured by its reports, one a step."""
    if LINUX:  # what a user would do by hand
        ctypes.CDLL("libopenblas.so.0", mode=ctypes.RTLD_GLOBAL)
    import mlx.core as mx
    from mlx_lm_lora import train
    from mlx_lm_lora.trainer import dpo_trainer

    if LINUX:  # it asks for a limit that only Metal has
        described = mx.device_info()
        mx.device_info = lambda: described | {"max_recommended_working_set_size": 0}
    asked: list[float] = []
    seen: list[tuple[float, dict[str, Any]]] = []

    class Reports:
        """What the trainer calls after a step."""

        def on_train_loss_report(self, report: dict[str, Any]) -> None:
            seen.append((time.perf_counter(), report))

    batches = dpo_trainer.iterate_dpo_batches

    def timed(*args: Any, **kwargs: Any) -> Any:
        asked.append(time.perf_counter())
        return batches(*args, **kwargs)

    dpo_trainer.iterate_dpo_batches = timed
    folder = Path(job["folder"])
    settings = train.CONFIG_DEFAULTS | {
        "model": job["model"],
        "data": str(folder / "data"),
        "train": True,
        "train_mode": "dpo",
        "lora_parameters": {"rank": RANK, "scale": ALPHA / RANK, "dropout": 0.0},
        "optimizer": "adamw",
        "learning_rate": LEARNING_RATE,
        "beta": BETA,
        "batch_size": job["batch"],
        "iters": job["pairs"] // job["batch"],
        "max_seq_length": LENGTH,
        "steps_per_report": 1,
        "save_every": 10**9,
        "adapter_path": str(folder / "mlx-lm-lora"),
        "fuse": False,
    }
    options = vars(train.build_parser().parse_args([])) | settings
    train.run(argparse.Namespace(**options), Reports())
    return speeds(asked[0], [now for now, _ in seen], [job["batch"]] * len(seen)) | {
        "loss": seen[0][1]["train_loss"],
        "logps": statistics.mean(float(report["train_chosen_logits_mean"]) for _, report in seen),
        "peak": mx.get_peak_memory(),
    }


def run_trl(job: dict[str, Any]) -> dict[str, Any]:
    """TRL's DPOTrainer on the CPU, with PEFT's LoRA; the reference is the model with the adapter off."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    times: list[float] = []
    reports: list[dict[str, float]] = []

    class Reports(TrainerCallback):
        """Called by the trainer."""

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            if "loss" in logs:
                reports.append(logs)

    folder = Path(job["folder"])
    settings = DPOConfig(
        output_dir=str(folder / "trl"), beta=BETA, learning_rate=LEARNING_RATE, lr_scheduler_type="constant",
        per_device_train_batch_size=job["batch"], num_train_epochs=1, max_length=LENGTH, logging_steps=1, save_strategy="no",
        report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32),
        args=settings,
        train_dataset=load_dataset(
            "json", data_files=str(folder / "data" / "chats.jsonl"), split="train", cache_dir=str(folder / "hf")
        ),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=LINEARS, task_type="CAUSAL_LM"),
        callbacks=[Reports()],
    )
    trainer.train()
    return speeds(times[0], times[1:], [job["batch"]] * (len(times) - 1)) | {
        "loss": float(reports[0]["loss"]),
        "logps": statistics.mean(float(report["logps/chosen"]) for report in reports),
    }


def speeds(begun: float, ends: list[float], pairs: list[float]) -> dict[str, Any]:
    """Pairs a second: of the steps after the first ones, and of the whole epoch. ``ends[i]`` is when step i ended."""
    return {
        "steady": sum(pairs[WARMUP:]) / (ends[-1] - ends[WARMUP - 1]),
        "epoch": sum(pairs) / (ends[-1] - begun),
        "step": sum(pairs) / len(pairs),
    }


TRAINERS = {"mlx-lm-lora": run_mlx_lm_lora, "TRL": run_trl, "mlxforge": run_mlxforge}


def measure(name: str, python: Path, job: dict[str, Any]) -> dict[str, Any]:
    """One trainer in a process of its own, mlxforge with an empty cache."""
    words = [str(python), __file__, "--worker", name, json.dumps(job)]
    with tempfile.TemporaryDirectory(dir=job["folder"]) as cache:
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | {"MLXFORGE_CACHE": cache})
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# --- the table ---


def print_table(found: dict[str, list[dict[str, Any]]], title: str) -> None:
    """Medians over the rounds, as Markdown; ratios are to the first trainer."""
    print(f"{title}\n")
    print("| | pairs/s | ratio | pairs/s with reference | ratio | peak GB (MLX) | RSS GB | pairs a step | first loss | log p |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    base: dict[str, float] = {}
    for name, runs in found.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        base = base or middle
        row = [name]
        for key in ("steady", "epoch"):
            row += [f"{middle[key]:.2f}", f"{middle[key] / base[key]:.2f}"]
        row += [f"{middle['peak'] / 1e9:.2f}" if "peak" in middle else "-", f"{middle['rss'] / 1e9:.2f}"]
        row += [f"{middle['step']:.1f}", f"{middle['loss']:.4f}", f"{middle['logps']:.2f}"]
        print(f"| {' | '.join(row)} |")


def main() -> None:
    """Prints a Markdown table of medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, default=8000)
    parser.add_argument("--batch", type=int, help="pairs a step (default: 8; 4 with a vocabulary above 50,000)")
    parser.add_argument("--steps", type=int, default=8, help=f"of the epoch; the first {WARMUP} are left out of pairs/s")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(TRAINERS), default=list(TRAINERS))
    parser.add_argument("--batch-tokens", type=int, help="of mlxforge (default: those of as many of the longest pairs)")
    parser.add_argument("--share-prompt", default="auto", choices=["auto", "on", "off"], help="of mlxforge")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        name, job = options.worker
        found = TRAINERS[name](json.loads(job))
        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps(found | {"rss": rss}))
        return
    if options.steps <= WARMUP:
        parser.error(f"--steps has to be more than {WARMUP}")
    batch = options.batch or (4 if options.vocabulary > 50_000 else 8)
    pairs = batch * options.steps
    from mlxforge.core.blas import load_blas

    load_blas()
    from mlxforge.models.tiny import make_tiny

    pythons = {name: environment(name) if name in PEERS else Path(sys.executable) for name in options.only}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sizes = {"vocab_size": options.vocabulary, "intermediate_size": 1024, "max_position_embeddings": 2048, **BODY}
        # A template with nothing behind the end of turn: some trainers would train a newline there, and some would not.
        model = make_tiny("llama3", folder / "model", **sizes)
        write_pairs(folder / "data", model, pairs)
        job = {"folder": scratch, "model": str(model), "batch": batch, "pairs": pairs, "share_prompt": options.share_prompt}
        longest = 2 * (PROMPT + MOST) if options.share_prompt == "off" else PROMPT + 2 * MOST
        job["batch_tokens"] = options.batch_tokens or batch * (longest + SLACK)
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in TRAINERS if name in options.only}
        for _ in range(options.rounds):
            for name in runs:
                runs[name].append(measure(name, pythons[name], job))
    print_table(runs, f"DPO, {pairs} pairs, vocabulary {options.vocabulary:,}, {options.rounds} rounds")


if __name__ == "__main__":
    main()
