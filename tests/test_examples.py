"""examples/: each runs to its end, as its docstring says, and leaves nothing behind."""
import glob
import os
import subprocess
import sys

import pytest

import main

ROOT = os.path.dirname(os.path.abspath(main.__file__))
PRINTS = {"use_a_policy": "three environments, 100 steps: rewards", "own_environment": "it sees [0.", "corridor": "",
          "tune_with_optuna": "best return"}


def test_all_are_tested_and_short():
    paths = glob.glob(os.path.join(ROOT, "examples", "*.py"))
    assert {os.path.basename(path).removesuffix(".py") for path in paths} == set(PRINTS)
    assert all(len(open(path).readlines()) <= 40 for path in paths)


@pytest.mark.parametrize("name", PRINTS)
def test_it_runs(name, tmp_path):
    if name == "tune_with_optuna":
        pytest.importorskip("optuna")
    script = os.path.join(ROOT, "examples", name + ".py")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert PRINTS[name] in done.stdout and "Warning" not in done.stderr
    assert os.listdir(tmp_path) == []
