"""What the README and the scripts' headers say against the files that they speak of."""

import ast
import re
import sys
import tomllib

import pytest
from helpers import ROOT, SCRIPTS

sys.path.insert(0, str(ROOT / "benchmark"))
import report  # noqa: E402
import speed_tables  # noqa: E402

README = (ROOT / "README.md").read_text()


def test_the_readmes_reports_are_those_of_the_files():
    blocks = re.findall(r"(?s)<!-- report:(\w+) -->\n(.*?)<!-- /report -->", README)
    assert [name for name, _ in blocks] == ["local"]
    for name, shown in blocks:
        (comparison,) = report.collect(ROOT / "benchmark" / "results" / name)
        command = f"python benchmark/report.py benchmark/results/{name} --readme"
        assert shown.strip() == report.readme_block(comparison, command)


@pytest.mark.parametrize("page", speed_tables.PAGES)
def test_the_tables_of_speed_are_those_of_the_files(page):
    assert speed_tables.page(page) == (ROOT / page).read_text()


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_pep_723_header_names_every_package_that_the_script_imports(script):
    text = (ROOT / script).read_text()
    (block,) = re.findall(r"(?m)^# /// script\n((?:#.*\n)+?)# ///$", text)
    header = tomllib.loads("".join(line[2:] + "\n" for line in block.splitlines()))
    declared = {re.match(r"[\w-]+", package)[0] for package in header["dependencies"]}
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.partition(".")[0])
    imported -= set(sys.stdlib_module_names)
    assert imported - {"h5py"} <= declared  # h5py comes with minari[hdf5]
    assert any(package.startswith("minari[hdf5") for package in header["dependencies"])
    pinned = (ROOT / "requirements.txt").read_text()
    assert all(package in pinned for package in header["dependencies"])
