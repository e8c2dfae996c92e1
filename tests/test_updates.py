"""Networks and updates of the four scripts against literal transcriptions of the papers' steps, one seed at a
time, with PyTorch's own layers, optimisers and schedulers, in double precision and from the same draws."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import (
    ACTION_DIM,
    OBS_DIM,
    SCRIPTS,
    load_mutant,
    load_script,
    make_agent,
    make_args,
    make_data,
    recorded_draws,
)
from scipy import stats
from torch import nn

gaussian, implicit, kl, srpo = SCRIPTS


# ------------------------------------------------------------------------------------------------ networks
def plain_mlp(in_dim: int, out_dim: int, activation, hidden: int = 3, norm: bool = False) -> nn.Sequential:
    """`hidden` times (Linear 256, [LayerNorm,] activation), then a Linear, of one seed."""
    layers = []
    for dim in [in_dim, *[256] * (hidden - 1)]:
        layers += [nn.Linear(dim, 256), *([nn.LayerNorm(256)] if norm else []), activation()]
    return nn.Sequential(*layers, nn.Linear(256, out_dim))


class PlainDenoiser(nn.Module):
    """DTQL's F."""

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
    """SRPO's F; kept: what dropout multiplies each block's input by, [3][batch, 256]."""

    def __init__(self, frequencies: torch.Tensor):
        super().__init__()
        self.frequencies = frequencies
        self.t1, self.t2 = nn.Linear(64, 128), nn.Linear(128, 128)
        self.first = nn.Linear(ACTION_DIM + OBS_DIM + 128, 256)
        block = lambda: nn.ModuleList([nn.LayerNorm(256), nn.Linear(256, 1024), nn.Linear(1024, 256)])
        self.blocks = nn.ModuleList(block() for _ in range(3))
        self.last = nn.Linear(256, ACTION_DIM)

    def forward(self, x, c_noise, obs, kept=(1, 1, 1)):
        angle = c_noise * self.frequencies * 2 * math.pi
        t = self.t2(F.mish(self.t1(torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1))))
        h = self.first(torch.cat([x, obs, t], dim=-1))
        for (norm, wide, narrow), keep in zip(self.blocks, kept):
            h = h + narrow(F.mish(wide(norm(h * keep))))
        return self.last(F.mish(h))


def linears(network: nn.Module) -> list[tuple]:
    """Weights [n, in_dim, out_dim] and biases [n, 1, out_dim] of a script's network, from in to out."""
    mlps = [module for module in network.modules() if hasattr(module, "weights")]
    return [layer for mlp in mlps for layer in zip(mlp.weights, mlp.biases)]


def norms(network: nn.Module) -> list[tuple]:
    """Scales and shifts [n, 1, dim] of its LayerNorms."""
    mlps = [module for module in network.modules() if hasattr(module, "scales")]
    blocks = [(block.scale, block.shift) for block in network.modules() if hasattr(block, "scale")]
    return blocks + [norm for mlp in mlps for norm in zip(mlp.scales, mlp.shifts)]


@torch.no_grad()
def plain_copy(plain: nn.Module, network: nn.Module, i: int) -> nn.Module:
    """plain with the weights of network's i-th member."""
    plain.to(next(network.parameters()).dtype)
    for kind, theirs in ((nn.Linear, linears(network)), (nn.LayerNorm, norms(network))):
        mine = [module for module in plain.modules() if isinstance(module, kind)]
        for module, (weight, bias) in zip(mine, theirs, strict=True):
            weight = weight[i].T if kind is nn.Linear else weight[i, 0]
            assert (module.weight.shape, module.bias.shape) == (weight.shape, bias[i, 0].shape)
            module.weight.copy_(weight)
            module.bias.copy_(bias[i, 0])
    return plain


