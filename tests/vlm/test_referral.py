"""Referral: which questions are asked, what each condition shows, how a reply is scored, what the table says, what the card keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.groups import DatasetError
from data.sample import Sample, Source, assistant, user
from data.synthetic import scenes
from pose_tools.views import View
from vlm.commands.console import user_errors
from vlm.evaluation import baselines, run
from vlm.evaluation.asking import reply_of
from vlm.evaluation.referral import CONDITIONS, ROWS, Question, conversation, image_of, read_questions, select, shuffled
from vlm.evaluation.scoring import Reply, score
from vlm.evaluation.tables import CardError, into_card, none_f1, summarise

BOTH = ["left hand", "right hand"]
BOX, OTHER = [10.0, 10.0, 50.0, 50.0], [60.0, 10.0, 100.0, 50.0]


def targets(kind: str, boxes=(), labels=(), text=None) -> dict:
    return {"kind": kind, "boxes": [list(b) for b in boxes], "labels": list(labels), "text": text}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "test"
    assert list(scenes.make_scenes(out, scenes.Settings("test", seed=3, size=96), 24, 1))[-1] == 24
    return out


@pytest.fixture(scope="module")
def asked(folder: Path) -> list[Question]:
    return read_questions(folder)


def perfect(question: Question) -> Reply:
    t = question.sample.targets
    if question.none:
        return Reply(none=True)
    return Reply(boxes=t["boxes"], labels=t["labels"] or [None] * len(t["boxes"]), text=t["text"])


# Scoring


@pytest.mark.parametrize(
    "reply, truth, right, valid",
    [
        (Reply(boxes=[BOX], labels=[None]), targets("hand_left", [BOX]), True, True),
        (Reply(boxes=[OTHER], labels=[None]), targets("hand_left", [BOX]), False, True),
        (Reply(boxes=[BOX, BOX], labels=[None, None]), targets("hand_left", [BOX]), False, False),
        (Reply(none=True), targets("hand_left", [BOX]), False, True),
        (Reply(none=True), targets("hand_left"), True, True),
        (Reply(boxes=[BOX], labels=[None]), targets("object"), False, True),
        (Reply(valid=False), targets("object"), False, False),
        (Reply(boxes=[BOX, OTHER], labels=BOTH), targets("hands", [BOX, OTHER], BOTH), True, True),
        (Reply(boxes=[OTHER, BOX], labels=BOTH), targets("hands", [BOX, OTHER], BOTH), False, True),
        (Reply(boxes=[BOX], labels=["left hand"]), targets("hands", [BOX, OTHER], BOTH), False, True),
        (Reply(boxes=[BOX, BOX], labels=["left hand", "left hand"]), targets("hands", [BOX], ["left hand"]), False, False),
        (Reply(boxes=[BOX], labels=[None]), targets("hands", [BOX], ["left hand"]), False, False),
        (Reply(text="Red cup."), targets("held_name", text="red cup"), True, True),
        (Reply(text="cup"), targets("held_name", text="red cup"), False, True),
        (Reply(none=True), targets("held_name"), True, True),
        (Reply(boxes=[BOX], labels=[None]), targets("held_name", text="red cup"), False, False),
        (Reply(none=True), targets("contact", text="no"), False, False),
        (Reply(text="no"), targets("contact", text="no"), True, True),
    ],
)  # fmt: skip
def test_a_reply_is_right_only_in_the_form_and_at_the_place_asked_for(reply: Reply, truth: dict, right: bool, valid: bool) -> None:
    got = score(reply, truth)
    assert (got.right, got.valid) == (right, valid)


def test_the_wrong_side_is_a_hit_on_the_other_hand_alone() -> None:
    truth = targets("hand_left", [BOX])
    assert score(Reply(boxes=[OTHER], labels=[None]), truth, OTHER).wrong_side is True
    assert score(Reply(boxes=[BOX], labels=[None]), truth, OTHER).wrong_side is False
    assert score(Reply(boxes=[BOX], labels=[None]), truth, BOX).wrong_side is False  # crossed hands: it hits both
    assert score(Reply(none=True), truth, OTHER).wrong_side is False
    assert score(Reply(boxes=[OTHER], labels=[None]), truth, None).wrong_side is None


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'foot' is not known"):
        score(Reply(none=True), targets("foot"))


def test_none_f1_by_hand() -> None:
    reply_none, reply_box = Reply(none=True), Reply(boxes=[BOX], labels=[None])
    absent, present = targets("object"), targets("object", [BOX])
    scores = [
        score(reply_none, absent),
        score(reply_none, absent),
        score(reply_box, absent),
        score(reply_none, present),
        score(reply_box, present),
    ]
    assert none_f1(scores).value == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))


@given(st.text(max_size=60))
def test_whatever_a_model_writes_becomes_a_reply_that_is_scored(text: str) -> None:
    reply = reply_of(text, View.identity((100, 100)), "norm1000")
    for kind in ("hand_left", "hands", "held_name", "contact"):
        got = score(reply, targets(kind, [BOX] if "hand" in kind else [], ["left hand"] if kind == "hands" else [], "yes"))
        assert got.valid or not got.right
    assert Reply.from_record(reply.as_record() | {"id": "x"}) == reply


# Questions


def test_the_truth_scores_one_and_keeps_the_sides_apart(asked: list[Question]) -> None:
    assert all(q.score(perfect(q)).right and q.score(perfect(q)).valid for q in asked)
    assert {q.row for q in asked} == set(ROWS)
    both = [q for q in asked if q.other_hand is not None]
    assert both and all(q.score(perfect(q)).wrong_side is False for q in both)
    swapped = [q.score(Reply(boxes=[q.other_hand], labels=[None])) for q in both]
    assert all(s.wrong_side != s.hit for s in swapped)


def question(number: int, none: bool, kind: str = "object") -> Question:
    picture = {"type": "image", "image": f"/nowhere/{number}.jpg"}
    sample = Sample(
        f"{kind}-{number}-{none}", [user(picture, "?"), assistant("!")], Source("t", f"v{number}"), targets(kind, [] if none else [BOX])
    )
    return Question(sample, "named object")


def test_a_quarter_of_a_row_is_none_and_the_draw_does_not_depend_on_the_order() -> None:
    candidates = [question(n, none=n % 2 == 0) for n in range(400)]
    chosen = select(candidates, 100, none_share=0.25)
    assert len(chosen) == 100 and sum(q.none for q in chosen) == 25
    assert {q.id for q in select(candidates[::-1], 100)} == {q.id for q in chosen}
    assert {q.id for q in select(candidates, 100, seed=1)} != {q.id for q in chosen}


def test_a_row_short_of_one_sort_is_filled_with_the_other() -> None:
    candidates = [question(n, none=n < 5) for n in range(400)]
    chosen = select(candidates, 100)
    assert len(chosen) == 100 and sum(q.none for q in chosen) == 5


def test_a_partner_has_another_picture_and_another_kind(asked: list[Question]) -> None:
    partners = shuffled(asked)
    assert set(partners) == {q.id for q in asked}
    assert all(partners[q.id].kind != q.kind and image_of(partners[q.id]) != image_of(q) for q in asked)
    with pytest.raises(ValueError, match="no partner"):
        shuffled([question(1, True), question(2, True)])


def test_what_each_condition_shows(asked: list[Question]) -> None:
    mine = asked[0]
    partner = shuffled(asked)[mine.id]

    def parts(name: str) -> dict:
        condition = next(c for c in CONDITIONS if c.name == name)
        (turn,) = conversation(mine, condition, tokens=lambda picture: np.array([[len(picture), hash(picture)]]), partner=partner)
        return {part["type"]: part for part in turn["content"]}

    own, other = ([part for part in q.sample.messages[0]["content"] if part["type"] == "text"][0] for q in (mine, partner))
    shipped = parts("as shipped")
    assert (
        shipped["image"]["image"] == image_of(mine) and shipped["text"] == own and shipped["pose"]["tokens"][0, 1] == hash(image_of(mine))
    )
    assert "pose" not in parts("pixels only") and parts("pixels only")["image"]["image"] == image_of(mine)
    assert parts("detections shuffled")["pose"]["tokens"][0, 1] == hash(image_of(partner))
    assert np.ptp(parts("no image")["image"]["image"]) == 0 and "pose" not in parts("no image")
    assert parts("shuffled question")["text"] == other and parts("shuffled question")["image"]["image"] == image_of(mine)


def test_a_folder_that_holds_no_scenes_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not a folder of synthetic scenes.*make_synthetic"):
        read_questions(tmp_path)


# Baselines and the whole run


def test_the_prior_is_the_mean_of_its_boxes_and_the_most_frequent_words() -> None:
    samples = [
        (Sample("a", [user("?")], Source("t"), targets("hand_left", [[0, 0, 10, 10]])), (100, 100)),
        (Sample("b", [user("?")], Source("t"), targets("hand_left", [[40, 40, 100, 100]])), (200, 200)),
        (Sample("c", [user("?")], Source("t"), targets("held_name", text="red cup")), (100, 100)),
        (Sample("d", [user("?")], Source("t"), targets("held_left")), (100, 100)),
    ]
    prior = baselines.Prior(samples)
    np.testing.assert_allclose(prior((50, 100), "hand_left").boxes, [[5, 10, 15, 30]])
    assert prior((50, 100), "held_name").text == "red cup"
    assert prior((50, 100), "held_left") is None and prior((50, 100), "contact") is None


def test_the_detector_alone_says_what_its_tokens_say() -> None:
    tokens = np.full((2, 11), np.nan, np.float32)
    tokens[1] = [*OTHER, 1, 0.9, *BOX, 0.8]
    assert baselines.detector_alone(tokens, "hand_left").none
    assert baselines.detector_alone(tokens, "hand_right").boxes == [OTHER]
    assert baselines.detector_alone(tokens, "held_right").boxes == [BOX]
    assert baselines.detector_alone(tokens, "hands").labels == ["right hand"]
    assert baselines.detector_alone(tokens, "object") is None


def test_a_run_taken_up_again_and_one_of_single_questions_give_the_same_table(asked: list[Question], tmp_path: Path) -> None:
    """Batch = single and resumed = uninterrupted, with a model that answers from its conversation alone."""
    no_tokens = np.full((2, 11), np.nan, np.float32)

    def ask(turns) -> list[Reply]:
        words = [turn[0]["content"][-1]["text"] for turn in turns]
        return [Reply(none=True) if len(w) % 2 else Reply(boxes=[BOX], labels=[None]) for w in words]

    texts = []
    for name, batch_size in (("a", 32), ("b", 1)):
        replies = {
            condition.name: run.ask_all(asked, condition, ask, lambda _: no_tokens, out=tmp_path / name, batch_size=batch_size)
            for condition in CONDITIONS
        }
        replies |= run.baseline_replies(asked, lambda _: no_tokens, None)
        texts.append(run.report(asked, replies, tmp_path / name, ["about"]))
        for path in (tmp_path / name / "predictions").glob("*"):
            path.write_bytes(path.read_bytes()[:500])  # cut: the second round asks again what is missing
    assert texts[0] == texts[1]
    again = {c.name: run.ask_all(asked, c, ask, lambda _: no_tokens, out=tmp_path / "a") for c in CONDITIONS}
    assert run.report(asked, again | run.baseline_replies(asked, lambda _: no_tokens, None), tmp_path / "a", ["about"]) == texts[0]
    assert "centre box" in texts[0] and "detector alone" in texts[0] and "missed" in texts[0]


def test_the_table_of_perfect_replies(asked: list[Question]) -> None:
    for row in ROWS:
        members = [q for q in asked if q.row == row]
        line = summarise(row, "perfect", [q.score(perfect(q)) for q in members], [q.cluster for q in members])
        assert (line.n, line.right.value, line.valid.value) == (len(members), 1.0, 1.0)
        assert line.right.low == line.right.high == 1.0
        if any(q.none for q in members):
            assert line.none_f1.value == 1.0


def test_only_the_marked_section_of_a_card_changes(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    into_card(card, "referral", "first")
    card.write_text("# Title\n\n" + card.read_text() + "\nthe end\n")
    before = card.read_text()
    into_card(card, "referral", "second\n")
    assert card.read_text() == before.replace("first", "second")
    into_card(card, "tools", "third")
    assert card.read_text().startswith(before.replace("first", "second").rstrip()) and "third" in card.read_text()
    card.write_text("<!-- evaluate:referral -->\nno end")
    with pytest.raises(CardError, match="repair the file"):
        into_card(card, "referral", "x")
    assert issubclass(CardError, user_errors()), "one line for the person who gave --card, no traceback"
    assert card.read_text() == "<!-- evaluate:referral -->\nno end"
