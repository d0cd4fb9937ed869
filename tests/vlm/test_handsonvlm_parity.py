"""A converted HandsOnVLM against a plain computation of what was published: transformers' LLaMA and CLIP, and the rest written out."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

from data.sample import assistant, user
from tests.vlm.vlm4hoi_tiny import FIXTURES, fill
from vlm import HandVLM, HandVLMProcessor
from vlm.answers import Paths, TrajectoryAnswer, parse
from vlm.checkpoints.handsonvlm import (
    add_tokens,
    convert,
    expected_keys,
    load_tokenizer,
    make_processor,
    tower_tensors,
)
from vlm.checkpoints.reading import CheckpointError
from vlm.compat import handsonvlm_reported

TOKENIZER = FIXTURES / "handsonvlm/toy_tokenizer/tokenizer.model"
WORDS = len(load_tokenizer(TOKENIZER))
WIDTH, HALF, STEPS, LATENT, TILED = 64, 32, 4, 256, 100
TEXT = {
    "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": WORDS + 101,
    "rms_norm_eps": 1e-6, "max_position_embeddings": 2048,
}  # fmt: skip
PUBLISHED = TEXT | {"hand_token_id": WORDS + 100, "mm_hidden_size": 16, "video_compress_mode": "temporal_spatial_pool", "hoi_lambda": 0.7}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
SIZE = (456, 256)
RNG = np.random.default_rng(0)
FRAMES = [RNG.integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8) for _ in range(10)]
TAILS = (RNG.uniform(0.1, 0.9, (2, STEPS, 2)) * SIZE, RNG.uniform(-0.2, 1.2, (2, STEPS, 2)) * SIZE)


def weights() -> dict[str, Tensor]:
    return {name: fill.value(name, shape, scale=0.1) for name, shape in expected_keys(PUBLISHED, VISION).items()}


def converted(compat: str = "handsonvlm") -> tuple[HandVLM, HandVLMProcessor]:
    model = convert(weights(), PUBLISHED, VISION, TOKENIZER, compat=compat)
    return model, make_processor(TOKENIZER, model.config)


def clip_of(frames: list[np.ndarray], question: str, points: np.ndarray | None = None, valid: np.ndarray | None = None) -> list:
    asked = [user({"type": "video", "video": frames}, question)]
    if points is None:
        return asked
    path = {"type": "trajectory", "points": points, "valid": valid}
    return [*asked, assistant("The hand trajectory for this action is as follows: ", path, ".")]


def mixed() -> list[list]:
    """A whole path, one of a left hand alone that leaves the frame, and an answer in words about a picture."""
    left = np.repeat([[True], [False]], STEPS, 1)
    picture = [user({"type": "image", "image": FRAMES[3]}, "What is it?"), assistant("A cup.")]
    return [clip_of(FRAMES, "Where?", TAILS[0]), clip_of(FRAMES[::-1], "And to cut it?", TAILS[1], left), picture]


class Reference:
    """The published computation. Hands are ordered right, left in it."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state
        parts = ("model.layers", "model.norm", "model.embed", "lm_head")
        language = {name: value for name, value in state.items() if name.startswith(parts) and "inv_freq" not in name}
        self.llama = LlamaForCausalLM(LlamaConfig(**TEXT)).eval()
        self.llama.load_state_dict(language)
        self.clip = CLIPVisionModel(CLIPVisionConfig(**VISION)).eval()
        names = {name.removeprefix("vision_model."): name for name in self.clip.state_dict()}
        prefix = "model.vision_tower.vision_tower.vision_model."
        self.clip.load_state_dict({names[n.removeprefix(prefix)]: v for n, v in state.items() if n.startswith(prefix)})

    def linear(self, name: str, x: Tensor) -> Tensor:
        return functional.linear(x, self.state[f"{name}.weight"], self.state[f"{name}.bias"])

    def visual(self, frames: Tensor) -> Tensor:
        """All 100 frames (100, 3, S, S) → their tokens."""
        features = self.clip(frames, output_hidden_states=True).hidden_states[-2][:, 1:]
        projected = self.linear("model.mm_projector", features)
        slow = projected[[0, 33, 66, 99]].reshape(4, 4, 4, WIDTH).permute(0, 3, 1, 2)
        return torch.cat([projected.mean(1), functional.avg_pool2d(slow, 2).permute(0, 2, 3, 1).reshape(-1, WIDTH)])

    def code(self, points: Tensor) -> Tensor:
        """(2, 2) of one step, right, left → (D,)."""
        channels = WIDTH // 4
        frequency = torch.tensor([10000 ** (-2 * k / channels) for k in range(channels // 2)])
        halves = [torch.cat([(p[0] * frequency).sin(), (p[1] * frequency).cos()]).repeat(2) for p in points]
        return torch.stack(halves, -1).flatten()

    def states(self, ids: list[int], frames: Tensor, points: list[Tensor], slot: int) -> Tensor:
        """Final states of one row, (L, D): everything from the start, as for every token of an answer."""
        visual, given, rows = iter(self.visual(frames)), iter(points), []
        for number in ids:
            row = next(visual) if number == slot else self.state["model.embed_tokens.weight"][number]
            rows.append(row + self.code(next(given)) if number == PUBLISHED["hand_token_id"] else row)
        return self.llama.model(inputs_embeds=torch.stack(rows)[None]).last_hidden_state[0]

    def logits(self, states: Tensor) -> Tensor:
        return functional.linear(states, self.state["lm_head.weight"])

    def cvae(self, part: str, x: Tensor) -> Tensor:
        return self.linear(f"hand_traj_decoder.hand_traj_decoder.cvae.{part}", x)

    def decode(self, z: Tensor, condition: Tensor) -> Tensor:
        return self.cvae("dec_MLP.2", functional.elu(self.cvae("dec_MLP.0", torch.cat([z, condition], -1))))

    def path_loss(self, states: Tensor, target: Tensor, valid: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        """states (B, 4, D), target (B, 2, 4, 2), valid (B, 2), eps (B, 2, 4, 256) → L_traj, L_kl."""
        condition = states.reshape(len(states), STEPS, HALF, 2).permute(0, 3, 1, 2)
        hidden = functional.elu(self.cvae("enc_MLP.0", torch.cat([target, condition], -1)))
        mu, logvar = self.cvae("linear_means", hidden), self.cvae("linear_log_var", hidden)
        found = self.decode(mu + eps * (logvar / 2).exp(), condition)
        kl = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum()
        return ((found - target) ** 2 * valid[..., None, None]).sum(), 1e-3 * kl * valid.sum()


def rows_of(batch) -> list[tuple[list[int], list[int]]]:
    masks = batch["attention_mask"].bool()
    return [(ids[mask].tolist(), labels[mask].tolist()) for ids, labels, mask in zip(batch["input_ids"], batch["labels"], masks)]


def right_left(points: np.ndarray) -> Tensor:
    return torch.from_numpy((points / SIZE)[::-1].astype(np.float32).copy())


@pytest.mark.parametrize("compat", ["handsonvlm", "handsonvlm_fp32"])
def test_loss_of_a_mixed_batch_is_the_published_one(compat: str):
    model, processor = converted(compat)
    batch, reference = processor(mixed(), for_training=True), Reference(weights())
    slots = (batch["input_ids"] == model.config.image_token_id).sum(1)
    assert slots.tolist() == [TILED + 4 * 4] * 3
    eps = torch.randn(3, 2, STEPS, LATENT, generator=torch.Generator().manual_seed(0))
    absent = np.repeat([[[0.75, 1.5]]], STEPS, 1)[0].astype(np.float32)
    second = right_left(TAILS[1])
    second[0] = torch.from_numpy(absent)  # the right hand has no label
    target = torch.stack([right_left(TAILS[0]), second, torch.zeros(2, STEPS, 2)])
    valid = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])

    pixels = batch["pixel_values"]
    frames = [pixels[:10].repeat(10, 1, 1, 1), pixels[:10].flip(0).repeat(10, 1, 1, 1), pixels[3:4].repeat(TILED, 1, 1, 1)]
    token, blocks, logits, truth = PUBLISHED["hand_token_id"], [], [], []
    for row, (ids, labels) in enumerate(rows_of(batch)):
        states = reference.states(ids, frames[row], list(target[row].transpose(0, 1)), model.config.image_token_id)
        places = [place for place, label in enumerate(labels) if label == token]
        blocks.append(torch.stack([states[place - 1] for place in places]) if places else torch.zeros(STEPS, WIDTH))
        learnt = [place for place, label in enumerate(labels) if label != -100]
        logits += [reference.logits(states[place - 1]) for place in learnt]
        truth += [labels[place] for place in learnt]
    states = torch.stack(blocks)
    traj, kl = reference.path_loss(states.bfloat16().float() if compat == "handsonvlm" else states, target, valid, eps)
    tokens = functional.cross_entropy(torch.stack(logits), torch.tensor(truth))

    with torch.no_grad():
        output = model(**batch, noise=eps.flip(1))
    torch.testing.assert_close(output.losses["tokens"], tokens, atol=2e-6, rtol=2e-6)
    rounding = 2e-3 if compat == "handsonvlm" else 5e-6  # a state on the edge of two bfloat16 numbers may fall to either side
    torch.testing.assert_close(output.losses["path_traj"], 0.7 * traj, atol=2e-6, rtol=rounding)
    torch.testing.assert_close(output.losses["path_kl"], 0.7 * kl, atol=2e-6, rtol=rounding)
    torch.testing.assert_close(output.loss, tokens + 0.7 * (traj + kl), atol=2e-6, rtol=rounding)
    assert output.trajectories.shape == (2, 2, STEPS, 2)


def test_a_batch_of_words_costs_their_cross_entropy_alone():
    model, processor = converted()
    with torch.no_grad():
        output = model(**processor([mixed()[2]] * 2, for_training=True))
    assert float(output.loss) == float(output.losses["tokens"]) and float(output.losses["path_total"]) == 0.0


def test_published_sums_are_averaged_over_the_micro_batches_of_a_step():
    model, processor = converted()
    batch, noise = processor(mixed(), for_training=True), torch.zeros(3, 2, STEPS, LATENT)
    with torch.no_grad():
        alone, quarter = (model(**batch, noise=noise, num_hand_steps=99, num_micro_batches=count) for count in (1, 4))
    torch.testing.assert_close(quarter.losses["path_total"] * 4, alone.losses["path_total"])


class Script:
    """Makes the model write these ids."""

    def __init__(self, ids: list[int], prompt: int) -> None:
        self.ids, self.prompt = ids, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        kept = torch.full_like(scores, -torch.inf)
        kept[:, self.ids[input_ids.shape[1] - self.prompt]] = 0
        return kept


@pytest.mark.parametrize("written", [4, 6])
def test_scripted_answers_with_fixed_noise_are_those_of_recomputing_everything_for_each_token(written: int):
    model, processor = converted()
    batch, reference = processor(clip_of(FRAMES, "Where will it go?")), Reference(weights())
    token, prompt = PUBLISHED["hand_token_id"], batch["input_ids"][0].tolist()
    script = [20, *[token] * 3, 21, *[token] * (written - 3), 2]
    normal = torch.randn(1, 1, 2, written, LATENT, generator=torch.Generator().manual_seed(1))
    output = model.generate(**batch, noise=normal, max_new_tokens=len(script), logits_processor=[Script(script, len(prompt))])
    assert output.sequences[0].tolist() == prompt + script

    frames, ids, points = batch["pixel_values"].repeat(10, 1, 1, 1), list(prompt), []
    with torch.no_grad():
        for number in script:
            if number == token:
                state = reference.states(ids, frames, points, model.config.image_token_id)[-1]
                z = 2 * normal[0, 0, :, len(points)].flip(0)
                points.append(reference.decode(z, state.reshape(HALF, 2).T))
            ids.append(number)
    truth = torch.stack(points, 1).flip(0)  # left, right
    torch.testing.assert_close(output.trajectories[0, 0], truth, atol=1e-5, rtol=1e-5)
    reported = handsonvlm_reported(output.trajectories[0, 0].numpy())
    np.testing.assert_array_equal(reported, output.trajectories[0, 0, :, -4:].numpy())

    text = "<hand_traj>" * 4
    paths = Paths.of(output, steps=None)
    (answer,) = parse(text, batch["views"][0][0], "norm1000", paths)
    assert isinstance(answer, TrajectoryAnswer)
    np.testing.assert_allclose(answer.points, truth[:, :4].numpy() * SIZE, rtol=1e-4)  # of the whole frame, not of what the tower saw


def test_valid_tells_which_steps_were_written():
    model, processor = converted()
    batch, token = processor([clip_of(FRAMES, "Where?")]), PUBLISHED["hand_token_id"]
    for script, written in (([token, 20, token, token, 2], 3), ([20, 2], 0)):
        options = {"max_new_tokens": len(script), "logits_processor": [Script(script, batch["input_ids"].shape[1])]}
        output = model.generate(**batch, num_trajectories=2, **options)
        assert output.valid.tolist() == [[[[step < written for step in range(STEPS)]] * 2] * 2]


def test_reported_points_are_padded_with_the_corner_and_cut_to_the_last():
    points = RNG.uniform(size=(2, 6, 2))
    np.testing.assert_array_equal(handsonvlm_reported(points), points[:, 2:])
    few = np.concatenate([points[:, :1], np.full((2, 3, 2), np.nan)], 1)
    np.testing.assert_array_equal(handsonvlm_reported(few), np.concatenate([points[:, :1], np.zeros((2, 3, 2))], 1))
    assert not handsonvlm_reported(None).any()


def test_saved_is_reloaded_and_a_picture_is_a_clip_of_one_frame(tmp_path):
    model, processor = converted()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor_again = HandVLM.from_pretrained(tmp_path).eval(), HandVLMProcessor.from_pretrained(tmp_path)
    picture = [user({"type": "image", "image": FRAMES[0]}, "What?")]
    batch = processor_again(picture)
    assert torch.equal(again(**batch).logits, model(**processor(picture)).logits)
    assert torch.equal(again(**processor_again(clip_of(FRAMES[:1] * 3, "What?"))).logits, again(**batch).logits)
    assert batch["media_frames"].tolist() == [1] and again.config.image_token_id == TEXT["vocab_size"]
    assert again.get_input_embeddings().weight.shape[0] == again.lm_head.weight.shape[0] == TEXT["vocab_size"]


def test_tokenizers_plain_whole_and_strange():
    model = convert(weights(), PUBLISHED, VISION, add_tokens(load_tokenizer(TOKENIZER)), compat=True)
    assert model.config.trajectory["compat"] == "handsonvlm"
    assert model.config.image_token_id == convert(weights(), PUBLISHED, VISION, TOKENIZER).config.image_token_id == TEXT["vocab_size"]
    shifted = load_tokenizer(TOKENIZER)
    shifted.add_tokens(["<another>"])
    with pytest.raises(CheckpointError, match="wrong ids"):
        convert(weights(), PUBLISHED, VISION, shifted)
    with pytest.raises(ValueError, match="video_compress_mode is 'temporal'"):
        convert(weights(), PUBLISHED | {"video_compress_mode": "temporal"}, VISION)


def test_a_tower_that_is_only_named_is_added(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    state = weights()
    tower = CLIPVisionModel(CLIPVisionConfig(**VISION))
    named = {name: value for name, value in state.items() if "vision_tower" not in name}
    with pytest.raises(CheckpointError, match="missing: model.vision_tower"):
        convert(named, PUBLISHED, VISION)
    model = convert(named | tower_tensors(tower), PUBLISHED, VISION)
    assert all(torch.equal(a, b) for a, b in zip(model.model.vision_tower.state_dict().values(), tower.state_dict().values(), strict=True))
    other = CLIPVisionModel(CLIPVisionConfig(**(VISION | {"patch_size": 8})))
    with pytest.raises(CheckpointError, match="mis-shaped: model.vision_tower"):
        convert(named | tower_tensors(other), PUBLISHED, VISION)
    assert "left out" in caplog.text


def published_folder(folder: Path, state: dict[str, Tensor], config: dict = PUBLISHED | {"model_type": "handsonvlm"}) -> Path:
    """A checkpoint's folder as it was released: config, tokenizer, two shards with their index."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shutil.copy(TOKENIZER, folder / "tokenizer.model")
    names = sorted(state)
    places = {name: f"pytorch_model-0000{1 + number % 2}-of-00002.bin" for number, name in enumerate(names)}
    for shard in set(places.values()):
        torch.save({name: state[name] for name in names if places[name] == shard}, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_convert_on_the_command_line(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    from scripts import convert as script
    from vlm.commands.console import CommandError

    tower = CLIPVisionModel(CLIPVisionConfig(**VISION))
    tower.save_pretrained(tmp_path / "clip")
    named = {name: value for name, value in weights().items() if "vision_tower" not in name}
    folder, out = published_folder(tmp_path / "published", named), tmp_path / "out"
    command = ["handsonvlm", str(folder), "--vision", str(tmp_path / "clip"), "--out", str(out), "--template", "llava_v0"]
    assert script.main(command) == 0
    assert "left out, because nothing in the published model reads them: bbox_to_feature, downproject" in caplog.text
    model, processor = HandVLM.from_pretrained(out).eval(), HandVLMProcessor.from_pretrained(out)
    same = convert(named | tower_tensors(tower), PUBLISHED, VISION, TOKENIZER)
    batch = processor(clip_of(FRAMES, "Where?"))
    assert torch.equal(model(**batch).logits, same(**batch).logits) and processor.template == "llava_v0"
    with pytest.raises(CommandError, match="exists already"):
        script.main(command)
    half = named | dict(list(tower_tensors(tower).items())[:7])
    damaged = published_folder(tmp_path / "damaged", half)
    with pytest.raises(CheckpointError, match="missing: model.vision_tower"):  # and not mended from --vision
        script.main(["handsonvlm", str(damaged), "--vision", str(tmp_path / "clip"), "--out", str(tmp_path / "other")])
    for name, fits in (("clip-patch4-16", True), ("clip-patch4", False), ("clip-patch2-16", False)):  # the name tells patch and picture
        (folder / "config.json").write_text(json.dumps(PUBLISHED | {"mm_vision_tower": f"openai/{name}"}))
        with nullcontext() if fits else pytest.raises(CommandError, match=f"patches of 4 in pictures of 16 pixels, .* openai/{name}, "):
            assert script.main([*command[:4], "--out", str(tmp_path / name)]) == 0
    for change, said in (({"video_compress_mode": "temporal"}, "no published model"), ({"traj_decoder": "GAN"}, "one of CVAE, MLP")):
        (folder / "config.json").write_text(json.dumps(PUBLISHED | change))
        with pytest.raises(CheckpointError, match=said):  # a line for the person at the keyboard, not a traceback
            script.main([*command[:-4], "--out", str(tmp_path / "other")])
    (folder / "config.json").write_text(json.dumps(PUBLISHED))
    with pytest.raises(CommandError, match="names none; give --vision"):
        script.main(["handsonvlm", str(folder), "--out", str(tmp_path / "other")])
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_projector_is_converted_and_training_starts_from_it(tmp_path: Path):
    from scripts import convert as script
    from vlm.build import BuildSettings, build

    layer = {"model.mm_projector.weight": torch.randn(48, 16), "model.mm_projector.bias": torch.randn(48)}
    torch.save(layer, tmp_path / "mm_projector.bin")
    out = tmp_path / "projector.safetensors"
    assert script.main(["llava-projector", str(tmp_path / "mm_projector.bin"), "--width", "48", "--out", str(out)]) == 0
    text = {"model_type": "llama", "hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    tower = {"model_type": "clip_vision_model"} | VISION
    settings = BuildSettings(
        language_model=text, vision_tower=tower, image_size=16, projector_type="linear", projector_weights=str(out), time_tokens=100,
        trajectory={"head": "cvae", "steps": 4, "rate": 4.0}, clip={"total": 100, "frames": 100, "pictures": True},
    )  # fmt: skip
    model, processor = build(settings, ["Where will my hand go?"] * 4)
    assert torch.equal(model.model.multi_modal_projector.linear_1.weight, layer["model.mm_projector.weight"])
    times = processor.tokenizer.convert_tokens_to_ids([f"<t{k}>" for k in range(100)])
    assert times == list(range(times[0], times[0] + 100)) and processor.tokenizer.unk_token_id not in times
    with pytest.raises(CheckpointError, match="projector"):
        build(BuildSettings(**{**vars(settings), "projector_type": "mlp"}), ["Where will my hand go?"] * 4)