def plain_networks(name: str, agent, args, i: int) -> dict[str, nn.Module]:
    """Seed i's networks in plain PyTorch, as the papers describe them."""
    if name == srpo:
        q = lambda: plain_mlp(OBS_DIM + ACTION_DIM, 1, nn.ReLU, hidden=2)
        v, denoiser = plain_mlp(OBS_DIM, 1, nn.ReLU, hidden=2), PlainResNet(agent.denoiser.frequencies[i])
        policy = plain_mlp(OBS_DIM, ACTION_DIM, nn.ReLU, hidden=args.policy_layers)
    else:
        q = lambda: plain_mlp(OBS_DIM + ACTION_DIM, 1, nn.Mish, norm=True)
        v, denoiser = plain_mlp(OBS_DIM, 1, nn.Mish), PlainDenoiser()
        policy = plain_mlp(OBS_DIM, 2 * ACTION_DIM, nn.ReLU) if name == gaussian else PlainDenoiser()
    plain = {"v": plain_copy(v, agent.v, i), "denoiser": plain_copy(denoiser, agent.denoiser, i)}
    plain["policy"] = plain_copy(policy, agent.policy, i)
    for j in range(2):
        plain[f"q{j + 1}"] = plain_copy(q(), agent.q, 2 * i + j)
        plain[f"target_q{j + 1}"] = plain_copy(q(), agent.target_q, 2 * i + j)
    if name == kl:
        plain["fake_denoiser"] = plain_copy(PlainDenoiser(), agent.fake_denoiser, i)
    return plain


@pytest.mark.parametrize("name", SCRIPTS)
def test_initial_weights(name):
    """As nn.Linear's, weights and biases U(-1/√in, 1/√in); the Gaussian policy's orthogonal, without bias."""
    script = load_script(name)
    agent = make_agent(script, make_args(script, num_seeds=2))
    for part, network in agent.named_children():
        for weight, bias in linears(network):
            in_dim = weight.shape[1]
            if name == gaussian and part == "policy":
                for w in weight:
                    small = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
                    assert torch.allclose(small, torch.eye(len(small)), atol=1e-5) and not bias.any()
                continue
            scaled = weight.flatten(1) * in_dim**0.5
            assert scaled.abs().max() <= 1 + 1e-6 and bias.abs().max() <= in_dim**-0.5 + 1e-6
            assert ((scaled.std(dim=1) * 3**0.5 - 1).abs() < 4 / scaled.shape[1] ** 0.5).all()
            assert (scaled.mean(dim=1).abs() < 3.5 / scaled.shape[1] ** 0.5).all()
            assert bias.shape[-1] == 1 or bias.std() > 0
        for scale, shift in norms(network):
            assert (scale == 1).all() and (shift == 0).all()
    for target, q in zip(agent.target_q.parameters(), agent.q.parameters(), strict=True):
        assert torch.equal(target, q) and target is not q and not target.requires_grad


def test_srpos_fourier_frequencies_are_fixed_and_of_scale_30():
    script = load_script(srpo)
    agent = make_agent(script, make_args(script, num_seeds=40))
    frequencies = agent.denoiser.frequencies
    assert frequencies.shape == (40, 1, 32)  # 64 features, sines and cosines
    assert stats.kstest(frequencies.flatten().numpy(), stats.norm(0, 30).cdf).pvalue > 0.01
    assert "denoiser.frequencies" in agent.state_dict()
    assert "denoiser.frequencies" not in dict(agent.named_parameters())


# ------------------------------------------------------------------------------------------------- updates
OMEGAS = {"sigma_squared": lambda alpha, sigma: sigma**2, "one": lambda alpha, sigma: torch.ones_like(sigma),
          "alpha_over_sigma": lambda alpha, sigma: alpha / sigma}  # fmt: skip


