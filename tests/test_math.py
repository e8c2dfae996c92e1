"""What the losses, the noise levels and the choice of actions must be, against closed forms and SciPy."""

import copy
import itertools
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    OBS_DIM,
    SCRIPTS,
    FakeEnv,
    load_mutant,
    load_script,
    make_agent,
    make_args,
    make_data,
    recorded_draws,
)
from scipy import optimize, stats
from torch import nn

dtql, implicit, kl, srpo = (load_script(name) for name in SCRIPTS)
CRITICS_OF_DTQL = pytest.mark.parametrize("script", [dtql, implicit, kl], ids=lambda script: script.__name__)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def at_sigma(sigma: float, **changes):
    """Args whose training noise level is always sigma, to 1e-5."""
    return make_args(dtql, sigma_min=sigma * (1 - 1e-5), sigma_max=sigma * (1 + 1e-5), **changes)


# ----------------------------------------------------------------------------------------------------- EDM
def constant_denoiser(script, value, sigma_data: float = 0.5) -> tuple[nn.Module, list]:
    """A denoiser whose F is this value, and the list of all that F was given."""
    denoiser, seen = script.Denoiser(1, OBS_DIM, 1, sigma_data), []
    denoiser.network = lambda x, c_noise, *_: seen.append((x, c_noise)) or value + 0 * x
    return denoiser, seen


@pytest.mark.parametrize("script", [dtql, srpo], ids=["dtql_gaussian", "srpo"])
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_preconditioning_in_its_limits(script, sigma_data):
    sigma = torch.tensor([1e-6, 0.1, 1e6], dtype=torch.float64).view(1, 3, 1)
    silent, seen = constant_denoiser(script, 0.0, sigma_data)
    c_skip = silent(torch.full_like(sigma, 0.5), sigma, None).flatten() / 0.5
    c_out = constant_denoiser(script, 0.1, sigma_data)[0](0 * sigma, sigma, None).flatten() / 0.1
    c_in, c_noise = seen[0][0].flatten() / 0.5, seen[0][1].flatten()
    s, near = sigma.flatten(), lambda value: pytest.approx(value, rel=1e-9)
    assert [c_skip[0], c_out[0] / s[0], c_in[0]] == near([1, 1, 1 / sigma_data])
    assert [c_skip[2] * s[2] ** 2, c_out[2], c_in[2] * s[2]] == near([sigma_data**2, sigma_data, 1])
    v = 0.1**2 + sigma_data**2
    assert [c_skip[1], c_out[1], c_in[1]] == near([sigma_data**2 / v, 0.1 * sigma_data / v**0.5, v**-0.5])
    assert c_noise.tolist() == near([math.log(x) / 4 for x in s])


@pytest.mark.parametrize("sigma_data", [0.1, 0.2])  # so small that no action meets the clamp
@pytest.mark.parametrize("sigma", [0.003, 0.4, 20.0])
def test_network_sees_and_has_to_tell_unit_variance(sigma, sigma_data):
    """For a ~ N(0, σ_data²): the loss of F = 0 is the mean square of F's target (a - c_skip a_σ) / c_out."""
    denoiser, seen = constant_denoiser(dtql, 0.0, sigma_data)
    torch.manual_seed(0)
    loss = dtql.denoising_loss(
        denoiser, sigma_data * normal(2, 50_000, 1), None, at_sigma(sigma, sigma_data=sigma_data)
    )
    ((x, c_noise),) = seen
    assert loss.shape == (2,)  # one per seed
    assert loss.tolist() == pytest.approx([1, 1], abs=0.03)
    assert x.var().item() == pytest.approx(1, abs=0.03)
    assert torch.allclose(4 * c_noise, torch.tensor(math.log(sigma)), atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"sigma_data": 1.3, "sigma_min": 0.05, "sigma_max": 3.0}])
