"""Draw the results: reads --results_dir alone, writes figures, summary.csv and a table.

    python plot.py
    python plot.py --results_dir results --plots_dir plots
    python plot.py --study studies/pilot.toml --results_dir results/pilot --plots_dir plots/pilot

One figure per environment and observation (PLOTS_DIR/ENV_OBSERVATION.png), one line per algorithm and core. Runs whose
flags agree, but for the seed and what does not touch the training (BOOKKEEPING), are the seeds of one line. A label names
the flags that differ from the algorithm's defaults; those that all lines of a figure share stand in its caption instead.
More than MAX_LINES lines are spread over panels: each algorithm's cores, and what each flag changes. Where some runs are much
longer than others, the first steps of all lines stand beside the whole.

    line    mean over seeds of each seed's mean return, at the steps where every one of its seeds was evaluated
    band    95% percentile-bootstrap interval of that mean: whole seeds are resampled; with one seed there is none
    number  (table, summary.csv) mean over seeds, with the same interval, of the line's last LAST evaluations

Runs with --staleness have a second figure (ENV_OBSERVATION_staleness.png): their Delta-Q, at the first and the last trained
step of a window, each measurement at the evaluation before it.

With --study FILE, a grid of sweep.py, there is one figure per [[runs]] of the file instead, its question: a column per algorithm
and task, a colour per arm. Its label is what sets the arms of the question apart.

The bootstrap's generator is fixed: the same results give the same files, to the byte.
"""
import console

if __name__ == "__main__":
    console.begin()                                                    # first: the imports that follow take seconds

import argparse
import csv
import glob
import importlib
import json
import math
import os
import re
import sys
import textwrap
from dataclasses import dataclass, fields, replace

import matplotlib.style
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation
from scipy.stats import bootstrap

from cores import MemoryFlags
from flags import NOT_LEARNING
from utils import Parser, fail

LAST = 5                                                               # evaluations in the table's number
MAX_LINES = 6                                                          # in a figure of one panel
FAR = 2                                                                # runs so many times as long as others get a panel more
BOOKKEEPING = {"seed"} | NOT_LEARNING
NAMED = ["env", "observe", "flicker", "obs_noise", "sensor_dropout", "policy", "recurrent_actor", "recurrent_critic", "core"]
OBSERVE = {"full": "fully observed", "positions": "positions only", "velocities": "velocities only"}

# An algorithm is a hue (after Okabe and Ito, for colour-blind readers), its lines are shades of it; a memory is a dash
COLOURS = {"TD3": ["#2a1a6e", "#0072b2", "#5fd0f5"], "DDPG": ["#7a2a00", "#d55e00", "#f2b33b"],
           "PPO": ["#00402f", "#009e73", "#8fe0c0"], "SAC": ["#56244a", "#b8578f", "#e8b4d2"],
           "A2C": ["#4d4000", "#a08a00", "#e0d060"], "REINFORCE": ["#3a2a20", "#8a6a55", "#cdb5a5"]}
OTHER_COLOUR = ["#222222", "#777777", "#bbbbbb"]
DASHES = {"feed-forward": (0, (5, 2)), "LSTM actor and critic": "-", "LSTM actor only": (0, (6, 1.5, 1, 1.5)),
          "LSTM critic only": (0, (1, 1.2)), "GRU actor and critic": (0, (10, 2)),
          "GRU actor only": (0, (6, 1.5, 1, 1.5, 1, 1.5)), "GRU critic only": (0, (1, 2.5)),
          "minGRU actor and critic": (0, (8, 1.5, 3, 1.5)), "minGRU actor only": (0, (3, 1.5, 1, 1.5)),
          "minGRU critic only": (0, (1, 0.8))}
ARMS = ["#0072b2", "#d55e00", "#009e73", "#b8578f", "#a08a00", "#222222", "#5fd0f5", "#8a6a55"]
MARKERS = "osD^vPX*<>"
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4"}
short = EngFormatter(sep="")                                           # 200k, 1.5M


# ---------------------------------------------------------------------- reading

