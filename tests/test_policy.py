"""A trained policy used from Python (policy.py), and main.run: the same numbers as the command line, to the bit."""
import json
import os
import shutil

import gymnasium as gym
import numpy as np
import pytest
import test_envs  # noqa: F401  (registers toy environments)
from test_main import RECURRENT, data_sets, evaluations, tiny  # noqa: F401

import main
from policy import load

POLICIES = os.path.join(os.path.dirname(os.path.abspath(main.__file__)), "results", "policies")
REWARD = ["--memory_input", "obs_action_reward"]
MODELS = {
    "PPO": tiny("PPO", "Pendulum-v1", *RECURRENT, "--observe", "velocities", "--max_episode_steps", "50"),
    "R2D1": tiny("R2D1", "CartPole-v1", *RECURRENT, *REWARD, "--observe", "positions"),
    "TD3": tiny("TD3", "Pendulum-v1"),
    "BCQ": tiny("BCQ", "Pendulum-v1", *RECURRENT, *REWARD),
    "PPO on discrete numbers": tiny("PPO", "FrozenLake-v1", *RECURRENT, *REWARD)}


@pytest.fixture(scope="module")
def models(tmp_path_factory, data_sets):  # noqa: F811
    """The model file of each of MODELS."""
    folder = tmp_path_factory.mktemp("policy")
    short = ["--max_timesteps", "120", "--eval_freq", "120", "--eval_episodes", "1", "--save_model"]
    return {name: main.run([*argv, *short, "--results_dir", str(folder / name)]).path + ".last.pt"
            for name, argv in MODELS.items()}


def play(policy, env, episodes, seed):
    """Returns and lengths of some episodes, by a loop as anyone would write it."""
    returns, lengths = [], []
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed if episode == 0 else None)
        policy.reset()
        total, length, reward, done = 0.0, 0, None, False
        while not done:
            observation, reward, terminated, truncated, _ = env.step(policy(observation, reward))
            total, length, done = total + float(reward), length + 1, terminated or truncated
        returns.append(total)
        lengths.append(length)
    return returns, lengths


def the_test(model, *argv):
    """What the command line's test finds."""
    return main.run(["--test", "--load_model", model, *argv])


# ---------------------------------------------------------------------- policy.py

@pytest.mark.parametrize("name", MODELS)
def test_a_loop_by_hand_is_the_test_to_the_bit(name, models):
    policy = load(models[name])
    assert play(policy, policy.make_env(), 3, 10_000) == the_test(models[name], "--eval_episodes", "3")


def test_a_committed_policy_to_the_bit(tmp_path):
    folder = shutil.copytree(os.path.join(POLICIES, "hopper-positions-ppo-recurrent"), tmp_path / "hopper")
    policy = load(folder)                                              # a path of pathlib's
    policy.run.max_episode_steps = 40
    returns, lengths = play(policy, policy.make_env(), 1, 10_000)
    assert (returns, lengths) == the_test(str(folder), "--eval_episodes", "1", "--max_episode_steps", "40") and lengths == [40]


def test_the_environment_is_gymnasiums_own(models):
    for name, steps in (("PPO", 50), ("TD3", 200)):
        env = load(models[name]).make_env()
        assert env.observation_space == gym.make("Pendulum-v1").observation_space and env.spec.max_episode_steps == steps
        assert "envs." not in str(env)


@pytest.mark.parametrize("name", MODELS)
def test_several_environments_at_once_are_one_at_a_time(name, models):
    """Episodes begin at different steps. The actions are the same, but for the rounding of a larger product."""
    N, rng = 3, np.random.default_rng(0)
    several, single = load(models[name]), [load(models[name]) for _ in range(N)]
    several.space.seed(0)
    for t in range(20):
        observations = np.array([several.space.sample() for _ in range(N)])
        rewards, begins = rng.normal(size=N), rng.random(N) < 0.2
        if t:
            several.reset(begins)
        for policy in np.array(single)[begins]:
            policy.reset()
        actions = several(observations, rewards)
        alone = [policy(*pair) for policy, *pair in zip(single, observations, rewards)]
        assert actions.shape == np.shape(alone) and actions.dtype == np.array(alone).dtype
        np.testing.assert_allclose(actions, alone, atol=1e-5)


