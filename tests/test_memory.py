"""A task that only memory can solve: a cue is shown once, and has to be acted on some steps later.

Recurrent agents of every algorithm solve it; feed-forward ones stay at chance, because what they see when they choose
does not depend on the cue. The same agents fall back to chance when their memory is wiped before the choice.
"""
import gymnasium as gym
import numpy as np
import pytest
from conftest import record

import main
from envs import Cue
from support import data

DELAY = 5                                                              # steps between the cue and the choice; short, to be quick
for name, discrete in [("Cue-v0", False), ("CueDiscrete-v0", True)]:
    gym.register(name, Cue, kwargs=dict(delay=DELAY, discrete=discrete))

OFF_POLICY = ["--start_timesteps", "1000", "--batch_size", "64", "--replay_ratio", "32", "--lr", "5e-3", "--tau", "0.02",
              "--expl_noise", "0.5", "--eval_freq", "200"]
SOFT = [flag for flag in OFF_POLICY if flag not in ("--expl_noise", "0.5")]
ON_POLICY = ["--rollout_steps", "64", "--num_envs", "8", "--lr", "3e-3", "--epochs", "10", "--eval_freq", "512"]
A2C = ["--rollout_steps", "12", "--num_envs", "8", "--max_timesteps", "20e3", "--lr", "3e-3", "--eval_freq", "512"]
REINFORCE = ["--batch_size", "192", "--lr", "1e-2", "--eval_freq", "512", "--max_timesteps", "30e3"]
R2D1 = ["--start_timesteps", "300", "--expl_timesteps", "1500", "--batch_size", "64", "--replay_ratio", "32", "--lr", "5e-3",
        "--target_freq", "50", "--n_steps", "1", "--eval_freq", "200"]
BCQ = ["--dataset", "cue/random-v0", "--batch_size", "64", "--target_candidates", "4", "--act_candidates", "20", "--lr", "5e-3",
       "--tau", "0.02", "--eval_freq", "100"]
CASES = [("TD3", "Cue-v0", OFF_POLICY), ("DDPG", "Cue-v0", OFF_POLICY), ("SAC", "Cue-v0", SOFT), ("PPO", "Cue-v0", ON_POLICY),
         ("PPO", "CueDiscrete-v0", ON_POLICY), ("A2C", "Cue-v0", A2C), ("A2C", "CueDiscrete-v0", A2C),
         ("REINFORCE", "Cue-v0", REINFORCE), ("REINFORCE", "CueDiscrete-v0", REINFORCE), ("R2D1", "CueDiscrete-v0", R2D1),
         ("BCQ", "Cue-v0", BCQ)]


class Solved(Exception):
    """Raised by an evaluation in which every episode succeeded."""


def train(policy, env_id, flags, tmp_path, monkeypatch):
    """Train by main.py's own loop until an evaluation is perfect; returns agent, environment and its spec."""
    run, cfg, algorithm, _ = main.parse(["--policy", policy, "--env", env_id, "--hidden_size", "32", "--eval_episodes", "16",
                                      "--results_dir", str(tmp_path), *flags])
    main.seed_everything(run)
    env = main.make_env(env_id)
    spec = main.env_spec(env)
    agent = algorithm(spec, cfg, run.seed)
    data_set = []
    if agent.offline:                                                  # episodes of a policy that is right by chance
        monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
        record(env_id, cfg.dataset, 2400)
        data_set = [data.load(cfg.dataset, env, run.seed)]
        assert 0.3 < np.mean([episode.reward.sum() for episode in data_set[0]]) < 0.5
    envs = None if agent.offline else main.make_vector_env(env_id, cfg.num_envs)
    evaluate = main.evaluate

    def stop_when_solved(*args):
        returns, lengths = evaluate(*args)
        if min(returns) == 1:
            raise Solved
        return returns, lengths
    with monkeypatch.context() as patch:
        patch.setattr(main, "evaluate", stop_when_solved)
        try:
            main.train(run, cfg, algorithm, agent, envs, env, spec, *data_set)
        except Solved:
            pass
    return agent, env, spec


