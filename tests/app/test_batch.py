"""`csm say --batch`: many lines at once, each kept as soon as it is there, through kills, full disks and reruns."""

import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
from csm_mlx_app import ranks
from csm_mlx_app.commands.say import say as command

RANDOM = Path(__file__).parents[1] / "golden" / "random"
"""Random weights, which mind the seed."""
FLAGS = ("--batch", "2", "--model", RANDOM, "--temp", "0.9", "--max-seconds", "0.4", "--seed", "5")
LINES = ("Good morning.", "Where is the key?", "I like tea.")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
STORY = tuple(f"This is line {number} of a story about the sea and the wind." for number in NUMBERS)
STEP_S = 0.02


def say(run, folder: Path, lines, *flags, out: str = "out"):
    (folder / "lines.txt").write_text("\n\n".join(lines))
    return run("say", "-f", "lines.txt", "-o", out, *flags)


def index(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def sound_files(folder: Path) -> list[Path]:
    """Those that are finished, by number."""
    return sorted(folder.glob("[0-9][0-9][0-9][0-9].wav"))


def sounds(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sound_files(folder)}


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """The sounds by what they are to the disk: a sound made again is another, one that was moved is the same."""
    found = {path.name: path.stat() for path in sound_files(folder)}
    return {name: (file.st_ino, file.st_mtime_ns) for name, file in found.items()}


def test_each_line_is_a_sound_of_its_own_and_is_made_once(run, tmp_path):
    result = say(run, tmp_path, LINES, *FLAGS, "--json")
    assert result.code == 0, result.err
    assert "3 lines: all 3 to make, 2 at a time -> out" in result.err
    numbers = json.loads(result.text)
    assert (numbers["made"], numbers["kept"], numbers["missing"], numbers["failed"]) == (3, 0, [], [])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".csm-say", "0001.wav", "0002.wav", "0003.wav", "index.jsonl",
    ]  # fmt: skip
    assert index(tmp_path / "out") == numbers["lines"]
    assert [(line["index"], line["text"], line["file"]) for line in numbers["lines"]] == [
        (number, text, f"000{number}.wav") for number, text in enumerate(LINES, 1)
    ]
    for number in (1, 3):
        assert run("say", LINES[number - 1], "-o", "single.wav", *FLAGS[2:]).code == 0
        single, _ = soundfile.read(tmp_path / "single.wav")
        part, rate = soundfile.read(tmp_path / "out" / f"000{number}.wav")
        assert single.shape == part.shape
        assert np.abs(single - part).max() <= 2 / 32768
        assert numbers["lines"][number - 1]["seconds"] == len(part) / rate

    before = files(tmp_path / "out")
    again = say(run, tmp_path, LINES, *FLAGS)
    assert "3 lines: 3 kept, 0 to make" in again.err
    assert files(tmp_path / "out") == before
    inserted = say(run, tmp_path, ("First of all.", LINES[0], "A new one.", LINES[2], LINES[1]), *FLAGS, "--json")
    assert json.loads(inserted.text)["made"] == 2
    after = files(tmp_path / "out")
    assert [after[f"000{number}.wav"] for number in (2, 5, 4)] == list(before.values())
    shorter = say(run, tmp_path, LINES, *FLAGS)
    assert "3 lines: 3 kept" in shorter.err
    assert files(tmp_path / "out") == before
    assert not list((tmp_path / "out" / ".csm-say").glob("*.wav"))
    seed = say(run, tmp_path, LINES, *FLAGS[:-1], "6")
    assert "all 3 to make" in seed.err
    assert not set(files(tmp_path / "out").values()) & set(before.values())


