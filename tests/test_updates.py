"""Networks, losses and updates of the four scripts, against closed forms and literal transcriptions of the
papers' steps, one seed at a time, with PyTorch's own layers, optimisers and schedulers."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    DIMS,
    MAX_ACTION,
    OBS_DIM,
    SCRIPTS,
    doubled,
    generators,
    load_script,
    make_agent,
    make_transitions,
    training_generators,
)
from scipy import stats
from torch import nn

gaussian, implicit, kl, srpo = (load_script(name) for name in SCRIPTS)
ACTION_DIM = len(MAX_ACTION)


# ------------------------------------------------------------------------------------------------ networks
def plain_mlp(in_dim: int, out_dim: int, activation, hidden: int = 3, norm: bool = False) -> nn.Sequential:
    """`hidden` times (Linear 256, [LayerNorm,] activation), then a Linear, of one seed."""
    layers = []
    for dim in [in_dim, *[256] * (hidden - 1)]:
        layers += [nn.Linear(dim, 256), *([nn.LayerNorm(256)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(256, out_dim))


class PlainDenoiser(nn.Module):
    """DTQL's (§2)."""

    def __init__(self):
        super().__init__()
        self.t1, self.t2 = nn.Linear(16, 32), nn.Linear(32, 16)
        self.first = nn.Linear(ACTION_DIM + OBS_DIM + 16, 256)
        self.hidden = nn.ModuleList(nn.Linear(256, 256) for _ in range(3))
        self.last = nn.Linear(256, ACTION_DIM)

    def forward(self, x, c_noise, obs):
        angle = c_noise * torch.tensor([math.exp(-k * math.log(10_000) / 7) for k in range(8)])
        t = self.t2(F.mish(self.t1(torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1))))
        h = self.first(torch.cat([x, obs, t], dim=-1))
        for layer in self.hidden:
            h = F.mish(layer(h))
        return self.last(h)


class PlainResNet(nn.Module):
    """SRPO's (§6); keep: what dropout leaves of each block's input, [3][batch, 256]."""

    def __init__(self, frequencies: torch.Tensor):
        super().__init__()
        self.frequencies = frequencies
        self.t1, self.t2 = nn.Linear(64, 128), nn.Linear(128, 128)
        self.first = nn.Linear(ACTION_DIM + OBS_DIM + 128, 256)
        block = lambda: nn.ModuleList([nn.LayerNorm(256), nn.Linear(256, 1024), nn.Linear(1024, 256)])
        self.blocks = nn.ModuleList(block() for _ in range(3))
        self.last = nn.Linear(256, ACTION_DIM)

    def forward(self, x, c_noise, obs, keep=(1, 1, 1)):
        angle = c_noise * self.frequencies * 2 * math.pi
        t = self.t2(F.mish(self.t1(torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1))))
        h = self.first(torch.cat([x, obs, t], dim=-1))
        for (norm, wide, narrow), kept in zip(self.blocks, keep):
            h = h + narrow(F.mish(wide(norm(h * kept))))
        return self.last(F.mish(h))


def layers(network: nn.Module, *names: str) -> list[nn.Module]:
    return [module for module in network.modules() if type(module).__name__ in names]


@torch.no_grad()
def plain_copy(plain: nn.Module, network: nn.Module, i: int) -> nn.Module:
    """plain with the weights of network's i-th member."""
    plain.to(next(network.parameters()).dtype)
    theirs = layers(network, "Linear", "LayerNorm")
    for a, b in zip(layers(plain, "Linear", "LayerNorm"), theirs, strict=True):
        assert type(a).__name__ == type(b).__name__
        weight, bias = (b.weight[i].T if isinstance(a, nn.Linear) else b.weight[i, 0]), b.bias[i, 0]
        assert (a.weight.shape, a.bias.shape) == (weight.shape, bias.shape)
        a.weight.copy_(weight)
        a.bias.copy_(bias)
    return plain


def plain_networks(script, agent, i: int) -> dict[str, nn.Module]:
    """Seed i's networks in plain PyTorch, as the papers describe them."""
    args = agent.args
    if script is srpo:
        q = lambda: plain_mlp(OBS_DIM + ACTION_DIM, 1, nn.ReLU, hidden=2)
        v, denoiser = plain_mlp(OBS_DIM, 1, nn.ReLU, hidden=2), PlainResNet(agent.denoiser.frequencies[i])
        policy = plain_mlp(OBS_DIM, ACTION_DIM, nn.ReLU, hidden=args.policy_layers)
    else:
        q = lambda: plain_mlp(OBS_DIM + ACTION_DIM, 1, nn.Mish, norm=True)
        v, denoiser = plain_mlp(OBS_DIM, 1, nn.Mish), PlainDenoiser()
        policy = plain_mlp(OBS_DIM, 2 * ACTION_DIM, nn.ReLU) if script is gaussian else PlainDenoiser()
    plain = {"v": plain_copy(v, agent.v, i), "denoiser": plain_copy(denoiser, agent.denoiser, i)}
    plain["policy"] = plain_copy(policy, agent.policy, i)
    for j in range(2):
        plain[f"q{j + 1}"] = plain_copy(q(), agent.q, 2 * i + j)
        plain[f"target_q{j + 1}"] = plain_copy(q(), agent.target_q, 2 * i + j)
    if script is kl:
        plain["fake_denoiser"] = plain_copy(PlainDenoiser(), agent.fake_denoiser, i)
    return plain


