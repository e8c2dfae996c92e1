"""The baselines are siblings of the scripts; their updates equal literal transcriptions of the papers' steps,
one seed at a time, with PyTorch's own layers and optimisers, in double precision and from the same draws;
their diffusion and flow lead where they should; a run of each ends with its result."""

import copy
import json
import math
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    ACTION_DIM,
    OBS_DIM,
    load_mutant,
    load_script,
    make_agent,
    make_args,
    make_data,
    recorded_draws,
    run_script,
)
from test_siblings import FIRST, IN_ALL, sections, source
from test_updates import PlainResNet, Transcription, linears, norms, plain_copy, plain_mlp
from torch import nn

FQL, IQL, IDQL, DQL = FILES = [f"benchmark/baselines/{x}.py" for x in ("fql", "iql", "idql", "diffusion_ql")]
WIDTH = 32  # of FQL's networks in here
T = 5
BETA = [1 - math.exp(-0.1 / T - 0.5 * 9.9 * (2 * t - 1) / T**2) for t in range(1, T + 1)]
ALPHA = [1 - beta for beta in BETA]
BAR = [math.prod(ALPHA[: t + 1]) for t in range(T)]  # ᾱ_1 .. ᾱ_T


# ------------------------------------------------------------------------------------------------ siblings
SAME = {  # what stands in sections of the algorithm and is still the same
    FQL: ["minimize", "frozen"],
    IQL: ["minimize"],
    IDQL: ["mish", "minimize"],
    DQL: ["mish", "MLP", "frozen"],
}


@pytest.mark.parametrize("file", FILES)
def test_what_is_common_is_equal_to_the_byte(file):
    """But for where the project's root is, and the check of flags that a baseline does not have."""
    first, mine = sections(FIRST), sections(file)
    root = re.search(r"(?m)^ROOT = SCRIPT\.parents\[2\].*\n(sys\.path\..*\n)?", mine["flags and errors"])[0]
    expected = re.sub(r"(?m)^ROOT = SCRIPT\.parent .*\n", lambda _: root, first["flags and errors"])
    first["flags and errors"] = re.sub(r"(?m)^    check\(args\.sigma_min .*\n", "", expected)
    for name in IN_ALL:
        assert mine[name] == first[name], name
    for name in SAME[file]:
        assert source(file, name) == source(FIRST, name)


@pytest.mark.parametrize("file", FILES)
def test_baselines_are_short_and_tell_their_own_name(file):
    text = sections(file)
    assert sum(part.count("\n") for part in text.values()) <= 760
    assert set(re.findall(r"python (\S+\.py)", text["docstring"])) == {file}
    arguments = re.findall(r"(?m)^    (\w+): [^#\n]+(#.{8,})?$", text["arguments"])
    assert len(arguments) > 15 and all(comment for _, comment in arguments)  # tyro's help


# ----------------------------------------------------------------------------------------- transcriptions
class PlainPredictor(nn.Module):
    """Diffusion-QL's."""

    def __init__(self):
        super().__init__()
        self.t1, self.t2 = nn.Linear(16, 32), nn.Linear(32, 16)
        self.body = plain_mlp(ACTION_DIM + OBS_DIM + 16, ACTION_DIM, nn.Mish)

    def forward(self, x, t, obs):
        angle = (t - 1) * torch.tensor([math.exp(-k * math.log(10_000) / 7) for k in range(8)])
        time = self.t2(F.mish(self.t1(torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1))))
        return self.body(torch.cat([x, obs, time], dim=-1))


class PlainDropout(nn.Module):
    """IQL's policy but for its tanh; kept: what dropout multiplies each hidden layer by, [2][batch, 256]."""

    def __init__(self, log_std: torch.Tensor):
        super().__init__()
        self.layers, self.log_std = plain_mlp(OBS_DIM, ACTION_DIM, nn.ReLU, hidden=2), log_std

    def forward(self, obs, kept=(1, 1)):
        first, _, second, _, last = self.layers
        return last(torch.relu(second(torch.relu(first(obs)) * kept[0])) * kept[1])


