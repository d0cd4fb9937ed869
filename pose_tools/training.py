"""The one training loop of the specialists: detector, pose regressors, encoders.

A specialist describes itself as a `Task` (samples, losses as sums with their counts, an evaluation); `train` does the rest on
accelerate: one process or `torchrun`, bfloat16, gradient accumulation, weight averaging, logs, atomic checkpoints.

Losses are divided by the counts of the *whole* optimiser step, over all processes and micro-batches, so one process equals
two and 1 × 16 equals 4 × 4 (up to rounding). Everything that is random is a function of (seed, step), so a resumed run equals an
uninterrupted one bit for bit on a CPU.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from pose_tools.files import FolderBusyError, atomic_path, exclusive, write_text
from pose_tools.simhand.optim import LARS, published_groups, warmup_cosine
from pose_tools.user_error import UserError

logger = logging.getLogger(__name__)

Batch = dict[str, Tensor]


class TrainingError(UserError, RuntimeError):
    """A run that cannot start or go on; the message says what was met and what to do."""


class Task(Protocol):
    """What is trained. `losses` and `counts` have the keys of `weights`; the loss is Σ weights[k] · Σ losses[k] / Σ counts[k].

    A task whose loss is no sum over micro-batches also has `backward_together(model, batches, total, *, autocast, no_sync)`, which is
    called instead of `losses` where a process has several in a step: it runs the model under `autocast()`, calls `total(losses)` once
    and leaves that scalar's gradients in the parameters; all backward passes through the model but the last are inside `no_sync()`.
    """

    weights: Mapping[str, float]

    def __len__(self) -> int:
        """Number of samples in an epoch."""

    def sample(self, index: int, epoch: int) -> Any:
        """One sample; any augmentation is a function of (seed, index, epoch)."""

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Samples → one batch of tensors."""

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """How many things each loss sums over in this batch, from the labels alone: scalars."""

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Runs the model; scalar *sums*, not means."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics of the averaged weights, on the main process, in eval mode, without gradients."""


@dataclass(frozen=True)
class TrainingSettings:
    """`batch_size` samples make one optimiser step over all processes; a process runs `micro_batch_size` of them at a time."""

    output: str
    max_steps: int = 1000
    """The learning-rate schedule is tied to this."""
    max_minutes: float | None = None
    """Stop here with a checkpoint, whatever the step; `resume` goes on from it."""
    batch_size: int = 32
    micro_batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    decay_fraction: float = 0.5
    """The last part of the run, over which the learning rate falls in a line to `final_factor` of its height."""
    final_factor: float = 0.02
    weight_decay: float = 0.05
    adam_betas: tuple[float, float] = (0.9, 0.98)
    optimizer: Literal["adamw", "lars"] = "adamw"
    """"lars": LARS around Adam with SiMHand's groups (see `pose_tools.simhand.optim`); set max_grad_norm to inf with it."""
    schedule: Literal["line", "cosine"] = "line"
    """"cosine": SiMHand's, from 0 up over `warmup_steps`, then a cosine down to `final_factor` of the height."""
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    precision: Literal["fp32", "bf16"] = "fp32"
    channels_last: bool = False
    """Memory layout of convolution weights: much faster on CPUs for convolutional networks."""
    num_workers: int = 0
    seed: int = 0
    log_every: int = 50
    evaluate_every: int = 500
    save_every: int = 500
    best_metric: str | None = None
    """The metric whose highest value picks `best.safetensors`; None keeps the latest evaluation."""
    tensorboard: bool = False
    resume: bool = False


@dataclass(frozen=True)
class TrainingResult:
    step: int
    metrics: dict[str, float]
    """Of the last evaluation of this call (empty if none was due)."""
    best: dict[str, float] | None
    """Metrics of the evaluation that `best.safetensors` in the output folder holds, or None."""


def save_weights(model: nn.Module, path: str | Path) -> None:
    """A model's parameters and buffers as safetensors, atomically."""
    with atomic_path(path) as temporary:
        save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, temporary)


