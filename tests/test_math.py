"""The mathematics that the four scripts share, in dtql_gaussian.py, against closed forms and SciPy."""

import copy
import functools
import itertools
import math
import random

import helpers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import MAX_ACTION, OBS_DIM, generators, load_script
from scipy import optimize, stats
from torch import nn

dtql = load_script("dtql_gaussian.py")
make_args, make_agent = (functools.partial(make, dtql) for make in (helpers.make_args, helpers.make_agent))


# -------------------------------------------------------------------------------------------- EDM schedule
def log_logistic(args):
    """CDF and its inverse of the truncated log-logistic noise level, from its definition."""
    law = stats.logistic(loc=math.log(args.sigma_data), scale=0.5)
    low, high = law.cdf(np.log([args.sigma_min, args.sigma_max]))
    cdf = lambda sigma: (law.cdf(np.log(sigma)) - low) / (high - low)
    return cdf, lambda u: np.exp(law.ppf(low + (high - low) * u))


def at_sigma(sigma: float, **changes):
    """Args whose training noise level is always sigma, to 1e-5."""
    return make_args(sigma_min=sigma * (1 - 1e-5), sigma_max=sigma * (1 + 1e-5), **changes)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_preconditioning_in_its_limits(sigma_data):
    args = make_args(sigma_data=sigma_data)
    sigma = torch.tensor([1e-6, 0.1, 1e6], dtype=torch.float64)
    c_skip, c_out, c_in, c_noise = dtql.precondition(sigma, args)
    near = lambda value: pytest.approx(value, rel=1e-9)
    assert [c_skip[0], c_out[0] / sigma[0], c_in[0]] == near([1, 1, 1 / sigma_data])
    assert [c_skip[2] * sigma[2] ** 2, c_out[2], c_in[2] * sigma[2]] == near([sigma_data**2, sigma_data, 1])
    v = 0.1**2 + sigma_data**2
    assert [c_skip[1], c_out[1], c_in[1]] == near([sigma_data**2 / v, 0.1 * sigma_data / v**0.5, v**-0.5])
    assert c_noise.tolist() == near([math.log(s) / 4 for s in sigma])


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
@pytest.mark.parametrize("sigma", [0.003, 0.4, 20.0])
def test_network_sees_and_has_to_tell_unit_variance(sigma, sigma_data):
    """For a ~ N(0, σ_data²): the loss of F = 0 is the mean square of F's target (a - c_skip a_σ) / c_out."""
    (g,) = generators(0)
    args = at_sigma(sigma, sigma_data=sigma_data)
    action = sigma_data * torch.randn(2, 50_000, 3, generator=g, dtype=torch.float64)
    eps = torch.randn(2, 50_000, 3, generator=g, dtype=torch.float64)
    u = torch.rand(2, 50_000, 1, generator=g)
    seen = []

    def zero_network(x, c_noise, obs):
        seen.append((x, c_noise))
        return torch.zeros_like(x)

    loss = dtql.denoising_loss(zero_network, action, None, u, eps, torch.full((3,), 1e9), args)
    ((x, c_noise),) = seen
    assert loss.shape == (2,)  # one per seed
    assert loss.tolist() == pytest.approx([1, 1], abs=0.02)
    assert x.var().item() == pytest.approx(1, abs=0.02)
    assert torch.allclose(4 * c_noise, torch.tensor(math.log(sigma)), atol=1e-4)


def test_denoised_actions_are_clamped_also_in_training():
    args, box = at_sigma(1.0), torch.tensor(MAX_ACTION)
    weight = torch.tensor(100.0, requires_grad=True)
    network = lambda x, c_noise, obs: weight * torch.sign(x)
    noisy, sigma = torch.tensor([[[2.0, -2.0], [-2.0, 2.0]]]), torch.ones(1, 2, 1)
    denoised = dtql.denoise(network, noisy, sigma, None, box, args)
    assert torch.equal(denoised, torch.tensor([[[1.0, -0.4], [-1.0, 0.4]]]))
    loss = dtql.denoising_loss(network, 0 * noisy, None, sigma / 2, noisy, box, args)
    assert loss.item() == pytest.approx((1.0**2 + 0.4**2) / 2 / 0.2, rel=1e-4)  # mean over dims; c_out² = 0.2
    assert torch.autograd.grad(loss.sum(), weight)[0] == 0