class PlainIDQLNet(PlainResNet):
    """SRPO's, but for learnt frequencies, a time from 0, and flax' LayerNorm."""

    def __init__(self, frequencies: torch.Tensor):
        super().__init__(nn.Parameter(frequencies.clone()))
        for norm, _, _ in self.blocks:
            norm.eps = 1e-6

    def forward(self, x, t, obs, **options):
        return super().forward(x, t - 1, obs, **options)


def plain_gelu(in_dim: int, out_dim: int, norm: bool = False) -> nn.Sequential:
    """FQL's: four times (Linear, GELU[, LayerNorm]), then a Linear."""
    layers = []
    for dim in (in_dim, WIDTH, WIDTH, WIDTH):
        layers += [nn.Linear(dim, WIDTH), nn.GELU("tanh"), *([nn.LayerNorm(WIDTH, eps=1e-6)] if norm else [])]
    return nn.Sequential(*layers, nn.Linear(WIDTH, out_dim))


def plain_networks(file: str, agent, i: int) -> dict[str, nn.Module]:
    """Seed i's networks in plain PyTorch, as the papers describe them."""
    plain, both = {}, OBS_DIM + ACTION_DIM
    if file == FQL:
        q = lambda: plain_gelu(both, 1, norm=True)
        plain = {"flow": plain_gelu(both + 1, ACTION_DIM), "policy": plain_gelu(both, ACTION_DIM)}
    elif file == DQL:
        q = lambda: plain_mlp(both, 1, nn.Mish)
        plain = {"policy": PlainPredictor(), "ema_policy": PlainPredictor()}
    else:
        q = lambda: plain_mlp(both, 1, nn.ReLU, hidden=2)
        plain = {"v": plain_mlp(OBS_DIM, 1, nn.ReLU, hidden=2)}
        if file == IQL:
            log_std = agent.policy.log_std[i, 0].detach().clone()
            plain["policy"] = PlainDropout(nn.Parameter(log_std, agent.policy.log_std.requires_grad))
        else:
            for name in ("policy", "ema_policy"):
                plain[name] = PlainIDQLNet(getattr(agent, name).frequencies[i].detach())
    plain = {name: plain_copy(network, getattr(agent, name), i) for name, network in plain.items()}
    for j in range(2):
        plain[f"q{j + 1}"] = plain_copy(q(), agent.q, 2 * i + j)
        plain[f"target_q{j + 1}"] = plain_copy(q(), agent.target_q, 2 * i + j)
    return plain


class Plain(Transcription):
    """What the baselines' transcriptions share."""

    def __init__(self, file: str, agent, args, i: int):
        self.args, self.i, self.optimizers, self.schedulers, self.steps = args, i, {}, [], 0
        for name, network in plain_networks(file, agent, i).items():
            setattr(self, name, network)
        self.build(args.learning_rate, getattr(args, "lr_schedule", "") and args.train_steps)

    def train(self, *batch):
        losses = self.update(*batch)
        self.move_target()
        for scheduler in self.schedulers:
            scheduler.step()
        self.steps += 1
        return losses


class PlainFQL(Plain):
    def build(self, rate, steps):
        self.add("all", self.q1, self.q2, self.flow, self.policy, rate=rate)

    def move_target(self):
        pass  # its place is within a step

    def update(self, obs, action, reward, next_obs, terminal):
        args, inputs = self.args, lambda *xs: torch.cat(xs, dim=1)
        next_action = torch.clip(self.policy(inputs(next_obs, self.draw("normal"))), -1, 1)
        next_q = torch.stack(self.both_q(next_obs, next_action, target=True))
        next_q = next_q.min(dim=0).values if args.q_aggregate == "min" else next_q.mean(dim=0)
        target = (reward + args.discount * (1 - terminal) * next_q).detach()
        q_loss = ((torch.stack(self.both_q(obs, action)) - target) ** 2).mean()

        x_0, t = self.draw("normal"), self.draw("uniform")
        velocity = self.flow(inputs(obs, (1 - t) * x_0 + t * action, t))
        bc_loss = ((velocity - (action - x_0)) ** 2).mean()

        z = self.draw("normal")
        x = z
        for i in range(10):
            x = x + self.flow(inputs(obs, x, torch.full((len(x), 1), i / 10).double())) / 10
        distilled = self.policy(inputs(obs, z))
        distill_loss = ((distilled - torch.clip(x, -1, 1).detach()) ** 2).mean()

        fixed = [copy.deepcopy(q).requires_grad_(False) for q in (self.q1, self.q2)]
        q = torch.stack([q(inputs(obs, torch.clip(distilled, -1, 1)))[:, 0] for q in fixed]).mean(dim=0)
        weight = 1 / q.abs().mean().detach() if args.normalize_q else 1
        super().move_target()
        self.descend(q_loss + bc_loss + args.alpha * distill_loss - weight * q.mean(), "all")
        return {"q_loss": q_loss, "bc_loss": bc_loss, "distill_loss": distill_loss, "policy_q": q.mean()}