@dataclass
class Run:
    config: dict
    curve: dict                     # step -> mean return of that evaluation
    episodes: int                   # of an evaluation
    minutes: float
    finished: bool
    staleness: dict                 # "first", "last" trained step of a window -> step -> Delta-Q; both empty if not measured


@dataclass
class Group:
    """Runs that differ in nothing but the seed: one line."""
    policy: str
    memory: str
    flags: dict                     # what differs from the defaults
    runs: list

    def __post_init__(self):
        self.steps = sorted(set.intersection(*[set(run.curve) for run in self.runs]))
        self.returns = np.array([[run.curve[step] for step in self.steps] for run in self.runs])  # (seeds, steps)
        self.last = self.returns[:, -LAST:].mean(1)                    # (seeds,)

    def label(self, without=()):
        return ", ".join([self.policy, self.memory, *[words(k, v) for k, v in self.flags.items() if k not in without]])

    def order(self):
        """TD3 before DDPG before PPO, feed-forward before LSTM before GRU, plain before flags, numbers before words."""
        known = [(list(names).index(name) if name in names else len(names), name)
                 for name, names in ((self.policy, COLOURS), (self.memory, DASHES))]
        return *known, len(self.flags), [(k, isinstance(v, str), str(v) if v is None else v) for k, v in self.flags.items()]


def words(flag, value):
    return f"{flag}={value:g}" if isinstance(value, float) else f"{flag}={value}"


def interval(returns):
    """95% bootstrap interval of the mean over seeds: returns (seeds, ...) -> low, high (...); NaN with a single seed."""
    if len(returns) < 2:
        return np.full((2, *returns.shape[1:]), np.nan)
    return bootstrap((returns,), np.mean, method="percentile", n_resamples=5000, batch=500,
                     rng=np.random.default_rng(0)).confidence_interval


def defaults(config):
    """The defaults of an algorithm's flags, as in flags.py."""
    if not os.path.isfile(os.path.join(os.path.dirname(os.path.abspath(__file__)), f"{config['policy']}.py")):
        raise ValueError(f"there is no {config['policy']}.py")
    module = importlib.import_module(config["policy"])
    recurrent = config["recurrent_actor"] or config["recurrent_critic"]
    return {f.name: f.default for f in fields(module.HyperParameters)} | (module.RECURRENT_DEFAULTS if recurrent else {}) | \
        {"load_model": ""}                                             # what a run starts from is part of what it is


def group_key(config):
    """What all seeds of a line have in common."""
    return tuple(sorted((k, v) for k, v in config.items() if k not in BOOKKEEPING))


def read_run(path):
    """Read PATH.json and PATH.csv. Raises ValueError, with one line, if they are missing or damaged."""
    try:
        name = path + ".json"
        with open(name) as file:
            info = json.load(file)
        config = defaults(info["config"]) | info["config"]             # an older run may lack a flag that came later
        config["seed"] = int(config["seed"])
        config["load_model"] = re.sub(r"_seed=\d+", "", os.path.basename(config["load_model"]))   # each seed from its own
        hash((group_key(config), *[config[k] for k in NAMED]))         # all are there, none is a list
        name, returns, minutes = path + ".csv", {}, 0.0
        with open(name, newline="") as file:
            for row in csv.DictReader(file):
                returns.setdefault(int(row["step"]), []).append(float(row["return"]))
                minutes = float(row["seconds"]) / 60
                if not math.isfinite(float(row["return"]) + minutes):
                    raise ValueError(f"a number at step {row['step']} is not finite")
        if 0 not in returns:                                           # every run begins with it, so seeds share a step
            raise ValueError("no evaluation at step 0")
        name, staleness = path + ".staleness.csv", {"first": {}, "last": {}}
        if os.path.exists(name):
            with open(name, newline="") as file:
                for row in csv.DictReader(file):
                    step = int(row["step"]) // config["eval_freq"] * config["eval_freq"]
                    pair = [float(row[f"delta_q_{end}"] or "nan") for end in staleness]  # empty: no window could be measured
                    if all(map(math.isfinite, pair)):
                        for curve, x in zip(staleness.values(), pair):
                            curve[step] = x
    except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or error
        raise ValueError(f"{name} is missing or damaged ({reason})") from None
    return Run(config, {step: np.mean(x) for step, x in returns.items()}, max(map(len, returns.values())), minutes,
               info.get("finished") is True, staleness)