def test_a_memory_that_begins_is_empty(models):
    """After a reset, of all or of some, nothing of the past is left; without one it is."""
    policy, observations = load(models["PPO"]), np.eye(3, dtype=np.float32)[:2]
    first = policy(observations)
    assert not np.array_equal(policy(observations), first)
    policy.reset(np.array([True, False]))
    assert [*(policy(observations) == first).ravel()] == [True, False]
    policy.reset()
    assert np.array_equal(policy(observations), first)
    policy.reset()
    assert policy(observations[0]).shape == (1,)                       # one environment, after two


def test_observations_of_several_parts():
    from policy import parts
    space = gym.spaces.Tuple([gym.spaces.Discrete(3), gym.spaces.Box(0, 1, (2,))])
    assert parts(space, (1, np.zeros(2))) is None and parts(space, 3) is None and parts(space, None) is None
    assert [(a, list(b)) for a, b in parts(space, (np.array([1, 2]), np.eye(2)))] == [(1, [1, 0]), (2, [0, 1])]


def test_noise_is_that_of_the_training(tmp_path):
    """Every entry is dropped: the policy is as blind as it was."""
    model = main.run([*tiny("TD3"), "--sensor_dropout", "1", "--save_model", "--results_dir", str(tmp_path)]).path + ".last.pt"
    policy = load(model)
    assert policy(np.ones(3, np.float32)) == policy(np.zeros(3, np.float32))


@pytest.mark.parametrize("name,calls,says", [
    ("R2D1", [(np.zeros(4),), (np.zeros(4),)], "its memory reads the reward of the step before; call policy(observation"),
    ("R2D1", [(np.zeros(4), [1, 2])], "the reward must be 1 finite numbers"),
    ("R2D1", [(np.zeros(4), np.nan)], "the reward must be 1 finite numbers"),
    ("TD3", [(np.zeros(2),)], "the observation has the shape (2,), and its space has (3,)"),
    ("TD3", [(np.full(3, np.nan),)], "the observation is [nan nan nan], which is not finite"),
    ("TD3", [(np.zeros((2, 3)),), (np.zeros(3),)], "there are 1 observations, and there were 2 before; call policy.reset()"),
    ("PPO on discrete numbers", [(16,)], "the observation is 16, which is not in Discrete(16)")])
def test_what_cannot_be_acted_on(name, calls, says, models):
    policy = load(models[name])
    for call in calls[:-1]:
        policy(*call)
    with pytest.raises(ValueError) as error:
        policy(*calls[-1])
    assert says in str(error.value) and "\n" not in str(error.value)


def test_resets_that_say_nothing(models):
    policy = load(models["TD3"])
    policy.reset(np.array([True]))                                     # before the first observation: all begin
    policy(np.zeros((2, 3)))
    for which in ([0, 1], [True], True, np.ones((2, 1), bool)):
        with pytest.raises(ValueError, match=r"takes a boolean array of the shape \(2,\)"):
            policy.reset(which)


def test_models_that_cannot_be_loaded(tmp_path, models, refused, capsys):
    """The command line's own line, and nothing printed."""
    (tmp_path / "damaged.pt").write_bytes(open(models["TD3"], "rb").read()[:-100])
    for path, argv in ((tmp_path / "none.pt", {}), (tmp_path / "damaged.pt", {}), (tmp_path, {}),
                       (models["TD3"], dict(env="CartPole-v1")), (models["TD3"], dict(env="Pendulun-v1")),
                       (models["TD3"], dict(device="tpu"))):
        line = refused(["--test", "--load_model", str(path), *(f"--{name}={value}" for name, value in argv.items())])
        with pytest.raises(ValueError) as error:
            load(path, **argv)
        assert f"error: {error.value}\n" == line and capsys.readouterr() == ("", "")


