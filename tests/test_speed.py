"""What benchmark/speed times is the scripts' own computation. Nothing here is timed."""

import json
import sys

import pytest
import torch
from helpers import ROOT

from benchmark.speed import speed, tables

CPU = torch.device("cpu")
STEPS = [(name, phase) for name, phases in speed.SCRIPTS.items() for phase in phases]


@pytest.mark.parametrize("name, phase", STEPS)
def test_every_timed_step_trains(name, phase, monkeypatch):
    """What is timed moves weights: a step that is skipped, or one without its optimisers, is no step."""
    agents, make_agent = [], speed.make_agent

    def remembered(*args, **settings):
        agents.append(made := make_agent(*args, **settings))
        return made

    monkeypatch.setattr(speed, "make_agent", remembered)
    step, _ = speed.training_step(speed.load(ROOT / name), phase, CPU, totals := {}, batch_size=32)
    vector = lambda: torch.nn.utils.parameters_to_vector(agents[0][0].parameters())
    before = vector()
    step()
    assert totals and all(torch.isfinite(x).all() for x in totals.values())
    assert torch.isfinite(vector()).all() and not torch.equal(vector(), before)


def test_the_products_of_a_step_are_those_of_its_layers():
    """A product of a hidden layer at batch n costs 2 * n * 256^2 operations; the other layers are narrow."""
    step, batch = speed.training_step(speed.load(ROOT / "dtql_gaussian.py"), "pretrain", CPU)
    _, flops = speed.bare_products(step, CPU)
    q, v, denoiser = 2 * 2, 2, 3  # hidden-to-hidden layers
    # forward, and twice that backward, to weights and inputs; V of the next state forward alone
    hidden = 2 * batch * 256 * 256 * (3 * (q + v + denoiser) + v)
    assert hidden < flops < 1.35 * hidden


def test_the_width_is_that_of_the_networks():
    script = speed.load(ROOT / "dtql_gaussian.py")
    agent, _ = speed.make_agent(script, CPU, width=64)
    assert [x.shape[1:] for x in agent.v.weights] == [(17, 64), (64, 64), (64, 64), (64, 1)]
    assert script.HIDDEN == (256, 256, 256)


def test_two_checkouts_are_timed_in_turn_and_the_ratio_is_ours_over_theirs(monkeypatch):
    """By a clock that the functions themselves move on: b takes twice as long as a."""
    now, calls = [0.0], []

    def function(name: str, seconds: float):
        def run() -> None:
            calls.append(name)
            now[0] += seconds

        return run

    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    row = speed.in_turn(function("a", 0.25), function("b", 0.5), CPU, rounds=4)
    assert (row["ms"], row["ms_other"], row["ratio"]) == (250, 500, 0.5)
    assert "".join(calls[-16:]) == "aabbbbaa" * 2  # who is first changes


def test_another_checkouts_script_is_not_ours(tmp_path):
    text = (ROOT / "dtql_gaussian.py").read_text()
    (tmp_path / "dtql_gaussian.py").write_text(
        text.replace("HIDDEN, TIME_DIM = (256", "HIDDEN, TIME_DIM = (128")
    )
    ours, theirs = (speed.load(x / "dtql_gaussian.py") for x in (ROOT, tmp_path))
    assert (ours.HIDDEN[0], theirs.HIDDEN[0]) == (256, 128)


def test_rows_of_other_runs_stay_in_the_output(tmp_path, monkeypatch):
    row = lambda script, ms: {"script": script, "phase": "train", "ms": ms}
    monkeypatch.setattr(speed, "measure", lambda part, device, options: iter([row(options.scripts[0], 2.0)]))
    output = tmp_path / "x.json"
    for script in ("srpo.py", "kl_distill.py", "srpo.py"):
        argv = ["speed", "--parts", "train", "--scripts", script, "--output", str(output)]
        monkeypatch.setattr(sys, "argv", argv)
        speed.main()
    assert [x["script"] for x in json.loads(output.read_text())["train"]] == ["kl_distill.py", "srpo.py"]


def test_a_table_is_of_all_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    for name in "ab":
        row = {"device": name, "script": "srpo.py", "states": 2, "candidates": 1, "ms": 3.0}
        (tmp_path / f"{name}.json").write_text(json.dumps({"act": [row]}))
    rows = tables.rows_of("act")
    assert [row["device"] for row in rows] == ["a", "b"] and rows[0]["ms_per_state"] == 1.5


def test_the_sizes_in_the_files_are_those_that_the_program_varies():
    rows = tables.rows_of("scaling")
    for name, values in speed.SCALING.items():
        assert tuple(row[name] for row in rows if row["varied"] == name) == values
