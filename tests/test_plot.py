"""plot.py: which runs are one line, the numbers, the figures, and what it says to bad input. All results are made up here."""
import contextlib
import csv
import json
import math
import os
import re
import sys
import warnings
from random import Random

import numpy as np
import pytest
from matplotlib.image import imread

import plot
import PPO
import TD3

HOPPER = "HopperBulletEnv-v0"
MODULES = {"TD3": TD3, "PPO": PPO}


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


def labels(results):
    """{file name: labels in the order of the legend}"""
    figures = plot.group_runs(plot.read_results(results))
    return {name: [g.label() for g in groups] for (_, _, name), groups in figures.items()}


def draw(results, plots_dir=None):
    """Run plot.py; returns the rows of summary.csv. A warning, such as of NaN, is an error."""
    plots_dir = plots_dir or results.parent / "plots"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot.main(["--results_dir", str(results), "--plots_dir", str(plots_dir)])
    with open(plots_dir / "summary.csv", newline="") as file:
        return list(csv.DictReader(file))


# ---------------------------------------------------------------------- groups

def test_a_line_is_an_algorithm_with_its_core(results):
    write_run(results, "PPO", **recurrent())
    write_run(results, "PPO", recurrent_actor=True)
    write_run(results, "PPO", recurrent_critic=True)
    write_run(results, **recurrent(core="gru"))
    write_run(results, **recurrent())
    write_run(results)
    assert labels(results) == {f"{HOPPER}_full": [
        "TD3, feed-forward", "TD3, LSTM actor and critic", "TD3, GRU actor and critic",
        "PPO, LSTM actor and critic", "PPO, LSTM actor only", "PPO, LSTM critic only"]}


def test_the_axis_says_where_steps_are_updates(results):
    write_run(results)
    [groups] = plot.group_runs(plot.read_results(results)).values()
    assert plot.unit(groups) == "environment steps"
    write_run(results, "BCQ", dataset="hopper/td3-v0")
    [groups] = plot.group_runs(plot.read_results(results)).values()
    assert plot.unit(groups) == "environment steps (BCQ: updates)"
    axes = plot.figure("title", groups).axes
    assert axes[0].get_xlabel() == plot.unit(groups)
    assert [g.label() for g in groups][1] == "BCQ, feed-forward, dataset=hopper/td3-v0"


def test_a_figure_per_environment_and_observation(results):
    write_run(results)
    write_run(results, observe="positions")
    write_run(results, observe="positions", flicker=0.2)
    write_run(results, env="ns/Env-v1")
    assert set(labels(results)) == {f"{HOPPER}_full", f"{HOPPER}_positions", f"{HOPPER}_positions_flicker=0.2", "ns-Env-v1_full"}
    rows = draw(results)
    assert [row["observation"] for row in rows] == ["fully observed", "positions only", "positions only, flicker=0.2",
                                                    "fully observed"]
    assert {path.stem for path in (results.parent / "plots").glob("*.png")} == set(labels(results))


def test_seeds_and_bookkeeping_do_not_part_a_line(results):
    write_run(results, seed=0)
    write_run(results, seed=1, results_dir="elsewhere", threads=2, device="cuda", save_model=True, overwrite=True,
              eval_freq=1_000, eval_episodes=3)
    [(_, [group])] = plot.group_runs(plot.read_results(results)).items()
    assert [run.config["seed"] for run in group.runs] == [0, 1]


@pytest.mark.parametrize("policy", ["TD3", "PPO"])
def test_the_length_of_a_run_parts_lines(results, policy):
    """A short try of one's own must not cut the line of longer runs short."""
    write_run(results, policy, seed=0)
    write_run(results, policy, seed=1, max_timesteps=40_000)
    assert labels(results)[f"{HOPPER}_full"] == [f"{policy}, feed-forward", f"{policy}, feed-forward, max_timesteps=40000"]


