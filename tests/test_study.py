"""plot.py --study: the numbers of a study, its intervals, its figures. All results but the committed ones are made up here."""
import glob
import os
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from scipy.stats import ttest_1samp, ttest_rel

import plot
import sweep
from support import statistics, study, study_figures, tables
from support.words import bounds

STUDY = """
seeds = [100, 101, 102, 103, 104, 105]
[common]
core_size = 4
[[cases]]
name = "PPO, cue"
policy = "PPO"
env = "Cue10-v0"
[[cases]]
name = "TD3, pendulum"
policy = "TD3"
env = "Pendulum-v1"
observe = "velocities"
without = ["short"]
[[runs]]
name = "common"
question = "Common arm"
words = "windows of 32"
recurrent = true
hidden_init = "stored"
staleness = true
[[runs]]
name = "no memory"
question = "Q4 Needed?"
recurrent = false
[[runs]]
name = "short"
question = "Q1 How long?"
recurrent = true
hidden_init = "stored"
seq_len = 1
staleness = true
[[runs]]
name = "zero"
question = "Q2 From where?"
recurrent = true
hidden_init = "zero"
staleness = true
"""
LEVELS = {"common": 0.9, "no memory": 0.5, "short": 0.6, "zero": 0.91}


@pytest.fixture
def made(tmp_path):
    """A study's file and the folder of its results; both cases are finished, and have a gain."""
    (tmp_path / "study.toml").write_text(STUDY)
    for case in ("PPO, cue", "TD3, pendulum"):
        write_case(tmp_path / "results", case, {arm: x for arm, x in LEVELS.items() if (case, arm) != ("TD3, pendulum", "short")})
    return tmp_path


def write_case(folder, case, levels, seeds=range(100, 106)):
    """The two tables of a case, as support/tables.py leaves them."""
    rng, rows, runs = np.random.default_rng(0), [], []
    for arm, level in levels.items():
        for seed in seeds:
            for step in range(0, 701, 100):
                stale = rng.uniform(0, 0.1) if arm != "no memory" and step else np.nan
                rows.append(dict(arm=arm, seed=seed, step=step, return_mean=level + 0.1 * rng.normal() if step else 99,
                                 **dict.fromkeys(tables.STALENESS, stale)))
            runs.append(dict(arm=arm, seed=seed, run=f"{arm}{seed}", cpu_minutes=0.5))
    folder.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(folder / f"{tables.name(case)}.csv", index=False)
    pd.DataFrame(runs).to_csv(folder / f"{tables.name(case)}.runs.csv", index=False)


def draw(made, plots="plots"):
    plot.main(["--study", str(made / "study.toml"), str(made / "results"), "--plots_dir", str(made / plots)])
    return pd.read_csv(made / plots / "summary.csv").set_index(["case", "arm"])


# ---------------------------------------------------------------------- intervals

def test_intervals_are_students_with_five_seeds_and_a_range_below():
    x = np.random.default_rng(1).normal(3, 2, (5, 4))                  # (seeds, ...)
    low, high, kind = statistics.interval(x)
    known = ttest_1samp(x, 0).confidence_interval(0.95)
    assert kind == "interval" and np.allclose([low, high], known)
    low, high, kind = statistics.interval(x[:4])
    assert kind == "range" and np.array_equal([low, high], [x[:4].min(0), x[:4].max(0)])
    low, high, kind = statistics.interval(x[:1])
    assert kind == "" and np.isnan([low, high]).all() and np.shape(low) == (4,)
    assert statistics.interval(np.full(7, 2.0)) == (2, 2, "interval")


def draws(number, seeds=10):
    for seed in range(number):
        rng = np.random.default_rng(seed)
        yield rng.normal([[1.5 + seed % 3 / 2], [2], [0]], [[1], [0.5], [0.7]], (3, seeds)) + rng.normal(0, 1, seeds)


def test_a_share_is_told_apart_from_1_exactly_where_the_difference_is_from_0():
    outcomes = set()
    for arm, common, none in draws(300):
        estimate, low, high, kind = statistics.share(arm, common, none)
        if kind:
            difference = ttest_rel(arm, common).confidence_interval(0.95)
            assert (low <= 1 <= high) == (difference.low <= 0 <= difference.high) and low <= estimate <= high
            outcomes.add((low <= 1 <= high, bool(estimate > 1)))
        assert bool(kind) == (ttest_rel(common, none).confidence_interval(0.95).low > 0)
    assert len(outcomes) >= 3


