"""The four scripts are short, and siblings: line for line the same, but for what the algorithm changes."""

import ast
import difflib
import re

import pytest
from helpers import ROOT, SCRIPTS

FIRST = SCRIPTS[0]
IN_ALL = ["imports", "flags and errors", "dataset", "environment and evaluation", "main"]
ALGORITHM = ["arguments", "networks", "EDM", "agent and updates", "settings of the paper, per task"]
SAME = {  # what stands in sections of the algorithm and is still the same
    "dtql_implicit.py": ["mish", "MLP", "Denoiser", "QNetworks", "sample_sigma", "denoising_loss", "minimize",
                         "frozen", "pretrain_update", "adjust_reward"],
    "srpo.py": ["mish", "MLP", "sample_sigma", "denoising_loss", "minimize", "frozen"],
}  # fmt: skip
SAME["kl_distill.py"] = SAME["dtql_implicit.py"]

MOST_LINES = {"dtql_gaussian.py": 732, "dtql_implicit.py": 739, "kl_distill.py": 765, "srpo.py": 771}


def sections(script: str) -> dict[str, str]:
    """By the names in the rulers; before the first one `docstring` (with PEP 723's header) and `imports`."""
    text = (ROOT / script).read_text()
    head, *parts = re.split(r"(?m)^# -{20,} (.+)\n", text)
    docstring, imports = re.split(r"(?m)^(?=import contextlib$)", head)
    return {"docstring": docstring, "imports": imports} | dict(zip(parts[::2], parts[1::2]))


def definitions(script: str) -> dict[str, ast.stmt]:
    """Its functions and classes, by name."""
    return {node.name: node for node in ast.parse((ROOT / script).read_text()).body if hasattr(node, "name")}


def source(script: str, name: str) -> str:
    return ast.get_source_segment((ROOT / script).read_text(), definitions(script)[name])


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_short(script):
    lines = (ROOT / script).read_text().splitlines()
    assert len(lines) <= MOST_LINES[script]
    assert [line for line in lines if len(line) > 110] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_algorithm_comes_first_and_functions_are_short(script):
    assert definitions(script)["denoising_loss"].end_lineno <= 250
    nodes = [x for x in ast.walk(ast.parse((ROOT / script).read_text())) if isinstance(x, ast.FunctionDef)]
    lengths = {node.name: node.end_lineno - node.lineno + 1 for node in nodes}
    assert {name: length for name, length in lengths.items() if length > 60} == {}


@pytest.mark.parametrize("script", SCRIPTS[1:])
def test_what_is_common_is_equal_to_the_byte(script):
    first, mine = sections(FIRST), sections(script)
    assert list(first) == list(mine)
    assert set(first) == {"docstring", *IN_ALL, *ALGORITHM}
    for name in IN_ALL:
        assert mine[name] == first[name], f"section {name!r} of {script} is not that of {FIRST}"
    for name in SAME[script]:
        assert source(script, name) == source(FIRST, name)


@pytest.mark.parametrize("name", ["ImplicitPolicy", "act"])
def test_the_implicit_policy_is_one_and_the_same(name):
    assert source("dtql_implicit.py", name) == source("kl_distill.py", name)


@pytest.mark.parametrize(
    "script, least", [("dtql_implicit.py", 0.85), ("kl_distill.py", 0.80), ("srpo.py", 0.65)]
)
def test_scripts_share_most_lines(script, least):
    a, b = ((ROOT / name).read_text().splitlines() for name in (FIRST, script))
    blocks = difflib.SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()
    assert 2 * sum(block.size for block in blocks) / (len(a) + len(b)) >= least


@pytest.mark.parametrize("script", SCRIPTS[1:])
def test_what_differs_is_the_algorithm(script):
    first, mine = sections(FIRST), sections(script)
    differing = {}
    for name in first:
        diff = difflib.ndiff(first[name].splitlines(), mine[name].splitlines())
        differing[name] = sum(line[:2] in ("- ", "+ ") for line in diff)
    assert sum(differing[name] for name in ALGORITHM) >= 0.75 * sum(differing.values()), differing


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_tells_its_own_name(script):
    """In the docstring's commands, and in no other script's."""
    assert re.findall(r"python (\w+\.py)", sections(script)["docstring"]) == [script, script]
