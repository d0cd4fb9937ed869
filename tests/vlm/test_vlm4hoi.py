"""VLM4HOI's checkpoint as a HandVLM: the recorded tower, and the whole chain against its parts put together by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from transformers import Blip2VisionConfig, Blip2VisionModel, LlamaForCausalLM

from data.sample import assistant, user
from tests.vlm import vlm4hoi_tiny as tiny
from vlm import HandVLM, HandVLMProcessor
from vlm.checkpoints import eva, vlm4hoi
from vlm.checkpoints.reading import CheckpointError, read_checkpoint
from vlm.settings import load
from vlm.training_settings import FinetuneSettings
from vlm.vision import merge_patches, patch_features, resize_positions

CONFIG = {"lora_alpha": tiny.ALPHA, "num_attention_heads": 4, "pad_token_id": 3}
QUESTIONS = [("[refer] where is the left hand of the person", "{<12><40><55><98>}"), ("[vqa] what is in the right hand?", "a knife")]
SP = SentencePieceProcessor(model_file=str(tiny.TOKENIZER))


def published(**changes) -> dict:
    return {"model": tiny.trained() | changes, "epoch": 55, "config": {"run": {"seed": 42}}}


def llama() -> LlamaForCausalLM:
    model = LlamaForCausalLM(tiny.LLAMA)
    model.load_state_dict(tiny.language_model())
    return model.eval()


def eva_tower() -> dict:
    return {name.removeprefix(eva.PREFIX): value for name, value in tiny.tower().items() if name.startswith(eva.PREFIX)}


@pytest.fixture(scope="module")
def model() -> HandVLM:
    return vlm4hoi.convert(published(), llama(), eva_tower(), CONFIG)


def processor(model: HandVLM, template: str = "vlm4hoi") -> HandVLMProcessor:
    return vlm4hoi.make_processor(tiny.TOKENIZER, model.config, template)


def picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (90, 120, 3), dtype=np.uint8)


# The tower


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_tower_is_the_recorded_one(attention):
    recorded = tiny.recorded_eva()
    tensors = tiny.tower() | {f"llama_proj.{k}": v for k, v in (("weight", torch.zeros(48, 256)), ("bias", torch.zeros(48)))}
    model = vlm4hoi.convert(tensors, llama(), None, CONFIG | {"lora_targets": ()})
    tower = model.model.vision_tower
    tower.set_attn_implementation(attention)
    with torch.no_grad():
        hidden = tower(torch.from_numpy(recorded["image"]), output_hidden_states=True).hidden_states
        features = patch_features(tower, torch.from_numpy(recorded["image"]), -1, "full")
    np.testing.assert_allclose(hidden[1].numpy(), recorded["block0"], atol=1e-5)
    np.testing.assert_allclose(hidden[3].numpy(), recorded["vit_out"], atol=1e-5)
    np.testing.assert_allclose(features.numpy(), recorded["ln_out"], atol=1e-5)


def test_positions_are_resized_as_recorded():
    recorded = np.load(tiny.FIXTURES / "vlm4hoi/pos_embed_interp.npz")
    small = torch.from_numpy(recorded["pos_embed_224"])
    np.testing.assert_allclose(resize_positions(small, 32).numpy(), recorded["pos_embed_448"], atol=1e-6)
    assert resize_positions(small, 16) is small
    with pytest.raises(ValueError, match="no square grid"):
        resize_positions(small[:, :-1], 32)


def test_a_larger_picture_gets_a_resized_table(model):
    large = vlm4hoi.convert(published(), llama(), eva_tower(), CONFIG | {"image_size": 112})
    table = large.model.vision_tower.embeddings.position_embedding
    assert torch.equal(table, resize_positions(tiny.tower()["visual_encoder.pos_embed"], 8))
    assert (large.config.image_size, large.config.image_seq_length) == (112, 16)
    assert (model.config.image_size, model.config.image_seq_length) == (56, 4)


def test_the_norm_behind_the_tower_is_identity_unless_the_checkpoint_has_it(model):
    """BLIP-2's own trained norm must not be taken over."""
    blip = Blip2VisionModel(
        Blip2VisionConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=279, image_size=56)
    )
    blip.load_state_dict(model.model.vision_tower.state_dict() | {"post_layernorm.weight": torch.full((64,), 3.0)})
    assert blip.post_layernorm.eps == 1e-6
    from_blip = vlm4hoi.convert(published(), llama(), blip, CONFIG)
    own = vlm4hoi.convert(published() | {"model": tiny.trained() | tiny.tower()}, llama(), blip, CONFIG)
    for one, weight, bias in (
        (model, torch.ones(64), torch.zeros(64)),
        (from_blip, torch.ones(64), torch.zeros(64)),
        (own, tiny.tower()["ln_vision.weight"], tiny.tower()["ln_vision.bias"]),
    ):
        norm = one.model.vision_tower.post_layernorm
        assert torch.equal(norm.weight, weight) and torch.equal(norm.bias, bias) and norm.eps == 1e-5
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), from_blip.state_dict().values()))