def choices(agent, env, spec, wipe=False, episodes=40):
    """Success and the action at the moment of choice, by a loop of its own. `wipe`: forget everything just before it."""
    successes, actions = [], []
    for episode in range(episodes):
        state, _ = env.reset(seed=1000 + episode)
        action, reward, hidden = np.zeros((1, spec.action_dim)), 0.0, np.zeros((1, agent.hidden_dim), np.float32)
        for t in range(DELAY + 1):
            if wipe and t == DELAY:
                action, reward, hidden = 0 * action, 0.0, 0 * hidden
            row = np.concatenate([state, action[0], [reward]])[None].astype(np.float32)
            action, hidden = agent.act(row, hidden, explore=False)
            state, reward, terminated, _, _ = env.step(action[0])
        assert terminated
        successes.append(reward)
        actions.append(action[0])
    return np.mean(successes), np.array(actions)


@pytest.mark.parametrize("policy,env_id,flags", [*CASES, ("TD3", "Cue-v0", [*OFF_POLICY, "--core", "gru"]),
                                                 ("TD3", "Cue-v0", [*OFF_POLICY, "--core", "mingru"])])
def test_recurrent_agent_recalls_the_cue(policy, env_id, flags, tmp_path, monkeypatch):
    flags = ["--recurrent", "--core_size", "16", "--max_timesteps", "12e3", *flags]
    agent, env, spec = train(policy, env_id, flags, tmp_path, monkeypatch)
    with agent.as_evaluated():
        returns, lengths = main.evaluate(agent, env, spec, 200, seed=123)
        assert set(lengths) == {DELAY + 1}
        assert np.mean(returns) >= 0.95

        # It is memory that does it
        success, actions = choices(agent, env, spec)
        assert success >= 0.95 and len(np.unique(actions > 0.5 * spec.discrete, axis=0)) == 2
        success, actions = choices(agent, env, spec, wipe=True)
        assert success <= 0.65 and np.all(actions == actions[0])


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("delay", [10, 30, 100])
def test_the_task(delay, discrete):
    """The cue is seen once; the last of delay + 1 actions alone decides; half of the cues are of each kind."""
    env = gym.make(f"Cue{'Discrete' if discrete else ''}{delay}-v0", disable_env_checker=False)
    cues = []
    for episode in range(40):
        first, _ = env.reset(seed=episode)
        cue = first[0]
        cues.append(cue)
        right, wrong = ((cue + 1) // 2, (1 - cue) // 2) if discrete else (np.array([0.5 * cue]), np.array([-0.5 * cue]))
        for t in range(delay + 1):
            good = episode % 2 == 0
            action = (right if good else wrong) if t == delay else (wrong if good else right)      # earlier ones mislead
            observation, reward, terminated, truncated, _ = env.step(int(action) if discrete else action.astype(np.float32))
            assert not truncated and terminated == (t == delay)
            assert reward == float(t == delay and good)
            assert observation[0] == 0 and observation[1] == (t + 1 == delay)
    if not discrete:                                                   # the largest actions name no cue
        env.reset(seed=0)
        rewards = [env.step(np.array([0.9 * env.unwrapped.cue], np.float32))[1] for _ in range(delay + 1)]
        assert not any(rewards)
    assert first[1] == 0 and 10 < np.sum(np.array(cues) == 1) < 30


@pytest.mark.parametrize("policy,env_id,flags", CASES)
def test_feed_forward_agent_stays_at_chance(policy, env_id, flags, tmp_path, monkeypatch):
    steps = "300" if policy == "BCQ" else "1500"                       # its steps are updates
    agent, env, spec = train(policy, env_id, [*flags, "--max_timesteps", steps], tmp_path, monkeypatch)
    returns, _ = main.evaluate(agent, env, spec, 200, seed=123)
    assert np.mean(returns) <= 0.6

    # Provably: whatever it learns, it chooses the same for either cue
    _, actions = choices(agent, env, spec)
    assert np.all(actions == actions[0])