def test_noise_levels_are_truncated_log_logistic(changes):
    args = make_args(dtql, **changes)
    law = stats.logistic(loc=math.log(args.sigma_data), scale=0.5)
    low, high = law.cdf(np.log([args.sigma_min, args.sigma_max]))
    torch.manual_seed(0)
    u = torch.rand(4, 20_000, 1)
    sigma = dtql.sample_sigma(u, args)
    assert sigma.shape == u.shape
    drawn = sigma.flatten().double().numpy()
    assert stats.kstest(drawn, lambda sigma: (law.cdf(np.log(sigma)) - low) / (high - low)).pvalue > 0.01
    assert stats.kstest(np.log(drawn), stats.norm(-1.2, 1.2).cdf).statistic > 0.1  # EDM's own choice
    ends = torch.tensor([0, 2**-24, 2**-23, 1 - 2**-23, 1 - 2**-24])
    grid = torch.cat([torch.linspace(0, 1 - 2**-24, 100_001), ends]).sort().values
    sigma = dtql.sample_sigma(grid, args).double()
    assert sigma.min() >= args.sigma_min * (1 - 1e-6) and sigma.max() <= args.sigma_max * (1 + 1e-6)
    assert (sigma.diff() >= 0).all() and (sigma[::1000].diff() > 0).all()
    quantiles = np.exp(law.ppf(low + (high - low) * grid.double().numpy()))
    assert np.allclose(sigma, quantiles, rtol=1e-6)  # both tails, too
    assert sigma[[0, -1]].tolist() == pytest.approx([args.sigma_min, args.sigma_max], rel=0.01)