def test_at_the_ends_of_a_shares_interval_students_interval_ends_at_0():
    """Fieller's definition, by scipy: there the seeds' (arm - none) - r (common - none) are just not told from 0."""
    for arm, common, none in draws(20):
        estimate, *ends, kind = statistics.share(arm, common, none)
        assert estimate == pytest.approx((arm - none).mean() / (common - none).mean(), nan_ok=not kind)
        for r in ends if kind else ():
            assert ttest_1samp(arm - none - r * (common - none), 0).pvalue == pytest.approx(0.05)


def test_the_measured_coverage_is_committed_and_favours_what_is_used():
    table = pd.read_csv(os.path.join(sweep.HERE, "studies", "coverage.csv"))
    off = (table.coverage - 0.95).abs().groupby([table.quantity, table.n, table.method]).mean().unstack()
    for quantity in ("difference", "share"):
        assert (off.loc[quantity].idxmin(axis=1) == "paired").all()


def test_an_arm_that_is_the_common_one_to_the_bit_keeps_exactly_all():
    for _, common, none in draws(100):
        if statistics.share(common, common, none)[3]:
            assert statistics.share(common, common, none) == (1, 1, 1, "interval")


# ---------------------------------------------------------------------- numbers

def test_scores_by_hand(made):
    """The first evaluation, at step 0, does not count (it is 99 here); `last` is of the last five."""
    rows = draw(made)
    table = pd.read_csv(made / "results" / "PPO_cue.csv")
    mine = table[(table.arm == "short") & (table.step > 0)].pivot(index="seed", columns="step", values="return_mean")
    row = rows.loc["PPO, cue", "short"]
    assert row.score == pytest.approx(mine.mean(axis=1).mean(), rel=1e-5) and row.n == 6
    assert row["last"] == pytest.approx(mine[[300, 400, 500, 600, 700]].mean(axis=1).mean(), rel=1e-5)
    known = ttest_1samp(mine.mean(axis=1), 0).confidence_interval(0.95)
    assert (row.score_low, row.score_high) == pytest.approx(tuple(known), rel=1e-5)
    assert row.delta_q_first == pytest.approx(table[table.arm == "short"].delta_q_first.mean(), rel=1e-5)
    both = pd.concat({arm: table[(table.arm == arm) & (table.step > 0)].groupby("seed").return_mean.mean()
                      for arm in ("short", "common")}, axis=1)
    assert ttest_rel(both["short"], both["common"]).confidence_interval().high < 0
    assert row.versus == "worse" and 0.1 < row.share < 0.4 and row.share_low < row.share < row.share_high
    assert rows.loc["PPO, cue", "zero"].versus == "not told apart" and row.cpu_minutes == 0.5
    assert rows.loc["PPO, cue", "no memory"].share == 0 and ("TD3, pendulum", "short") not in rows.index


COMMITTED = os.path.join(sweep.HERE, "results", "memory")


def test_the_committed_summary_is_what_the_code_makes_of_the_runs():
    made = study.summarise(study.read(os.path.join(sweep.HERE, "studies", "memory.toml"), COMMITTED))
    written = pd.read_csv(os.path.join(sweep.HERE, "plots", "memory", "summary.csv"))
    assert set(made.versus) == {"worse", "better", "not told apart", ""}
    pd.testing.assert_frame_equal(made.replace("", np.nan), written, rtol=1e-4, check_dtype=False)


def test_a_share_of_few_seeds_is_said_with_its_range():
    """Kept 1, 1, 4 of a gain of 1, 2, 4."""
    share = statistics.share(*(pd.Series(x) for x in ([2, 3, 8], [2, 4, 8], [1, 2, 4])))
    assert share == (pytest.approx(6 / 7), 0.5, 1, "range")


