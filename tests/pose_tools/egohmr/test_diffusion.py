"""Schedule constants and sampling loops against the recordings; DPM-Solver++ against the exact solution of a Gaussian."""

import pytest
import torch

from pose_tools.egohmr.diffusion import Schedule, respace
from pose_tools.egohmr.samplers import Draws, ddim, ddpm, dpm_solver, solver_steps
from tests.pose_tools.egohmr.recordings import recorded

RECORDED = recorded("diffusion")


@pytest.mark.parametrize("name", ["ddpm50", "ddim5"])
def test_constants(name):
    schedule = Schedule(50) if name == "ddpm50" else Schedule(50).respaced("ddim5")
    names = ["betas", "alphas_cumprod", "alphas_cumprod_prev", "posterior_variance", "posterior_log_variance_clipped", "timestep_map"]
    for key in [*names, "posterior_mean_coef1", "posterior_mean_coef2", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"]:
        torch.testing.assert_close(getattr(schedule, key), RECORDED[f"{name}.{key}"], rtol=1e-9, atol=1e-12)
    assert torch.equal(schedule.alphas_cumprod_next[:-1], schedule.alphas_cumprod[1:]) and not schedule.alphas_cumprod_next[-1]
    torch.testing.assert_close(schedule.log_one_minus_alphas_cumprod.exp(), 1 - schedule.alphas_cumprod, rtol=1e-12, atol=0)


def test_linear_schedules_and_respacing():
    for steps in (50, 1000):
        torch.testing.assert_close(Schedule(steps, "linear").betas, RECORDED[f"linear{steps}"], rtol=1e-12, atol=0)
    assert respace(1000, "ddim50") == RECORDED["respace_1000_ddim50"].tolist()
    assert respace(300, "10,15,20") == respace(300, [10, 15, 20]) == RECORDED["respace_300_10_15_20"].tolist()
    assert respace(50, "") == list(range(50)) and respace(50, 1) == [0]
    for wrong in ("ddim11", 51, [30, 30], "ddim"):
        with pytest.raises(ValueError, match="steps"):
            respace(50, wrong)
    with pytest.raises(ValueError, match="kind"):
        Schedule(50, "square")
    with pytest.raises(ValueError, match="at least one"):
        Schedule(0)


def test_forward_process():
    x = Schedule(50).q_sample(RECORDED["q.x0"], RECORDED["q.t"], RECORDED["q.noise"])
    torch.testing.assert_close(x, RECORDED["q.x_t"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["ddpm50", "ddim5"])
def test_recorded_trajectories(name):
    asked, seen = [], []

    def toy(x, t):
        asked.append(int(t[0]))
        return 0.7 * torch.tanh(x) + 0.02 * t[:, None] - 0.3

    schedule = Schedule(50) if name == "ddpm50" else Schedule(50).respaced("ddim5")
    noise = RECORDED[f"tiny.{name}.noise"]
    x0 = (ddpm if name == "ddpm50" else ddim)(toy, schedule, Draws((3, 12), noise, noise, schedule.steps), seen=seen)
    assert asked == RECORDED[f"tiny.{name}.t_seen"].tolist()
    torch.testing.assert_close(torch.stack(seen), RECORDED[f"tiny.{name}.traj"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x0, RECORDED[f"tiny.{name}.final_pred"], rtol=1e-4, atol=1e-5)


def gaussian(schedule, mean, deviation):
    """The best prediction of x_0 ~ N(mean, deviation²), and where the probability flow takes a start."""

    def spread(t):
        left = schedule.alphas_cumprod[t]
        return (left * deviation**2 + 1 - left).sqrt()

    def predict(x, t):
        left = schedule.alphas_cumprod[t][:, None]
        return mean + left.sqrt() * deviation**2 / spread(t)[:, None] ** 2 * (x - left.sqrt() * mean)

    def flow(x, start, end):
        a, b = schedule.alphas_cumprod[start].sqrt(), schedule.alphas_cumprod[end].sqrt()
        return b * mean + spread(end) / spread(start) * (x - a * mean)

    return predict, flow


def solver_error(schedule, steps):
    predict, flow = gaussian(schedule, 0.4, 0.6)
    start = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    found, times = dpm_solver(predict, schedule, steps, Draws((9, 1), start, start, steps)), solver_steps(schedule, steps)
    assert len(times) == steps and times[0] == schedule.steps - 1 and times == sorted(set(times), reverse=True)
    return float((found - predict(flow(start, times[0], times[-1]), torch.full((9,), times[-1]))).abs().max())


def test_dpm_solver_follows_the_probability_flow():
    assert max(solver_error(Schedule(50), steps) for steps in (10, 15, 20, 49)) < 0.012
    # of second order: half the step, a quarter of the error, less what the coarse last steps cost
    errors = [solver_error(Schedule(1000), steps) for steps in (50, 100, 200, 400)]
    assert all(after < 0.35 * before for before, after in zip(errors[:-1], errors[1:], strict=True))


def test_dpm_solver_agrees_with_diffusers():
    diffusers = pytest.importorskip("diffusers")
    schedule = Schedule(50)
    theirs = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=50, trained_betas=schedule.betas.numpy(), prediction_type="sample", final_sigmas_type="zero"
    )
    theirs.set_timesteps(15)
    x = start = torch.randn(4, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def toy(x, t):
        return 0.7 * torch.tanh(x) + 0.02 * t[:, None] - 0.3

    for t in theirs.timesteps:
        x = theirs.step(toy(x, t.expand(4)), t, x).prev_sample
    ours = dpm_solver(toy, schedule, 15, Draws((4, 12), start, start, 15))
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-5)


def test_noise_is_given_whole_or_refused():
    like = torch.zeros(1)
    with pytest.raises(ValueError, match="expected the start"):
        Draws((2, 144), like, torch.zeros(3, 2, 144), 50)
    draws = Draws((2, 144), like, torch.zeros(2, 24, 6), 50)
    draws()
    with pytest.raises(ValueError, match="every step"):
        draws()


def test_the_solver_refuses_more_steps_than_there_are():
    with pytest.raises(ValueError, match="1 to 50"):
        solver_steps(Schedule(50), 51)
