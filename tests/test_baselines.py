"""Diffusion-QL and IDQL: their diffusion against its definition, their updates against literal transcriptions
of one seed with PyTorch's own layers and optimisers, and whole runs."""

import copy
import dataclasses
import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    DIMS,
    MAX_ACTION,
    OBS_DIM,
    ROOT,
    SCRIPTS,
    doubled,
    generators,
    load_script,
    make_agent,
    make_transitions,
    run_script,
    training_generators,
)
from test_updates import PlainResNet, layers, members, plain_copy, plain_mlp, run_updates
from torch import nn

NAMES = ["diffusion_ql", "idql"]
FILES = {name: f"benchmark/baselines/{name}.py" for name in NAMES}
diffusion_ql, idql = (load_script(file) for file in FILES.values())
common = idql.common
ACTION_DIM, T = len(MAX_ACTION), 5
BETA = [1 - math.exp(-0.1 / T - 0.5 * 9.9 * (2 * t - 1) / T**2) for t in range(1, T + 1)]
ALPHA = [1 - beta for beta in BETA]
BAR = [math.prod(ALPHA[: t + 1]) for t in range(T)]  # ᾱ_1 .. ᾱ_T


# ------------------------------------------------------------------------------------------------ diffusion
class Predictor(nn.Module):
    """A noise predictor given as a function of a_t and t, which keeps what it was asked."""

    def __init__(self, function):
        super().__init__()
        self.function, self.asked = function, []

    def forward(self, x, t, obs, *options):
        self.asked.append((x, t))
        return self.function(x, t)


def policy_of(function, box: float = 1e9, wide: bool = False) -> common.DiffusionPolicy:
    return common.DiffusionPolicy(Predictor(function), torch.tensor([box]), wide)


def normal(*shape) -> torch.Tensor:
    return torch.randn(*shape, generator=generators(0)[0], dtype=torch.float64)


def test_schedule():
    t = torch.arange(T + 1, dtype=torch.float64)
    assert common.alpha_bar(t).tolist() == pytest.approx([1, *BAR], rel=1e-12)
    assert BAR[0] > 0.8 and BAR[-1] < 0.01  # little noise at first, nothing but noise at the end


def test_loss_is_the_error_of_the_predicted_noise():
    policy, action, eps = policy_of(lambda x, t: 0 * x), normal(2, 500, 1).tanh(), normal(2, 500, 1)
    u = torch.rand(2, 500, 1, generator=generators(1)[0], dtype=torch.float64)
    loss = policy.loss(action, None, u, eps)
    assert torch.allclose(loss, (eps**2).mean(dim=(1, 2)))
    ((noisy, t),) = policy.net.asked
    assert torch.bincount(t.long().flatten()).tolist()[0] == 0 and set(t.unique().tolist()) == {1, 2, 3, 4, 5}
    assert (torch.bincount(t.long().flatten())[1:] > 150).all()  # uniform
    bar = torch.tensor(BAR, dtype=torch.float64)[t.long() - 1]
    assert torch.allclose(noisy, bar.sqrt() * action + (1 - bar).sqrt() * eps)


def test_chain_with_the_true_noise_has_the_marginals_of_the_forward_process():
    """q(a_t | a_0) = N(√ᾱ_t a_0, 1 - ᾱ_t) at every t, and a_0 itself at the end."""
    clean, n = 0.7, 100_000
    policy = policy_of(lambda x, t: (x - BAR[int(t[0, 0, 0]) - 1] ** 0.5 * clean)
                       / (1 - BAR[int(t[0, 0, 0]) - 1]) ** 0.5)  # fmt: skip
    noise = normal(T, 1, n, 1)
    noise[0] = BAR[-1] ** 0.5 * clean + (1 - BAR[-1]) ** 0.5 * noise[0]  # a_T ~ q(a_T | a_0)
    sample = policy(None, noise)
    assert torch.allclose(sample, torch.full_like(sample, clean))
    assert [int(t[0, 0, 0]) for _, t in policy.net.asked] == [5, 4, 3, 2, 1]
    for (x, _), bar in zip(policy.net.asked, reversed(BAR)):
        assert x.mean().item() == pytest.approx(bar**0.5 * clean, abs=0.02)
        assert x.var().item() == pytest.approx(1 - bar, rel=0.03)


