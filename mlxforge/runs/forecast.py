"""What a training step will take: memory by part, counted from the shapes of the model and of its largest batch.

What is kept for the backward pass is counted from what each part of a layer needs; how much more is in flight at the peak is
measured, in the constants below: on MLX 0.32's CPU backend, two cores, November 2026, over models of 2 to 6 layers. On Metal
nothing of this was measured: there the same counts stand with what differs in its graph, and a probe tells the truth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from mlxforge.core.settings import TrainSettings
from mlxforge.models.shapes import FLOAT, Block, Shapes, shapes
from mlxforge.runs.opening import resolve_base

# Layers' worth of kept numbers, scores left out, that are in flight while the last layer goes backward.
IN_FLIGHT = 1.0
# The same where layers are recomputed: a layer is computed anew while the one before it goes backward, and its results wait.
RECOMPUTED = 2.85
# Numbers of a gate's width that are kept beside gate, other half and product.
GATE_COPIES, GELU_COPIES = 1, 5
# Layers' worth of numbers that are alive in a forward pass alone, for scoring.
FORWARD = 1.15
# Copies of a chunk's float32 logits: the logits and their exponentials; where the head is trained, their
# gradients too; where logits are capped, the cap's.
LOGITS, TRAINED_LOGITS, CAPPED_LOGITS = 2.0, 5.6, 8.5
CHUNKS_IN_FLIGHT = 5
# Of chunks after the first on a CPU where layers are recomputed: 1.3 to 2 measured, less where all tokens are trained.
LATER_LOGITS = 1.65
# A second and third chunk where the head is trained, and each of those after, most of which are let go in time.
MORE_TRAINED_LOGITS, LATER_TRAINED_LOGITS, LATER_CHUNKS = 3.4, 1.5, 5
# The CPU backend computes large logits at once (models.scoring): all that the layers made on the way is then held, recomputed
# or not. With models.cpu's functions, and with MLX's own.
HELD, HELD_PLAIN = 2.9, 2.26
# Copies of what is trained in an update: gradients, clipped gradients and new weights.
UPDATE = 3
# Arrays of the trained weights' size that an update rule keeps.
OPTIMIZER_COPIES = {"adamw": 2, "adafactor": 0, "muon": 1, "lion": 1, "sgd": 1}
# Buffers, compiled kernels and the interpreter are no part of MLX's own count; what lies beside it is the batch and its plan.
FRAMEWORK = 1 << 20
EVALUATION_COST = 1 / 3  # of a training slot: a forward pass alone, and no gradient of it
# Floating-point operations a second in training, as a share of those in one large matrix product: 0.15 to 0.45 on a CPU that
# others used too. It is a first word; a probe's is the second.
EFFICIENCY = 0.3

PARTS = ("weights", "adapters", "optimizer", "gradients", "activations", "logits", "caches", "evaluation", "framework")


@dataclass(frozen=True)
class Batch:
    """The shape of a micro-batch.

    Attributes:
        slots: tokens, padding included.
        trained: positions that meet the output head.
        scores: elements of one head's attention matrices, over all lines.
        dense: whether attention is told by a mask what to see, so that no half of its scores is left out.
        repeated: tokens whose keys and values are copied (prompts that are shared by answers).
        before: of ``slots``, those of shared prompts, through which the backward pass goes last.
    """

    slots: int
    trained: int
    scores: int
    dense: bool = False
    repeated: int = 0
    before: int = 0


@dataclass(frozen=True)
class Work:
    """What a run has to do.

    Attributes:
        largest: micro-batches of which one needs most; ``evaluated``: the same of those that are scored.
        slots, evaluation_slots: tokens of all micro-batches together, padding included.
        reference: bytes that are kept of a reference.
    """

    largest: tuple[Batch, ...]
    slots: float
    evaluated: tuple[Batch, ...] = ()
    evaluation_slots: float = 0
    reference: int = 0


@dataclass(frozen=True)
class Forecast:
    """Bytes by part at the peak, their sum, and seconds (None where the machine's speed is not known)."""

    parts: dict[str, int]
    seconds: float | None = None

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.parts.values())

    @property
    def passing(self) -> int:
        """Bytes of what a batch leaves on its way: what is counted least surely."""
        return self.parts["activations"] + self.parts["logits"]

    def corrected(self, factor: float) -> Forecast:
        """The same with ``passing`` multiplied."""
        changed = {part: round(factor * self.parts[part]) for part in ("activations", "logits")}
        return replace(self, parts=self.parts | changed)


