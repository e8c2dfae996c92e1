"""D4RL's rule for transitions, its files and downloads, Minari, the embedded sets, the paper's settings."""

import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
import re
import threading
import warnings
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gymnasium as gym
import h5py
import minari
import mujoco
import numpy as np
import pytest
import torch
from helpers import CLOSED_PORT, ROOT, SCRIPTS, fast_flags, fork_script, load_script, train, write_d4rl
from minari.data_collector import EpisodeBuffer

TABLE_4 = list(csv.DictReader((ROOT / "benchmark/paper/table4_hyperparameters.csv").read_text().splitlines()))
D4RL_NAMES = [row["task"] for row in TABLE_4]
SIZES = {"halfcheetah": (17, 6), "hopper": (11, 3), "walker2d": (17, 6), "antmaze": (29, 8), "pen": (45, 24),
         "kitchen": (60, 9), "reacher": (10, 2)}  # fmt: skip


@pytest.fixture(params=SCRIPTS)
def script(request):
    return load_script(request.param)


@pytest.fixture(autouse=True)
def d4rl_dir(home):
    """An empty place for D4RL files; no Minari datasets but the embedded ones; no network."""
    return home / ".d4rl/datasets"


def load(script, name: str) -> tuple[np.ndarray, dict]:
    """The transitions, a row each of obs, action, reward, next_obs, terminal; and where they are from."""
    columns, source = script.load_dataset(name)
    assert [x.ndim for x in columns] == [2, 2, 1, 2, 1] and {x.dtype for x in columns} == {torch.float32}
    return np.concatenate([x.numpy().reshape(len(x), -1) for x in columns], axis=1), source


# ------------------------------------------------------------------------------------- the rule of D4RL files
def qlearning_dataset(data: dict, max_episode_steps: int) -> tuple[list[int], np.ndarray]:
    """D4RL's loop, word for word: rows kept, and (obs, action, reward, next_obs, terminal) of each."""
    kept, transitions = [], []
    episode_step = 0
    for i in range(len(data["rewards"]) - 1):
        done_bool = bool(data["terminals"][i])
        if "timeouts" in data:
            final_timestep = data["timeouts"][i]
        else:
            final_timestep = episode_step == max_episode_steps - 1
        if final_timestep:  # skip this transition
            episode_step = 0
            continue
        if done_bool or final_timestep:
            episode_step = 0
        obs, next_obs = data["observations"][i], data["observations"][i + 1]
        row = [*obs, *data["actions"][i], data["rewards"][i], *next_obs, float(done_bool)]
        kept.append(i)
        transitions.append(np.array([np.float32(x) for x in row], np.float32))
        episode_step += 1
    return kept, np.stack(transitions)


def rows(n: int, *indices: int) -> np.ndarray:
    flags = np.zeros(n, bool)
    flags[list(indices)] = True
    return flags


def d4rl_file(name: str, path, **overrides) -> dict:
    """A small file in the exact layout of this task's; every end of an episode that the real ones have."""
    family, n = name.partition("-")[0], 150
    obs_dim, action_dim = SIZES[family]
    # timeouts one after the other, together with a terminal, before the last row; the last row is terminal
    content = {"terminals": rows(n, 0, 16, 30, 31, 60, 90, n - 2, n - 1),
               "timeouts": rows(n, 9, 16, 40, 41, 42, 61, 100, n - 2)}  # fmt: skip
    if "replay" in name:
        rng = np.random.default_rng(1)
        shapes = {"observations": (n, obs_dim), "actions": (n, action_dim), "rewards": (n,)}
        content |= {key: rng.uniform(-1, 1, shape) for key, shape in shapes.items()}  # float64
    if family in ("antmaze", "pen", "kitchen"):
        content["terminals"] = content["terminals"].astype(np.float32)
        content |= {"next_observations": None, "infos/action_log_probs": None}
    if family == "antmaze":
        reward = rows(n, *range(20, 27), 50, 51, *range(141, n)).astype(np.float32)
        content |= {"rewards": reward, "infos/goal": np.zeros((n, 2))}
    if family == "kitchen":
        n = 900
        content |= {"timeouts": None, "terminals": rows(n, 5, 6, 400, n - 2, n - 1).astype(np.float32)}
    return write_d4rl(path, n, obs_dim, action_dim, **(content | overrides))


def rewarded(script, name: str, data: dict) -> dict:
    """data with the rewards that a script trains on (§4, §6), episodes counted row by row."""
    reward = data["rewards"].astype(np.float32)
    if name.startswith("antmaze"):
        return data | {"rewards": reward - 1}
    if script.__name__ != "srpo" or name.startswith(("pen", "kitchen")):
        return data
    returns, total, steps = [], 0.0, 0
    for i in range(len(reward)):
        total += float(data["rewards"][i])
        steps += 1
        if data["terminals"][i] or data["timeouts"][i]:
            returns.append(total)
            total, steps = 0.0, 0
    return data | {"rewards": reward * np.float32(1000 / (max(returns) - min(returns)))}


