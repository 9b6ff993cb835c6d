"""--video: the first episode of a test, as it was, in a file that plays; what cannot be drawn or written."""
import os
import sys
import types

import numpy as np
import pytest
from PIL import Image, ImageSequence
from test_main import RECURRENT, data_sets, evaluations, name_of, run, tiny  # noqa: F401

import envs
import main
import plot
from flags import run_name
from support import video

HOPPER = "HopperBulletEnv-v0"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A hopper that has learnt nothing, and falls soon; it sees its positions only."""
    return run(tmp_path_factory.mktemp("model"), tiny("TD3", HOPPER, "--save_model", "--observe", "positions", *RECURRENT,
                                                      "--max_timesteps", "60")) + ".last.pt"


@pytest.fixture
def moviepy(monkeypatch):
    """A package that is there, but can do nothing."""
    monkeypatch.setitem(sys.modules, "moviepy", types.ModuleType("moviepy"))


def frames_of(path):
    """Seconds that it lasts, and its pictures (n, height, width, 3)."""
    if path.endswith(".gif"):
        with Image.open(path) as film:
            pictures = [(np.array(frame.convert("RGB")), frame.info["duration"] / 1000) for frame in ImageSequence.Iterator(film)]
        return sum(seconds for _, seconds in pictures), np.array([picture for picture, _ in pictures])
    clip = pytest.importorskip("moviepy.video.io.VideoFileClip").VideoFileClip(path)
    with clip:
        return clip.duration, np.array(list(clip.iter_frames()))


@pytest.mark.parametrize("ending", [".mp4", ".gif"])
def test_the_video_is_the_first_episode(ending, model, tmp_path, capsys, monkeypatch):
    pytest.importorskip("moviepy")
    monkeypatch.delenv("DISPLAY", raising=False)
    main.main(["--test", "--load_model", model, "--eval_episodes", "3"])
    plain = capsys.readouterr().out
    path, kept = str(tmp_path / f"hopper{ending}"), []

    class Spy(video.Video):
        def save_video(self, path):
            kept[:] = self.recorded_frames
            super().save_video(path)
    monkeypatch.setattr(video, "Video", Spy)
    main.main(["--test", "--load_model", model, "--eval_episodes", "3", "--video", path])
    out, err = capsys.readouterr()
    assert out.startswith(plain) and err == ""                         # being drawn changes nothing
    assert f"{path} written: the first episode, return " in out and os.listdir(tmp_path) == [os.path.basename(path)]
    length = int(out.split()[-2])

    # The same episode, drawn by hand
    run_, cfg, algorithm, checkpoint = main.parse(["--test", "--load_model", model])
    env = envs.make_env(HOPPER, None, True, observe="positions")
    agent = algorithm(main.env_spec(env), cfg)
    agent.load_state_dict(checkpoint["agent"])
    drawn, step = [], env.step
    monkeypatch.setattr(type(env), "step", lambda self, action: (step(action), drawn.append(env.render()))[0])
    main.evaluate(agent, env, main.env_spec(env), 1, run_.seed + 10_000)
    assert len(kept) == length + 1 == len(drawn) + 1
    assert all(np.array_equal(a, b) for a, b in zip(kept[1:], drawn))

    seconds, pictures = frames_of(path)
    fps = 60 if ending == ".mp4" else 25                               # the hopper is 60 steps a second
    assert seconds == pytest.approx((length + 1) / 60, abs=2 / fps) and len(pictures) == pytest.approx(seconds * fps, abs=1.5)
    assert pictures.shape[1:] == (240, 320, 3)
    for k, picture in enumerate(pictures):                             # every one is that of its time; neither kind is exact
        apart = [np.abs(picture.astype(int) - original).mean() for original in kept]
        assert min(apart) < 8 < max(apart) and np.argmin(apart) == pytest.approx(k * 60 / fps, abs=1)


def test_one_episode_is_enough(model, tmp_path):
    pytest.importorskip("moviepy")
    main.main(["--test", "--load_model", model, "--eval_episodes", "1", "--video", str(tmp_path / "x.gif")])
    assert os.listdir(tmp_path) == ["x.gif"]


def test_what_cannot_be_asked_for(model, refused, tmp_path, moviepy, monkeypatch):
    test = ["--test", "--load_model", model]
    refused([*test, "--video", str(tmp_path / "x.avi")], ["--video", "x.avi'", "ends in .mp4 or .gif"])
    refused([*test, "--video", str(tmp_path / "no" / "x.gif")], ["--video", "there is no folder", "/no'"])
    (tmp_path / "x.gif").write_text("mine")
    (tmp_path / "folder.gif").mkdir()
    refused([*test, "--video", str(tmp_path / "x.gif")], ["--video", "x.gif' exists", "--overwrite"])
    refused([*test, "--overwrite", "--video", str(tmp_path / "folder.gif")], ["--video", "folder.gif' exists"])
    monkeypatch.setattr(os, "access", lambda *_: False)
    refused([*test, "--video", str(tmp_path / "y.gif")], ["--video", "cannot be written"])
    refused([*tiny("TD3"), "--video", "x.gif"], ["--video shows a saved policy", "--test --load_model"])
    refused([*test, "--video", "x.gif", "--record", "x-v0"], ["--video", "--record", "twice"])
    monkeypatch.setitem(sys.modules, "moviepy", None)
    refused([*test, "--video", "x.gif"], ["--video: it needs a package; pip install moviepy"])


def test_what_cannot_be_drawn(refused, tmp_path, moviepy, monkeypatch):
    path = run(tmp_path / "results", tiny("TD3", "Cue10-v0", "--save_model"))
    refused(["--test", "--load_model", path + ".last.pt", "--video", str(tmp_path / "x.gif")],
            ["Cue10-v0 cannot be drawn, which takes the render mode rgb_array"])
    monkeypatch.setitem(sys.modules, "pygame", None)
    path = run(tmp_path / "pendulum", tiny("TD3", "Pendulum-v1", "--save_model"))
    refused(["--test", "--load_model", path + ".last.pt", "--video", str(tmp_path / "x.gif")],
            ["Pendulum-v1 cannot be drawn", "pygame is not installed"])


def test_a_file_that_cannot_be_written(model, tmp_path, capsys, monkeypatch):
    """A full disk: the return has been printed, what was there is as it was, and nothing half is left."""
    sequence = pytest.importorskip("moviepy.video.io.ImageSequenceClip")
    (tmp_path / "x.gif").write_text("mine")

    def full(self, name, **options):
        with open(name, "w") as file:
            file.write("half")
        raise OSError("No space\n\nleft on device")
    monkeypatch.setattr(sequence.ImageSequenceClip, "write_gif", full)
    with pytest.raises(SystemExit) as stop:
        main.main(["--test", "--load_model", model, "--overwrite", "--video", str(tmp_path / "x.gif")])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out.startswith("return ")
    assert err == f"error: --video: '{tmp_path / 'x.gif'}' could not be written: No space left on device\n"
    assert (tmp_path / "x.gif").read_text() == "mine" and os.listdir(tmp_path) == ["x.gif"]
    monkeypatch.undo()
    main.main(["--test", "--load_model", model, "--overwrite", "--video", str(tmp_path / "x.gif")])
    assert (tmp_path / "x.gif").read_bytes().startswith(b"GIF")


def test_names_and_figures_know_nothing_of_it():
    assert "video" in plot.BOOKKEEPING
    run_, cfg, algorithm, _ = main.parse([])
    run_.video = "x.gif"
    assert run_name(run_, cfg, algorithm) == name_of([])