def test_a_module_is_named_by_the_user(tmp_path):
    model = main.run([*tiny("TD3", "test_envs:TestLimited-v0"), "--save_model", "--results_dir", str(tmp_path)]).path + ".last.pt"
    with pytest.raises(ValueError, match="would import the module test_envs and so run its code; if you trust it, add --env"):
        load(model)
    assert load(model, env="test_envs:TestLimited-v0").make_env().reset(seed=0)


# ---------------------------------------------------------------------- main.run

def test_what_a_training_returns(tmp_path, capsys):
    argv = [*tiny("TD3", "Pendulum-v1", "--save_model"), "--results_dir", str(tmp_path)]
    found = main.run(argv)
    rows = [list(map(float, row)) for row in evaluations(found.path)]
    assert found.steps == [0, 100, 200, 240] and all(type(step) is int for step in found.steps)
    assert found.returns == [pytest.approx(np.mean([row[2] for row in rows if row[0] == step])) for step in found.steps]
    assert (found.best, found.last) == (max(found.returns), found.returns[-1])
    assert main.run([*argv, "--resume"]) == found                      # it has finished

    returns, lengths = main.run(["--test", "--load_model", found.path + ".last.pt", "--eval_episodes", "3"])
    assert len(returns) == 3 and lengths == [200] * 3
    assert f"return {np.mean(returns):.1f} +- {np.std(returns):.1f} over 3 episodes" in capsys.readouterr().out
    assert main.main(argv + ["--overwrite"]) is None
    with open(main.run([*argv, "--seed", 3, "--env_kwargs", "g=9.0"]).path + ".json") as file:        # 3 is no text
        command = json.load(file)["command"]
    assert command == " ".join(["python main.py", *argv, "--seed 3 --env_kwargs g=9.0"])


@pytest.mark.parametrize("argv", ["--policy TD4", "--lr x", "--seeed 1", "--env Pendulun-v1", "--policy PPO --memory_size 5",
                                  "--test", "--policy R2D1 --env Pendulum-v1"])
def test_bad_input_is_a_value_error(argv, refused, capsys):
    """With the command line's own line."""
    line = refused(argv.split())
    with pytest.raises(ValueError) as error:
        main.run(argv.split())
    assert f"error: {error.value}\n" == line and capsys.readouterr().err == ""


def test_results_that_are_there_already(tmp_path, capsys):
    """They are found after the networks have been made."""
    argv = [*tiny("TD3"), "--results_dir", str(tmp_path)]
    main.run(argv)
    capsys.readouterr()
    with pytest.raises(ValueError, match="exists; add --resume"):
        main.run(argv)
    assert capsys.readouterr().err == ""


def test_runs_that_fail(tmp_path, monkeypatch, capsys):
    """Divergence, a full disk, an interrupt: exceptions, and exit codes of the command line."""
    argv = [*tiny("TD3"), "--results_dir", str(tmp_path), "--overwrite"]

    def ends(exception, code, says):
        with pytest.raises(exception, match=says):
            main.run(argv)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main.main(argv)
        assert stop.value.code == code and says in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(main, "largest", lambda state: np.nan)
        ends(main.Failed, 1, "a smaller --lr may help")
    with monkeypatch.context() as patch:
        patch.setattr(main.Results, "finish", lambda *args: False)
        ends(main.Failed, 1, "could not be written; make room")

    def interrupt(*args, **options):
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(main, "loop", interrupt)
        with pytest.raises(KeyboardInterrupt):
            main.run(argv)
        with pytest.raises(SystemExit) as stop:
            main.main(argv)
        assert stop.value.code == 130