@pytest.mark.parametrize("name", D4RL_NAMES)
def test_transitions_are_exactly_those_of_d4rls_qlearning_dataset(script, name, d4rl_dir):
    path = d4rl_dir / script.D4RL_FILES[name].split("/")[-1]
    arrays = d4rl_file(name, path)
    assert ("timeouts" in arrays) == (not name.startswith("kitchen"))
    arrays = rewarded(script, name, arrays)
    kept, expected = qlearning_dataset(arrays, max_episode_steps=280)
    transitions, source = load(script, name)
    action_dim = SIZES[name.partition("-")[0]][1]
    assert len(transitions) == len(kept)
    np.testing.assert_allclose(transitions, expected, rtol=3e-7, atol=0)
    assert source == {
        "dataset": str(path), "dataset_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "action_low": [-1.0] * action_dim, "action_high": [1.0] * action_dim,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["hopper-medium-v2", "antmaze-umaze-v0", "kitchen-mixed-v0"])
@pytest.mark.parametrize("kind", ["columns", "bytes", "negative", "doubles"])
def test_other_types_and_shapes_of_the_same_numbers(script, name, kind, d4rl_dir):
    path = d4rl_dir / script.D4RL_FILES[name].split("/")[-1]
    arrays = d4rl_file(name, path)
    expected, _ = load(script, name)
    flags = [key for key in ("terminals", "timeouts") if key in arrays]
    change = {
        "columns": lambda key: arrays[key].reshape(-1, 1),
        "bytes": lambda key: arrays[key].astype(np.uint8) * (255 if key in flags else 1),
        "negative": lambda key: -arrays[key].astype(np.int64),
        "doubles": lambda key: arrays[key].astype(np.float64),
    }[kind]
    keys = {"columns": [*flags, "rewards"], "doubles": [*flags, "rewards", "observations", "actions"]}
    d4rl_file(name, path, **{key: change(key) for key in keys.get(kind, flags)})
    np.testing.assert_array_equal(load(script, name)[0], expected)


def test_a_file_that_is_not_the_published_one_is_told_in_a_line(d4rl_dir, home, monkeypatch, capsys):
    """benchmark/paper/d4rl_sha256.csv has a line for each published file."""
    script = load_script(SCRIPTS[0])
    monkeypatch.setattr(script, "ROOT", home)
    name, path = "hopper-medium-v2", d4rl_dir / FILE
    d4rl_file(name, path)
    digest, table = hashlib.sha256(path.read_bytes()).hexdigest(), home / "benchmark/paper/d4rl_sha256.csv"
    table.parent.mkdir(parents=True)
    for listed, differs in ((digest, 0), ("0" * 64, 1)):
        lines = ["path,bytes,sha256", f"{script.D4RL_FILES['hopper-expert-v2']},9,{'1' * 64}",
                 f"{script.D4RL_FILES[name]},{path.stat().st_size},{listed}"]  # fmt: skip
        table.write_text("\n".join(lines))
        script.load_dataset(name)
        output = capsys.readouterr().out
        assert f"sha256 {digest}{', not the file that D4RL published' * differs}\n" in output


@pytest.mark.parametrize(
    "n, terminals, dropped",
    [
        (900, [], [279, 559, 839]),  # without a terminal row every 280th goes
        (900, [100], [379, 659]),  # after a terminal row the count restarts at 1: 279 rows later
        (900, [279], [279, 559, 839]),  # terminal at the count 279: dropped, and the count restarts at 0
        (900, [278], [557, 837]),
        (900, [280], [279, 559, 839]),  # terminal at the count 0, then 1 again
        (900, [0, 1, 2, 3], [282, 562, 842]),
        (900, [100, 379, 658], [379]),  # terminal on a dropped row, then one row before the next
        (561, [560], [279, 559]),  # terminal on the last row
        (561, [], [279, 559]),
        (560, [], [279]),  # 559 is the last row, which is no transition anyway
        (560, [559], [279]),
        (280, [279], []),
        (2, [0, 1], []),
    ],
)
def test_kitchen_drops_the_row_where_d4rls_counter_reaches_279(script, n, terminals, dropped, d4rl_dir):
    name = "kitchen-mixed-v0"
    content = {
        "terminals": rows(n, *terminals),
        "rewards": np.arange(n, dtype=np.float32),
        "observations": np.zeros((n, 60), np.float32),
        "actions": np.zeros((n, 9), np.float32),
    }
    arrays = d4rl_file(name, d4rl_dir / script.D4RL_FILES[name].split("/")[-1], **content)
    kept, expected = qlearning_dataset(arrays, max_episode_steps=280)
    assert sorted({*range(n - 1)} - {*kept}) == dropped
    np.testing.assert_array_equal(load(script, name)[0], expected)


# ---------------------------------------------------------------------------- settings and facts of the paper
@pytest.mark.parametrize("name", SCRIPTS[:3])
def test_task_settings_are_table_4(name):
    script = load_script(name)
    assert set(script.TASKS) == set(D4RL_NAMES) and len(D4RL_NAMES) == 26
    columns = {"alpha": "alpha", "expectile": "expectile", "entropy_coef": "entropy_coef",
               "learning_rate": "learning_rate", "lr_decay": "lr_schedule", "batch_size": "batch_size",
               "pretrain_epochs": "pretrain_steps", "train_epochs": "train_steps",
               "eval_episodes": "eval_episodes"}  # fmt: skip
    assert {*columns, "task"} == set(TABLE_4[0])
    for row in TABLE_4:
        settings = script.settings_of(row["task"])
        assert {*columns.values()} - {*settings} == (set() if name == SCRIPTS[0] else {"entropy_coef"})
        for column, field in columns.items():
            if field not in settings:
                continue
            expected = float(row[column]) * (1000 if column.endswith("epochs") else 1)
            if field == "lr_schedule":
                expected = "cosine" if expected else "constant"
            assert settings[field] == expected, (row["task"], field)
        assert (settings["eval_every"], settings["eval_candidates"]) == (50_000, 1024)


def test_srpos_task_settings_are_its_papers():
    script = load_script("srpo.py")
    rows = list(csv.DictReader((ROOT / "benchmark/paper/srpo_table2_beta.csv").read_text().splitlines()))
    assert {row["task"]: float(row["beta"]) for row in rows} == script.TASKS and len(rows) == 15
    for name, beta in script.TASKS.items():
        maze = name.startswith("antmaze")
        assert script.settings_of(name) == {
            "beta": beta, "expectile": 0.9 if maze else 0.7, "policy_layers": 4 if maze else 2,
            "q_gradient": "normalized" if maze else "raw", "batch_size": 256, "behavior_batch_size": 2048,
            "critic_steps": 1_500_000, "behavior_steps": 2_000_000, "policy_steps": 1_000_000,
            "eval_every": 50_000, "eval_episodes": 20,
        }  # fmt: skip
    assert script.settings_of("antmaze-large-play-v0") == script.settings_of("antmaze-large-play-v2")


@pytest.mark.parametrize("name, scale", [("hopper-medium-v2", 1000 / 7), ("pen-human-v1", 1.0)])
def test_srpos_reward_scale_is_of_whole_episodes(name, scale, d4rl_dir):
    """Returns 3, -4 and 2; rows after the last end, here of return 90, are of no whole episode."""
    script, n = load_script("srpo.py"), 12
    reward = np.array([1, 1, 1, -4, 0.5, 0.5, 0.5, 0.5, 30, 30, 30, 0], np.float32)
    path, sizes = d4rl_dir / script.D4RL_FILES[name].split("/")[-1], SIZES[name.partition("-")[0]]
    write_d4rl(path, n, *sizes, rewards=reward, terminals=rows(n, 2), timeouts=rows(n, 3, 7))
    column = sum(sizes)
    expected = scale * reward[[0, 1, 2, 4, 5, 6, 8, 9, 10]]
    np.testing.assert_allclose(load(script, name)[0][:, column], expected, rtol=1e-6)


@pytest.mark.parametrize("name", SCRIPTS)
def test_defaults_that_no_task_changes(name):
    script = load_script(name)
    defaults = {field.name: field.default for field in dataclasses.fields(script.Args)}
    shared = {
        "env_id": "local/reacher/wander-v0", "seed": 1, "num_seeds": 1, "device": "auto", "discount": 0.99,
        "tau": 0.005, "sigma_data": 0.5, "sigma_min": 0.002, "sigma_max": 80, "track": False,
        "tf32": False, "compile": False,
    }  # fmt: skip
    srpo = {"learning_rate": 3e-4, "omega": "sigma_squared", "baseline": True}
    own = {"srpo.py": srpo, "dtql_gaussian.py": {}}.get(name, {"sigma_gen": 2.5, "precondition": False})
    assert {key: defaults[key] for key in shared | own} == shared | own
    unset = {key for key, default in defaults.items() if default is None}
    assert unset - {"run_dir", "resume", "eval_only"} == script.settings_of("hopper-medium-v2").keys()


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_flag_has_a_help_text(name):
    """tyro takes it from the comment, which must stand on the field's line."""
    lines = (ROOT / name).read_text().splitlines()
    for field in dataclasses.fields(load_script(name).Args):
        line = next(line for line in lines if line.startswith(f"    {field.name}: "))
        assert re.search(r"  # .{8,}", line), field.name


def test_d4rl_names_have_d4rls_files_and_reference_scores(script):
    files = {
        "halfcheetah-medium-v2": "gym_mujoco_v2/halfcheetah_medium-v2.hdf5",
        "hopper-medium-replay-v2": "gym_mujoco_v2/hopper_medium_replay-v2.hdf5",
        "walker2d-medium-expert-v2": "gym_mujoco_v2/walker2d_medium_expert-v2.hdf5",
        "pen-human-v1": "hand_dapg_v1/pen-human-v1.hdf5",
        "pen-cloned-v1": "hand_dapg_v1/pen-cloned-v1.hdf5",
        "kitchen-complete-v0": "kitchen/mini_kitchen_microwave_kettle_light_slider-v0.hdf5",
        "kitchen-partial-v0": "kitchen/kitchen_microwave_kettle_light_slider-v0.hdf5",
        "kitchen-mixed-v0": "kitchen/kitchen_microwave_kettle_bottomburner_light-v0.hdf5",
    }
    mazes = {"umaze": "u-maze False False", "umaze-diverse": "u-maze True True",
             "medium-play": "big-maze True False", "medium-diverse": "big-maze True True",
             "large-play": "hardest-maze True False", "large-diverse": "hardest-maze True True"}  # fmt: skip
    for kind, words in mazes.items():
        size, multistart, multigoal = words.split()
        name = f"Ant_maze_{size}_noisy_multistart_{multistart}_multigoal_{multigoal}_sparse"
        files[f"antmaze-{kind}-v0"] = f"ant_maze_new/{name}.hdf5"
        files[f"antmaze-{kind}-v2"] = f"ant_maze_v2/{name}_fixed.hdf5"
    assert {name: script.D4RL_FILES[name] for name in files} == files
    assert set(D4RL_NAMES) <= set(script.D4RL_FILES)
    assert len(set(script.D4RL_FILES.values())) == len(script.D4RL_FILES)
    assert script.D4RL_RETURNS == {
        "halfcheetah": (-280.178953, 12135.0), "hopper": (-20.272305, 3234.3), "walker2d": (1.629008, 4592.3),
        "antmaze": (0, 1), "kitchen": (0, 4), "pen": (96.262799, 3076.8331017826877),
        "hammer": (-274.856578, 12794.134825156867), "door": (-56.512833, 2880.5693087298737),
        "relocate": (-6.425911, 4233.877797728884),
    }  # fmt: skip
    task = script.load_task("walker2d-medium-expert-v2")
    assert task.make_env().spec.id == "Walker2d-v4"  # not -v5
    assert (task.low, task.high, task.metric, task.sizes) == (1.629008, 4592.3, "score", (17, 6))


def test_d4rl_names_are_evaluated_with_d4rls_masses(script):
    masses = {}
    for env_id in ("hopper-medium-v2", "local/hopper/medium-v0"):
        task = script.load_task(env_id)
        masses[task.physics] = task.make_env().unwrapped.model.body_mass.sum()
    expected = {"D4RL's, of MuJoCo 2.1.0": 15.265, f"MuJoCo {mujoco.__version__}": 15.820}
    assert masses == pytest.approx(expected, abs=5e-4)


# ------------------------------------------------------------------------------------------------ downloading
FILE = "hopper_medium-v2.hdf5"


def send(body: bytes, status=200, length=None, chunked=False):
    """What a mirror answers to a GET: body, announced to have `length` bytes, or in chunks that never end."""

    def answer(handler) -> None:
        handler.send_response(status)
        if chunked:
            handler.send_header("Transfer-Encoding", "chunked")
            body_sent = b"%x\r\n%s\r\n" % (len(body), body) + b"ffff\r\n" + body[:10]
        else:
            handler.send_header("Content-Length", str(length or len(body)))
            body_sent = body
        handler.end_headers()
        handler.wfile.write(body_sent)

    return answer


@pytest.fixture
def mirror():
    """mirror({path: answer}) starts a server and returns its URL and the list of paths asked of it."""
    with contextlib.ExitStack() as stack:

        def start(answers: dict) -> tuple[str, list[str]]:
            asked = []

            class Handler(BaseHTTPRequestHandler):
                protocol_version = "HTTP/1.1"  # what chunks need

                def do_GET(self):
                    asked.append(self.path)
                    self.close_connection = True
                    answers.get(self.path, send(b"no such file", status=404))(self)

                def log_message(self, *args):
                    pass

            server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}", asked

        yield start