class Transcription:
    """What the scripts share of their updates, of one seed, literally."""

    def __init__(self, name: str, agent, args, i: int):
        self.args, self.i = args, i
        for part, network in plain_networks(name, agent, args, i).items():
            setattr(self, part, network)
        self.optimizers, self.schedulers = {}, []

    def add(self, name: str, *networks, rate: float, kind=torch.optim.Adam, decay_over=None):
        params = [param for network in networks for param in network.parameters()]
        self.optimizers[name] = kind(params, lr=rate, foreach=False, fused=False)
        if decay_over and self.args.lr_schedule == "cosine":
            cosine = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizers[name], decay_over)
            self.schedulers.append(cosine)

    def step(self, phase: str, data, draws: dict) -> dict:
        """On the rows and with the noise that the script drew."""
        self.draws = {kind: [x[self.i] for x in xs] for kind, xs in draws.items()}
        rows = self.draw("rows")
        losses = getattr(self, phase)(*(x[rows] for x in data))
        assert not any(self.draws.values()), "the script draws more than the paper does"
        return losses

    def draw(self, kind: str):
        assert self.draws[kind], f"the script draws fewer {kind} numbers than the paper does"
        return self.draws[kind].pop(0)

    def descend(self, loss, name: str):
        self.optimizers[name].zero_grad()
        loss.backward()
        self.optimizers[name].step()

    def denoised(self, network, noisy, sigma, obs, **options):
        data = self.args.sigma_data
        v = sigma**2 + data**2
        output = network(noisy / v.sqrt(), torch.log(sigma) / 4, obs, **options)
        return torch.clamp(data**2 / v * noisy + sigma * data / v.sqrt() * output, -1, 1)

    def draw_sigma(self):
        law = stats.logistic(loc=math.log(self.args.sigma_data), scale=0.5)
        low, high = law.cdf(np.log([self.args.sigma_min, self.args.sigma_max]))
        sigma = np.exp(law.ppf(low + (high - low) * self.draw("uniform").numpy()))
        return torch.tensor(sigma).float().double()

    def denoising(self, network, action, obs, **options):
        sigma, data = self.draw_sigma(), self.args.sigma_data
        denoised = self.denoised(network, action + sigma * self.draw("normal"), sigma, obs, **options)
        c_out = sigma * data / (sigma**2 + data**2).sqrt()
        return (((denoised - action) / c_out) ** 2).mean(dim=1).mean()

    def both_q(self, obs, action, target=False):
        x = torch.cat([obs, action], dim=1)
        return [q(x)[:, 0] for q in ((self.target_q1, self.target_q2) if target else (self.q1, self.q2))]

    def expectile_loss(self, q, obs):
        v = self.v(obs)[:, 0]
        advantage = q.detach() - v
        return ((self.args.expectile - (advantage < 0).double()).abs() * advantage**2).mean(), v.mean()

    def q_target(self, reward, next_obs, terminal):
        return (reward + self.args.discount * (1 - terminal) * self.v(next_obs)[:, 0]).detach()

    def move_target(self):
        for target, q in ((self.target_q1, self.q1), (self.target_q2, self.q2)):
            for old, new in zip(target.parameters(), q.parameters()):
                old.data = self.args.tau * new.data + (1 - self.args.tau) * old.data

    def start(self, phase: str):
        pass


class Gaussian(Transcription):
    """DTQL with the Gaussian policy."""

    def __init__(self, name: str, agent, args, i: int):
        super().__init__(name, agent, args, i)
        rate, steps = args.learning_rate, args.train_steps
        self.add("critic", self.q1, self.q2, self.v, rate=3e-4, decay_over=steps)
        self.add("denoiser", self.denoiser, rate=rate, decay_over=steps)
        self.add("policy", self.policy, rate=rate, decay_over=steps)

    def pretrain(self, obs, action, reward, next_obs, terminal):
        loss_v, v = self.expectile_loss(torch.minimum(*self.both_q(obs, action)), obs)
        target = self.q_target(reward, next_obs, terminal)
        loss_q = sum(((target - q) ** 2).mean() for q in self.both_q(obs, action))
        self.descend(loss_v + loss_q, "critic")
        bc_loss = self.denoising(self.denoiser, action, obs)
        self.descend(bc_loss, "denoiser")
        return {"value_loss": loss_v, "q_loss": loss_q, "v": v, "bc_loss": bc_loss}

    def train(self, obs, action, *others):
        losses = self.pretrain(obs, action, *others) | self.policy_step(obs, action)
        self.move_target()
        for scheduler in self.schedulers:
            scheduler.step()
        return losses

    def policy_step(self, obs, action):
        mean, log_std = self.policy(obs).chunk(2, dim=1)
        law = torch.distributions.Normal(mean, log_std.clamp(-5, 2).exp())
        policy_action = torch.tanh(law.mean + law.stddev * self.draw("normal"))
        trust_region_loss = self.denoising(self.denoiser, policy_action, obs)
        policy_q = torch.minimum(*self.both_q(obs, policy_action)).mean()
        nll = -law.log_prob(torch.atanh(action / (1 + 1e-3))).sum(dim=1).mean()
        self.descend(self.args.alpha * trust_region_loss - policy_q + self.args.entropy_coef * nll, "policy")
        return {"trust_region_loss": trust_region_loss, "policy_q": policy_q, "nll_loss": nll}