@pytest.mark.parametrize("case", [os.path.basename(file)[:-9] for file in sorted(glob.glob(f"{COMMITTED}/*.runs.csv"))])
def test_the_numbers_of_a_committed_case_without_plot(case):
    """By other hands: pandas and scipy alone, beside what plot.py has written."""
    table = pd.read_csv(f"{COMMITTED}/{case}.csv")
    score = table[table.step > 0].groupby(["seed", "arm"]).return_mean.mean().unstack()
    summary = pd.read_csv(os.path.join(sweep.HERE, "plots", "memory", "summary.csv"))
    written = summary[summary.case.str.replace(", ", "_").str.replace(" ", "_") == case].set_index("arm")
    assert set(written.index) == set(score)
    for arm, row in written.iterrows():
        assert row.score == pytest.approx(score[arm].mean(), rel=1e-4)
        if row.n >= 5:
            known = ttest_1samp(score[arm].dropna(), 0).confidence_interval()
            assert (row.score_low, row.score_high) == pytest.approx(tuple(known), rel=1e-3, nan_ok=True)
        if arm not in ("common", "no memory") and row.share_n >= 5:
            both = score[[arm, "common", "no memory"]].dropna()
            kept, gain = both[arm] - both["no memory"], both["common"] - both["no memory"]
            assert row.share == pytest.approx(kept.mean() / gain.mean(), rel=1e-3, abs=1e-5)
            if row.share_low < row.share_high:
                assert ttest_1samp(kept - row.share_high * gain, 0).pvalue == pytest.approx(0.05, abs=0.002)
            worse = ttest_rel(both[arm], both["common"]).pvalue < 0.05
            assert (row.versus != "not told apart") == worse


def test_a_case_without_gain_has_no_shares_and_says_so(made):
    write_case(made / "results", "TD3, pendulum", dict.fromkeys(("common", "no memory", "zero"), 0.5))
    rows = draw(made)
    assert rows.loc["TD3, pendulum"].share.isna().all() and rows.loc["PPO, cue"].share.notna().all()
    assert rows.loc["TD3, pendulum", "zero"].versus == "not told apart"
    assert texts(made).count("no gain shown") == 2 and "no gain shown" not in texts(made, ["PPO, cue"])


# ---------------------------------------------------------------------- figures

def texts(made, cases=None):
    """What answers.png says, a text each."""
    read = study.read(str(made / "study.toml"), str(made / "results"))
    table = study.summarise(read)
    [ax] = study_figures.answers(read, table[table.case.isin(cases or list(read.cases))]).axes
    return [text.get_text() for text in ax.texts]


def test_drawing_twice_gives_the_same_bytes(made):
    draw(made, "a")
    draw(made, "b")
    names = sorted(os.listdir(made / "a"))
    assert names == ["Q1_How_long.png", "Q2_From_where.png", "Q4_Needed.png", "answers.png", "staleness.png", "summary.csv"]
    for name in names:
        assert (made / "a" / name).read_bytes() == (made / "b" / name).read_bytes()
    assert imread(made / "a" / "answers.png").shape[1] == 1800


def test_the_picture_says_what_it_shows(made):
    said = texts(made)
    assert "PPO" in said and "TD3" in said and "Recall a cue\nseen 10 steps ago" in said
    assert "Swing up\na pendulum\nvelocities only" in said
    assert [text for text in said if text.startswith("Q")] == ["Q1 How long?", "Q2 From where?", "Q4 Needed?"]
    row = draw(made).loc["PPO, cue", "zero"]
    assert f"\u25cb {row.share:.2f}" in said                           # not told apart: the ring
    short = draw(made).loc["PPO, cue", "short"]
    assert f"{short.share:.2f}" in said and f"{short.share_low:.2f} to {short.share_high:.2f}" in said
    assert not any("nfinished" in text or "runs" in text for text in said)
    read = study.read(str(made / "study.toml"), str(made / "results"))
    rows = study.summarise(read).set_index(["case", "arm"])            # bold: told apart from the reference
    assert [study.cell(read, rows, "PPO, cue", arm).told for arm in ("short", "zero")] == [True, False]


def test_what_is_identical_is_explained_where_there_is_such_a_thing(made):
    assert "identical" not in " ".join(texts(made))
    for end in (".csv", ".runs.csv"):                                  # one arm is the common one under another name
        path = made / "results" / f"PPO_cue{end}"
        table = pd.read_csv(path)
        pd.concat([table[table.arm != "zero"], table[table.arm == "common"].assign(arm="zero")]).to_csv(path, index=False)
    said = [text.replace("\n", " ") for text in texts(made)]
    assert said.count("identical") == 1 and '"identical": this changes nothing there' in said[1]


def test_an_arm_that_is_known_to_be_identical_is_not_run_and_shown_so(made):
    (made / "study.toml").write_text(STUDY.replace('without = ["short"]', 'identical = ["short"]'))
    said = [text.replace("\n", " ") for text in texts(made)]
    assert said.count("identical") == 1 and '"identical": this changes nothing there' in said[1]


