"""HOI-QA, strictly scored: what the published scorer gives away is not given here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.hoi_qa import HOIQAError
from tests.vlm.test_hoi_qa_compat import EXACT, OFF, base
from vlm.evaluation import hoi_qa as strict
from vlm.evaluation.compat import hoi_qa as published

BOX = strict.Item("epic", "k", "ref_answer", "?", "objN2objBB", "P01/frame_1.jpg", ((0.1, 0.1, 0.5, 0.5),))
TWO = strict.Item("hoi", "k", "answer", "?", "handN2handBB", "P01/frame_1.jpg", ((0.1, 0.1, 0.5, 0.5), (0.6, 0.6, 0.9, 0.9)))


@pytest.mark.parametrize(
    "item, answer, valid, right, iou",
    [
        (BOX, EXACT, True, True, 1.0),
        (BOX, OFF, True, False, 0.0),
        (BOX, "none", False, False, 0.0),
        (BOX, EXACT + OFF, False, False, 0.0),
        (BOX, EXACT + " {<1><2><3>}", False, False, 0.0),
        (BOX, EXACT * 10_000, False, False, 0.0),
        (BOX, "{<50><50><10><10>}", False, False, 0.0),
        (BOX, "{<10><10><50><101>}", False, False, 0.0),
        (BOX, "{<١٠><١٠><٥٠><٥٠>}", False, False, 0.0),
        (BOX, "{<10.0><10><50><50.00>}", True, True, 1.0),
        (TWO, OFF + EXACT, True, True, 1.0),
        (TWO, EXACT + EXACT, True, False, 0.5),
        (TWO, EXACT, False, False, 0.0),
        (TWO, "{<0><0><100><100>}{<0><0><100><100>}", True, False, pytest.approx(0.125)),
    ],
)
def test_boxes(item, answer, valid, right, iou):
    got = strict.score_item(item, answer)
    assert (got.valid, got.right, got.iou) == (valid, right, iou)


@pytest.mark.parametrize(
    "answer, noun, right",
    [
        ("Chopping boards.", "chopping board", True),
        ("the chopping board", "board:chopping", True),
        ("Left hand of the person", "left hand", True),
        ("the left hand, or the right hand", "left hand", False),
        ("a knife", "knife", True),
        ("knives", "knife", True),
        ("knife and fork", "knife", False),
        ("glass", "glas", False),
        ("", "knife", False),
        (EXACT, "knife", False),
    ],
)
def test_names(answer, noun, right):
    item = strict.Item("epic", "k", "iden_answer", "?", "objBB2objN", "P01/frame_1.jpg", (), noun)
    assert strict.score_item(item, answer).right is right


PAIRS = (
    "glove gloves, stove stoves, clove cloves, olive olives, chive chives, sieve sieves, cookie cookies, smoothie smoothies, pie pies, "
    "shoe shoes, toe toes, potato potatoes, bus buses, vase vases, quiche quiches, knife knives, leaf leaves, half halves, loaf loaves, "
    "dish dishes, glass glasses, box boxes, axe axes, berry berries, slice slices, cheese cheeses, pea peas, pan pans"
)


def test_plurals_are_their_singulars_and_nothing_else_is():
    words = [pair.split() for pair in PAIRS.split(", ")]
    assert [one for one, many in words if strict.normalised(one) != strict.normalised(many)] == []
    assert len({strict.normalised(one) for one, _ in words}) == len(words)


def test_items_are_the_published_questions():
    truth, _ = base()
    items = {item.id: item for item in strict.read_items(truth)}
    assert len(items) == 6 + 2 * 4
    assert items["epic/hand/ref_answer"].question == "Where is the left hand" and items["epic/hand/ref_answer"].side == "left"
    assert items["ego4d/thing/iden_answer"].question == "{<10><10><50><50>}"
    assert items["hoi/q0/answer"].question == "Where is the left hand of the person?"
    assert (items["hoi/q1/answer"].side, len(items["hoi/q1/answer"].boxes)) == ("both", 2)
    assert items["hoi/q3/answer"].kind == "objN2handBB" and items["hoi/q4/answer"].side == "left"
    tagged = {item.id: item for item in strict.read_items(truth, tags=True)}
    assert tagged["epic/hand/ref_answer"].question == "[refer] Where is the left hand"
    assert tagged["hoi/q4/answer"].question == "[vqa] What hand is holding the knife?"


def test_tags_are_taken_out_with_their_blank_as_published():
    truth, _ = base()
    truth["hoi"][4]["question"] = "[vqa] [x] What hand is holding the [cup]?"
    assert strict.read_items(truth)[4].question == "What hand is holding the [cup]?"


def test_files_of_another_form_are_refused():
    truth, said = base()
    for changed, words in (
        ({"hoi": {"q0": truth["hoi"][0]}}, "hoi: epic-visor-test.json is a list of questions, got dict"),
        ({"epic": truth["hoi"]}, "epic: epic-test.json is an object of boxes by key, got list"),
        ({"hoi": [*truth["hoi"], "q9"]}, "hoi: record 6 of epic-visor-test.json is 'q9', expected an object"),
    ):
        for use in (strict.read_items, lambda files: published(said, files)):
            with pytest.raises(HOIQAError, match=words):
                use(truth | changed)
    for use in (lambda files: strict.score_all(strict.read_items(truth), files), lambda files: published(files, truth)):
        with pytest.raises(HOIQAError, match="ego4d: predictions are an object of answers by key, got list"):
            use(said | {"ego4d": list(said["ego4d"].values())})
    truth["hoi"][1]["answer"] = "{<1><2><3>}"
    with pytest.raises(HOIQAError, match="hoi, record 'q1': the answer '{<1><2><3>}' is neither a name nor boxes"):
        strict.read_items(truth)


def test_truth_scores_one_and_less_answers_score_less():
    truth, said = base()
    items = strict.read_items(truth)
    assert all(score.right for score in strict.score_all(items, said))
    said["epic"]["thing"]["ref_answer"] = "none"
    scores = strict.score_all(items, said)
    assert published(said, truth)[0]["epic"]["mean_iou"] == 100.0  # there, silence is gold
    boxed = [score.iou for item, score in zip(items, scores) if item.boxes]
    assert sum(boxed) / len(boxed) < 1 and sum(not score.right for score in scores) == 1
    del said["ego4d"]["hand"]
    assert sum(not score.right for score in strict.score_all(items, said)) == 3


def test_files_keep_every_answer():
    truth, said = base()
    items = strict.read_items(truth)
    answers = {item.id: said[item.file][item.key][item.field] for item in items}
    files = strict.published_form(items, answers)
    assert published(files, truth) == published(said, truth)
    assert strict.score_all(items, files) == strict.score_all(items, said)


def test_report_and_comparison():
    truth, said = base()
    for n, row in enumerate(truth["hoi"]):
        row["image_path"] = f"P0{n}/frame_1.jpg"
    items = strict.read_items(truth)
    scores = strict.score_all(items, said)
    text = strict.report(items, scores)
    assert "| all | 14 | 1.000 | 1.000" in text and "| side: both | 1 |" in text and "| size of the box: large | 8 |" in text
    said["hoi"]["q0"]["answer"] = OFF
    worse = strict.score_all(items, said)
    assert "| all | 14 | 1.000 | 0.929 | -0.071" in strict.compare(items, scores, worse)


@given(st.text(max_size=80))
def test_any_text_is_scored(answer):
    for item in (BOX, TWO):
        got = strict.score_item(item, answer)
        assert got.valid or (not got.right and got.iou == 0)