@pytest.mark.parametrize("name", SCRIPTS)
def test_networks_are_those_of_the_paper_seed_by_seed(name):
    script, (g,) = load_script(name), generators(0)
    agent = make_agent(script, num_seeds=2)
    with torch.no_grad():
        for norm in layers(agent, "LayerNorm"):  # as built: ones and zeros
            norm.weight.uniform_(0.5, 1.5, generator=g)
            norm.bias.uniform_(-0.5, 0.5, generator=g)
    obs, action = torch.randn(2, 7, OBS_DIM, generator=g), torch.randn(2, 7, ACTION_DIM, generator=g)
    c_noise = torch.linspace(math.log(0.002) / 4, math.log(80) / 4, 14).view(2, 7, 1)
    denoised, q, v = agent.denoiser(action, c_noise, obs), agent.q(obs, action), agent.v(obs)
    assert (q.shape, v.shape, denoised.shape) == ((2, 2, 7), (2, 7), (2, 7, ACTION_DIM))
    close = lambda a, b: torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    for i in range(2):
        plain = plain_networks(script, agent, i)
        assert close(denoised[i], plain["denoiser"](action[i], c_noise[i], obs[i]))
        assert close(v[i], plain["v"](obs[i])[:, 0])
        for j in range(2):
            assert close(q[i, j], plain[f"q{j + 1}"](torch.cat([obs[i], action[i]], dim=-1))[:, 0])
    assert not close(q[:, 0], q[:, 1])


@pytest.mark.parametrize("name", SCRIPTS)
def test_initial_weights(name):
    script = load_script(name)
    agent = make_agent(script, num_seeds=2)
    networks = [agent.q, agent.v, agent.denoiser, *([] if script is gaussian else [agent.policy])]
    for network in networks + ([agent.fake_denoiser] if script is kl else []):
        for layer in layers(network, "Linear"):  # as nn.Linear's, weights and biases U(-1/√in, 1/√in)
            scaled = layer.weight.flatten(1) * layer.weight.shape[1] ** 0.5
            assert scaled.abs().max() <= 1 + 1e-6
            assert layer.bias.abs().max() <= layer.weight.shape[1] ** -0.5 + 1e-6
            assert ((scaled.std(dim=1) * 3**0.5 - 1).abs() < 4 / scaled.shape[1] ** 0.5).all()
            assert (scaled.mean(dim=1).abs() < 3.5 / scaled.shape[1] ** 0.5).all()
            assert layer.bias.shape[-1] == 1 or layer.bias.std() > 0
    for norm in layers(agent, "LayerNorm"):
        assert (norm.weight == 1).all() and (norm.bias == 0).all()
    for target, q in zip(agent.target_q.parameters(), agent.q.parameters(), strict=True):
        assert torch.equal(target, q) and target is not q and not target.requires_grad


def test_srpos_fourier_frequencies_are_fixed_and_of_scale_30():
    agent = make_agent(srpo, num_seeds=40)
    frequencies = agent.denoiser.frequencies
    assert frequencies.shape == (40, 1, 32)  # 64 features, sines and cosines
    assert stats.kstest(frequencies.flatten().numpy(), stats.norm(0, 30).cdf).pvalue > 0.01
    assert len(frequencies.unique()) == frequencies.numel()
    assert "denoiser.frequencies" in agent.state_dict() and "denoiser.frequencies" not in dict(
        agent.named_parameters()
    )


# ------------------------------------------------------------------------------------------------ policies
def test_gaussian_policy_starts_orthogonal():
    for layer in layers(make_agent(gaussian, num_seeds=2).policy, "Linear"):
        for weight in layer.weight.mT:  # [out, in]
            small = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
            assert torch.allclose(small, torch.eye(len(small)), atol=1e-5)
        assert not layer.bias.any()


def test_gaussian_policy_is_a_clamped_tanh_gaussian():
    agent, (g,) = make_agent(gaussian), generators(0)
    obs, noise = torch.randn(1, 3, OBS_DIM, generator=g), torch.randn(1, 3, 50, ACTION_DIM, generator=g)
    mean, std = agent.policy(obs)
    action = agent.policy.sample(obs, noise)
    by_hand = torch.tensor(MAX_ACTION) * torch.tanh(mean[:, :, None] + std[:, :, None] * noise)
    assert torch.allclose(action, by_hand) and action.shape == noise.shape
    assert (agent.policy.sample(obs, 1e6 * noise).abs().amax(dim=(0, 1, 2)) == torch.tensor(MAX_ACTION)).all()
    plain = plain_networks(gaussian, agent, 0)["policy"](obs[0])
    assert torch.allclose(torch.cat([mean[0], std[0].log()], dim=-1), plain, rtol=1e-4, atol=1e-5)
    last = layers(agent.policy, "Linear")[-1]
    with torch.no_grad():
        last.bias[0, 0] += torch.tensor([0, 0, 100, -100])  # the outputs: two means, two log stds
    mean_now, std = agent.policy(obs)
    assert torch.allclose(std[0, 0], torch.tensor([2.0, -5.0]).exp()) and torch.allclose(mean_now, mean)


@pytest.mark.parametrize("script", [implicit, kl])
@pytest.mark.parametrize("precondition", [False, True])
def test_implicit_policy_is_the_denoiser_at_sigma_gen(script, precondition):
    agent, (g,) = make_agent(script, num_seeds=2, precondition=precondition, sigma_gen=1.7), generators(0)
    with torch.no_grad():
        agent.policy.net.body[-1][-1].bias += torch.tensor([3.0, 0.0])  # beyond the box in one dim
    obs, noise = torch.randn(2, 3, OBS_DIM, generator=g), torch.randn(2, 3, 4, ACTION_DIM, generator=g)
    box, candidates = torch.tensor(MAX_ACTION), agent.policy.sample(obs, noise)
    beyond = False
    for i in range(2):
        plain = plain_networks(script, agent, i)["policy"]
        for j in range(3):
            z, s = 1.7 * noise[i, j], obs[i, j].expand(4, -1)
            if precondition:  # EDM's D(z, σ|s) at σ = 1.7, σ_data = 0.5
                v = 1.7**2 + 0.5**2
                output = plain(z / v**0.5, torch.full((4, 1), math.log(1.7) / 4), s)
                action = (0.25 / v * z + 1.7 * 0.5 / v**0.5 * output).clamp(-box, box)
            else:
                action = plain(z, torch.full((4, 1), 1.7), s)
            trained = agent.policy(obs[:, j : j + 1].expand(-1, 4, -1), noise[:, j])[i]
            assert torch.allclose(trained, action, rtol=1e-4, atol=1e-5)
            assert torch.allclose(candidates[i, j], action.clamp(-box, box), rtol=1e-4, atol=1e-5)
            beyond |= bool((action.abs() > box).any())
    assert beyond == (not precondition)  # the raw form is clamped for the environment alone


