"""--export: a folder gives back the policy to the bit, says what it returned, and nothing that is not one is read."""
import glob
import hashlib
import json
import os
import sys

import numpy as np
import pytest
import torch
from test_main import RECURRENT, RUNS, all_flags, data_sets, evaluations, name_of, run, tiny  # noqa: F401

import main
import plot
from flags import run_name
from support import models
from support import results as output

FILES = ["README.md", "config.json", "model.safetensors"]


@pytest.fixture
def tested(monkeypatch, capsys):
    """A function that runs a test and returns its episodes' returns and lengths, and what it printed."""
    pytest.importorskip("safetensors")
    evaluate, episodes = main.evaluate, []

    def noted(*args):
        episodes.append(evaluate(*args))
        return episodes[-1]
    monkeypatch.setattr(main, "evaluate", noted)

    def tested(model, *argv):
        capsys.readouterr()
        main.main(["--test", "--load_model", model, *argv])
        out, err = capsys.readouterr()
        assert err == ""
        return episodes[-1], out
    return tested


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of a recurrent TD3 on the pendulum's positions, and the file that it came from."""
    pytest.importorskip("safetensors")
    results = tmp_path_factory.mktemp("export")
    path = run(results / "runs", tiny("TD3", "Pendulum-v1", "--save_model", "--observe", "positions", *RECURRENT)) + ".last.pt"
    main.main(["--test", "--load_model", path, "--export", str(results / "hub" / "model")])
    return str(results / "hub" / "model"), path


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the folder, to be damaged."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in FILES:
        (copy / name).write_bytes(open(os.path.join(folder[0], name), "rb").read())
    return copy


PRIVATE = {"results_dir", "load_model", "device", "buffer_on_device"}   # so that it opens on a machine without a GPU


@pytest.mark.parametrize("policy,env_id", RUNS)
def test_a_folder_is_the_file_to_the_bit(policy, env_id, tmp_path, tested):
    argv = tiny(policy, env_id, *RECURRENT, "--obs_noise", "0.1")
    path = run(tmp_path / "runs", [*argv, "--save_model"]) + ".last.pt"
    model = str(tmp_path / "model")
    episodes, out = tested(path)
    assert tested(path, "--export", model) == (episodes, f"{out}{model} written\n")
    assert sorted(os.listdir(model)) == FILES
    assert tested(model) == (episodes, out)

    one, other = torch.load(path, weights_only=True), models.load_model(model)
    assert one["step"] == other["step"] and one["agent"].keys() == other["agent"].keys()
    assert {k: v for k, v in one["config"].items() if k not in PRIVATE} == other["config"]
    for name, weights in one["agent"].items():
        if isinstance(weights, dict):
            assert weights.keys() == other["agent"][name].keys()
            assert all(torch.equal(tensor, other["agent"][name][key]) for key, tensor in weights.items())
        else:
            assert type(weights) is float and weights == other["agent"][name]

    # Training can go on from it, under the same name as from a file, and it can be exported again
    again = run(tmp_path / "on", [*argv, "--load_model", model + os.sep])
    assert [float(row[2]) for row in evaluations(again)[:2]] == pytest.approx(episodes[0], abs=6e-4)
    assert "_load_model=model_" in again
    tested(model, "--export", str(tmp_path / "again"))
    assert all((tmp_path / "again" / name).read_bytes() == (tmp_path / "model" / name).read_bytes() for name in FILES)


def test_what_the_config_says(folder):
    with open(os.path.join(folder[0], "config.json")) as file:
        text = file.read()
    saved, checkpoint = json.loads(text), torch.load(folder[1], weights_only=True)
    assert set(saved["config"]) == {f[0] for f in all_flags("TD3")} - PRIVATE
    assert saved["config"]["observe"] == "positions" and saved["step"] == checkpoint["step"] == 240
    assert os.path.dirname(folder[1]) not in text                      # a folder to be given away does not say where it was made
    assert {"torch", "numpy", "gymnasium", "python"} <= set(saved["versions"]) and saved["commit"] == output.commit()


def test_what_the_card_says(folder, tested, tmp_path):
    (returns, lengths), out = tested(folder[1], "--eval_episodes", "3", "--flicker", "0.25", "--max_episode_steps", "150",
                                     "--export", str(tmp_path / "model"))
    text = (tmp_path / "model" / "README.md").read_text()
    result = f"{np.mean(returns):.2f} +/- {np.std(returns):.2f}"
    _, front, body = text.split("---\n", 2)
    for line in ("library_name: pytorch", "- \"reinforcement-learning\"", "- \"TD3\"", "- \"Pendulum-v1\"", "- \"lstm\"",
                 "    - type: mean_reward", f"      value: \"{result}\"", "      type: \"Pendulum-v1\""):
        assert line in front.splitlines(), line
    for words in ("# TD3 on Pendulum-v1", "LSTM in actor and critic", "positions only, flicker 0.25", "step 240", result,
                  "| episodes | 3 |", "| mean length | 150 |\n| truncated after (--max_episode_steps) | 150 |",
                  "python main.py --test --load_model"):
        assert words in body, words
    yaml = pytest.importorskip("yaml")
    data = yaml.safe_load(front)
    entry, = data["model-index"][0]["results"]
    assert data["tags"][:4] == ["reinforcement-learning", "deep-reinforcement-learning", "TD3", "Pendulum-v1"]
    assert entry["task"]["type"] == "reinforcement-learning" and entry["dataset"]["name"] == "Pendulum-v1"
    assert entry["metrics"] == [dict(type="mean_reward", name="mean_reward", value=result, verified=False)]


# ---------------------------------------------------------------------- bad input