def forecast(
    settings: TrainSettings, work: Work | None = None, *, model: Shapes | None = None, speed: float | None = None
) -> Forecast:
    """What a run of ``settings`` will take.

    Args:
        work: what its data asks for; by default full micro-batches of the longest rows, every token of them trained.
        model: the model's shapes, where they are known already; nothing but its configuration is read for them.
        speed: floating-point operations a second of a large matrix product, see :func:`measured_speed`.

    Raises:
        ModelError: there is no such model, or mlx-lm does not know it.
    """
    model = model or shapes_for(settings)
    work = work or full_work(settings)
    parts = max((peak(settings, model, batch) for batch in work.largest), key=lambda parts: sum(parts.values()))
    beyond = max((scoring(model, batch) for batch in work.evaluated), default=0) - parts["activations"] - parts["logits"]
    parts["evaluation"] = max(0, beyond - parts["gradients"])
    parts["caches"] += work.reference
    return Forecast({part: int(parts[part]) for part in PARTS}, seconds(settings, model, work, speed) if speed else None)


def shapes_for(settings: TrainSettings) -> Shapes:
    """The shapes of the model that the settings name; a hub model's description is fetched, its weights are not."""
    from mlxforge.models.detect import read_config
    from mlxforge.models.hub import DESCRIPTION, resolve_model
    from mlxforge.runs.train import settled

    base = resolve_base(settled(settings).model, Path(settings.runs_dir))
    path = resolve_model(base.model, DESCRIPTION)
    return shapes(read_config(path), settings.lora, settings.dtype, str(path / "config.json"))