class PlainIQL(Plain):
    def build(self, rate, steps):
        self.add("q", self.q1, self.q2, rate=rate)
        self.add("v", self.v, rate=rate)
        self.add("policy", self.policy, rate=rate, decay_over=steps)

    def update(self, obs, action, reward, next_obs, terminal):
        q = torch.minimum(*self.both_q(obs, action, target=True)).detach()
        value_loss, v = self.expectile_loss(q, obs)
        self.descend(value_loss, "v")

        weight = torch.exp(self.args.beta * (q - self.v(obs)[:, 0])).detach()
        weight = torch.minimum(weight, torch.tensor(100.0))
        kept = [self.draw("kept") for _ in range(2)] if self.args.dropout else (1, 1)
        mean, std = torch.tanh(self.policy(obs, kept)), torch.exp(self.policy.log_std.clamp(-5, 2))
        law = torch.distributions.Independent(torch.distributions.Normal(mean, std), 1)
        nll = -law.log_prob(action)
        if self.args.fixed_std:
            nll = ((action - mean) ** 2 + math.log(2 * math.pi)).sum(dim=1) / 2
        self.descend((weight * nll).mean(), "policy")

        target = self.q_target(reward, next_obs, terminal)
        q_loss = sum(((target - q) ** 2).mean() for q in self.both_q(obs, action))
        self.descend(q_loss, "q")
        losses = {"value_loss": value_loss, "q_loss": q_loss, "policy_loss": (weight * nll).mean()}
        return losses | {"v": v, "weight": weight.mean(), "nll_loss": nll.mean()}


class Diffusion(Plain):
    def noise_error(self, action, obs, **options):
        t = (self.draw("uniform") * T).long()  # 0 .. T - 1
        bar, eps = torch.tensor(BAR, dtype=torch.float64)[t], self.draw("normal")
        noisy = torch.sqrt(bar) * action + torch.sqrt(1 - bar) * eps
        return F.mse_loss(self.policy(noisy, (t + 1).double(), obs, **options), eps)


def average(old: nn.Module, new: nn.Module, share: float) -> None:
    for x, y in zip(old.parameters(), new.parameters(), strict=True):
        x.data = (1 - share) * x.data + share * y.data


class PlainIDQL(Diffusion):
    def build(self, rate, steps):
        self.add("q", self.q1, self.q2, rate=rate)
        self.add("v", self.v, rate=rate)
        self.add("policy", self.policy, rate=rate, decay_over=steps)

    def update(self, all_obs, all_action, *others):
        obs, action, *others = (x[:12] for x in (all_obs, all_action, *others))  # CRITIC_BATCH in here
        value_loss, v = self.expectile_loss(torch.minimum(*self.both_q(obs, action, target=True)), obs)
        self.descend(value_loss, "v")
        target = self.q_target(*others)
        q_loss = sum(((target - q) ** 2).mean() for q in self.both_q(obs, action)) / 2
        self.descend(q_loss, "q")
        bc_losses = []
        for rows in (slice(0, 8), slice(8, 16)):
            kept = [self.draw("kept") for _ in range(3)]
            bc_losses.append(self.noise_error(all_action[rows], all_obs[rows], kept=kept))
            self.descend(bc_losses[-1], "policy")
            average(self.ema_policy, self.policy, 0.001)
        return {"value_loss": value_loss, "q_loss": q_loss, "v": v, "bc_loss": sum(bc_losses) / 2}