def test_a_case_whose_common_arm_has_no_run_yet_is_drawn(made):
    (made / "study.toml").write_text(STUDY.replace('without = ["short"]', 'identical = ["short"]'))
    write_case(made / "results", "TD3, pendulum", {"no memory": 0.5}, [100])
    assert any(re.fullmatch(r"0\.\d\d, -", text) for text in texts(made))    # the score with memory is not known


def test_an_interval_that_leaves_1_out_does_not_end_at_1():
    assert [bounds(*ends) for ends in ((1.0021, 1.1), (0.9, 0.998), (0.998, 1.0021), (-0.2, 0.3))] == [
        "1.002 to 1.10", "0.90 to 0.998", "1.00 to 1.00", "\u22120.20 to 0.30"]


def test_an_unfinished_case_is_pale(made):
    def face(seeds):
        write_case(made / "results", "PPO, cue", LEVELS, seeds)
        read = study.read(str(made / "study.toml"), str(made / "results"))
        ax = study_figures.answers(read, study.summarise(read)).axes[0]
        return min(sum(patch.get_facecolor()[:3]) for patch in ax.patches if patch.get_height() > 0.2 and patch.get_x() < 4)
    assert face(range(100, 105)) > face(range(100, 106)) + 0.5


def test_pale_cells_are_explained_also_where_a_case_has_fewer_seeds_of_its_own(made):
    (made / "study.toml").write_text(STUDY.replace('env = "Cue10-v0"', 'env = "Cue10-v0"\nseeds = [100, 101, 102]'))
    write_case(made / "results", "PPO, cue", LEVELS, range(100, 103))
    said = " ".join(" ".join(texts(made)).split())
    assert "range, n=3" in said and "in pale cells over n, or the range" in said and "Unfinished" not in said


@pytest.mark.parametrize("share,says", [
    ([0.9, 0.8, 0.7], "nearly all about what other starts lose"), ([0.9, 0.6, 0.8], "a little about"), ([0.9], "nothing yet")])
def test_staleness_is_said_in_words(made, share, says):
    """And what is correlated, how many dots there are, what a loss of 0 and of 1 is. Delta-Q rises from dot to dot. An arm that
    changes more than a window's start, and one that is the common arm to the bit, are not correlated."""
    read = study.read(str(made / "study.toml"), str(made / "results"))
    table = pd.DataFrame(dict(case="PPO, cue", arm="zero", share=share, delta_q_first=[0.01 * i for i, _ in enumerate(share)]))
    other = pd.DataFrame(dict(case="PPO, cue", arm=["short", "zero"], share=[0.1, 1], delta_q_first=0, share_low=[0, 1],
                              share_high=[0.2, 1]))
    table = pd.concat([table.assign(share_low=0, share_high=0.5), other])
    fig = study_figures.staleness_figure.draw(read, table)
    assert says in fig._suptitle.get_text()
    assert f"Filled dots ({len(share)}) change only what a window starts from; the rank correlation" in \
        " ".join(fig._supxlabel.get_text().split())
    assert "(0: as good as the reference, 1: no better than no memory)" in fig.axes[0].get_ylabel()


def test_an_answer_is_the_title_of_its_question(made):
    (made / "study.toml").write_text(STUDY + '[answers]\n"Q1 How long?" = "Long."\n')
    assert "Long." in texts(made)
    read = study.read(str(made / "study.toml"), str(made / "results"))
    drawn = study_figures.draw(read, study.summarise(read))
    assert [drawn[name]._suptitle.get_text() for name in ("Q1_How_long", "Q2_From_where")] == ["Long.", "Q2 From where?"]
    assert len(sweep.read_study(str(made / "study.toml"), "results")) == 42


def test_the_reference_says_what_it_has_of_the_question(made):
    (made / "study.toml").write_text(STUDY + '[reference]\n"Q1 How long?" = "32 steps"\n')
    read = study.read(str(made / "study.toml"), str(made / "results"))
    table = study.summarise(read)
    first = [study_figures.question(read, table, asked).axes[0].get_yticklabels()[0].get_text()
             for asked in ("Q1 How long?", "Q2 From where?")]
    assert first == ["reference: 32 steps", "reference"] and len(sweep.read_study(str(made / "study.toml"), "results")) == 42


