"""Fine-tuning: equal however it is cut up, resumed bit for bit, frozen means frozen, and nothing is lost when something fails."""

from __future__ import annotations

import json
import os
import resource
import runpy
import shutil
from pathlib import Path

import pytest
import torch

from tests.runs import assert_close, losses, make_base, make_detector, make_world, settings, weights
from tests.two_processes import run_two
from vlm import HandVLM, HandVLMProcessor
from vlm import settings as settings_io
from vlm.parts import PartSettings, PartsSettings, apply_parts, embedding_prefix, optimizer_groups, plan
from vlm.run_folder import RunFolder, TrainingError
from vlm.settings import SettingsError
from vlm.trainer import learning_rate_factor
from vlm.training import finetune
from vlm.training_check import check


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world") / "train")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tower without batch statistics, so that a batch is the sum of its rows."""
    return make_base(tmp_path_factory.mktemp("base"), "llava")


@pytest.fixture(scope="module")
def pose_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("pose_base"), "small")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, base: Path, world: Path) -> Path:
    """A finished run; the tests only read it, or a copy."""
    return finetune(settings(tmp_path_factory.mktemp("run") / "out", base, world))


def pose_data(world: Path, detector: Path) -> dict:
    datasets = [{"kind": "synthetic_referral", "path": str(world), "questions": 3, "pose_tokens": True}]
    return {"datasets": datasets, "detector": str(detector), "pose_dropout": 0.5}


def test_accumulated_equals_at_once_and_everything_trains(run: Path, base: Path, world: Path, tmp_path: Path) -> None:
    other = finetune(settings(tmp_path / "out", base, world, batch_size=1, accumulate=2))
    assert_close(run, other, atol=2e-5)
    assert losses(other) == pytest.approx(losses(run), abs=2e-5)
    before = weights(base)
    unused = [name for name, value in weights(run).items() if torch.equal(value, before[name])]
    # the slots' rows of the embedding are replaced by pictures, and nothing reads CLIP's last layer or its pooled output
    assert all("vision_tower" in name for name in unused), unused
    assert losses(run)[-1] < losses(run)[0]


