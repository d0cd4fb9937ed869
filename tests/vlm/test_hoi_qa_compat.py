"""The published HOI-QA scorer: its lines, worked out by hand, and each of its oddities."""

from __future__ import annotations

import copy
import json

import pytest

from data.hoi_qa import HOIQAError
from vlm.evaluation.compat import EmptySubsetError, find_boxes, hoi_qa, names_it, overlaps

EXACT, OFF = "{<10><10><50><50>}", "{<60><60><90><90>}"
E_BOX, G_BOX = [192, 108, 960, 540], [144, 108, 720, 540]  # EXACT in either frame
TWO = "{<192><108><960><540>}{<1152><648><1728><972>}"


def base() -> tuple[dict, dict]:
    """Two direct questions a file and one interaction question of every subset, all answered right."""
    direct = lambda box: {  # noqa: E731
        "hand": {"image_path": "a/b/frame_1.jpg", "noun": "left hand", "bbox": box},
        "thing": {"image_path": "a/b/frame_1.jpg", "noun": "knife", "bbox": box},
    }
    asked = [
        ("[refer] Where is the left hand of the person?", E_BOX, EXACT),
        ("[refer] Where are the hands of the person?", TWO, EXACT + OFF),
        ("[refer] Locate the object being manipulated by the left hand", E_BOX, EXACT),
        ("[refer] Which hand has the knife?", E_BOX, EXACT),
        ("[vqa] What hand is holding the knife?", "left hand", "Left hand."),
        ("[vqa] What is the object in the left hand?", "knife", "a knife"),
    ]
    truth = {"epic": direct(E_BOX), "ego4d": direct(G_BOX)}
    truth["hoi"] = [{"id": f"q{n}", "image_path": "a/b/frame_1.jpg", "question": q, "answer": a} for n, (q, a, _) in enumerate(asked)]
    said = {
        name: {k: {"question": "", "ref_answer": EXACT, "iden_answer": row["noun"]} for k, row in truth[name].items()}
        for name in ("epic", "ego4d")
    }
    said["hoi"] = {f"q{n}": {"question": q, "answer": s} for n, (q, _, s) in enumerate(asked)}
    return truth, said


def run(change=None, **options):
    truth, said = base()
    if change:
        change(truth, said)
    return hoi_qa(said, truth, **options)


def test_the_printed_lines():
    _, lines = run()
    part = ["Noun Accuracy: 100.0; 2/2", "BBox Accuracy: 100.0; 2/2", "Mean IoU Score: 100.0", "Wrong BB cases: 0"]
    rest = ["Noun Accuracy: 100.0; 2/2", "BBox Accuracy: 100.0; 5/5", "Mean IoU Score: 100.0"]
    assert lines[:12] == [*part, *part, *(f"HOI {line}" for line in rest), "HOI Wrong BB cases: 0"]
    assert lines[12:15] == ["Final Noun Accuracy: 100.0; 6/6", "Final BBox Accuracy: 100.0; 9/9", "Final Mean IoU Score: 100.0; 9"]
    assert lines[15] == lines[22] == "-" * 50 and lines[23] == "Subset Evaluation"
    assert lines[16:22] == [
        "ho_ref Noun Accuracy: 100.0; 4/4", "ho_ref BBox Accuracy: 100.0; 7/7", "ho_ref Mean IoU Score: 100.0",
        "i_ref Noun Accuracy: 100.0; 2/2", "i_ref BBox Accuracy: 100.0; 2/2", "i_ref Mean IoU Score: 100.0",
    ]  # fmt: skip
    totals = {
        "handBB2handN": 2,
        "objBB2objN": 2,
        "objN2objBB": 2,
        "handN2handBB": 5,
        "handN2objBB": 1,
        "objN2handBB": 1,
        "objN2handN": 1,
        "handN2objN": 1,
    }
    assert lines[24:] == [f"{name} Accuracy: 100.0; {n}/{n}" for name, n in totals.items()]


def test_an_unreadable_direct_answer_raises_the_mean_iou():
    far = run(lambda t, s: s["epic"]["thing"].update(ref_answer=OFF))[0]["epic"]
    mute = run(lambda t, s: s["epic"]["thing"].update(ref_answer="none"))[0]["epic"]
    assert (far["mean_iou"], mute["mean_iou"]) == (50.0, 100.0)
    assert (far["bbox_accuracy"], mute["bbox_accuracy"], mute["wrong_bb_cases"]) == (50.0, 50.0, 1)


def test_the_best_of_many_counts_and_is_scaled_as_an_epic_frame():
    assert run(lambda t, s: s["epic"]["thing"].update(ref_answer=OFF + EXACT))[0]["epic"]["mean_iou"] == 100.0
    ego = run(lambda t, s: s["ego4d"]["thing"].update(ref_answer=OFF + EXACT))[0]["ego4d"]
    expected = overlaps(G_BOX, [[10, 10, 50, 50]], (1920, 1080))[0]
    assert ego["mean_iou"] == round((1 + expected) / 2 * 100, 2) < 90