def read_results(results_dir):
    """All runs there and in its folder `reference`; a study's, in other folders, have figures of their own. Warns of those that
    cannot be read; exits with 2 if there are no others.

    A run in results_dir itself comes before one of the same flags and seed in results_dir/reference.
    """
    paths = {os.path.splitext(path)[0] for folder in ("", "reference") for end in ("csv", "json")
             for path in glob.glob(os.path.join(glob.escape(results_dir), folder, f"*.{end}"))
             if not path.endswith(".staleness.csv")}
    paths = sorted(paths, key=lambda path: (path.count(os.sep), path))
    runs, problems = {}, []
    for path in paths:
        try:
            run = read_run(path)
            key = group_key(run.config), run.config["seed"]
            if key in runs:
                raise ValueError(f"{path}.csv repeats the flags and the seed of another file")
            runs[key] = run
        except ValueError as error:
            problems.append(str(error))
    if not runs:
        fail(f"no results in '{results_dir}'; " + ("; ".join(problems[:1]) or "run main.py first, or give another --results_dir")
             + (f"; {len(problems) - 1} more like it" if problems[1:] else ""))
    for problem in problems:
        print(f"warning: {problem}; left out", file=sys.stderr)
    return list(runs.values())


def observation(config):
    """What the agent sees: the part, and each kind of noise there is."""
    return [config["observe"], *[words(k, float(config[k])) for k in ("flicker", "obs_noise", "sensor_dropout") if config[k]]]


def memory_of(config):
    """In words: whose memory, and of what kind."""
    core = "minGRU" if config["core"] == "mingru" else config["core"].upper()
    whose = {(True, True): " actor and critic", (True, False): " actor only", (False, True): " critic only"}
    remembers = bool(config["recurrent_actor"]), bool(config["recurrent_critic"])
    return core + whose[remembers] if any(remembers) else "feed-forward"


def group_runs(runs):
    """{(environment, observation, file name): a figure's groups in the order of the legend}."""
    lines, figures = {}, {}
    for run in sorted(runs, key=lambda run: run.config["seed"]):
        lines.setdefault(group_key(run.config), []).append(run)
    for key, seeds in lines.items():
        config = dict(key)
        env = config["env"]
        default = defaults(config)                                     # flags in the order of --help
        flags = {k: config[k] for k in default | config if k in config and k not in NAMED and config[k] != default.get(k, "?")}
        observe, *noise = observation(config)
        place = env, ", ".join([OBSERVE.get(observe, observe), *noise]), "_".join([env.replace("/", "-"), observe, *noise])
        figures.setdefault(place, []).append(Group(config["policy"], memory_of(config), flags, seeds))
    return {key: sorted(groups, key=Group.order) for key, groups in sorted(figures.items())}


# ---------------------------------------------------------------------- drawing

def split(groups, shared):
    """Panels of a figure: [(title, groups)]. One if there are few lines, or two if some of these are much longer than others.
    Else one per set of flags changed: the lines that change them, beside those that change less and are else the same."""
    if len(groups) <= MAX_LINES:
        lengths = [g.steps[-1] for g in groups]
        brief = min(lengths)
        if not 0 < FAR * brief <= max(lengths):
            return [("", groups)]
        return [(f"the first {short(brief)} steps", [first_steps(g, brief) for g in groups]), ("all steps", groups)]
    panels = {}
    for g in groups:
        changed = ", ".join([g.policy, *[k for k in g.flags if k not in shared]])
        panels.setdefault(changed, set()).update(
            i for i, other in enumerate(groups) if other.policy == g.policy and other.flags.items() <= g.flags.items() and
            other.memory in ("feed-forward", g.memory))
    return [(title, [groups[i] for i in sorted(panel)]) for title, panel in panels.items()
            if not any(panel < larger for larger in panels.values())]


