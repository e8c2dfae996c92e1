"""The pages for readers: their links lead somewhere, their commands parse, their programs run as printed."""

import ast
import functools
import json
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
from helpers import ROOT, SCRIPTS, fork, fork_script, load_script, run_program

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "datasets/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "benchmark").glob("**/README.md")),
]
TEXT = {page: page.read_text() for page in PAGES}
HOME = Path(tempfile.gettempdir())  # of programs that are only asked for their flags
OTHERS_FLAGS = {  # of Slurm, Ray, pytest and ruff
    "--array", "--gpus", "--cpus-per-task", "--signal", "--head", "--durations", "--check",
}  # fmt: skip


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", TEXT[page])


def commands(page: Path) -> list[list[str]]:
    """The words of each command of the page's bash blocks."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [x[1:] if x[0] == "exec" else x for x in words if x]


def prose(text: str) -> str:
    return re.sub(r"(?ms)^```.*?^```|`[^`\n]*`", "", text)


def anchors(text: str) -> set[str]:
    """GitHub's names of the headings."""
    heads = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", text))
    heads = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", head).replace("`", "") for head in heads]
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(TEXT[page].replace("`](", "](").replace("[`", "["))):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or anchor and anchor not in anchors(target.read_text()):
            broken.append(link)
    assert not broken


def test_the_readme_leads_to_every_page_and_is_one_page_itself():
    readme = TEXT[ROOT / "README.md"]
    assert readme.count("\n") <= 150
    linked = {(ROOT / path).resolve() for path in re.findall(r"\]\(([^)#\s]+)", readme) if "://" not in path}
    indirectly = {ROOT / "docs/physics.md"}  # by docs/evaluation.md
    for folder in ("benchmark", "benchmark/results"):
        page = ROOT / folder / "README.md"
        indirectly |= {(page.parent / path).resolve() for path in re.findall(r"\]\(([^)#\s]+)", TEXT[page])}
    assert {*PAGES[1:]} <= linked | indirectly


def test_ci_runs_the_readmes_test_command():
    (line,) = (line for line in TEXT[ROOT / "README.md"].splitlines() if line.endswith("python -m pytest"))
    assert line in (ROOT / ".ci/run").read_text().replace("pip install --quiet", "pip install")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A finished run of dtql_gaussian.py, two steps long, with one episode."""
    path = tmp_path_factory.mktemp("run")
    steps = "--pretrain-steps", "1", "--train-steps", "1", "--batch-size", "8"
    evaluation = "--eval-episodes", "1", "--eval-candidates", "1"
    run = fork_script(SCRIPTS[0], *steps, *evaluation, "--run-dir", path / "run", cwd=path)
    assert run.returncode == 0, run.stderr
    return path / "run"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page, run_dir):
    wrong = []
    for words in commands(page):
        words = [word.replace("RUN_DIR", str(run_dir)) for word in words]
        files = [word for word in words if re.fullmatch(r"[\w./-]+\.(py|txt)", word)]
        missing = [x for x in files if x != "make_dataset.py" and not (ROOT / x).exists()]
        wrong += missing
        if words[0] != "python" or missing or words[1] == "make_dataset.py":
            assert words[0] in ("python", "pip", "diff", "export", "ruff", "git", "cd", "source"), words
        elif words[1] == "-c":
            shown = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True)
            assert shown.stdout.startswith("2 1 "), shown.stderr  # step, seed, score
        elif words[1] in SCRIPTS:
            try:
                load_script(words[1]).parse_args(words[2:])
            except (SystemExit, Exception) as error:
                wrong.append(f"{shlex.join(words)}: {error!r}")
        elif words[1:3] != ["-m", "pytest"] and words[1:3] != ["-m", "venv"]:
            wrong += [f"{shlex.join(words)}: {fault}" for fault in faults_of_program(words)]
    assert not wrong


@functools.cache
def forked_program(*words: str) -> subprocess.CompletedProcess:
    return fork(run_program, *words, cwd=ROOT, env={"HOME": str(HOME)})


def faults_of_program(words: list[str]) -> list[str]:
    """What is wrong with a command of benchmark/: short ones are run, of others the flags are looked for."""
    program, argv = (words[1:3], words[3:]) if words[1] == "-m" else (words[1:2], words[2:])
    short = "--dry-run" in argv
    done = forked_program(*program, *(argv if short else ["--help"]))
    if done.returncode:
        return [done.stderr[-300:]]
    return [] if short else [x for x in argv if x.startswith("--") and x.partition("=")[0] not in done.stdout]


@pytest.mark.parametrize(
    "page", [x for x in PAGES if x.name != "CHANGELOG.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_flag_that_a_page_names_exists(page):
    fields = {}
    for script in SCRIPTS:
        fields |= load_script(script).Args.__dataclass_fields__
    known = {f"--{name.replace('_', '-')}" for name in fields} | OTHERS_FLAGS
    known |= {f"--no-{name.replace('_', '-')}" for name, x in fields.items() if x.type is bool}
    for source in (ROOT / "benchmark").glob("**/*.py"):
        text = source.read_text()
        known |= set(re.findall(r'"(--[a-z0-9-]+)"', text))
        known |= {f"--{name.replace('_', '-')}" for name in re.findall(r"(?m)^    (\w+): ", text)}  # tyro's
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]", TEXT[page]))
    assert named - known - {"--help"} == set()


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_logged_metric_is_explained_on_the_scripts_page(script):
    module = load_script(script)
    args = module.Args(batch_size=4)
    agent = module.Agent(3, 2, args, module.resolve(args))
    batch = [torch.rand(1, 4, *dims) for dims in ((3,), (2,), (), (3,), ())]
    logged = {name for update in module.PHASES.values() for name in update(agent, batch, args)}
    logged |= {"steps_per_second", "eval/return", "eval/length", "eval/normalized_score"}
    logged |= {"eval/returns", "eval/lengths", "eval/normalized_scores", "eval/..."}
    text = (ROOT / "docs" / script).with_suffix(".md").read_text()
    table = text.partition("\n## Logged metrics\n")[2].partition("\n## ")[0]
    explained = {
        x for cell in re.findall(r"(?m)^\| (`.*?) \|", table) for x in re.findall(r"`([^`]+)`", cell)
    }
    assert explained <= logged
    assert {x for x in logged if not x.startswith("eval/")} <= explained
    assert "eval/..." in explained or "eval/normalized_score" in explained


def test_programs_on_the_pages_are_python():
    for page in PAGES:
        for block in blocks(page, "python"):
            ast.parse(block)


def write_rows_of_pendulum(path: Path, episodes: int = 2) -> None:
    """Random actions, in the layout that docs/data.md speaks of."""
    env, rows = gym.make("Pendulum-v1"), []
    for seed in range(episodes):
        (obs, _), done = env.reset(seed=seed), False
        while not done:
            action = np.float32([np.sin(len(rows))])
            next_obs, reward, terminal, timeout, _ = env.step(action)
            rows.append((obs, next_obs, action, reward, terminal, timeout))
            obs, done = next_obs, terminal or timeout
    names = "observations", "next_observations", "actions", "rewards", "terminals", "timeouts"
    with h5py.File(path, "w") as file:
        for name, column in zip(names, zip(*rows)):
            file[name] = np.array(column)


def test_own_data_becomes_a_set_that_trains_as_docs_data_prints_it(tmp_path):
    page = ROOT / "docs" / "data.md"
    with_env, without = blocks(page, "python")
    write_rows_of_pendulum(tmp_path / "my_data.hdf5")
    program = with_env.rstrip().splitlines()
    assert len(program) <= 22 and program[-2].startswith("minari.create_dataset_from_buffers(")
    (tmp_path / "make_dataset.py").write_text(with_env)
    (tmp_path / "without.py").write_text("\n".join(program[:-2]) + "\n" + without)
    for name in ("make_dataset.py", "without.py"):
        done = fork(run_program, name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    trained = [words for words in commands(page) if "mine/pendulum" in "".join(words)]
    assert len(trained) == 2
    for i, words in enumerate(trained):
        flags = ["2" if word.isdigit() and int(word) > 1000 else word for word in words[2:]]
        flags += ["--run-dir", f"run{i}"] + (
            ["--eval-episodes", "1", "--eval-candidates", "2"] if i == 0 else []
        )
        done = fork_script(words[1], *flags, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "400 transitions, 2 episodes" in done.stdout  # all rows but none too many
    result, blind = (json.loads((tmp_path / f"run{i}/result.json").read_text()) for i in (0, 1))
    assert result["metric"] == "Minari score" and result["action_high"] == blind["action_high"] == [2.0]
    assert not blind["seeds"]


@pytest.mark.parametrize("name", ["antmaze-umaze", "kitchen-partial", "pen"])
def test_scores_on_controllers_data_are_those_of_the_files(name):
    folder = ROOT / f"benchmark/results/controllers/mine_{name}_controller-v0"
    data, episodes, total = (folder / "collect.txt").read_text().strip().partition(": ")[2].split(", ")
    (seed,) = json.loads((folder / "dtql_gaussian/seed-1/result.json").read_text())["seeds"].values()
    mean = re.escape(total.removeprefix("return "))
    row = rf"\| {name}\S* \| {data}, {episodes} \| {mean} \| \d+ \| {seed['last']:.1f} \|"
    assert re.search(row, TEXT[ROOT / "docs/data.md"])