def test_other_flags_stand_in_the_label_in_order(results):
    for seq_len in ("full", 64, 8):
        write_run(results, **recurrent(seq_len=seq_len, replay_ratio=7.0))
    write_run(results, **recurrent(seq_len=32))                        # the default of a recurrent TD3
    assert labels(results)[f"{HOPPER}_full"] == ["TD3, LSTM actor and critic"] + [
        f"TD3, LSTM actor and critic, seq_len={x}, replay_ratio=7" for x in (8, 64, "full")]


@pytest.mark.parametrize("flag", ["burn_in", "load_model"])
def test_a_run_from_before_a_flag_was_added_belongs_to_its_default(results, flag):
    path = write_run(results, seed=0)
    write_run(results, seed=1)
    with open(path + ".json") as file:
        info = json.load(file)
    del info["config"][flag]
    with open(path + ".json", "w") as file:
        json.dump(info, file)
    assert labels(results)[f"{HOPPER}_full"] == ["TD3, feed-forward"]


# ---------------------------------------------------------------------- numbers

def test_the_last_five_evaluations_by_hand(results):
    steps = range(0, 60_001, 10_000)                                   # seven evaluations: the first two do not count
    write_run(results, seed=3, curve={step: [10 * i, 10 * i + 4] for i, step in enumerate(steps)})
    write_run(results, seed=4, curve={step: [100, 102] for step in steps}, finished=False)
    [row] = draw(results)
    first = (22 + 32 + 42 + 52 + 62) / 5
    assert float(row["mean"]) == pytest.approx((first + 101) / 2, abs=0.05)
    assert row["per_seed"] == f"3:{first:.1f} 4:101.0"
    assert (row["seeds"], row["unfinished"], row["steps"], row["minutes"]) == ("2", "1", "60000", "10.0")
    assert (float(row["low"]), float(row["high"]), row["kind"]) == (first, 101, "range")   # of two seeds


def test_the_mean_is_over_the_steps_that_all_seeds_share(results):
    write_run(results, seed=0, curve={step: [1] for step in range(0, 60_001, 10_000)})
    write_run(results, seed=1, curve={step: [3] for step in range(0, 40_001, 5_000)}, finished=False)
    [groups] = plot.group_runs(plot.read_results(results)).values()
    assert groups[0].steps == [0, 10_000, 20_000, 30_000, 40_000]
    assert np.array_equal(groups[0].returns.mean(0), np.full(5, 2))
    [row] = draw(results)
    assert (row["steps"], row["mean"]) == ("40000", "2.0")


def test_table(results, capsys):
    write_run(results, seed=0)
    write_run(results, seed=1)
    write_run(results, observe="velocities", finished=False, **recurrent())
    draw(results)
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("TD3, feed-forward"))
    assert line.split()[2:] == ["2", "40k", "301.5", "301.0", "to", "302.0", "(range)", "6.7", "0:301.0", "1:302.0"]
    assert f"{HOPPER}, velocities only" in out and "1*" in out and "nan" not in out


# ---------------------------------------------------------------------- figures

def test_drawing_twice_gives_the_same_bytes(results):
    for seed in range(3):
        write_run(results, seed=seed)
        write_run(results, "PPO", seed=seed, **recurrent())
    draw(results, results.parent / "a")
    draw(results, results.parent / "b")
    for name in (f"{HOPPER}_full.png", "summary.csv"):
        assert (results.parent / "a" / name).read_bytes() == (results.parent / "b" / name).read_bytes()
    height, width = imread(results.parent / "a" / f"{HOPPER}_full.png").shape[:2]
    assert width == 1500 and height < 1500


def drawn(results):
    """The one figure of some results, laid out, and the boxes of its axes and its texts by kind."""
    [((env, observation, _), groups)] = plot.group_runs(plot.read_results(results)).items()
    fig = plot.figure(f"{env}, {observation}", groups)
    return fig, [ax.get_window_extent() for ax in fig.axes], [ax.get_legend().get_window_extent() for ax in fig.axes]


def apart(boxes):
    return not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize("many", [False, True])