@pytest.mark.parametrize(
    "steps, wide, share", [(5, False, 0.54), (5, True, 0.84), (200, False, 1), (200, True, 1)]
)
def test_chain_samples_gaussian_data(steps, wide, share, monkeypatch):
    """With the analytic predictor of N(m, s²): the mean is right, and with many steps the spread, too; five
    leave a share of the standard deviation."""
    monkeypatch.setattr(common, "T", steps)
    mean, std = 0.3, 0.4

    def predict(x, t):
        bar = common.alpha_bar(t)
        return (1 - bar).sqrt() * (x - bar.sqrt() * mean) / (bar * std**2 + 1 - bar)

    sample = policy_of(predict, wide=wide)(None, normal(steps, 1, 50_000, 1))
    assert sample.mean().item() == pytest.approx(mean, abs=0.01)
    assert sample.std().item() == pytest.approx(share * std, rel=0.04)


@pytest.mark.parametrize("wide", [False, True])
def test_samples_stay_in_the_box(wide):
    sample = policy_of(lambda x, t: -3 * x, box=0.5, wide=wide)(None, normal(T, 1, 1000, 1))
    assert sample.abs().max() <= 0.5 and (sample.abs() == 0.5).any()


def test_wide_chain_is_ddpms_with_each_step_in_the_box():
    """a_{t-1} = clip((a_t - β_t ε̂ / √(1 - ᾱ_t)) / √α_t + √β_t z), from an a_T that is not clipped."""
    policy, noise = policy_of(lambda x, t: x.sin() + t / 9, box=0.8, wide=True), normal(T, 1, 200, 1)
    sample = policy(None, noise)
    x = noise[0]
    for t, (asked, _) in zip(reversed(range(T)), policy.net.asked, strict=True):
        assert torch.allclose(asked, x)
        x = (x - BETA[t] / math.sqrt(1 - BAR[t]) * (x.sin() + (t + 1) / 9)) / math.sqrt(ALPHA[t])
        x = (x + math.sqrt(BETA[t]) * noise[T - t] if t else x).clamp(-0.8, 0.8)
    assert torch.allclose(sample, x)


@pytest.mark.parametrize("module", [diffusion_ql, idql])
def test_candidates_are_chains_of_their_own_noise(module):
    agent, noise = make_agent(module.script, num_seeds=2), normal(2, 3, 4, T, ACTION_DIM).float()
    obs = normal(2, 3, OBS_DIM).float()
    candidates = agent.policy.sample(obs, noise)
    for episode in range(3):
        for candidate in range(4):
            alone = agent.policy(
                obs[:, episode : episode + 1], noise[:, episode, candidate, :, None].movedim(1, 0)
            )
            assert torch.allclose(candidates[:, episode, candidate], alone[:, 0], atol=1e-5)
    flat, u = noise.flatten(2, 3), torch.rand(2, 3, 4 * T, generator=generators(1)[0])
    unflattened, one_each = common.split_noise(flat, u)
    assert torch.equal(unflattened, noise) and one_each.shape == (2, 3, 4)


# -------------------------------------------------------------------------------------------------- updates
class PlainPredictor(nn.Module):
    """Diffusion-QL's (§9)."""

    def __init__(self):
        super().__init__()
        self.t1, self.t2 = nn.Linear(16, 32), nn.Linear(32, 16)
        self.body = plain_mlp(ACTION_DIM + OBS_DIM + 16, ACTION_DIM, nn.Mish)

    def forward(self, x, t, obs):
        angle = t * torch.tensor([math.exp(-k * math.log(10_000) / 7) for k in range(8)])
        time = self.t2(F.mish(self.t1(torch.cat([torch.sin(angle), torch.cos(angle)], dim=-1))))
        return self.body(torch.cat([x, obs, time], dim=-1))


