"""plot.py: which runs are one line, the numbers, the figures, and what it says to bad input. Results are made up here."""
import contextlib
import csv
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import warnings
from random import Random

import pytest
from matplotlib.image import imread
from scipy.stats import ttest_1samp

import plot
from support import drawing, tables

HOPPER = "HopperBulletEnv-v0"


@pytest.fixture
def results(tmp_path):
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def write_run(results, policy="TD3", seed=0, curve=None, finished=True, name=None, **flags):
    """A run as main.py leaves it. curve: step -> returns of that evaluation's episodes. Returns its path without ending."""
    curve = {step: [step / 100 + seed, step / 100 + seed + 2] for step in range(0, 40_001, 5_000)} if curve is None else curve
    config = plot.defaults(dict(policy=policy, recurrent_actor=False, recurrent_critic=False) | flags)
    config |= dict(policy=policy, env=HOPPER, seed=seed, eval_freq=5_000, eval_episodes=2, observe="full", flicker=0.0,
                   obs_noise=0.0, sensor_dropout=0.0, device="cpu", threads=1, results_dir=str(results), overwrite=False,
                   save_model=False, load_model="", test=False) | flags
    path = results / (name or f"run{len(list(results.glob('*.json')))}")
    lines = {".csv": 1 + sum(map(len, curve.values()))}
    with open(f"{path}.json", "w") as file:
        json.dump(dict(config=config, finished=finished) | (dict(lines=lines) if finished else {}), file)
    with open(f"{path}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "episode", "return", "length", "seconds"])
        for step, returns in curve.items():
            writer.writerows([step, episode, f"{x:.3f}", 100, f"{step / 100:.1f}"] for episode, x in enumerate(returns))
    return str(path)


def recurrent(**flags):
    return dict(recurrent_actor=True, recurrent_critic=True) | flags


def lines_of(results):
    return plot.make_lines(plot.read_runs({str(results): False}))


def labels(results):
    """{file name: labels of its lines, in order}"""
    return {name: [f"{line.policy}, {line.label}" for line in lines]
            for name, lines in drawing.grouped(lines_of(results), lambda line: line.file).items()}


def draw(results, plots_dir=None, *words):
    """Run plot.py on a folder; returns the rows of summary.csv. A warning, such as of NaN, is an error."""
    plots_dir = plots_dir or results.parent / "plots"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot.main([str(results), "--plots_dir", str(plots_dir), *words])
    with open(plots_dir / "summary.csv", newline="") as file:
        return list(csv.DictReader(file))


def texts(fig):
    """All that a figure says."""
    return [text.get_text().replace("\n", " ") for text in fig.findobj(lambda artist: hasattr(artist, "get_text"))]


# ---------------------------------------------------------------------- groups

def test_a_line_is_an_algorithm_with_its_memory(results):
    write_run(results, "PPO", **recurrent())
    write_run(results, "PPO", recurrent_actor=True)
    write_run(results, "PPO", recurrent_critic=True)
    for core in ("mingru", "lstm", "gru"):
        write_run(results, **recurrent(core=core))
    write_run(results)
    assert labels(results) == {f"{HOPPER}_full": ["TD3, no memory", "TD3, LSTM", "TD3, GRU", "TD3, minGRU",
                                                  "PPO, LSTM", "PPO, LSTM actor only", "PPO, LSTM critic only"]}
    assert [line.colour for line in lines_of(results)][:5] == [*drawing.COLOURS.values(), drawing.COLOURS["LSTM"]]


def test_the_axis_says_where_steps_are_updates(results):
    write_run(results)
    write_run(results, "BCQ", dataset="hopper/td3-v0")
    assert [ax.get_xlabel() for ax in drawing.curves(lines_of(results)).axes] == ["steps in the environment", "updates"]


def test_a_figure_per_environment_and_observation(results):
    write_run(results)
    write_run(results, observe="positions")
    write_run(results, observe="positions", flicker=0.2)
    write_run(results, env="ns/Env-v1")
    assert set(labels(results)) == {f"{HOPPER}_full", f"{HOPPER}_positions", f"{HOPPER}_positions_flicker=0.2", "ns-Env-v1_full"}
    draw(results)
    assert {path.stem for path in (results.parent / "plots").glob("*.png")} == {*labels(results), "overview"}


def test_seeds_and_bookkeeping_do_not_part_a_line(results):
    write_run(results, seed=0)
    write_run(results, seed=1, results_dir="elsewhere", threads=2, device="cuda", save_model=True, overwrite=True,
              eval_freq=1_000, eval_episodes=3)
    [line] = lines_of(results)
    assert [run.config["seed"] for run in line.runs] == [0, 1]


@pytest.mark.parametrize("flags,label", [
    (dict(max_timesteps=40_000), "no memory, 40k steps"),             # a short try must not cut the line of longer runs short
    (dict(lr=0.5), "no memory, lr=0.5"),
    (dict(load_model="far/elsewhere/x_seed=0.best.pt"), "no memory, load_model=elsewhere/x.best.pt"),
    (recurrent(seq_len=8), "LSTM"),                                    # nothing to tell it apart from
    (recurrent(core="gru", hidden_layers=1), "GRU, hidden_layers=1")])
def test_other_flags_part_lines_and_stand_in_the_label(results, flags, label):
    write_run(results)
    for seed in (1, 2):
        write_run(results, seed=seed, **flags | {k: v.replace("0", str(seed)) for k, v in flags.items() if k == "load_model"})
    assert labels(results)[f"{HOPPER}_full"] == ["TD3, no memory", f"TD3, {label}"]


def test_a_label_names_only_what_tells_lines_apart_in_order(results):
    for seq_len in ("full", 64, 8):
        write_run(results, **recurrent(seq_len=seq_len, replay_ratio=7.0))
    write_run(results, replay_ratio=7.0)
    assert labels(results)[f"{HOPPER}_full"] == ["TD3, no memory"] + [f"TD3, LSTM, seq_len={x}" for x in (8, 64, "full")]


def without(path, *flags):
    """Take flags out of a run's file."""
    with open(path + ".json") as file:
        info = json.load(file)
    for flag in flags:
        del info["config"][flag]
    with open(path + ".json", "w") as file:
        json.dump(info, file)


def test_a_run_from_before_these_flags_was_the_papers_form(results):
    """Though the defaults are another today."""
    path, config = write_run(results, seed=0), dict(horizon_growth=1, lr_decay=False, average=0)
    write_run(results, seed=1, **config)
    without(path, *config)
    assert config.items() <= plot.read_run(path).config.items()
    assert labels(results)[f"{HOPPER}_full"] == ["TD3, no memory"]


@pytest.mark.parametrize("flag", ["burn_in", "load_model"])
def test_a_run_from_before_a_flag_was_added_belongs_to_its_default(results, flag):
    path = write_run(results, seed=0)
    write_run(results, seed=1)
    without(path, flag)
    assert labels(results)[f"{HOPPER}_full"] == ["TD3, no memory"]


@pytest.mark.parametrize("flags,compared", [
    (dict(lr=0.5), True), (dict(lr=0.6), False), (dict(lr=0.5, seq_len=8), True), (dict(lr=0.5, env="Pendulum-v1"), False)])
def test_memory_is_compared_with_none_where_all_else_is_equal(results, flags, compared):
    for seed in range(2):
        write_run(results, seed=seed, lr=0.5)
        write_run(results, seed=seed, **recurrent(**flags))
    [none] = [line for line in lines_of(results) if line.memory == "none"]
    [line] = [line for line in lines_of(results) if line.memory != "none"]
    assert none.without is None and bool(line.without) == compared
    assert drawing.tally(lines_of(results)) == ("0 of 1" if compared else "")


# ---------------------------------------------------------------------- numbers

def test_the_last_five_evaluations_by_hand(results, capsys):
    steps = range(0, 60_001, 10_000)                                   # seven evaluations: the first two do not count
    write_run(results, seed=3, curve={step: [10 * i, 10 * i + 4] for i, step in enumerate(steps)})
    write_run(results, seed=4, curve={step: [100, 102] for step in steps}, finished=False)
    rows = draw(results)
    first = (22 + 32 + 42 + 52 + 62) / 5
    assert [(row["seed"], float(row["last"]), row["finished"], row["steps"], row["minutes"]) for row in rows] == [
        ("3", first, "True", "60000", "10"), ("4", 101, "False", "60000", "10")]
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("  TD3"))
    assert said.split() == ["TD3", "no", "memory", "2*", "60k", "71.5", "(42", "to", "101,", "range)"]