@pytest.mark.slow
@pytest.mark.two_process
def test_two_processes_equal_one(run: Path, base: Path, world: Path, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    settings_io.save(settings(tmp_path / "out", base, world, batch_size=1), config)
    run_two("scripts/finetune.py", config)
    assert_close(run, tmp_path / "out", atol=2e-5)
    assert losses(tmp_path / "out") == pytest.approx(losses(run), abs=2e-5)


def test_resumed_equals_uninterrupted_bit_for_bit(pose_base: Path, world: Path, detector: Path, tmp_path: Path) -> None:
    options = settings(tmp_path / "whole", pose_base, world, pose_data(world, detector), keep=5)
    whole, cut = finetune(options), tmp_path / "cut"
    shutil.copytree(whole, cut)
    for entry in cut.iterdir():  # as if the run had been killed after its first checkpoint, in the middle of a log line
        if entry.name not in ("checkpoint-2", "settings.yaml", "log.jsonl"):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    with open(cut / "log.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    options.output = str(cut)
    finetune(options, resume=True)
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    states = [torch.load(folder / "checkpoint-4" / "optimizer.pt", weights_only=True)["state"] for folder in (whole, cut)]
    assert all(torch.equal(states[0][k][name], states[1][k][name]) for k in states[0] for name in states[0][k])
    assert losses(whole) == losses(cut) and len(losses(cut)) == 4


def test_a_finished_run_is_not_trained_further_unless_steps_are_raised(run: Path, base: Path, world: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "out")
    options = settings(tmp_path / "out", base, world)
    finetune(options, resume=True)
    assert weights(run)["lm_head.weight"].equal(weights(tmp_path / "out")["lm_head.weight"])
    (tmp_path / "out" / "training.json").unlink()  # killed while finishing
    (tmp_path / "out" / "model.safetensors").unlink()
    finetune(options, resume=True)
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()
    options.steps = 6
    finetune(options, resume=True)
    assert json.loads((tmp_path / "out" / "training.json").read_text())["steps"] == 6
    assert not weights(run)["lm_head.weight"].equal(weights(tmp_path / "out")["lm_head.weight"])


def test_frozen_parts_keep_their_weights_and_their_batch_statistics(pose_base: Path, world: Path, tmp_path: Path) -> None:
    parts = {name: {"mode": "freeze"} for name in ("vision_tower", "language_model", "pose_projectors")} | {"projector": {"lr": 0.0}}
    out = finetune(settings(tmp_path / "out", pose_base, world, parts=parts, steps=2))
    before, after = weights(pose_base), weights(out)
    assert any("running_mean" in name for name in before)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"model.language_model.embed_tokens.weight", "lm_head.weight"}
    plan = {row["part"]: row for row in json.loads((out / "parts.json").read_text())}
    assert plan["vision_tower"]["trainable"] == 0 and plan["vision_tower"]["lr"] is None
    assert plan["projector"]["lr"] == 0.0 and plan["lm_head"]["trainable"] == plan["lm_head"]["parameters"]
    assert sum(row["parameters"] for row in plan.values()) == sum(p.numel() for p in HandVLM.from_pretrained(out).parameters())


def test_new_rows_alone_train(base: Path, world: Path, tmp_path: Path) -> None:
    rows = {"mode": "new_rows", "tokens": ["none", "7"]}
    parts = {name: {"mode": "freeze"} for name in ("vision_tower", "projector", "language_model", "pose_projectors", "heads")}
    processor = HandVLMProcessor.from_pretrained(base)
    expected = processor.tokenizer.convert_tokens_to_ids(["7"])
    parts |= {"embeddings": {"mode": "new_rows", "tokens": ["7"]}, "lm_head": {"mode": "new_rows", "tokens": ["7"]}}
    out = finetune(settings(tmp_path / "out", base, world, parts=parts, steps=2))
    before, after = weights(base)["lm_head.weight"], weights(out)["lm_head.weight"]
    assert (before != after).any(-1).nonzero().flatten().tolist() == expected
    plan = {row["part"]: row for row in json.loads((out / "parts.json").read_text())}
    assert plan["lm_head"]["trainable"] == plan["embeddings"]["trainable"] == before.shape[1] < plan["lm_head"]["parameters"]
    with pytest.raises(SettingsError, match="'no such token'"):
        parts["embeddings"] = rows | {"tokens": ["no such token"]}
        finetune(settings(tmp_path / "other", base, world, parts=parts))


@pytest.mark.parametrize("gpu, message", [(False, "there is no GPU"), (True, "fsdp_version: 2")])
def test_fsdp_that_would_train_otherwise_than_told_is_refused(gpu, message, tmp_path, base, world, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.delenv("FSDP_VERSION", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    options = settings(tmp_path / "out", base, world)
    options.device = "auto"
    with pytest.raises(TrainingError, match=message):
        finetune(options)


def test_what_zero3_leaves_of_a_parameter_is_treated_as_the_whole(base: Path) -> None:
    """ZeRO-3 puts an empty vector in a matrix's place: it decays still, and the plan counts it."""
    model, processor = HandVLM.from_pretrained(base), HandVLMProcessor.from_pretrained(base)
    parts = PartsSettings(vision_tower=PartSettings("freeze"), embeddings=PartSettings("new_rows"))
    apply_parts(model, parts, processor)

    def found() -> tuple[list, list]:
        names, prefix = {parameter: name for name, parameter in model.named_parameters()}, embedding_prefix(model)
        groups = optimizer_groups(model, parts, prefix, lr=1e-3, weight_decay=0.1)
        return [group | {"params": [names[p] for p in group["params"]]} for group in groups], plan(model, parts, prefix, 1e-3, processor)

    whole = found()
    assert {name for group in whole[0] if group["weight_decay"] for name in group["params"]} >= {"lm_head.weight"}
    for parameter in model.parameters():
        parameter.ds_shape, parameter.data = parameter.shape, torch.empty(0)
    assert found() == whole


def test_the_folder_is_a_model_and_says_how_it_was_made(run: Path) -> None:
    model, processor = HandVLM.from_pretrained(run), HandVLMProcessor.from_pretrained(run)
    assert processor.image_token_id == model.config.image_token_id
    saved = settings_io.load(type(settings(run, run, run)), run / "settings.yaml")
    assert saved.optimizer.lr == 1e-2 and saved.output == str(run)
    names = {p.name for p in run.iterdir()} | {p.name for p in (run / "checkpoint-4").iterdir()}
    assert not names & {"training_args.bin", ".saving", ".lock"}


def test_what_is_there_is_not_overwritten(run: Path, base: Path, world: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "out")
    with pytest.raises(TrainingError, match="holds a finished run.*--resume.*--overwrite"):
        finetune(settings(tmp_path / "out", base, world))
    with pytest.raises(TrainingError, match=r"other settings \(optimizer.lr, seed\)"):
        finetune(settings(tmp_path / "out", base, world, seed=1, optimizer={"lr": 1.0}), resume=True)
    with pytest.raises(TrainingError, match="2 pictures a step.*is 3; make it 2"):
        finetune(settings(tmp_path / "out", base, world, batch_size=3, steps=8), resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(TrainingError, match="thesis.txt.*not a training run"):
        finetune(settings(tmp_path / "mine", base, world), overwrite=True)
    with pytest.raises(TrainingError, match="no run to resume"):
        finetune(settings(tmp_path / "none", base, world), resume=True)
    assert (run / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()
    other = finetune(settings(tmp_path / "out", base, world, steps=2), overwrite=True)
    assert [p.name for p in RunFolder(other).checkpoints] == ["checkpoint-2"] and len(losses(other)) == 2


def test_two_runs_do_not_write_one_folder(base: Path, world: Path, tmp_path: Path) -> None:
    holder = RunFolder(tmp_path / "out")
    holder.lock()
    with pytest.raises(TrainingError, match="another run is writing here"):
        finetune(settings(tmp_path / "out", base, world))
    holder.unlock()


def test_a_full_disk_loses_nothing(run: Path, base: Path, world: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "out")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # a write beyond this fails as on a full disk
    try:
        with pytest.raises(TrainingError, match="cannot save checkpoint-6.*last checkpoint is .*checkpoint-4.*--resume"):
            finetune(settings(tmp_path / "out", base, world, steps=6), resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = {p.name for p in (tmp_path / "out").iterdir()}
    assert left == {p.name for p in run.iterdir()} - {"training.json"}
    finetune(settings(tmp_path / "out", base, world, steps=6), resume=True)
    assert len(losses(tmp_path / "out")) == 6


def test_a_loss_that_is_not_finite_stops_the_run(base: Path, world: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the loss is nan at step .* lower optimizer.lr"):
        finetune(settings(tmp_path / "out", base, world, optimizer={"lr": 1e30, "clip": 0.0}))
    assert not RunFolder(tmp_path / "out").checkpoints


def test_a_run_can_build_its_model_and_validate(base: Path, world: Path, tmp_path: Path) -> None:
    from tests.tiny import KINDS, LLAMA

    options = settings(
        tmp_path / "out",
        base,
        world,
        steps=2,
        validation={"datasets": [{"kind": "synthetic_referral", "path": str(world), "limit": 3}]},
        validation_rows=3,
        validate_every=2,
        tensorboard=True,
    )
    mapping = settings_io.to_mapping(options) | {"model": None, "build": {"language_model": LLAMA, "vocab_size": 1400, **KINDS["small"]}}
    out = finetune(settings_io.from_mapping(type(options), mapping))
    HandVLM.from_pretrained(out / "start"), HandVLM.from_pretrained(out)
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "eval_loss" in entry] == [2]
    assert list((out / "tensorboard").glob("events.*"))


def test_check_shows_masks_and_budget_and_writes_nothing(base: Path, world: Path, tmp_path: Path) -> None:
    before = sorted(world.rglob("*"))
    report = "\n".join(check(settings(tmp_path / "out", base, world), processes=2))
    assert "4 steps of 4 pictures (2 × 1 × 2 processes)" in report and "16 rows" in report
    assert "<image>×16" in report and "【" in report and "<|end|>】" in report
    assert "vision_tower    train" in report
    assert not (tmp_path / "out").exists() and sorted(world.rglob("*")) == before


def test_the_command_checks_trains_and_refuses_in_one_line(base: Path, world: Path, tmp_path: Path, root: Path, capsys) -> None:
    from vlm.commands.console import run

    main = runpy.run_path(str(root / "scripts" / "finetune.py"))["main"]
    settings_io.save(settings(tmp_path / "out", base, world), tmp_path / "run.yaml")
    command = [str(tmp_path / "run.yaml"), "--set", "steps=1"]
    assert run(main, [*command, "--check"]) == 0 and "1 steps of 2 pictures" in capsys.readouterr().out
    assert run(main, command) == 0 and json.loads((tmp_path / "out" / "training.json").read_text())["steps"] == 1
    for bad, message in (
        (command, "holds a finished run"),
        ([*command, "--set", "optimizer.lrr=1"], "unknown key 'lrr'; did you mean 'lr'?"),
        ([str(tmp_path / "runn.yaml")], "runn.yaml: no such file; beside it there is run.yaml"),
        ([*command, "--overwrite", "--merge"], "there is no adapter to merge"),
        ([*command, "--set", f"deepspeed={root / 'scripts/configs/zero2.json'}"], "torchrun --nproc-per-node 1"),
    ):
        capsys.readouterr()
        assert run(main, bad) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("error: ") and message in last


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 3}, "unknown key 'stepz'; did you mean 'steps'"),
        ({"epochs": 1.0}, "either 'steps' or 'epochs'"),
        ({"model": "no/such/folder"}, "model: no/such/folder: no such folder"),
        ({"deepspeed": "zero9.json"}, "deepspeed: zero9.json: no such file"),
        ({"parts": {"visiontower": {}}}, "unknown key 'visiontower'; did you mean 'vision_tower'"),
        ({"parts": {"projector": {"mode": "lora"}}}, "projector cannot be 'lora'"),
        ({"data": {"datasets": []}}, "datasets is empty"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"workers": -1}, "workers is -1"),
        ({"extend": {"template": "vicuna"}}, "extend: template is 'vicuna', expected one of chat"),
        ({"data": {"datasets": [{"kind": "lita", "path": "a.json", "questions": 0}]}}, "questions is 0, expected at least 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(base: Path, world: Path, tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        settings(tmp_path, base, world, **change)


def test_a_published_checkpoint_is_not_taken_for_a_model(base: Path, world: Path, tmp_path: Path) -> None:
    """It would be made as a HandVLM of default size, with random weights."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "handsonvlm", "hidden_size": 4096}))
    with pytest.raises(SettingsError, match=r"holds a 'handsonvlm', expected 'handvlm'; scripts/convert.py"):
        settings(tmp_path / "out", base, world, model=str(tmp_path))


def test_an_option_that_a_data_set_has_not_is_refused(world: Path) -> None:
    from data.groups import DatasetError, open_groups

    with pytest.raises(DatasetError, match="options: unknown key 'tolerence'; did you mean 'tolerance'"):
        open_groups("clip_trajectory", world, options={"tolerence": 1.0})
    with pytest.raises(DatasetError, match="options: unknown key 'reapeat'; did you mean 'repeat'"):
        open_groups("synthetic_referral", world, options={"reapeat": {}})


def test_missing_pictures_are_found_before_any_step(base: Path, world: Path, tmp_path: Path) -> None:
    from data.groups import DatasetError

    shutil.copytree(world, tmp_path / "world")
    os.remove(next((tmp_path / "world" / "images").rglob("*3.jpg")))
    with pytest.raises(DatasetError, match="1 of 12 pictures are missing.*000003.jpg"):
        list(check(settings(tmp_path / "out", base, tmp_path / "world")))
    with pytest.raises(DatasetError, match="no such file or folder"):
        list(check(settings(tmp_path / "out", base, tmp_path / "nowhere")))


def test_the_learning_rate_rises_and_falls_to_its_floor() -> None:
    rates = [learning_rate_factor(step, 110, "linear", 10, 0.05) for step in range(111)]
    assert rates[0] == pytest.approx(1 / 11) and max(rates) == rates[10] == 1.0 and rates[110] == pytest.approx(0.05)
    assert rates[60] == pytest.approx(0.525) == learning_rate_factor(60, 110, "cosine", 10, 0.05)
    assert learning_rate_factor(100, 110, "constant", 10, 0.05) == 1.0