def learning_rate(step: int, settings: TrainingSettings) -> float:
    """Rises over `warmup_steps`, stays, and falls in a line over the last `decay_fraction` of the steps; or the cosine."""
    if settings.schedule == "cosine":
        height = settings.learning_rate
        return warmup_cosine(step, settings.warmup_steps, settings.max_steps, height, settings.final_factor * height)
    warm = min(1.0, (step + 1) / max(1, settings.warmup_steps))
    decay_steps = max(1.0, settings.decay_fraction * settings.max_steps)
    left = min(1.0, max(0.0, (settings.max_steps - step) / decay_steps))
    return settings.learning_rate * min(warm, settings.final_factor + (1 - settings.final_factor) * left)


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW without decay for vectors, or LARS around Adam without decay for what is named a bias."""
    if settings.optimizer == "lars":
        decayed = published_groups(model.named_parameters(), settings.weight_decay)
        return LARS(torch.optim.Adam(decayed, lr=settings.learning_rate, betas=settings.adam_betas))
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.requires_grad and p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.adam_betas, fused=True)


def step_indices(step: int, length: int, batch_size: int, seed: int) -> tuple[int, np.ndarray]:
    """(epoch, sample indices) of an optimiser step: a permutation per epoch, its incomplete last batch left out."""
    epoch, position = divmod(step, length // batch_size)
    order = np.random.default_rng([seed, epoch]).permutation(length)
    return epoch, order[position * batch_size : (position + 1) * batch_size]


class _Plan(torch.utils.data.Sampler):
    """The micro-batches of this process, from `start` on, as lists of (index, epoch)."""

    def __init__(self, length: int, settings: TrainingSettings, rank: int, world: int, start: int):
        self.length, self.settings, self.rank, self.world, self.start = length, settings, rank, world, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        s, stride = self.settings, self.settings.micro_batch_size * self.world
        for step in range(self.start, s.max_steps):
            epoch, indices = step_indices(step, self.length, s.batch_size, s.seed)
            for first in range(self.rank * s.micro_batch_size, s.batch_size, stride):
                yield [(int(i), epoch) for i in indices[first : first + s.micro_batch_size]]


class _Samples(torch.utils.data.Dataset):
    """A task as a map-style data set keyed by (index, epoch)."""

    def __init__(self, task: Task):
        self.task = task

    def __getitem__(self, key: tuple[int, int]) -> Any:
        return self.task.sample(*key)


class _Run:
    """The state of one run: what a checkpoint holds, and how to write and read it."""

    def __init__(self, model: nn.Module, settings: TrainingSettings):
        self.settings, self.output = settings, Path(settings.output)
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self.raw = model.to(memory_format=torch.channels_last) if settings.channels_last else model
        self.ema = copy.deepcopy(self.raw).requires_grad_(False).eval().to(self.accelerator.device)
        optimizer = make_optimizer(model, settings)
        self.model, self.optimizer = self.accelerator.prepare(self.raw, optimizer)
        self.step = 0
        self.best: dict[str, float] | None = None
        self.path = self.output / "checkpoint.pt"

    def start(self) -> None:
        """Seeds, and takes up the checkpoint when `resume` is set; refuses to overwrite a run otherwise."""
        s, rank = self.settings, self.accelerator.process_index
        torch.manual_seed(s.seed * 1009 + rank)
        if not self.path.exists():
            return
        if not s.resume:
            raise TrainingError(f"{self.output} already holds a run ({self.path.name}): set resume=true to go on, or choose another output")
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            raise TrainingError(f"{self.path}: not a whole checkpoint ({error}); delete the run, or choose another output") from error
        self.raw.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = state["step"], state["best"]
        if len(state["rng"]) == self.accelerator.num_processes:
            torch.set_rng_state(state["rng"][rank])
        for name in ("seed", "batch_size"):
            if state[name] != getattr(s, name):
                logger.warning("%s is %r, the run began with %r: the order of the samples changes", name, getattr(s, name), state[name])

    def save(self) -> None:
        rng = gather_object([torch.get_rng_state()])
        if self.accelerator.is_main_process:
            state = {"step": self.step, "best": self.best, "seed": self.settings.seed, "batch_size": self.settings.batch_size, "rng": rng,
                     "model": self.raw.state_dict(), "ema": self.ema.state_dict(), "optimizer": self.optimizer.state_dict()}  # fmt: skip
            with atomic_path(self.path) as temporary:
                torch.save(state, temporary)

    @torch.no_grad()
    def average(self) -> None:
        """Moving average of parameters and floating-point buffers, faster at the start (as in TensorFlow's ExponentialMovingAverage)."""
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        for mean, value in zip(self.ema.state_dict().values(), self.raw.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    def evaluate(self, task: Task) -> dict[str, float]:
        """Main process only: metrics of the averaged weights; keeps them as `best` if the named metric rose."""
        with torch.no_grad():
            metrics = {name: float(value) for name, value in task.evaluate(self.ema).items()}
        name = self.settings.best_metric
        if name is not None and name not in metrics:
            raise TrainingError(f"best_metric is {name!r}, the evaluation gave {', '.join(metrics)}")
        if name is None or self.best is None or math.isnan(self.best[name]) or metrics[name] > self.best[name]:
            self.best = {"step": self.step} | metrics
            save_weights(self.ema, self.output / "best.safetensors")
            write_text(self.output / "best.json", json.dumps(self.best, indent=1))
        return metrics


class _Log:
    """`log.jsonl` (and TensorBoard if asked) of the main process; lines after the step a run resumes from are dropped."""

    def __init__(self, settings: TrainingSettings, step: int):
        self.path = Path(settings.output) / "log.jsonl"
        # a last line without its end was being written when the run was stopped
        lines = self.path.read_text().split("\n")[:-1] if self.path.exists() else []
        write_text(self.path, "".join(line + "\n" for line in lines if json.loads(line)["step"] <= step))
        self.writer = None
        if settings.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise TrainingError("tensorboard=true needs the package: pip install 'handvlm[train]', or set tensorboard=false") from error
            self.writer = SummaryWriter(str(Path(settings.output) / "tensorboard"), purge_step=step + 1)

    def __call__(self, step: int, values: dict[str, float]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step} | values) + "\n")
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)
            self.writer.flush()