def test_the_mean_is_over_the_steps_that_all_seeds_share(results):
    write_run(results, seed=0, curve={step: [1 + step / 1e6] for step in range(0, 60_001, 10_000)})
    write_run(results, seed=1, curve={step: [3] for step in range(0, 40_001, 5_000)}, finished=False)
    [line] = lines_of(results)
    assert list(line.table().index) == [0, 10_000, 20_000, 30_000, 40_000]
    assert list(line.last) == pytest.approx([1.02, 3])
    assert {row["steps"] for row in draw(results)} == {"40000"}


def test_the_tables_are_tidy_and_fit(results, capsys):
    """summary.csv has a row per run and a column per flag; the terminal's table 100 columns."""
    for seed in range(5):
        write_run(results, seed=seed, replay_ratio=7.0, **recurrent(seq_len="full", hidden_init="stored", memory_input="obs"))
        write_run(results, seed=seed, curve={0: [-1234567.0]}, **recurrent(critic_hidden="zero", hidden_init="stored"))
    rows = draw(results)
    assert len(rows) == 10 and {(row["policy"], row["memory"], row["core_size"]) for row in rows} == {("TD3", "LSTM", "64")}
    assert {(row["seq_len"], row["replay_ratio"]) for row in rows} == {("full", "7"), ("32", rows[0]["replay_ratio"])}
    assert not {"results_dir", "overwrite", "save_model"} & {*rows[0]}
    assert max(map(len, capsys.readouterr().out.splitlines()[:-1])) <= 100   # the last one names a folder


# ---------------------------------------------------------------------- figures

def test_drawing_twice_gives_the_same_bytes(results):
    for seed in range(3):
        write_run(results, seed=seed)
        write_run(results, "PPO", seed=seed, **recurrent())
    draw(results, results.parent / "a")
    draw(results, results.parent / "b")
    for name in (f"{HOPPER}_full.png", "overview.png", "summary.csv"):
        assert (results.parent / "a" / name).read_bytes() == (results.parent / "b" / name).read_bytes()
    assert imread(results.parent / "a" / "overview.png").shape[1] == 1350     # nine inches: the README shows it as large