def test_denoiser_learns_the_posterior_mean_of_gaussian_data(monkeypatch):
    """E[a | a_σ] = (s² a_σ + σ² m) / (s² + σ²) for a ~ N(m, s²); each seed has data of its own."""
    monkeypatch.setattr(dtql, "HIDDEN", (64, 64, 64))
    args, n, steps = make_args(dtql, sigma_data=0.2), 512, 400
    mean, std = torch.tensor([0.2, -0.3]).view(2, 1, 1), torch.tensor([0.2, 0.1]).view(2, 1, 1)
    torch.manual_seed(0)
    denoiser, obs = dtql.Denoiser(2, 1, 1, args.sigma_data), torch.zeros(2, n, 1)
    optimizer = torch.optim.Adam(denoiser.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        action = mean + std * torch.randn(2, n, 1)
        dtql.minimize(dtql.denoising_loss(denoiser, action, obs, args), optimizer)
        schedule.step()
    for level in (0.05, 0.1, 0.2, 0.5, 2.0):
        sigma = torch.full((2, 41, 1), level)
        noisy = mean + (std**2 + level**2).sqrt() * torch.linspace(-2, 2, 41).view(1, 41, 1)
        optimal = (std**2 * noisy + level**2 * mean) / (std**2 + level**2)
        with torch.no_grad():
            error = denoiser(noisy, sigma, obs[:, :41]) - optimal
        c_out = level * 0.2 / (level**2 + 0.04) ** 0.5
        assert ((error / c_out).square().mean(dim=(1, 2)).sqrt() < 0.2).all(), level  # F = 0: 1


# -------------------------------------------------------------------------------------------- trust region
def test_the_trust_regions_gradient_is_equation_11_and_srpos_the_same_without_the_jacobian():
    """∂L_TR/∂a = 2/A ((D - a) / c_out²)ᵀ (∂D/∂a_σ - I), with D's Jacobian by differences. Without ∂D/∂a_σ it
    is SRPO's regulariser at the same σ and ε, up to a positive factor of σ alone."""
    args, a_dim, n = make_args(dtql), 3, 6
    torch.manual_seed(0)
    denoiser = dtql.Denoiser(2, OBS_DIM, a_dim, args.sigma_data).double()
    with torch.no_grad():
        denoiser.body.biases[-1] += torch.tensor([4.0, 0.0, -1.0])  # some rows meet the clamp
    obs, action = normal(2, n, OBS_DIM), normal(2, n, a_dim).tanh().requires_grad_()
    with recorded_draws() as draws:
        loss = dtql.denoising_loss(dtql.frozen(denoiser), action, obs, args)
    (gradient,) = torch.autograd.grad(loss.sum(), action, retain_graph=True)
    reached = torch.autograd.grad(loss.sum(), list(denoiser.parameters()), allow_unused=True)
    assert set(reached) == {None} and all(p.requires_grad for p in denoiser.parameters())  # φ is frozen

    sigma, (eps,) = dtql.sample_sigma(draws["uniform"][0], args).double(), draws["normal"]
    with torch.no_grad():
        d = lambda noisy: denoiser(noisy, sigma, obs)
        noisy, h = action + sigma * eps, 1e-6
        columns = [(d(noisy + h * e) - d(noisy - h * e)) / (2 * h) for e in torch.eye(a_dim).double()]
        jacobian = torch.stack(columns, dim=-1)  # [seed, batch, D, a_σ]
        c_out = sigma * 0.5 / (sigma**2 + 0.25).sqrt()
        residual = 2 / a_dim * (d(noisy) - action) / c_out**2 / n  # the mean over n rows
        by_hand = torch.einsum("sbi,sbij->sbj", residual, jacobian - torch.eye(a_dim))
        assert 0 < (d(noisy).abs() == 1).sum() < noisy.numel() / 2
    assert torch.allclose(gradient, by_hand, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(gradient, -residual, rtol=0.1)

    # the time at which the VP process has this σ: ln α = -t² 19.9/4 - t/20 = -ln(1 + σ²)/2
    t = (-0.05 + (0.05**2 + 19.9 * torch.log1p(sigma**2) / 2).sqrt()) / (19.9 / 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "rand_like", lambda x: (t - 0.02) / 0.96)
        patch.setattr(torch, "randn_like", lambda x: eps)
        regularizer = srpo.score_regularizer(denoiser, action, obs, make_args(srpo))
    factor = 2 * sigma / (a_dim * c_out**2 * sigma**2 / (1 + sigma**2)) / n
    assert torch.allclose(factor * regularizer, -residual, rtol=1e-4, atol=1e-6)


def test_trust_region_alone_seeks_modes_of_a_mixture():
    """Theorem 1 with the optimal denoiser of four Gaussians: starts all over the box end on a mode."""
    args, std = make_args(dtql), 0.05
    modes = torch.tensor([[-0.6, -0.5], [-0.5, 0.6], [0.6, 0.5], [0.5, -0.6]])
    log_weight = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()

    def optimal(noisy, sigma, obs):  # E[a | a_σ]
        v = std**2 + sigma**2
        distance = (noisy.unsqueeze(2) - modes).square().sum(dim=-1)  # [1, batch, mode]
        share = (log_weight - distance / (2 * v)).softmax(dim=-1)
        return (std**2 * noisy + sigma**2 * (share @ modes)) / v

    torch.manual_seed(0)
    starts, draws, steps = 200, 16, 400
    action = (2 * torch.rand(1, starts, 2) - 1).requires_grad_()
    optimizer = torch.optim.Adam([action], 0.02)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, steps)
    for _ in range(steps):
        dtql.minimize(dtql.denoising_loss(optimal, action.repeat(1, draws, 1), None, args), optimizer)
        schedule.step()
    distance, nearest = (action[0].detach().unsqueeze(1) - modes).norm(dim=-1).min(dim=1)
    assert (distance < 3 * std).float().mean() >= 0.99
    assert nearest.bincount(minlength=4).min() >= 8  # every mode, also the lightest, keeps its basin


# ------------------------------------------------------------------------------------------------- critics
def tabular_agent(q, v, visited, optimizer) -> SimpleNamespace:
    """Tables in place of networks: q [seed, 2, row], v [seed, state]; visited: the states of an obs."""
    scale = torch.ones(1, requires_grad=True)  # all of a behaviour model
    return SimpleNamespace(
        q=lambda obs, action: q,
        v=lambda obs: v.gather(1, visited(obs)).unsqueeze(-1),
        denoiser=lambda noisy, sigma, obs: scale * noisy,
        optimizers={"critic": optimizer, "denoiser": torch.optim.SGD([scale], lr=0)},
    )


def test_v_is_an_expectile_of_the_lower_critic():
    """1/2: the mean; towards 1: the maximum. V is found on a grid, a seed for each of its points."""
    values, weights = [-1.0, 0.0, 2.0, 5.0], [3, 4, 2, 1]  # in tenths
    sample = torch.tensor(values, dtype=torch.float64).repeat_interleave(torch.tensor(weights))
    q = torch.stack([sample, sample + 1], dim=0).unsqueeze(0)
    q[0, :, ::2] = q[0, :, ::2].flip(0)  # now the lower of the two is the first or the second
    grid = torch.linspace(-2, 6, 16_001, dtype=torch.float64).view(-1, 1).requires_grad_()
    agent = tabular_agent(
        q, grid, lambda obs: obs.long().expand(len(grid), 10), torch.optim.SGD([grid], lr=0)
    )
    batch = [torch.zeros(1, 10).long(), torch.zeros(1, 10, 1), *torch.zeros(3, 1, 10).long()]

    def solve(expectile: float) -> float:
        losses = dtql.pretrain_update(agent, batch, make_args(dtql, expectile=expectile))
        return grid[losses["value_loss"].argmin()].item()

    assert solve(0.5) == pytest.approx(0.6, abs=1e-3)
    for expectile in (0.1, 0.7, 0.9, 0.99):
        balance = lambda v: np.mean(np.where(sample < v, 1 - expectile, expectile) * (sample.numpy() - v))
        assert solve(expectile) == pytest.approx(optimize.brentq(balance, -3, 8), abs=1e-3)
        assert solve(expectile) == pytest.approx(stats.expectile(sample.numpy(), expectile), abs=1e-3)
    assert solve(1 - 1e-6) == pytest.approx(5, abs=1e-3)


def test_iql_on_a_tabular_mdp_approaches_the_optimal_q():
    """With a table in place of each network: τ = 1/2 evaluates the uniform policy, τ → 1 finds Q*."""
    n_states, n_actions, discount = 5, 3, 0.9
    rng = np.random.default_rng(3)
    succ = rng.integers(0, n_states, (n_states, n_actions))
    reward = rng.uniform(0, 1, (n_states, n_actions))
    terminal = np.zeros((n_states, n_actions))
    terminal[[1, 3, 4], [0, 2, 1]] = 1  # what follows has a value that must not count
    optimal = uniform = np.zeros((n_states, n_actions))
    for _ in range(500):
        optimal = reward + discount * (1 - terminal) * optimal.max(axis=1)[succ]
        uniform = reward + discount * (1 - terminal) * uniform.mean(axis=1)[succ]

    expectiles = torch.tensor([0.5, 0.9, 0.99, 0.9999], dtype=torch.float64).unsqueeze(1)  # one per seed
    n, rows = len(expectiles), n_states * n_actions
    q = torch.zeros(n, 2, rows, dtype=torch.float64, requires_grad=True)
    v = torch.zeros(n, n_states, dtype=torch.float64, requires_grad=True)
    state = torch.arange(n_states).repeat_interleave(n_actions)
    columns = [torch.as_tensor(x).flatten().expand(n, -1) for x in (state, reward, succ, terminal)]
    batch = [columns[0], torch.zeros(n, rows, 1), *columns[1:]]
    # from below, without momentum: V never overshoots
    agent = tabular_agent(q, v, lambda obs: obs, torch.optim.SGD([q, v], lr=2))
    args = make_args(dtql, discount=discount, expectile=expectiles)
    for _ in range(2500):
        dtql.pretrain_update(agent, batch, args)
    learned = q.detach().view(n, 2, n_states, n_actions).numpy()
    error = np.abs(learned - optimal).max(axis=(1, 2, 3))
    assert np.allclose(learned[0], uniform, atol=1e-3)
    assert error[0] > error[1] > error[2] > error[3]
    assert error[3] < 0.02 < 0.3 < error[0]


# ------------------------------------------------------------------------------------------ KL distillation
class Normal1d:
    """N(mean, std²) in each dim, with its score and its optimal denoiser at any noise level."""

    def __init__(self, mean: float, std: float):
        self.mean, self.std = mean, std

    def score(self, noisy, sigma):
        return -(noisy - self.mean) / (self.std**2 + sigma**2)

    def denoiser(self, noisy, sigma, obs):
        """E[a | a_σ]."""
        return noisy + sigma**2 * self.score(noisy, sigma)


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_kl_surrogate_descends_the_kl_of_two_gaussians(sigma):
    """Sample by sample A batch gradient = w(σ) (s_fake - s_real) with w(σ) = σ² A / |D_φ - a|₁ (Eq. 12). Its
    weight divided out, the mean gradient in mean and std of the policy is that of
    KL(N(m, s² + σ²) || N(m', s'² + σ²)) in closed form."""
    n, args = 200_000, make_args(kl, sigma_min=sigma * (1 - 1e-6), sigma_max=sigma * (1 + 1e-6))
    real, fake, z = Normal1d(0.4, 0.5), Normal1d(-0.3, 0.2), normal(1, n, 1)
    mean, std = (torch.full((1, n, 1), x).double().requires_grad_() for x in (fake.mean, fake.std))
    action = mean + std * z
    torch.manual_seed(0)
    with recorded_draws() as draws:
        loss = kl.kl_loss(real.denoiser, fake.denoiser, action, None, args)
    d_action, d_mean, d_std = torch.autograd.grad(loss.sum(), [action, mean, std])
    sigma = kl.sample_sigma(draws["uniform"][0], args).double()
    noisy = (action + sigma * draws["normal"][0]).detach()
    distance = (real.denoiser(noisy, sigma, None) - action.detach()).abs()
    weight = sigma**2 / distance.clamp(min=kl.DENOMINATOR_FLOOR)
    by_hand = weight * (fake.score(noisy, sigma) - real.score(noisy, sigma))
    assert torch.allclose(n * d_action, by_hand, rtol=1e-4, atol=1e-5)
    assert loss.item() == pytest.approx(by_hand.square().mean().item() / 2, rel=1e-4)
    v_real, v_fake = real.std**2 + sigma.mean().item() ** 2, fake.std**2 + sigma.mean().item() ** 2
    unweighted = [(d * n / weight).mean().item() for d in (d_mean, d_std)]
    assert unweighted[0] == pytest.approx((fake.mean - real.mean) / v_real, rel=0.03)
    assert unweighted[1] == pytest.approx(fake.std * (1 / v_real - 1 / v_fake), rel=0.05)
    assert d_mean.sum() < 0 and d_std.sum() < 0  # weighted or not: towards the data's mean, and wider


def test_kl_surrogate_is_weighted_by_the_mean_over_dims_and_finite_where_that_vanishes():
    action = torch.zeros(1, 4, 2, dtype=torch.float64, requires_grad=True)
    at = lambda *point: lambda noisy, sigma, obs: torch.tensor(point, dtype=torch.float64).expand_as(noisy)
    for real, fake, expected in [
        ((0.0, 0.0), (0.01, 0.01), 0.01 / 1e-3),
        ((0.3, -0.1), (0.5, 0.1), 0.2 / 0.2),
    ]:
        loss = kl.kl_loss(at(*real), at(*fake), action, None, make_args(kl))
        (gradient,) = torch.autograd.grad(loss.sum(), action)
        assert torch.allclose(8 * gradient, torch.full_like(gradient, expected))


# ---------------------------------------------------------------------------------------------------- SRPO
def test_vp_schedule_is_that_of_the_sde():
    """da = -β(t)/2 a dt + √β(t) dw with β(t) = 0.1 + 19.9 t, integrated by its definition."""
    for t in (1e-3, 0.02, 0.3, 0.98, 1.0):
        grid = np.linspace(0, t, 100_001)
        expected = math.exp(-np.trapezoid(0.1 + 19.9 * grid, grid) / 2)
        alpha, sigma = srpo.vp_schedule(torch.tensor(t, dtype=torch.float64))
        assert [alpha.item(), sigma.item()] == pytest.approx([expected, math.sqrt(1 - expected**2)], rel=1e-6)
    for t, ratio in ((0.93, 80), (0.98, 125)):  # what the docstring says of --sigma-max
        alpha, sigma = srpo.vp_schedule(torch.tensor(t))
        assert sigma / alpha == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize("omega", ["sigma_squared", "one", "alpha_over_sigma"])
@pytest.mark.parametrize("baseline", [True, False])
def test_the_regularizer_in_edm_form_is_that_in_vp_form(omega, baseline):
    """For Gaussian data, whose VP noise predictor is known: ε̂ = σ_t (a_t - α_t m) / (α_t² s² + σ_t²)."""
    data, action = Normal1d(0.3, 0.4), normal(2, 300, 2)
    with recorded_draws() as draws:
        mine = srpo.score_regularizer(
            data.denoiser, action, None, make_args(srpo, omega=omega, baseline=baseline)
        )
    t, (eps,) = 0.02 + 0.96 * draws["uniform"][0], draws["normal"]  # U(0.02, 0.98)
    alpha = torch.exp(-(t**2) * (20 - 0.1) / 4 - t * 0.1 / 2)
    sigma = (1 - alpha**2).sqrt()
    noisy = alpha * action + sigma * eps  # a_t of the VP process
    predicted = sigma * (noisy - alpha * data.mean) / (alpha**2 * data.std**2 + sigma**2)
    weight = {"sigma_squared": sigma**2, "one": 1, "alpha_over_sigma": alpha / sigma}[omega]
    assert torch.allclose(mine, weight * (predicted - eps * baseline), rtol=1e-5, atol=1e-8)


def test_the_baseline_changes_the_variance_only():
    """ε has mean 0, so the mean regulariser stays, while its spread falls."""
    data, action, results = Normal1d(0.3, 0.4), torch.full((1, 200_000, 1), 0.5), []
    for baseline in (True, False):
        torch.manual_seed(0)
        results.append(
            srpo.score_regularizer(data.denoiser, action, None, make_args(srpo, baseline=baseline))
        )
    with_it, without = results
    assert with_it.mean().item() == pytest.approx(without.mean().item(), abs=0.01)
    assert with_it.mean() > 0.02  # descent moves a = 0.5 down, to the data's mean 0.3
    assert with_it.var() < 0.5 * without.var()


def test_dropout_leaves_nine_tenths_scaled_to_the_same_mean():
    args = make_args(srpo, num_seeds=2, behavior_batch_size=100)
    agent = make_agent(srpo, args)
    with recorded_draws() as draws:
        next(srpo.gradient_steps(agent, make_data(), "behavior", {}, args))
    assert [x.shape for x in draws["kept"]] == [(2, 100, 256)] * 3
    kept = torch.stack(draws["kept"])
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.9])
    assert stats.binomtest(int((kept == 0).sum()), kept.numel(), 0.1).pvalue > 0.01