def train(model: nn.Module, task: Task, settings: TrainingSettings) -> TrainingResult:
    """Trains `model` in place; writes `checkpoint.pt`, `best.safetensors`, `best.json`, `log.jsonl`, `settings.json` to its `output`.

    Raises TrainingError for a folder that holds a run already, a batch that does not divide, too few samples, or gradients
    that are not finite (the last checkpoint stays as it was).
    """
    run = _Run(model, settings)
    world, main = run.accelerator.num_processes, run.accelerator.is_main_process
    if settings.batch_size % (settings.micro_batch_size * world):
        at_once = f"micro_batch_size {settings.micro_batch_size} × {world} processes"
        raise TrainingError(f"batch_size {settings.batch_size} is no multiple of {at_once}")
    if len(task) < settings.batch_size:
        raise TrainingError(f"{len(task)} samples do not fill one batch of {settings.batch_size}: add samples or lower batch_size")
    if not main:
        return _train(run, task)
    run.output.mkdir(parents=True, exist_ok=True)
    try:
        with exclusive(run.output):
            return _train(run, task)
    except FolderBusyError as error:
        raise TrainingError(str(error)) from error


def _train(run: _Run, task: Task) -> TrainingResult:
    settings, rank, world = run.settings, run.accelerator.process_index, run.accelerator.num_processes
    run.start()
    log = None
    if run.accelerator.is_main_process:
        log = _Log(settings, run.step)
        write_text(run.output / "settings.json", json.dumps(asdict(settings), indent=1))
    plan = _Plan(len(task), settings, rank, world, run.step)
    # a generator of its own: starting a loader draws a number, and the global generator must be that of the checkpoint
    loader = torch.utils.data.DataLoader(_Samples(task), batch_sampler=plan, collate_fn=task.collate, num_workers=settings.num_workers,
                                         generator=torch.Generator().manual_seed(settings.seed))  # fmt: skip
    bar = tqdm(total=settings.max_steps, initial=run.step, disable=log is None, unit="step", mininterval=2)
    metrics = _loop(run, task, iter(loader), log, bar)
    return TrainingResult(run.step, metrics, run.best)


