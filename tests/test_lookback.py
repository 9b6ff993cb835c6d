"""--memory_steps and --lookback: a memory made by hand looks back as far as it was made to."""
import functools
import os
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import SPEC, TINY, make_agent

import main
import TD3
from envs import EnvSpec, env_spec, make_env
from flags import POLICIES
from support.lookback import LastRows, lookback, memory_steps, remember
from support.lookback_figures import draw, read
from support.system import no_exit


def recall(delay):
    """A policy made by hand that names the cue by its sign at every step, its environment, and how it plays.

    Its memory has two units. One is set by the cue 1 and the other by -1, and nothing else changes them.
    """
    env = make_env(f"Cue{delay}-v0")
    agent = make_agent(TD3, env_spec(env), recurrent_actor=True, core="mingru", core_size=2, hidden_layers=0, memory_input="obs")
    with torch.no_grad():
        for parameter in agent.actor.parameters():
            parameter.zero_()
        gates, sign = agent.actor.core.gates, torch.tensor([1.0, -1.0])
        gates.weight[:2, 0], gates.bias[:2] = -200 * sign, 100         # keep, unless the cue is the unit's own
        gates.weight[2:, 0] = 1                                        # write the cue, which is then 1 or -1
        agent.actor.mlp.weights[-1][0, :2, 0] = 0.5
    return agent, functools.partial(main.evaluate, env=env, spec=agent.spec, episodes=20, seed=0)


def test_a_solved_cue_is_looked_at_where_it_was():
    """A spike at the delay: elsewhere all episodes have the same rows. With as many steps the memory works, with fewer not."""
    agent, play = recall(10)
    assert play(agent)[0] == [1.0] * 20
    influence = lookback(agent, play, 10, 5, np.random.default_rng(0))
    assert influence.shape == (20, 10)
    assert influence[:, :-1].max() < 1e-6
    assert set(influence[:, -1].round()) == {0, 2}                     # another episode has the same cue, or the other one
    returns = {K: np.mean(found) for K, found in memory_steps(agent, play, [2, 10, 11, 12, "all"])}
    assert returns[11] == returns[12] == returns["all"] == 1 and returns[2] == returns[10] == 0


def test_only_episodes_with_as_many_steps_count():
    agent, play = recall(10)
    assert lookback(agent, play, 11, 5, np.random.default_rng(0)).shape == (0,)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_algorithms_memory_is_unrolled_as_it_acted(policy):
    """With rows enough, LastRows acts like the agent itself, in several environments whose episodes begin at different times."""
    module = __import__(policy)
    agent = make_agent(module, recurrent_actor=True, recurrent_critic=True, **TINY[policy])
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6, 2, agent.spec.state_dim + agent.spec.action_dim + 1)).astype(np.float32)
    last, hidden = LastRows(agent, 6), np.zeros((2, agent.hidden_dim), np.float32)
    kept = np.zeros((2, last.hidden_dim), np.float32)
    for t, row in enumerate(rows):
        if t == 2:
            hidden[1], kept[1] = 0, 0
        action, next_hidden = agent.act(row, hidden, explore=False)
        same, kept = last.act(row, kept, explore=False)
        assert np.allclose(action, same, atol=1e-5)
        assert np.allclose(hidden[:1], remember(agent, rows[None, :, 0], np.array([t])), atol=1e-5)
        hidden = next_hidden


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_row_in_its_own_place_moves_nothing(policy):
    """Where all episodes are the same, whatever the algorithm."""
    agent = make_agent(__import__(policy), recurrent_actor=True, recurrent_critic=True, **TINY[policy])
    rows = np.random.default_rng(0).normal(size=(6, 1, agent.spec.state_dim + agent.spec.action_dim + 1)).astype(np.float32)

    def play(agent):
        for _ in range(3):
            hidden = np.zeros((1, agent.hidden_dim), np.float32)
            for row in rows:
                _, hidden = agent.act(row, hidden, explore=False)
        return [0] * 3, [6] * 3
    influence = lookback(agent, play, 4, 5, np.random.default_rng(0))
    assert influence.shape == (3, 4) and influence.max() < 1e-3


