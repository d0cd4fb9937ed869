"""HandsOnVLM's checkpoints: names and shapes against the recorded manifest, and what a damaged one says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPVisionConfig, LlamaConfig, LlamaForCausalLM

from tests.vlm.vlm4hoi_tiny import FIXTURES, fill
from vlm.checkpoints.handsonvlm import (
    add_tokens,
    check_tokenizer,
    convert,
    expected_keys,
    hand_vlm_tensors,
    llava_projector,
    load_tokenizer,
    tower_tensors,
)  # fmt: skip
from vlm.checkpoints.reading import CheckpointError, read_checkpoint, read_model_folder
from vlm.config import HandVLMConfig
from vlm.extend import add_slots
from vlm.model import HandVLM
from vlm.trajectory import CVAEHead, MLPHead

MANIFEST = json.loads((FIXTURES / "handsonvlm/g_checkpoint_manifest.json").read_text())
TOKENIZER = FIXTURES / "handsonvlm/toy_tokenizer/tokenizer.model"
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 120}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}


def tiny(**changes: str) -> dict[str, torch.Tensor]:
    return {name: fill.value(name, shape) for name, shape in expected_keys(TEXT | changes, VISION).items()}


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_keys_and_shapes_are_those_of_the_published_models(size: str):
    assert expected_keys(size) == {name: tuple(shape) for name, shape in MANIFEST[f"handsonvlm_{size}"].items()}


def test_configs_in_every_form_say_the_same(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(TEXT))
    whole = HandVLMConfig(text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**VISION))
    forms = [expected_keys(TEXT, VISION), expected_keys(tmp_path, VISION), expected_keys(LlamaConfig(**TEXT), CLIPVisionConfig(**VISION))]
    clip = CLIPConfig(vision_config=VISION)
    clip.save_pretrained(tmp_path / "clip")
    towers = (clip, clip.to_dict(), tmp_path / "clip", str(tmp_path / "clip"), SimpleNamespace(**VISION))
    forms += [expected_keys(SimpleNamespace(**TEXT), tower) for tower in towers]
    assert all(form == expected_keys(whole) for form in forms)
    with pytest.raises(ValueError, match="vocab_size missing"):
        expected_keys({name: value for name, value in TEXT.items() if name != "vocab_size"})


@pytest.mark.parametrize("decoder, head", [("CVAE", CVAEHead), ("MLP", MLPHead)])
def test_every_tensor_has_its_place_here(decoder: str, head: type):
    tensors = hand_vlm_tensors(tiny(traj_decoder=decoder), TEXT | {"traj_decoder": decoder}, VISION)
    mine = {name.removeprefix("trajectory_head."): value for name, value in tensors.items() if name.startswith("trajectory_head.")}
    head(TEXT["hidden_size"] // 2).load_state_dict(mine)
    config = HandVLMConfig(
        text_config=LlamaConfig(**TEXT), vision_config=CLIPVisionConfig(**VISION), image_size=16, image_seq_length=16,
        projector_type="linear",
    )  # fmt: skip
    HandVLM(config).load_state_dict({name: value for name, value in tensors.items() if not name.startswith("trajectory_head.")})


def test_buffers_and_the_tower_may_be_absent(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    whole = hand_vlm_tensors(tiny(), TEXT, VISION)
    assert "time_embedding" in caplog.text and "downproject" in caplog.text
    lean = {name: value for name, value in tiny().items() if "inv_freq" not in name and "time_embedding" not in name}
    assert hand_vlm_tensors(lean, TEXT, VISION).keys() == whole.keys()
    named = {name: value for name, value in tiny().items() if "vision_tower" not in name}
    assert hand_vlm_tensors(named, TEXT, VISION).keys() == {name for name in whole if "vision_tower" not in name}
    with pytest.raises(CheckpointError, match="missing: model.vision_tower"):
        hand_vlm_tensors(named, TEXT, VISION, tower_inside=True)


@pytest.mark.parametrize(
    "spoil, said",
    [
        (lambda s: s.pop("model.norm.weight"), "missing: model.norm.weight"),
        (lambda s: s.update(stranger=torch.zeros(1)), "unexpected: stranger"),
        (lambda s: s.update({"model.norm.weight": torch.zeros(3)}), "mis-shaped: model.norm.weight is"),
        (lambda s: s["model.mm_projector.bias"].fill_(torch.nan), "not finite: model.mm_projector.bias"),
    ],
)
def test_anything_else_is_refused(spoil, said: str):
    state = tiny()
    spoil(state)
    with pytest.raises(CheckpointError, match=said):
        hand_vlm_tensors(state, TEXT, VISION)


def test_another_tower_is_refused():
    with pytest.raises(CheckpointError, match="width 16, this one has 24"):
        expected_keys(TEXT | {"mm_hidden_size": 16}, VISION | {"hidden_size": 24})


def test_token_ids():
    tokenizer = add_tokens(load_tokenizer(TOKENIZER))
    size = len(tokenizer)
    check_tokenizer(tokenizer, TEXT | {"vocab_size": size})
    check_tokenizer(tokenizer, TEXT | {"vocab_size": size, "hand_token_id": size - 1, "time_token_ids": list(range(size - 101, size - 1))})
    for other in (load_tokenizer(TOKENIZER), tokenizer):
        with pytest.raises(CheckpointError, match="wrong ids: <hand_traj>|wrong ids: <t0>"):
            check_tokenizer(other, TEXT | {"vocab_size": size + 1})


@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_shards_are_read_whole_or_refused(tmp_path: Path, kind: str):
    state = tiny()
    stem = "model" if kind == "safetensors" else "pytorch_model"
    places: dict[str, str] = {}
    for number in (1, 2):
        shard = f"{stem}-0000{number}-of-00002.{kind}"
        part = {name: value for k, (name, value) in enumerate(sorted(state.items())) if k % 2 == number - 1}
        (save_file if kind == "safetensors" else torch.save)(part, tmp_path / shard)
        places |= dict.fromkeys(part, shard)
    index = tmp_path / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    found = read_model_folder(tmp_path)
    assert found.keys() == state.keys() and all(torch.equal(found[name], value) for name, value in state.items())
    index.write_text(json.dumps({"weight_map": places | {"more": shard}}))
    with pytest.raises(CheckpointError, match="missing: more"):
        read_model_folder(tmp_path)
    index.write_text(json.dumps({"weight_map": places | {"more": "../x.bin"}}))
    with pytest.raises(CheckpointError, match="outside its folder"):
        read_model_folder(tmp_path)
    index.write_text(json.dumps({"weight_map": places}))
    del found
    whole = (tmp_path / shard).read_bytes()
    (tmp_path / shard).unlink()
    (tmp_path / shard).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        read_model_folder(tmp_path)
    (tmp_path / shard).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 4130000000\n")
    with pytest.raises(CheckpointError, match=f"{shard}: a Git LFS pointer"):
        read_model_folder(tmp_path)
    (tmp_path / shard).unlink()
    with pytest.raises(CheckpointError, match="shards missing"):
        read_model_folder(tmp_path)


def test_a_tokenizer_that_is_not_there_or_only_a_pointer_is_said_to_be(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no tokenizer could be read.*tokenizer.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\n")
    for source in (tmp_path, tmp_path / "tokenizer.model"):
        with pytest.raises(CheckpointError, match="tokenizer.model: a Git LFS pointer"):
            convert(tiny(), TEXT, VISION, source)


class Spy:
    def __reduce__(self):
        return print, ("read",)


def test_what_is_no_checkpoint_is_told_as_what_it_is(tmp_path: Path):
    file = tmp_path / "pytorch_model.bin"
    for content, said in ((b"<!DOCTYPE html><html>", "begins with b'<!DOCTYPE html>.*fetch it again"), (b"", r"empty \(0 bytes\); fetch")):
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            read_model_folder(tmp_path)
    torch.save({"x": torch.zeros(1), "spy": Spy()}, file)
    with pytest.raises(CheckpointError, match="could run code when read .it calls print") as refusal:
        read_model_folder(tmp_path)
    assert "weights_only" not in str(refusal.value), "torch's advice is to run it"
    with pytest.raises(CheckpointError, match="a folder, expected a file"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("size", ["32", 0, None])
def test_a_size_that_is_no_number_is_refused(size: object):
    with pytest.raises(CheckpointError, match=f"hidden_size is {size!r}, expected whole numbers"):
        expected_keys(TEXT | {"hidden_size": size}, VISION)


def test_where_the_tower_lay_is_not_told(tmp_path: Path):
    CLIPVisionConfig(**VISION).save_pretrained(tmp_path)
    tower = CLIPVisionConfig.from_pretrained(tmp_path)
    assert str(tmp_path) not in convert(tiny(), TEXT, tower).config.to_json_string()


@pytest.mark.parametrize("beside", [(), ("config.json",), ("added_tokens.json", "tokenizer_config.json"), ("added_tokens.json",)])
def test_a_folder_gives_the_ids_of_its_sentencepiece_file_whatever_lies_beside_it(tmp_path: Path, beside: tuple[str, ...]):
    shutil.copy(TOKENIZER, tmp_path / "tokenizer.model")
    whole = add_tokens(load_tokenizer(TOKENIZER))
    contents = {
        "config.json": {"model_type": "handsonvlm"}, "added_tokens.json": whole.get_added_vocab(),
        "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True},
    }  # fmt: skip
    for name in beside:
        (tmp_path / name).write_text(json.dumps(contents[name]))
    text = "USER: Where should my 2 hands go? ASSISTANT: To the pan"
    found = load_tokenizer(tmp_path)
    assert found.encode(text, add_special_tokens=False) == whole.encode(text, add_special_tokens=False)
    assert ("<hand_traj>" in found.get_vocab()) == ("added_tokens.json" in beside)


def test_a_recipes_tokens_have_the_ids_of_a_converted_models():
    """`<image>`, which the published vocabulary does not have, comes last."""
    tokenizer = load_tokenizer(TOKENIZER)
    words = len(tokenizer)
    tokenizer.add_tokens([f"<t{number}>" for number in range(100)])
    add_slots(tokenizer, ["<image>"], paths=True)
    check_tokenizer(tokenizer, TEXT | {"vocab_size": words + 101, "hand_token_id": words + 100})
    assert tokenizer.convert_tokens_to_ids("<image>") == words + 101


def test_a_tower_of_another_kind_is_not_filled_with_random_weights(tmp_path: Path):
    """transformers only warns about what is missing."""
    LlamaForCausalLM(LlamaConfig(**TEXT)).save_pretrained(tmp_path / "llama")
    with pytest.raises(CheckpointError, match="not a whole CLIP vision model. missing: "):
        tower_tensors(tmp_path / "llama")
    with pytest.raises(CheckpointError, match="no CLIP vision model.*Give its folder"):
        tower_tensors(tmp_path / "nothing")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_llava_projector(prefix: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    bias, weight = torch.ones(8), torch.ones(8, 4)
    llava_projector({"mm_projector.weight": weight, "mm_projector.bias": bias, "model.embed_tokens.weight": weight})
    assert "left out" in caplog.text and "model.embed_tokens.weight" in caplog.text
    found = llava_projector({f"{prefix}mm_projector.weight": weight, f"{prefix}mm_projector.bias": bias}, 8)
    assert set(found) == {"model.multi_modal_projector.linear_1.weight", "model.multi_modal_projector.linear_1.bias"}
    with pytest.raises(CheckpointError, match="width 8"):
        llava_projector({"mm_projector.weight": weight, "mm_projector.bias": bias}, 16)
    with pytest.raises(CheckpointError, match="one linear projector.*llava-pretrain-vicuna-7b"):
        llava_projector({"mm_projector.0.weight": weight, "mm_projector.0.bias": bias})