def test_the_parts_become_one_file(run, tmp_path):
    (tmp_path / "story.flac").write_bytes(b"older")
    assert say(run, tmp_path, LINES, *FLAGS).code == 0
    joined = say(run, tmp_path, LINES, *FLAGS, out="story.flac")
    assert joined.code == 0, joined.err
    assert "-> story.flac" in joined.err.splitlines()[-1]
    whole = np.concatenate([soundfile.read(path, dtype="int16")[0] for path in sorted(tmp_path.glob("out/*.wav"))])
    assert np.array_equal(soundfile.read(tmp_path / "story.flac", dtype="int16")[0], whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lines.txt", "out", "story.flac"]


def test_a_line_that_cannot_be_spoken_stops_no_other(run, tmp_path):
    lines = (LINES[0], "word " * 3000, LINES[1])
    result = say(run, tmp_path, lines, *FLAGS, "--verbatim", out="story.wav")
    assert result.code == 1
    assert re.search(r"error: line 2, 'word .*positions", result.err)
    assert "2 made, 0 kept of 3 lines" in result.err
    assert "longer than 300 characters" in result.err
    assert not (tmp_path / "story.wav").exists()
    parts = tmp_path / "story.wav.parts"
    assert list(files(parts)) == ["0001.wav", "0003.wav"]
    assert [line["file"] for line in index(parts)] == ["0001.wav", None, "0003.wav"]
    assert "positions" in index(parts)[1]["error"]
    mended = say(run, tmp_path, (LINES[0], "A word.", LINES[1]), *FLAGS, out="story.wav")
    assert (mended.code, parts.exists()) == (0, False)
    assert "1 made, 2 kept of 3 lines" in mended.err


def test_a_full_disk_leaves_no_half_a_sound(run, tmp_path, environment):
    (tmp_path / "lines.txt").write_text("\n".join(LINES))
    line = ['ulimit -f 10; exec "$@"', "-", sys.executable, "-m", "csm_mlx_app", "say", "-f", "lines.txt", "-o", "out"]
    flags = [str(flag) for flag in FLAGS if flag not in ("--max-seconds", "0.4")]
    full = subprocess.run(
        ["bash", "-c", *line, *flags], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert full.returncode == 1, full.stderr
    assert re.search(r"error: cannot write .*000\d\.wav: File too large", full.stderr)
    assert "error: not made: line" in full.stderr
    assert not files(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == ["index.jsonl", "lock"]
    assert say(run, tmp_path, LINES, *FLAGS).code == 0


def test_what_is_not_ours_is_not_touched(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "0001.wav").write_bytes(b"mine")
    refused = say(run, tmp_path, LINES, *FLAGS, out="mine")
    assert refused.code == 1
    assert "mine holds what csm say --batch did not make (0001.wav); choose another folder" in refused.err
    assert sounds(tmp_path / "mine") == {"0001.wav": b"mine"}
    (tmp_path / "out" / ".csm-say").mkdir(parents=True)
    with (tmp_path / "out" / ".csm-say" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        busy = say(run, tmp_path, LINES, *FLAGS)
    assert busy.code == 1
    assert "another csm say writes into out" in busy.err


WRONG = {
    "no place": ({}, "name a folder, for a sound per line"),
    "a stream": ({"out": "-"}, "--batch writes files"),
    "aloud": ({"out": "out", "play": True}, "does not go with --batch"),
    "codes": ({"out": "out", "codes": Path("a.safetensors")}, "does not go with --batch"),
    "a conversation": ({"out": "out", "context": Path("lines.txt")}, "does not go with --batch"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage(tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lines.txt").write_text("Hi.")
    flags, message = WRONG[case]
    with pytest.raises(typer.BadParameter, match=message):
        command(file=Path("lines.txt"), batch=2, **flags)
    assert [path.name for path in tmp_path.iterdir()] == ["lines.txt"]


def wait_for(what: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(STEP_S)


def test_an_interruption_keeps_the_lines_that_are_done(start, run, tmp_path):
    (tmp_path / "lines.txt").write_text("\n\n".join(STORY))
    out = tmp_path / "story.wav.parts"
    process = start("say", "-f", "lines.txt", "--batch", "2", "-o", "story.wav")
    wait_for(lambda: len(sounds(out)) >= 2, process)
    process.send_signal(signal.SIGINT)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in talk
    assert re.search(rb"interrupted, \d+ made, 0 kept of 10 lines", talk)
    again = re.search(r"nothing else: csm (say .*)", talk.decode())
    assert again
    done = len(index(out)) - sum(line["file"] is None for line in index(out))
    assert 1 <= done == len(files(out)) < len(STORY)
    rest = run(*again[1].split())
    assert rest.code == 0
    assert f"{len(STORY) - done} made, {done} kept of 10 lines" in rest.err
    assert soundfile.info(tmp_path / "story.wav").duration > 10
    assert not out.exists()


@pytest.fixture
def launch(tmp_path, environment):
    """`launch("say", …)`: csm on two processes of a ring, as the leader of a group of its own."""
    started = []

    def launch(*arguments):
        with socket.socket() as free:  # apart from other tests' at this moment
            free.bind(("127.0.0.1", 0))
            port = min(free.getsockname()[1], 65_000)
        launcher = Path(sys.executable).with_name("mlx.launch")
        command = [launcher, "-n", "2", "--backend", "ring", "--starting-port", str(port), "--cwd", tmp_path]
        process = subprocess.Popen(
            [*map(str, command), "--", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env=environment,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield launch
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


CSM = (sys.executable, "-m", "csm_mlx_app", "say", "-f", "lines.txt", "--batch", "2", "-o")


def status(out: Path) -> dict | None:
    """Of the second rank, once it works."""
    for path in (out / ".csm-say").glob("launch-*.1.json"):
        return json.loads(path.read_text())
    return None


def both_have_made_some(out: Path) -> bool:
    shares = ranks.shares([len(text) for text in STORY], 2)
    made = files(out)
    return status(out) is not None and all(any(f"{one + 1:04}.wav" in made for one in share) for share in shares)


@pytest.mark.slow
def test_a_rank_that_is_killed_costs_its_unfinished_lines_alone(launch, tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(STORY))
    out = tmp_path / "out"
    process = launch(*CSM, "out")
    wait_for(lambda: both_have_made_some(out), process)
    os.kill((status(out) or {})["process"], signal.SIGKILL)
    talk, _ = process.communicate(timeout=60)
    assert "10 lines: all 10 to make, 2 at a time, in 2 processes -> out" in talk
    assert "error: rank 1 ended in the middle of its work" in talk
    assert re.search(r"error: not made: lines? \d+", talk)
    told = {line["file"] for line in index(out)}
    before = {name: file for name, file in files(out).items() if name in told}  # it may die between a file and its note
    assert {*before, None} == told
    assert 1 <= len(before) < len(STORY)

    rest, _ = launch(*CSM, "out").communicate(timeout=60)
    assert f"10 lines: {len(before)} kept, {10 - len(before)} to make, 2 at a time, in 2 processes" in rest
    assert f"{10 - len(before)} made, {len(before)} kept of 10 lines" in rest
    assert [line["file"] for line in index(out)] == [f"{number:04}.wav" for number in range(1, 11)]
    assert before.items() <= files(out).items()
    assert not list((out / ".csm-say").glob("launch*"))


@pytest.mark.slow
def test_ctrl_c_keeps_what_all_ranks_made(launch, run, tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(STORY))
    out = tmp_path / "story.wav.parts"
    process = launch(*CSM, "story.wav")
    wait_for(lambda: both_have_made_some(out), process)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does
    process.communicate(timeout=60)
    assert (status(out) or {})["state"] == "stopped"
    done = [line["file"] for line in index(out) if line["file"]]
    assert 1 <= len(done) < len(STORY)
    rest = run("say", "-f", "lines.txt", "--batch", "2", "-o", "story.wav")
    assert rest.code == 0, rest.err
    assert f"{10 - len(done)} made, {len(done)} kept of 10 lines" in rest.err
    assert soundfile.info(tmp_path / "story.wav").duration > 10


SHELL = " ".join(CSM)


@pytest.mark.slow
def test_a_rank_whose_disk_is_full_stops_no_other(launch, tmp_path):
    (tmp_path / "lines.txt").write_text("\n".join(STORY))
    done = launch("bash", "-c", f"[ $MLX_RANK = 1 ] && ulimit -f 40; exec {SHELL} out")
    talk, _ = done.communicate(timeout=60)
    assert re.search(r"error: rank 1 cannot write .*\.wav: File too large", talk)
    own, other = ranks.shares([len(text) for text in STORY], 2)
    made = files(tmp_path / "out")
    assert {f"{one + 1:04}.wav" for one in own} <= made.keys()
    assert not {f"{one + 1:04}.wav" for one in other} <= made.keys()
    assert "error: not made: line" in talk


@pytest.mark.slow
def test_ranks_with_other_lines_or_folders_are_refused(launch, tmp_path):
    for rank in range(2):
        (tmp_path / f"{rank}").mkdir()
        (tmp_path / f"{rank}" / "lines.txt").write_text(f"The lines of rank {rank}.")
    talk, _ = launch(
        "bash", "-c", f"cp $MLX_RANK/lines.txt $$.txt; exec {SHELL.replace('lines.txt', '$$.txt')} out"
    ).communicate(timeout=60)
    assert "rank 1 was given another text, model or voice, or other flags, than rank 0" in talk
    shutil.copy(tmp_path / "0" / "lines.txt", tmp_path / "1" / "lines.txt")
    talk, _ = launch("bash", "-c", f"cd $MLX_RANK; exec {SHELL} out").communicate(timeout=60)
    assert "rank 1 does not see out, into which rank 0 writes" in talk
    assert not list(tmp_path.rglob("*.wav"))


def test_shares_are_about_equal():
    costs = [50, 3, 4, 40, 5, 30, 20, 7]
    taken = ranks.shares(costs, 3)
    assert sorted(index for share in taken for index in share) == list(range(8))
    assert max(loads := [sum(costs[index] for index in share) for share in taken]) <= 1.1 * min(loads)
    assert ranks.shares([], 2) == [[], []]


def test_a_rank_without_a_sign_of_life_or_of_work_is_given_up(tmp_path, monkeypatch):
    path = tmp_path / "launch-1.1.json"
    heart = ranks.Heart(path)
    watched = ranks.Watched(path)
    with heart:
        watched.look()
        assert (watched.over, watched.far, watched.status.process) == (False, False, os.getpid())
        monkeypatch.setattr(ranks, "STUCK_S", 0.0)
        watched.look()
        assert (watched.over, "is alive, but made nothing") == (True, watched.status.failure[:26])
        monkeypatch.setattr(ranks, "LOST_S", 0.0)
        watched.look()
        assert "no sign of life" in watched.status.failure
    watched.look()
    assert watched.status.state == "done"
    path.write_text(json.dumps(asdict(heart.status) | {"state": "working", "process": 1 << 22 | 1}))
    watched.look()
    watched.look()
    assert "ended in the middle of its work" in watched.status.failure
