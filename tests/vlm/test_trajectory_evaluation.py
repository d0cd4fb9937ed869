"""Trajectory evaluation: what is asked, what each condition shows, how paths are scored, what the tables say, what is kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.groups import DatasetError, Groups
from data.sample import Sample, Source, assistant, user
from pose_tools.image_io import write_image
from pose_tools.views import View
from tests.tiny import tiny_clips
from tests.vlm.test_clips import Script
from vlm.answers import Paths
from vlm.commands import evaluate, trajectory
from vlm.commands.console import run as run_command
from vlm.evaluation import trajectory_run
from vlm.evaluation.trajectory import CONDITIONS, ClipQuestion, conversation, other_goals, read_clip_questions, select_clips
from vlm.evaluation.trajectory_asking import PathAsker, path_reply
from vlm.evaluation.trajectory_baselines import answer_all, constant_velocity, last_position, penalties
from vlm.evaluation.trajectory_scoring import PathReply, path_errors, worse_path
from vlm.evaluation.trajectory_sheet import write_sheets
from vlm.evaluation.trajectory_tables import Scores, aims

SIZE = (96, 64)
PAST_TIMES, FUTURE_TIMES = np.array([-0.5, -0.25, 0.0]), np.array([0.25, 0.5, 0.75, 1.0])
NO_TOKENS = np.full((6, 11), np.nan, np.float32)


def sample(start: int, action: int, frame: str = "", noise: float = 0.5) -> Sample:
    """The left hand rests, the right one goes to the goal of the action: up or down at random, as no past place tells."""
    rng = np.random.default_rng([start, 7])
    here = rng.uniform([30, 20], [60, 40])
    past = np.stack([np.tile(here - [20, 0], (3, 1)), here + rng.normal(0, noise, (3, 2))])
    goal = here + (rng.uniform(8, 16) * np.array([1.0, 1.5])) * (1 if (action + start) % 2 else -1)
    reach = here + (goal - here) * np.array([0.3, 0.7, 0.95, 1.0])[:, None]
    future = np.stack([np.tile(here - [20, 0], (4, 1)), reach])
    valid = np.ones((2, 4), bool)
    valid[1, 3] = start % 5 != 0
    targets = {
        "kind": "trajectory", "future": future, "valid": valid, "past": past, "past_valid": np.ones((2, 3), bool), "past_times": PAST_TIMES,
        "future_times": FUTURE_TIMES, "size": SIZE, "narration": "take it", "side": "right",
        "goal": "red cup", "goal_point": goal.tolist(), "action": "reach", "start": f"clip-{start}", "phase": 0.0 if start % 3 else 0.4,
    }  # fmt: skip
    video = {"type": "video", "video": [f"{frame}-{i}" if not frame.endswith(".png") else frame for i in (0, 1, 2)]}
    words = f"where will my right hand go to take thing {action}?"
    answer = assistant({"type": "trajectory", "points": future, "valid": valid})
    return Sample(f"{start}-{action}", [user(video, words), answer], Source("clips", f"v{start}"), targets)


def questions(count: int, frame: str = "frame") -> list[ClipQuestion]:
    """Clips with two actions each; every fourth has one."""
    return [ClipQuestion(sample(start, action, frame)) for start in range(count) for action in range(1 if start % 4 == 3 else 2)]


@pytest.fixture(scope="module")
def frame(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("frames") / "a.png"
    write_image(path, np.random.default_rng(0).integers(60, 190, (*SIZE[::-1], 3), dtype=np.uint8))
    return str(path)


@pytest.fixture(scope="module")
def asked(frame: str) -> list[ClipQuestion]:
    return questions(30, frame)


class Knowing:
    """Answers as a model that reads the goal off the words, the start off the frames, and is worse without hand tokens."""

    def __init__(self, members: list[ClipQuestion], silent: frozenset[str] = frozenset()) -> None:
        self.by_words = {(q.start, q.words): q for q in members}
        self.starts = {q.id: q.start for q in members}
        self.silent, self.asked = silent, 0

    def __call__(self, turns, names) -> list[PathReply]:
        self.asked += len(turns)
        replies = []
        for (turn,), name in zip(turns, names, strict=True):
            if name in self.silent:
                replies.append(PathReply(None, output="what?", reason="0 paths, expected one"))
                continue
            parts = {part["type"]: part for part in turn["content"]}
            points = self.by_words[self.starts[name], parts["text"]["text"]].future.copy()
            points[:] = np.where(np.isnan(points), 0, points) + (1.0 if "pose" in parts else 3.0)
            if not isinstance(parts["video"]["video"][0], str):
                points += 4.0
            replies.append(PathReply(points, None, np.full((2, 4), 1.5), "<hand_traj>" * 4))
        return replies


def everything(members: list[ClipQuestion], out: Path, ask: Knowing, batch_size: int = 8, train=None) -> tuple[dict, str]:
    replies = {c.name: trajectory_run.ask_all(members, c, ask, lambda q: NO_TOKENS, out=out, batch_size=batch_size) for c in CONDITIONS}
    replies |= trajectory_run.baseline_replies(members, train, out, steps=10)
    return replies, trajectory_run.report(members, replies, out, ["about"], compat=True)


# Scoring


def test_the_truth_scores_zero_and_a_shift_scores_its_length_in_every_unit(asked: list[ClipQuestion]) -> None:
    truth = {q.id: PathReply(np.nan_to_num(q.future)) for q in asked}
    errors = path_errors(asked, truth, {})
    assert np.nanmax(errors.ade) == np.nanmax(errors.fde) == np.nanmax(errors.wde) == 0 and not errors.invalid.any()
    shifted = path_errors(asked, {name: PathReply(r.points + [3.0, 4.0]) for name, r in truth.items()}, {})
    for values in (shifted.ade, shifted.fde, shifted.wde, shifted.per_step):
        np.testing.assert_allclose(values[np.isfinite(values)], 5 * 256 / SIZE[0])
    assert shifted.other_units["px"] == pytest.approx((5, 5))
    assert shifted.other_units["normalised"] == pytest.approx((np.hypot(3 / 96, 4 / 64),) * 2)
    valid = np.stack([q.valid for q in asked])
    assert np.array_equal(np.isfinite(shifted.per_step), valid) and np.array_equal(np.isfinite(shifted.fde), valid[..., -1])


def test_the_best_of_k_futures_counts_only_as_such(asked: list[ClipQuestion]) -> None:
    truth = {q.id: np.nan_to_num(q.future) for q in asked}
    replies = {name: PathReply(points + 6.0, np.stack([points + 6.0, points, points - 9.0])) for name, points in truth.items()}
    errors, alone = path_errors(asked, replies, {}), path_errors(asked, {name: PathReply(r.points) for name, r in replies.items()}, {})
    assert errors.futures == 3 and np.nanmax(errors.min_ade) == 0
    np.testing.assert_array_equal(errors.ade, alone.ade)
    np.testing.assert_array_equal(alone.min_ade, alone.ade)


def test_no_answer_costs_the_worse_of_two_forecasts_and_never_pays(asked: list[ClipQuestion]) -> None:
    worst = penalties(asked)
    silent = path_errors(asked, {q.id: PathReply(None) for q in asked}, worst)
    assert silent.invalid.all()
    two = [path_errors(asked, answer_all(asked, method), {}).ade for method in (last_position, constant_velocity)]
    np.testing.assert_allclose(silent.ade, np.maximum(*two))
    q = asked[1]
    assert np.array_equal(worse_path(q, np.nan_to_num(q.future), np.nan_to_num(q.future) + 1), np.nan_to_num(q.future) + 1)


def test_a_reply_survives_its_record_to_a_thousandth_of_a_pixel() -> None:
    rng = np.random.default_rng(0)
    reply = PathReply(rng.uniform(0, 90, (2, 4, 2)), rng.uniform(0, 90, (3, 2, 4, 2)), rng.uniform(1, 9, (2, 4)), "text")
    back = PathReply.from_record(json.loads(json.dumps(reply.as_record())))
    for name in ("points", "futures", "spread"):
        np.testing.assert_allclose(getattr(back, name), getattr(reply, name), atol=5.1e-4)
    assert back.as_record() == reply.as_record() and back.valid
    assert not PathReply.from_record(PathReply(None, reason="why").as_record()).valid


# What is said


@pytest.mark.parametrize(
    "text, steps, reason",
    [
        ("<hand_traj>" * 4, 4, None),
        ("To take it: " + "<hand_traj>" * 4 + ".", 4, None),
        ("<hand_traj>" * 3, 4, "3 steps, expected 4"),
        ("<hand_traj>" * 7, 4, "7 steps, expected 4"),
        ("I cannot say", 4, "0 paths, expected one"),
        ("none", 4, "0 paths, expected one"),
        ("[1, 2, 3, 4] " + "<hand_traj>" * 4, 4, None),
        ("[4, 3, 2] " + "<hand_traj>" * 4, 4, None),  # where the goal is cannot be read, but the path can
        ('<tool_call>{"name": "x"}</tool_call>' + "<hand_traj>" * 4, 4, "ToolCallAnswer"),
        ("<hand_traj>" * 4 + " and " + "<hand_traj>" * 4, 8, "steps"),
    ],
)
def test_only_one_path_of_the_asked_length_is_an_answer(text: str, steps: int, reason: str | None) -> None:
    points = np.full((2, 8, 2), 0.25)
    reply = path_reply(text, View.identity((100, 100)), "norm1000", Paths(points, steps=steps))
    assert reply.valid is (reason is None) and reply.output == text
    if reason is None:
        np.testing.assert_allclose(reply.points, 25.0)
    else:
        assert reason in str(reply.reason)


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["<hand_traj>", "none", " ", "[1, 2, 3, 4]", "<t7>", "cup", "<tool_call>"]), max_size=9), st.booleans())
def test_whatever_is_written_becomes_a_reply(words: list[str], lost: bool) -> None:
    points = np.full((2, 6, 2), np.nan if lost else 0.5)
    reply = path_reply("".join(words), View.identity((50, 40)), "norm1000", Paths(points, steps=4))
    assert reply.valid is (reply.reason is None)
    assert not reply.valid or (reply.points.shape == (2, 4, 2) and np.isfinite(reply.points).all())


# What is asked


def test_a_partner_shares_the_start_and_differs_in_words_and_future(asked: list[ClipQuestion]) -> None:
    partners = other_goals(asked)
    by_id = {q.id: q for q in asked}
    assert set(partners) == {q.id for q in asked if int(q.start.split("-")[1]) % 4 != 3}
    for name, other in partners.items():
        assert other.start == by_id[name].start and other.words != by_id[name].words
        assert not np.array_equal(other.future, by_id[name].future, equal_nan=True)
    assert {n: p.id for n, p in other_goals(asked[::-1]).items()} == {n: p.id for n, p in partners.items()}


def test_whole_starts_are_drawn_whatever_the_order(asked: list[ClipQuestion]) -> None:
    chosen = select_clips(asked, 10, seed=3)
    starts = {q.start for q in chosen}
    assert len(starts) == 10 and [q for q in asked if q.start in starts] == chosen
    assert {q.id for q in select_clips(asked[::-1], 10, seed=3)} == {q.id for q in chosen}
    assert {q.start for q in select_clips(asked, 10, seed=4)} != starts
    assert select_clips(asked, None) == asked


def test_what_each_condition_shows(asked: list[ClipQuestion]) -> None:
    mine = asked[0]
    partner = other_goals(asked)[mine.id]

    def parts(name: str) -> dict:
        condition = next(c for c in CONDITIONS if c.name == name)
        (turn,) = conversation(mine, condition, tokens=lambda q: np.full((6, 11), float(q.start[5:])), partner=partner)
        kinds = [part["type"] for part in turn["content"]]
        assert kinds == (["video", "text"] if name == "hand tokens off" else ["video", "pose", "text"])
        return {part["type"]: part for part in turn["content"]}

    assert parts("as shipped")["video"]["video"] == mine.frames and parts("as shipped")["text"]["text"] == mine.words
    assert parts("as shipped")["pose"]["tokens"][0, 0] == 0
    grey = parts("no image")["video"]["video"]
    assert len(grey) == len(mine.frames) and all(np.ptp(picture) == 0 and picture.shape == (64, 96, 3) for picture in grey)
    assert parts("shuffled goal")["text"]["text"] == partner.words and parts("shuffled goal")["video"]["video"] == mine.frames
    assert parts("hand tokens off")["video"]["video"] == mine.frames


# The whole run


def test_a_run_taken_up_again_and_one_of_single_questions_give_the_same_table(asked: list[ClipQuestion], tmp_path: Path) -> None:
    train = questions(20)
    _, whole = everything(asked, tmp_path / "a", Knowing(asked), train=train)
    files = {p.name: p.read_bytes() for p in (tmp_path / "a" / "predictions").iterdir()}
    assert everything(asked, tmp_path / "b", Knowing(asked), batch_size=1, train=train)[1] == whole
    for path in (tmp_path / "a" / "predictions").iterdir():
        path.write_bytes(path.read_bytes()[:3000])
    cut = Knowing(asked)
    assert everything(asked, tmp_path / "a", cut, train=train)[1] == whole and 0 < cut.asked < 4 * len(asked)
    assert {p.name: p.read_bytes() for p in (tmp_path / "a" / "predictions").iterdir()} == files
    complete = Knowing(asked)
    for condition in CONDITIONS:
        trajectory_run.ask_all(asked, condition, complete, None, out=tmp_path / "a", batch_size=8)
    assert complete.asked == 0
    names = ("Kalman", "train mean path", "past only", "past + goal point", "as shipped, the same clips", "not yet moving", "Spread: ")
    assert all(words in whole for words in names)


def test_aims_are_the_ratios_of_the_rows_on_the_same_questions(asked: list[ClipQuestion], tmp_path: Path) -> None:
    silent = frozenset({asked[0].id})
    replies, text = everything(asked, tmp_path, Knowing(asked, silent))
    scores = Scores(asked, replies, penalties(asked))
    found = {aim.name.split(" / ")[0] if aim.name != "ADE / past only" else "past only": aim for aim in aims(scores)}
    mean = {name: np.nanmean(errors.ade) for name, errors in scores.errors.items()}
    assert found["ADE"].reached.value == pytest.approx(mean["as shipped"] / min(mean["last position"], mean["constant velocity"]))
    partners = other_goals(asked)
    same = [q for q in asked if q.id in partners]
    shipped = np.nanmean(scores.score("as shipped", same).ade)
    assert found["shuffled goal"].reached.value == pytest.approx(mean["shuffled goal"] / shipped)
    assert found["shuffled goal"].reached.low < found["shuffled goal"].reached.value < found["shuffled goal"].reached.high
    assert found["hand tokens off"].met and found["hand tokens off"].reached.value == pytest.approx(
        mean["hand tokens off"] / mean["as shipped"]
    )
    assert found["invalid answers"].reached.value == pytest.approx(1 / len(asked)) and found["invalid answers"].met is False
    assert found["past only"].met is None and found["clips"].met is False and found["clips"].reached.value == 30
    assert "| clips | 30 | ≥ 500 | missed |" in text


def test_sheets_show_the_best_and_the_worst_and_the_shared_starts(asked: list[ClipQuestion], tmp_path: Path) -> None:
    replies = Knowing(asked, frozenset({asked[0].id}))
    turns = [conversation(q, CONDITIONS[0], tokens=lambda q: NO_TOKENS, partner=q) for q in asked]
    said = dict(zip([q.id for q in asked], replies(turns, [q.id for q in asked])))
    paths = write_sheets(asked[:12], said, penalties(asked), tmp_path, rows=1)
    assert [path.name for path in paths] == ["sheet_best_to_worst.png", "sheet_goals.png"] and all(path.stat().st_size for path in paths)
    assert write_sheets(asked, {}, {}, tmp_path) == []


# A model


def test_the_noise_of_futures_depends_on_the_question_alone_and_the_answer_on_none() -> None:
    model, processor = tiny_clips("fed back")
    ask = PathAsker(model, processor, steps=4, futures=3, seed=1)
    both = ask.noise(["a", "b"])
    assert both.shape == (2, 3, 2, 4, 8) and not both[:, 0].any() and both[:, 1:].std() > 0.5
    np.testing.assert_array_equal(ask.noise(["b"])[0], both[1])
    assert PathAsker(model, processor, steps=4).noise(["a"]) is None


def test_a_written_path_is_the_models_own_in_pixels_of_the_last_frame(asked: list[ClipQuestion]) -> None:
    """Batch = single, the answer is the same beside futures and alone, and the points are those that `generate` gives."""
    model, processor = tiny_clips("fed back")
    turns = [conversation(q, CONDITIONS[0], tokens=lambda q: NO_TOKENS, partner=q) for q in asked[:3]]
    names = [q.id for q in asked[:3]]

    def ask(turns, names, futures: int) -> list[PathReply]:
        asker = PathAsker(model, processor, steps=4, futures=futures, max_new_tokens=4)
        batch = processor(turns)
        asker.asker.generation["logits_processor"] = [Script(model, batch["input_ids"].shape[1], ["p"] * 4)]
        return asker(turns, names)

    many, one = ask(turns, names, 3), ask(turns, names, 1)
    for number, (reply, alone) in enumerate(zip(many, one)):
        single = ask(turns[number : number + 1], names[number : number + 1], 3)[0]
        assert reply.valid and reply.futures.shape == (3, 2, 4, 2) and alone.futures is None
        np.testing.assert_array_equal(reply.futures[0], reply.points)
        np.testing.assert_allclose(alone.points, reply.points, atol=1e-3)
        np.testing.assert_allclose(single.futures, reply.futures, atol=1e-3)
        assert np.ptp(reply.futures, axis=0).max() > 0.1
    batch = processor(turns[:1])
    script = [Script(model, batch["input_ids"].shape[1], ["p"] * 4)]
    grid = model.generate(**batch, max_new_tokens=4, do_sample=False, logits_processor=script).trajectories[0, 0].numpy()
    view = batch["views"][0][0]
    np.testing.assert_allclose(many[0].points, view.to_original(grid.astype(float) * view.out), atol=1e-3)


def clip_folder(monkeypatch: pytest.MonkeyPatch, members: list[ClipQuestion]) -> None:
    """Every folder of clips holds `members`, and no hand is tracked in them."""
    groups = Groups(len(members), lambda index, epoch: [members[index].sample], list)
    monkeypatch.setattr("vlm.evaluation.trajectory.open_groups", lambda *_, **__: groups)
    monkeypatch.setattr(trajectory._Tracks, "__call__", lambda self, question: NO_TOKENS)


def clip_command(monkeypatch: pytest.MonkeyPatch, members: list[ClipQuestion], tmp_path: Path) -> list[str]:
    """Arguments of `evaluate trajectory` over a folder that holds `members`, with a tiny model that never writes a path."""
    model, processor = tiny_clips()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "manifest.json").write_text('{"split": "test"}')
    clip_folder(monkeypatch, members)
    common = ["--data", tmp_path / "clips", "--model", tmp_path / "model", "--batch-size", 2]
    return ["trajectory", *map(str, common)]


@pytest.mark.slow
def test_the_command_goes_on_where_it_stopped_is_scored_again_without_its_model_and_compared(
    monkeypatch: pytest.MonkeyPatch, frame: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = clip_command(monkeypatch, questions(3, frame), tmp_path)
    out, card = tmp_path / "out", tmp_path / "card.md"
    command += ["--conditions", "as shipped", "shuffled goal", "--out", str(out), "--sheet", "1"]
    assert run_command(evaluate.main, [*command, "--card", str(card)]) == 0
    table = (out / "table.md").read_text()
    assert table.strip() in card.read_text() and "<!-- evaluate:trajectory -->" in card.read_text()
    assert "| as shipped | 6 (3) | 1.000 |" in table  # a tiny model says nothing that can be read
    predictions = out / "predictions" / "as_shipped.jsonl"
    whole = predictions.read_bytes()
    predictions.write_bytes(whole[:-50])
    assert run_command(evaluate.main, command) == 0
    assert predictions.read_bytes() == whole and (out / "table.md").read_text() == table
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(trajectory, "all_done", lambda rank: rank == 0)
    several = [str(tmp_path / "several") if part == str(out) else part for part in command]
    for rank in ("1", "0"):  # the first process puts together what all have answered
        monkeypatch.setenv("RANK", rank)
        assert run_command(evaluate.main, several) == 0
    assert (tmp_path / "several" / "predictions" / "as_shipped.jsonl").read_bytes() == whole
    assert (tmp_path / "several" / "table.md").read_text() == table
    monkeypatch.undo()
    clip_folder(monkeypatch, questions(3, frame))
    (tmp_path / "model" / "model.safetensors").unlink()
    assert run_command(evaluate.main, [*command, "--rescore"]) == 0 and (out / "table.md").read_text() == table
    capsys.readouterr()
    compare = ["compare", str(out), str(out), "--data", str(tmp_path / "clips")]
    assert run_command(evaluate.main, compare) == 0 and "+0.00 [+0.00, +0.00], p = 1" in capsys.readouterr().out
    assert run_command(evaluate.main, [*command, "--seed", "1"]) == 1
    assert "another --out" in capsys.readouterr().err
    predictions.write_bytes(whole[:-50])
    assert run_command(evaluate.main, [*command, "--rescore"]) == 1
    assert "'as shipped' has no prediction for 1 of 6 questions" in capsys.readouterr().err
    assert run_command(evaluate.main, [*command[:-3], str(tmp_path / "new"), "--rescore"]) == 1
    assert "no predictions" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_that_reads_no_tracks_is_shown_none_and_one_without_a_path_head_is_refused(
    monkeypatch: pytest.MonkeyPatch, frame: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*clip_command(monkeypatch, questions(1, frame), tmp_path), "--sheet", "0", "--out"]
    for name, changes, status in (("blind", {"pose_encoders": {}}, 0), ("headless", {"trajectory": None}, 1)):
        model, processor = tiny_clips(**changes)
        model.save_pretrained(tmp_path / "model")
        processor.save_pretrained(tmp_path / "model")
        assert run_command(evaluate.main, [*command, str(tmp_path / name)]) == status
    said = capsys.readouterr()
    assert "| as shipped |" in said.out and "hand tokens off |" not in said.out and "no path head" in said.err
    assert run_command(evaluate.main, [*command, str(tmp_path / "x"), "--model", str(tmp_path)]) == 1
    assert "not a model folder" in capsys.readouterr().err


def test_a_folder_without_clips_and_one_of_uneven_futures_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DatasetError):
        read_clip_questions(tmp_path / "nowhere", split="test")
    short = sample(1, 0)
    cut = {**short.targets, "future": short.targets["future"][:, :3], "valid": short.targets["valid"][:, :3]}
    uneven = [sample(0, 0), Sample("b", short.messages, short.source, cut)]
    for members, message in (([], "no clip"), (uneven, r"futures of \[3, 4\] steps")):
        groups = Groups(1, lambda index, epoch, members=members: members, list)
        monkeypatch.setattr("vlm.evaluation.trajectory.open_groups", lambda *_, groups=groups, **__: groups)
        with pytest.raises(DatasetError, match=message):
            read_clip_questions(tmp_path, split="test")
