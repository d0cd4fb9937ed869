"""Supervised fine-tuning of a HandVLM on transformers' Trainer: one process or torchrun, full or LoRA, DeepSpeed by config.

A row is one picture with all its samples (see `vlm.training_data`). The loss is normalised by the supervised tokens of the whole
optimiser step, over micro-batches and processes, so 8 × 1 accumulation equals 1 × 8 and two processes equal one. A resumed run
equals an uninterrupted one bit for bit on a CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments, set_seed
from transformers.utils.logging import disable_progress_bar

from pose_tools.files import write_text
from vlm import adapters
from vlm import settings as settings_io
from vlm.build import build
from vlm.checkpoints.reading import CheckpointError
from vlm.extend import extend
from vlm.model import HandVLM
from vlm.parts import apply_parts, embedding_prefix, format_plan, plan
from vlm.path_noise import PathNoise
from vlm.processor import HandVLMProcessor
from vlm.run_folder import RESULT_FILE, SETTINGS_FILE, START, RunFolder, TrainingError, link_or_copy
from vlm.settings import SettingsError
from vlm.trainer import POSITION_FILE, TRAINER_FILES, Collator, HandVLMTrainer
from vlm.training_data import TrainingRows, texts
from vlm.training_settings import RESUMABLE, FinetuneSettings

logger = logging.getLogger(__name__)


def finetune(settings: FinetuneSettings, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Runs (or goes on with) the run that `settings` describe and returns its folder, which then is a model folder.

    Beside the weights stand `settings.yaml` (resolved), `parts.json` (the freeze plan), `log.jsonl`, TensorBoard logs, checkpoints and
    `training.json` (steps, time, loss). Raises SettingsError, TrainingError, SampleError and the data sets' own errors.
    """
    arguments = training_arguments(settings)  # first: it starts the process group that loading may need
    folder = RunFolder(settings.output, main=arguments.process_index == 0)
    with arguments.main_process_first(desc="opening the output folder"):
        if folder.main:
            folder.lock()
            _open(folder, settings, resume, overwrite)
    try:
        return _finetune(settings, arguments, folder, resume)
    finally:
        folder.unlock()


def _finetune(settings: FinetuneSettings, arguments: TrainingArguments, folder: RunFolder, resume: bool) -> Path:
    base = _start_folder(settings, arguments, folder)
    set_seed(settings.seed)
    model, processor = load_start(settings, base)
    global_batch = settings.batch_size * settings.accumulate * arguments.world_size
    with arguments.main_process_first(desc="reading the data sets"):  # the first one fills the caches
        rows = TrainingRows(settings.data, processor, seed=settings.seed, length=0)
    steps = arguments.max_steps = planned_steps(settings, rows, arguments.world_size)
    rows.length = steps * global_batch
    checkpoint = folder.checkpoint if resume else None
    position = {"rows_per_step": global_batch, "mixture": rows.mixture.fingerprint()}
    done = _resumed_step(checkpoint, position)
    if done < steps:
        trainer = _trainer(settings, arguments, folder, model, processor, base, rows, position)
        if folder.main:
            folder.trim_log(done)
            (folder.path / RESULT_FILE).unlink(missing_ok=True)
            logger.info("%d steps of %d pictures (%d × %d × %d processes)", steps, global_batch, *_shape(settings, arguments))
        disable_progress_bar()  # of transformers: one for every file it saves
        logging.getLogger("transformers.trainer_utils").setLevel(logging.ERROR)  # it tells of our marks in the text's config
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        done = trainer.state.global_step
    if folder.main and done < steps:
        logger.warning("stopped after %d of %d steps; go on with --resume. %s is a model folder too", done, steps, folder.checkpoint)
    elif folder.main and folder.result is None:
        _finish(folder, done)
    elif folder.main:
        logger.info("%s: already finished after %d steps; raise 'steps' to train longer", folder.path, done)
    return folder.path


def _shape(settings: FinetuneSettings, arguments: TrainingArguments) -> tuple[int, int, int]:
    return settings.batch_size, settings.accumulate, arguments.world_size


def _trainer(
    settings: FinetuneSettings,
    arguments: TrainingArguments,
    folder: RunFolder,
    model: nn.Module,
    processor: HandVLMProcessor,
    base: Path,
    rows: TrainingRows,
    position: dict[str, Any],
) -> HandVLMTrainer:
    """Applies the freeze plan, writes it down, and makes the trainer."""
    prefix, noise = embedding_prefix(model), PathNoise.of(model)
    set_seed(settings.seed)  # fresh LoRA matrices do not depend on how many numbers loading has drawn, which ZeRO-3 changes
    model = choose_what_trains(model, settings, processor, base, zero3=_zero_stage(arguments) == 3)
    validation = None
    if settings.validation is not None:
        validation = TrainingRows(settings.validation, processor, seed=settings.seed, length=settings.validation_rows)
    if folder.main:
        freeze_plan = plan(model, settings.parts, prefix, settings.optimizer.lr, processor)
        settings_io.save(settings, folder.path / SETTINGS_FILE)
        write_text(folder.path / "parts.json", json.dumps([dataclasses.asdict(row) for row in freeze_plan], indent=1) + "\n")
        logger.info("what trains:\n%s", format_plan(freeze_plan))
    return HandVLMTrainer(
        settings=settings,
        prefix=prefix,
        folder=folder,
        position=position,
        model=model,
        args=arguments,
        data_collator=Collator(processor, noise),
        train_dataset=rows,
        eval_dataset=validation,
        processing_class=processor,
    )