def plain_networks(module, agent, i: int) -> dict[str, nn.Module]:
    if module is diffusion_ql:
        q = lambda: plain_mlp(OBS_DIM + ACTION_DIM, 1, nn.Mish)
        plain = {
            name: plain_copy(PlainPredictor(), getattr(agent, name), i) for name in ("policy", "ema_policy")
        }
    else:
        q = lambda: plain_mlp(OBS_DIM + ACTION_DIM, 1, nn.ReLU, hidden=2)
        resnet = PlainResNet(agent.policy.net.frequencies[i])
        v = plain_mlp(OBS_DIM, 1, nn.ReLU, hidden=2)
        plain = {"v": plain_copy(v, agent.v, i), "policy": plain_copy(resnet, agent.policy, i)}
    for j in range(2):
        plain[f"q{j + 1}"] = plain_copy(q(), agent.q, 2 * i + j)
        plain[f"target_q{j + 1}"] = plain_copy(q(), agent.target_q, 2 * i + j)
    return plain


def move(target, network, share: float):
    for old, new in zip(target.parameters(), network.parameters()):
        old.data = share * new.data + (1 - share) * old.data


class Transcription:
    """One seed."""

    def __init__(self, module, agent, i: int):
        self.args, self.box, self.step = agent.args, agent.max_action, 0
        for name, network in plain_networks(module, agent, i).items():
            setattr(self, name, network)

    def optimizer(self, *networks, kind=torch.optim.Adam):
        params = [param for network in networks for param in network.parameters()]
        return kind(params, lr=self.args.learning_rate, foreach=False, fused=False)

    def cosines(self, *optimizers):
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR
        return [cosine(o, self.args.train_steps) for o in optimizers if self.args.lr_decay]

    def noise_error(self, action, obs, u, eps, *options):
        t = (u * T).long()  # 0 .. T - 1
        bar = torch.tensor(BAR, dtype=torch.float64)[t]
        noisy = torch.sqrt(bar) * action + torch.sqrt(1 - bar) * eps
        return F.mse_loss(self.policy(noisy, (t + 1).double(), obs, *options), eps)

    def both_q(self, obs, action, target=False):
        x = torch.cat([obs, action], dim=1)
        return [q(x)[:, 0] for q in ((self.target_q1, self.target_q2) if target else (self.q1, self.q2))]


class DiffusionQL(Transcription):
    def __init__(self, module, agent, i: int):
        super().__init__(module, agent, i)
        self.q_optimizer, self.policy_optimizer = (
            self.optimizer(self.q1, self.q2),
            self.optimizer(self.policy),
        )
        self.schedulers = self.cosines(self.q_optimizer, self.policy_optimizer)
        self.norms = []

    def descend(self, loss, optimizer):
        optimizer.zero_grad()
        loss.backward()
        params = optimizer.param_groups[0]["params"]
        self.norms.append(nn.utils.clip_grad_norm_(params, self.args.grad_norm).item())
        optimizer.step()

    def chain(self, network, obs, noise):
        x = noise[0]
        for t in reversed(range(T)):
            eps = network(x, torch.full((len(x), 1), t + 1.0).double(), obs)
            before = BAR[t - 1] if t else 1.0
            clean = torch.clamp(x / BAR[t] ** 0.5 - (1 / BAR[t] - 1) ** 0.5 * eps, -self.box, self.box)
            x = (
                BETA[t] * before**0.5 / (1 - BAR[t]) * clean
                + (1 - before) * ALPHA[t] ** 0.5 / (1 - BAR[t]) * x
            )
            if t:
                x = x + (BETA[t] * (1 - before) / (1 - BAR[t])) ** 0.5 * noise[T - t]
        return x

    def train(self, batch, u, eps):
        obs, action, reward, next_obs, terminal = batch
        with torch.no_grad():
            next_action = self.chain(self.ema_policy, next_obs, eps[:T])
            next_q = torch.minimum(*self.both_q(next_obs, next_action, target=True))
            target = reward[:, 0] + self.args.discount * (1 - terminal[:, 0]) * next_q
        q_loss = sum(F.mse_loss(q, target) for q in self.both_q(obs, action))
        self.descend(q_loss, self.q_optimizer)
        bc_loss = self.noise_error(action, obs, u[0], eps[T])
        q1, q2 = self.both_q(obs, self.chain(self.policy, obs, eps[T + 1 :]))
        first, second = (q1, q2) if u[1, 0, 0] < 0.5 else (q2, q1)
        guidance = -first.mean() / second.abs().mean().detach()
        self.descend(bc_loss + self.args.eta * guidance, self.policy_optimizer)
        if self.step >= diffusion_ql.EMA_START and self.step % diffusion_ql.EMA_EVERY == 0:
            move(self.ema_policy, self.policy, 0.005)
        move(self.target_q1, self.q1, self.args.tau)
        move(self.target_q2, self.q2, self.args.tau)
        for scheduler in self.schedulers:
            scheduler.step()
        self.step += 1
        return {"q_loss": q_loss, "bc_loss": bc_loss, "policy_q": torch.minimum(q1, q2).mean()}