def _loop(run: _Run, task: Task, batches: Iterator[Batch], log: _Log | None, bar: tqdm) -> dict[str, float]:
    s, accelerator, metrics = run.settings, run.accelerator, {}
    micro = s.batch_size // (s.micro_batch_size * accelerator.num_processes)
    began = since = time.monotonic()
    sums, logged, stop = torch.zeros(len(task.weights), device=accelerator.device), run.step, False
    while run.step < s.max_steps and not stop:
        late = s.max_minutes is not None and time.monotonic() - began > 60 * s.max_minutes
        parts, stop = _optimise(run, task, [next(batches) for _ in range(micro)], late)
        sums += parts
        run.step += 1
        bar.update()
        last = stop or run.step == s.max_steps
        if run.step % s.log_every == 0 or last:
            means = (accelerator.reduce(sums, "sum") / max(1, run.step - logged)).tolist()
            values = dict(zip(task.weights, means, strict=True))
            values |= {"loss": sum(task.weights[k] * v for k, v in values.items()), "learning_rate": learning_rate(run.step - 1, s)}
            values["samples_per_second"] = (run.step - logged) * s.batch_size / max(1e-9, time.monotonic() - since)
            if log is not None:
                log(run.step, values)
                bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
            sums, logged, since = torch.zeros_like(sums), run.step, time.monotonic()
        if run.step % s.evaluate_every == 0 or run.step == s.max_steps:
            if log is not None:
                metrics = run.evaluate(task)
                log(run.step, metrics)
                logger.info("step %d: %s", run.step, ", ".join(f"{k} {v:.3f}" for k, v in metrics.items()))
            accelerator.wait_for_everyone()
        if run.step % s.save_every == 0 or last:
            run.save()
    bar.close()
    return metrics


def _optimise(run: _Run, task: Task, batches: list[Batch], late: bool) -> tuple[Tensor, bool]:
    """One optimiser step. Returns this process' share of each mean loss, and whether any process is out of time."""
    s, accelerator = run.settings, run.accelerator
    names, device = list(task.weights), accelerator.device
    batches = [{name: value.to(device) for name, value in batch.items()} for batch in batches]
    local = [torch.stack([torch.as_tensor(c[name]).float() for name in names]) for c in map(task.counts, batches)]
    counts = accelerator.reduce(torch.cat([sum(local), torch.tensor([float(late)], device=device)]), "sum")
    stop, counts = bool(counts[-1] > 0), counts[:-1].clamp(min=1)
    weights = torch.tensor([task.weights[name] for name in names], device=device)
    parts = torch.zeros(len(names), device=device)

    def autocast() -> AbstractContextManager:
        return torch.autocast(device.type, torch.bfloat16, enabled=s.precision == "bf16")

    def total(losses: Mapping[str, Tensor]) -> Tensor:
        shares = torch.stack([losses[name] for name in names]) / counts
        parts.add_(shares.detach())
        # distributed training averages gradients over the processes; the counts are of all of them, so undo it
        return (weights * shares).sum() * accelerator.num_processes

    together = getattr(task, "backward_together", None)
    if together is not None and len(batches) > 1:
        together(run.model, batches, total, autocast=autocast, no_sync=lambda: accelerator.no_sync(run.model))
        batches = []
    for number, batch in enumerate(batches):
        with accelerator.no_sync(run.model) if number + 1 < len(batches) else nullcontext():
            with autocast():
                losses = task.losses(run.model, batch)
            accelerator.backward(total(losses))
    norm = float(accelerator.clip_grad_norm_(run.model.parameters(), s.max_grad_norm))
    if not math.isfinite(norm):
        raise TrainingError(f"the gradient is {norm} at step {run.step} (losses {dict(zip(names, parts.tolist(), strict=True))}): "
                            "lower learning_rate or use precision=fp32; the last checkpoint is unharmed")  # fmt: skip
    for group in run.optimizer.param_groups:
        group["lr"] = learning_rate(run.step, s)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.average()
    return parts, stop