@pytest.mark.parametrize("hidden", [2, 4])
def test_srpo_policy_is_deterministic(hidden):
    agent, (g,) = make_agent(srpo, num_seeds=2, policy_layers=hidden), generators(0)
    obs = 30 * torch.randn(2, 3, OBS_DIM, generator=g)
    action = agent.policy(obs)
    for i in range(2):
        by_hand = torch.tensor(MAX_ACTION) * torch.tanh(plain_networks(srpo, agent, i)["policy"](obs[i]))
        assert torch.allclose(action[i], by_hand, rtol=1e-4, atol=1e-5)
    candidates = agent.policy.sample(obs, torch.randn(2, 3, 6, ACTION_DIM, generator=g))
    assert candidates.shape == (2, 3, 6, ACTION_DIM)
    assert torch.equal(candidates, action.unsqueeze(2).expand_as(candidates))


def test_entropy_term_is_the_normal_density_of_the_unsquashed_dataset_action():
    (g,) = generators(0)
    box = torch.tensor(MAX_ACTION, dtype=torch.float64)
    mean, action = torch.randn(2, 3, 9, 2, generator=g, dtype=torch.float64)
    std = (0.1 + torch.rand(3, 9, 2, generator=g)).double()
    action = box * action.tanh()
    action[0, 0], action[0, 1] = box, -box  # on the bounds: finite
    expected = -torch.distributions.Normal(mean, std).log_prob(torch.atanh(action / (box + 1e-3)))
    loss = gaussian.nll_loss(mean, std, action, box)
    assert torch.isfinite(loss).all() and torch.allclose(loss, expected.sum(dim=2).mean(dim=1))


# ------------------------------------------------------------------------------------------- the KL surrogate
class Normal1d:
    """N(mean, std²) in each dim, with its score and its optimal denoiser at any noise level."""

    def __init__(self, mean: float, std: float):
        self.mean, self.std = mean, std

    def score(self, noisy, sigma):
        return -(noisy - self.mean) / (self.std**2 + sigma**2)

    def network(self, x, c_noise, obs):
        """F that makes D(a_σ, σ) = E[a | a_σ] = a_σ + σ² score."""
        sigma = (4 * c_noise).exp()
        total = sigma**2 + 0.25
        noisy = x * total.sqrt()
        return (
            (noisy + sigma**2 * self.score(noisy, sigma) - 0.25 / total * noisy)
            * total.sqrt()
            / (sigma * 0.5)
        )


def kl_setting(n: int, dim: int, **changes):
    (g,) = generators(0)
    args = kl.Args(**changes)
    draws = [torch.randn(1, n, dim, generator=g, dtype=torch.float64) for _ in range(2)]
    u = torch.rand(1, n, 1, generator=g, dtype=torch.float64)
    return args, *draws, u, torch.full((dim,), 1e9, dtype=torch.float64)


def test_kl_surrogate_descends_the_difference_of_the_scores():
    """Sample by sample A batch gradient = w(σ) (s_fake - s_real) with w(σ) = σ² A / |D_φ - a|₁ (Eq. 12)."""
    args, z, eps, u, box = kl_setting(500, 3)
    real, fake = Normal1d(0.4, 0.5), Normal1d(-0.3, 0.2)
    action = (fake.mean + fake.std * z).requires_grad_()
    loss = kl.kl_loss(real.network, fake.network, action, None, u, eps, box, args)
    (gradient,) = torch.autograd.grad(loss.sum(), action)
    sigma = kl.sample_sigma(u, args).double()
    noisy = (action + sigma * eps).detach()
    denoised = noisy + sigma**2 * real.score(noisy, sigma)
    distance = (denoised - action.detach()).abs().sum(dim=-1, keepdim=True)  # |D_φ - a|₁
    weight = sigma**2 * 3 / distance.clamp(min=3 * kl.DENOMINATOR_FLOOR)
    by_hand = weight * (fake.score(noisy, sigma) - real.score(noisy, sigma))
    assert torch.allclose(3 * 500 * gradient, by_hand, rtol=1e-5, atol=1e-9)
    assert loss.item() == pytest.approx(by_hand.square().mean().item() / 2, rel=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 1.0])
