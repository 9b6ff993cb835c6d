"""Draw the results: reads --results_dir alone, writes figures, summary.csv and a table.

    python plot.py
    python plot.py --results_dir results --plots_dir plots
    python plot.py --study studies/memory.toml                  (reads results/memory, draws plots/memory)

One figure per environment and observation (PLOTS_DIR/ENV_OBSERVATION.png), one line per algorithm and core. Runs whose
flags agree, but for the seed and what does not touch the training (BOOKKEEPING), are the seeds of one line. A label names
the flags that differ from the algorithm's defaults; those that all lines of a figure share stand in its caption instead.
More than MAX_LINES lines are spread over panels: each algorithm's cores, and what each flag changes. Where some runs are much
longer than others, the first steps of all lines stand beside the whole.

    line    mean over seeds of each seed's mean return, at the steps where every one of its seeds was evaluated
    band    95% interval of that mean (Student's t), with fewer than five seeds their range (support/statistics.py)
    number  (table, summary.csv) mean over seeds, with the same interval, of the line's last LAST evaluations

Runs with --staleness have a second figure (ENV_OBSERVATION_staleness.png): their Delta-Q, at the first and the last trained
step of a window, each measurement at the evaluation before it.

With --study FILE, a grid of sweep.py that has [[cases]], the study is drawn instead, from its tables alone: the answers on one
picture (answers.png), a figure per question, and whether Delta-Q predicts the loss. It may be half done.

The same results give the same files, to the byte.
"""
from support import console

if __name__ == "__main__":
    console.begin()                                                    # first: the imports that follow take seconds

import argparse
import glob
import math
import os
import re
import sys
import textwrap
from dataclasses import dataclass, fields, replace

import matplotlib.style
import numpy as np
import pandas as pd
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation

from flags import NOT_LEARNING, POLICIES, RunFlags, check_saved, defaults_of, load_policy
from support import study, study_figures
from support.results import read_info, read_rows
from support.statistics import FEW, INTERVAL, interval
from support.system import Parser, fail

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
MARKERS = "osD^vPX*<>"
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4",
         "text.parse_math": False}                                     # a dollar sign in a name is a dollar sign
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
        return *known, len(self.flags), [(k, isinstance(v, str), -math.inf if v is None else v) for k, v in self.flags.items()]


def words(flag, value):
    return f"{flag}={value:g}" if isinstance(value, float) else f"{flag}={value}"


def defaults(config):
    """The defaults of an algorithm's flags, as in flags.py."""
    if config["policy"] not in POLICIES:                               # a file of results names no module to import
        raise ValueError(f"there is no policy {config['policy']!r}")
    flags = load_policy(config["policy"]).HyperParameters
    recurrent = config["recurrent_actor"] or config["recurrent_critic"]
    return {f.name: f.default for f in fields(flags)} | (flags.recurrent_defaults if recurrent else {}) | \
        {k: v for k, v in defaults_of(RunFlags).items() if k not in BOOKKEEPING | {*NAMED}}   # also what it starts from


def group_key(config):
    """What all seeds of a line have in common."""
    return tuple(sorted((k, v) for k, v in config.items() if k not in BOOKKEEPING))


def read_run(path):
    """Read PATH.json and PATH.csv. Raises ValueError, with one line, if they are missing, damaged, cut or strange."""
    def number(text):
        if not abs(x := float(text)) < 1e30:
            raise ValueError(f"'{text:.60}' is no number that can be drawn")
        return x

    def step_of(row):
        if not 0 <= (step := int(row["step"])) < 2 ** 32:
            raise ValueError(f"there is no step {row['step']:.20}")
        return step
    try:
        name = path + ".json"
        info = read_info(path, check_saved)
        config = defaults(info["config"]) | info["config"]             # an older run may lack a flag that came later
        config["seed"] = int(config["seed"])
        config["load_model"] = re.sub(r"_seed=\d+", "", os.path.basename(config["load_model"]))   # each seed from its own
        hash(tuple(config[k] for k in NAMED))                          # all are there
        name, returns, minutes = path + ".csv", {}, 0.0
        for row in read_rows(path, ".csv", info):
            returns.setdefault(step_of(row), []).append(number(row["return"]))
            minutes = number(row["seconds"]) / 60
        if 0 not in returns:                                           # every run begins with it, so seeds share a step
            raise ValueError("no evaluation at step 0")
        name, staleness = path + ".staleness.csv", {"first": {}, "last": {}}
        if os.path.lexists(name) or ".staleness.csv" in info.get("lines", {}):
            for row in read_rows(path, ".staleness.csv", info):
                step = step_of(row) // config["eval_freq"] * config["eval_freq"]
                pair = [float(row[f"delta_q_{end}"] or "nan") for end in staleness]  # empty: no window could be measured
                if all(map(math.isfinite, pair)):
                    for curve, x in zip(staleness.values(), pair):
                        curve[step] = number(x)
    except Exception as error:                                         # of many kinds: what is in a file may be anything
        reason = f"no {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or error
        raise ValueError(f"{name} is missing or damaged ({' '.join(str(reason).split())[:200]})") from None
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
        place = env, ", ".join([OBSERVE.get(observe, observe), *noise]), "_".join([re.sub("[/:]", "-", env), observe, *noise])
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
        ax.fill_between(g.steps, *interval(g.returns)[:2], color=colour, alpha=0.13, lw=0, zorder=1)
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
    offline = sorted({g.policy for g in groups if load_policy(g.policy).offline})
    return "environment steps" + f" ({', '.join(offline)}: updates)" * bool(offline)