def test_nothing_overlaps_and_nothing_is_cut_off(results, many):
    for seed in range(2):
        write_run(results, seed=seed, replay_ratio=7.0)
        for flags in [dict(seq_len="full", hidden_init="stored", core_size=9, memory_input="obs")] + \
                [dict(seq_len=x) for x in ((1, 2, 4, 8, 16, 64, 128) if many else ())]:
            write_run(results, seed=seed, replay_ratio=7.0, finished=False, **recurrent(**flags))
    fig, axes, legends = drawn(results)
    assert len(axes) == (2 if many else 1)
    boxes = axes + legends + [text.get_window_extent() for text in (fig._suptitle, fig._supxlabel)]
    assert apart(boxes)
    assert all(0 <= b.x0 and b.x1 <= fig.bbox.x1 and 0 <= b.y0 and b.y1 <= fig.bbox.y1 for b in boxes)


def test_figure_says_what_it_shows(results):
    for seed in range(3):
        write_run(results, seed=seed, observe="positions", lr=0.5, curve={0: [1] * 4, 5_000: [2] * 4, 75_000: [seed] * 4})
    write_run(results, "PPO", observe="positions", lr=0.5, hidden_size=9, finished=False, **recurrent())
    fig, _, _ = drawn(results)
    [ax] = fig.axes
    text = fig._supxlabel.get_text().replace("\n", " ")
    assert fig._suptitle.get_text() == f"{HOPPER}, positions only"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("environment steps", "evaluation return")
    assert "60k" in [tick.get_text() for tick in ax.get_xticklabels()]
    legend = [entry.get_text().replace("\u00a0", " ") for entry in ax.get_legend().get_texts()]
    assert legend == ["TD3, feed-forward (3 seeds)", "PPO, LSTM actor and critic, hidden_size=9 (1 seed)"]
    for words in ("mean over 1 to 3 seeds", "with fewer than 5 seeds their range, or none with one seed", "2 to 4 per seed",
                  "40k to 75k environment steps",
                  "Set for all lines: lr=0.5.", "Unfinished: PPO, LSTM actor and critic, hidden_size=9, seed 0, at 40k."):
        assert words in text, (words, text)


def test_lines_look_different(results):
    for policy in MODULES:
        write_run(results, policy)
        for flags in (dict(), dict(core="gru")):
            write_run(results, policy, **recurrent(**flags))
    fig, _, _ = drawn(results)
    looks = [(line.get_color(), line.get_linestyle(), line.get_marker()) for line in fig.axes[0].get_legend().get_lines()]
    assert len(looks) == 6 and len({color for color, _, _ in looks}) == 6


def test_panels_hold_every_line_beside_what_it_is_compared_with(results):
    write_run(results)
    for flags in [dict(seq_len=x) for x in (1, 8, 16, 64, "full")] + [dict(), dict(hidden_init="stored")] + \
            [dict(hidden_init="stored", critic_hidden=x) for x in ("actor", "zero")]:
        write_run(results, **recurrent(**flags))
    [groups] = plot.group_runs(plot.read_results(results)).values()
    panels = dict(plot.split(groups, {}))
    assert {title: len(lines) for title, lines in panels.items()} == {"TD3, seq_len": 7, "TD3, hidden_init, critic_hidden": 5}
    assert {id(g) for lines in panels.values() for g in lines} == {id(g) for g in groups}


def test_the_first_steps_of_all_stand_beside_much_longer_runs(results):
    write_run(results, finished=False)                                 # 40k
    for seed, finished in enumerate([True, False]):
        write_run(results, "PPO", seed, curve={step: [seed] for step in range(0, 130_000, 10_000)}, finished=finished)
    fig, _, _ = drawn(results)
    first, whole = fig.axes
    assert [ax.get_title(loc="left") for ax in (first, whole)] == ["the first 40k steps", "all steps"]
    assert max(first.get_xlim()) < 45_000 and max(whole.get_xlim()) > 120_000 and first.get_ylim() == whole.get_ylim()
    assert [line.get_color() for line in first.lines] == [line.get_color() for line in whole.lines][:-1]
    crosses = [[line.get_xdata()[-1] for line in ax.lines if line.get_marker() == "x"] for ax in (first, whole)]
    assert crosses == [[40_000], [40_000, 120_000]]                    # an unfinished run ends where it ends