def test_a_question_shows_every_seed_on_an_axis_that_suits(made):
    read = study.read(str(made / "study.toml"), str(made / "results"))
    fig = study_figures.question(read, study.summarise(read), "Q2 From where?")
    cue, pendulum = fig.axes
    dots = [line.get_xdata() for line in cue.lines if line.get_marker() == "o"]
    scores = read.runs[(read.runs.case == "PPO, cue") & read.runs.arm.isin(["common", "zero", "no memory"])].score
    assert sorted(np.concatenate(dots)) == sorted(scores) and len(dots) == 3
    assert cue.get_xlim() == pytest.approx((0, 1), abs=0.011) and pendulum.get_xlim()[1] == pytest.approx(0, abs=1)
    assert [ax.get_xlabel() for ax in fig.axes] == ["share of right choices\n(dashed: chance, 0.5)", "return (0 is best)"]
    assert [line.get_xdata()[0] for line in cue.lines if line.get_linestyle() == "--"] == [0.5]
    said = fig._supxlabel.get_text().replace("\n", " ")
    assert "The reference: windows of 32." in said and "no memory: the same networks without a recurrent core." in said


def test_a_study_that_is_half_done(made, capsys):
    """One case is missing, one arm of the other is at three seeds and one has not begun."""
    (made / "results" / "TD3_pendulum.runs.csv").unlink()
    path = made / "results" / "PPO_cue.runs.csv"
    runs = pd.read_csv(path)
    runs = runs[(runs.arm != "zero") & ((runs.arm != "short") | (runs.seed < 103))]
    runs.to_csv(path, index=False)
    table = pd.read_csv(made / "results" / "PPO_cue.csv")
    table.merge(runs[["arm", "seed"]]).to_csv(made / "results" / "PPO_cue.csv", index=False)
    rows = draw(made)
    assert dict(rows.loc["PPO, cue"].n) == {"common": 6, "no memory": 6, "short": 3}
    assert rows.loc["PPO, cue", "short"].kind == "range" and rows.loc["PPO, cue"].versus.isna()["short"]
    said = texts(made)
    assert {"15 of 24 runs", "range, n=3", "Unfinished:\n15 of 42 runs", "No runs yet: TD3, pendulum"} <= {*said}
    assert "\u25cb" not in "".join(said[3:])
    assert "PPO, cue" in capsys.readouterr().out


# ---------------------------------------------------------------------- bad input

@pytest.mark.parametrize("spoil,says", [
    (lambda made: (made / "study.toml").unlink(), "No such file"),
    (lambda made: (made / "study.toml").write_text("seeds = ["), "study.toml"),
    (lambda made: (made / "study.toml").write_text("seeds = [0]\n[[runs]]\npolicy = 'TD3'\n"), "[[cases]]"),
    (lambda made: (made / "study.toml").write_text(STUDY.replace("no memory", "none")), "'no memory'"),
    (lambda made: (made / "study.toml").write_text(STUDY + '[answers]\n"Q9" = "Yes."\n'), "'Q9'"),
    (lambda made: (made / "study.toml").write_text(STUDY + '[reference]\n"Q8" = "Yes."\n'), "'Q8'"),
    (lambda made: (made / "results" / "PPO_cue.csv").write_text("step\n1\n"), "PPO_cue"),
    (lambda made: [path.unlink() for path in (made / "results").iterdir()], "run sweep.py first")])
def test_what_cannot_be_drawn_is_said_in_one_line(made, spoil, says, capsys):
    spoil(made)
    with pytest.raises(SystemExit) as stop:
        draw(made)
    out, error = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and re.fullmatch(r"error: [^\n]+\n", error) and says in error


def test_flags_that_all_runs_share(made):
    """In [common] they are as good as in each case."""
    before = draw(made)
    text = STUDY.replace('policy = "PPO"\n', "", 1)
    assert text != STUDY
    (made / "study.toml").write_text(text.replace("core_size = 4", 'core_size = 4\npolicy = "PPO"'))
    assert draw(made).equals(before)
    (made / "study.toml").write_text(text)
    with pytest.raises(SystemExit):
        draw(made)


def test_planned_runs_are_those_that_the_sweep_would_make(made):
    """Arms and cases may have seeds of their own."""
    text = STUDY.replace('env = "Cue10-v0"', 'env = "Cue10-v0"\nseeds = [100, 101]').replace(
        "recurrent = false", "recurrent = false\nseeds = [100, 101, 102]").replace(
        'without = ["short"]', 'identical = ["short"]')
    (made / "study.toml").write_text(text)
    read, runs = study.read(made / "study.toml", made / "results"), sweep.read_study(made / "study.toml", str(made / "new"))
    planned = [case["planned"] for case in read.cases.values()]
    assert planned == [sum(run.case == case for run in runs) for case in read.cases] == [2 + 3 + 2 + 2, 6 + 3 + 6]