def first_steps(group, upto):
    """A line up to a step."""
    return replace(group, runs=[replace(run, curve={step: x for step, x in run.curve.items() if step <= upto},
                                        finished=run.finished or max(run.curve) > upto) for run in group.runs])


def draw_panel(ax, groups, shared, columns, wrap):
    """The lines of a panel, and its legend below."""
    markers = iter(MARKERS * len(groups))
    for g in groups:
        same = [other for other in groups if other.policy == g.policy]
        colour = LinearSegmentedColormap.from_list("", COLOURS.get(g.policy, OTHER_COLOUR))((same.index(g) + 0.5) / len(same))
        label = f"{g.label(shared)} ({len(g.runs)}\u00a0seed{'s' if len(g.runs) > 1 else ''})"
        marker = next(markers) if set(g.flags) - set(shared) else "." if len(g.steps) == 1 else None
        ax.plot(g.steps, g.returns.mean(0), color=colour, ls=DASHES.get(g.memory, "-"), lw=2.2, marker=marker, ms=6, zorder=3,
                markevery=max(1, len(g.steps) // 8), label=textwrap.fill(label, wrap, subsequent_indent="    "))
        ax.fill_between(g.steps, *interval(g.returns), color=colour, alpha=0.13, lw=0, zorder=1)
        for run in g.runs:
            steps, returns = zip(*sorted(run.curve.items()))
            if len(g.runs) > 1:
                ax.plot(steps, returns, color=colour, lw=0.7, alpha=0.45, zorder=2)
            if not run.finished:
                ax.plot(steps[-1], returns[-1], "x", color=colour, ms=8, mew=2, zorder=4)
    ax.set(xlabel=unit(groups), ylabel="evaluation return")
    ax.xaxis.set_major_formatter(short)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1))
    ax.tick_params(labelbottom=True, labelleft=True)
    ax.margins(x=0.02)
    ax.legend(loc="upper left", bbox_to_anchor=(0, 0), borderaxespad=0, ncols=columns, frameon=False, handlelength=3.5,
              bbox_transform=ax.transAxes + ScaledTranslation(-0.5, -0.55, ax.figure.dpi_scale_trans))


def unit(groups):
    """What the horizontal axis counts."""
    offline = sorted({g.policy for g in groups if getattr(importlib.import_module(g.policy), "OFFLINE", False)})
    return "environment steps" + f" ({', '.join(offline)}: updates)" * bool(offline)


def caption(groups, shared, delta_q):
    """What a reader of the figure alone has to know."""
    def span(values, form=str):
        return " to ".join(dict.fromkeys([form(min(values)), form(max(values))]))
    seeds, runs = {len(g.runs) for g in groups}, [run for g in groups for run in g.runs]
    text = "One seed a line, so no interval over seeds." if seeds == {1} else (
        f"Thick line: mean over {span(seeds)} seeds; thin lines: each seed; band: 95% bootstrap interval of the mean over seeds"
        f"{', none with one seed' if 1 in seeds else ''}{', too narrow with fewer than five' if {2, 3, 4} & seeds else ''}.")
    point = f"mean undiscounted return of evaluation episodes without exploration ({span([r.episodes for r in runs])} per seed)"
    if delta_q:
        point = ("Delta-Q (Kapturowski et al. 2019), how far the critic's values from the state that training starts a window "
                 "with are from those with the state unrolled over the whole episode, over the largest value; mean over windows")
    text += (f" A point: {point}, not smoothed. {'Last measurement' if delta_q else 'Length of the runs'}: "
             f"{span([max(run.curve) for run in runs], short)} {unit(groups)}.")
    if any(max(run.curve) > g.steps[-1] for g in groups for run in g.runs):
        text += " A thick line ends at the last evaluation that all its seeds share."
    if shared:
        text += f"\nSet for all lines: {', '.join(words(k, v) for k, v in shared.items())}."
    if unfinished := [f"{g.label(shared)}, seed {run.config['seed']}, at {short(max(run.curve))}"
                      for g in groups for run in g.runs if not run.finished]:
        text += f"\n\u00d7 Unfinished: {'; '.join(unfinished)}."
    return text


