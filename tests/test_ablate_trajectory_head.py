"""scripts/ablate_trajectory_head.py: kept states give the model's own paths, heads are not trained twice, the table says what they did."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scripts import ablate_trajectory_head as ablation
from tests.tiny import tiny_clips
from tests.vlm.test_clips import Script
from tests.vlm.test_trajectory_evaluation import NO_TOKENS, SIZE, asked, frame, questions  # noqa: F401
from vlm.evaluation.path_states import PathStates, path_states
from vlm.evaluation.trajectory import CONDITIONS, conversation
from vlm.evaluation.trajectory_asking import PathAsker
from vlm.trajectory_observed import hand_inputs


def tokens(question) -> np.ndarray:
    found = NO_TOKENS.copy()
    found[1::2] = [10, 20, 50, 40 + len(question.id), -1, 0.9, *[np.nan] * 4, 1]
    return found


def test_kept_states_give_the_models_own_paths(asked, tmp_path, monkeypatch):  # noqa: F811
    model, processor = tiny_clips("observed")
    generate, members = model.generate, asked[:5]

    def scripted(input_ids, **options):
        return generate(input_ids=input_ids, **options, logits_processor=[Script(model, input_ids.shape[1], [20, *["p"] * 4, 1])])

    monkeypatch.setattr(model, "generate", scripted)
    monkeypatch.setattr("vlm.evaluation.path_states.BATCH", 2)
    kept = path_states(model, processor, members, tokens, tmp_path)
    assert bool(kept.answered.all()) and kept.states.shape[:2] == (5, 4) and len(list(tmp_path.iterdir())) == 3
    read, origin = hand_inputs(kept.states, "left_right", kept.observed)
    points = model.trajectory_head.predict(read).detach() + origin
    turns = [conversation(q, CONDITIONS[0], tokens=tokens, partner=q) for q in members]
    for n, reply in enumerate(PathAsker(model, processor, steps=4)(turns, [q.id for q in members])):
        np.testing.assert_allclose(kept.reply(n, points[n]).points, reply.points, atol=1e-3)
        truth = kept.reply(n, kept.target[n]).points
        np.testing.assert_allclose(truth[members[n].valid], members[n].future[members[n].valid], atol=1e-3)
    monkeypatch.setattr(model, "generate", lambda **_: pytest.fail("worked out already"))
    again = path_states(model, processor, members, tokens, tmp_path)
    assert torch.equal(again.states, kept.states)
    with pytest.raises(ValueError, match="feeds nothing back"):
        path_states(*tiny_clips("parts"), members, tokens, tmp_path)


def states(members, seed: int) -> PathStates:
    """States that know the future, but for noise; one answer is no path."""
    target = torch.stack([torch.from_numpy(np.nan_to_num(q.future / SIZE)) for q in members]).float()
    valid = torch.stack([torch.from_numpy(q.valid) for q in members])
    known = (target - 0.5).transpose(1, 2).flatten(2)
    noise = torch.randn(*known.shape[:2], 16, generator=torch.Generator().manual_seed(seed))
    noise[..., [0, 1, 8, 9]] = known + 0.02 * noise[..., [0, 1, 8, 9]]
    observed = torch.stack([torch.from_numpy(q.past / SIZE) for q in members]).float()
    move = torch.tensor([[SIZE[0], 0, 0], [0, SIZE[1], 0.0]]).expand(len(members), 2, 3)
    return PathStates(noise, torch.arange(len(members)) != 1, observed, target, valid, move)


def test_heads_are_trained_once_and_told_in_the_table(tmp_path, monkeypatch):
    members, names = questions(24), ["full", "plain", "mlp"]
    data, parts = states(members, 0), ablation.folds(members, 3)
    assert {parts.count(part) > 0 for part in range(3)} == {True}
    assert all(len({part for part, q in zip(parts, members) if q.cluster == cluster}) == 1 for cluster in {q.cluster for q in members})
    ablation.ablate(data, members, tmp_path, names, 2, 8, 2)
    table = ablation.table(members, tmp_path, names, 2, 8)
    errors = [np.load(tmp_path / f"heads/plain-{seed}-8.npz")["ade"] for seed in (0, 1)]
    assert f"| {ablation.VARIANTS['plain'].title} | {np.nanmean(np.mean(errors, 0)):.2f} |" in table
    assert table.count("p = ") == 6 + 3  # all measures of one head against the full one, three of the other against that
    (tmp_path / "heads/plain-1-8.npz").unlink()
    fit = ablation.fit
    plain = ablation.VARIANTS["plain"]
    monkeypatch.setattr(ablation, "fit", lambda variant, *rest: fit(variant, *rest) if variant is plain else pytest.fail("trained already"))
    ablation.ablate(data, members, tmp_path, names, 2, 8, 2)
    assert ablation.table(members, tmp_path, names, 2, 8) == table


def test_best_futures_and_likelihoods_are_their_definitions():
    members = questions(6)
    test = states(members, 1)
    torch.manual_seed(0)
    variant = ablation.VARIANTS["plain"]
    head = ablation.fit(variant, test, 0, 20)
    found = ablation.score(variant, head, test, members)
    assert bool((np.nan_to_num(found["best"]) <= np.nan_to_num(found["ade"]) + 1e-6).all())
    assert np.isnan(found["joint"][1]) and np.isnan(found["nll"][1]).all()
    read, origin = ablation.inputs(test, variant)
    spread, points = head.spread(read).detach(), head.predict(read).detach() + origin
    scale = torch.tensor(SIZE) * 256 / SIZE[0]
    area = float((scale[0] * scale[1]).sqrt())  # a reply has one deviation for both directions
    sigma = area * spread[0, 0].square().mean(-1).sqrt()
    apart = (points - test.target)[0, 0] * scale
    expected = -torch.distributions.Normal(0.0, sigma[:, None]).log_prob(apart).mean()
    np.testing.assert_allclose(found["nll"][0, 0], float(expected), rtol=1e-4)