def apart(boxes):
    return not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


LONG = "x" * 180


@pytest.mark.parametrize("many,more", [
    (False, {}), (True, {}), (False, dict(load_model=f"a/{LONG}.pt")),
    (False, dict(load_model=f"{LONG}/{LONG}/x.pt", env_kwargs=f"a={LONG}")),
    (False, dict(env="CartPole-v1", lr=0.123456789, tau=0.123456789, discount=0.123456789, batch_size=123456789))])
def test_nothing_overlaps_and_nothing_is_cut_off(results, many, more):
    for seed in range(2):
        write_run(results, seed=seed, replay_ratio=7.0)
        write_run(results, "PPO", seed=seed, **recurrent())
        for flags in [dict(seq_len="full", hidden_init="stored", core_size=9, memory_input="obs", burn_in=0)] + \
                [dict(seq_len=x) for x in ((1, 2, 4, 8, 16, 64, 128) if many else ())]:
            write_run(results, seed=seed, finished=False, **dict(replay_ratio=7.0) | recurrent(**flags) | more)
    for fig in (drawing.curves(lines_of(results)), drawing.overview(lines_of(results))):
        inside = [tick for ax in fig.axes for place, tick in zip(ax.get_yticks(), ax.get_yticklabels())
                  if min(ax.get_ylim()) <= place <= max(ax.get_ylim())]
        written = [text for ax in fig.axes for text in [ax._left_title, ax.xaxis.label, *ax.texts]] + inside
        boxes = [text.get_window_extent() for text in [fig._suptitle, fig._supxlabel, *written] if text.get_text()]
        assert len(boxes) > 8 and apart(boxes)
        assert all(-1 <= b.x0 and b.x1 <= fig.bbox.x1 + 1 and -1 <= b.y0 and b.y1 <= fig.bbox.y1 + 1 for b in boxes)
        assert all(text.get_size() >= 8 for text in written)


def test_the_overview_says_what_it_shows(results):
    """Every seed a dot, the mean a line, published values a mark, memory beside none."""
    for seed in range(3):
        write_run(results, seed=seed, curve={0: [seed]})
        write_run(results, seed=seed, curve={0: [10 + seed]}, **recurrent())
        write_run(results, seed=seed, observe="positions", curve={0: [2 * seed]}, **recurrent())
    write_run(results, "PPO", **recurrent())
    fig = drawing.overview(lines_of(results))
    hidden, full = fig.axes
    said = texts(fig)
    for words in ("Every seed with memory ends above every seed without: 1 of 1 times where all is seen", "11 (3)", "2 (3)",
                  "Hop on one leg, fully observed: 1 of 1", "Hop on one leg, positions only"):
        assert words in said, words
    assert [tick.get_text() for tick in full.get_yticklabels()] == ["TD3, no memory", "TD3, LSTM", "PPO, no memory", "PPO, LSTM"]
    assert [list(line.get_xdata()) for line in full.lines if line.get_marker() == "o"][:2] == [[0, 1, 2], [10, 11, 12]]
    assert [[line.get_xdata()[0] for line in ax.lines if line.get_marker() == "D"] for ax in (hidden, full)] == [
        [drawing.PUBLISHED[f"{HOPPER}_positions", "TD3", memory] for memory in (False, True)],
        [drawing.PUBLISHED[f"{HOPPER}_full", policy, False] for policy in ("TD3", "PPO")]]


def dashed(ax, at):
    """Where a panel's dashed lines are: their x or their y."""
    return [getattr(line, f"get_{at}data")()[0] for line in ax.lines if line.get_linestyle() == "--"]


@pytest.mark.parametrize("env,mark,words", [
    ("Cue10-v0", 0.5, "share of right choices (dashed: chance, 0.5)"),
    ("CueDiscrete7-v0", 0.5, "share of right choices (dashed: chance, 0.5)"),
    ("CartPole-v1", 475, "steps upright (dashed: solved, 475)"), ("Pendulum-v1", None, "return (0 is best)")])
def test_a_score_that_stands_out_is_marked_and_named_once(results, env, mark, words):
    write_run(results, "PPO", env=env)
    write_run(results, "A2C", env=env)
    [overview], curves = drawing.overview(lines_of(results)).axes, drawing.curves(lines_of(results)).axes
    assert overview.get_xlabel() == words and [ax.get_ylabel() for ax in curves] == [words.replace(" (d", "\n(d"), ""]
    assert dashed(overview, "x") == [mark] * bool(mark) and [dashed(ax, "y") for ax in curves] == [[mark] * bool(mark)] * 2