def full_work(settings: TrainSettings) -> Work:
    """Full micro-batches of the longest rows, for as many steps as the settings name, or one."""
    width = min(settings.max_length, max(settings.batch_tokens, 1))
    lines = max(1, settings.batch_tokens // settings.max_length)
    batch = Batch(lines * width, lines * width, lines * width * width, settings.batching == "packed")
    return Work((batch,), (settings.steps or 1) * settings.accumulate * batch.slots)


def peak(settings: TrainSettings, model: Shapes, batch: Batch) -> dict[str, float]:
    """Bytes by part when a step of this batch needs most: going through the layers, or in the update."""
    base = {
        "weights": model.weights,
        "adapters": model.trained_bytes,
        "optimizer": OPTIMIZER_COPIES[settings.optimizer] * model.trained_bytes,
        "caches": 0,
        "evaluation": 0,
        "framework": FRAMEWORK,
    }
    copies = 1 + (settings.accumulate > 1)
    through = {"gradients": copies * model.trained_bytes, "logits": 0.0, "activations": 0.0}
    stages = [
        through | {"activations": activations, "logits": held}
        for activations, held in _stages(settings, model, batch, logits(model, batch))
    ]
    stages.append(through | {"gradients": UPDATE * model.trained_bytes})
    return base | max(stages, key=lambda stage: sum(stage.values()))


def _stages(settings: TrainSettings, model: Shapes, batch: Batch, head: float) -> list[tuple[float, float]]:
    """(activations, logits) at the two places where a step may peak: behind the last layer, and within the layers."""
    layers = [layer_bytes(model, block, batch) for block in model.blocks]
    states = 2 * model.item * model.width * batch.trained  # gathered before the head, and their gradient
    if _at_once(model, batch):
        return [((HELD if stands_in(model) else HELD_PLAIN) * sum(layers) + states, head)]
    flight = IN_FLIGHT * model.item * max(block.kept for block in model.blocks) * (batch.slots - batch.before)
    if not settings.grad_checkpoint:
        return [(sum(layers) + flight + states, head)]
    if not model.gpu and model.head_plain and not model.head_trained:
        head -= (LOGITS - LATER_LOGITS) * (_in_flight(model, batch) - _logits(model, batch)[1])
    inputs = model.item * model.width * batch.slots * len(layers)
    return [(inputs + flight + states, head), (inputs + max(_anew(model, block, batch) for block in model.blocks), 0.0)]


def _anew(model: Shapes, block: Block, batch: Batch) -> float:
    """What recomputing a layer takes. The CPU's causal scores come and go by blocks, so that one layer's are alive."""
    scores = model.item * block.heads * seen(model, batch)
    once = scores if stands_in(model) and not batch.dense else 0.0
    return once + RECOMPUTED * (layer_bytes(model, block, batch) - once)


def scoring(model: Shapes, batch: Batch) -> float:
    """What scoring a batch takes beside weights and optimizer: a layer at a time, and logits."""
    return FORWARD * max(layer_bytes(model, block, batch) for block in model.blocks) + LOGITS * _in_flight(model, batch)


def layer_bytes(model: Shapes, block: Block, batch: Batch) -> float:
    """What a layer keeps of a batch for its backward pass."""
    numbers = block.kept * batch.slots + block.heads * seen(model, batch)
    if block.heads:
        numbers += batch.repeated * model.keys / len(model.blocks)
    return model.item * (numbers + gate_copies(model) * block.inner * batch.slots + block.unpacked)


def seen(model: Shapes, batch: Batch) -> float:
    """Scores a head that are kept: on a CPU the later keys of a block of 128 queries are left out (models.cpu)."""
    if batch.dense or not stands_in(model):
        return batch.scores
    from mlxforge.models.cpu import BLOCK

    width = batch.scores / max(batch.slots, 1)
    return batch.slots * min(width, (width + BLOCK) / 2)


def gate_copies(model: Shapes) -> int:
    """How often a gate's width is kept: the sigmoid; MLX's own function keeps one more, a GELU's polynomial and tanh more."""
    if not model.silu:
        return GELU_COPIES
    return GATE_COPIES if stands_in(model) else GATE_COPIES + 1


def stands_in(model: Shapes) -> bool:
    """Whether the CPU's own functions of ``models.cpu`` are used."""
    return not model.gpu and model.item == FLOAT


def logits(model: Shapes, batch: Batch) -> float:
    """Bytes of logits, their copies and chunks (models.scoring)."""
    whole, chunk = _logits(model, batch)
    if model.head_trained or not model.head_plain:
        first = TRAINED_LOGITS if model.head_plain else CAPPED_LOGITS
        more = whole / max(chunk, 1) - 1
        later = min(max(more - 2, 0.0), LATER_CHUNKS)
        return chunk * (first + MORE_TRAINED_LOGITS * min(more, 2.0) + LATER_TRAINED_LOGITS * later)
    return LOGITS * (chunk if _at_once(model, batch) else _in_flight(model, batch))


def _logits(model: Shapes, batch: Batch) -> tuple[int, int]:
    """Bytes of all logits of a batch as float32, and of a chunk of them."""
    from mlxforge.models.scoring import chunk_rows

    row = FLOAT * model.vocabulary
    return row * batch.trained, row * min(batch.trained, chunk_rows(model.vocabulary))


def _in_flight(model: Shapes, batch: Batch) -> int:
    whole, chunk = _logits(model, batch)
    return min(whole, CHUNKS_IN_FLIGHT * chunk)


def _at_once(model: Shapes, batch: Batch) -> bool:
    from mlxforge.models.scoring import QUEUE_BYTES

    large = _logits(model, batch)[0] > QUEUE_BYTES
    return large and not model.gpu and model.head_plain and not model.head_trained


def operations(model: Shapes, settings: TrainSettings, trained: float = 1.0) -> float:
    """Floating-point operations of a training slot, attention's scores left out.

    Two a weight forward and two for the gradient of its input; two more where the weight itself is trained, and again where
    layers are recomputed. The head runs in the forward pass alone, and forms its gradient there: ``trained`` is the share of
    slots that meet it.
    """
    passes = 2 + (not model.low_rank) + settings.grad_checkpoint
    return 2.0 * (passes * model.active + 2 * trained * model.width * model.vocabulary)


def seconds(settings: TrainSettings, model: Shapes, work: Work, speed: float) -> float:
    """Training and evaluation together at a machine's speed."""
    slots = work.slots + EVALUATION_COST * work.evaluation_slots
    trained = sum(one.trained for one in work.largest) / max(1, sum(one.slots for one in work.largest)) or 1.0
    return slots * operations(model, settings, trained) / (EFFICIENCY * speed)


def speed_for(model: Shapes) -> float:
    """This machine's speed in the type that a model computes with."""
    return measured_speed("float32" if model.item == FLOAT else "bfloat16")


@cache
def measured_speed(dtype: str = "float32") -> float:
    """Floating-point operations a second of this machine in one large matrix product, which takes a tenth of a second."""
    import time

    import mlx.core as mx

    side, best = 512, 0.0
    while side < LARGEST_PRODUCT:
        side *= 2
        left = mx.random.normal((side, side)).astype(getattr(mx, dtype))
        mx.eval(left @ left)
        taken = []
        for _ in range(3):
            started = time.perf_counter()
            mx.eval(left @ left)
            taken.append(time.perf_counter() - started)
        best = max(best, 2 * side**3 / min(taken))
        # A short one measures how long it takes to begin.
        if min(taken) > LONG_ENOUGH:
            break
    return best


LARGEST_PRODUCT, LONG_ENOUGH = 8192, 0.01  # rows, seconds
