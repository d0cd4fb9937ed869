"""transformers' Trainer with this project's rules: frozen parts stay in eval mode, a learning rate per part, checkpoints whole or
not at all and never loaded by halves, losses that are not finite stop the run."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback

from vlm import adapters
from vlm.packing import Row
from vlm.parts import frozen_modules, optimizer_groups
from vlm.path_noise import SEED, PathNoise
from vlm.run_folder import LOG_FILE, RunFolder, TrainingError

POSITION_FILE = "position.json"
"""In a checkpoint: the step, and what fixes the order of the rows."""
TRAINER_FILES = ("optimizer", "scheduler", "scaler", "rng_state", "trainer_state", "latest", "zero_to_", POSITION_FILE)
"""How the names of a checkpoint's files begin that are no part of the model."""


class Collator:
    """Packed rows → what the model's forward takes; with `noise`, that of its paths by each row's own seed."""

    def __init__(self, processor: Any, noise: PathNoise | None = None) -> None:
        self.processor, self.noise = processor, noise

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        batch = dict(self.processor.collate_packed(rows))
        batch.pop("views")
        return batch if self.noise is None else batch | self.noise.draw([row[SEED] for row in rows], batch)


class HandVLMTrainer(Trainer):
    """`settings`: a FinetuneSettings; `prefix`: the embedding's name; `position`: what a checkpoint says about the rows' order."""

    optimizer: Any
    lr_scheduler: Any

    def __init__(self, *, settings: Any, prefix: str, folder: RunFolder, position: dict[str, Any], **kwargs: Any) -> None:
        config = kwargs["model"].config
        had = {"use_cache": config.use_cache} if hasattr(config, "use_cache") else {}
        super().__init__(**kwargs)
        config.__dict__.pop("use_cache", None)  # the Trainer turns it off for good; here it is off in the forward pass only
        config.__dict__.update(had)
        self.path_token = getattr(config, "trajectory_token_id", None)
        self.settings, self.prefix, self.folder, self.position = settings, prefix, folder, position
        self.frozen = frozen_modules(self.model, settings.parts)
        self.callback_handler.callbacks = [c for c in self.callback_handler.callbacks if type(c).__name__ != "PrinterCallback"]
        for callback in (ProgressBar(), JsonLog(folder.path / LOG_FILE)):
            self.add_callback(callback)
        if settings.tensorboard:
            self.add_callback(_tensorboard(folder.path / "tensorboard", self.is_world_process_zero()))
        if settings.max_minutes is not None:
            self.add_callback(Deadline(60 * settings.max_minutes))
        self._clock, self._clock_step = time.monotonic(), 0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            chosen = self.settings.optimizer
            model = self.model if model is None else model
            groups = optimizer_groups(model, self.settings.parts, self.prefix, chosen.lr, chosen.weight_decay)
            fused = not self.is_deepspeed_enabled
            self.optimizer = torch.optim.AdamW(groups, lr=chosen.lr, betas=chosen.betas, eps=chosen.epsilon, fused=fused)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.lr_scheduler is None:
            chosen = self.settings.optimizer

            def factor(step: int) -> float:
                return learning_rate_factor(step, num_training_steps, chosen.schedule, chosen.warmup_steps, chosen.final_factor)

            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer if optimizer is None else optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        for module in self.frozen:  # the Trainer has just put everything in training mode
            module.eval()
        return super().compute_loss(model, {**inputs, "use_cache": False}, *args, **kwargs)

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: torch.device) -> Any:
        """transformers' count of supervised tokens; beside it every batch is told the valid hand-steps of the whole optimiser step."""
        if self.path_token is not None:
            steps = torch.stack([hand_steps(batch, self.path_token) for batch in batch_samples]).sum() if batch_samples else torch.zeros(())
            if self.args.average_tokens_across_devices and self.args.world_size > 1:
                steps = self.accelerator.gather(steps.to(device)).sum()
            for batch in batch_samples:
                batch["num_hand_steps"] = steps.to(device)
                batch["num_micro_batches"] = len(batch_samples) * self.args.world_size
        return super()._get_num_items_in_batch(batch_samples, device)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        return 0  # a wrong guess for a composed model, and it walks through all parameters at every step

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        logs.pop("total_flos", None)
        if not math.isfinite(logs.get("loss", 0.0)):
            self._stop_not_finite(logs["loss"])
        if "loss" in logs:
            now, step = time.monotonic(), self.state.global_step
            pictures = (step - max(self._clock_step, self._initial_global_step)) * self.position["rows_per_step"]
            logs["pictures_per_second"] = round(pictures / max(now - self._clock, 1e-9), 2)
            self._clock, self._clock_step = now, step
        super().log(logs, start_time)

    def _stop_not_finite(self, loss: float) -> None:
        last = self.folder.checkpoint
        raise TrainingError(
            f"the loss is {loss} at step {self.state.global_step}: lower optimizer.lr, raise warmup_steps, or use autocast none. "
            + (f"The last good checkpoint is {last}" if last else "There is no checkpoint yet")
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes into a staging folder and moves it into place when it is complete."""
        if not bool(torch.isfinite(self._tr_loss)):
            self._stop_not_finite(float(self._tr_loss))
        name = f"checkpoint-{self.state.global_step}"
        with self.folder.saving(name) as staging:
            self.args.output_dir = str(staging)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.output_dir = str(self.folder.path)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                staged, target = staging / name, self.folder.path / name
                position = {"step": self.state.global_step, **self.position}
                (staged / POSITION_FILE).write_text(json.dumps(position), encoding="utf-8")
                if adapters.is_adapter(staged):
                    adapters.move_base(staged, staged, target)
                self.folder.publish(staged, target)
                self.folder.keep_newest(self.settings.keep)
            self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; settings.yaml says all of it
            if adapters.is_adapter(folder):
                (folder / "README.md").unlink(missing_ok=True)  # peft's empty form
                self.model.config.save_pretrained(folder)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or {})
        missing = [key for key in load_result.missing_keys if key not in tied]
        if missing or load_result.unexpected_keys:
            found = f"missing {missing[:5]}, unexpected {load_result.unexpected_keys[:5]}"
            raise TrainingError(f"{self.folder.checkpoint}: the checkpoint does not fit the model; {found}")


def hand_steps(batch: dict[str, Any], path_token: int) -> Tensor:
    """Valid hand-steps of the supervised paths in a batch, the divisor of their loss."""
    valid = batch.get("trajectory_valid")
    if valid is None:
        return torch.zeros((), dtype=torch.long)
    places = batch["input_ids"] == path_token
    supervised = (batch["labels"][places] != -100).reshape(len(valid), -1).all(1)
    return (valid & supervised[:, None, None].to(valid.device)).sum()


def learning_rate_factor(step: int, steps: int, schedule: str, warmup_steps: int, final_factor: float) -> float:
    """Share of the learning rate at `step` (from 0): a line up over the warm-up, then down to `final_factor` at the last step."""
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    height = 1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return final_factor + (1 - final_factor) * height


class JsonLog(TrainerCallback):
    """One json line per log entry of the main process."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            entry = {"step": state.global_step, **{key: value for key, value in logs.items() if key != "epoch"}}
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")


class ProgressBar(TrainerCallback):
    """One bar on the main process, with the latest loss."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        hidden = not state.is_world_process_zero
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, disable=hidden, unit="step", mininterval=2)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()


class Deadline(TrainerCallback):
    """Saves and stops after `seconds`, in the same step on every process."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        late = torch.tensor(float(time.monotonic() > self.end), device=args.device)
        if args.world_size > 1:
            torch.distributed.all_reduce(late, torch.distributed.ReduceOp.MAX)
        if bool(late):
            control.should_save = control.should_training_stop = True


def _tensorboard(path: Path, main: bool) -> TrainerCallback:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError("tensorboard: true needs a package: pip install 'handvlm[train]', or set tensorboard: false") from error
    return TensorBoardCallback(SummaryWriter(str(path)) if main else None)