def caption(groups, shared, delta_q):
    """What a reader of the figure alone has to know."""
    def span(values, form=str):
        return " to ".join(dict.fromkeys([form(min(values)), form(max(values))]))
    seeds, runs = {len(g.runs) for g in groups}, [run for g in groups for run in g.runs]
    text = "One seed a line, so no interval over seeds." if seeds == {1} else (
        f"Thick line: mean over {span(seeds)} seeds; thin lines: each seed; band: "
        + ", or ".join([INTERVAL + " of the mean over seeds"] * (max(seeds) >= FEW)
                       + [f"with fewer than {FEW} seeds their range"] * bool(seeds & set(range(2, FEW)))
                       + ["none with one seed"] * (1 in seeds)) + ".")
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


# ---------------------------------------------------------------------- table

def summary(figures):
    """The table: a row per line of each figure."""
    rows = []
    for (env, observation, _), groups in figures.items():
        for g in groups:
            *ends, kind = interval(g.last)
            low, high = [f"{x:.1f}" if kind else "" for x in ends]
            rows.append(dict(env=env, observation=observation, label=g.label(), seeds=len(g.runs),
                             unfinished=sum(not run.finished for run in g.runs), steps=g.steps[-1],
                             mean=f"{g.last.mean():.1f}", low=low, high=high, kind=kind,
                             minutes=f"{np.mean([run.minutes for run in g.runs]):.1f}",
                             per_seed=" ".join(f"{run.config['seed']}:{x:.1f}" for run, x in zip(g.runs, g.last))))
    return rows


def print_table(rows):
    print(f"mean: over seeds, of the last {LAST} evaluations that all seeds of a line share; interval: {INTERVAL}, with fewer "
          f"than {FEW}\nseeds their range; steps: where these end; minutes: of training, mean over seeds; per seed: seed:mean; "
          "*: some seeds are unfinished")
    heads = ["line", "seeds", "steps", "mean", "interval", "minutes", "per seed"]
    table = [heads] + [[row["label"], f"{row['seeds']}{'*' if row['unfinished'] else ''}", short(row["steps"]), row["mean"],
                        f"{row['low']} to {row['high']}" + " (range)" * (row["kind"] == "range") if row["low"] else "-",
                        row["minutes"], row["per_seed"]] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table)]
    previous = None
    for cells, row in zip(table, [{}] + rows):
        if row and previous != (previous := f"{row['env']}, {row['observation']}"):
            print(f"\n{previous}")
        print("  ".join([cells[0].ljust(widths[0]), *[c.rjust(n) for c, n in zip(cells[1:-1], widths[1:])], cells[-1]]))


def print_study(table):
    """What matters most of the tidy table; all of it is in summary.csv."""
    number = study_figures.number

    def cells(name):
        return [number(x) + (f" ({number(low)} to {number(high)})" if low == low else "")
                for x, low, high in table[[name, name + "_low", name + "_high"]].to_numpy()]
    shown = pd.DataFrame({"arm": table.arm.str.ljust(40), "n": table.n, "score": cells("score"), "share": cells("share"),
                          "versus": table.versus, "Delta-Q": table.delta_q_first.map(lambda x: f"{x:.2g}" if x == x else "-")})
    text = ("n: seeds. score: mean over evaluations but the first. share: of memory's gain that is kept.\n"
            f"In brackets: {INTERVAL}, with fewer than {FEW} seeds the range.\n"
            "versus: the common arm. Delta-Q: at a window's first trained step.\n")
    for case, rows in shown.groupby(table.case, sort=False):
        text += f"\n{case}\n{rows.to_string(index=False)}\n"
    told = table.versus[table.versus != ""]
    print(text.replace("\u2212", "-") + f"\n{len(told)} intervals of differences from the common arm, of which "
          f"{(told == 'not told apart').sum()} include 0; one in 20 would miss by chance alone, so some {len(told) / 20:.0f}")


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results_dir", help="where main.py wrote [results; of a study results/ and its name]")
    parser.add_argument("--plots_dir", help="where figures and summary.csv go [plots; of a study plots/ and its name]")
    parser.add_argument("--study", help="TOML file of sweep.py, with [[cases]]: draw its answers [none]")
    args = parser.parse_args(argv)
    name = os.path.splitext(os.path.basename(args.study))[0] if args.study else ""
    results_dir, plots_dir = [given or os.path.join(folder, name).rstrip(os.sep)
                              for given, folder in ((args.results_dir, "results"), (args.plots_dir, "plots"))]
    if args.study:
        read = study.read(args.study, results_dir)
        table = study.summarise(read)
        drawn = study_figures.draw(read, table)
    else:
        figures = group_runs(read_results(results_dir))
        drawn, table = {}, pd.DataFrame(summary(figures))
        for (env, observation, file), groups in figures.items():
            drawn[file] = figure(f"{env}, {observation}", groups)
            panels = delta_q_panels(groups)
            if panels[0][1]:
                drawn[file + "_staleness"] = figure(f"{env}, {observation}: stale hidden states", panels[0][1], panels)
    try:
        os.makedirs(plots_dir, exist_ok=True)
        for file, fig in drawn.items():
            fig.savefig(os.path.join(plots_dir, file + ".png"), dpi="figure", metadata={"Software": None})
        table.to_csv(os.path.join(plots_dir, "summary.csv"), index=False, lineterminator="\n", float_format="%.6g")
    except OSError as error:
        fail(f"--plots_dir '{plots_dir}' cannot be written ({error.strerror}); choose another")
    if args.study:
        print_study(table)
    else:
        print_table(table.to_dict("records"))


if __name__ == "__main__":
    main()