def test_a_flat_q_has_a_finite_normalised_gradient():
    args = make_args(srpo, q_gradient="normalized")
    agent = make_agent(srpo, args)
    with torch.no_grad():
        agent.target_q.weights[-1].zero_()
    losses = srpo.policy_update(agent, [x[None] for x in make_data(8)], args)
    assert losses["q_gradient_norm"] == 0 and all(x.isfinite().all() for x in agent.parameters())


# -------------------------------------------------------------------------------------------------- layers
def test_mish_is_torchs_in_value_and_slope():
    extremes = torch.tensor([1e37, 1e30, 1e4, 300, 104, 89, 1e-30, 0])
    x = torch.cat([torch.linspace(-50, 50, 100_001), extremes, -extremes]).requires_grad_()
    y = dtql.mish(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    exact_x = x.detach().double().requires_grad_()
    exact = F.mish(exact_x)
    (exact_slope,) = torch.autograd.grad(exact.sum(), exact_x)
    assert y.dtype == torch.float32
    assert torch.allclose(y.double(), exact, rtol=1e-6, atol=1e-15)  # no NaN, and the left tail is right
    assert torch.allclose(slope.double(), exact_slope, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------- acting, evaluating
def standard_normal_policy(script, agent) -> None:
    """Its output, for the Gaussian policy before the tanh, is N(0, 1) in every state."""
    if script is dtql:
        for x in (*agent.policy.weights, *agent.policy.biases):
            nn.init.zeros_(x)
    else:
        agent.policy.forward = lambda obs, z: z


@CRITICS_OF_DTQL
def test_act_samples_from_the_softmax_of_the_lower_target_critic(script):
    """A policy of density N(0, 1) and Q = c x make N(c, 1). Of the implicit policies Q meets x itself; what
    leaves is clamped."""
    args = make_args(
        script, num_seeds=2, eval_candidates=256, **({} if script is dtql else {"sigma_gen": 1.0})
    )
    agent = make_agent(script, args)
    standard_normal_policy(script, agent)
    obs = normal(2, 1000, OBS_DIM).float()
    c = obs[:, :, 0] = torch.tensor([[0.7], [-0.7]]) * torch.tensor([1.0, -1.0]).repeat(500)

    def target_q(obs, action):  # the lower one is the first or the second
        x = action[..., 0].atanh() if script is dtql else action[..., 0]
        q = obs[..., 0] * x
        return torch.stack([q + x.relu(), q + (-x).relu()], dim=1)

    agent.target_q.forward = target_q
    agent.q.forward = lambda obs, action: pytest.fail("the target critic, not the current one")
    action = script.act(agent, obs, args)
    assert action.shape == (2, 1000, 2) and action.abs().max() <= 1
    x = action[..., 0].atanh() if script is dtql else action[..., 0]
    assert len(x.unique()) > 1000  # each state and seed has candidates of its own
    if script is dtql:
        assert stats.kstest((x - c).flatten(), stats.norm.cdf).pvalue > 0.01
        return
    towards = x * c.sign()  # N(0.7, 1), clamped
    for bound, share in ((1, stats.norm(0.7).sf(1)), (-1, stats.norm(0.7).cdf(-1))):
        assert stats.binomtest(int((towards == bound).sum()), x.numel(), share).pvalue > 0.01
    inside = stats.truncnorm(-1.7, 0.3, loc=0.7)
    assert stats.kstest(towards[towards.abs() < 1], inside.cdf).pvalue > 0.01


@CRITICS_OF_DTQL
def test_act_without_candidates_is_the_plain_policy_or_its_mean(script):
    args = make_args(script, num_seeds=2)
    agent = make_agent(script, args)
    agent.q.forward = agent.target_q.forward = lambda obs, action: pytest.fail("needs no critic")
    obs = normal(2, 3, OBS_DIM).float()
    args.eval_candidates = 0
    if script is dtql:
        expected = agent.policy(obs).mean.tanh()
    else:
        expected = agent.policy(obs, torch.zeros(2, 3, 2)).clamp(-1, 1)
    assert torch.allclose(script.act(agent, obs, args), expected)
    args.eval_candidates = 1
    standard_normal_policy(script, agent)
    action = script.act(agent, obs[:, :1].repeat(1, 2000, 1), args)[..., 0].flatten()
    assert action.abs().max() <= 1
    if script is dtql:
        assert stats.kstest(action.atanh(), stats.norm.cdf).pvalue > 0.01
    else:
        inside = stats.truncnorm(-1 / args.sigma_gen, 1 / args.sigma_gen, scale=args.sigma_gen)
        assert stats.kstest(action[action.abs() < 1], inside.cdf).pvalue > 0.01


def test_srpos_policy_is_deterministic():
    args = make_args(srpo, num_seeds=2)
    agent, obs = make_agent(srpo, args), normal(2, 3, OBS_DIM).float()
    assert torch.equal(srpo.act(agent, obs, args), agent.policy(obs).detach())


def task_of(log: list, envs: list) -> SimpleNamespace:
    def make_env(render_mode=None):
        envs.append(FakeEnv(log))
        return envs[-1]

    return SimpleNamespace(make_env=make_env, low=20.0, high=120.0, metric="score", physics="none")


@pytest.mark.parametrize("slots", [1, 4, 40])
def test_evaluation_counts_each_episode_once(slots, monkeypatch):
    """However many run side by side: the same returns, those of playing one episode at a time."""
    script = load_mutant("dtql_gaussian.py", '10 if device.type == "cuda" else 1', str(slots))
    args = make_args(script, seed=3, num_seeds=2, eval_episodes=23)
    script.act = lambda agent, obs, args: torch.tensor([[[1.0]], [[0.5]]]) * obs[..., :2].sin()
    log, envs = [], []
    values = script.evaluate(make_agent(script, args), task_of(log, envs), args)
    assert len(envs) == 2 * min(slots, 23) and all(env.closed for env in envs)
    assert sorted(log) == [10_000 * (3 + i) + k for i in range(2) for k in range(23)]
    returns, lengths = np.zeros((2, 2, 23))
    for i, k in itertools.product(range(2), range(23)):
        env, done = FakeEnv([]), False
        obs, _ = env.reset(seed=10_000 * (3 + i) + k)
        while not done:
            obs, reward, *ended, _ = env.step((1.0, 0.5)[i] * np.sin(obs[:2].astype(np.float32)))
            returns[i, k] += reward
            lengths[i, k] += 1
            done = any(ended)
    assert len(np.unique(lengths)) > 10
    assert np.array_equal(values["eval/lengths"], lengths)
    assert np.allclose(values["eval/returns"], returns, rtol=1e-5)
    assert np.allclose(values["eval/normalized_scores"], np.array(values["eval/returns"]) - 20)
    for name in ("return", "length", "normalized_score"):
        assert np.array_equal(values[f"eval/{name}"], np.mean(values[f"eval/{name}s"], axis=1))


def test_evaluation_repeats_itself_and_leaves_random_numbers_and_weights_alone():
    args = make_args(dtql, num_seeds=2, eval_candidates=8, eval_episodes=3)
    agent = make_agent(dtql, args)
    before, state = copy.deepcopy(agent.state_dict()), torch.get_rng_state()
    others = random.getstate(), str(np.random.get_state())
    results = []
    for _ in range(2):
        results.append(dtql.evaluate(agent, task_of([], []), args))
        assert torch.equal(state, torch.get_rng_state())
        torch.rand(5)
        state = torch.get_rng_state()
    assert np.array_equal(results[0]["eval/returns"], results[1]["eval/returns"])
    assert others == (random.getstate(), str(np.random.get_state()))
    assert all(torch.equal(x, before[name]) for name, x in agent.state_dict().items())