@pytest.mark.parametrize("policy, spec", [("TD3", SPEC), ("PPO", EnvSpec(3, 3, True))])
def test_influence_by_hand(policy, spec):
    """Episodes of different lengths, and two entries of an action, or three discrete actions."""
    agent = make_agent(__import__(policy), spec, recurrent_actor=True, memory_input="obs_action_reward", core_size=20)
    rng, K, lengths = np.random.default_rng(0), 3, [40, 9]
    rows = [rng.normal(0, 3, (T, 3 + spec.action_dim + 1)).astype(np.float32) for T in lengths]

    def acted(agent, history):
        hidden, actions = np.zeros((1, agent.hidden_dim), np.float32), []
        for row in history:
            action, hidden = agent.act(row[None], hidden, explore=False)
            actions.append(action[0])
        return np.array(actions)
    taken = [acted(agent, x) for x in rows]
    influence = lookback(agent, lambda agent: ([acted(agent, x).sum() for x in rows], lengths), K, 99, np.random.default_rng(0))
    spread = np.concatenate(taken).std(0)
    for e, T in enumerate(lengths):
        for k in range(1, K + 1):
            moved = []
            for t in range(K, T):
                changed = rows[e][:t + 1].copy()
                changed[t - k] = rows[1 - e][min(t - k, lengths[1 - e] - 1)]
                change = acted(agent, changed)[-1] - taken[e][t]
                moved.append(change.any() if spec.discrete else np.sqrt(np.mean((change / spread) ** 2)))
            assert influence[e, k - 1] == pytest.approx(np.mean(moved), rel=1e-3, abs=1e-6)
    assert influence.max() > 0.01


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny policy's file."""
    words = ("--policy PPO --env Cue10-v0 --max_timesteps 128 --rollout_steps 8 --batch_size 64 --recurrent --seq_len 4 "
             "--core_size 4 --hidden_size 4 --eval_episodes 1 --save_model")
    return main.run([*words.split(), "--results_dir", str(tmp_path_factory.mktemp("model"))]).path + ".last.pt"


def test_files_and_figures(model, tmp_path, capsys):
    """A row for each episode and number of steps; the numbers of steps in order, whatever order they are given in. The files lie
    in --results_dir, and nothing new beside the model."""
    before = os.listdir(os.path.dirname(model))
    main.run(["--test", "--load_model", model, "--results_dir", str(tmp_path / "own"), "--eval_episodes", "5", "--lookback", "3",
              "--memory_steps", "16", "all", "2", "1"])
    path = str(tmp_path / "own" / os.path.basename(model).removesuffix(".pt"))
    assert os.listdir(os.path.dirname(model)) == before
    (about, looked), (_, steps) = (read(f"{path}.{kind}.csv") for kind in ("lookback", "memory_steps"))
    assert about["policy"] == "PPO on Cue10-v0, full" and about["config"]["core_size"] == 4 and "results_dir" not in str(about)
    assert list(looked.lag) == np.repeat([1, 2, 3], 5).tolist()
    assert list(steps.steps) == np.repeat(["1", "2", "16", "all"], 5).tolist()
    out = capsys.readouterr().out
    assert np.isfinite(looked.influence).all() and re.findall("(memory of .*): return", out) == [
        f"memory of {words}" for words in ("the last step", "the last 2 steps", "the last 16 steps", "all steps")]

    assert draw(path.rpartition("/")[0]).keys() == {"lookback", "memory_steps"}
    with open(path + ".lookback.csv", "w") as file:
        file.write("# {")
    with pytest.raises(ValueError, match="lookback.csv is damaged"), no_exit():
        draw(path.rpartition("/")[0])