def test_a_guessed_number_of_heads_is_told(caplog):
    """Tensors do not say how many heads a tower has, and another number gives other features without an error."""
    guessed = vlm4hoi.convert(published(), llama(), eva_tower(), CONFIG | {"num_attention_heads": None})
    assert guessed.config.vision_config.num_attention_heads == 1 and "taken for 1; give num_attention_heads (--heads)" in caplog.text
    caplog.clear()
    vlm4hoi.convert(published(), llama(), eva_tower(), CONFIG)
    assert not caplog.text


def test_published_towers_lose_their_last_block():
    tensors = {"cls_token": torch.zeros(1, 1, 4), "norm.weight": torch.ones(4)}
    tensors |= {
        f"blocks.{n}.{side}": torch.full((4,), n + 0.5 * (side > "attn.r")) for n in range(40) for side in ("attn.q_bias", "attn.v_bias")
    }
    mapped, unknown = eva.to_transformers(tensors)
    assert sorted(k for k in mapped if "layers" in k) == sorted(f"encoder.layers.{n}.self_attn.qkv.bias" for n in range(39)) and not unknown
    assert mapped["encoder.layers.7.self_attn.qkv.bias"].tolist() == [7] * 4 + [0] * 4 + [7.5] * 4


# The whole chain against its parts put together by hand


def by_hand(turns: list[list[tuple[str, str]]], pixels: torch.Tensor, model: HandVLM, training: bool = True):
    """Embeddings (list of (L, D)) and labels of conversations, from the spec: pieces tokenised apart, picture tokens between."""
    embed, merged = llama().get_input_embeddings(), merge_patches(patch_features(model.model.vision_tower, pixels, -1, "default"))
    trained = tiny.trained()
    tokens = merged @ trained["llama_proj.weight"].T + trained["llama_proj.bias"]
    rows, labels = [], []
    for image, rounds in zip(tokens, turns, strict=True):
        parts, targets = [], []
        for number, (question, answer) in enumerate(rounds):
            before = [1] + SP.encode("[INST] <Img>" if number == 0 else f"[INST] {question}  [/INST]")
            parts.append(embed(torch.tensor(before)))
            targets += [-100] * len(before)
            if number == 0:
                after = SP.encode(f"</Img> {question}  [/INST]")
                parts += [image, embed(torch.tensor(after))]
                targets += [-100] * (len(image) + len(after))
            if training:
                said = [*SP.encode(answer), 2]
                parts.append(embed(torch.tensor(said)))
                targets += said
        rows.append(torch.cat(parts))
        labels.append(targets)
    return rows, labels


def language_model_with_lora() -> LlamaForCausalLM:
    """The frozen model with alpha / rank · B · A beside its queries and values."""
    model, trained = llama(), tiny.trained()
    for number, layer in enumerate(model.model.layers):
        for side in "qv":
            name = f"llama_model.base_model.model.model.layers.{number}.self_attn.{side}_proj.lora_"
            a, b = trained[f"{name}A.weight"], trained[f"{name}B.weight"]
            module = getattr(layer.self_attn, f"{side}_proj")
            module.register_forward_hook(lambda _m, x, y, a=a, b=b: y + tiny.ALPHA / tiny.RANK * (x[0] @ a.T) @ b.T)
    return model