def test_curves_have_a_panel_per_algorithm_of_at_most_four_lines(results):
    for seed in range(3):
        write_run(results, seed=seed, curve={0: [1] * 4, 5_000: [2] * 4, 75_000: [seed] * 4}, finished=seed > 0)
    for seq_len in (1, 2, 4, 8):
        write_run(results, **recurrent(seq_len=seq_len))
    write_run(results, "PPO")
    fig = drawing.curves(lines_of(results))
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["TD3", "TD3: LSTM, seq_len=8 301", "PPO: no memory 301"]
    ends = [[text.get_text().replace("\n", " ").replace("\u00a0", " ") for text in ax.texts] for ax in fig.axes]
    assert sorted(ends[0] + ends[1]) == [f"LSTM, seq_len={x}, 1 seed" for x in (1, 2, 4, 8)] + ["no memory, 3 seeds"]
    assert [len(them) for them in ends] == [4, 1, 1]
    ax = fig.axes[0]
    keys = [(line.get_color(), line.get_linestyle()) for line in ax.lines if line.get_transform() == ax.transAxes]
    assert len(keys) == len(set(keys)) == 4 and "60k" in [tick.get_text() for tick in fig.axes[0].get_xticklabels()]
    assert fig.axes[0].get_ylabel() == "return" and "\u00d7 is where an unfinished run stands." in fig._supxlabel.get_text()
    crosses = [list(line.get_xdata()) for ax in fig.axes for line in ax.lines if line.get_marker() == "x"]
    assert crosses == [[75_000]]


def test_a_run_that_has_only_begun_is_drawn(results):
    write_run(results, curve={0: [5]}, finished=False)
    [row] = draw(results)
    assert row["last"] == "5"


# ---------------------------------------------------------------------- choosing

@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with results/reference, results/history and, if `own` is called, a run of one's own."""
    for folder, flags in (("reference", {}), ("reference", dict(env="Pendulum-v1")), ("history", dict(hidden_layers=1))):
        (tmp_path / "results" / folder).mkdir(parents=True, exist_ok=True)
        for seed in range(2):
            write_run(tmp_path / "results" / folder, seed=seed, **flags)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.glob("plots/**/*.*"))


OVERVIEW = ["overview.png", "summary.csv"]


@pytest.mark.parametrize("words,where,figures", [
    ([], "plots", [f"{HOPPER}_full.png", "Pendulum-v1_full.png"]),
    (["--all"], "plots/own", [f"{HOPPER}_full.png", "Pendulum-v1_full.png"]),
    (["--env", "pend*"], "plots/own", ["Pendulum-v1_full.png"]),
    (["--where", "env=Pendulum-v1", "--where", f"env={HOPPER}"], "plots/own", [f"{HOPPER}_full.png", "Pendulum-v1_full.png"]),
    (["--policy", "TD3", "--where", "lr=6e-4", "--env", HOPPER], "plots/own", [f"{HOPPER}_full.png"]),
    (["results/history"], "plots/own", [f"{HOPPER}_full.png"]),
    (["results/history/run0.csv"], "plots/own", [f"{HOPPER}_full.png"])])
def test_what_is_chosen_leaves_the_committed_figures_alone(project, words, where, figures, capsys):
    plot.main(words)
    assert written(project) == sorted(f"{where}/{name}" for name in figures + OVERVIEW)
    assert ("hidden_layers=1" in capsys.readouterr().out) == ("--all" in words)


def test_ones_own_runs_are_drawn_beside_the_reference_and_on_its_tasks_only(project):
    write_run(project / "results", seed=0, curve={0: [5.0], 500: [7.0]}, max_timesteps=500, eval_freq=500)
    plot.main([])
    assert written(project) == sorted(f"plots/own/{name}" for name in [f"{HOPPER}_full.png", *OVERVIEW])
    lines = plot.make_lines(plot.read_runs({"results/reference": False, "results": True}))
    assert [(line.label, line.own, len(line.runs)) for line in lines] == [
        ("no memory", False, 2), ("no memory, 500 steps, yours", True, 1), ("no memory", False, 2)]
    assert max(drawing.curves(lines[:2]).axes[0].get_xlim()) < 600      # the reference is drawn as far as it goes


def test_figures_of_an_earlier_call_are_removed_and_nothing_else(project):
    """The reader's own run is one of another task now."""
    path = write_run(project / "results")
    plot.main([])
    assert f"plots/own/{HOPPER}_full.png" in written(project)
    mine = {"plots/own/mine.png": b"\x89PNG", "plots/own/notes.csv": b"a", "plots/Pendulum-v1_full.png": b"committed"}
    for name, content in mine.items():
        (project / name).write_bytes(content)
    for end in (".csv", ".json"):
        os.remove(path + end)
    write_run(project / "results", env="Pendulum-v1")
    plot.main([])
    assert written(project) == sorted([*mine, *(f"plots/own/{name}" for name in ["Pendulum-v1_full.png", *OVERVIEW])])
    assert all((project / name).read_bytes() == content for name, content in mine.items())