class IDQL(Transcription):
    def __init__(self, module, agent, i: int):
        super().__init__(module, agent, i)
        self.q_optimizer, self.v_optimizer = self.optimizer(self.q1, self.q2), self.optimizer(self.v)
        self.policy_optimizer = self.optimizer(self.policy, kind=torch.optim.AdamW)
        self.schedulers = self.cosines(self.policy_optimizer)

    def descend(self, loss, optimizer):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def train(self, batch, u, eps):
        obs, action, reward, next_obs, terminal = batch
        next_v = self.v(next_obs)[:, 0].detach()
        v = self.v(obs)[:, 0]
        advantage = torch.minimum(*self.both_q(obs, action, target=True)).detach() - v
        v_loss = ((self.args.expectile - (advantage < 0).double()).abs() * advantage**2).mean()
        self.descend(v_loss, self.v_optimizer)
        target = reward[:, 0] + self.args.discount * (1 - terminal[:, 0]) * next_v
        q_loss = sum(F.mse_loss(q, target) for q in self.both_q(obs, action)) / 2
        self.descend(q_loss, self.q_optimizer)
        move(self.target_q1, self.q1, self.args.tau)
        move(self.target_q2, self.q2, self.args.tau)
        kept = (u[1:, :, 0].T > 0.1).double() / 0.9  # [batch, 3 * 256]
        bc_loss = self.noise_error(action, obs, u[0], eps[0], kept.split(256, dim=1))
        self.descend(bc_loss, self.policy_optimizer)
        for scheduler in self.schedulers:
            scheduler.step()
        return {"value_loss": v_loss, "q_loss": q_loss, "v": v.mean(), "bc_loss": bc_loss}


CASES = [
    (diffusion_ql, {"grad_norm": 0.3}),
    (diffusion_ql, {"grad_norm": 1e9, "lr_decay": False, "eta": 3.0}),
    (idql, {}),
    (idql, {"lr_decay": False}),
]


