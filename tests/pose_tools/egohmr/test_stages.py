"""Both stages as wholes: samples, losses, visibility, guidance. Small networks; the large ones are equal to recordings part by part."""

import numpy as np
import pytest
import torch

from pose_tools.egohmr import camera
from pose_tools.egohmr.body import visible_joints
from pose_tools.egohmr.collision import penetration
from pose_tools.egohmr.guidance import Guidance, leg_weights
from pose_tools.egohmr.losses import STAGE_1_WEIGHTS, STAGE_2_WEIGHTS
from pose_tools.egohmr.samplers import Draws, ddpm
from pose_tools.egohmr.stage2 import pose_statistics, sinusoidal_table
from tests.pose_tools.egohmr.recordings import normal, recorded, weights
from tests.pose_tools.egohmr.small import Balls, invented_batch, small_stage1, small_stage2

BATCH = invented_batch()


@pytest.fixture(scope="module")
def stage1():
    return small_stage1()


@pytest.fixture(scope="module")
def stage2():
    return small_stage2()


def part(batch, rows):
    return {k: part(v, rows) if isinstance(v, dict) else v[rows] for k, v in batch.items()}


def test_translation_from_the_box_camera():
    expected = recorded("rotations")
    cam, box, intrinsics = (expected[f"pare_{name}"] for name in ("cam", "box", "K"))
    found = camera.full_translation(cam, box[:, 1:], box[:, 0], intrinsics[:, 0], intrinsics[:, 1:])
    assert (found - expected["pare_full"]).abs().max() < 1e-5


@torch.no_grad()
def test_time_and_translation_features():
    expected, stage = recorded("encoders"), small_stage2()
    close = {"rtol": 1e-4, "atol": 1e-5}
    table = sinusoidal_table(512)
    for row in expected["pe_rows"]:
        assert (table - row).abs().amax(-1).min() < 1e-4
    time = torch.nn.Sequential(torch.nn.Linear(512, 512), torch.nn.SiLU(), torch.nn.Linear(512, 512))
    time.load_state_dict(weights(2, "embed_timestep.time_embed."))
    stage.time_embed, stage.time_table = time, table[:50]
    torch.testing.assert_close(stage.embed_time(expected["time_steps"]), expected["time_emb"], **close)
    transl = type(stage.transl_enc)()
    transl.load_state_dict(weights(2, "transl_enc."))
    torch.testing.assert_close(transl(expected["transl"]), expected["transl_feat"], **close)


