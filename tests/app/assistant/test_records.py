"""What is kept of a conversation: whole lines, for their owner only, and a trace that viewers read."""

import json
import resource
import stat

import numpy as np
import pytest
from csm_mlx_app.assistant import records
from csm_mlx_app.assistant.records import Log, Recording, Trace
from csm_mlx_app.assistant.report import Report

from csm_mlx.audio import read_audio
from csm_mlx.errors import CsmError

RATE_HZ = 24_000


def turn(number: int, heard: str = "It is far.") -> dict:
    latency = {"voice_to_voice": 700}
    return {
        "event": "turn", "t_s": 1.0, "turn": number, "transcript": "Où ?", "reply": f"{heard} So far.", "heard": heard,
        "latency_ms": latency,
    }  # fmt: skip


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_for_each_turn(tmp_path):
    path = tmp_path / "log.jsonl"
    log = Log(path, pytest.fail)
    log.event({"event": "transcript", "t_s": 0.5, "text": "no turn yet"})
    log.event(turn(0))
    assert len(lines(path)) == 1, "on the disk before the next"
    log.event(turn(1, ""))
    log.close()
    first, second = lines(path)
    assert (first["user"], first["assistant"], first["reply"]) == ("Où ?", "It is far.", "It is far. So far.")
    assert first["latency_ms"] == {"voice_to_voice": 700}
    assert second["turn"] == 1
    assert "T" in first["time"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    Log(path, pytest.fail).close()
    assert len(lines(path)) == 2, "an older conversation is kept"


def test_a_torn_last_line_costs_itself_only(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"turn": 0}\n{"turn": 1, "us')
    log = Log(path, pytest.fail)
    log.event(turn(2))
    log.close()
    whole, torn, new = path.read_text().splitlines()
    assert json.loads(whole) == {"turn": 0}
    assert torn == '{"turn": 1, "us'
    assert json.loads(new)["turn"] == 2


def test_a_log_that_cannot_be_written(tmp_path):
    with pytest.raises(CsmError, match="name another --log"):
        Log(tmp_path / "no" / "log.jsonl", pytest.fail)


def test_a_full_disk_is_told_once_and_leaves_no_half_line(tmp_path):
    path, notes = tmp_path / "log.jsonl", []
    log = Log(path, notes.append)
    log.event(turn(0))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 30, limits[1]))
        log.event(turn(1))
        log.event(turn(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [line["turn"] for line in lines(path)] == [0]
    assert len(notes) == 1
    log.event(turn(3))
    log.close()
    assert [line["turn"] for line in lines(path)] == [0, 3]


def test_a_device_without_room():
    notes: list[str] = []
    log = Log(records.Path("/dev/full"), notes.append)
    log.event(turn(0))
    log.close()
    assert "No space left on device" in notes[0]


def test_recordings_go_on_where_older_ones_end(tmp_path):
    pcm = np.linspace(-0.5, 0.5, RATE_HZ, dtype=np.float32)
    for _ in range(2):
        recording = Recording(tmp_path / "kept", pytest.fail)
        recording.keep(0, "user", pcm)
        recording.keep(0, "reply", pcm[:100])
        recording.keep(1, "reply", pcm[:0])
    names = sorted(path.name for path in (tmp_path / "kept").iterdir())
    assert names == ["turn-0001-reply.wav", "turn-0001-user.wav", "turn-0002-reply.wav", "turn-0002-user.wav"]
    assert np.allclose(read_audio(tmp_path / "kept" / names[1], RATE_HZ), pcm, atol=1e-4)
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "kept").iterdir()} == {0o600}


def test_a_recording_that_fails_is_told_once(tmp_path):
    notes: list[str] = []
    recording = Recording(tmp_path / "kept", notes.append)
    (tmp_path / "kept").rename(tmp_path / "moved")
    for number in range(3):
        recording.keep(number, "user", np.zeros(100, np.float32))
    assert len(notes) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(CsmError, match="name another --record"):
        Recording(tmp_path / "file" / "kept", notes.append)


def test_a_trace_is_chrome_s(tmp_path):
    """https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU: JSON Object Format."""
    path = tmp_path / "trace.json"
    trace = Trace(path)
    trace.span("worker", "synthesis", 1.0, 1.25)
    trace.span("hearing", "recognition", 0.5, 1.5)
    trace.event({"event": "transcript", "t_s": 1.5, "text": "Où ?"})
    assert not path.exists()
    trace.close()
    assert [p.name for p in tmp_path.iterdir()] == ["trace.json"]
    told = json.loads(path.read_text())["traceEvents"]
    spans = [e for e in told if e["ph"] == "X"]
    assert [(e["name"], e["ts"], e["dur"]) for e in spans] == [("synthesis", 1e6, 0.25e6), ("recognition", 0.5e6, 1e6)]
    names = {e["tid"]: e["args"]["name"] for e in told if e["ph"] == "M" and e["name"] == "thread_name"}
    assert [names[e["tid"]] for e in spans] == ["worker", "hearing"]
    (instant,) = [e for e in told if e["ph"] == "i"]
    assert (instant["name"], instant["ts"], instant["s"], instant["args"]) == (
        "transcript",
        1.5e6,
        "g",
        {"text": "Où ?"},
    )
    assert all({"name", "ph", "pid", "tid"} <= e.keys() for e in told)


def test_a_long_trace_says_where_it_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_TRACED", 3)
    trace = Trace(tmp_path / "trace.json")
    for number in range(9):
        trace.span("worker", "synthesis", number, number + 0.5)
    trace.close()
    told = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e["ph"] != "M"]
    assert len(told) == 4
    assert "stops here" in told[-1]["name"]
    assert told[-1]["ts"] == 3e6


def test_a_trace_without_a_place_leaves_nothing(tmp_path):
    trace = Trace(tmp_path / "no" / "trace.json")
    trace.span("worker", "synthesis", 0, 1)
    with pytest.raises(CsmError, match="cannot write the trace"):
        trace.close()


class Fails:
    def __init__(self):
        self.closed = 0

    def event(self, event): ...
    def span(self, thread, name, start_s, end_s): ...
    def close(self):
        self.closed += 1
        raise CsmError("no room")


def test_one_sink_that_fails_to_close_keeps_none_of_the_others_open():
    sinks = [Fails(), Fails()]
    report = Report(lambda: 0.0, sinks)
    with pytest.raises(CsmError, match="no room"):
        report.close()
    report.close()
    assert [sink.closed for sink in sinks] == [1, 1]
    report.emit("note", message="late")


def test_times_are_kept_for_turns_that_go_on_only():
    report = Report(lambda: 0.0, [])
    for number in range(100):
        times = report.turn(number)
        times.speech_end_s = 1.0
        times.mark("first_sample", 1.0 + number / 100)
        report.finish(number)
    assert report.n_turns == 100
    assert report.waits_s == pytest.approx([n / 100 for n in range(100)])
    report.turn(100).mark("decided", 5.0)
    assert list(report._turns) == [100]