@pytest.mark.parametrize("module, changes", CASES, ids=[f"{m.__name__} {c}" for m, c in CASES])
def test_updates_equal_a_literal_transcription(module, changes, monkeypatch):
    """Six steps of two seeds together, in double precision."""
    if module is diffusion_ql:
        assert (module.EMA_SHARE, module.EMA_EVERY, module.EMA_START) == (0.005, 5, 1000)
        monkeypatch.setattr(module, "EMA_EVERY", 2)
        monkeypatch.setattr(module, "EMA_START", 3)
    script = module.script
    agent = make_agent(script, num_seeds=2, train_steps=6, tau=0.1, **changes).double()
    plain = [(DiffusionQL if module is diffusion_ql else IDQL)(module, agent, i) for i in range(2)]
    first = [plain_networks(module, agent, i) for i in range(2)]
    streams, phase, sides = training_generators(script, 1, 2), script.PHASES["train"], set()
    for step in range(6):
        batch, u, eps = doubled(*script.draw(make_transitions(), DIMS, streams, agent.args, phase))
        losses = phase.update(agent, batch, u, eps)
        sides |= {(i, (u[-1, i, 0, 0] < 0.5).item()) for i in range(2)}
        for i in range(2):
            expected = plain[i].train([x[i] for x in batch], u[:, i], eps[:, i])
            assert losses.keys() == expected.keys()
            for name in losses:
                assert losses[name][i].item() == pytest.approx(expected[name].item(), rel=1e-6), (step, name)
                assert not losses[name].requires_grad
        if module is diffusion_ql and step < 4:  # due from step 3 on, at every second step: first at 4
            same = zip(agent.ema_policy.parameters(), make_agent(script, num_seeds=2).ema_policy.parameters())
            assert all(torch.equal(a, b.double()) for a, b in same)
    for i in range(2):
        for name, network in plain_networks(module, agent, i).items():
            mine, expected, before = (
                nn.utils.parameters_to_vector(n.parameters())
                for n in (network, getattr(plain[i], name), first[i][name])
            )
            assert (
                0 < (expected - before).norm()
                and (mine - expected).norm() < 1e-5 * (expected - before).norm()
            )
    if module is diffusion_ql:
        assert len(sides) == 4  # both critics led each seed at some step
        clipped = [norm > changes["grad_norm"] for transcription in plain for norm in transcription.norms]
        assert any(clipped) == (changes["grad_norm"] < 1e9)
    decayed = {diffusion_ql: {"q", "policy"}, idql: {"policy"}}[module] if agent.args.lr_decay else set()
    for name, optimizer in agent.optimizers.items():
        rate = optimizer.param_groups[0]["lr"].item()
        assert rate == pytest.approx(0 if name in decayed else 1e-3, abs=1e-10), name


def test_each_seeds_gradient_is_clipped_by_its_own_norm():
    """As torch does it for each network alone; Q1 and Q2 of a seed are one network."""
    agent = make_agent(diffusion_ql.script, num_seeds=3)
    params, before = list(agent.q.parameters()), copy.deepcopy(agent.q)
    weights = torch.tensor([1.0, 1e-3, 50.0])  # the second seed's gradient is small
    loss = weights * agent.q(torch.ones(3, 4, OBS_DIM), torch.ones(3, 4, ACTION_DIM)).square().mean(
        dim=(1, 2)
    )
    raw = [grad.clone() for grad in torch.autograd.grad(loss.sum(), params, retain_graph=True)]
    diffusion_ql.minimize_clipped(loss, torch.optim.SGD(params, lr=1.0), max_norm=0.01)
    norms = []
    for i in range(3):
        alone = [nn.Parameter(p[2 * i : 2 * i + 2].clone()) for p in before.parameters()]
        for param, grad in zip(alone, raw):
            param.grad = grad[2 * i : 2 * i + 2].clone()
        norms.append(nn.utils.clip_grad_norm_(alone, 0.01).item())
        torch.optim.SGD(alone, lr=1.0).step()
        for mine, param in zip(params, alone):
            assert torch.allclose(mine[2 * i : 2 * i + 2], param, atol=1e-7)
    assert norms[1] < 0.01 < norms[0] < norms[2]


@pytest.mark.parametrize("module", [diffusion_ql, idql])
def test_seeds_train_together_as_they_do_alone(module):
    script, changes = module.script, {"grad_norm": 0.3} if module is diffusion_ql else {}
    together = make_agent(script, seed=4, num_seeds=2, **changes)
    losses = run_updates(script, together, (4, 5))
    weights = members(together, 2)
    for i in range(2):
        alone = make_agent(script, seed=4 + i, **changes)
        for name, loss in run_updates(script, alone, (4 + i,)).items():
            assert loss[0].item() == pytest.approx(losses[name][i].item(), rel=1e-7)
        for name, weight in members(alone, 1).items():
            assert torch.allclose(weights[name][i], weight[0], rtol=0, atol=1e-8), name
    assert all(len(loss.unique()) == 2 for loss in losses.values())