@pytest.fixture
def served(tmp_path) -> bytes:
    write_d4rl(tmp_path / "served.hdf5")
    return (tmp_path / "served.hdf5").read_bytes()


def bad_answer(kind: str, served: bytes):
    return {
        "cut": send(served[:-100], length=len(served)),
        "cut between chunks": send(served[:-100], chunked=True),
        "html page": send(b"<html>Down for maintenance</html>"),
        "not found": send(b"no such file", status=404),
        "server error": send(b"oops", status=500),
        "not http": lambda handler: handler.wfile.write(b"220 welcome to my mail server\r\n"),
    }[kind]


BAD_URLS = {"closed port": CLOSED_PORT, "no scheme": "127.0.0.1/d4rl"}
BAD_MIRRORS = [*BAD_URLS, "cut", "cut between chunks", "html page", "not found",
               "server error", "not http"]  # fmt: skip


@pytest.mark.parametrize("kind", BAD_MIRRORS)
def test_a_bad_mirror_is_passed_over_and_the_file_kept(kind, mirror, served, d4rl_dir, monkeypatch):
    script, path = load_script(SCRIPTS[0]), f"/gym_mujoco_v2/{FILE}"
    bad, asked_bad = BAD_URLS.get(kind), [path]
    if kind not in BAD_URLS:
        bad, asked_bad = mirror(dict.fromkeys((path, f"/{FILE}"), bad_answer(kind, served)))
    good, asked = mirror({path: send(served)})
    monkeypatch.setenv("D4RL_MIRRORS", f"{bad} {good}")
    transitions, source = load(script, "hopper-medium-v2")
    assert path in asked_bad and asked == [path]
    assert [file.name for file in d4rl_dir.iterdir()] == [FILE]
    assert (d4rl_dir / FILE).read_bytes() == served
    assert source["dataset_sha256"] == hashlib.sha256(served).hexdigest()
    again, _ = load(script, "hopper-medium-v2")  # from the disk
    assert asked == [path]
    np.testing.assert_array_equal(again, transitions)