class Implicit(Gaussian):
    """DTQL with the implicit policy."""

    def start(self, phase):
        if phase == "train":
            self.policy.load_state_dict(self.denoiser.state_dict())

    def draw_action(self, obs):
        z = self.args.sigma_gen * self.draw("normal")
        sigma = torch.full((len(obs), 1), self.args.sigma_gen).double()
        if self.args.precondition:
            return self.denoised(self.policy, z, sigma, obs)
        return self.policy(z, sigma, obs)

    def policy_step(self, obs, action):
        policy_action = self.draw_action(obs)
        trust_region_loss = self.denoising(self.denoiser, policy_action, obs)
        policy_q = torch.minimum(*self.both_q(obs, policy_action)).mean()
        self.descend(self.args.alpha * trust_region_loss - policy_q, "policy")
        return {"trust_region_loss": trust_region_loss, "policy_q": policy_q}


class KL(Implicit):
    """KL distillation."""

    def __init__(self, name: str, agent, args, i: int):
        super().__init__(name, agent, args, i)
        self.add("fake_denoiser", self.fake_denoiser, rate=args.learning_rate, decay_over=args.train_steps)

    def start(self, phase):
        super().start(phase)
        if phase == "train":
            self.fake_denoiser.load_state_dict(self.denoiser.state_dict())

    def policy_step(self, obs, action):
        policy_action = self.draw_action(obs)
        sigma, clean = self.draw_sigma(), policy_action.detach()
        noisy = clean + sigma * self.draw("normal")
        real, fake = (
            self.denoised(x, noisy, sigma, obs).detach() for x in (self.denoiser, self.fake_denoiser)
        )
        g = (fake - real) / (clean - real).abs().mean(dim=1, keepdim=True).clamp(min=1e-3)
        policy_q = torch.minimum(*self.both_q(obs, policy_action)).mean()
        # a loss whose gradient in the action is α g over batch and dims, as the surrogate's
        self.descend(self.args.alpha * (g * policy_action).mean() - policy_q, "policy")
        fake_loss = self.denoising(self.fake_denoiser, clean, obs)
        self.descend(fake_loss, "fake_denoiser")
        return {"kl_loss": (g**2).mean() / 2, "policy_q": policy_q, "fake_loss": fake_loss}


class SRPO(Transcription):
    """SRPO, in its own VP form."""

    def __init__(self, name: str, agent, args, i: int):
        super().__init__(name, agent, args, i)
        self.add("q", self.q1, self.q2, rate=3e-4)
        self.add("v", self.v, rate=3e-4)
        self.add("denoiser", self.denoiser, rate=args.learning_rate, kind=torch.optim.AdamW)
        self.add("policy", self.policy, rate=args.learning_rate, decay_over=args.policy_steps)
        self.policy_network, self.policy = self.policy, self.policy_phase  # the phase's name is the network's

    def critic(self, obs, action, *others):
        target = self.q_target(*others)  # of V before its step
        loss_v, v = self.expectile_loss(torch.minimum(*self.both_q(obs, action, target=True)), obs)
        self.descend(loss_v, "v")
        loss_q = sum(((target - q) ** 2).mean() for q in self.both_q(obs, action)) / 2
        self.descend(loss_q, "q")
        self.move_target()
        return {"value_loss": loss_v, "q_loss": loss_q, "v": v}

    def behavior(self, obs, action, *others):
        kept = [self.draw("kept") for _ in range(3)]
        bc_loss = self.denoising(self.denoiser, action, obs, kept=kept)
        self.descend(bc_loss, "denoiser")
        return {"bc_loss": bc_loss}

    def policy_phase(self, obs, *others):
        args, action = self.args, torch.tanh(self.policy_network(obs))
        leaf = action.detach().requires_grad_()
        q = sum(self.both_q(obs, leaf, target=True)) / 2
        (gradient,) = torch.autograd.grad(q.sum(), leaf)
        if args.q_gradient == "normalized":
            gradient = gradient / (gradient**2).mean(dim=1, keepdim=True).sqrt()
        t, eps = 0.02 + 0.96 * self.draw("uniform"), self.draw("normal")
        alpha = torch.exp(-(t**2) * (20 - 0.1) / 4 - t * 0.1 / 2)
        sigma = (1 - alpha**2).sqrt()
        noisy, ratio = (alpha * leaf + sigma * eps) / alpha, sigma / alpha
        predicted = ((noisy - self.denoised(self.denoiser, noisy, ratio, obs)) / ratio).detach()
        regularizer = OMEGAS[args.omega](alpha, sigma) * (predicted - eps if args.baseline else predicted)
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