def training_arguments(settings: FinetuneSettings) -> TrainingArguments:
    """transformers' arguments; `max_steps` is a placeholder until the data sets are open. Making them starts the process group."""
    cuda = torch.cuda.is_available() and settings.device != "cpu"
    _check_fsdp(cuda)
    optimizer = settings.optimizer
    arguments = TrainingArguments(
        output_dir=settings.output,
        max_steps=settings.steps or 1,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulate,
        learning_rate=optimizer.lr,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_epsilon=optimizer.epsilon,
        max_grad_norm=optimizer.clip,
        warmup_steps=optimizer.warmup_steps,
        seed=settings.seed,
        use_cpu=not cuda,
        bf16=settings.autocast == "bfloat16",
        fp16=settings.autocast == "float16",
        activation_checkpointing=settings.gradient_checkpointing,
        logging_strategy="steps",
        logging_steps=settings.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=settings.save_every,
        eval_strategy="no" if settings.validation is None else "steps",
        eval_steps=settings.validate_every,
        prediction_loss_only=True,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        train_sampling_strategy="sequential",  # the mixture is the order
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=cuda,
        deepspeed=settings.deepspeed,
        log_level="warning",
    )
    if settings.deepspeed is not None:
        import deepspeed  # transformers starts torch's process group only; loading under ZeRO-3 needs DeepSpeed's too

        deepspeed.init_distributed(dist_backend="nccl" if cuda else "gloo")
    return arguments


def _check_fsdp(cuda: bool) -> None:
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() not in ("1", "true"):
        return
    if not cuda:
        raise TrainingError("ACCELERATE_USE_FSDP is set but there is no GPU: FSDP would silently shard nothing. Start with torchrun")
    if os.environ.get("FSDP_VERSION", "1") != "2":  # its flat parameters tell neither matrices from biases nor the parts they belong to
        raise TrainingError("FSDP version 1 would give all parts one learning rate and weight decay: set fsdp_version: 2, or use deepspeed")


def _zero_stage(arguments: TrainingArguments) -> int:
    config = getattr(arguments, "hf_deepspeed_config", None)
    return config.get_value("zero_optimization.stage", 0) if config is not None else 0


def choose_what_trains(model: nn.Module, settings: FinetuneSettings, processor: HandVLMProcessor, base: Path, zero3: bool = False) -> Any:
    """`model` with its parts frozen, trainable or adapted; a peft model around it for a run with LoRA."""
    if settings.parts.uses_lora:
        return adapters.add_lora(model, settings.parts, settings.lora, processor, base=base, zero3=zero3)
    apply_parts(model, settings.parts, processor)
    return model


def planned_steps(settings: FinetuneSettings, rows: TrainingRows, processes: int) -> int:
    """Optimiser steps of the whole run."""
    if settings.epochs is None:
        return settings.steps or 0
    pictures = sum(map(len, rows.groups.values()))
    return math.ceil(settings.epochs * pictures / (settings.batch_size * settings.accumulate * processes))


def make_start(settings: FinetuneSettings) -> tuple[HandVLM, HandVLMProcessor]:
    """The model a run starts from, in memory: built, extended, or as it was; fresh weights are a function of the seed, a fresh
    tokenizer of the data. Raises SettingsError for a model that cannot be made."""
    samples = TrainingRows(settings.data, None, seed=settings.seed, length=0)
    new = settings.build or settings.extend
    words: list[str] = []
    if new is not None and new.tokenizer in ("train", "retrain"):
        template = new.template or HandVLMProcessor.from_pretrained(settings.model).template
        words = list(texts(samples, settings.tokenizer_rows, template))
    set_seed(settings.seed)  # only now: a detector that looks at pictures for the first time draws random numbers too
    if settings.build is not None:
        with _refusals_as_settings():
            return build(settings.build, words)
    with _refusals_as_settings():
        model, processor = load_start(settings, Path(settings.model or ""))
    if settings.extend is None:
        return model, processor
    with _refusals_as_settings():
        return extend(model, processor, settings.extend, words)


@contextlib.contextmanager
def _refusals_as_settings() -> Iterator[None]:
    """What cannot be built or extended is an error of the run's settings, which a person reads in one line."""
    try:
        yield
    except (CheckpointError, SettingsError):
        raise
    except ValueError as error:
        raise SettingsError(str(error)) from error