def test_ones_own_measurements_of_memory_stand_beside_the_committed_ones(project, capsys):
    """They are no runs."""
    about = json.dumps(dict(config=dict(policy="PPO", env="Cue10-v0", observe="full")))
    for folder in (project / "results" / "policies", project / "results"):
        folder.mkdir(exist_ok=True)
        for kind in ("lookback", "memory_steps"):
            (folder / f"a_cue.{kind}.csv").write_text(f"# {about}\nsteps,episode,value\n1,0,2\n1,1,3\n")
    plot.main([])
    assert written(project) == sorted(f"plots/own/{name}" for name in [
        f"{HOPPER}_full.png", "Pendulum-v1_full.png", "lookback.png", "memory_steps.png", *OVERVIEW])
    titles = [ax.get_title(loc="left") for ax in plot.lookback_figures.draw("results/policies", ["results"])["lookback"].axes]
    assert titles == ["PPO: Recall a cue seen 10\nsteps ago", "PPO: Recall a cue seen 10\nsteps ago\nyours: a_cue"]
    out, err = capsys.readouterr()
    assert err == "" and out.startswith("4 runs are read; drawing")
    plot.main(["results/policies"])                                    # a folder that holds nothing else
    assert written(project) == ["plots/own/lookback.png", "plots/own/memory_steps.png"]
    out, err = capsys.readouterr()
    assert err == "" and out.splitlines() == ["", "2 figures are in plots/own"]


def test_all_means_all_though_some_runs_are_ones_own(project, capsys):
    write_run(project / "results", env="Cue10-v0", seed=5)
    plot.main([])
    assert capsys.readouterr().out.count("fully observed") == 1
    plot.main(["--all"])
    assert capsys.readouterr().out.count("fully observed") > 1


def test_ones_own_run_of_the_references_flags_and_seed_does_not_take_its_place(project, capsys):
    write_run(project / "results", seed=0)
    lines = plot.make_lines(plot.read_runs({"results/reference": False, "results": True}))
    assert [line.label for line in lines[:2]] == ["no memory", "no memory, yours"] and capsys.readouterr().err == ""


@pytest.mark.parametrize("words,says", [
    (["--env", "Hoper*"], f"no run that is left has env=Hoper*; there is {HOPPER}, Pendulum-v1"),
    (["--where", "lr=1", "--env", HOPPER], "lr=1; there is 0.0006"), (["--where", "seqlen"], "no such flag"),
    (["--study", "x.toml", "--all"], "--study draws all of one study")])
def test_what_no_run_has_is_one_line(project, words, says, capsys):
    with pytest.raises(SystemExit) as stop:
        plot.main(words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and says in error and error.count("\n") == 1


def test_git_follows_committed_results_and_none_of_ones_own(tmp_path):
    """.gitignore, in a repository of its own."""
    root = os.path.dirname(os.path.abspath(plot.__file__))
    shutil.copy(os.path.join(root, ".gitignore"), tmp_path)
    own = ["results/run.csv", "results/run.json", "results/run.staleness.csv", "results/tensorboard/run/events",
           "results/sweep/a.csv", "plots/own/overview.png", "hopper.gif"]
    kept = ["results/reference/run.csv", "results/history/pilot/run.json", "results/memory/PPO_cue.csv", "plots/overview.png"]
    for name in own + kept:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    said = subprocess.run(["git", "-C", tmp_path, "status", "--porcelain", "-uall"], capture_output=True, text=True).stdout
    assert {line[3:] for line in said.splitlines()} == {*kept, ".gitignore"}


def test_arrows_go_one_way():
    """What lies in support/ imports nothing of the top level, and drawing is short."""
    root = pathlib.Path(plot.__file__).parent
    for path in (root / "support").glob("*.py"):
        modules = re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.M)
        assert not {name for name in modules if (root / f"{name}.py").exists()}, path
    assert sum(len((root / name).read_text().splitlines()) for name in (
        "plot.py", "support/drawing.py", "support/study_figures.py")) <= 600


# ---------------------------------------------------------------------- bad input

def spoil_csv(path, text):
    with open(path + ".csv", "a") as file:
        file.write(text)


def cut(path, end, text=slice(None), lines=slice(None)):
    """Keep a part of a file."""
    with open(path + end, newline="") as file:
        kept = "".join(file.read().splitlines(keepends=True)[lines])[text]
    with open(path + end, "w", newline="") as file:
        file.write(kept)


def spoil_json(path, **flags):
    with open(path + ".json") as file:
        info = json.load(file)
    with open(path + ".json", "w") as file:
        json.dump(info | {"config": info["config"] | flags}, file)


def in_its_place(path, make):
    os.remove(path)
    make(path)


