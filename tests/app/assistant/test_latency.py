"""The times of a turn: what the user waited for, and in which part of it nobody worked."""

import pytest
from csm_mlx_app.assistant.latency import TurnClock, covered_s, percentile
from csm_mlx_app.assistant.report import Report


def test_a_turn_told_in_stages():
    turn = TurnClock(speech_end_s=10.0)
    turn.worked("recognition", 10.1, 10.4)
    turn.mark("decided", 10.3)
    turn.mark("transcript", 10.4)
    turn.worked("language_model", 10.4, 10.7)
    turn.worked("synthesis", 10.7, 10.8)
    turn.mark("first_sample", 10.9)
    turn.mark("first_sample", 99.0)
    turn.worked("synthesis", 10.9, 11.5)  # after the first sample: nobody waits for it
    told = turn.latency_ms()
    assert told["decided"] == 300
    assert told["voice_to_voice"] == 900
    assert (told["recognition"], told["language_model"], told["synthesis"]) == (300, 300, 100)
    assert told["waiting"] == 200, "before recognition began, and from the first frame to the first sample"


def test_work_side_by_side_is_not_counted_twice():
    turn = TurnClock(speech_end_s=0.0)
    turn.worked("recognition", -0.5, 0.6)  # begun before the speech was over
    turn.worked("synthesis", 0.2, 0.5)
    turn.mark("first_sample", 1.0)
    assert turn.latency_ms()["waiting"] == 400
    assert turn.latency_ms()["recognition"] == 600


def test_without_an_end_of_speech_there_is_nothing_to_measure_from():
    turn = TurnClock()
    turn.mark("first_sample", 1.0)
    assert turn.latency_ms() == {}
    assert turn.voice_to_voice_s is None


def test_what_was_made_for_a_shorter_turn_is_forgotten():
    turn = TurnClock(speech_end_s=1.0)
    turn.mark("first_token", 2.0)
    turn.worked("synthesis", 1.0, 2.0)
    turn.forget()
    assert turn.latency_ms() == {}
    assert turn.synthesis_s == 0


def test_unions_and_percentiles():
    assert covered_s([(3, 4), (0, 2), (1, 2.5), (0, 1)]) == pytest.approx(3.5)
    assert covered_s([]) == 0
    values = [float(v) for v in range(1, 101)]
    assert (percentile(values, 0.5), percentile(values, 0.95), percentile([7.0], 0.95)) == (50, 95, 7)


def test_the_report_tells_every_sink_and_leaves_out_what_is_not_there():
    class Kept:
        def __init__(self):
            self.events, self.spans = [], []

        def event(self, event):
            self.events.append(event)

        def span(self, thread, name, start_s, end_s):
            self.spans.append((thread, name, start_s, end_s))

        def close(self):
            self.events.append("closed")

    sinks = [Kept(), Kept()]
    report = Report(lambda: 1.23456, sinks)
    report.emit("clause", turn=0, text="Hi", error=None)
    report.span("worker", "synthesis", 1.0, 1.5, turn=3)
    report.span("ears", "echo", 1.0, 1.5)
    report.close()
    for sink in sinks:
        assert sink.events == [{"event": "clause", "t_s": 1.235, "turn": 0, "text": "Hi"}, "closed"]
        assert len(sink.spans) == 2
    assert report.turn(3).synthesis_s == 0.5