# --------------------------------------------------------------------------------------------------- acting
def idql_choices(choice: str):
    """Choices among two candidates in 4000 episodes alike but for u; the candidates and their Q."""
    agent = make_agent(idql.script, choice=choice, expectile=0.8)
    obs = normal(1, 1, OBS_DIM).float()
    noise, u = normal(1, 1, 2 * T, ACTION_DIM).float(), torch.rand(1, 4000, 2 * T, generator=generators(1)[0])
    candidates = agent.policy.sample(obs, noise.unflatten(2, (2, T)))[0, 0]
    q = agent.target_q(obs.expand(1, 2, -1), candidates[None]).amin(dim=1)[0]
    with torch.no_grad():  # V between the two Q
        layers(agent.v, "Linear")[-1].bias += q.mean() - agent.v(obs)
        chosen = idql.choose_action(agent, obs.expand(1, 4000, -1), noise.expand(1, 4000, -1, -1), u)[0]
    return chosen, candidates, q


def test_idql_takes_the_candidate_of_the_largest_q():
    chosen, candidates, q = idql_choices("max_q")
    assert torch.allclose(chosen, candidates[q.argmax()].expand_as(chosen), atol=1e-5)


def test_idql_draws_candidates_with_the_weights_of_the_expectile():
    chosen, candidates, q = idql_choices("expectile")
    best = (chosen - candidates[q.argmax()]).abs().amax(dim=1) < 1e-5
    assert best.float().mean().item() == pytest.approx(0.8 / (0.8 + 0.2), abs=0.025)


# ---------------------------------------------------------------------------------------------- whole runs
def test_importing_a_baseline_leaves_the_scripts_alone():
    for name, module in (("dtql_gaussian.py", diffusion_ql), ("srpo.py", idql)):
        script = load_script(name)
        assert script is not module.script and module.script.Agent is module.Agent
        assert script.Agent.__module__ == script.Args.__module__ == script.__name__
        assert script.act is not module.act and script.__file__.endswith(name)


@pytest.mark.parametrize("module", [diffusion_ql, idql])
def test_baselines_have_the_flags_that_all_scripts_share(module):
    fields = lambda script: {field.name: field.default for field in dataclasses.fields(script.Args)}
    shared = set.intersection(*(set(fields(load_script(name))) for name in SCRIPTS))
    own = {"expectile", "learning_rate", "lr_decay"}
    shared -= own | {"sigma_data", "sigma_min", "sigma_max"}
    mine, scripts = fields(module), fields(load_script(SCRIPTS[0]))
    assert {name: mine.get(name, "missing") for name in shared} == {name: scripts[name] for name in shared}


@pytest.mark.parametrize("name, module", [("diffusion_ql", diffusion_ql), ("idql", idql)])
def test_every_flag_has_its_help_text(name, module):
    """tyro takes it from the comment on the field's line."""
    lines = "\n".join((ROOT / file).read_text() for file in (FILES[name], "benchmark/baselines/common.py"))
    for field in dataclasses.fields(module.Args):
        assert re.search(rf"^    {field.name}: .*  # .{{8,}}$", lines, re.MULTILINE), field.name


def evaluations(run_dir) -> list[dict]:
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "eval/return" in line]


@pytest.mark.parametrize("script", NAMES)
def test_run_evaluates_alike_in_place_and_in_a_process_and_once_more_from_its_file(script, tmp_path):
    file = FILES[script]
    flags = (
        "--no-compile --batch-size 16 --train-steps 4 --eval-every 2 --eval-episodes 2 --eval-candidates 3"
    )
    for workers in ("0", "1"):
        done = run_script(file, *flags.split(), "--eval-workers", workers, "--run-dir", workers, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    here, there = evaluations(tmp_path / "0"), evaluations(tmp_path / "1")
    assert here == there and [line["step"] for line in here] == [2, 4]
    assert json.loads((tmp_path / "0" / "config.json").read_text())["script"] == f"{script}.py"
    result = json.loads((tmp_path / "0" / "result.json").read_text())
    assert result["seeds"]["1"]["last"] == pytest.approx(here[-1]["eval/normalized_score"])
    again = run_script(file, "--eval-only", "0/model.pt", "--eval-workers", "0", cwd=tmp_path)
    score = re.search(r"score ([\d.-]+)", again.stdout)
    assert score and score[1] == f"{here[-1]['eval/normalized_score']:.1f}", again.stderr