DAMAGE = {
    "no last line": lambda path: cut(path, ".csv", lines=slice(-1)),
    "no end of the last line": lambda path: cut(path, ".csv", text=slice(-3)),
    "no line in the middle": lambda path: cut(path, ".csv", lines=slice(0, None, 2)),
    "a pipe": lambda path: in_its_place(path + ".csv", os.mkfifo),
    "a pipe as json": lambda path: in_its_place(path + ".json", os.mkfifo),
    "a pipe as measurements": lambda path: os.mkfifo(path + ".staleness.csv"),
    "a folder": lambda path: in_its_place(path + ".csv", os.mkdir),
    "a folder as json": lambda path: in_its_place(path + ".json", os.mkdir),
    "a step of many digits": lambda path: spoil_csv(path, "9" * 4_000 + ",0,1.0,100,450.0\n"),
    "a return of many digits": lambda path: spoil_csv(path, f"45000,0,{'9' * 200},100,450.0\n"),
    "a negative step": lambda path: spoil_csv(path, "-5,0,1.0,100,450.0\n"),
    "deep json": lambda path: open(path + ".json", "w").write("[" * 100_000),
    "deep flag": lambda path: spoil_json(path, lr=json.loads("[" * 500 + "]" * 500)),
    "infinite flag": lambda path: spoil_json(path, lr=math.inf),
    "unknown flag that is not a number": lambda path: spoil_json(path, another=math.nan),
    "flag of many digits": lambda path: spoil_json(path, hidden_size=10 ** 4_000),
    "long flags": lambda path: spoil_json(path, **{f"another{i}": "x" * 100 for i in range(1_000)}),
    "env of many letters": lambda path: spoil_json(path, env="x" * 300),
    "half a letter": lambda path: spoil_json(path, env="\ud800"),
    "control character": lambda path: spoil_json(path, env="a\0b"),
    "evaluated never": lambda path: spoil_json(path, eval_freq=0),
    **{f"{name} {value!r}": lambda path, name=name, value=value: spoil_json(path, **{name: value}) for name, value in [
        ("policy", "tests/../TD3"), ("policy", "os"), ("policy", None), ("env", None), ("env", 3), ("seed", None), ("seed", -1),
        ("seed", True), ("observe", "nothing"), ("core", 5), ("recurrent_actor", "no"), ("flicker", "much"), ("flicker", None),
        ("load_model", None), ("seq_len", None), ("hidden_size", "wide")]},
    "half a line": lambda path: spoil_csv(path, "45000,0,3"),
    "not a number": lambda path: spoil_csv(path, "45000,0,much,100,450.0\n"),
    "nan": lambda path: spoil_csv(path, "45000,0,nan,100,450.0\n"),
    "empty csv": lambda path: open(path + ".csv", "w").close(),
    "binary csv": lambda path: open(path + ".csv", "wb").write(b"\xff\x00\xfe\n" * 9),
    "other columns": lambda path: open(path + ".csv", "w").write("a,b\n1,2\n"),
    "half a json": lambda path: open(path + ".json", "w").write('{"config": {"policy": "TD'),
    "no config": lambda path: open(path + ".json", "w").write("{}"),
    "a list": lambda path: open(path + ".json", "w").write("[1]"),
    "no seed": lambda path: open(path + ".json", "w").write(
        '{"config": {"policy": "TD3", "recurrent_actor": false, "recurrent_critic": false}}'),
    "unknown policy": lambda path: open(path + ".json", "w").write('{"config": {"policy": "NONE"}}'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_among_good_ones_is_left_out_with_a_warning(results, damage, capsys):
    write_run(results, seed=0)
    DAMAGE[damage](write_run(results, seed=1, name="bad"))
    [run] = plot.read_runs({str(results): False})
    out, error = capsys.readouterr()
    assert run.config["seed"] == 0 and out == ""
    assert error.startswith("warning: ") and "bad." in error and error.count("\n") == 1


@pytest.mark.parametrize("step", [-5, 2 ** 33, 2.5])
def test_a_step_that_no_run_can_have_is_damage(results, step, capsys):
    write_run(results, curve={0: [1.0], step: [1.0]})
    assert "cannot be one of a run" in refused(results, capsys)


def test_results_from_before_their_lines_were_counted_are_drawn(results):
    path = write_run(results)
    with open(path + ".json") as file:
        info = json.load(file)
    del info["lines"]
    with open(path + ".json", "w") as file:
        json.dump(info, file)
    cut(path, ".csv", lines=slice(-1))
    [run] = plot.read_runs({str(results): False})
    assert max(run.table.index) == 40_000


@pytest.mark.parametrize("damage", ["no last line", "gone"])
def test_measurements_that_are_cut_or_gone_are_left_out(results, damage, capsys):
    path = write_run(results, staleness=True, **recurrent())
    write_staleness(path, [(5_003, 0.5, 0.1), (10_000, 0.5, 0.2)])
    with open(path + ".json") as file:
        info = json.load(file)
    info["lines"][".staleness.csv"] = 3
    with open(path + ".json", "w") as file:
        json.dump(info, file)
    assert dict(plot.read_run(path).table.delta_q_first.dropna()) == {5_000: 0.5, 10_000: 0.5}
    cut(path, ".staleness.csv", lines=slice(-1)) if damage == "no last line" else os.remove(path + ".staleness.csv")
    assert "run0.csv or .json is missing or damaged" in refused(results, capsys)


@pytest.mark.parametrize("env", ["$", "$x", r"$\frac$", "a/b:c", "%s", "{}", "..", " ", "_^"])
def test_strange_names_are_drawn_as_they_are(results, env):
    write_run(results, env=env, another=env)
    write_run(results, env=env, another=3)
    write_run(results, env=env, another=None)
    assert {row["env"] for row in draw(results)} == {env}
    assert len(list((results.parent / "plots").glob("*.png"))) == 2


STRANGE = [None, True, -1, 0, 0.5, 10 ** 30, 1e308, "", "x", "$", "9" * 5_000, "full", "nan", [], {}, [[1]], math.nan, "\0",
           "\ud800", "../x"]


def mutate(random, path):
    """Damage one of a run's files in one of many ways; it is damaged then, so a second time is not always possible."""
    end = random.choice([".json", ".csv", ".staleness.csv"])
    way = random.randrange(6)
    with open(path + end, "rb") as file:
        content = bytearray(file.read())
    at, to = sorted(random.randrange(len(content)) for _ in range(2))
    if way == 0:
        content[at] ^= 1 << random.randrange(8)
    elif way == 1:
        del content[at:to]
    elif way == 2:
        content[at:at] = random.choice([b"9", b"-", b",", b"\n", b'"', b"\0", b"\xff", b"[", b"e9", bytes(content[at:to])])
    elif way == 3:
        number = random.choice([b"0", b"-1", b"nan", b"inf", b"1e308", b"9" * 4_000, b"", b"x"])
        content = content.replace(random.choice(re.findall(rb"[\w.]+", content)), number, random.choice([1, -1]))
    elif end == ".json":
        info = json.loads(content)
        place = random.choice([info, info["config"], info["config"], info["config"]])
        place[random.choice([*place, "another"])] = random.choice(STRANGE)
        content = json.dumps(info).encode()
    else:
        lines = content.splitlines(keepends=True)
        random.shuffle(lines)
        content = b"".join(lines[:random.randrange(len(lines) + 1)])
    with open(path + end, "wb") as file:
        file.write(content)


@pytest.mark.parametrize("seed", range(int(os.environ.get("FUZZ", 60)) // 20))
def test_whatever_lies_among_the_results_the_good_ones_are_drawn(tmp_path, seed):
    """Twenty damaged runs beside a good one."""
    random, results = Random(seed), tmp_path / "results"
    results.mkdir()
    write_run(results, env="Good-v0", name="good")
    for number in range(20):
        path = write_run(results, random.choice(["TD3", "PPO"]), number % 3, staleness=True, name=f"bad{number}", **recurrent())
        write_staleness(path, [(5_003, 0.5, 0.1), (10_000, "nan", "nan"), (15_001, 0.7, 0.3)])
        mutate(random, path)
        with contextlib.suppress(Exception):
            mutate(random, path)
    plot.main([str(results), "--plots_dir", str(tmp_path / "plots")])
    assert imread(tmp_path / "plots" / "Good-v0_full.png").std() > 0.05
    with open(tmp_path / "plots" / "summary.csv", newline="") as file:
        assert [row["last"] for row in csv.DictReader(file) if row["env"] == "Good-v0"] == ["301"]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_alone_is_an_error(results, damage, capsys):
    DAMAGE[damage](write_run(results, name="bad"))
    assert "bad." in refused(results, capsys)


@pytest.mark.parametrize("policy", ["video", "tests/../TD3", "os"])
def test_a_file_of_results_names_no_module_to_import(results, policy, monkeypatch, capsys):
    """What is not an algorithm of flags.py is left out before its code could run."""
    monkeypatch.delitem(sys.modules, "video", raising=False)
    write_run(results, seed=0)
    with open(write_run(results, seed=1, name="bad") + ".json", "w") as file:
        json.dump(dict(config=dict(policy=policy, recurrent_actor=False, recurrent_critic=False)), file)
    assert len(plot.read_runs({str(results): False})) == 1 and "there is no policy" in capsys.readouterr().err
    assert "video" not in sys.modules


def refused(results, capsys, plots_dir=None):
    """The one line on stderr of a call that exits with 2."""
    with pytest.raises(SystemExit) as stop:
        draw(results, plots_dir)
    out, error = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and error.startswith("error: ") and error.count("\n") == 1
    return error


def test_tables_of_a_study_are_no_runs(results, capsys):
    for name in ("case.csv", "case.runs.csv"):
        (results / name).touch()
    assert "--study" in refused(results, capsys)
    write_run(results)
    assert len(plot.read_runs({str(results): True})) == 1              # they do not keep a run beside them from being drawn
    assert "--study" in capsys.readouterr().err


def test_a_run_that_is_named_by_both_of_its_files_is_read_once(results, capsys):
    path = write_run(results)
    assert len(plot.read_runs({path + ".csv": True, path + ".json": True, path: True})) == 1
    assert capsys.readouterr().err == ""


def test_what_is_half_written_or_of_another_program_is_no_run(results, capsys):
    path = write_run(results)
    for name in (path + ".csv.new", path + ".json.new", str(results / "notes.jsonl"), str(results / "style.css")):
        with open(name, "w") as file:
            file.write("x")
    assert len(draw(results)) == 1 and capsys.readouterr().err == ""


def test_no_results(results, capsys):
    assert "run main.py first" in refused(results, capsys)
    assert "nowhere.json is no file" in refused(results / "nowhere", capsys)


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_a_file_without_its_partner(results, ending, capsys):
    write_run(results, name="run")
    (results / f"run.{ending}").unlink()
    assert f"run.{ending} is no file" in refused(results, capsys)


def test_the_same_run_twice_counts_once(results, capsys):
    write_run(results, name="a")
    write_run(results, name="b")
    assert len(draw(results)) == 1 and "b.csv repeats" in capsys.readouterr().err


def test_plots_dir_that_cannot_be_written(results, capsys):
    write_run(results)
    (results.parent / "file").write_text("")
    assert "--plots_dir" in refused(results, capsys, results.parent / "file" / "plots")


def test_unknown_flag_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        plot.main(["--what"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and "--what" in error and error.count("\n") == 1


# ---------------------------------------------------------------------- stale hidden states

def write_staleness(path, rows):
    """rows: step, Delta-Q at the first, at the last trained step; None where no window could be measured."""
    with open(path + ".staleness.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "windows", "left_out", *tables.STALENESS])
        writer.writerows([step, 0 if first is None else 64, 0, first, last, 0, 0] for step, first, last in rows)


def test_figures_of_the_runs_that_measured_it(results, capsys):
    """A measurement stands at the evaluation before it."""
    write_staleness(write_run(results, seed=0, **recurrent()), [(5_003, 0.5, 0.1), (10_000, "nan", "nan"), (15_001, 0.7, 0.3)])
    write_staleness(write_run(results, seed=1, staleness=True, **recurrent()),
                    [(5_001, 0.3, 0.3), (10_002, 0.1, 0.1), (15_000, 0.1, 0.5)])
    write_staleness(write_run(results, **recurrent(hidden_init="stored")), [(5_000, None, None)])
    write_run(results)
    write_run(results, observe="positions")
    [line] = [line for line in lines_of(results) if len(line.table("delta_q_first"))]
    for column, means in (("delta_q_first", {5_000: 0.4, 15_000: 0.4}), ("delta_q_last", {5_000: 0.2, 15_000: 0.4})):
        assert dict(line.table(column).mean(axis=1)) == pytest.approx(means)
    draw(results)
    assert capsys.readouterr().err == ""
    assert sorted(path.stem for path in (results.parent / "plots").glob("*.png")) == [
        f"{HOPPER}_full", f"{HOPPER}_full_delta_q_first", f"{HOPPER}_full_delta_q_last", f"{HOPPER}_positions", "overview"]


def test_measurements_of_seeds_that_share_no_step_are_not_drawn(results):
    for seed, step in enumerate((5_000, 10_000)):
        write_staleness(write_run(results, seed=seed, **recurrent()), [(step, 0.5, 0.1)])
    draw(results)
    assert sorted(path.stem for path in (results.parent / "plots").glob("*.png")) == [f"{HOPPER}_full", "overview"]


def test_damaged_measurements_are_one_line(results, capsys):
    write_run(results, seed=0)
    write_staleness(write_run(results, seed=1, name="bad"), [(5_000, "much", 0.1)])
    assert len(plot.read_runs({str(results): False})) == 1
    assert capsys.readouterr().err.startswith(f"warning: {results}/bad.csv or .json is missing or damaged")


def test_a_measurement_belongs_to_the_evaluation_before_it(results):
    """Also where evaluations come at no multiple of --eval_freq, as with three environments."""
    path = write_run(results, curve={0: [1], 5_001: [2], 10_002: [3]}, **recurrent())
    write_staleness(path, [(5_001, 0.5, 0.1), (10_500, 0.7, 0.3)])
    assert plot.read_run(path).table.delta_q_first.dropna().to_dict() == {5_001: 0.5, 10_002: 0.7}


# ---------------------------------------------------------------------- what figures show

def test_bands_and_means_are_those_of_the_runs(results):
    ends = [1, 2, 4, 8, 20]
    for seed, end in enumerate(ends):
        write_run(results, seed=seed, curve={0: [end], 5_000: [end]})
    known = tuple(ttest_1samp(ends, 0).confidence_interval(0.95))
    [ax], [over] = drawing.curves(lines_of(results)).axes, drawing.overview(lines_of(results)).axes
    band = ax.collections[0].get_paths()[0].vertices
    at = band[band[:, 0] == 5_000, 1]
    assert (at.min(), at.max()) == pytest.approx(known)
    assert [7, 7] in [list(line.get_ydata()) for line in ax.lines if len(line.get_xdata()) == 2]
    [bar] = [line for line in over.lines if line.get_linewidth() == 7]
    assert tuple(bar.get_xdata()) == pytest.approx(known)


@pytest.mark.parametrize("memory, counted", [((1.5, 10), "0 of 1"), ((2, 2.1), "0 of 1"), ((2.1, 2.2), "1 of 1"), ((9,), "")])
def test_every_seed_with_memory_above_every_seed_without(results, memory, counted):
    """Seeds that overlap or are equal are not. One seed against one is no comparison."""
    for seed, end in enumerate(memory):
        write_run(results, seed=seed, curve={0: [2.0 * seed]})
        write_run(results, seed=seed, curve={0: [end]}, **recurrent())
    assert drawing.tally(lines_of(results)) == counted


def test_the_committed_numbers_are_those_of_the_runs():
    """By other hands, from the runs' CSV files: `last` in plots/summary.csv, from which the tables in README and docs are."""
    root = pathlib.Path(plot.__file__).parent
    table = plot.pd.read_csv(root / "plots" / "summary.csv")
    own = plot.BOOKKEEPING | {"folder", "run", "finished", "steps", "last", "minutes"}
    groups = table.groupby([name for name in table if name not in own], dropna=False)
    assert len(groups) > 20
    for _, mine in groups:
        curves = [plot.pd.read_csv(root / "results" / row.folder / f"{row.run}.csv").groupby("step")["return"].mean()
                  for row in mine.itertuples()]
        ends = plot.pd.concat(curves, axis=1).dropna().sort_index().tail(5).mean()
        assert list(mine["last"]) == pytest.approx(list(ends), rel=1e-4)