@pytest.mark.parametrize("test", [["--test"], []])
def test_folders_that_are_damaged(test, copy, refused):
    weights, config = (copy / "model.safetensors").read_bytes(), (copy / "config.json").read_text()

    def no(*says):
        refused([*test, "--load_model", str(copy)], ["--load_model", f"'{copy}'", *says])
    flipped = bytearray(weights)
    flipped[-5] ^= 1                                                   # a bit of a weight
    for damaged in (bytes(flipped), weights[:-1], weights + b"\0", b""):
        (copy / "model.safetensors").write_bytes(damaged)
        no("is damaged", "model.safetensors", "export it again")
    os.remove(copy / "model.safetensors")
    no("has no model.safetensors", "export it again")
    (copy / "model.safetensors").write_bytes(weights)
    for damaged in (config[:-2], "", "[1]", "null", "{}", '{"architectures": ["Llama"]}', "\x00", "[" * 100_000):
        (copy / "config.json").write_text(damaged)
        no("is not a model of this project", "--export")
    (copy / "config.json").write_bytes(b"\xff\xfe")
    no("is not a model of this project")
    os.remove(copy / "config.json")
    no("no model file", "config.json", "--export")


@pytest.mark.parametrize("change", [dict(config=[1]), dict(step="3"), dict(step=True), dict(agent=[1]), dict(agent={"x": "y"}),
                                    dict(agent={"actor": {"x": 1}}), dict(agent=None)])
def test_folders_with_wrong_contents(change, copy, refused):
    saved = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**saved, **change}))
    refused(["--test", "--load_model", str(copy)], ["is not a model of this project", "--export"])


def test_a_bit_of_the_config(copy):
    """Anywhere in it: the folder is refused, or the bit is in white space and all is the same."""
    path, expected, found = copy / "config.json", models.load_model(str(copy)), 0
    text = path.read_bytes()
    for at in range(len(text)):
        damaged = bytearray(text)
        damaged[at] ^= 1 << at % 7
        path.write_bytes(damaged)
        try:
            model = models.load_model(str(copy))
            assert {**model, "agent": 0} == {**expected, "agent": 0}, (at, chr(damaged[at]))
        except ValueError as error:
            assert "is damaged" in str(error) or "is not a model" in str(error)
            found += 1
    assert found > 0.9 * len(text.replace(b" ", b""))


def sign(folder, **change):
    """Change a folder's config, and make its checksum that of the weights alone, as it was in older ones."""
    saved = json.loads((folder / "config.json").read_text()) | change
    saved["sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "config.json").write_text(json.dumps(saved))


def test_older_folders_still_load(copy, tested):
    """Those that are in this repository, and one whose checksum is that of its weights alone."""
    expected = tested(str(copy))
    sign(copy)
    assert tested(str(copy)) == expected
    folders = glob.glob(os.path.join(os.path.dirname(os.path.abspath(main.__file__)), "results", "policies", "*", ""))
    assert len(folders) >= 3 and all(models.load_model(folder)["step"] > 0 for folder in folders)


@pytest.mark.parametrize("change,says", [
    (dict(agent={"actor": 1}), ["is damaged"]),
    (dict(config={}), ["unknown policy 'None'"]),
    (dict(config={"policy": "PPO", "env": "Pendulum-v1"}), ["another architecture"])])
def test_folders_with_other_contents(change, says, copy, refused):
    sign(copy, **change)
    refused(["--test", "--load_model", str(copy)], says)


def test_weights_of_another_project(copy, refused):
    """Whole, and with the right checksum."""
    from safetensors.torch import save
    for weights, says in ((save({"weight": torch.zeros(2)}), "is damaged"), (b"text", "is damaged"),
                          (save({"actor.weight": torch.zeros(2)}), "another architecture")):
        (copy / "model.safetensors").write_bytes(weights)
        sign(copy)
        refused(["--test", "--load_model", str(copy)], [says])


def test_what_cannot_be_asked_for(folder, refused, tmp_path, monkeypatch, capsys):
    test = ["--test", "--load_model", folder[1]]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    refused([*tiny("TD3"), "--export", "x"], ["--export passes on a saved policy", "--test --load_model"])
    refused([*test, "--explore", "--export", str(tmp_path / "x")], ["--export", "--explore adds noise"])
    refused([*test, "--export", str(tmp_path / "file")], ["--export", "is a file"])
    refused([*test, "--export", str(tmp_path / "file" / "x")], ["--export", "cannot be written"])
    refused([*test, "--export", str(tmp_path / "full")], ["--export", "is not empty", "--overwrite"])
    main.main([*test, "--overwrite", "--export", str(tmp_path / "full")])
    assert sorted(os.listdir(tmp_path / "full")) == [*FILES, "notes"]
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    refused([*test, "--export", str(tmp_path / "x")], ["--export: it needs a package; pip install safetensors"])
    refused(["--test", "--load_model", folder[0]], ["--load_model: it needs a package; pip install safetensors"])


def test_a_folder_that_cannot_be_written(folder, tmp_path, capsys, monkeypatch):
    """A full disk: the return has been printed, and what is there is no model yet."""
    def full(path, payload):
        if path.endswith("config.json"):
            raise OSError(28, "No space left on device")
    monkeypatch.setattr(models, "write_file", full)
    with pytest.raises(SystemExit) as stop:
        main.main(["--test", "--load_model", folder[1], "--export", str(tmp_path / "x")])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out.startswith("return ")
    assert err == f"error: --export: '{tmp_path / 'x'}' could not be written: No space left on device\n"


def test_names_and_figures_know_nothing_of_it():
    assert "export" in plot.BOOKKEEPING
    run_, cfg, algorithm, _ = main.parse([])
    run_.export = "x"
    assert run_name(run_, cfg, algorithm) == name_of([])
