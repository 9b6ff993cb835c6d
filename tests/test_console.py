"""support/console.py: no failing print ends a run, and Ctrl-C before there is anything to keep is one line."""
import os
import signal
import subprocess
import sys
import time

import pytest
from tqdm import tqdm

import sweep
from support import console
from support.results import finished

HERE = os.path.dirname(os.path.dirname(os.path.abspath(console.__file__)))
TRAINING = ("main.py --env Pendulum-v1 --max_timesteps 40 --eval_freq 20 --eval_episodes 1 --start_timesteps 30 --batch_size 8 "
            "--hidden_size 8 --tensorboard")
STUDY = 'seeds = [0]\n[[runs]]\nenv = "Cue10-v0"\nmax_timesteps = 10_000\n'


def start(words, path="", **options):
    return subprocess.Popen([sys.executable, *words.split()], cwd=HERE, env={**os.environ, "PYTHONPATH": str(path)}, **options)


def closed_pipe():
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def run_into(out, words):
    """The exit code of a script whose output and errors go nowhere: to a full disk, a pipe that nobody reads, or are closed."""
    if out == "closed":
        return start(words, preexec_fn=lambda: os.closerange(0, 3)).wait()
    where = os.open("/dev/full", os.O_WRONLY) if out == "full" else closed_pipe()
    try:
        return start(words, stdout=where, stderr=where).wait()
    finally:
        os.close(where)


@pytest.mark.parametrize("out", ["full", "pipe", "closed"])
def test_a_failing_print_ends_no_run(out, tmp_path):
    """Lines, warnings and the last flush; the results are all there."""
    pytest.importorskip("tensorboard")
    assert run_into(out, f"{TRAINING} --results_dir {tmp_path}") == 0
    assert finished(str(next(tmp_path.glob("*.json")).with_suffix("")), dict)


def test_a_bar_goes_on_without_its_terminal():
    for descriptor in (os.open("/dev/full", os.O_WRONLY), closed_pipe()):
        with open(descriptor, "w", buffering=1) as stream:
            bar = tqdm(range(3), file=console.Unfailing(stream), mininterval=0)
            assert list(bar) == [0, 1, 2]
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)      # room for what is left when it is closed


@pytest.mark.parametrize("out", ["full", "pipe", "closed"])
def test_a_failing_print_ends_no_sweep(out, tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    assert run_into(out, f"sweep.py {tmp_path}/study.toml --dry_run") == 0
    assert run_into(out, f"sweep.py {tmp_path}/none.toml --dry_run") == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_log_without_room_ends_no_run_of_a_sweep(tmp_path):
    words = f"{TRAINING} --results_dir {tmp_path}".split()
    assert sweep.work(words, "/dev/full", HERE) == 0


@pytest.mark.parametrize("script,module,says", [
    ("main.py --env Pendulum-v1", "torch", "interrupted"), ("main.py", "pybullet_envs_gymnasium", "interrupted"),
    ("sweep.py study.toml", "torch", "interrupted"), ("sweep.py study.toml", "ray", "interrupted: go on with the same command"),
])
def test_ctrl_c_while_a_module_is_imported(script, module, says, tmp_path):
    """One line, and 130, even if whoever imports it would catch an exception."""
    (tmp_path / "study.toml").write_text(STUDY)
    (tmp_path / f"{module}.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)\n")
    words = script.replace("study.toml", f"{tmp_path}/study.toml") + f" --results_dir {tmp_path}"
    process = start(words, tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert (process.communicate()[1], process.returncode) == (says + "\n", 130)


def test_ctrl_c_while_ray_starts(tmp_path):
    (tmp_path / "study.toml").write_text(STUDY)
    (tmp_path / "ray.py").write_text("import os, time\ndef init(**_):\n    os.write(1, b'starting\\n')\n    time.sleep(60)\n")
    process = start(f"sweep.py {tmp_path}/study.toml --results_dir {tmp_path}", tmp_path, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, bufsize=0)
    while b"starting" not in process.stdout.readline():
        time.sleep(0)
    process.send_signal(signal.SIGINT)
    assert (process.communicate()[1], process.returncode) == (b"interrupted: go on with the same command\n", 130)


def test_letters_that_a_terminal_does_not_know_end_no_run():
    code = "from support import console; console.begin(); print('\\u00fc \\udc80')"
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, env={**os.environ, "PYTHONIOENCODING": "ascii"},
                          capture_output=True)
    assert (done.returncode, done.stdout) == (0, b"\\xfc \\udc80\n")