def test_two_true_boxes():
    def answers(text):
        scores, lines = run(lambda t, s: s["hoi"]["q1"].update(answer=text))
        return scores["hoi"]["bbox_correct"], scores["hoi"]["ious"], [line for line in lines if line.startswith("More")]

    assert answers(EXACT + OFF) == (5, 5, [])
    assert answers(EXACT) == (3, 5, [])  # two zeros
    assert answers("no") == (3, 4, [])  # one zero
    assert answers(EXACT + OFF + OFF) == (
        3,
        3,
        [f"More than 2 bounding boxes present. {[[10.0, 10.0, 50.0, 50.0]] + [[60.0, 60.0, 90.0, 90.0]] * 2}"],
    )
    wide = "{<0><0><100><100>}"
    assert answers(wide + EXACT)[0] == 3  # the second truth is not reached: both are lost

    def one_for_both(truth, said):
        truth["hoi"][1]["answer"] = "{<192><108><960><540>}{<200><108><960><540>}"
        said["hoi"]["q1"]["answer"] = EXACT + OFF

    assert run(one_for_both)[0]["hoi"]["bbox_correct"] == 5


@pytest.mark.parametrize(
    "answer, noun, gloves, right",
    [
        ("The Left hand.", "left hand", False, True),
        ("the left hand, or the right hand", "right hand", False, True),
        ("a knife.", "knife", False, True),
        ("a knife, I think", "knife", False, False),
        ("chopping board", "chopping board", False, False),
        ("knives", "knife", False, False),
        ("knife", "Knife", False, False),
        ("the right glove", "left glove", True, True),
        ("the left glove", "left glove", False, False),
    ],
)
def test_names_are_compared_as_published(answer, noun, gloves, right):
    assert names_it(answer, noun, gloves) is right


def test_boxes_are_truncated_inclusive_and_strictly_above():
    assert overlaps([0, 0, 9, 9], [[0, 0, 100, 50]], (10, 10)) == [pytest.approx(60 / 106)]  # pixels 0-10 x 0-5, ends counted
    assert overlaps([0, 0, 9, 9], [[90, 90, 10, 10], [1e400, 0, 0, 0]], (10, 10)) == [0.0, 0.0]
    half = lambda t, s: t["epic"]["thing"].update(bbox=[192, 108, 960, 973])  # noqa: E731
    iou = run(half)[0]["epic"]["mean_iou"] * 2 - 100
    assert iou == pytest.approx(50, abs=0.2)
    exact = overlaps([192, 108, 960, 973], [[10, 10, 50, 50]], (1920, 1080))[0]
    assert run(half, iou_threshold=exact)[0]["epic"]["bbox_correct"] == 1
    assert run(half, iou_threshold=exact - 1e-9)[0]["epic"]["bbox_correct"] == 2
    assert find_boxes("{<-1><2.5><٣><4>} {<1><2><3>} { <1><2><3><4>}") == [[-1.0, 2.5, 3.0, 4.0]]


def test_ten_thousand_boxes_are_one_question():
    assert run(lambda t, s: s["hoi"]["q0"].update(answer=OFF * 10_000 + EXACT))[0]["hoi"]["bbox_correct"] == 5


def test_an_unknown_id_takes_the_truth_before_it():
    def change(truth, said):
        said["hoi"] = {("other" if k == "q3" else k): v for k, v in said["hoi"].items()}

    scores, _ = run(change, empty="nan")
    assert scores["subsets"]["handN2objBB"]["total"] == 2 and scores["subsets"]["objN2handBB"]["total"] == 0


def test_empty_subsets_end_it_or_are_nan():
    drop = lambda t, s: (t["hoi"].pop(5), s["hoi"].pop("q5"))  # noqa: E731
    with pytest.raises(EmptySubsetError, match="handN2objN"):
        run(drop)
    scores, lines = run(drop, empty="nan")
    assert lines[-1] == "handN2objN Accuracy: nan; 0/0" and scores["subsets"]["handN2objBB"]["accuracy"] == 100.0


def test_files_are_found_and_must_belong_together(tmp_path):
    truth, said = base()
    for name, file in (("epic", "epic-test"), ("ego4d", "ego4d-test"), ("hoi", "epic-visor-test")):
        (tmp_path / f"{file}.json").write_text(json.dumps(truth[name]))
        (tmp_path / f"mine{'' if name == 'epic' else '_' + name}.json").write_text(json.dumps(said[name]))
    assert hoi_qa(tmp_path / "mine.json", tmp_path) == run()
    (tmp_path / "mine_hoi.json").write_text(json.dumps(said["hoi"])[:40])
    with pytest.raises(HOIQAError, match="mine_hoi.json: not whole json"):
        hoi_qa(tmp_path / "mine.json", tmp_path)
    less = copy.deepcopy(said)
    less["epic"].pop("thing")
    with pytest.raises(HOIQAError, match="epic: 1 predictions for 2 questions"):
        hoi_qa(less, truth)
    less = copy.deepcopy(said)
    less["ego4d"].pop("thing")
    with pytest.raises(HOIQAError, match="ego4d: no prediction of 'thing'"):
        hoi_qa(less, truth)