@torch.no_grad()
def test_stage1_samples(stage1):
    z = torch.cat([torch.zeros(2, 1, 144), normal(1, (2, 2, 144))], 1)
    out = stage1(BATCH, 3, z)
    assert out["joints"].shape == (2, 3, 24, 3) and out["keypoints_2d"].shape == (2, 3, 25, 2)
    # the first is the most likely pose, whatever is drawn for the others
    drawn = stage1(BATCH, 2, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(drawn["pose6d"][:, 0], out["pose6d"][:, 0], atol=1e-5) and not torch.allclose(
        drawn["pose6d"][:, 1], out["pose6d"][:, 1]
    )
    assert (out["log_prob"][:, :1] >= out["log_prob"]).all()
    assert (out["betas"] == out["betas"][:, :1]).all() and (out["transl"] == out["transl"][:, :1]).all()
    one = stage1(part(BATCH, slice(1, 2)), 3, z[1:])
    for name in ("pose6d", "vertices", "transl", "keypoints_2d"):
        assert torch.allclose(one[name][0], out[name][1], atol=1e-4), name
    with pytest.raises(ValueError, match="at least one sample"):
        stage1(BATCH, 0)
    with pytest.raises(ValueError, match="cam_cx"):
        stage1({k: v for k, v in BATCH.items() if k != "cam_cx"}, 1)


def test_stage1_losses_vanish_at_the_truth_and_add_up(stage1):
    out = stage1(BATCH, 2)
    terms = stage1.losses(BATCH, out, noise=torch.zeros(2, 144))
    assert set(terms) == {"loss", *STAGE_1_WEIGHTS} - {"transl_nll"}
    assert torch.allclose(terms["loss"], sum(STAGE_1_WEIGHTS[k] * v for k, v in terms.items() if k != "loss"), rtol=1e-5)
    terms["loss"].backward()
    assert all(p.grad is not None for name, p in stage1.named_parameters() if not name.startswith("discriminator"))
    stage1.zero_grad()
    truth = stage1._true_6d(BATCH)
    context = out["context"].detach()
    assert torch.allclose(terms["nll"], -stage1.flow.log_prob(truth[:, None], context)[0].mean(), rtol=1e-5)
    assert torch.isfinite(stage1.discriminator_loss(out, torch.eye(3).expand(4, 23, 3, 3), torch.zeros(4, 10)))


def test_stage1_translation_uncertainty_is_trained_by_itself():
    model = small_stage1(uncertainty=True)
    out = model(BATCH, 1)
    model.losses(BATCH, out)["transl_nll"].backward()
    touched = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert "transl_log_std" in touched and "flow" not in touched and out["transl_std"].shape == (2, 3)


def test_the_first_training_batch_normalises_the_flow():
    model = small_stage1().train()
    assert not model.flow.flow.transforms[0].initialized
    model(BATCH, 1)
    assert all(bool(t.initialized) for t in model.flow.flow.transforms[::3])


def test_visibility_follows_key_points():
    keypoints = torch.zeros(3, 25, 3)
    keypoints[1] = 1.0
    keypoints[2, [1, 13], 2] = 0.4
    for loose in (False, True):
        seen = visible_joints(keypoints, loose)
        hips_of = [0, 3, 6, 9] if not loose else [0, 3, 6, 9]
        assert seen[0].nonzero()[:, 0].tolist() == hips_of and seen[1].all()
        assert seen[2, 12] == loose  # the neck follows BODY_25's only in the loose map
        assert seen[2, 1] == loose and seen[2, 4]  # and the left hip the knee


@torch.no_grad()
def test_denoising_shares_equal_the_whole_network(stage2):
    """The first convolution in shares, once per picture, is the network on all channels of every joint."""
    x_t, t = normal(5, (2, 24, 6)), torch.tensor([3, 40])
    features = stage2.encode(BATCH)
    image = stage2.backbone(BATCH["img"])
    transl = BATCH["smpl_params"]["transl"]
    scene = stage2.scene_enc(BATCH["scene_pcd_verts_full"] - transl[:, None])
    rest = torch.cat([scene, stage2.transl_enc(transl), camera.camera_features(BATCH)], 1)
    for seen in (features.visible, torch.zeros_like(features.visible)):
        whole = torch.cat([image[:, None] * seen[..., None], rest[:, None].expand(-1, 24, -1), stage2.pose_embedding(x_t),
                           stage2.embed_time(t)[:, None].expand(-1, 24, -1)], -1)  # fmt: skip
        ours = stage2.denoise(x_t, t, features, image=bool(seen.any()))
        assert torch.allclose(ours, stage2.diffusion_model(whole), atol=1e-5)
    fused = stage2.denoise(x_t, t, features, fuse=True)
    with_image, without = stage2.denoise(x_t, t, features), stage2.denoise(x_t, t, features, image=False)
    assert torch.allclose(fused, torch.where(features.visible[..., None], with_image, without), atol=1e-6)
    assert features.visible.any() and not features.visible.all() and not torch.allclose(with_image, without)


@pytest.mark.parametrize(("sampler", "steps", "draws"), [("ddim5", 50, 6), ("dpm++", 5, 1), ("ddpm", 7, 8)])
def test_samples_of_many_are_those_of_one(stage2, sampler, steps, draws):
    noise = normal(7, (draws, 2, 3, 144))
    many = stage2.sample(BATCH, 3, sampler, steps, noise=noise)
    assert many["vertices"].shape == (2, 3, 6890, 3) and many["x0"].shape == (2, 3, 24, 6)
    one = stage2.sample(part(BATCH, slice(1, 2)), 1, sampler, steps, noise=noise[:, 1:, 2:])
    for name in ("x0", "joints", "vertices", "betas"):
        assert torch.allclose(one[name][0, 0], many[name][1, 2], atol=1e-4), name
    again = stage2.sample(stage2.encode(BATCH), 3, sampler, steps, noise=noise)
    assert torch.allclose(again["x0"], many["x0"], atol=1e-5)


def test_the_batched_loop_is_the_plain_one(stage2):
    """Against the published way: encode at every step, one sample at a time."""
    noise = normal(8, (6, 2, 144))
    schedule = stage2.schedule.respaced(5)

    def predict(x, t):
        with torch.no_grad():
            return stage2.denoise(x, t, stage2.encode(BATCH), fuse=True)

    plain = ddpm(predict, schedule, Draws((2, 24, 6), noise, noise, 5))
    assert torch.allclose(stage2.sample(BATCH, 1, steps=5, noise=noise)["x0"][:, 0], plain, atol=1e-4)


def test_stage2_translation_and_refusals(stage2):
    moved = BATCH | {"stage1_transl_full": BATCH["smpl_params"]["transl"] + 0.3}
    assert torch.equal(stage2.encode(moved).transl, moved["stage1_transl_full"])
    assert torch.equal(stage2.encode(moved, transl=BATCH["smpl_params"]["transl"]).transl, BATCH["smpl_params"]["transl"])
    for wrong in ({"num_samples": 0}, {"sampler": "euler"}, {"sampler": "dpm++", "steps": 51}, {"noise": torch.zeros(3, 7)}):
        with pytest.raises(ValueError):
            stage2.sample(BATCH, **({"num_samples": 1} | wrong))
    with pytest.raises(ValueError, match="compat"):
        stage2.sample(BATCH, guidance=Guidance(Balls()), compat="smplify")


def test_all_joints_visible_or_none(stage2):
    for confidence in (0.0, 1.0):
        batch = BATCH | {"orig_keypoints_2d": BATCH["orig_keypoints_2d"].clone()}
        batch["orig_keypoints_2d"][..., 2] = confidence
        out = stage2.sample(batch, 2, "ddim5")
        assert torch.isfinite(out["vertices"]).all() and out["visible"].sum() == (48 if confidence else 8)


def test_stage2_losses_add_up_and_vanish_for_a_perfect_network(stage2, monkeypatch):
    t, noise = torch.tensor([5, 30]), normal(9, (2, 144))
    terms = stage2.losses(BATCH, t=t, noise=noise, field=Balls())
    assert set(terms) == {"loss", *STAGE_2_WEIGHTS}
    assert torch.allclose(terms["loss"], sum(STAGE_2_WEIGHTS[k] * v for k, v in terms.items() if k != "loss"), rtol=1e-5)
    terms["loss"].backward()
    assert all(p.grad is not None for p in stage2.parameters())
    stage2.zero_grad()
    given = stage2.losses(BATCH, t=t, x_t=stage2.schedule.q_sample(stage2.true_x0(BATCH), t, noise.view(2, 24, 6)), field=Balls())
    assert torch.allclose(given["loss"], terms["loss"])
    monkeypatch.setattr(stage2, "denoise", lambda x, t, features, image: stage2.true_x0(BATCH))
    perfect = stage2.losses(BATCH, t=t, noise=noise)
    assert max(float(perfect[k]) for k in ("body_pose", "global_orient", "pose_6d")) < 1e-8


@pytest.mark.parametrize("sampler", [pytest.param("ddpm", marks=pytest.mark.slow), "dpm++"])
def test_guidance_takes_the_body_out_of_the_scene(stage2, sampler):
    noise = normal(10, (51, 2, 2, 144)) if sampler == "ddpm" else normal(10, (2, 2, 144))
    steps = 50 if sampler == "ddpm" else 8
    free = stage2.sample(BATCH, 2, sampler, steps, noise=noise)
    kept = stage2.sample(BATCH, 2, sampler, steps, noise=noise, guidance=Guidance(Balls(), repeats=2))
    points = (BATCH["scene_pcd_verts_full"]).repeat_interleave(2, 0)

    def depth(out):
        body = type("Body", (), {"joints": out["joints"].flatten(0, 1), "vertices": out["vertices"].flatten(0, 1)})
        return float(penetration(Balls(), body, points).sum())

    assert depth(kept) < 0.95 * depth(free)
    arms = leg_weights() == 0
    assert not torch.equal(kept["x0"][:, :, ~arms], free["x0"][:, :, ~arms])
    # a picture's guidance doesn't depend on what it shares the batch with
    alone = stage2.sample(part(BATCH, slice(0, 1)), 2, sampler, steps, noise=noise[..., :1, :, :], guidance=Guidance(Balls(), repeats=2))
    assert torch.allclose(alone["x0"][0], kept["x0"][0], atol=1e-3)


def test_guidance_does_not_depend_on_how_densely_the_scene_was_sampled(stage2):
    features, guidance = stage2.encode(BATCH), Guidance(Balls(), most=None)
    x0 = 0.3 * normal(13, (2, 24, 6))

    def moved(points):
        return guidance.move(x0, 5, features.betas, points, stage2.smpl, stage2.mean, stage2.std, stage2.schedule)

    assert not torch.equal(moved(features.points), x0)
    torch.testing.assert_close(moved(features.points.repeat(1, 3, 1)), moved(features.points), rtol=1e-4, atol=1e-5)


def test_published_guidance_is_a_gradient_of_the_noisy_pose(stage2):
    from pose_tools.egohmr.collision import inside_box

    features = stage2.encode(BATCH)
    published = stage2._published(Guidance(Balls()), True, features, 2)
    x_t = 0.3 * normal(11, (2, 24, 6))

    def loss(y):
        body = published.pose(y)
        return (Balls().penetration(body, features.points) * inside_box(body, features.points)).sum() / 2

    y = (x_t.flatten(1) * stage2.std + stage2.mean).view(2, 24, 6)
    gradient = published.gradient(x_t)
    assert (gradient[:, leg_weights() == 0] == 0).all() and gradient.abs().sum() > 0
    step = torch.zeros_like(y)
    step[0, 4, 2] = step[1, 1, 3] = 2e-3
    change = (loss(y + step) - loss(y - step)) / 2
    expected = -(gradient[0, 4, 2] / 2 + gradient[1, 1, 3]) * 2e-3  # knees count double
    assert torch.allclose(change, expected, rtol=0.05, atol=1e-6)
    assert published.mean_shift(x_t, 11, 0.5) is None
    torch.testing.assert_close(published.mean_shift(x_t, 7, 0.5), 2 * 0.5 * gradient)
    torch.testing.assert_close(published.mean_shift(x_t, 4, 0.5), 2 * 0.01 * gradient)
    assert published.noise_shift(x_t, 4, 0.5) is None
    torch.testing.assert_close(published.noise_shift(x_t, 3, 0.36), -0.8 * gradient)
    noise = normal(12, (6, 2, 144))
    free = stage2.sample(features, 1, steps=5, noise=noise)["x0"]
    guided = {
        mode: stage2.sample(features, 1, steps=5, noise=noise, guidance=Guidance(Balls()), compat=mode)["x0"]
        for mode in ("coap", "volumetric_smpl")
    }
    assert not torch.equal(guided["coap"], free) and not torch.equal(guided["coap"], guided["volumetric_smpl"])
    assert torch.isfinite(stage2.sample(features, 1, "ddim5", guidance=Guidance(Balls()), compat=True)["x0"]).all()


def test_pose_statistics_have_two_deviations():
    mean, std = pose_statistics(torch.linalg.qr(normal(1, (40, 24, 3, 3)))[0])
    assert mean.shape == std.shape == (144,) and len(np.unique(std[:6])) == len(np.unique(std[6:])) == 1
