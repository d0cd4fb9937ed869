"""VLM4HOI's recipes train: the small one as it stands, both under ZeRO in two processes as in one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.synthetic.hoi_qa_writer import write_hoi_qa
from tests.runs import losses
from tests.tiny import tiny
from tests.two_processes import run_two
from vlm import HandVLM, HandVLMProcessor
from vlm.settings import load
from vlm.training import finetune
from vlm.training_settings import FinetuneSettings
from vlm.vision import fourier_code, sine_grid

SHORT = ["steps=4", "save_every=2", "log_every=1", "workers=0", "tensorboard=false", "tokenizer_rows=8", "accumulate=1"]
EXACT = ["dtype=float32", "autocast=none", "lora.dropout=0", "optimizer.lr=1e-2", "optimizer.warmup_steps=1", "optimizer.epsilon=1e-3"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hoi-qa")
    assert list(write_hoi_qa(folder, "train", 0, 6))[-1] == 6
    return folder / "hoiqa_dataset"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the published make, for the recipe that starts from one."""
    folder = tmp_path_factory.mktemp("base")
    model, processor = tiny("minigpt", template="vlm4hoi", llama={"max_position_embeddings": 4096})
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def changes(recipe: str, world: Path, base: Path, out: Path, *more: str) -> list[str]:
    """Overrides that make a recipe four steps on a few frames."""
    data = [f"data.datasets.{n}.path={world / name}" for n, name in enumerate(("epic-kitchens-train.json", "ego4d-train.json"))]
    start = [f"model={base}"] if recipe == "vlm4hoi_7b" else ["build.vision_weights=null"]
    return [f"output={out}", *data, *start, *SHORT, *more]


def test_the_small_recipe_trains(world: Path, base: Path, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)  # the tower's weights are named from there
    file = root / "scripts/configs/vlm4hoi_small.yaml"
    options = [change for change in changes("vlm4hoi_small", world, base, tmp_path / "out", "steps=2") if "vision_weights" not in change]
    settings = load(FinetuneSettings, file, options)
    out = finetune(settings)
    model, processor = HandVLM.from_pretrained(out), HandVLMProcessor.from_pretrained(out)
    assert len(losses(out)) == 2 and processor.image_seq_length == 36
    assert (processor.template, processor.dialect, processor.view) == ("vlm4hoi", "minigpt", "squash")
    assert (model.config.token_reducer, model.config.projector_type) == ("merge-4", "linear")
    plan = {row["part"]: row for row in json.loads((out / "parts.json").read_text())}
    assert plan["vision_tower"]["trainable"] == 0 < plan["language_model"]["trainable"] == plan["language_model"]["parameters"]


def test_places_and_numbers_of_merged_patches_share_one_code() -> None:
    """A token's code is that of its four patches' middle, and the row of "50" that of half a side."""
    grid = sine_grid(36, 64, merged=4).reshape(12, 3, 64)
    middle = torch.tensor([(4 * 2 + 2) / 12, (5 + 0.5) / 12])  # the third token of the sixth row
    torch.testing.assert_close(grid[5, 2], fourier_code(middle.unsqueeze(0), 64)[0])
    assert torch.equal(sine_grid(36, 64), sine_grid(36, 64, merged=1)) and not torch.equal(grid.reshape(36, 64), sine_grid(36, 64))
    with pytest.raises(ValueError, match="rows that 4 divides, got 25 tokens"):
        sine_grid(25, 64, merged=4)
    model, processor = tiny("small", dialect="minigpt", number_sigma=0.0)
    rows = model.get_input_embeddings().weight[processor.tokenizer.convert_tokens_to_ids(["50", "0", "100", "101"])]
    code = 0.1 * fourier_code(torch.tensor([[0.5], [0.0], [1.0]]), rows.shape[1])
    torch.testing.assert_close(rows[:3], code)
    assert not torch.allclose(rows[3], code[2], atol=1e-2)


@pytest.mark.slow
@pytest.mark.two_process
@pytest.mark.timeout(600)
@pytest.mark.parametrize("recipe, stage", [("vlm4hoi_7b", 2), ("vlm4hoi_7b", 3)])
def test_two_processes_under_zero_equal_one(recipe, stage, world: Path, base: Path, tmp_path: Path, root: Path) -> None:
    """Losses and weights; and a run that stopped after two of the four steps goes on as if it had not, bit for bit."""
    config = root / "scripts/configs" / f"{recipe}.yaml"
    alone = changes(recipe, world, base, tmp_path / "one", *EXACT, "batch_size=2", "deepspeed=null")
    plain = finetune(load(FinetuneSettings, config, alone))
    sharded = [*EXACT, "batch_size=1", f"deepspeed={root}/scripts/configs/zero{stage}.json"]
    words = lambda out: [word for change in changes(recipe, world, base, out, *sharded) for word in ("--set", change)]  # noqa: E731
    run_two("tests/vlm/zero_ranks.py", config, *words(tmp_path / "two"))
    assert losses(tmp_path / "two") == pytest.approx(losses(plain), rel=1e-5)
    one, two = (_tensors(folder) for folder in (plain, tmp_path / "two"))
    assert one.keys() == two.keys() and all(value.numel() for value in two.values())
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    HandVLM.from_pretrained(tmp_path / "two")
    resumed = shutil.copytree(tmp_path / "two", tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoint-4")
    (resumed / "training.json").unlink()
    run_two("tests/vlm/zero_ranks.py", config, "--resume", *words(resumed))
    assert losses(resumed) == losses(tmp_path / "two")
    again = _tensors(resumed)
    assert again.keys() == two.keys() and all(torch.equal(again[name], value) for name, value in two.items())


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a run saved: an adapter's, or the whole model's."""
    adapter = folder / "adapter_model.safetensors"
    return load_file(adapter if adapter.is_file() else folder / "model.safetensors")