def check_updates(name: str, script, changes: dict) -> None:
    """Steps of every phase, of two seeds together: losses, learning rates, weights."""
    args = make_args(script, num_seeds=2, **changes)
    agent = make_agent(script, args)
    with torch.no_grad():
        for scale, shift in (norm for network in agent.children() for norm in norms(network)):
            scale.uniform_(0.5, 1.5)  # as built: ones and zeros
            shift.uniform_(-0.5, 0.5)
        for _, bias in linears(agent.policy)[-1:]:
            bias += torch.tensor([0.5, 1.5, 1.8, -4.8] if name == gaussian else [1.5, 0.0])  # to meet clamps
    agent.double()
    data = [x.double() for x in make_data()]
    plain = [TRANSCRIPTIONS[name](name, agent, args, i) for i in range(2)]
    at_first = [plain_networks(name, agent, args, i) for i in range(2)]
    rates = lambda optimizers: {x: float(o.param_groups[0]["lr"]) for x, o in optimizers.items()}
    for phase in script.PHASES:
        script.STARTS.get(phase, lambda agent: None)(agent)
        for transcription in plain:
            transcription.start(phase)
        before, sums = copy.deepcopy(agent.state_dict()), {}
        steps = script.gradient_steps(agent, data, phase, totals := {}, args)
        for step in range(getattr(args, f"{phase}_steps")):
            assert rates(agent.optimizers) == pytest.approx(rates(plain[0].optimizers), abs=1e-10)
            with recorded_draws() as draws:
                next(steps)
            assert draws["rows"][0].shape == (2, getattr(args, f"{phase}_batch_size", args.batch_size))
            for i in range(2):
                losses = plain[i].step(phase, data, draws)
                assert losses.keys() == totals.keys()
                for loss, value in losses.items():
                    sums[loss, i] = sums.get((loss, i), 0) + value.item()
                    assert totals[loss][i].item() == pytest.approx(sums[loss, i], rel=2e-5, abs=1e-9), (
                        step,
                        loss,
                    )
            assert not any(total.requires_grad for total in totals.values())
        moved = {x.partition(".")[0] for x, w in agent.state_dict().items() if not torch.equal(w, before[x])}
        assert moved - {"trained"} == MOVED[name][phase]
    decayed = {"policy"} if name == srpo else set(agent.optimizers)
    for x, rate in rates(agent.optimizers).items():
        initial = 3e-4 if x in ("critic", "q", "v") else 1e-3  # the critics' is not --learning-rate
        decays = args.lr_schedule == "cosine" and x in decayed
        assert rate == pytest.approx(0 if decays else initial, abs=1e-10)
    for i in range(2):
        for part, network in plain_networks(name, agent, args, i).items():
            theirs = getattr(plain[i], "policy_network" if (name, part) == (srpo, "policy") else part)
            mine, expected, first = (
                nn.utils.parameters_to_vector(n.parameters()) for n in (network, theirs, at_first[i][part])
            )
            # not weight by weight: Adam magnifies the rounding of noise levels where a gradient is nearly 0
            assert (mine - expected).norm() < 1e-3 * (expected - first).norm(), part


CASES = [
    (gaussian, {}), (gaussian, {"lr_schedule": "constant"}), (implicit, {"sigma_data": 0.6}),
    (implicit, {"precondition": True, "sigma_gen": 1.7}), (kl, {}),
    (kl, {"precondition": True, "lr_schedule": "constant"}), (srpo, {}),
    (srpo, {"q_gradient": "normalized", "policy_layers": 4, "omega": "one", "lr_schedule": "constant"}),
    (srpo, {"omega": "alpha_over_sigma", "baseline": False}),
]  # fmt: skip


@pytest.mark.parametrize("name, changes", CASES, ids=str)
def test_updates_equal_a_literal_transcription(name, changes):
    check_updates(name, load_script(name), changes)


