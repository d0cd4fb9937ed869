"""Every network against the recordings of the published system."""

import functools

import pytest
import torch

from pose_tools.egohmr.body import keypoints_45, pose_body, true_pose
from pose_tools.egohmr.discriminator import Discriminator
from pose_tools.egohmr.flow import ActNorm, Glow, PoseFlow
from pose_tools.egohmr.gcn import GraphNet, skeleton_adjacency
from pose_tools.egohmr.scene_encoder import SceneEncoder
from tests.pose_tools.egohmr.recordings import bodies, normal, recorded, smpl_arrays, weights


def close(ours, theirs, rtol=1e-5):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= rtol * theirs.abs().max(), (ours - theirs).abs().max() / theirs.abs().max()


@functools.cache
def flow() -> PoseFlow:
    model = PoseFlow()
    tensors = weights(1, "flow.")
    names = {k: k.replace("._transform._transforms.", ".transforms.").replace("transform_net.", "") for k in tensors}
    model.load_state_dict({names[k]: v for k, v in tensors.items()}, strict=False)
    model.fc_head.init_betas.copy_(torch.linspace(-0.1, 0.1, 10).view(1, 1, 10))
    return model.eval()


def test_the_synthetic_body():
    expected = recorded("synthetic_smpl")
    for gender, body in bodies().items():
        for name in ("v_template", "shapedirs", "posedirs", "weights", "J_regressor"):
            array = torch.from_numpy(smpl_arrays(gender)[name])
            assert torch.allclose(array.abs().sum(), expected[f"{gender}.{name}.sum"])
            assert torch.allclose(array.flatten()[-3:], expected[f"{gender}.{name}.last"])
        pose = true_pose({"global_orient": expected["global_orient"], "body_pose": expected["body_pose"]})
        out = pose_body(body, pose, expected["betas"], expected["transl"])
        assert (out.vertices[:, expected["vertex_index"]] - expected[f"{gender}.vertices_sub"]).abs().max() < 1e-5
        assert (keypoints_45(out) - expected[f"{gender}.joints45"]).abs().max() < 1e-5


@torch.no_grad()
def test_scene_encoder_is_the_recorded_one_in_slices_or_whole(monkeypatch):
    model, expected = SceneEncoder(), recorded("encoders")
    model.load_state_dict(weights(1, "scene_enc."))
    close(model(expected["points"]), expected["scene_feat"])
    monkeypatch.setattr("pose_tools.egohmr.scene_encoder._SLICE", 64)
    close(model(expected["points"]), expected["scene_feat"])
    with torch.enable_grad():
        close(model(expected["points"]), expected["scene_feat"])


def test_scene_encoder_refuses_no_points():
    with pytest.raises(ValueError, match="N ≥ 1"):
        SceneEncoder(8, 4)(torch.zeros(2, 0, 3))


@torch.no_grad()
def test_flow():
    model, expected, context = flow(), recorded("flow"), normal(80, (3, 2566), 0.5)
    value, z = model.log_prob(expected["logprob.pose6d"], context)
    close(value, expected["logprob.value"])
    close(z, expected["logprob.z"])
    for name in ("sample_mode", "sample_fixed"):
        found = model.sample(context, expected[f"{name}.z"])
        for key in ("pose6d", "log_prob", "cam", "betas", "global_orient", "body_pose"):
            close(found[key], expected[f"{name}.{key}"])
    stages = model.flow.stages(expected["logprob.pose6d"][:, 0], context)
    for (x, determinant), their_x, their_determinant in zip(stages, expected["stages.x"], expected["stages.logdet"], strict=True):
        close(x, their_x)
        close(determinant.expand(3), their_determinant, 1e-5 if their_determinant.abs().max() else 0)


@torch.no_grad()
def test_flow_decodes_many_poses_at_once_as_one_by_one():
    model, context, z = flow(), normal(3, (2, 2566), 0.5), normal(4, (2, 5, 144))
    many = model.sample(context, z)
    for number in (0, 4):
        one = model.sample(context, z[:, number : number + 1])
        assert torch.allclose(many["pose6d"][:, number], one["pose6d"][:, 0], atol=1e-5)
        assert torch.allclose(many["log_prob"][:, number], one["log_prob"][:, 0], atol=1e-3)
    value, back = model.log_prob(many["pose6d"], context)
    assert torch.allclose(back, z, atol=1e-4) and torch.allclose(value, many["log_prob"], atol=1e-3)


def test_flow_log_determinant_is_the_jacobians():
    torch.manual_seed(0)
    glow = Glow(context=3, hidden=8, repetitions=2, width=6).double().eval()
    for parameter in glow.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, context = torch.randn(1, 6, dtype=torch.float64), torch.randn(1, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda v: glow(v, context)[0], x)[0, :, 0]
    assert torch.allclose(torch.linalg.slogdet(jacobian)[1], glow(x, context)[1])


def test_flow_normalisation_comes_from_the_first_training_batch_only():
    expected, norm = recorded("flow"), ActNorm(144)
    norm.eval()(expected["actnorm_init.x"])
    assert not norm.initialized
    y, _ = norm.train()(expected["actnorm_init.x"])
    close(norm.log_scale.detach(), expected["actnorm_init.log_scale"])
    close(norm.shift.detach(), expected["actnorm_init.shift"])
    assert torch.allclose(y.mean(0), torch.zeros(144), atol=1e-5) and torch.allclose(y.std(0), torch.ones(144), atol=1e-4)
    norm(2 * expected["actnorm_init.x"])
    close(norm.shift.detach(), expected["actnorm_init.shift"])
    with pytest.raises(ValueError, match="2 poses"):
        ActNorm(144)(expected["actnorm_init.x"][:1])


def test_a_flow_refuses_no_samples_and_other_widths():
    model = PoseFlow(context=4, hidden=8, repetitions=1)
    for z in (torch.zeros(2, 0, 144), torch.zeros(2, 1, 12), torch.zeros(3, 1, 144)):
        with pytest.raises(ValueError, match="expected"):
            model.sample(torch.zeros(2, 4), z)


@torch.no_grad()
def test_discriminator():
    model, expected = Discriminator(), recorded("flow")
    model.load_state_dict(weights(1, "discriminator."))
    close(model(expected["disc.rot"], expected["disc.betas"]), expected["disc.out"])


@torch.no_grad()
def test_graph_network():
    model, expected = GraphNet(3718), recorded("gcn")
    model.load_state_dict(weights(2, "diffusion_model."))
    model.eval()
    close(skeleton_adjacency(), expected["adj"], 1e-6)
    x = normal(22, (2, 24, 3718), 0.5)
    first = model.gconv_input[0]
    close(first.gconv(x)[..., ::64], expected["conv_in_ch"])
    close(model.gconv_input(x)[..., ::64], expected["after_input"])
    close(model.gconv_layers[0](model.gconv_input(x))[..., ::64], expected["after_block0"])
    close(model(x), expected["out"])
    # the input's channels may come in shares
    shares = model.project(x[..., :2694], 0) + model.project(x[..., 2694:], 2694)
    close(model.finish(shares), expected["out"])