@torch.no_grad()
def test_losses_masks_and_greedy_ids_are_those_of_the_parts(model):
    reader, reference = processor(model), language_model_with_lora()
    asked = [[QUESTIONS[0]], [QUESTIONS[1], QUESTIONS[0]]]
    conversations = []
    for seed, rounds in enumerate(asked):
        messages = [message for q, a in rounds for message in (user(q), assistant(a))]
        messages[0] = user({"type": "image", "image": picture(seed)}, rounds[0][0])
        conversations.append(messages)
    batch = reader(conversations, for_training=True)
    rows, labels = by_hand(asked, batch["pixel_values"], model)
    length = max(map(len, rows))
    assert [row[: len(one)] for row, one in zip(batch["labels"].tolist(), labels)] == labels
    assert all(label == -100 for row, one in zip(batch["labels"].tolist(), labels) for label in row[len(one) :])
    padded = torch.stack([torch.nn.functional.pad(row, (0, 0, 0, length - len(row))) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    target = torch.tensor([one + [-100] * (length - len(one)) for one in labels])
    expected = reference(inputs_embeds=padded, attention_mask=mask, labels=target).loss
    got = model(**batch)
    assert float(got.loss) == pytest.approx(float(expected), abs=1e-5)

    asking = reader([messages[:1] for messages in conversations])
    prompts, _ = by_hand([[rounds[0]] for rounds in asked], asking["pixel_values"], model, training=False)
    new = asking["input_ids"].shape[1]
    ours = model.generate(**asking, max_new_tokens=12, do_sample=False).sequences[:, new:].tolist()
    for row, prompt in zip(ours, prompts):
        theirs = reference.generate(
            inputs_embeds=prompt[None], attention_mask=torch.ones(1, len(prompt)), max_new_tokens=12, do_sample=False
        )[0]
        assert row[: len(theirs)] == theirs.tolist() and set(row[len(theirs) :]) <= {2, 3}


def test_pictures_are_squashed_with_pil_bicubic(model):
    rgb = picture(5)
    got = processor(model)([user({"type": "image", "image": rgb}, "what is it")])["pixel_values"][0].numpy()
    mean, std = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    resized = np.asarray(Image.fromarray(rgb).resize((56, 56), Image.Resampling.BICUBIC)).astype(np.float32) / 255
    np.testing.assert_allclose(got, ((resized - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1), atol=1e-6)


def test_asking_as_published_has_two_bos(model):
    messages = [user({"type": "image", "image": picture()}, QUESTIONS[0][0])]
    ids = processor(model, "vlm4hoi_inference")(messages)["input_ids"][0].tolist()
    tail = SP.encode(f"</Img> {QUESTIONS[0][0]} [/INST]")
    assert ids == [1, 1, *SP.encode("[INST] <Img>"), 0, 0, 0, 0, *tail]


# Merged, kept, saved


@torch.no_grad()
def test_merged_is_kept_is_saved(model, tmp_path):
    batch = processor(model)([user({"type": "image", "image": picture()}, QUESTIONS[0][0]), assistant("x")], for_training=True)
    kept = vlm4hoi.convert(published(), llama(), eva_tower(), CONFIG, merge_lora=False)
    assert sum("lora_A" in name for name, _ in kept.named_parameters()) == 4
    torch.testing.assert_close(kept(**batch).logits, model(**batch).logits, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path)
    processor(model).save_pretrained(tmp_path)
    again, reader = HandVLM.from_pretrained(tmp_path), HandVLMProcessor.from_pretrained(tmp_path)
    assert again.model.vision_tower.post_layernorm.eps == 1e-5
    same = reader([user({"type": "image", "image": picture()}, QUESTIONS[0][0]), assistant("x")], for_training=True)
    assert same["input_ids"].tolist() == batch["input_ids"].tolist() and reader.tokenizer.pad_token_id == 3
    assert torch.equal(again(**same).logits, model(**batch).logits)


def test_padding_is_no_text_before_and_after_saving(model, tmp_path):
    """ "$$" is an ordinary piece of the vocabulary: as a question's words it is not the padding, and padded answers do not end in it."""
    fresh = processor(model)
    fresh.save_pretrained(tmp_path)
    named = vlm4hoi.load_tokenizer(tiny.TOKENIZER)
    named.pad_token = "$$"
    for reader in (fresh, HandVLMProcessor.from_pretrained(tmp_path), vlm4hoi.make_processor(named, model.config)):
        rows = torch.tensor([[5, *SP.encode("a knife"), 2, 3, 3]])
        assert reader.decode_answers(rows, {"input_ids": torch.zeros(1, 1)}) == ["a knife"]
        assert 3 not in reader([user({"type": "image", "image": picture()}, "what costs $$ here?")])["input_ids"]


# Spellings, and what is refused


@pytest.mark.parametrize(
    "spell",
    [
        lambda k: f"module.{k}",
        lambda k: k.replace("lora_A.", "lora_A.default.").replace("lora_B.", "lora_B.default."),
        lambda k: k.replace("base_model.model.", "").replace("lora_A.", "lora_A.default."),
    ],
)
def test_key_spellings(model, spell):
    other = vlm4hoi.convert({spell(k): v for k, v in tiny.trained().items()}, llama(), eva_tower(), CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


def test_everything_may_be_in_the_checkpoint(model):
    """The language model as modern peft names it, the tower too; then configs are enough beside it."""
    frozen = {f"llama_model.base_model.model.{k}": v for k, v in tiny.language_model().items()}
    frozen = {k.replace("_proj.weight", "_proj.base_layer.weight") if "q_proj" in k or "v_proj" in k else k: v for k, v in frozen.items()}
    tower = {k: v for k, v in tiny.tower().items() if k.startswith(eva.PREFIX)}
    other = vlm4hoi.convert(tiny.trained() | frozen | tower, tiny.LLAMA, None, CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


def test_a_folder_in_shards_gives_the_same_and_a_model_that_is_given_is_left_alone(model, tmp_path):
    given = llama()
    given.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    read, made = (vlm4hoi.convert(published(), source, eva_tower(), CONFIG) for source in (tmp_path, given))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), read.state_dict().values(), strict=True))
    assert all(torch.equal(value, given.state_dict()[name]) for name, value in tiny.language_model().items())
    assert not {value.data_ptr() for value in given.state_dict().values()} & {value.data_ptr() for value in made.state_dict().values()}


FIRST = "llama_model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    "drop, add, words",
    [
        ([FIRST], {}, "missing: model.layers.0.self_attn.q_proj.lora_A"),
        (["llama_proj.bias"], {}, "missing: model.multi_modal_projector.linear_1.bias"),
        ([], {"Qformer.bert.x": torch.zeros(2)}, "unexpected: Qformer.bert.x"),
        ([], {FIRST.replace("layers.0", "layers.7"): torch.zeros(8, 48)}, "unexpected: model.layers.7.self_attn.q_proj.lora_A"),
        ([], {FIRST: torch.zeros(8, 40)}, r"mis-shaped: model.layers.0.self_attn.q_proj.lora_A is \(8, 40\), expected \(8, 48\)"),
        ([], {FIRST: torch.zeros(4, 48)}, r"LoRA ranks \[4, 8\]"),
        ([], {"llama_proj.weight": torch.zeros(48, 99)}, r"mis-shaped: .*linear_1.weight is \(48, 99\), expected \(48, 256\)"),
        ([], {"llama_proj.bias": torch.full((48,), float("nan"))}, "not finite: model.multi_modal_projector.linear_1.bias"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_list(drop, add, words):
    tensors = {k: v for k, v in (tiny.trained() | add).items() if k not in drop}
    with pytest.raises(CheckpointError, match=words):
        vlm4hoi.convert(tensors, llama(), eva_tower(), CONFIG)


def test_a_rank_that_is_given_must_be_the_checkpoints(model):
    same = vlm4hoi.convert(published(), llama(), eva_tower(), CONFIG | {"lora_r": tiny.RANK})
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), same.state_dict().values(), strict=True))
    with pytest.raises(CheckpointError, match=r"mis-shaped: LoRA ranks \[8\], expected lora_r = 64"):
        vlm4hoi.convert(published(), llama(), eva_tower(), CONFIG | {"lora_r": 64})


def test_a_checkpoint_of_another_model_is_refused(model):
    with pytest.raises(CheckpointError, match=r"not named tensors: 12 \(1\)"):
        vlm4hoi.convert(tiny.trained() | {12: torch.zeros(1)}, llama(), eva_tower(), CONFIG)
    with pytest.raises(CheckpointError, match="missing: .*; unexpected: model.vision_tower"):
        vlm4hoi.convert({f"model.vision_tower.{k}": v for k, v in tiny.trained().items()}, llama(), eva_tower(), CONFIG)
    with pytest.raises(CheckpointError, match="no vision tower"):
        vlm4hoi.convert(published(), llama(), None, CONFIG)
    with pytest.raises(ValueError, match="unknown lora_alhpa"):
        vlm4hoi.convert(published(), llama(), eva_tower(), {"lora_alhpa": 16})


class _Runs:
    def __reduce__(self):
        return (print, ("this must never be printed",))


def test_a_file_is_read_without_running_it(tmp_path, capsys):
    torch.save(published(), tmp_path / "good.pth")
    content = read_checkpoint(tmp_path / "good.pth")
    assert content["epoch"] == 55 and torch.equal(content["model"][FIRST], tiny.trained()[FIRST])
    torch.save({"model": {}, "config": _Runs()}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="evil.pth: refused, because it holds more than tensors"):
        read_checkpoint(tmp_path / "evil.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "good.pth").read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cut.pth: not a whole checkpoint"):
        read_checkpoint(tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "none.pth")
    assert "never be printed" not in capsys.readouterr().out


def without(name: str, folder) -> None:
    """Takes a tensor out of a saved model."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(name)
    save_file(tensors, file, metadata={"format": "pt"})


def test_what_a_folder_lacks_is_not_filled_with_random_numbers(model, tmp_path):
    """transformers only warns about it."""
    llama().save_pretrained(tmp_path / "llm")
    model.model.vision_tower.save_pretrained(tmp_path / "tower")
    whole = vlm4hoi.convert(published(), tmp_path / "llm", tmp_path / "tower", CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), whole.state_dict().values(), strict=True))
    without("encoder.layers.1.mlp.fc1.weight", tmp_path / "tower")
    with pytest.raises(CheckpointError, match=r"missing: model.vision_tower.encoder.layers.1.mlp.fc1.weight \(1\)"):
        vlm4hoi.convert(published(), tmp_path / "llm", tmp_path / "tower", CONFIG)
    without("model.layers.1.mlp.up_proj.weight", tmp_path / "llm")
    with pytest.raises(CheckpointError, match=r"missing: model.language_model.layers.1.mlp.up_proj.weight \(1\)"):
        vlm4hoi.convert(published(), tmp_path / "llm", eva_tower(), CONFIG)
    lacking = {"llama_model.model.layers.1.mlp.up_proj.weight": tiny.language_model()["model.layers.1.mlp.up_proj.weight"]}
    helped = vlm4hoi.convert(published(**lacking), tmp_path / "llm", eva_tower(), CONFIG)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), helped.state_dict().values(), strict=True))


def test_folders_that_are_cut_off_or_hold_something_else_are_said_to_be(tmp_path):
    for part, words in (("llm", "no causal language model could be read"), ("vision", "no vision tower could be read")):
        parts = {"llm": llama(), "vision": eva_tower()}
        for folder in (tmp_path, tmp_path / "none"):
            with pytest.raises(CheckpointError, match=words):
                vlm4hoi.convert(published(), config=CONFIG, **parts | {part: folder})
    llama().save_pretrained(tmp_path / "half")
    file = tmp_path / "half/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="half: no causal language model could be read"):
        vlm4hoi.convert(published(), tmp_path / "half", eva_tower(), CONFIG)
    (tmp_path / "tokenizer.model").write_bytes(tiny.TOKENIZER.read_bytes()[:3000])
    for source in (tmp_path / "half", tmp_path, tmp_path / "tokenizer.model"):
        with pytest.raises(CheckpointError, match="no tokenizer could be read"):
            vlm4hoi.load_tokenizer(source)


def test_the_published_recipe_is_a_valid_setting(root):
    settings = load(FinetuneSettings, root / "scripts/configs/vlm4hoi_7b.yaml", [f"model={root}/demos/assets/vlm_small"])
    assert (settings.lora.rank, settings.lora.alpha, settings.lora.targets) == (64, 16, ["q_proj", "v_proj"])
    assert settings.optimizer.final_factor < 1 and settings.optimizer.warmup_steps < settings.steps
    assert settings.parts.language_model.mode == "lora" and settings.parts.vision_tower.mode == "freeze"