@pytest.mark.parametrize("changes", [{}, {"sigma_data": 1.3, "sigma_min": 0.05, "sigma_max": 3.0}])
def test_noise_levels_are_truncated_log_logistic(changes):
    args = make_args(**changes)
    cdf, quantile = log_logistic(args)
    u = torch.rand(4, 50_000, 1, generator=generators(0)[0])
    sigma = dtql.sample_sigma(u, args)
    assert sigma.shape == u.shape
    drawn = sigma.flatten().double().numpy()
    assert stats.kstest(drawn, cdf).pvalue > 0.01
    assert stats.kstest(np.log(drawn), stats.norm(-1.2, 1.2).cdf).statistic > 0.1  # EDM's own choice
    ends = torch.tensor([0, 2**-24, 2**-23, 1 - 2**-23, 1 - 2**-24])
    grid = torch.cat([torch.linspace(0, 1 - 2**-24, 100_001), ends]).sort().values
    sigma = dtql.sample_sigma(grid, args).double()
    assert sigma.min() >= args.sigma_min * (1 - 1e-6) and sigma.max() <= args.sigma_max * (1 + 1e-6)
    assert (sigma.diff() >= 0).all() and (sigma[::1000].diff() > 0).all()
    assert np.allclose(sigma, quantile(grid.double().numpy()), rtol=1e-6)  # both tails, too
    assert sigma[[0, -1]].tolist() == pytest.approx([args.sigma_min, args.sigma_max], rel=0.01)


def test_denoiser_learns_the_posterior_mean_of_gaussian_data(monkeypatch):
    """E[a | a_σ] = (s² a_σ + σ² m) / (s² + σ²) for a ~ N(m, s²); each seed has data of its own."""
    monkeypatch.setattr(dtql, "HIDDEN_DIM", 64)
    args, n, steps = make_args(), 1024, 700
    mean, std = torch.tensor([0.3, -0.5]).view(2, 1, 1), torch.tensor([0.4, 0.15]).view(2, 1, 1)
    denoiser = dtql.Denoiser(generators(1, 2), 1, 1)
    optimizer = dtql.adam(denoiser.parameters(), 2e-3)
    g, obs, box = torch.Generator().manual_seed(0), torch.zeros(2, n, 1), torch.tensor([10.0])
    for step in range(steps):
        optimizer.param_groups[0]["lr"].fill_(2e-3 * (1 + math.cos(math.pi * step / steps)) / 2)
        action = mean + std * torch.randn(2, n, 1, generator=g)
        noise = torch.rand(2, n, 1, generator=g), torch.randn(2, n, 1, generator=g)
        dtql.minimize(dtql.denoising_loss(denoiser, action, obs, *noise, box, args), optimizer)
    for level in (0.05, 0.2, 0.5, 1.0, 4.0):
        sigma = torch.full((2, 41, 1), level)
        noisy = mean + (std**2 + level**2).sqrt() * torch.linspace(-2, 2, 41).view(1, 41, 1)
        optimal = (std**2 * noisy + level**2 * mean) / (std**2 + level**2)
        with torch.no_grad():
            error = dtql.denoise(denoiser, noisy, sigma, obs[:, :41], box, args) - optimal
        c_out = dtql.precondition(sigma, args)[1]
        assert ((error / c_out).square().mean(dim=(1, 2)).sqrt() < 0.1).all(), level