def delta_q_panels(groups):
    """Panels of Delta-Q, of the lines that have it; each measurement stands for a return in its run's curve."""
    panels = []
    for end in ("first", "last"):
        lines = []
        for g in groups:
            runs = [replace(run, curve=run.staleness[end]) for run in g.runs if run.staleness[end]]
            if runs and set.intersection(*[set(run.curve) for run in runs]):   # seeds may share no step
                lines.append(replace(g, runs=runs))
        panels.append((f"{end} trained step of a window", lines))
    return panels


def figure(title, groups, delta_q=None):
    """A figure of the groups' returns, or of `delta_q`, their panels of that."""
    shared = {k: v for k, v in groups[0].flags.items() if all((k, v) in g.flags.items() for g in groups)}
    panels = delta_q or split(groups, shared)
    across, tall, wrap, size = (1, 5.0, 95, 11) if len(panels) == 1 else (2, 3.7, 52, 9)
    down = -(-len(panels) // across)
    columns = 2 if across == 1 and len(groups) > 1 and max(len(g.label(shared)) for g in groups) <= 40 else 1
    rows = max(sum(-(-len(g.label(shared) + " (1 seeds)") // wrap) for g in lines) for _, lines in panels) / columns
    text = "\n".join(textwrap.fill(line, 125) for line in caption(groups, shared, delta_q).split("\n"))
    height = 0.9 + down * (tall + size / 50 * rows) + 0.19 * text.count("\n")
    with matplotlib.style.context(["default", STYLE, {"font.size": size}]):
        fig = Figure(figsize=(10, height), dpi=150, layout="constrained")
        fig.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
        longest = [max(g.steps[-1] for g in lines) for _, lines in panels if lines]
        axes = list(fig.subplots(down, across, sharex=max(longest) < FAR * min(longest), sharey=not delta_q, squeeze=False).flat)
        for ax, (name, lines) in zip(axes, panels):
            ax.set_title(textwrap.shorten(name, 55, placeholder=" ..."), loc="left", size=size)
            draw_panel(ax, lines, shared, columns, wrap)
            if delta_q:
                ax.set_ylabel("Delta-Q")
        for ax in axes[len(panels):]:
            ax.remove()
        fig.suptitle(title, x=0.01, ha="left", weight="bold", size=14)
        fig.supxlabel(text, x=0.01, ha="left", color="#444444", linespacing=1.4, size=9.5)
        fig.draw_without_rendering()                                   # ticks take their style when they are first drawn
    return fig


# ---------------------------------------------------------------------- a study's questions

def questions(study, results_dir):
    """{question: {case: {arm's label: Group}}} of a grid's finished runs. Exits with 2 if there are none."""
    from sweep import read_study  # slow to start: it checks every flag

    asked, missing = {}, []
    for planned in read_study(study, results_dir):
        try:
            run = read_run(os.path.join(results_dir, os.path.basename(planned.path)))
            if not run.finished:                                       # its last evaluations are not those at the end
                raise ValueError(f"{planned.path} is unfinished")
        except ValueError as error:
            missing.append(error)
            continue
        observe, *noise = observation(run.config)
        case = ", ".join([run.config["policy"], run.config["env"], OBSERVE[observe], *noise])
        for arm in dict.fromkeys(planned.arms):
            asked.setdefault(arm, {}).setdefault(case, []).append(run)
    if not asked:
        fail(f"no finished run of {study} is in '{results_dir}'; run sweep.py first, or give another --results_dir")
    if missing:
        print(f"warning: {len(missing)} runs of {study} are left out, the first one because {missing[0]}", file=sys.stderr)
    named = {}
    for arm in sorted(asked, key=lambda arm: int(arm.split()[1])):     # in the order of the file
        name = arm.partition("(")[2][:-1] or arm
        taken = name_of_file(name) in map(name_of_file, named)
        named[arm if taken else name] = arms_of(asked[arm])
    return named


def name_of_file(question):
    return re.sub(r"\W+", "_", question)


def arms_of(cases):
    """{case: [Run]} -> {case: {label: Group}}; a label names what sets the arms apart, whatever the case."""
    memory_flags, memories = {f.name for f in fields(MemoryFlags)}, set()

    def flags_of(config):                                              # without a memory, its flags mean nothing
        return {k: v for k, v in config.items() if k not in BOOKKEEPING | set(NAMED) and
                (memory_of(config) != "feed-forward" or k not in memory_flags)}
    differing = {}                                                     # flags, in the order of --help
    for runs in cases.values():
        memories |= {memory_of(run.config) for run in runs}
        values = {}
        for run in runs:
            for k, v in flags_of(run.config).items():
                values.setdefault(k, set()).add(v)
        differing |= {k: None for k in values if len(values[k]) > 1}

    def label(config):
        flags = flags_of(config)
        memory = memory_of(config)
        return ", ".join([memory] * (len(memories) > 1) + [words(k, flags[k]) for k in differing if k in flags]) or memory
    grouped = {}
    for case, runs in cases.items():
        lines = {}
        for run in runs:
            lines.setdefault(label(run.config), []).append(run)
        assert all(len({group_key(run.config) for run in seeds}) == 1 for seeds in lines.values())
        grouped[case] = {name: Group(seeds[0].config["policy"], name, {}, seeds) for name, seeds in lines.items()}
    return grouped


def question_figure(question, cases):
    """Above: returns while training. Below: each seed's mean of its last evaluations, a dot, and the mean of these, a bar."""
    labels = list(dict.fromkeys(label for groups in cases.values() for label in groups))
    runs = [run for groups in cases.values() for g in groups.values() for run in g.runs]
    text = (f"Above: thin lines are seeds, thick ones their mean. Below: a dot is a seed's mean of its last {LAST} evaluations, "
            f"the bar their mean. {len(runs)} runs, {hours(runs):.1f} core-hours (one core a run, wall time), those "
            "shared with other questions included. Returns of evaluation episodes without exploration.")
    width = 3.1 * max(2, len(cases)) + 1.2
    with matplotlib.style.context(["default", STYLE, {"font.size": 8}]):
        fig = Figure(figsize=(width, 4.2 + 0.22 * len(labels)), dpi=150, layout="constrained")
        axes = fig.subplots(2, len(cases), squeeze=False, height_ratios=[3, 0.6 + 0.3 * len(labels)])
        for (curves, ends), (case, groups) in zip(axes.T, cases.items()):
            for label, g in groups.items():
                row = labels.index(label)
                look = dict(color=ARMS[row % len(ARMS)], ls=("-", "--", ":")[row // len(ARMS) % 3])
                for run in g.runs:
                    curves.plot(*zip(*sorted(run.curve.items())), **look, lw=0.6, alpha=0.55)
                curves.plot(g.steps, g.returns.mean(0), **look, lw=1.8)
                ends.plot(g.last, [row] * len(g.last), "o", color=look["color"], ms=5, alpha=0.8, mew=0)
                ends.plot([g.last.mean()], [row], "|", color=look["color"], ms=15, mew=2)
            curves.set_title(case.replace(", ", "\n", 1), loc="left", size=8)
            curves.set(xlabel=unit(groups.values()), ylabel="evaluation return" if curves is axes[0, 0] else None)
            curves.xaxis.set_major_formatter(short)
            ends.set(ylim=(len(labels) - 0.5, -0.5), xlabel="return at the end", yticks=range(len(labels)),
                     yticklabels=labels if curves is axes[0, 0] else [])
        for row, tick in enumerate(axes[1, 0].get_yticklabels()):
            tick.set_color(ARMS[row % len(ARMS)])
        fig.suptitle(question, x=0.01, ha="left", weight="bold", size=12)
        fig.supxlabel(textwrap.fill(text, int(16 * width)), x=0.01, ha="left", color="#444444", linespacing=1.4, size=8)
        fig.draw_without_rendering()
    return fig


def hours(runs):
    return sum(run.minutes for run in runs) / 60


def print_questions(asked):
    print(f"mean: over seeds, of their last {LAST} evaluations; (its 95% interval, bootstrap over seeds); per seed; core-hours")
    for question, cases in asked.items():
        print(f"\n{question}")
        for case, groups in cases.items():
            for label, g in groups.items():
                low, high = interval(g.last)
                print(f"  {case}: {label}: {g.last.mean():.2f}" + (f" ({low:.2f} to {high:.2f})" if len(g.runs) > 1 else "") +
                      "   " + " ".join(f"{run.config['seed']}:{x:.2f}" for run, x in zip(g.runs, g.last)) +
                      f"   {hours(g.runs):.2f}")


# ---------------------------------------------------------------------- table

def summary(figures):
    """The table: a row per line of each figure."""
    rows = []
    for (env, observation, _), groups in figures.items():
        for g in groups:
            low, high = [f"{x:.1f}" if len(g.runs) > 1 else "" for x in interval(g.last)]
            rows.append(dict(env=env, observation=observation, label=g.label(), seeds=len(g.runs),
                             unfinished=sum(not run.finished for run in g.runs), steps=g.steps[-1],
                             mean=f"{g.last.mean():.1f}", low=low, high=high,
                             minutes=f"{np.mean([run.minutes for run in g.runs]):.1f}",
                             per_seed=" ".join(f"{run.config['seed']}:{x:.1f}" for run, x in zip(g.runs, g.last))))
    return rows


def print_table(rows):
    print(f"mean: over seeds, of the last {LAST} evaluations that all seeds of a line share; interval: 95%, bootstrap over them\n"
          "steps: where these end; minutes: of training, mean over seeds; per seed: seed:mean; *: some seeds are unfinished")
    heads = ["line", "seeds", "steps", "mean", "interval", "minutes", "per seed"]
    table = [heads] + [[row["label"], f"{row['seeds']}{'*' if row['unfinished'] else ''}", short(row["steps"]), row["mean"],
                        f"{row['low']} to {row['high']}" if row["low"] else "-", row["minutes"], row["per_seed"]] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    previous = None
    for cells, row in zip(table, [{}] + rows):
        if row and previous != (previous := f"{row['env']}, {row['observation']}"):
            print(f"\n{previous}")
        print("  ".join([cells[0].ljust(widths[0]), *[c.rjust(n) for c, n in zip(cells[1:-1], widths[1:])], cells[-1]]))


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results_dir", default="results", help="where main.py wrote [results]")
    parser.add_argument("--plots_dir", default="plots", help="where figures and summary.csv go [plots]")
    parser.add_argument("--study", help="TOML file of sweep.py: draw its questions [none]")
    args = parser.parse_args(argv)
    asked = questions(args.study, args.results_dir) if args.study else {}
    figures = group_runs(read_results(args.results_dir))
    rows = summary(figures)
    try:
        os.makedirs(args.plots_dir, exist_ok=True)
        for question, cases in asked.items():
            question_figure(question, cases).savefig(os.path.join(args.plots_dir, name_of_file(question) + ".png"),
                                                     metadata={"Software": None})
        for (env, observation, name), groups in figures.items() if not asked else ():
            drawn = {name: figure(f"{env}, {observation}", groups)}
            panels = delta_q_panels(groups)
            if panels[0][1]:
                drawn[name + "_staleness"] = figure(f"{env}, {observation}: stale hidden states", panels[0][1], panels)
            for file, fig in drawn.items():
                fig.savefig(os.path.join(args.plots_dir, file + ".png"), dpi="figure", metadata={"Software": None})
        with open(os.path.join(args.plots_dir, "summary.csv"), "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        fail(f"--plots_dir '{args.plots_dir}' cannot be written ({error.strerror}); choose another")
    if asked:
        print_questions(asked)
    else:
        print_table(rows)


if __name__ == "__main__":
    main()
