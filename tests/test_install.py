"""pyproject.toml beside the pinned requirements files: the same packages, lower bounds that the pins meet, every module."""
import glob
import os
import tomllib

import pytest
from packaging.requirements import Requirement

import main

ROOT = os.path.dirname(os.path.abspath(main.__file__))
with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
    TABLE = tomllib.load(file)
PROJECT = TABLE["project"]


def pins(name):
    with open(os.path.join(ROOT, name)) as file:
        lines = [Requirement(line.strip()) for line in file if line.strip() and not line.startswith(("#", "-r"))]
    return {line.name: line for line in lines}


@pytest.mark.parametrize("name,bounds", [("requirements.txt", PROJECT["dependencies"]),
                                         ("requirements-dev.txt", PROJECT["optional-dependencies"]["dev"])])
def test_bounds_and_pins(name, bounds):
    bounds, pinned = {bound.name: bound for bound in map(Requirement, bounds)}, pins(name)
    assert bounds.keys() == pinned.keys()
    for package, pin in pinned.items():
        version, = pin.specifier
        assert version.operator == "==" and version.version in bounds[package].specifier
        assert bounds[package].extras == pin.extras and str(bounds[package].marker) == str(pin.marker)


def test_every_module_is_installed():
    modules = {os.path.basename(path).removesuffix(".py") for path in glob.glob(os.path.join(ROOT, "*.py"))}
    assert set(TABLE["tool"]["setuptools"]["py-modules"]) == modules
    assert TABLE["tool"]["setuptools"]["packages"] == ["support"] and not glob.glob(os.path.join(ROOT, "support", "*", "*.py"))