def test_copies_that_have_lost_their_runs_names_have_files_of_their_own(model, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        shutil.copy(model, tmp_path / name / "last.pt")
        words = f"--test --load_model {tmp_path}/{name}/last.pt --results_dir {tmp_path} --eval_episodes 2 --memory_steps 1"
        main.run(words.split())
    assert sorted(file.name for file in tmp_path.glob("*.csv")) == ["a.last.memory_steps.csv", "b.last.memory_steps.csv"]


@pytest.mark.parametrize("more,words", [
    (["--lookback", "11"], ["--lookback 11", "smaller number"]),
    (["--lookback", "3", "--eval_episodes", "1"], ["--eval_episodes 1"]),
    (["--memory_steps", "2", "--no-recurrent_actor"], ["need a policy with a memory"]),
    (["--memory_steps", "0"], ["--memory_steps '0'", "or all"]), (["--memory_steps", "2", "--explore"], ["drop --explore"])])
def test_what_cannot_be_measured(more, words, model, refused):
    refused(["--test", "--load_model", model, "--eval_episodes", "2", *more], words)


def test_a_folder_that_cannot_be_written_is_found_before_the_test(model, refused, monkeypatch):
    monkeypatch.setattr(main, "test", lambda *_: pytest.fail("it was tested"))
    words = ["--test", "--load_model", model, "--memory_steps", "2", "--results_dir", model + "/x"]
    refused(words, ["--results_dir", "cannot be written"])


def test_a_file_that_is_there_is_kept(model, tmp_path, refused):
    """It may be of another model of the same name. --overwrite replaces it."""
    words = ["--test", "--load_model", model, "--results_dir", str(tmp_path), "--eval_episodes", "2", "--memory_steps", "1"]
    main.run(words)
    [file] = tmp_path.iterdir()
    before = file.read_bytes()
    refused([*words, "--eval_episodes", "3"], ["--memory_steps: ", str(file), "exists", "--overwrite"])
    assert file.read_bytes() == before
    main.run([*words, "--eval_episodes", "3", "--overwrite"])
    assert file.read_bytes() != before


def test_the_file_says_where_it_was_tested(model, tmp_path):
    """A policy of the cue of 10 steps, on the cue of 30."""
    main.run(["--test", "--load_model", model, "--results_dir", str(tmp_path), "--eval_episodes", "2", "--lookback", "2", "--env",
              "Cue30-v0", "--flicker", "0.5"])
    [file] = tmp_path.iterdir()
    about, _ = read(str(file))
    assert about["policy"] == "PPO on Cue30-v0, full"
    assert {name: about["config"][name] for name in ("env", "flicker", "eval_episodes")} == \
        dict(env="Cue30-v0", flicker=0.5, eval_episodes=2)


GOOD = ('# {"config": {"policy": "PPO", "env": "Cue10-v0", "observe": "full"}}\nlag,episode,influence\n'
        '1,0,0.25\n1,1,0.5\n2,0,0.25\n2,1,1\n')


@pytest.mark.parametrize("old,new", [
    ("{", "["), ('{"config"', '{"other"'), ('"Cue10-v0"', "5"), ('"full"', "null"), ("1,1,0.5\n", ""), ("2,1,1\n", "2,1,1"),
    ("0.5", "inf"), ("0.5", ""), ("0.5", "word"), ("0.5", "1e300"), ("2,0", "x,0"), (GOOD.split("\n", 2)[2], ""), ("lag,", ""),
    ("# ", "")])
def test_a_damaged_file_is_one_line(old, new, tmp_path):
    path = tmp_path / "x.lookback.csv"
    path.write_text(GOOD)
    assert draw(str(tmp_path)).keys() == {"lookback"}
    assert old in GOOD
    path.write_text(GOOD.replace(old, new, 1))
    with pytest.raises(ValueError, match="x.lookback.csv is damaged") as error, no_exit():
        draw(str(tmp_path))
    assert "\n" not in str(error.value)