@pytest.mark.parametrize("kind", BAD_MIRRORS)
def test_without_a_good_mirror_nothing_is_left(kind, mirror, served, d4rl_dir, monkeypatch, capsys):
    script, path = load_script(SCRIPTS[0]), f"/gym_mujoco_v2/{FILE}"
    url = BAD_URLS.get(kind)
    if kind not in BAD_URLS:
        url, _ = mirror(dict.fromkeys((path, f"/{FILE}"), bad_answer(kind, served)))
    monkeypatch.setenv("D4RL_MIRRORS", url)
    with pytest.raises(script.InputError) as error:
        script.load_dataset("hopper-medium-v2")
    assert f"no {d4rl_dir / FILE}, and no mirror has it; put it there" in str(error.value)
    assert "--env-id local/reacher/wander-v0" in str(error.value)
    assert f"{url}{path}: " in (output := capsys.readouterr().out) and f"{url}/{FILE}: " in output  # and why
    assert not d4rl_dir.exists() or not list(d4rl_dir.iterdir())


def test_two_that_download_at_once_both_get_the_whole_file(mirror, served, d4rl_dir, monkeypatch):
    """The first has read a part when the second begins, and ends before the second does."""
    begun, ended, calls = threading.Event(), threading.Event(), itertools.count()

    def answer(handler) -> None:
        first = next(calls) == 0
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(served)))
        handler.end_headers()
        handler.wfile.write(served[: len(served) // 2])
        handler.wfile.flush()
        begun.set()
        second_begun.wait(60) if first else (second_begun.set(), ended.wait(60))
        handler.wfile.write(served[len(served) // 2 :])

    second_begun, script = threading.Event(), load_script(SCRIPTS[0])
    url, asked = mirror({f"/gym_mujoco_v2/{FILE}": answer})
    monkeypatch.setenv("D4RL_MIRRORS", url)
    digests = []
    download = lambda: digests.append(script.load_dataset("hopper-medium-v2")[1]["dataset_sha256"])
    threads = [threading.Thread(target=download) for _ in range(2)]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    threads[0].join()
    ended.set()
    threads[1].join()
    assert len(asked) == 2 and digests == [hashlib.sha256(served).hexdigest()] * 2
    assert [path.name for path in d4rl_dir.iterdir()] == [FILE]


def test_a_file_that_is_open_elsewhere_for_writing_is_read(d4rl_dir, home):
    write_d4rl(d4rl_dir / FILE)
    with h5py.File(d4rl_dir / FILE, "r+"):  # holds a lock
        done = fork_script(SCRIPTS[0], "--env-id", "hopper-medium-v2", *fast_flags(SCRIPTS[0]), cwd=home)
    assert done.returncode == 0, done.stderr


def test_a_mirror_may_hold_the_file_without_its_folder(mirror, served, d4rl_dir, monkeypatch):
    url, asked = mirror({f"/some/{FILE}": send(served)})
    monkeypatch.setenv("D4RL_MIRRORS", f"{url}/some")
    load_script(SCRIPTS[0]).load_dataset("hopper-medium-v2")
    assert asked == [f"/some/gym_mujoco_v2/{FILE}", f"/some/{FILE}"]
    assert (d4rl_dir / FILE).read_bytes() == served


# ----------------------------------------------------------------------------------------------------- Minari
class GoalEnv(gym.Env):
    """Two parts, each a counter of its own, in a Dict observation whose keys may stand in any order."""

    def __init__(self, sort_keys: bool, low: float, high: float, reward: float, render_mode=None):
        part = {"state": gym.spaces.Box(-1e4, 1e4, (2,), np.float64),
                "goal": gym.spaces.Box(-1e4, 1e4, (1,), np.float64)}  # fmt: skip
        self.observation_space = gym.spaces.Dict(part if sort_keys else OrderedDict(part))
        self.action_space, self.reward = gym.spaces.Box(low, high, (1,), np.float32), reward

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return goal_env_obs(0, 0), {}

    def step(self, action):
        self.action = action
        return goal_env_obs(0, 1), self.reward, False, False, {}


def goal_env_obs(episode: int, t: int) -> dict:
    return {"state": np.array([100.0 * episode + t, 0.5]), "goal": np.array([-1000.0 - 100 * episode - t])}


@pytest.fixture
def make_minari(home):
    """make_minari(id, lengths) writes a dataset; its episode 1 is truncated, the others are terminated."""
    registered = []

    def make(
        dataset_id: str,
        lengths: list[int],
        sort_keys=True,
        low=-1.0,
        high=3.0,
        env_reward=0.0,
        actions=None,
        rewards=None,
        text=False,
        missing=None,
        max_episode_steps=5,
        minari_version=None,
        **scores,
    ) -> None:
        env_id = f"GoalEnv{len(registered)}-v0"
        kwargs = {"sort_keys": sort_keys, "low": low, "high": high, "reward": env_reward}
        entry = f"{__name__}:GoalEnv"
        gym.register(env_id, entry_point=entry, kwargs=kwargs, max_episode_steps=max_episode_steps)
        registered.append(env_id)
        buffers, spaces = [], {"env": env_id, "eval_env": env_id}
        if text:
            space = gym.spaces.Dict({"mission": gym.spaces.Text(9)})
            spaces = {"observation_space": space, "action_space": gym.spaces.Box(low, high, (1,), np.float32)}
        for i, length in enumerate(lengths):
            obs = [goal_env_obs(i, t) for t in range(length + (i != missing))]
            last = rows(length, -1)
            states = {key: np.stack([o[key] for o in obs]) for key in ("state", "goal")}
            buffers.append(EpisodeBuffer(
                id=i, observations={"mission": ["go"] * len(obs)} if text else states,
                actions=np.full((length, 1), i / 10, np.float32) if actions is None else actions,
                rewards=[float(i)] * length if rewards is None else rewards,
                terminations=list(last & (i != 1)), truncations=list(last & (i == 1)),
            ))  # fmt: skip
        with warnings.catch_warnings(action="ignore"):  # no author, no description, ...
            minari.create_dataset_from_buffers(dataset_id, buffers, **spaces, **scores)
        if minari_version:
            file = home / f".minari/datasets/{dataset_id}/data/metadata.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"minari_version": minari_version}))

    yield make
    for env_id in registered:
        del gym.registry[env_id]


@pytest.mark.parametrize("sort_keys", [True, False])
def test_minari_episodes_become_transitions_in_the_live_envs_layout(script, sort_keys, make_minari):
    make_minari("mine/goal/test-v0", lengths=[3, 2, 1], sort_keys=sort_keys)
    (obs, action, reward, next_obs, terminal), source = script.load_dataset("mine/goal/test-v0")
    task = script.load_task("mine/goal/test-v0")
    env = task.make_env()
    (first_obs, _), (second_obs, *_) = env.reset(), env.step(np.zeros(1))
    assert task.sizes == (3, 1) and (source["action_low"], source["action_high"]) == ([-1], [3])
    np.testing.assert_array_equal(obs[0], script.flatten(first_obs))
    np.testing.assert_array_equal(next_obs[0], script.flatten(second_obs))
    time = np.argmin(np.abs(script.flatten(first_obs)))  # the column that counts the steps
    assert obs[:, time].tolist() == [0, 1, 2, 100, 101, 200]
    assert next_obs[:, time].tolist() == [1, 2, 3, 101, 102, 201]  # never the next episode's first
    assert terminal.tolist() == [0, 0, 1, 0, 0, 1]  # the truncated episode has no terminal state
    assert reward.tolist() == [0, 0, 0, 1, 1, 2]
    # the box [-1, 3] becomes [-1, 1], for the data and for the environment
    np.testing.assert_allclose(action[:, 0], (np.array([0, 0, 0, 0.1, 0.1, 0.2]) - 1) / 2, atol=1e-7)
    for told, done in ((-1, -1), (0, 1), (0.5, 2), (1, 3)):
        env.step(np.array([told], np.float32))
        assert env.unwrapped.action.tolist() == [done]


def test_actions_in_the_unit_box_stay_as_they_are_to_the_bit(script, make_minari, d4rl_dir):
    tiny = np.float32([1e-8, -3e-7, 0.1, 0.7, 1, -1])
    make_minari("mine/goal/unit-v0", lengths=[6], low=-1, high=1, actions=tiny[:, None])
    assert script.load_dataset("mine/goal/unit-v0")[0][1][:, 0].tolist() == tiny.tolist()
    arrays = write_d4rl(
        d4rl_dir / FILE, n=7, actions=np.stack([np.resize(tiny, 7)] * 3, axis=1), timeouts=rows(7, 6)
    )
    assert script.load_dataset("hopper-medium-v2")[0][1].tolist() == arrays["actions"][:-1].tolist()


def test_an_episode_without_its_last_observation_costs_that_transition_alone(script, make_minari):
    make_minari("mine/goal/short-v0", lengths=[3, 3, 3], missing=1)
    obs, action, reward, next_obs, terminal = script.load_dataset("mine/goal/short-v0")[0]
    assert terminal.tolist() == [0, 0, 1, 0, 0, 0, 0, 1]
    assert next_obs.amax(dim=1).tolist() == [1, 2, 3, 101, 102, 201, 202, 203]


@pytest.mark.parametrize("name", ["pendulum-v0", "hopper-mine-v0"])
def test_a_minari_id_without_a_namespace(name, make_minari):
    """It is its owner's data and environment, also where D4RL has a robot of that name."""
    make_minari(name, lengths=[4])
    flags = *fast_flags(SCRIPTS[0]), "--eval-episodes", 1
    result = train(SCRIPTS[0], *flags, "--env-id", name, "--run-dir", "run")
    assert result["dataset"].endswith(f"{name}/data/main_data.hdf5") and "D4RL" not in result["physics"]


@pytest.mark.parametrize(
    "changes, words",
    [  # sound data that this program cannot use
        ({"low": -np.inf, "high": np.inf}, "no finite bounds"),
        ({"low": -3.4e38, "high": 3.4e38}, "no finite bounds"),
        ({"rewards": np.ones((3, 2))}, "(4, 2)"),  # with the row of the last observation
        ({"text": True}, "Cannot cast"),
        ({"minari_version": "0.9.0"}, "Minari 0.9.0"),
    ],
)
def test_minari_data_that_cannot_be_used_says_why(changes, words, make_minari):
    make_minari("mine/goal/odd-v0", lengths=[3], **changes)
    flags = "--env-id", "mine/goal/odd-v0", *fast_flags(SCRIPTS[0]), "--run-dir", "run"
    with pytest.raises(load_script(SCRIPTS[0]).InputError) as error:
        train(SCRIPTS[0], *flags)
    assert words in str(error.value) and "remove" not in str(error.value) and not Path("run").exists()


@pytest.mark.parametrize("changes", [{"rewards": np.ones((3, 1))}, {"low": -1e5, "high": 1e5}])
def test_odd_minari_data_that_can_be_used(changes, make_minari):
    make_minari("mine/goal/odd-v0", lengths=[3], **changes)
    assert [len(x) for x in load_script(SCRIPTS[0]).load_dataset("mine/goal/odd-v0")[0]] == [3] * 5


def test_an_environment_without_a_time_limit_is_refused(make_minari):
    make_minari("mine/goal/endless-v0", lengths=[3], max_episode_steps=None)
    with pytest.raises(load_script(SCRIPTS[0]).InputError, match="no time limit; --eval-episodes 0"):
        train(SCRIPTS[0], *fast_flags(SCRIPTS[0]), "--env-id", "mine/goal/endless-v0", "--eval-episodes", 1)


@pytest.mark.parametrize("value, score", [(np.nan, None), (np.inf, None), (2.0, 10.0)])
def test_returns_that_are_no_numbers_are_null(value, score, make_minari):
    """And equal reference scores are none."""
    make_minari("mine/goal/odd-v0", lengths=[3], env_reward=value, ref_min_score=5.0, ref_max_score=5.0)
    train(
        SCRIPTS[0],
        *fast_flags(SCRIPTS[0]),
        "--env-id",
        "mine/goal/odd-v0",
        "--eval-episodes",
        1,
        "--run-dir",
        "run",
    )

    def refuse(constant: str):
        raise AssertionError(f"{constant} is no JSON")

    result = json.loads(Path("run/result.json").read_text(), parse_constant=refuse)
    assert result["seeds"]["1"] == {"last": score, "best": score} and result["metric"] == "return"
    for line in Path("run/metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


# Minari's mirrored map, in which it evaluates what was recorded in U_MAZE
MIRRORED = [[1, 1, 1, 1, 1], [1, 0, 0, "r", 1], [1, 0, 1, 1, 1], [1, 0, 0, "g", 1], [1, 1, 1, 1, 1]]
MINARI_SUITES = {  # as Minari's D4RL/{antmaze,pen,kitchen} were recorded; and what is evaluated differently
    "D4RL/antmaze/umaze-v9": ("AntMaze_UMaze-v5", {"continuing_task": True}, {"maze_map": MIRRORED}),
    "D4RL/pen/human-v9": ("AdroitHandPen-v1", {"max_episode_steps": 200}, {}),
    "D4RL/kitchen/mixed-v9": ("FrankaKitchen-v1", {"tasks_to_complete": ["microwave", "kettle"]}, {}),
}


def stack(observations: list):
    """A list of observations, each an array or a dict of such, as one with a leading time dimension."""
    if isinstance(observations[0], dict):
        return {key: stack([obs[key] for obs in observations]) for key in observations[0]}
    return np.stack(observations)


@pytest.fixture
def minari_suite(request):
    """The id of a small recording of one episode, and the environment that it is of."""
    import gymnasium_robotics

    gym.register_envs(gymnasium_robotics)
    env_id, options, changes = MINARI_SUITES[request.param]
    with warnings.catch_warnings(action="ignore"):
        env, eval_env = gym.make(env_id, **options), gym.make(env_id, **options | changes)
        env.action_space.seed(0)
        observations, actions, rewards = [env.reset(seed=0)[0]], [], []
        for _ in range(5):
            actions.append(env.action_space.sample())
            obs, reward, *_ = env.step(actions[-1])
            observations.append(obs)
            rewards.append(float(reward))
        buffer = EpisodeBuffer(
            observations=stack(observations), actions=np.stack(actions), rewards=rewards,
            terminations=[False] * 5, truncations=[False] * 4 + [True],
        )  # fmt: skip
        minari.create_dataset_from_buffers(
            request.param, [buffer], env=env, eval_env=eval_env, ref_min_score=0.0, ref_max_score=1.0
        )
    return request.param, env


@pytest.mark.parametrize("minari_suite", MINARI_SUITES, indirect=True)
def test_minaris_own_suites_are_their_own_task(minari_suite):
    """Never D4RL's of a like name: its data, its environment, its scores, which say so."""
    script, (dataset_id, recorded) = load_script(SCRIPTS[0]), minari_suite
    (obs, action, *_), _ = script.load_dataset(dataset_id)
    task = script.load_task(dataset_id)
    assert task.sizes == (obs.shape[1], action.shape[1]) and len(obs) == 5
    assert task.metric == "Minari score" and script.load_task("pen-human-v1").metric == "score"
    env = task.make_env()
    live = script.flatten(env.reset(seed=0)[0])
    expected = gym.spaces.flatten(recorded.observation_space, recorded.reset(seed=0)[0])
    np.testing.assert_array_equal(live, expected.astype(np.float32))
    np.testing.assert_allclose(obs[0], live, atol=1e-6)  # recorded from the same seed
    assert env.spec.max_episode_steps == recorded.spec.max_episode_steps


@pytest.mark.parametrize("minari_suite", ["D4RL/antmaze/umaze-v9"], indirect=True)
def test_minaris_antmaze_is_evaluated_in_the_datas_maze_and_ends_at_the_goal(minari_suite):
    script, (dataset_id, recorded) = load_script(SCRIPTS[0]), minari_suite
    env = script.load_task(dataset_id).make_env()
    maze = env.unwrapped
    assert maze.maze.maze_map == recorded.unwrapped.maze.maze_map != MIRRORED
    env.reset(seed=1)
    maze.goal = maze.ant_env.data.qpos[:2].copy()  # where the ant stands
    _, reward, terminated, _, _ = env.step(env.action_space.sample() * 0)
    assert (reward, terminated) == (1, True)


def test_a_minari_dataset_without_an_environment_is_not_evaluated(script, make_minari, home):
    make_minari("mine/goal/lost-v0", lengths=[3])
    file = home / ".minari/datasets/mine/goal/lost-v0/data/metadata.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in content.items() if k not in ("env_spec", "eval_env_spec")}))
    assert len(script.load_dataset("mine/goal/lost-v0")[0][0]) == 3
    with pytest.raises(script.InputError, match="--eval-episodes 0"):
        script.load_task("mine/goal/lost-v0")


def test_without_reference_scores_the_raw_return_is_the_result(script, make_minari):
    make_minari("mine/goal/raw-v0", lengths=[1])
    make_minari("mine/goal/scored-v0", lengths=[1], ref_min_score=10.0, ref_max_score=30.0)
    raw, scored = (script.load_task(f"mine/goal/{name}-v0") for name in ("raw", "scored"))
    assert (raw.metric, raw.low, raw.high) == ("return", 0, 100)  # of which a score is the return itself
    assert (scored.metric, scored.low, scored.high) == ("Minari score", 10, 30)


@pytest.mark.parametrize(
    "name, env_id, count, episodes, mean_return, score",
    [
        ("reacher/wander", "Reacher-v5", 50_000, 1000, -117, 11.4),
        ("hopper/medium", "Hopper-v4", 100_176, 198, 1647, 51.2),
        ("hopper/medium-replay", "Hopper-v4", 64_035, 260, 614, 19.5),
        ("walker2d/medium", "Walker2d-v4", 100_094, 167, 2049, 44.6),
        ("halfcheetah/medium", "HalfCheetah-v4", 100_000, 100, 3996, 34.4),
    ],
)
def test_embedded_dataset(name, env_id, count, episodes, mean_return, score, capsys):
    script = load_script(SCRIPTS[0])
    dataset_id = f"local/{name}-v0"
    transitions, _ = load(script, dataset_id)
    task, output = script.load_task(dataset_id), capsys.readouterr().out
    assert len(transitions) == count and np.isfinite(transitions).all()
    obs_dim, action_dim = SIZES[name.partition("/")[0]]
    assert task.sizes == (obs_dim, action_dim) and transitions.shape[1] == 2 * obs_dim + action_dim + 2
    (told,) = re.findall(rf"{count} transitions, {episodes} episodes, mean return (-?[\d.]+), ", output)
    mean = transitions[:, obs_dim + action_dim].sum(dtype=np.float64) / episodes
    assert abs(mean - float(told)) <= 0.06
    assert abs(float(told) - mean_return) <= 0.5
    assert abs(100 * (float(told) - task.low) / (task.high - task.low) - score) <= 0.06
    assert task.make_env().spec.id == env_id