class PlainDQL(Diffusion):
    def build(self, rate, steps):
        self.add("q", self.q1, self.q2, rate=3e-4, decay_over=steps)
        self.add("policy", self.policy, rate=rate, decay_over=steps)
        self.norms, self.sides = [], set()

    def descend(self, loss, name):
        self.optimizers[name].zero_grad()
        loss.backward()
        params = self.optimizers[name].param_groups[0]["params"]
        self.norms.append(nn.utils.clip_grad_norm_(params, self.args.grad_norm).item())
        self.optimizers[name].step()

    def chain(self, network, obs):
        x = self.draw("normal")
        for t in reversed(range(T)):
            eps = network(x, torch.full((len(x), 1), t + 1.0).double(), obs)
            before = BAR[t - 1] if t else 1.0
            clean = torch.clamp(x / BAR[t] ** 0.5 - (1 / BAR[t] - 1) ** 0.5 * eps, -1, 1)
            mean = BETA[t] * before**0.5 * clean + (1 - before) * ALPHA[t] ** 0.5 * x
            x = mean / (1 - BAR[t])
            if t:
                x = x + (BETA[t] * (1 - before) / (1 - BAR[t])) ** 0.5 * self.draw("normal")
        return x

    def update(self, obs, action, reward, next_obs, terminal):
        n, draws = len(next_obs), 10 if self.args.max_q_backup else 1
        states = torch.stack([next_obs[k // draws] for k in range(n * draws)])
        both = self.both_q(states, self.chain(self.ema_policy, states), target=True)
        next_q = torch.minimum(*(q.reshape(n, draws).max(dim=1).values for q in both))
        target = (reward + self.args.discount * (1 - terminal) * next_q).detach()
        q_loss = sum(F.mse_loss(q, target) for q in self.both_q(obs, action))
        self.descend(q_loss, "q")

        bc_loss = self.noise_error(action, obs)
        q1, q2 = self.both_q(obs, self.chain(self.policy, obs))
        side = self.draw("uniform").item() < 0.5
        self.sides.add(side)
        guidance = q1.mean() / q2.abs().mean().detach() if side else q2.mean() / q1.abs().mean().detach()
        self.descend(bc_loss - self.args.eta * guidance, "policy")
        if self.steps >= 3 and self.steps % 2 == 0:
            average(self.ema_policy, self.policy, 0.005)
        return {"q_loss": q_loss, "bc_loss": bc_loss, "policy_q": torch.minimum(q1, q2).mean()}


SETTINGS = {FQL: {"alpha": 2.0, "q_aggregate": "mean", "normalize_q": False},
            IQL: {"beta": 3.0, "dropout": False}, IDQL: {},
            DQL: {"eta": 1.0, "grad_norm": 0.3, "max_q_backup": False}}  # fmt: skip
TRANSCRIPTIONS = {FQL: PlainFQL, IQL: PlainIQL, IDQL: PlainIDQL, DQL: PlainDQL}


def check_updates(file: str, changes: dict, script=None, steps: int = 6) -> list[Plain]:
    """Steps of two seeds together: losses, learning rates, weights."""
    script = script or load_script(file)
    with pytest.MonkeyPatch.context() as patch:
        if file == DQL:
            assert (script.EMA_SHARE, script.EMA_EVERY, script.EMA_START) == (0.005, 5, 1000)
            assert script.Args.lr_schedule == "constant"
            patch.setattr(script, "EMA_EVERY", 2)
            patch.setattr(script, "EMA_START", 3)
        if file == IDQL:
            assert script.CRITIC_BATCH == 256
            patch.setattr(script, "CRITIC_BATCH", 12)
        if file == FQL:
            assert script.HIDDEN == (512, 512, 512, 512)
            patch.setattr(script, "HIDDEN", (WIDTH, WIDTH, WIDTH, WIDTH))
        return compare_updates(file, script, SETTINGS[file] | {"train_steps": steps} | changes)


def compare_updates(file: str, script, changes: dict) -> list[Plain]:
    args = make_args(script, num_seeds=2, **changes)
    agent = make_agent(script, args)
    with torch.no_grad():
        for scale, shift in (norm for network in agent.children() for norm in norms(network)):
            scale.uniform_(0.5, 1.5)  # as built: ones and zeros
            shift.uniform_(-0.5, 0.5)
        linears(agent.policy)[-1][1].add_(torch.tensor([1.2, 0.0]))  # to leave the box
        if file == IQL and not args.fixed_std:
            agent.policy.log_std.copy_(torch.tensor([2.3, -0.4]))  # one beyond its bound
    agent.double()
    data, totals, sums = [x.double() for x in make_data()], {}, {}
    plain = [TRANSCRIPTIONS[file](file, agent, args, i) for i in range(2)]
    at_first = [plain_networks(file, agent, i) for i in range(2)]
    rates = lambda optimizers: {name: float(x.param_groups[0]["lr"]) for name, x in optimizers.items()}
    steps = script.gradient_steps(agent, data, "train", totals, args)
    for step in range(args.train_steps):
        assert rates(agent.optimizers) == pytest.approx(rates(plain[0].optimizers), abs=1e-10)
        with recorded_draws() as draws:
            next(steps)
        for i in range(2):
            losses = plain[i].step("train", data, draws)
            assert losses.keys() == totals.keys()
            for loss, value in losses.items():
                sums[loss, i] = sums.get((loss, i), 0) + value.item()
                assert totals[loss][i].item() == pytest.approx(sums[loss, i], rel=1e-6), (step, loss)
    assert rates(agent.optimizers) == pytest.approx(rates(plain[0].optimizers), abs=1e-10)
    for i in range(2):
        for part, network in plain_networks(file, agent, i).items():
            mine, expected, first = (
                nn.utils.parameters_to_vector(n.parameters())
                for n in (network, getattr(plain[i], part), at_first[i][part])
            )
            assert (mine - expected).norm() < 1e-5 * (expected - first).norm(), part
    return plain


CASES = [
    (FQL, {}), (FQL, {"q_aggregate": "min", "normalize_q": True}), (IQL, {}), (IQL, {"beta": 30.0}),
    (IQL, {"beta": 0.0, "lr_schedule": "constant"}), (IQL, {"dropout": True}),
    (IQL, {"beta": 0.0, "fixed_std": True}), (IDQL, {}), (IDQL, {"lr_schedule": "constant"}), (DQL, {}),
    (DQL, {"grad_norm": 1e9, "eta": 3.0, "lr_schedule": "constant"}), (DQL, {"max_q_backup": True}),
]  # fmt: skip


@pytest.mark.parametrize("file, changes", CASES, ids=str)
def test_updates_equal_a_literal_transcription(file, changes):
    plain = check_updates(file, changes)
    if file == DQL:
        assert plain[0].sides == plain[1].sides == {True, False}  # both critics led each seed at some step
        assert any(norm > 0.3 for x in plain for norm in x.norms)


FAULTS = [  # what stands once in the baseline, and a plausible error in its place
    (FQL, "action - x_0)).square()", "x_0 - action)).square()"),
    (FQL, "(1 - t) * x_0 + t * action", "t * x_0 + (1 - t) * action"),
    (FQL, "i / FLOW_STEPS)) / FLOW_STEPS", "(i + 1) / FLOW_STEPS)) / FLOW_STEPS"),
    (FQL, "return x.clamp(-1, 1)", "return x"),
    (FQL, "next_action = agent.policy(next_obs, torch.randn_like(action)).clamp(-1, 1)",
     "next_action = follow_flow(agent.flow, next_obs, torch.randn_like(action))"),
    (FQL, "- policy_q / scale", "+ policy_q / scale"),
    (FQL, "frozen(agent.q)", "agent.q"),
    (IQL, ".clamp(max=MAX_WEIGHT)", ""),
    (IQL, "args.beta * (target_q - agent.v(obs).squeeze(-1))", "args.beta * (target_q - v)"),
    (IQL, "self.log_std.clamp(-5, 2)", "self.log_std"),
    (IQL, "u < 0, 1 - args.expectile, args.expectile", "u < 0, args.expectile, 1 - args.expectile"),
    (IQL, "requires_grad=not fixed_std", "requires_grad=True"),
    (IDQL, "action[..., :1])) + 1", "action[..., :1]))"),
    (IDQL, "nn.Parameter(0.2", "nn.Buffer(0.2"),
    (IDQL, "math.pi * (t - 1)", "math.pi * t"),
    (IDQL, "x[:, :CRITIC_BATCH]", "x"),
    (FQL, "lerp_(new.detach(), args.tau)", "lerp_(new.detach(), args.tau / 2)"),
    (DQL, "amax(dim=3).amin(dim=1)", "amin(dim=1).amax(dim=2)"),
    (IDQL, "dropout=True)", "dropout=False)"),
    (DQL, "sample(agent.ema_policy, next_obs", "sample(agent.policy, next_obs"),
    (DQL, ".abs().mean(dim=2).flip(1)", ".abs().mean(dim=2)"),
    (DQL, "scale = (max_norm / (norm + 1e-6))", "scale = (max_norm / (norm.amax().expand_as(norm) + 1e-6))"),
    (DQL, "agent.trained % EMA_EVERY == 0", "agent.trained % EMA_EVERY == 1"),
]  # fmt: skip


@pytest.mark.parametrize("file, right, wrong", FAULTS, ids=[f"{x[0]} {x[2]}" for x in FAULTS])
def test_a_fault_in_an_update_would_be_noticed(file, right, wrong):
    needed = {"MAX_WEIGHT": {"beta": 30.0}, "fixed_std": {"fixed_std": True}, "amax": {"max_q_backup": True}}
    changes = next((changes for part, changes in needed.items() if part in right), {})
    with pytest.raises(AssertionError):
        check_updates(file, changes, load_mutant(file, right, wrong), steps=6 if file == DQL else 2)


# ------------------------------------------------------------------------------- where noise becomes actions
@pytest.mark.parametrize("file, share", [(IDQL, 0.84), (DQL, 0.54)])
def test_diffusion_samples_gaussian_data(file, share):
    """Without the box and with the analytic predictor of N(m, s²) the mean is right; of the deviation, five
    steps leave a share."""
    script, mean, std = load_script(file), 0.3, 0.4
    assert [script.alpha_bar(t) for t in range(T + 1)] == pytest.approx([1, *BAR], rel=1e-12)

    def predict(x, t, obs):
        bar = script.alpha_bar(t)
        return (1 - bar).sqrt() * (x - bar.sqrt() * mean) / (bar * std**2 + 1 - bar)

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "clamp", lambda x, *_: x)
        few = script.sample(predict, torch.zeros(1, 50_000, 1), 1)
        patch.setattr(script, "T", 200)
        many = script.sample(predict, torch.zeros(1, 20_000, 1), 1)
    assert few.mean().item() == pytest.approx(mean, abs=0.01)
    assert few.std().item() == pytest.approx(share * std, rel=0.04)
    assert many.mean().item() == pytest.approx(mean, abs=0.015)
    assert many.std().item() == pytest.approx(std, rel=0.04)
    far = script.sample(lambda x, t, obs: -3 * x, torch.zeros(1, 1000, 1), 2)
    assert far.abs().max() == 1


def test_idqls_chain_is_ddpms_with_each_step_in_the_box():
    """a_{t-1} = clip((a_t - β_t ε̂ / √(1 - ᾱ_t)) / √α_t + √β_t z), from an a_T that is not clipped."""
    predict = lambda x, t, obs: x.sin() + t / 9
    with recorded_draws() as draws:
        sample = load_script(IDQL).sample(predict, torch.zeros(1, 200, 1, dtype=torch.float64), 2)
    x, *noise = draws["normal"]
    for t in reversed(range(T)):
        x = (x - BETA[t] / math.sqrt(1 - BAR[t]) * predict(x, t + 1, None)) / math.sqrt(ALPHA[t])
        x = (x + math.sqrt(BETA[t]) * noise.pop(0) if t else x).clamp(-1, 1)
    assert torch.allclose(sample, x) and not noise


def test_flow_leads_noise_to_the_data():
    """The velocity of a flow to N(m, s²): ten Euler steps reach it, but for their error."""
    script, mean, std = load_script(FQL), 0.2, 0.2

    def velocity(obs, x, t):  # E[a - x_0 | x_t]
        variance = (1 - t) ** 2 + (t * std) ** 2
        return mean + (t * std**2 - (1 - t)) / variance * (x - t * mean)

    z = torch.randn(1, 20_000, 1, generator=torch.Generator().manual_seed(0))
    x = script.follow_flow(velocity, None, z)
    assert x.mean().item() == pytest.approx(mean, abs=0.01)
    assert x.std().item() == pytest.approx(std, rel=0.25)
    assert script.follow_flow(lambda obs, x, t: 9 + 0 * x, None, z).unique().tolist() == [1.0]


# --------------------------------------------------------------------------------------------------- acting
def agent_of(file: str, **changes):
    script = load_script(file)
    args = make_args(script, num_seeds=2, **SETTINGS[file] | changes)
    return script, make_agent(script, args), args


@pytest.mark.parametrize("file", FILES)
def test_actions_lie_in_the_box_and_differ_from_draw_to_draw(file):
    script, agent, args = agent_of(file, **{} if file == FQL else {"eval_candidates": 3})
    obs = 9 * torch.randn(2, 50, OBS_DIM)
    first, second = script.act(agent, obs, args), script.act(agent, obs, args)
    assert first.shape == (2, 50, ACTION_DIM) and first.abs().max() <= 1
    assert not torch.equal(first, second)


def test_iql_acts_by_its_mean():
    script, agent, args = agent_of(IQL)
    obs = torch.randn(2, 50, OBS_DIM)
    assert args.eval_candidates == 0
    assert torch.equal(script.act(agent, obs, args), agent.policy(obs).mean)
    x = agent.policy(obs)
    assert x.mean.abs().max() < 1 and x.stddev.shape == x.mean.shape


@pytest.mark.parametrize("choice, share", [("max_q", 1.0), ("expectile", 0.8)])
def test_idql_chooses_by_q(choice, share, monkeypatch):
    """Among two candidates, with V between their Q: always the better, or with the expectile's weights."""
    script, agent, args = agent_of(IDQL, choice=choice, expectile=0.8, eval_candidates=2)
    n = 2000
    candidates = torch.tensor([[-0.5, 0.1], [0.5, 0.1]]).repeat(2, n, 1)  # [seed, state * candidate, action]
    monkeypatch.setattr(script, "sample", lambda network, obs, action_dim: candidates)
    agent.target_q.forward = lambda obs, action: torch.stack([action[..., 0], action[..., 0] + 1], dim=1)
    agent.v.forward = lambda obs: torch.zeros(*obs.shape[:2], 1)
    better = script.act(agent, torch.zeros(2, n, OBS_DIM), args)[..., 0] > 0
    assert better.float().mean().item() == pytest.approx(share, abs=0.025)


def test_diffusion_ql_chooses_by_softmax_of_q(monkeypatch):
    script, agent, args = agent_of(DQL, eval_candidates=2)
    candidates = torch.tensor([[-0.5, 0.1], [0.5, 0.1]]).repeat(2, 2000, 1)
    monkeypatch.setattr(script, "sample", lambda network, obs, action_dim: candidates)
    agent.target_q.forward = lambda obs, action: torch.stack([action[..., 0], action[..., 0] + 1], dim=1)
    better = script.act(agent, torch.zeros(2, 2000, OBS_DIM), args)[..., 0] > 0
    assert better.float().mean().item() == pytest.approx(1 / (1 + math.exp(-1)), abs=0.025)


# ---------------------------------------------------------------------------------------------- whole runs
def test_settings_are_the_papers():
    fql, iql, idql, dql = (load_script(file).settings_of for file in FILES)
    assert (fql("antmaze-large-play-v2")["alpha"], fql("pen-expert-v1")["alpha"]) == (3, 3000)
    assert fql("pen-human-v1")["q_aggregate"] == "min" and fql("antmaze-umaze-v0")["alpha"] == 10
    assert fql("hopper-medium-v2")["normalize_q"] and not fql("antmaze-umaze-v2")["normalize_q"]
    assert [iql(x)["beta"] for x in ("hopper-medium-v2", "antmaze-umaze-v0", "pen-human-v1")] == [3, 10, 0.5]
    assert [iql(x)["dropout"] for x in ("hopper-medium-v2", "kitchen-mixed-v0", "pen-human-v1")] == [0, 1, 1]
    assert (idql("hopper-medium-v2")["batch_size"], idql("antmaze-umaze-v0")["expectile"]) == (2048, 0.9)
    umaze = {"learning_rate": 3e-4, "eta": 2.0, "max_q_backup": True, "grad_norm": 3.0, "batch_size": 256}
    assert umaze.items() <= dql("antmaze-umaze-diverse-v0").items()
    assert dql("antmaze-umaze-diverse-v2") == dql("antmaze-umaze-diverse-v0")
    assert dql("pen-human-v1")["eta"] == 0.15 and dql("door-human-v1")["eta"] == 0.1
    for file in FILES:
        rows = [
            load_script(file).settings_of(x)
            for x in ("walker2d-medium-v2", "local/x/y-v0", "antmaze-umaze-v2")
        ]
        assert len({tuple(row) for row in rows}) == 1 and rows[1]["train_steps"] < rows[0]["train_steps"]


def test_rewards_are_treated_as_the_authors_do():
    reward, returns = torch.rand(50).numpy(), torch.tensor([2.0, 27.0]).numpy()
    adjusted = lambda file, env_id: load_script(file).adjust_reward(env_id, reward, returns)
    for file, env_id, expected in (
        (DQL, "antmaze-umaze-v0", 4 * (reward - 0.5)), (DQL, "hopper-medium-v2", reward),
        (DQL, "pen-human-v1", (reward - reward.mean()) / reward.std(ddof=1)),
        (IQL, "antmaze-umaze-v0", reward - 1), (IQL, "hopper-medium-v2", 40 * reward),
        (IDQL, "antmaze-umaze-v0", reward - 1), (IDQL, "hopper-medium-v2", 40 * reward),
        (FQL, "antmaze-umaze-v0", reward - 1), (FQL, "hopper-medium-v2", reward),
        *((file, "kitchen-mixed-v0", reward) for file in FILES),
    ):  # fmt: skip
        assert adjusted(file, env_id) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_networks_begin_as_the_authors_do():
    """IQL: orthogonal, gain √2; IDQL: Xavier's uniform weights, but LeCun's normal ones in the blocks."""
    weight = agent_of(IQL)[1].policy.weights[1][0]
    assert torch.allclose(weight @ weight.T, 2 * torch.eye(256), atol=1e-4)
    agent = agent_of(IDQL)[1]
    first, block, q = agent.policy.first, agent.policy.blocks[0].net, agent.q
    both = OBS_DIM + ACTION_DIM
    for x, variance in (first, 2 / (both + 128 + 256)), (block, 1 / 256), (q, 2 / (both + 256)):
        assert x.weights[0].var().item() == pytest.approx(variance, rel=0.06) and not x.biases[0].any()
    assert block.weights[0].abs().max() < 2.28 * 256**-0.5


@pytest.mark.parametrize("file", FILES)
def test_a_run_ends_with_its_result_and_is_evaluated_again_from_its_files(
    file, tmp_path, monkeypatch, capsys
):
    script = load_script(file)
    monkeypatch.chdir(tmp_path)

    def run(*flags: str) -> str:
        monkeypatch.setattr(sys, "argv", [script.SCRIPT.name, *flags])
        script.main()
        return capsys.readouterr().out

    flags = "--batch-size 16 --train-steps 4 --eval-every 2 --eval-episodes 2 --run-dir run"
    run(*flags.split(), *(() if file == FQL else ("--eval-candidates", "3")))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    scores = {line["step"]: line["eval/normalized_score"] for line in lines if "eval/return" in line}
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert list(scores) == [2, 4] and result["script"] == script.SCRIPT.name
    assert result["seeds"]["1"]["last"] == pytest.approx(scores[4])
    assert re.search(r"score ([\d.-]+)", run("--eval-only", "run"))[1] == f"{scores[4]:.1f}"


def test_a_baseline_finds_d4rls_environments_two_folders_up(tmp_path):
    """As a command: its own folder is the one that Python looks for modules in."""
    done = run_script(FQL, "--env-id", "antmaze-umaze-v0", cwd=tmp_path)
    assert done.returncode == 2 and "Ant_maze" in done.stderr  # the file; the environment is made before