def test_a_run_that_has_only_begun_is_drawn(results):
    write_run(results, curve={0: [5]}, finished=False)
    [row] = draw(results)
    assert (row["mean"], row["low"], row["high"], row["kind"]) == ("5.0", "", "", "")


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
    [run] = plot.read_results(results)
    out, error = capsys.readouterr()
    assert run.config["seed"] == 0 and out == ""
    assert error.startswith("warning: ") and "bad." in error and error.count("\n") == 1


def test_results_from_before_their_lines_were_counted_are_drawn(results):
    path = write_run(results)
    with open(path + ".json") as file:
        info = json.load(file)
    del info["lines"]
    with open(path + ".json", "w") as file:
        json.dump(info, file)
    cut(path, ".csv", lines=slice(-1))
    [run] = plot.read_results(results)
    assert max(run.curve) == 40_000


@pytest.mark.parametrize("damage", ["no last line", "gone"])
def test_measurements_that_are_cut_or_gone_are_left_out(results, damage, capsys):
    path = write_run(results, staleness=True, **recurrent())
    write_staleness(path, [(5_003, 0.5, 0.1), (10_000, 0.5, 0.2)])
    with open(path + ".json") as file:
        info = json.load(file)
    info["lines"][".staleness.csv"] = 3
    with open(path + ".json", "w") as file:
        json.dump(info, file)
    assert plot.read_run(path).staleness["first"] == {5_000: 0.5, 10_000: 0.5}
    cut(path, ".staleness.csv", lines=slice(-1)) if damage == "no last line" else os.remove(path + ".staleness.csv")
    assert "run0.staleness.csv is missing or damaged" in refused(results, capsys)


@pytest.mark.parametrize("env", ["$", "$x", r"$\frac$", "a/b:c", "%s", "{}", "..", " ", "_^"])
def test_strange_names_are_drawn_as_they_are(results, env):
    write_run(results, env=env, another=env)
    write_run(results, env=env, another=3)
    write_run(results, env=env, another=None)
    assert {row["env"] for row in draw(results)} == {env}
    assert len(list((results.parent / "plots").glob("*.png"))) == 1


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
        write_staleness(path, [(5_003, 0.5, 0.1), (10_000, None, None), (15_001, 0.7, 0.3)])
        mutate(random, path)
        with contextlib.suppress(Exception):
            mutate(random, path)
    plot.main(["--results_dir", str(results), "--plots_dir", str(tmp_path / "plots")])
    assert imread(tmp_path / "plots" / "Good-v0_full.png").std() > 0.05
    with open(tmp_path / "plots" / "summary.csv", newline="") as file:
        assert [row["mean"] for row in csv.DictReader(file) if row["env"] == "Good-v0"] == ["301.0"]


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
    assert len(plot.read_results(results)) == 1 and "there is no policy" in capsys.readouterr().err
    assert "video" not in sys.modules


def refused(results, capsys, plots_dir=None):
    """The one line on stderr of a call that exits with 2."""
    with pytest.raises(SystemExit) as stop:
        draw(results, plots_dir)
    out, error = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and error.startswith("error: ") and error.count("\n") == 1
    return error


def test_no_results(results, capsys):
    assert "run main.py first" in refused(results, capsys)
    assert "run main.py first" in refused(results / "nowhere", capsys)


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_a_file_without_its_partner(results, ending, capsys):
    write_run(results, name="run")
    (results / f"run.{ending}").unlink()
    assert f"run.{ending} is missing or damaged (" in refused(results, capsys)


def test_the_same_run_twice_counts_once(results, capsys):
    write_run(results, name="a")
    write_run(results, name="b")
    [row] = draw(results)
    assert row["seeds"] == "1" and "b.csv repeats" in capsys.readouterr().err


def test_plots_dir_that_cannot_be_written(results, capsys):
    write_run(results)
    (results.parent / "file").write_text("")
    assert "--plots_dir" in refused(results, capsys, results.parent / "file" / "plots")