def load_start(settings: FinetuneSettings, start: Path) -> tuple[HandVLM, HandVLMProcessor]:
    """The model and processor in folder `start`, in the dtype and with the attention of `settings`."""
    options: dict[str, Any] = {"attn_implementation": {"text_config": settings.attention}} if settings.attention else {}
    model = HandVLM.from_pretrained(start, dtype=getattr(torch, settings.dtype), **options)
    return model, HandVLMProcessor.from_pretrained(start)


def _start_folder(settings: FinetuneSettings, arguments: TrainingArguments, folder: RunFolder) -> Path:
    """The folder of the model a run starts from; a run with `build` or `extend` makes it once, inside its own folder."""
    if settings.build is None and settings.extend is None:
        assert settings.model is not None
        return Path(settings.model).absolute()
    start = folder.path / START
    with arguments.main_process_first(desc="building the model"):
        if not start.is_dir():
            logger.info("building a new model in %s", start)
            with _whole_parameters(arguments):
                model, processor = make_start(settings)
            with folder.saving("the new model") as staging:
                model.save_pretrained(staging / START)
                processor.save_pretrained(staging / START)
                folder.publish(staging / START, start)
    return start


@contextlib.contextmanager
def _whole_parameters(arguments: TrainingArguments) -> Iterator[None]:
    """While this lasts, models are made whole although the run uses ZeRO-3, which would share them out among processes that wait."""
    config = getattr(arguments, "hf_deepspeed_config", None)
    if config is None:
        yield
        return
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(config)


def _open(folder: RunFolder, settings: FinetuneSettings, resume: bool, overwrite: bool) -> None:
    folder.open(resume=resume, overwrite=overwrite)
    if resume:
        before = settings_io.to_mapping(settings_io.load(FinetuneSettings, folder.path / SETTINGS_FILE))
        changed = [key for key in _differences(before, settings_io.to_mapping(settings)) if key.split(".")[0] not in RESUMABLE]
        if changed:
            raise TrainingError(
                f"{folder.path}: the run to resume was begun with other settings ({', '.join(changed)}). Give the same ones, "
                f"or start a new run from its weights with model: {folder.checkpoint or folder.path}"
            )
    settings_io.save(settings, folder.path / SETTINGS_FILE)


def _differences(before: Any, after: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = list(dict.fromkeys([*before, *after]))
        return [d for key in keys for d in _differences(before.get(key), after.get(key), f"{path}.{key}".lstrip("."))]
    return [] if before == after else [path]


def _resumed_step(checkpoint: Path | None, position: dict[str, Any]) -> int:
    """The step of a checkpoint, after checking that the rows to come continue those it has seen."""
    if checkpoint is None:
        return 0
    before = json.loads((checkpoint / POSITION_FILE).read_text(encoding="utf-8"))
    if before["rows_per_step"] != position["rows_per_step"]:
        raise TrainingError(
            f"{checkpoint}: the run was begun with {before['rows_per_step']} pictures a step, now batch_size × accumulate × processes is "
            f"{position['rows_per_step']}; make it {before['rows_per_step']} again"
        )
    if before["mixture"] != position["mixture"]:
        raise TrainingError(f"{checkpoint}: the data sets' sizes, names or weights have changed since the run was begun; restore them")
    return int(before["step"])


def _finish(folder: RunFolder, steps: int) -> None:
    """Puts the last checkpoint's model files, hard-linked where possible, at the top of the run's folder."""
    checkpoint = folder.checkpoint
    if checkpoint is None:
        raise TrainingError(f"{folder.path}: the last checkpoint has vanished; start again with --overwrite")
    with folder.saving("the finished model") as staging:
        staged = staging / "model"
        staged.mkdir()
        for file in checkpoint.iterdir():
            if file.is_file() and not file.name.startswith(TRAINER_FILES):
                link_or_copy(file, staged / file.name)
        if adapters.is_adapter(staged):
            adapters.move_base(staged, checkpoint, folder.path)
        folder.publish(staged, folder.path)
        last = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["log_history"][-1:]
        write_text(folder.path / RESULT_FILE, json.dumps({"steps": steps, "last": last}, indent=1) + "\n")
    logger.info("finished: %s", folder.path)


def merge(folder: Path) -> Path:
    """Writes the whole model of a finished LoRA run to its subfolder "merged"; TrainingError when there is no adapter."""
    if not adapters.is_adapter(folder):
        raise TrainingError(f"{folder}: there is no adapter to merge; the folder already holds the whole model")
    run = RunFolder(folder)
    with run.saving("the merged model") as staging:
        adapters.load_adapter(HandVLM, folder).save_pretrained(staging / "merged")
        HandVLMProcessor.from_pretrained(folder).save_pretrained(staging / "merged")
        run.publish(staging / "merged", folder / "merged")
    logger.info("merged: %s", folder / "merged")
    return folder / "merged"
