"""Clips and paths: equalities between the ways of asking, learning, saving and decoding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from data.sample import SampleError, assistant, user, validate_messages
from tests.tiny import CLIP_KINDS, tiny, tiny_clips
from vlm import HandVLM, HandVLMProcessor
from vlm.answers import Paths, TrajectoryAnswer, Unparsed, parse
from vlm.trainer import hand_steps
from vlm.trajectory import PathHead
from vlm.trajectory_observed import describe, hand_inputs, observed_hands

KINDS = sorted(CLIP_KINDS)
NO_NOISE, PER_PATH = ("path", "observed", "mlp"), ("path", "observed", "parts")
RNG = np.random.default_rng(3)
FRAMES = [RNG.integers(0, 255, (60, 90, 3), dtype=np.uint8) for _ in range(5)]


def clip(frames: list[int], text: str = "where will my hand go?", points: np.ndarray | None = None, valid=None, track: bool = True):
    parts = [{"type": "video", "video": [FRAMES[i] for i in frames]}]
    if track:
        tokens = np.full((6, 11), np.nan, np.float32)
        tokens[::2] = [10, 20, 50, 40, -1, 0.9, np.nan, np.nan, np.nan, np.nan, 0]
        parts.append({"type": "pose", "encoder": "track", "tokens": tokens})
    answer = [] if points is None else [assistant({"type": "trajectory", "points": points, "valid": valid})]
    return [user(*parts, text), *answer]


def path(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(5, 60, (2, steps, 2))


class Script:
    """Makes every row write these tokens; "p" is the path token."""

    def __init__(self, model, prompt: int, script: list) -> None:
        self.ids = [model.config.trajectory_token_id if token == "p" else token for token in script]
        self.prompt = prompt

    def __call__(self, input_ids, scores):
        kept = torch.full_like(scores, -torch.inf)
        kept[:, self.ids[input_ids.shape[1] - self.prompt]] = 0
        return kept


def written(model, batch, script, **options):
    """`generate` with a scripted text."""
    length = batch["input_ids"].shape[1]
    return model.generate(**batch, max_new_tokens=len(script), logits_processor=[Script(model, length, script)], **options)


@pytest.mark.parametrize("kind", KINDS)
def test_batch_is_single_and_distinct_frames_are_encoded_once(kind):
    model, processor = tiny_clips(kind)
    asked = [
        clip([0, 1, 2]),
        clip([0, 0, 1, 2], "and the other, my left one?"),
        [user({"type": "image", "image": FRAMES[1]}, "a picture")],
        [user("none")],
    ]
    together = processor(asked)
    assert together["pixel_values"].shape[0] == 3
    assert together["media_frames"].tolist() == [3, 4, 0]
    logits = model(**together).logits
    for row, conversation in enumerate(asked):
        alone = model(**processor(conversation)).logits[0]
        torch.testing.assert_close(logits[row, -len(alone) :], alone, atol=2e-5, rtol=1e-4)


def test_pixels_of_clips_are_taken_as_one_array_and_pictures_without_a_name_are_refused():
    model, processor = tiny_clips()
    batch = processor([clip([0, 1, 2]), clip([3, 4, 2])])
    by_clip = batch["pixel_values"][batch["frame_rows"]].unflatten(0, (2, 3))
    torch.testing.assert_close(model(**batch | {"pixel_values": by_clip}).logits, model(**batch).logits)
    with pytest.raises(ValueError, match="frame_rows names 5 pictures, pixel_values has 6"):
        model(**batch | {"pixel_values": by_clip.flatten(0, 1)})


def test_of_a_long_clip_the_frames_asked_for_are_looked_at():
    model, processor = tiny_clips(clip={"frames": 3, "slow_frames": 1, "slow": "last", "pool": 1})
    whole, chosen = processor(clip([0, 1, 2, 3, 4])), processor(clip([0, 2, 4]))
    assert whole["pixel_values"].shape[0] == 3 and torch.equal(whole["input_ids"], chosen["input_ids"])
    torch.testing.assert_close(model(**whole).logits, model(**chosen).logits)
    assert processor(clip([1, 3]))["media_frames"].tolist() == [2]


def test_a_picture_is_seen_the_same_beside_a_clip_and_alone():
    model, processor = tiny_clips()
    picture = processor([user({"type": "image", "image": FRAMES[1]}, "a picture")])
    assert "media_frames" not in picture
    torch.testing.assert_close(
        model.model.image_tokens(picture["pixel_values"])[0],
        model.model.media_tokens(picture["pixel_values"], torch.tensor([0]), torch.tensor([0])),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_saved_is_reloaded(kind, tmp_path):
    model, processor = tiny_clips(kind)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor_again = HandVLM.from_pretrained(tmp_path).eval(), HandVLMProcessor.from_pretrained(tmp_path)
    steps = processor.trajectory_steps
    asked = clip([0, 1, 2], points=path(steps))
    first, second = processor(asked, for_training=True), processor_again(asked, for_training=True)
    noise = None if kind in NO_NOISE else torch.randn(1, 2, steps, 8, generator=torch.Generator().manual_seed(0))
    one, two = model(**first, noise=noise), again(**second, noise=noise)
    assert torch.equal(one.loss, two.loss) and float(one.losses["path_traj"]) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_packed_loss_is_the_loss_of_each_alone(kind):
    model, processor = tiny_clips(kind)
    steps = processor.trajectory_steps
    valid = np.ones((2, steps), bool)
    valid[1, -1] = False
    conversations = [clip([0, 1, 2], f"where, number {n}?", path(steps, n), valid) for n in range(3)]
    row = processor.pack(conversations)
    noise = None if kind in NO_NOISE else torch.zeros(3, 2, steps, 8)
    packed = model(**processor.collate_packed([row]), noise=noise)
    apart = model(**processor(conversations, for_training=True), noise=noise)
    torch.testing.assert_close(packed.loss, apart.loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed.trajectories, apart.trajectories, atol=1e-5, rtol=1e-4)


def test_loss_sums_over_micro_batches_by_valid_hand_steps():
    model, processor = tiny_clips(number_sigma=0.0)
    valid = np.array([[True] * 4, [True, False, False, False]])
    conversations = [clip([0, 1, 2], points=path(4, 0)), clip([1, 2], "and now?", path(4, 1), valid), [user("what?"), assistant("cup")]]
    whole = processor(conversations, for_training=True)
    tokens = int((whole["labels"][:, 1:] != -100).sum())
    steps = int(hand_steps(whole, model.config.trajectory_token_id))
    assert steps == 8 + 5
    parts = [processor(one, for_training=True) for one in conversations]
    losses = [model(**part, num_items_in_batch=tokens, num_hand_steps=steps).loss for part in parts]
    torch.testing.assert_close(sum(losses), model(**whole).loss, atol=1e-5, rtol=1e-5)


def test_what_is_not_valid_costs_nothing_whatever_it_holds():
    model, processor = tiny_clips()
    valid = np.array([[True] * 4, [False] * 4])
    one, two = path(4), path(4)
    two[1] = np.nan
    first, second = (model(**processor(clip([0, 1, 2], points=points, valid=valid), for_training=True)) for points in (one, two))
    assert torch.equal(first.loss, second.loss)


def test_every_parameter_is_reached_without_a_path_picture_or_pose():
    model, processor = tiny_clips("fed back")
    model.train()
    model(**processor([user("what?"), assistant("cup")], for_training=True)).loss.backward()
    assert not [name for name, value in model.named_parameters() if value.grad is None]


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_alone_in_batches_and_by_replay_agree(kind):
    model, processor = tiny_clips(kind)
    asked = [clip([0, 1, 2]), clip([1, 3], "and the other hand, where to?"), clip([4], "a frame", track=False)]
    batch = processor(asked)
    steps, latent = processor.trajectory_steps, getattr(model.trajectory_head, "latent", None)
    noise = (
        None
        if latent is None
        else torch.randn(3, 2, 2, 1 if kind in PER_PATH else steps, latent, generator=torch.Generator().manual_seed(1))
    )
    script = [20, "p", "p", 21, "p", 1, 22]
    first = written(model, batch, script, noise=None if noise is None else noise[:, :1])
    both = written(model, batch, script, noise=noise, num_trajectories=2)
    assert int((~first.trajectories[:, 0, 0, :, 0].isnan()).sum()) == 9
    assert first.trajectories.shape[:3] == (3, 1, 2) and both.trajectories.shape[:3] == (3, 2, 2)
    torch.testing.assert_close(both.trajectories[:, :1], first.trajectories, atol=1e-5, rtol=1e-4, equal_nan=True)
    if noise is not None:
        assert not torch.allclose(both.trajectories[:, 1].nan_to_num(), both.trajectories[:, 0].nan_to_num())
    for row, conversation in enumerate(asked):
        alone = written(model, processor(conversation), script, noise=None if noise is None else noise[row : row + 1, :1])
        known = ~alone.trajectories[0].isnan()
        torch.testing.assert_close(
            first.trajectories[row, :, :, : known.shape[2]][known], alone.trajectories[0][known], atol=1e-5, rtol=1e-4
        )


@pytest.mark.parametrize("kind", KINDS)
def test_decoded_points_are_those_of_one_teacher_forced_pass(kind):
    """What greedy decoding made token by token is what a single pass over the whole text makes with the points given."""
    model, processor = tiny_clips(kind)
    batch = processor(clip([0, 1, 2]))
    steps, latent = processor.trajectory_steps, getattr(model.trajectory_head, "latent", None)
    noise = None if latent is None else torch.zeros(1, 1, 2, 1 if kind in PER_PATH else steps, latent)
    out = written(model, batch, ["p"] * steps, noise=noise)
    points = out.trajectories[:, 0]
    assert not bool(points.isnan().any())
    inputs = {name: batch[name] for name in ("pixel_values", "media_frames", "frame_rows", "pose_tokens")}
    mask = torch.ones_like(out.sequences)
    whole = model(input_ids=out.sequences, attention_mask=mask, trajectories=points, trajectory_valid=torch.ones(1, 2, steps).bool(),
                  output_hidden_states=True, **inputs)  # fmt: skip
    states = whole.hidden_states[-1][:, -steps - 1 : -1]
    observed = observed_hands(batch["input_ids"], batch["pose_tokens"], model.config)
    settings = model.config.trajectory
    hands, origin = hand_inputs(states, settings.get("hand_layout", "left_right"), observed, settings.get("observed_code", "fourier"))
    again = origin + model.trajectory_head.predict(hands, None if noise is None else noise[:, 0], model.config.trajectory.get("compat"))
    torch.testing.assert_close(again, points, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["fed back", "parts"])
def test_futures_side_by_side_are_futures_one_by_one(kind, monkeypatch):
    model, processor = tiny_clips(kind)
    batch, script = processor([clip([0, 1, 2]), clip([3], "and now?")]), [20, "p", "p", 21, "p", "p"]
    noise = 20 * torch.randn(2, 5, 2, 4, 8, generator=torch.Generator().manual_seed(1))  # fresh heads hardly listen to it
    together = written(model, batch, script, noise=noise, num_trajectories=5)
    monkeypatch.setattr("vlm.trajectory_decoding._side_by_side", lambda model: False)
    apart = written(model, batch, script, noise=noise, num_trajectories=5)
    torch.testing.assert_close(together.trajectories, apart.trajectories, atol=1e-5, rtol=1e-4)
    assert float((together.trajectories[:, 1:] - together.trajectories[:, :1]).abs().max()) > 1e-3


def test_pictures_are_encoded_alike_few_or_many_at_a_time():
    model, _ = tiny_clips()
    pictures = torch.randn(11, 3, model.config.image_size, model.config.image_size)
    with torch.no_grad():
        few = model.model.picture_features(pictures)
    torch.testing.assert_close(few, model.model.picture_features(pictures).detach(), atol=1e-5, rtol=1e-5)


def test_beams_samples_and_several_returned_rows_have_their_paths():
    model, processor = tiny_clips("fed back")
    batch = processor([clip([0, 1, 2]), clip([3], "and now?")])
    zero = torch.zeros(2, 1, 2, 4, 8)
    script = [20, "p", "p", 21, "p", "p"]
    greedy = written(model, batch, script, noise=zero)
    beams = {"num_beams": 3, "num_return_sequences": 2}
    for options in (beams, {"generation_config": GenerationConfig(**beams)}, {"do_sample": True, "num_return_sequences": 2}):
        several = written(model, batch, script, noise=zero, **options)
        same = [row for row in range(4) if torch.equal(several.sequences[row], greedy.sequences[row // 2])]
        assert several.trajectories.shape[:2] == (4, 1) and len(same) >= 2  # a second beam writes what has no probability
        for row in same:
            torch.testing.assert_close(several.trajectories[row], greedy.trajectories[row // 2], atol=1e-5, rtol=1e-4)


def test_returned_samples_of_a_prompt_are_drawn_apart_and_the_cache_is_kept_where_points_are_fed_back():
    model, processor = tiny_clips("published")
    batch, script = processor([clip([0, 1, 2]), clip([3], "and now?")]), ["p"] * 4
    for futures in (1, 2):
        several = written(model, batch, script, do_sample=True, num_return_sequences=2, num_trajectories=futures).trajectories
        assert several.shape[:2] == (4, futures) and float((several[::2] - several[1::2]).abs().min()) > 0
    noise = torch.randn(2, 1, 2, 4, 8)
    kept, left_out = (written(model, batch, script, noise=noise, **options) for options in ({}, {"use_cache": False}))
    torch.testing.assert_close(left_out.trajectories, kept.trajectories)


def test_the_first_future_is_the_likeliest_and_paths_stay_smooth():
    model, processor = tiny_clips()
    torch.manual_seed(0)
    out = written(model, processor(clip([0, 1, 2])), ["p"] * 4, num_trajectories=3)
    moved = (out.trajectories - out.trajectories[:, :1]) / out.trajectory_spread
    torch.testing.assert_close(moved[:, 1:], moved[:, 1:, :, :1].expand_as(moved[:, 1:]), atol=1e-3, rtol=1e-3)
    assert float(moved[:, 1:].abs().max()) > 0.01


def test_earlier_paths_of_a_conversation_are_given_back():
    model, processor = tiny_clips("fed back")
    turns = [*clip([0, 1, 2], points=path(4)), user("and then?")]
    batch = processor(turns)
    assert batch["trajectories"].shape == (1, 2, 4, 2)
    other = processor([*clip([0, 1, 2], points=path(4, 9)), user("and then?")])
    assert not torch.allclose(model(**batch).logits[:, -1], model(**other).logits[:, -1])
    assert model.generate(**batch, max_new_tokens=3).sequences.shape[0] == 1


def test_answers_with_another_number_of_path_tokens_are_told():
    _, processor = tiny_clips()
    view = processor(clip([0, 1, 2]))["views"][0][0]
    points = np.full((2, 7, 2), 0.5)
    for count in (3, 7):
        (answer,) = parse("<hand_traj>" * count, view, "norm1000", Paths(points, steps=4))
        assert isinstance(answer, Unparsed) and f"{count} steps, expected 4" in answer.reason
    (answer,) = parse("<hand_traj>" * 4, view, "norm1000", Paths(points, np.full((2, 7, 2), 0.1), np.ones((2, 7)), 4))
    assert isinstance(answer, TrajectoryAnswer)
    np.testing.assert_allclose(answer.points, np.broadcast_to([45.0, 30.0], (2, 4, 2)), atol=1)  # the grid has whole pixels
    np.testing.assert_allclose(answer.spread, 9.0, atol=0.2)  # a tenth of a letterboxed grid 90 pixels wide
    (broken,) = parse("<hand_traj>" * 4, view, "norm1000", Paths(np.full((2, 4, 2), np.nan), steps=4))
    assert isinstance(broken, Unparsed)


def test_bad_clips_are_named():
    _, processor = tiny_clips()
    for broken, words in (
        ({"type": "video", "video": []}, "0 frames"),
        ({"type": "video", "video": "clip.mp4"}, "list of frames"),
        ({"type": "video", "video": [FRAMES[0]], "times": [0.0, 1.0]}, "2 times"),
    ):
        with pytest.raises(SampleError, match=words):
            validate_messages([user(broken, "where?")])
    with pytest.raises(SampleError, match="expected one size"):
        processor([user({"type": "video", "video": [FRAMES[0], FRAMES[0][:-1]]}, "where?")])
    with pytest.raises(SampleError, match="reads pictures only"):
        tiny()[1](clip([0, 1], track=False))
    with pytest.raises(SampleError, match="3 steps, this model writes 4"):
        processor(clip([0], points=path(3)), for_training=True)
    with pytest.raises(SampleError, match="not a finite point"):
        processor(clip([0], points=np.full((2, 4, 2), np.nan)), for_training=True)
    model, plain = tiny()
    with pytest.raises(ValueError, match="no path head"):
        model.generate(**plain([user("what?")]), num_trajectories=3)


def test_the_gate_mixes_by_confidence():
    model, _ = tiny_clips()
    projector = model.model.pose_projectors["track"]
    features = torch.zeros(1, 6, 11)
    with torch.no_grad():
        projector.gate.weight.fill_(100.0)
        projector.gate.bias.fill_(-50.0)
    features[..., 5] = 0.0
    torch.testing.assert_close(projector(features)[0], projector.absent)
    features[..., 5] = 1.0
    assert not torch.allclose(projector(features)[0], projector.absent)


def test_path_head_learns_points_spread_and_presence():
    torch.manual_seed(0)
    head = PathHead(8, hidden=32)
    states = torch.randn(512, 2, 4, 8)
    target = states[..., :2] * 0.1 + 0.5
    noisy = target + 0.05 * torch.randn_like(target)
    valid = states[..., 2] > 0
    optimiser = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(300):
        optimiser.zero_grad()
        terms = head.loss(states, noisy, valid)
        (terms["total"] + terms["spread"] * 10).backward()
        optimiser.step()
    error = (head.predict(states) - target).norm(dim=-1)[valid].mean()
    assert float(error.detach()) < 0.03
    assert 0.02 < float(head.spread(states)[valid].mean().detach()) < 0.08
    assert float(((head.presence(states) > 0.5) == valid).float().mean()) > 0.95


def test_a_path_moves_with_the_hand_that_was_seen():
    """An untrained head says next to nothing: the hand stays where it was last seen, whatever was seen before."""
    model, processor = tiny_clips("observed")
    with torch.no_grad():
        for value in model.trajectory_head.layers[-1].parameters():
            value.zero_()
    centres = observed_hands(*(processor(clip([0, 1, 2]))[name] for name in ("input_ids", "pose_tokens")), model.config)
    _, origin = describe(centres)
    out = written(model, processor(clip([0, 1, 2])), ["p"] * 4)
    torch.testing.assert_close(out.trajectories[0, 0, 0], origin[0, 0].expand(4, 2))
    torch.testing.assert_close(out.trajectories[0, 0, 1], torch.full((4, 2), 0.5))  # a right hand was never seen
    late = centres.clone()
    late[:, :, -1] = float("nan")
    torch.testing.assert_close(describe(late)[1][0, 0], centres[0, 0, -2])