def test_unknown_flag_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        plot.main(["--what"])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and "--what" in error and error.count("\n") == 1


def test_runs_of_a_study_are_in_its_own_figures_only(results):
    (results / "pilot").mkdir()
    write_run(results)
    write_run(results / "pilot", "PPO")
    assert labels(results) == {f"{HOPPER}_full": ["TD3, feed-forward"]}
    assert labels(results / "pilot") == {f"{HOPPER}_full": ["PPO, feed-forward"]}


def test_a_run_of_ones_own_takes_the_place_of_the_reference(results, capsys):
    (results / "reference").mkdir()
    write_run(results / "reference", seed=0, curve={0: [1.0]}, name="a")
    write_run(results / "reference", seed=1, curve={0: [2.0]}, name="b")
    write_run(results, seed=0, curve={0: [5.0]}, name="z")
    runs = plot.read_results(str(results))
    assert sorted((run.config["seed"], run.curve[0]) for run in runs) == [(0, 5.0), (1, 2.0)]
    assert "repeats the flags" in capsys.readouterr().err


# ---------------------------------------------------------------------- stale hidden states

def write_staleness(path, rows):
    """rows: step, Delta-Q at the first, at the last trained step; None where no window could be measured."""
    with open(path + ".staleness.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "windows", "left_out", "delta_q_first", "delta_q_last"])
        writer.writerows([step, 0 if first is None else 64, 0, first, last] for step, first, last in rows)


def test_a_second_figure_of_the_runs_that_measured_it(results, capsys):
    write_staleness(write_run(results, seed=0, **recurrent()), [(5_003, 0.5, 0.1), (10_000, "nan", 0.2), (15_001, 0.7, 0.3)])
    write_staleness(write_run(results, seed=1, staleness=True, **recurrent()),
                    [(5_001, 0.3, 0.3), (10_002, 0.1, 0.1), (15_000, 0.1, 0.5)])
    write_staleness(write_run(results, **recurrent(hidden_init="stored")), [(5_000, None, None)])
    write_run(results)
    write_run(results, observe="positions")
    [groups, _] = plot.group_runs(plot.read_results(results)).values()
    first, last = plot.delta_q_panels(groups)
    assert [g.label() for g in first[1]] == [g.label() for g in last[1]] == ["TD3, LSTM actor and critic"]
    assert first[1][0].steps == [5_000, 15_000] and np.allclose(first[1][0].returns, [[0.5, 0.7], [0.3, 0.1]])
    assert np.allclose(last[1][0].returns, [[0.1, 0.3], [0.3, 0.5]])
    draw(results)
    assert capsys.readouterr().err == ""
    names = [f"{HOPPER}_full", f"{HOPPER}_full_staleness", f"{HOPPER}_positions"]
    plots = results.parent / "plots"
    assert sorted(path.stem for path in plots.glob("*.png")) == names
    assert imread(plots / f"{names[1]}.png").std() > 0.05


def test_measurements_of_seeds_that_share_no_step_are_not_drawn(results):
    for seed, step in enumerate((5_000, 10_000)):
        write_staleness(write_run(results, seed=seed, **recurrent()), [(step, 0.5, 0.1)])
    draw(results)
    assert [path.stem for path in (results.parent / "plots").glob("*.png")] == [f"{HOPPER}_full"]


def test_damaged_measurements_are_one_line(results, capsys):
    write_run(results, seed=0)
    write_staleness(write_run(results, seed=1, name="bad"), [(5_000, "much", 0.1)])
    assert len(plot.read_results(results)) == 1
    assert capsys.readouterr().err.startswith(f"warning: {results}/bad.staleness.csv is missing or damaged")


def test_a_run_that_starts_from_a_model_is_a_line_of_its_own(results):
    """Each seed may start from a model of its own, wherever that lies."""
    write_run(results)
    for seed in (1, 2):
        write_run(results, seed=seed, load_model=f"{results}/x_seed={seed}.best.pt")
    assert labels(results) == {f"{HOPPER}_full": ["TD3, feed-forward", "TD3, feed-forward, load_model=x.best.pt"]}