def test_kl_surrogate_has_the_gradient_of_the_kl_of_two_gaussians(sigma):
    """Its weight divided out, the mean gradient in mean and std of the policy is that of
    KL(N(m, s² + σ²) || N(m', s'² + σ²)) in closed form; so descent lowers the KL."""
    n = 200_000
    args, z, eps, u, box = kl_setting(n, 1, sigma_min=sigma * (1 - 1e-6), sigma_max=sigma * (1 + 1e-6))
    z, eps = (torch.cat([x[:, : n // 2], -x[:, : n // 2]], dim=1) for x in (z, eps))  # less variance
    real, fake = Normal1d(0.4, 0.5), Normal1d(-0.3, 0.2)
    mean = torch.full((1, n, 1), fake.mean, dtype=torch.float64, requires_grad=True)
    std = torch.full((1, n, 1), fake.std, dtype=torch.float64, requires_grad=True)
    action = mean + std * z
    loss = kl.kl_loss(real.network, fake.network, action, None, u, eps, box, args)
    gradients = torch.autograd.grad(loss.sum(), [mean, std])
    noisy = (action + sigma * eps).detach()
    distance = (noisy + sigma**2 * real.score(noisy, sigma) - action.detach()).abs()
    weight = sigma**2 / distance.clamp(min=kl.DENOMINATOR_FLOOR)
    d_mean, d_std = ((g * n / weight).mean().item() for g in gradients)
    v_real, v_fake = real.std**2 + sigma**2, fake.std**2 + sigma**2
    assert d_mean == pytest.approx((fake.mean - real.mean) / v_real, rel=0.02)
    assert d_std == pytest.approx(fake.std * (1 / v_real - 1 / v_fake), rel=0.03)
    for gradient in gradients:  # weighted or not, descent moves towards the data's mean, and widens
        assert gradient.sum() < 0


def test_kl_surrogate_is_finite_where_its_denominator_vanishes():
    args, _, eps, u, box = kl_setting(4, 2)
    action = torch.zeros(1, 4, 2, dtype=torch.float64, requires_grad=True)
    point = lambda value: lambda x, c_noise, obs: pinned(value, x, c_noise)

    def pinned(value, x, c_noise):  # F that makes D = value
        sigma = (4 * c_noise).exp()
        total = sigma**2 + 0.25
        return (value - 0.25 / total.sqrt() * x) * total.sqrt() / (sigma * 0.5)

    loss = kl.kl_loss(point(0.0), point(0.01), action, None, u, eps, box, args)
    (gradient,) = torch.autograd.grad(loss.sum(), action)
    assert torch.allclose(8 * gradient, torch.full_like(gradient, 0.01 / 1e-3), rtol=1e-4)


# ----------------------------------------------------------------------------------- SRPO's regulariser and Q
OMEGAS = {"sigma_squared": lambda alpha, sigma: sigma**2, "one": lambda alpha, sigma: torch.ones_like(sigma),
          "alpha_over_sigma": lambda alpha, sigma: alpha / sigma}  # fmt: skip


def vp_by_integration(t: float) -> tuple[float, float]:
    """α_t and σ_t of da = -β(t)/2 a dt + √β(t) dw with β(t) = 0.1 + 19.9 t, by their definition."""
    grid = np.linspace(0, t, 100_001)
    beta = 0.1 + 19.9 * grid
    alpha = math.exp(-np.trapezoid(beta, grid) / 2)
    return alpha, math.sqrt(1 - alpha**2)


def test_vp_schedule_is_that_of_the_sde():
    for t in (1e-3, 0.02, 0.3, 0.98, 1.0):
        alpha, sigma = srpo.vp_schedule(torch.tensor(t, dtype=torch.float64))
        expected = vp_by_integration(t)
        assert [alpha.item(), sigma.item()] == pytest.approx(expected, rel=1e-6)
    alpha, sigma = srpo.vp_schedule(torch.tensor(0.98))
    assert 120 < sigma / alpha < 130  # what the docstring says of --sigma-max
    alpha, sigma = srpo.vp_schedule(torch.tensor(0.93))
    assert 75 < sigma / alpha < 85


@pytest.mark.parametrize("omega", OMEGAS)
@pytest.mark.parametrize("baseline", [True, False])
def test_the_regularizer_in_edm_form_is_that_in_vp_form(omega, baseline):
    """For Gaussian data, whose VP noise predictor is known: ε̂ = σ_t (a_t - α_t m) / (α_t² s² + σ_t²)."""
    (g,) = generators(0)
    data, box = Normal1d(0.3, 0.4), torch.full((2,), 1e9)
    action, eps = (torch.randn(2, 300, 2, generator=g, dtype=torch.float64) for _ in range(2))
    u = torch.rand(2, 300, 1, generator=g, dtype=torch.float64)
    args = srpo.Args(omega=omega, baseline=baseline)
    mine = srpo.score_regularizer(data.network, action, None, u, eps, box, args)
    t = 0.02 + 0.96 * u  # U(0.02, 0.98)
    alpha = torch.exp(-(t**2) * (20 - 0.1) / 4 - t * 0.1 / 2)
    sigma = (1 - alpha**2).sqrt()
    noisy = alpha * action + sigma * eps  # a_t of the VP process
    predicted = sigma * (noisy - alpha * data.mean) / (alpha**2 * data.std**2 + sigma**2)
    expected = OMEGAS[omega](alpha, sigma) * (predicted - eps if baseline else predicted)
    assert torch.allclose(mine, expected, rtol=1e-5, atol=1e-8)


def test_the_baseline_changes_the_variance_only():
    """ε has mean 0, so the mean regulariser stays, while its spread falls."""
    (g,) = generators(0)
    n, data, box = 200_000, Normal1d(0.3, 0.4), torch.full((1,), 1e9)
    action = torch.full((1, n, 1), 0.5, dtype=torch.float64)
    eps, u = torch.randn(1, n, 1, generator=g).double(), torch.rand(1, n, 1, generator=g).double()
    with_it, without = (
        srpo.score_regularizer(data.network, action, None, u, eps, box, srpo.Args(baseline=baseline))
        for baseline in (True, False)
    )
    assert with_it.mean().item() == pytest.approx(without.mean().item(), abs=0.01)
    assert with_it.mean() > 0.02  # descent moves a = 0.5 down, to the data's mean 0.3
    assert with_it.var() < 0.5 * without.var()


def test_srpo_pulls_as_the_trust_region_without_its_jacobian():
    """∂L_TR/∂a = 2/A (D - a)/c_out² (∂D/∂a_σ - I), Eq. 10-11. Without ∂D/∂a_σ that is SRPO's regulariser at
    the same σ and ε, up to a positive factor of σ alone."""
    (g,) = generators(0)
    agent = make_agent(srpo, num_seeds=2).double()
    box, network = agent.max_action, srpo.frozen(agent.denoiser)
    normal = lambda dim: torch.randn(2, 6, dim, generator=g, dtype=torch.float64)
    obs, eps, action = normal(OBS_DIM), normal(ACTION_DIM), box * normal(ACTION_DIM).tanh()
    u = torch.rand(2, 6, 1, generator=g, dtype=torch.float64)
    args = agent.args
    sigma = srpo.sample_sigma(u, args).double()
    leaf = action.clone().requires_grad_()
    loss = srpo.denoising_loss(network, leaf, obs, u, eps, box, args)
    (whole,) = torch.autograd.grad(loss.sum(), leaf)
    denoised = srpo.denoise(network, action + sigma * eps, sigma, obs, box, args)
    c_out = srpo.precondition(sigma, args)[1]
    cut = 2 / ACTION_DIM * (action - denoised) / c_out**2 / 6  # the mean over 6 rows

    # the time at which the VP process has this σ: ln α = -t² 19.9/4 - t/20 = -ln(1 + σ²)/2
    log_alpha = -torch.log1p(sigma**2) / 2
    t = (-0.05 + (0.05**2 - 19.9 * log_alpha).sqrt()) / (19.9 / 2)
    regularizer = srpo.score_regularizer(network, action, obs, (t - 0.02) / 0.96, eps, box, args)
    omega = sigma**2 / (1 + sigma**2)
    factor = 2 * sigma / (ACTION_DIM * c_out**2 * omega) / 6
    assert torch.allclose(factor * regularizer, cut, rtol=1e-5, atol=1e-8)
    assert not torch.allclose(whole, cut, rtol=0.1)


def test_q_gradient_is_of_the_mean_of_both_critics_and_normalised_over_dims():
    slopes = torch.tensor([[3.0, 0.0], [1.0, 8.0]])  # of Q1 and Q2
    q = lambda obs, action: torch.einsum("sba,qa->sqb", action, slopes)
    action = torch.ones(1, 5, 2, requires_grad=True)
    gradient, value = srpo.q_gradient(q, None, action, normalize=False)
    assert torch.equal(gradient, torch.tensor([2.0, 4.0]).expand(1, 5, 2)) and not gradient.requires_grad
    assert torch.equal(value, torch.full((1, 5), 6.0))
    gradient, _ = srpo.q_gradient(q, None, action, normalize=True)
    assert torch.allclose(gradient, torch.tensor([2.0, 4.0]) / 10**0.5)
    zero, _ = srpo.q_gradient(lambda obs, action: 0 * q(obs, action), None, action, normalize=True)
    assert torch.equal(zero, torch.zeros(1, 5, 2))


def test_dropout_leaves_nine_tenths_scaled_to_the_same_mean(monkeypatch):
    agent, seen = make_agent(srpo, num_seeds=2, behavior_batch_size=100), []
    drawn = srpo.draw(
        make_transitions(), DIMS, training_generators(srpo, 1, 2), agent.args, srpo.PHASES["behavior"]
    )
    forward = srpo.ResidualBlock.forward
    monkeypatch.setattr(
        srpo.ResidualBlock, "forward", lambda self, x, scale: seen.append(scale) or forward(self, x, scale)
    )
    srpo.behavior_update(agent, *drawn)
    assert [scale.shape for scale in seen] == [(2, 100, 256)] * 3
    masks = torch.stack(seen)
    assert masks.unique().tolist() == pytest.approx([0, 1 / 0.9])
    dropped = int((masks == 0).sum())
    assert stats.binomtest(dropped, masks.numel(), 0.1).pvalue > 0.01
    rows = masks.permute(1, 2, 0, 3).flatten(0, 1).flatten(1)
    assert len(rows.unique(dim=0)) == 200  # each transition of each seed has its own
    assert (masks == 0).float().mean(dim=(1, 2)).std() < 0.1  # and every unit is dropped at times
    seen.clear()
    srpo.denoise(
        agent.denoiser, drawn[2][0], torch.ones(2, 100, 1), drawn[0][0], agent.max_action, agent.args
    )
    assert seen == [1.0] * 3  # none once it is trained


# -------------------------------------------------------------------------------------------------- updates
def cdf_inverse(args):
    law = stats.logistic(loc=math.log(args.sigma_data), scale=0.5)
    low, high = law.cdf(np.log([args.sigma_min, args.sigma_max]))
    return lambda u: np.exp(law.ppf(low + (high - low) * u))


class Transcription:
    """§1, 3 and what the scripts share of their updates, of one seed, literally."""

    def __init__(self, script, agent, i: int):
        self.args, self.box = agent.args, agent.max_action
        for name, network in plain_networks(script, agent, i).items():
            setattr(self, name, network)
        self.optimizers, self.schedulers = {}, []

    def add(self, name: str, *networks, rate: float, kind=torch.optim.Adam, decay_over=None):
        params = [param for network in networks for param in network.parameters()]
        self.optimizers[name] = kind(params, lr=rate, foreach=False, fused=False)
        if decay_over and self.args.lr_decay:
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizers[name], decay_over)
            self.schedulers.append(cosine)

    def descend(self, loss, name: str):
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()

    def denoised(self, network, noisy, sigma, obs, **options):
        data = self.args.sigma_data
        v = sigma**2 + data**2
        output = network(noisy / v.sqrt(), torch.log(sigma) / 4, obs, **options)
        return torch.clamp(data**2 / v * noisy + sigma * data / v.sqrt() * output, -self.box, self.box)

    def sigma(self, u):
        return torch.tensor(cdf_inverse(self.args)(u.numpy())).float().double()

    def denoising(self, network, action, obs, u, eps, **options):
        sigma, data = self.sigma(u), self.args.sigma_data
        denoised = self.denoised(network, action + sigma * eps, sigma, obs, **options)
        c_out = sigma * data / (sigma**2 + data**2).sqrt()
        return (((denoised - action) / c_out) ** 2).mean(dim=1).mean()

    def both_q(self, obs, action, target=False):
        x = torch.cat([obs, action], dim=1)
        return [q(x)[:, 0] for q in ((self.target_q1, self.target_q2) if target else (self.q1, self.q2))]

    def expectile_loss(self, q, obs):
        v = self.v(obs)[:, 0]
        advantage = q.detach() - v
        return ((self.args.expectile - (advantage < 0).double()).abs() * advantage**2).mean(), v.mean()

    def q_target(self, batch):
        _, _, reward, next_obs, terminal = batch
        return (reward[:, 0] + self.args.discount * (1 - terminal[:, 0]) * self.v(next_obs)[:, 0]).detach()

    def move_target(self):
        for target, q in ((self.target_q1, self.q1), (self.target_q2, self.q2)):
            for old, new in zip(target.parameters(), q.parameters()):
                old.data = self.args.tau * new.data + (1 - self.args.tau) * old.data

    def start(self, phase: str):
        pass


class Gaussian(Transcription):
    """§4 with the Gaussian policy."""

    def __init__(self, script, agent, i: int):
        super().__init__(script, agent, i)
        rate, steps = self.args.learning_rate, self.args.train_steps
        self.add("critic", self.q1, self.q2, self.v, rate=3e-4, decay_over=steps)
        self.add("denoiser", self.denoiser, rate=rate, decay_over=steps)
        self.add("policy", self.policy, rate=rate, decay_over=steps)

    def pretrain(self, batch, u, eps):
        obs, action, *_ = batch
        loss_v, v = self.expectile_loss(torch.minimum(*self.both_q(obs, action)), obs)
        loss_q = sum(((self.q_target(batch) - q) ** 2).mean() for q in self.both_q(obs, action))
        self.descend(loss_v + loss_q, "critic")
        bc_loss = self.denoising(self.denoiser, action, obs, u[0], eps[0])
        self.descend(bc_loss, "denoiser")
        return {"value_loss": loss_v, "q_loss": loss_q, "v": v, "bc_loss": bc_loss}

    def train(self, batch, u, eps):
        losses = self.pretrain(batch, u, eps) | self.policy_step(batch, u, eps)
        self.move_target()
        for scheduler in self.schedulers:
            scheduler.step()
        return losses

    def policy_step(self, batch, u, eps):
        args, (obs, action, *_) = self.args, batch
        mean, log_std = self.policy(obs).chunk(2, dim=1)
        law = torch.distributions.Normal(mean, log_std.clamp(-5, 2).exp())
        policy_action = self.box * torch.tanh(law.mean + law.stddev * eps[1])
        trust_region_loss = self.denoising(self.denoiser, policy_action, obs, u[1], eps[2])
        policy_q = torch.minimum(*self.both_q(obs, policy_action)).mean()
        nll = -law.log_prob(torch.atanh(action / (self.box + 1e-3))).sum(dim=1).mean()
        self.descend(args.alpha * trust_region_loss - policy_q + args.entropy_coef * nll, "policy")
        return {"trust_region_loss": trust_region_loss, "policy_q": policy_q, "nll_loss": nll}


class Implicit(Gaussian):
    """§4 with the implicit policy."""

    def start(self, phase):
        if phase == "train":
            self.policy.load_state_dict(self.denoiser.state_dict())

    def act(self, obs, noise):
        z, sigma = 2.5 * noise, torch.full((len(obs), 1), 2.5).double()
        return (
            self.denoised(self.policy, z, sigma, obs)
            if self.args.precondition
            else self.policy(z, sigma, obs)
        )

    def policy_step(self, batch, u, eps):
        obs = batch[0]
        policy_action = self.act(obs, eps[1])
        trust_region_loss = self.denoising(self.denoiser, policy_action, obs, u[1], eps[2])
        policy_q = torch.minimum(*self.both_q(obs, policy_action)).mean()
        self.descend(self.args.alpha * trust_region_loss - policy_q, "policy")
        return {"trust_region_loss": trust_region_loss, "policy_q": policy_q}


class KL(Implicit):
    """§5."""

    def __init__(self, script, agent, i: int):
        super().__init__(script, agent, i)
        rate, steps = self.args.learning_rate, self.args.train_steps
        self.add("fake_denoiser", self.fake_denoiser, rate=rate, decay_over=steps)

    def start(self, phase):
        super().start(phase)
        if phase == "train":
            self.fake_denoiser.load_state_dict(self.denoiser.state_dict())

    def policy_step(self, batch, u, eps):
        obs = batch[0]
        action = self.act(obs, eps[1])
        sigma, clean = self.sigma(u[1]), action.detach()
        noisy = clean + sigma * eps[2]
        real, fake = (
            self.denoised(net, noisy, sigma, obs).detach() for net in (self.denoiser, self.fake_denoiser)
        )
        g = (fake - real) / (clean - real).abs().mean(dim=1, keepdim=True).clamp(min=1e-3)
        policy_q = torch.minimum(*self.both_q(obs, action)).mean()
        # a loss whose gradient in the action is α g over batch and dims, as the surrogate's
        self.descend(self.args.alpha * (g * action).mean() - policy_q, "policy")
        fresh = self.act(obs, eps[3]).detach()
        fake_loss = self.denoising(self.fake_denoiser, fresh, obs, u[2], eps[4])
        self.descend(fake_loss, "fake_denoiser")
        return {"kl_loss": (g**2).mean() / 2, "policy_q": policy_q, "fake_loss": fake_loss}


class SRPO(Transcription):
    """§6, in its own VP form."""

    def __init__(self, script, agent, i: int):
        super().__init__(script, agent, i)
        self.add("q", self.q1, self.q2, rate=3e-4)
        self.add("v", self.v, rate=3e-4)
        self.add("denoiser", self.denoiser, rate=self.args.learning_rate, kind=torch.optim.AdamW)
        self.add("policy", self.policy, rate=self.args.learning_rate, decay_over=self.args.policy_steps)

    def critic(self, batch, u, eps):
        obs, action, *_ = batch
        target = self.q_target(batch)  # of V before its step
        loss_v, v = self.expectile_loss(torch.minimum(*self.both_q(obs, action, target=True)), obs)
        self.descend(loss_v, "v")
        loss_q = sum(((target - q) ** 2).mean() for q in self.both_q(obs, action)) / 2
        self.descend(loss_q, "q")
        self.move_target()
        return {"value_loss": loss_v, "q_loss": loss_q, "v": v}

    def behavior(self, batch, u, eps):
        obs, action, *_ = batch
        kept = (u[1:, :, 0].T > 0.1).double() / 0.9  # [batch, 3 * 256]
        bc_loss = self.denoising(self.denoiser, action, obs, u[0], eps[0], keep=kept.split(256, dim=1))
        self.descend(bc_loss, "denoiser")
        return {"bc_loss": bc_loss}

    def policy_phase(self, batch, u, eps):
        args, obs = self.args, batch[0]
        action = self.box * torch.tanh(self.policy(obs))
        leaf = action.detach().requires_grad_()
        q = sum(self.both_q(obs, leaf, target=True)) / 2
        (gradient,) = torch.autograd.grad(q.sum(), leaf)
        if args.normalize_q_gradient:
            gradient = gradient / (gradient**2).mean(dim=1, keepdim=True).sqrt()
        t = 0.02 + 0.96 * u[0]
        alpha = torch.exp(-(t**2) * (20 - 0.1) / 4 - t * 0.1 / 2)
        sigma = (1 - alpha**2).sqrt()
        noisy = (alpha * leaf + sigma * eps[0]) / alpha
        ratio = sigma / alpha
        predicted = ((noisy - self.denoised(self.denoiser, noisy, ratio, obs)) / ratio).detach()
        regularizer = OMEGAS[args.omega](alpha, sigma) * (predicted - eps[0] if args.baseline else predicted)
        self.descend(((regularizer - args.beta * gradient) * action).sum(dim=1).mean(), "policy")
        for scheduler in self.schedulers:
            scheduler.step()
        norms = {"regularizer_norm": regularizer.norm(dim=1), "q_gradient_norm": gradient.norm(dim=1)}
        return {name: x.mean() for name, x in (norms | {"policy_q": q}).items()}


TRANSCRIPTIONS = {gaussian: Gaussian, implicit: Implicit, kl: KL, srpo: SRPO}
MOVED = {  # by each phase; everything else stays as it was, bit for bit
    gaussian: {"pretrain": {"q", "v", "denoiser"}, "train": {"q", "v", "denoiser", "policy", "target_q"}},
    srpo: {"critic": {"q", "v", "target_q"}, "behavior": {"denoiser"}, "policy": {"policy"}},
}
MOVED[implicit] = MOVED[gaussian]
MOVED[kl] = {**MOVED[gaussian], "train": MOVED[gaussian]["train"] | {"fake_denoiser"}}
CASES = [
    (gaussian, {}), (gaussian, {"lr_decay": False}), (implicit, {}), (implicit, {"precondition": True}),
    (kl, {}), (kl, {"precondition": True, "lr_decay": False}), (srpo, {}),
    (srpo, {"normalize_q_gradient": True, "policy_layers": 4, "omega": "one", "lr_decay": False}),
    (srpo, {"omega": "alpha_over_sigma", "baseline": False}),
]  # fmt: skip


@pytest.mark.parametrize("script, changes", CASES, ids=[f"{s.__name__} {c}" for s, c in CASES])
def test_updates_equal_a_literal_transcription(script, changes):
    """Steps of every phase, of two seeds together, in double precision."""
    agent = make_agent(script, num_seeds=2, **({"tau": 0.1} | changes)).double()
    plain = [TRANSCRIPTIONS[script](script, agent, i) for i in range(2)]
    at_first = [plain_networks(script, agent, i) for i in range(2)]
    transitions, streams = make_transitions(), training_generators(script, 1, 2)
    rates = lambda: {name: float(o.param_groups[0]["lr"]) for name, o in agent.optimizers.items()}
    for phase_name, phase in script.PHASES.items():
        phase.start(agent)
        for transcription in plain:
            transcription.start(phase_name)
        before = copy.deepcopy(agent)
        for step in range(getattr(agent.args, f"{phase_name}_steps")):
            expected_rates = {name: o.param_groups[0]["lr"] for name, o in plain[0].optimizers.items()}
            assert rates() == pytest.approx(expected_rates, abs=1e-10)
            batch, u, eps = doubled(*script.draw(transitions, DIMS, streams, agent.args, phase))
            losses = phase.update(agent, batch, u, eps)
            for i in range(2):
                method = getattr(plain[i], "policy_phase" if phase_name == "policy" else phase_name)
                expected = method([x[i] for x in batch], u[:, i], eps[:, i])
                assert losses.keys() == expected.keys()
                for name in losses:
                    mine = losses[name][i].item()
                    assert mine == pytest.approx(expected[name].item(), rel=2e-5, abs=1e-9), (step, name)
                    assert not losses[name].requires_grad
        for name, network in agent.named_children():
            pairs = zip(network.parameters(), getattr(before, name).parameters())
            assert all(torch.equal(a, b) for a, b in pairs) == (name not in MOVED[script][phase_name]), name
    decayed = {"policy"} if script is srpo else set(rates())
    for name, rate in rates().items():
        initial = 3e-4 if name in ("critic", "q", "v") else 1e-3  # the critics' is not --learning-rate
        assert rate == pytest.approx(0 if agent.args.lr_decay and name in decayed else initial, abs=1e-10)
    for i in range(2):
        for name, network in plain_networks(script, agent, i).items():
            mine, expected, first = (
                nn.utils.parameters_to_vector(n.parameters())
                for n in (network, getattr(plain[i], name), at_first[i][name])
            )
            # not weight by weight: Adam magnifies the rounding of noise levels where a gradient is nearly 0
            assert (mine - expected).norm() < 1e-3 * (expected - first).norm(), name


def test_pretraining_is_the_same_in_the_three_dtql_scripts():
    """Bit for bit: what differs between their results is the policy and its loss."""
    weights = []
    for script in (gaussian, implicit, kl):
        agent, streams = make_agent(script, num_seeds=2), training_generators(script, 1, 2)
        phase = script.PHASES["pretrain"]
        for _ in range(3):
            phase.update(agent, *script.draw(make_transitions(), DIMS, streams, agent.args, phase))
        weights.append(
            {name: x for name, x in agent.state_dict().items() if name.startswith(("q.", "v.", "denoiser."))}
        )
    for other in weights[1:]:
        assert other.keys() == weights[0].keys()
        assert all(torch.equal(other[name], x) for name, x in weights[0].items())


# --------------------------------------------------------------------------------------------------- seeds
def members(network: nn.Module, n: int) -> dict[str, torch.Tensor]:
    """Weights as [seed, ...]: the two Q of a seed stand beside each other."""
    return {name: p.detach().unflatten(0, (n, -1)) for name, p in network.named_parameters()}


def run_updates(script, agent, seeds, order=None) -> dict[str, torch.Tensor]:
    """Two steps of each phase in double precision, on each seed's own draws; the losses of the last ones."""
    agent.double()
    streams, losses = training_generators(script, *seeds), {}
    for phase in script.PHASES.values():
        phase.start(agent)
        for _ in range(2):
            batch, u, eps = doubled(*script.draw(make_transitions(), DIMS, streams, agent.args, phase))
            if order is not None:
                batch, u, eps = [x[order] for x in batch], u[:, order], eps[:, order]
            losses |= phase.update(agent, batch, u, eps)
    return losses


@pytest.mark.parametrize("name", SCRIPTS)
def test_seeds_train_together_as_they_do_alone(name):
    script = load_script(name)
    together = make_agent(script, seed=4, num_seeds=3)
    alone = [make_agent(script, seed=seed) for seed in (4, 5, 6)]
    weights = members(together, 3)
    for i, agent in enumerate(alone):
        for name, weight in members(agent, 1).items():
            assert torch.equal(weights[name][i], weight[0]), name  # bit for bit
    random_ones = [w for name, w in weights.items() if w.unique().numel() > 2]
    assert len(random_ones) > 30
    for w in random_ones:  # no two seeds, and no Q1 and Q2, share a stream
        assert len({tuple(x.flatten().tolist()) for x in w.flatten(0, 1)}) == w.shape[0] * w.shape[1]

    for phase in script.PHASES.values():
        transitions, streams = make_transitions(), training_generators(script, 4, 5, 6)
        single = [training_generators(script, seed) for seed in (4, 5, 6)]
        size, history = getattr(together.args, phase.batch_size), []
        for _ in range(2):
            batch, u, eps = script.draw(transitions, DIMS, streams, together.args, phase)
            assert [x.shape for x in batch] == [(3, size, dim) for dim in DIMS]
            assert (u.shape, eps.shape) == ((phase.uniform, 3, size, 1), (phase.normal, 3, size, ACTION_DIM))
            for i, stream in enumerate(single):
                batch_1, u_1, eps_1 = script.draw(transitions, DIMS, stream, together.args, phase)
                assert all(torch.equal(x[i], y[0]) for x, y in zip(batch, batch_1))  # bit for bit
                assert torch.equal(u[:, i], u_1[:, 0]) and torch.equal(eps[:, i], eps_1[:, 0])
            history += [*batch[0], *u.flatten(0, 1), *eps.flatten(0, 1)]
        assert len({tuple(x.flatten().tolist()) for x in history}) == len(history)  # nothing comes twice
        rows = {tuple(row.tolist()) for row in transitions}
        drawn = torch.cat(batch, dim=-1).flatten(0, 1)
        assert all(tuple(row.tolist()) in rows for row in drawn)  # rows stay whole

    losses = run_updates(script, together, (4, 5, 6))
    weights = members(together, 3)
    for i, agent in enumerate(alone):
        for name, loss in run_updates(script, agent, (4 + i,)).items():
            assert loss[0].item() == pytest.approx(losses[name][i].item(), rel=1e-7)
            assert len(losses[name].unique()) == 3
        for name, weight in members(agent, 1).items():
            assert torch.allclose(weights[name][i], weight[0], rtol=0, atol=1e-8), name


@pytest.mark.parametrize("name", SCRIPTS)
def test_permuted_seeds_give_permuted_results(name):
    script, order = load_script(name), torch.tensor([2, 0, 1])
    agent, permuted = make_agent(script, num_seeds=3), make_agent(script, num_seeds=3)
    with torch.no_grad():
        for x in [*permuted.parameters(), *([permuted.denoiser.frequencies] if script is srpo else [])]:
            x.copy_(x.unflatten(0, (3, -1))[order].flatten(0, 1))
    losses = run_updates(script, agent, (1, 2, 3))
    losses_permuted = run_updates(script, permuted, (1, 2, 3), order=order)
    for name, loss in losses.items():
        assert torch.allclose(loss[order], losses_permuted[name], rtol=1e-7)
    weights = members(permuted, 3)
    for name, weight in members(agent, 3).items():
        assert torch.allclose(weight[order], weights[name], rtol=0, atol=1e-8), name