# -------------------------------------------------------------------------------------------- trust region
def test_trust_region_gradient_is_equation_11():
    """∂L_TR/∂a = 2/A ((D - a) / c_out²)ᵀ (∂D/∂a_σ - I), D's Jacobian by jacrev, nothing to φ."""
    args, box = make_args(), torch.tensor([0.3, 0.1, 2.0], dtype=torch.float64)
    denoiser = dtql.Denoiser(generators(1, 2), OBS_DIM, 3).double()
    (g,) = generators(0)
    normal = lambda dim: torch.randn(2, 6, dim, generator=g, dtype=torch.float64)
    obs, eps, action = normal(OBS_DIM), normal(3), box * normal(3).tanh()
    action.requires_grad_()
    u = torch.rand(2, 6, 1, generator=g)
    network = dtql.frozen(denoiser)
    loss = dtql.denoising_loss(network, action, obs, u, eps, box, args)
    (gradient,) = torch.autograd.grad(loss.sum(), action, retain_graph=True)
    reached = torch.autograd.grad(loss.sum(), list(denoiser.parameters()), allow_unused=True)
    assert set(reached) == {None}  # frozen

    sigma = dtql.sample_sigma(u, args)
    c_out = sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    by_hand, without_jacobian = torch.zeros(2, 6, 3).double(), torch.zeros(2, 6, 3).double()
    clamped = 0
    for i, j in itertools.product(range(2), range(6)):
        s = sigma[i, j].double()

        def f(noisy):  # D_φ of row (i, j) without the clamp; the other rows are dummies
            x = torch.zeros(2, 1, 3).double().index_put((torch.tensor(i),), noisy / (s**2 + 0.25).sqrt())
            output = network(x, s.log().expand(2, 1, 1) / 4, obs[:, j : j + 1])[i, 0]
            return 0.25 / (s**2 + 0.25) * noisy + s * 0.5 / (s**2 + 0.25).sqrt() * output

        noisy = action[i, j].detach() + s * eps[i, j]
        inside = (f(noisy).abs() < box).double()
        clamped += int(3 - inside.sum())
        jacobian = inside.unsqueeze(1) * torch.func.jacrev(f)(noisy)
        residual = (f(noisy).clamp(-box, box) - action[i, j].detach()) / c_out[i, j].double() ** 2
        by_hand[i, j] = 2 / 3 * residual @ (jacobian - torch.eye(3).double()) / 6  # the mean over 6 rows
        without_jacobian[i, j] = 2 / 3 * -residual / 6
    assert 0 < clamped < 30  # of 36: both kinds occur
    assert torch.allclose(gradient, by_hand, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(gradient, without_jacobian, rtol=0.1)
    passed = torch.func.functional_call(denoiser, dict(denoiser.named_parameters()), (action, u, obs))
    assert torch.equal(passed, network(action, u, obs))
    assert all(p.requires_grad for p in denoiser.parameters())


def test_trust_region_alone_seeks_modes_of_a_mixture():
    """Theorem 1 with the optimal denoiser of four Gaussians: starts all over the box end on a mode."""
    args, std = make_args(), 0.05
    modes = torch.tensor([[-0.6, -0.5], [-0.5, 0.6], [0.6, 0.5], [0.5, -0.6]])
    log_weight = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()

    def optimal(x, c_noise, obs):  # F that makes D(a_σ, σ) = E[a | a_σ]
        sigma = (4 * c_noise).exp()
        total = sigma**2 + 0.25
        noisy, v = x * total.sqrt(), std**2 + sigma**2
        distance = (noisy.unsqueeze(2) - modes).square().sum(dim=-1)  # [1, batch, mode]
        share = (log_weight - distance / (2 * v)).softmax(dim=-1)
        mean = (std**2 * noisy + sigma**2 * (share @ modes)) / v
        return (mean - 0.25 / total * noisy) * total.sqrt() / (sigma * 0.5)

    (g,) = generators(0)
    starts, draws, box = 256, 16, torch.ones(2)
    action = (2 * torch.rand(1, starts, 2, generator=g) - 1).requires_grad_()
    optimizer, steps = dtql.adam([action], 0.02), 500
    for step in range(steps):
        optimizer.param_groups[0]["lr"].fill_(0.02 * (1 - step / steps))
        u, eps = torch.rand(1, starts * draws, 1, generator=g), torch.randn(1, starts * draws, 2, generator=g)
        loss = dtql.denoising_loss(optimal, action.repeat(1, draws, 1), None, u, eps, box, args)
        dtql.minimize(loss, optimizer)
    distance, nearest = (action[0].detach().unsqueeze(1) - modes).norm(dim=-1).min(dim=1)
    assert (distance < 3 * std).float().mean() >= 0.99
    assert nearest.bincount(minlength=4).min() >= 10  # every mode, also the lightest, keeps its basin


# ------------------------------------------------------------------------------------------------- critics
def test_value_loss_is_expectile_regression_to_the_lower_critic():
    values, weights = [-1.0, 0.0, 2.0, 5.0], [3, 4, 2, 1]  # in tenths
    sample = torch.tensor(values, dtype=torch.float64).repeat_interleave(torch.tensor(weights))
    q = torch.stack([sample, sample + 1], dim=0).unsqueeze(0)
    q[0, :, ::2] = q[0, :, ::2].flip(0)  # now the lower of the two is the first or the second

    def solve(expectile):
        loss = lambda v: dtql.value_loss(q, torch.full((1, 10), v, dtype=torch.float64), expectile).item()
        return optimize.minimize_scalar(loss, bounds=(-3, 8), method="bounded", options={"xatol": 1e-9}).x

    assert solve(0.5) == pytest.approx(0.6, abs=1e-5)  # the mean
    for expectile in (0.1, 0.7, 0.9, 0.99):
        balance = lambda v: np.mean(np.where(sample < v, 1 - expectile, expectile) * (sample.numpy() - v))
        assert solve(expectile) == pytest.approx(optimize.brentq(balance, -3, 8), abs=1e-5)
        assert solve(expectile) == pytest.approx(stats.expectile(sample.numpy(), expectile), abs=1e-5)
    assert solve(1 - 1e-6) == pytest.approx(5, abs=1e-3)  # the maximum
    q.requires_grad_()
    v = torch.zeros(1, 10, dtype=torch.float64, requires_grad=True)
    gradients = torch.autograd.grad(dtql.value_loss(q, v, 0.7).sum(), [q, v], allow_unused=True)
    assert gradients[0] is None and gradients[1] is not None


def test_q_loss_masks_terminal_states_and_sums_both_critics():
    q = torch.tensor([[[1.0, 2.0], [0.0, 5.0]]])
    reward, terminal, next_v = torch.tensor([[[1.0, 1.0]], [[0.0, 1.0]], [[10.0, 99.0]]])
    loss = dtql.q_loss(q, reward, terminal, next_v, 0.9)  # the targets: 1 + 0.9 · 10, and 1
    assert loss.tolist() == pytest.approx([(9**2 + 1**2) / 2 + (10**2 + 4**2) / 2])


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
    n = len(expectiles)
    q = torch.zeros(n, 2, n_states * n_actions, dtype=torch.float64, requires_grad=True)
    v = torch.zeros(n, n_states, dtype=torch.float64, requires_grad=True)
    rows = [torch.tensor(x).flatten().expand(n, -1) for x in (reward, terminal)]
    state = torch.arange(n_states).repeat_interleave(n_actions)
    optimizer = torch.optim.SGD([q, v], lr=2)  # from below, without momentum: V never overshoots
    for _ in range(3000):
        next_v = v.detach()[:, torch.tensor(succ).flatten()]
        loss_v = dtql.value_loss(q, v[:, state], expectiles)
        dtql.minimize(loss_v + dtql.q_loss(q, *rows, next_v, discount), optimizer)
    learned = q.detach().view(n, 2, n_states, n_actions).numpy()
    error = np.abs(learned - optimal).max(axis=(1, 2, 3))
    assert np.allclose(learned[0], uniform, atol=1e-3)
    assert error[0] > error[1] > error[2] > error[3]
    assert error[3] < 0.02 < 0.3 < error[0]


# -------------------------------------------------------------------------------------------------- layers
def test_mish_is_torchs_in_value_and_slope():
    extremes = torch.tensor([1e37, 1e30, 1e4, 300, 104, 89, 1e-30, 0])
    x = torch.cat([torch.linspace(-50, 50, 100_001), extremes, -extremes]).requires_grad_()
    y = dtql.Mish()(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    exact_x = x.detach().double().requires_grad_()
    exact = F.mish(exact_x)
    (exact_slope,) = torch.autograd.grad(exact.sum(), exact_x)
    assert y.dtype == torch.float32
    assert torch.allclose(y.double(), exact, rtol=1e-6, atol=1e-15)  # no NaN, and the left tail is right
    assert torch.allclose(slope.double(), exact_slope, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------- evaluation
class Stub(nn.Module):
    """Stands in for one of an agent's networks."""

    def __init__(self, function):
        super().__init__()
        self.forward = self.sample = function


def make_episodes(n: int, first: int = 0) -> list:
    indices = range(first, first + n)
    return [dtql.Episode(i, None, np.full(OBS_DIM, i / 10), *generators(1000 + i)) for i in indices]


def test_act_with_one_candidate_is_the_plain_policy():
    agent = make_agent(num_seeds=2)
    agent.q = agent.target_q = Stub(lambda obs, action: pytest.fail("needs no critic"))
    running = [make_episodes(3), make_episodes(2, first=5)]
    action = dtql.act(agent, running, 1)
    assert action.shape == (2, 3, 2)
    for i, row in enumerate([make_episodes(3), make_episodes(2, first=5)]):
        for j, episode in enumerate(row):
            noise = torch.randn(1, 2, generator=episode.generator)[0]
            mean, std = agent.policy(torch.tensor(episode.obs, dtype=torch.float32).expand(2, 1, -1))
            by_hand = torch.tensor(MAX_ACTION) * torch.tanh(mean[i, 0] + std[i, 0] * noise)
            assert torch.allclose(torch.tensor(action[i, j]), by_hand, atol=1e-6)
    again = dtql.act(agent, [make_episodes(3), make_episodes(2, first=5)], 1)
    later = dtql.act(agent, running, 1)
    assert np.array_equal(action[0], again[0]) and not np.isclose(action[0], later[0]).any()


def test_act_samples_from_the_softmax_of_the_lower_target_critic():
    agent, n = make_agent(num_seeds=2), 4000
    table = torch.tensor([[0.0, 1.0, 2.0, -1.0, 1.5], [2.0, 0.5, 9.0, -0.5, 1.0]])  # Q1 and Q2 per candidate
    agent.policy = Stub(lambda obs, noise: torch.arange(5.0).unsqueeze(1).expand(noise.shape))
    sign = torch.tensor([1.0, -1.0]).view(2, 1, 1)  # of each seed's Q
    agent.target_q = Stub(lambda obs, action: sign * table[:, action[0, :, 0].long()])
    agent.q = Stub(lambda obs, action: pytest.fail("the target critic, not the current one"))
    action = dtql.act(agent, [make_episodes(n), make_episodes(n, first=n)], 5)
    for i, q in enumerate([table.amin(dim=0), (-table).amin(dim=0)]):
        counts = np.bincount(action[i, :, 0].astype(int), minlength=5)
        assert stats.chisquare(counts, n * q.double().softmax(dim=0).numpy()).pvalue > 0.01


def test_act_gives_each_episode_its_own_candidates_and_q():
    """Rows of other lengths and other episodes change nothing, and Q meets the right state."""
    agent = make_agent(num_seeds=2)
    sharp = copy.deepcopy(agent.target_q)  # Q times 1e5: the best candidate of all
    agent.target_q = Stub(lambda obs, action: 1e5 * sharp(obs, action))
    whole = dtql.act(agent, [make_episodes(4), make_episodes(1, first=9)], 64)
    assert len(np.unique(whole[0].round(6), axis=0)) == 4
    for j in range(4):
        alone = dtql.act(agent, [make_episodes(1, first=j), []], 64)
        assert np.allclose(alone[0, 0], whole[0, j], atol=1e-6)
    alone = dtql.act(agent, [[], make_episodes(1, first=9)], 64)
    assert np.allclose(alone[1, 0], whole[1, 0], atol=1e-6)
    pairs = [
        (torch.tensor(e.obs).float(), torch.randn(64, 2, generator=e.generator)) for e in make_episodes(4)
    ]
    obs, noise = (torch.stack([torch.stack(xs)] * 2) for xs in zip(*pairs))  # the same for both seeds
    at_once = dtql.choose_action(agent, obs, noise, torch.full((2, 4, 64), 0.5))  # as on a GPU
    assert np.allclose(whole[0], at_once[0].detach().numpy(), atol=1e-6)
    for j in range(4):
        options = agent.policy.sample(obs[:, j : j + 1], noise[:, j : j + 1])[:, 0]
        best = options[0, sharp(obs[:, j : j + 1].expand(2, 64, -1), options).amin(dim=1)[0].argmax()]
        assert np.allclose(whole[0, j], best.detach().numpy(), atol=1e-6)


class FakeEnv:
    """Episodes of 1 to 30 steps, by their seed; the longer, the higher the reward of a step."""

    def __init__(self, log: list):
        self.log, self.closed = log, False

    def observe(self):
        return self.rng.normal(size=OBS_DIM) + self.memory, {}

    def reset(self, seed: int):
        self.log.append(seed)
        self.rng, self.memory = np.random.default_rng(seed), 0.0
        self.length = self.left = int(self.rng.integers(1, 31))
        return self.observe()

    def step(self, action):
        assert self.left > 0 and action.shape == (2,)
        self.left -= 1
        self.memory = 0.5 * self.memory + float(action.sum())
        done = self.left == 0
        ended = (done, False) if self.length % 2 else (False, done)  # terminated, truncated
        return self.observe()[0], self.length + self.memory, *ended, {}

    def close(self):
        self.closed = True


def run_evaluation(agent, num_envs: int, episodes: int = 23):
    log, envs = [], []

    def make_env():
        envs.append(FakeEnv(log))
        return envs[-1]

    result = dtql.evaluate(agent, make_env, range(episodes), num_envs=num_envs)
    assert len(envs) == num_envs * agent.args.num_seeds and all(env.closed for env in envs)
    expected = [dtql.derive_seed(seed, 2, i) for seed in dtql.seeds_of(agent.args) for i in range(episodes)]
    assert sorted(log) == sorted(expected) and len(set(log)) == len(log)  # each once, and none twice
    return result


def test_evaluation_counts_each_episode_once_in_any_number_of_environments():
    """With a policy that is exact in any batch: the same returns, those of playing one episode at a time."""
    agent = make_agent(seed=3, num_seeds=2, eval_candidates=1)
    squash = lambda obs, noise: (0.25 * obs[:, :, None, :2] + 0.5 * noise).clamp(-1, 1)
    agent.policy = Stub(squash)
    results = {n: run_evaluation(agent, n) for n in (1, 4, 10)}
    returns, lengths = np.zeros((2, 23)), np.zeros((2, 23))
    for i, j in itertools.product(range(2), range(23)):
        seed, env, running, done = dtql.derive_seed(3 + i, 2, j), FakeEnv([]), [[], []], False
        episode = dtql.Episode(j, env, env.reset(seed)[0], *generators(seed))
        running[i].append(episode)
        while not done:
            episode.obs, reward, *ended, _ = env.step(dtql.act(agent, running, 1)[i, 0])
            returns[i, j] += reward
            lengths[i, j] += 1
            done = any(ended)
    assert len(np.unique(lengths)) > 10
    for mine, my_lengths in results.values():
        assert np.array_equal(my_lengths, lengths)
        assert np.allclose(mine, returns, rtol=1e-12)
    assert (
        dtql.evaluate(agent, lambda: FakeEnv([]), range(5), stop=iter([False, False, True]).__next__) is None
    )


def test_an_episode_does_not_depend_on_which_others_are_played():
    agent = make_agent(num_seeds=2, eval_candidates=4)
    whole, odd = (dtql.evaluate(agent, lambda: FakeEnv([]), x, 3) for x in (range(7), range(1, 7, 2)))
    for of_all, of_odd in zip(whole, odd):
        assert of_odd.shape == (2, 3) and np.array_equal(of_all[:, 1::2], of_odd)


def test_evaluation_with_ranked_candidates_does_not_depend_on_the_environments():
    agent = make_agent(num_seeds=2, eval_candidates=64)
    (returns, lengths), *others = (run_evaluation(agent, n) for n in (1, 4, 10))
    for r, n in others:
        assert np.array_equal(n, lengths) and np.array_equal(r, returns)  # exact, on a CPU


def test_evaluation_leaves_all_random_streams_and_weights_alone():
    agent, streams = make_agent(num_seeds=2, eval_candidates=8), generators(1, 2)
    before = copy.deepcopy(agent.state_dict())
    states = [torch.get_rng_state(), *(g.get_state() for g in streams)]
    others = random.getstate(), str(np.random.get_state())
    run_evaluation(agent, 4)
    assert all(map(torch.equal, states, [torch.get_rng_state(), *(g.get_state() for g in streams)]))
    assert others == (random.getstate(), str(np.random.get_state()))
    assert all(torch.equal(x, before[name]) for name, x in agent.state_dict().items())
