"""What is known about environments: the task in words, what its score counts, and published results beside ours."""
import re

# A pattern of environments' ids; their task in words; what their score counts; its least and its most, or None
TASKS = [(r"HopperBulletEnv-v0", r"Hop on\none leg", "return", 0, None),
         (r"Walker2DBulletEnv-v0", r"Walk on\ntwo legs", "return", 0, None),
         (r"HalfCheetahBulletEnv-v0", r"Run as half\na cheetah", "return", None, None),
         (r"AntBulletEnv-v0", r"Walk on\nfour legs", "return", None, None),
         (r"Cue(\d+)-v0", r"Recall a cue\nseen \1 steps ago", "share of right choices", 0, 1),
         (r"CueDiscrete(\d+)-v0", r"Recall a cue\nseen \1 steps ago,\ndiscrete choice", "share of right choices", 0, 1),
         (r"CartPole-v1", r"Balance a pole\non a cart", "steps upright", 0, 500),
         (r"Pendulum-v1", r"Swing up\na pendulum", "return (0 is best)", None, 0),
         (r"(.*)", r"\1", "return", None, None)]
FULL = "fully observed"
# A pattern of environments' ids, a score that stands out, a word for it. Gymnasium calls a mean of 475 solved
MARKS = [(r"Cue(?:Discrete)?\d+-v0", 0.5, "chance"), (r"CartPole-v1", 475, "solved")]
# {(file, algorithm, has it a memory?): mean return}. Most had other budgets, so they are landmarks: docs/results.md
PUBLISHED = {(f"HopperBulletEnv-v0_{seen}", policy, memory): value for seen, memory, them in (
    ("full", False, {"TD3": 2429, "DDPG": 1201, "SAC": 2422, "PPO": 1567, "A2C": 1627}),
    ("positions", False, {"TD3": 490}), ("positions", True, {"TD3": 2234})) for policy, value in them.items()} | {
    (f"{env}BulletEnv-v0_{seen}", "PPO", True): value for env, them in (
        ("Hopper", (1592, 438)), ("Walker2D", (651, 423)), ("HalfCheetah", (1460, 1072)), ("Ant", (2103, 690)))
    for seen, value in zip(("positions", "velocities"), them)}
SOURCES = ("A diamond \u25c7 is a published mean: Stable-Baselines3 (fully observed; 1M steps, PPO and "
           "A2C 2M); Luo et al. 2024 (positions or velocities only; 1.5M steps): TD3 of Ni et al. 2022, and PPO with a GRU.")


def task(env, seen=""):
    """An environment's task in words, what its score counts, the least and the most that it can be."""
    pattern, words, *others = next(entry for entry in TASKS if re.fullmatch(entry[0], env))
    return re.sub(pattern, words, env, count=1) + seen, *others


def what_is_seen(observe):
    """What an agent sees of the observation (--observe), in words."""
    return {"full": FULL}.get(observe, f"{observe} only" if observe.isalpha() else f"entries {observe}")


def heading(env, seen):
    """A task in one line: what is to be done and what is seen. A cue is seen as a matter of course, so that is not said."""
    words = task(env)[0].replace("\n", " ")
    return words if words.startswith("Recall") and seen == FULL else f"{words}, {seen}"


def marks(env):
    """Scores that stand out, and a word for each: chance, for instance."""
    return [(value, word) for pattern, value, word in MARKS if re.fullmatch(pattern, env)]