FAULTS = [  # what stands once in the script, and a plausible error in its place
    (gaussian, "args.alpha * trust_region_loss - policy_q", "-args.alpha * trust_region_loss - policy_q"),
    (gaussian, "args.alpha * trust_region_loss - policy_q", "args.alpha * trust_region_loss + policy_q"),
    (gaussian, "+ args.entropy_coef * nll_loss", "- args.entropy_coef * nll_loss"),
    (gaussian, "denoiser(action + sigma", "denoiser(action.detach() + sigma"),  # cuts the Jacobian
    (gaussian, "c_out * output).clamp(-1, 1)", "c_out * output)"),
    (gaussian, "sigma.log() / 4", "sigma.log()"),
    (gaussian, "(sigma**2 + args.sigma_data**2) / (sigma * args.sigma_data) ** 2", "1 / sigma**2"),
    (gaussian, "u < 0, 1 - args.expectile, args.expectile", "u < 0, args.expectile, 1 - args.expectile"),
    (gaussian, "(1 - terminal) * ", ""),
    (gaussian, "agent.v(next_obs)", "agent.v(obs)"),
    (gaussian, "[x[rows] for x in data]", "[x[rows.flip(1)] if x is data[3] else x[rows] for x in data]"),
    (gaussian, "q.detach().amin(dim=1) - v", "q.detach().amax(dim=1) - v"),
    (gaussian, "policy_action).amin(dim=1)", "policy_action).mean(dim=1)"),
    (gaussian, "old.lerp_(new.detach(), args.tau)", "old.lerp_(new.detach(), 1 - args.tau)"),
    (gaussian, "math.pi / args.train_steps", "math.pi / (args.pretrain_steps + args.train_steps)"),
    (implicit, "args.sigma_gen * torch.randn_like(action)", "torch.randn_like(action)"),
    (implicit, "agent.policy.net.load_state_dict(agent.denoiser.state_dict())", "pass"),
    (kl, "action - (fake - real) /", "action + (fake - real) /"),
    (kl, "agent.fake_denoiser, policy_action.detach()", "agent.fake_denoiser, action"),
    (srpo, "args.beta * gradient) * action", "-args.beta * gradient) * action"),
    (srpo, "predicted_eps - eps if args.baseline", "predicted_eps + eps if args.baseline"),
    (srpo, "torch.dropout(x, DROPOUT, dropout)", "torch.dropout(x, DROPOUT, True)"),
]  # fmt: skip


@pytest.mark.parametrize("name, right, wrong", FAULTS, ids=[f"{x[0]} {x[2]}" for x in FAULTS])
def test_a_fault_in_an_update_would_be_noticed(name, right, wrong):
    mutant = load_mutant(name, right, wrong)
    with pytest.raises(AssertionError):
        check_updates(name, mutant, {})


# --------------------------------------------------------------------------------------------------- seeds
def by_seed(x: torch.Tensor, n: int) -> torch.Tensor:
    """[seed, ...]: weights of the two Q of a seed stand beside each other."""
    return x.detach().unflatten(0, (n, -1))


@pytest.mark.parametrize("name", SCRIPTS)
def test_seeds_of_a_run_are_independent(name):
    """Own weights, own batches, own noise; and what one seed has for weights is nothing to the others."""
    script, n = load_script(name), 3
    args = make_args(script, num_seeds=n)
    losses, weights = [], []
    for disturbed in (False, True):
        agent = make_agent(script, args)
        random_ones = [x for x in agent.parameters() if x.unique().numel() > 2]
        assert len(random_ones) > 30
        for x in random_ones:  # no two seeds, and no Q1 and Q2, share a weight
            assert len(x.flatten(1).unique(dim=0)) == len(x)
        with torch.no_grad():
            for x in agent.parameters() if disturbed else ():
                by_seed(x, n)[1] *= 1.1
        torch.manual_seed(7)
        for phase in script.PHASES:
            script.STARTS.get(phase, lambda agent: None)(agent)
            steps = script.gradient_steps(agent, make_data(), phase, totals := {}, args)
            for _ in range(2):
                with recorded_draws() as draws:
                    next(steps)
                for x in sum(draws.values(), []):
                    assert len(x.flatten(1).unique(dim=0)) == n
            losses.append(totals)
        weights.append({x: by_seed(w, n) for x, w in agent.named_parameters()})
    phases = len(script.PHASES)
    for calm, after in zip(losses[:phases], losses[phases:]):
        for loss in calm:
            assert torch.equal(calm[loss] == after[loss], torch.tensor([True, False, True])), loss
    for x, w in weights[0].items():
        same = (w == weights[1][x]).flatten(1).all(dim=1)
        assert same[0] and same[2] and not same[1], x


def test_batches_are_uniform_over_the_dataset(monkeypatch):
    script = load_script(gaussian)
    monkeypatch.setitem(script.PHASES, "look", lambda agent, batch, args: {"reward": batch[2].sum(dim=1)})
    args = make_args(script, num_seeds=2, batch_size=10_000)
    torch.manual_seed(0)
    with recorded_draws() as draws:
        next(script.gradient_steps(None, make_data(), "look", {}, args))
    for rows in draws["rows"][0]:
        assert stats.chisquare(rows.bincount(minlength=200)).pvalue > 0.01
