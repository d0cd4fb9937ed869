"""A conversation with a converted checkpoint: what it wrote before goes along, whatever it wrote, in both published templates."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.sample import SampleError, assistant, user
from tests.vlm.test_handsonvlm_parity import FRAMES, PUBLISHED, SIZE, TOKENIZER, Script, converted
from vlm.answers import TrajectoryAnswer, Unparsed
from vlm.checkpoints.handsonvlm import make_processor
from vlm.medium import Medium
from vlm.page import conversation as page
from vlm.page.conversation import Session, Settings, reply

TOKEN = PUBLISHED["hand_token_id"]
WHOLE, SHORT, LONG = [20, *[TOKEN] * 4, 21, 2], [20, *[TOKEN] * 3, 2], [*[TOKEN] * 6, 2]
CLIP = Medium(tuple(FRAMES), tuple((np.arange(10) - 9) / 4), "clip", look=False)
PATH = {"type": "trajectory", "points": np.full((2, 4, 2), 100.0)}


class Says(Script):
    """Makes the model write these ids, from the length of the prompt that it sees first; for each of the times it is asked."""

    def __init__(self, ids: list[int]) -> None:
        self.ids, self.prompt, self.last = ids, 0, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] != self.last + 1:
            self.prompt = input_ids.shape[1]
        self.last = input_ids.shape[1]
        return super().__call__(input_ids, scores)


@pytest.mark.parametrize("template", ["vicuna_v1", "llava_v0"])
def test_an_answer_whose_path_cannot_be_read_does_not_end_the_conversation(monkeypatch: pytest.MonkeyPatch, template: str):
    model, _ = converted()
    processor = make_processor(TOKENIZER, model.config, template)
    session, given = Session(CLIP), []
    generate = type(model).generate

    def watched(self, input_ids, **batch):
        given.append((len(batch.get("trajectories", ())), int((input_ids == TOKEN).sum())))
        return generate(self, input_ids, **batch)

    monkeypatch.setattr(type(model), "generate", watched)
    kinds = []
    for number, ids in enumerate((WHOLE, SHORT, LONG, [20, 2], WHOLE)):
        monkeypatch.setattr(page, "generation", lambda *_, ids=ids: {"logits_processor": [Says(ids)]})
        given.clear()
        *_, last = reply(model, processor, session, f"Question {number}?", Settings(tools=False))
        prompt = given[0]
        assert prompt == ((1, 4) if number else (0, 0)), "the one path that could be read goes along, and no token without its point"
        kinds.append(next((type(a) for a in last.turn.answers if isinstance(a, (TrajectoryAnswer, Unparsed))), None))
        session = last.session
    assert kinds == [TrajectoryAnswer, Unparsed, Unparsed, None, TrajectoryAnswer] and len(session.turns) == 5


def test_two_paths_in_two_turns_and_their_tokens_in_words():
    """Trained and asked alike; a token in words beside a path has no point, and is an error that says so."""
    model, processor = converted("handsonvlm_fp32")
    video = {"type": "video", "video": FRAMES}
    turns = [user(video, "Where?"), assistant("Here: ", PATH, "."), user("And then?"), assistant("There: ", PATH, ".")]
    batch = processor(turns, for_training=True)
    assert batch["trajectories"].shape == (2, 2, 4, 2) and int((batch["labels"] == TOKEN).sum()) == 8
    noise = torch.zeros(2, 2, 4, 256)
    with torch.no_grad():
        both = model(**batch, noise=noise)
        first = model(**processor(turns[:2], for_training=True), noise=noise[:1])
    np.testing.assert_allclose(both.trajectories[0], first.trajectories[0], atol=1e-5)
    np.testing.assert_allclose(batch["trajectories"][1] * torch.tensor(SIZE), 100.0, rtol=1e-6)
    for training in (True, False):
        with pytest.raises(SampleError, match="have 7 <hand_traj> but the points of 1 paths of 4 steps; give every path as a part"):
            processor([*turns[:3], assistant("There: " + "<hand_traj>" * 3)], for_training=training)


def test_a_hand_that_an_earlier_path_lacks_is_given_back_where_training_put_it():
    model, processor = converted()
    path = PATH | {"valid": [[True] * 4, [False] * 4]}
    batch = processor([user({"type": "video", "video": FRAMES}, "Where?"), assistant("Here: ", path, "."), user("And then?")])
    with torch.no_grad():
        asked = model(**batch).logits[:, -1]
    first = model.generate(**batch, max_new_tokens=1, output_logits=True).logits[0]
    torch.testing.assert_close(first, asked, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_a_batch_of_another_tokenizer_or_without_its_paths_is_refused(training: bool):
    model, processor = converted()
    model.train(training)
    batch = processor([user({"type": "video", "video": FRAMES}, "Where?"), assistant("Here: ", PATH)], for_training=True)
    rows = model.config.text_config.vocab_size
    for strange in (-200, rows + 5):
        ids = batch["input_ids"].masked_fill(batch["input_ids"] == 1, strange)
        with pytest.raises(ValueError, match=f"{strange}.* this model has rows 0 to {rows - 1}: they are another tokenizer's"):
            model(**batch | {"input_ids": ids})
    with pytest.raises(ValueError, match="answers have 4 path tokens but no paths came with them"):
        model(**batch | {"trajectories": None, "trajectory_valid": None})


@pytest.mark.parametrize("compat", ["handsonvlm_fp32", None])
def test_a_hand_that_is_known_at_some_steps_counts_whole_as_published_and_in_part_here(compat: str | None):
    """What fills the gaps of a label stands in them, never the corner."""
    model, processor = converted(compat)
    points = np.random.default_rng(3).uniform(20, 200, (2, 4, 2))
    known = np.array([[True, False, True, True], [False] * 4])

    def loss(points: np.ndarray, known: np.ndarray) -> dict[str, torch.Tensor]:
        path = {"type": "trajectory", "points": points, "valid": known}
        batch = processor([user({"type": "video", "video": FRAMES}, "Where?"), assistant("Here: ", path)], for_training=True)
        with torch.no_grad():
            return model(**batch, noise=torch.zeros(1, 2, 4, 256)).losses

    found, whole = loss(points, known), loss(points, known | known.any(1, keepdims=True))
    torch.testing.assert_close(found["tokens"], whole["tokens"], rtol=0, atol=0)
    assert torch.equal(found["path_traj"], whole["path_traj"]) == (compat is not None)
    gap = np.where(known[..., None], points, np.nan)
    assert torch.isfinite(loss(gap, known)["path_total"])
