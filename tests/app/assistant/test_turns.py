"""The rules of turn-taking, each as events and the actions that follow."""

import pytest
from csm_mlx_app.assistant.events import (
    Begin,
    Complete,
    Drop,
    Finished,
    InputEnded,
    Interrupt,
    Muted,
    Open,
    Pause,
    ReplyEnded,
    ReplyFailed,
    ReplyStarted,
    Resume,
    Show,
    SpeechEnded,
    SpeechStarted,
    Stop,
    Talking,
    Transcribe,
    Typed,
    Window,
)
from csm_mlx_app.assistant.turn_config import TurnConfig
from support.scene import NOISE_DB, VOICE_DB, Scene

QUESTION = "What is the capital of France?"


def kinds(actions):
    return [type(action) for action in actions]


class TestATurn:
    def test_is_recognized_and_begun_while_it_may_still_go_on_and_opened_when_it_is_over(self):
        scene = Scene()
        scene.quiet(512)
        start_s = scene.t_s
        assert kinds(scene.voice(640)) == [SpeechStarted]
        end_s = scene.t_s
        assert kinds(scene.quiet(64)) == []
        assert kinds(scene.quiet(32)) == [Transcribe]
        asked = scene.asked()
        assert asked.final
        assert asked.start_s == pytest.approx(start_s - 0.3, abs=0.001), "with what came before the first voice"
        assert asked.end_s == pytest.approx(end_s + 0.096)
        assert scene.hears(QUESTION) == [Begin(0, 0, QUESTION)]
        assert kinds(scene.quiet(96)) == []
        assert kinds(scene.quiet(32)) == [SpeechEnded, Open]
        assert scene.machine.state == "thinking"
        times = scene.machine.times(0)
        assert (times.speech_start_s, times.speech_end_s) == pytest.approx((start_s, end_s))
        assert times.decided_s - times.speech_end_s == pytest.approx(0.224)

    @pytest.mark.parametrize(("eagerness", "silence_ms"), [("high", 224), ("medium", 512), ("low", 928)])
    def test_is_over_after_a_silence_that_the_user_chooses(self, eagerness, silence_ms):
        scene = Scene(TurnConfig.of(eagerness))
        scene.voice(640)
        scene.quiet(96)
        scene.hears(QUESTION)
        assert Open(0, 0) not in scene.quiet(silence_ms - 96 - 32)
        assert Open(0, 0) in scene.quiet(32)

    @pytest.mark.parametrize(("eagerness", "usual_ms", "longer_ms"), [("medium", 512, 1216), ("low", 928, 2016)])
    def test_smart_turn_shortens_or_lengthens_the_silence(self, eagerness, usual_ms, longer_ms):
        for probability, silence_ms in [(0.9, 224), (0.1, longer_ms)]:
            scene = Scene(TurnConfig.of(eagerness))
            scene.voice(640)
            scene.quiet(96)
            scene.send(Complete(scene.t_s, 0, 0, probability))
            scene.hears(QUESTION)
            assert Open(0, 0) not in scene.quiet(silence_ms - 96 - 32)
            assert Open(0, 0) in scene.quiet(32), f"{usual_ms} ms without it"

    def test_smart_turn_may_answer_after_the_silence_it_finds_long_enough(self):
        scene = Scene(TurnConfig.of("low"))
        scene.voice(640)
        scene.quiet(416)
        scene.hears(QUESTION)
        assert Open(0, 0) in scene.send(Complete(scene.t_s, 0, 0, 0.9))

    def test_smart_turn_on_an_older_revision_says_nothing(self):
        scene = Scene(TurnConfig.of("low"))
        scene.voice(640)
        scene.quiet(96)
        scene.voice(640)
        scene.quiet(416)
        assert scene.send(Complete(scene.t_s, 0, 0, 0.9)) == []

    def test_smart_turn_does_not_end_a_turn_twice_nor_one_that_goes_on(self):
        scene = Scene(TurnConfig.of("medium"))
        scene.voice(640)
        scene.quiet(224)
        scene.voice(32)
        assert scene.send(Complete(scene.t_s, 0, 0, 0.9)) == []
        assert SpeechEnded in kinds(scene.quiet(32))
        assert scene.send(Complete(scene.t_s, 0, 0, 0.9)) == []

    def test_a_recognizer_that_hears_the_end_shortens_the_silence_of_now(self):
        scene = Scene(TurnConfig.of("low"))
        scene.voice(640)
        scene.quiet(96)
        scene.hears(QUESTION)
        assert scene.send(Finished(scene.t_s)) == []
        assert Open(0, 0) not in scene.quiet(96)
        assert Open(0, 0) in scene.quiet(32), "224 ms, where 928 are usual"

    def test_a_recognizer_that_hears_the_end_in_the_middle_of_a_word_changes_nothing(self):
        scene = Scene(TurnConfig.of("low"))
        scene.voice(640)
        assert scene.send(Finished(scene.t_s)) == []
        scene.voice(320)
        scene.quiet(96)
        scene.hears(QUESTION)
        assert Open(0, 0) not in scene.quiet(640)
        assert Open(0, 0) in scene.quiet(192)

    def test_what_a_recognizer_heard_of_an_earlier_pause_is_forgotten(self):
        scene = Scene(TurnConfig.of("low"))
        scene.voice(640)
        scene.quiet(64)  # too short to be asked about
        assert scene.send(Finished(scene.t_s)) == []
        scene.voice(320)
        scene.quiet(96)
        scene.hears(QUESTION)
        assert Open(0, 0) not in scene.quiet(640)

    def test_of_which_the_words_come_late_is_begun_and_opened_at_once(self):
        scene = Scene()
        scene.voice(640)
        assert kinds(scene.quiet(256)) == [Transcribe, SpeechEnded]
        assert scene.machine.state == "thinking"
        assert scene.hears(QUESTION) == [Begin(0, 0, QUESTION), Open(0, 0)]

    def test_that_goes_on_after_a_speculation_is_one_longer_turn(self):
        scene = Scene()
        scene.voice(640)
        scene.quiet(128)
        first = scene.asked()
        scene.hears("What is the")
        assert scene.voice(32) == [], "one window proves nothing"
        assert scene.voice(32) == [Drop(0, 0)]
        scene.voice(320)
        assert kinds(scene.quiet(96)) == [Transcribe]
        again = scene.asked()
        assert (again.turn, again.revision, again.start_s) == (0, 1, first.start_s)
        assert again.end_s > first.end_s
        scene.hears(QUESTION)
        assert scene.quiet(128)[-1] == Open(0, 1)

    def test_that_goes_on_before_its_words_are_known_has_nothing_to_drop(self):
        scene = Scene()
        scene.voice(640)
        scene.quiet(128)
        late = scene.asked()
        assert scene.voice(320) == []
        assert late.revision == 0
        scene.quiet(96)
        assert scene.asked().revision == 1

    def test_that_goes_on_after_it_was_decided_is_told_of_again(self):
        scene = Scene()
        scene.voice(640)
        scene.quiet(256)
        assert kinds(scene.voice(320)) == [SpeechStarted]
        assert scene.machine.state == "listening"
        assert kinds(scene.quiet(256)) == [Transcribe, SpeechEnded]

    def test_that_a_blip_does_not_prolong(self):
        scene = Scene()
        scene.voice(640)
        scene.quiet(96)
        scene.hears(QUESTION)
        scene.voice(32)
        assert Open(0, 0) in scene.quiet(96)

    @pytest.mark.parametrize("silence_ms", [0, 500])
    def test_that_goes_on_before_the_reply_is_heard_is_reopened(self, silence_ms):
        scene = Scene()
        scene.ask("What is the")
        scene.quiet(silence_ms)
        assert scene.voice(128) == [], "it may be a cough"
        assert kinds(scene.voice(32)) == [Drop, SpeechStarted]
        assert scene.machine.state == "listening"
        scene.voice(320)
        scene.quiet(224)
        assert scene.asked().revision == 1
        scene.hears(QUESTION)
        assert [a for a in scene.actions if isinstance(a, Begin | Open | Drop)] == [
            Begin(0, 0, "What is the"),
            Open(0, 0),
            Drop(0, 0),
            Begin(0, 1, QUESTION),
            Open(0, 1),
        ]

    def test_is_not_reopened_for_ever(self):
        scene = Scene()
        scene.ask()
        scene.quiet(7500)
        assert scene.voice(160)[0] == Stop(0)
        scene.voice(320)
        scene.quiet(224)
        assert scene.hears("Hello?") == [Begin(1, 0, "Hello?"), Open(1, 0)]

    @pytest.mark.parametrize("text", ["", " ", "[BLANK_AUDIO]", "...", "(coughs)"])
    def test_without_words_comes_to_nothing(self, text):
        scene = Scene()
        scene.voice(640)
        scene.quiet(256)
        assert scene.hears(text) == []
        assert scene.machine.state == "listening"
        scene.voice(640)
        scene.quiet(256)
        assert scene.hears(QUESTION) == [Begin(0, 1, QUESTION), Open(0, 1)], "the number is free again"

    @pytest.mark.parametrize(("voice_ms", "taken"), [(192, False), (448, True)])
    def test_of_words_that_whisper_invents_needs_voice(self, voice_ms, taken):
        scene = Scene()
        scene.voice(voice_ms)
        scene.quiet(256)
        assert (Open(0, 0) in scene.hears(" Thank you.")) is taken

    def test_of_words_that_are_an_echo_comes_to_nothing(self):
        scene = Scene()
        scene.voice(640)
        scene.quiet(256)
        assert scene.hears("the capital of France", echo=True) == []

    def test_of_too_little_voice_is_none(self):
        scene = Scene()
        scene.voice(128)
        assert scene.quiet(1024) == []

    def test_has_a_greatest_length(self):
        scene = Scene()
        scene.voice(59_500)
        assert kinds(scene.voice(640)).count(SpeechEnded) == 1
        assert scene.asked().end_s - scene.asked().start_s == pytest.approx(60.0, abs=0.032)
        assert scene.hears("A long story") == [Begin(0, 0, "A long story"), Open(0, 0)]
        assert scene.voice(5000) == [], "whoever still goes on is not heard before a pause"
        scene.quiet(320)
        assert scene.voice(160) != []

    def test_is_transcribed_about_once_a_second_while_it_lasts(self):
        scene = Scene()
        asked = [action for action in scene.voice(3500) if isinstance(action, Transcribe)]
        assert [round(action.end_s) for action in asked] == [1, 2, 3]
        assert not any(action.final for action in asked)
        assert scene.hears("What is") == [], "which is for the screen only"

    def test_that_follows_another_does_not_hear_it_again(self):
        scene = Scene()
        scene.ask()
        end_s = scene.machine.times(0).speech_end_s
        scene.send(ReplyStarted(scene.t_s, 0))
        scene.send(ReplyEnded(scene.t_s, 0))
        scene.voice(640)
        scene.quiet(96)
        assert scene.asked().start_s == end_s, "rather than 300 ms before its voice"


class TestTheTrueEnd:
    def test_is_before_what_the_detector_lags_behind(self):
        scene = Scene()
        scene.voice(640)
        end_s = scene.t_s
        scene.voice(64, db=-75)
        scene.quiet(256)
        scene.hears(QUESTION)
        assert scene.machine.times(0).speech_end_s == pytest.approx(end_s)

    def test_is_never_long_before_the_last_voice(self):
        scene = Scene()
        scene.voice(640)
        scene.voice(640, db=-75)
        end_s = scene.t_s
        scene.quiet(256)
        scene.hears(QUESTION)
        assert scene.machine.times(0).speech_end_s == pytest.approx(end_s - 0.096)

    def test_in_noise_as_loud_as_the_voice_is_the_detectors(self):
        scene = Scene()
        scene.quiet(3200, db=VOICE_DB)
        scene.voice(640)
        end_s = scene.t_s
        scene.quiet(320, db=VOICE_DB)
        scene.hears(QUESTION)
        assert scene.machine.times(0).speech_end_s == pytest.approx(end_s - 0.096)

    def test_hysteresis(self):
        scene = Scene()
        for probability in [0.45] * 20:
            scene.t_s += 0.032
            assert scene.send(Window(scene.t_s, probability, NOISE_DB, False)) == [], "not enough to begin"
        scene.voice(320)
        for probability in [0.4] * 10:
            scene.t_s += 0.032
            scene.send(Window(scene.t_s, probability, VOICE_DB, False))
        end_s = scene.t_s
        scene.quiet(256)
        scene.hears(QUESTION)
        assert scene.machine.times(0).speech_end_s == pytest.approx(end_s), "but enough to go on"


class TestAVoiceOverTheReply:
    def test_pauses_at_once_and_stops_when_it_goes_on(self):
        scene = Scene()
        turn = scene.answer()
        assert scene.machine.state == "speaking"
        assert scene.voice(128, playing=True) == []
        assert kinds(scene.voice(32, playing=True)) == [Pause, Transcribe]
        assert scene.machine.state == "interrupted"
        start_s = scene.t_s - 0.16
        assert scene.voice(224) == []
        assert kinds(scene.voice(32)) == [Stop, SpeechStarted]
        assert scene.actions[-1] == Show("listening")
        scene.voice(320)
        scene.quiet(224)
        asked = scene.asked()
        assert asked.turn == turn + 1
        assert asked.start_s == pytest.approx(start_s - 0.3), "the new turn holds all that was said"
        assert scene.hears("No, of Spain.") == [Begin(1, 0, "No, of Spain."), Open(1, 0)]

    @pytest.mark.parametrize("voice_ms", [160, 192, 256])
    def test_that_is_a_cough_resumes(self, voice_ms):
        scene = Scene()
        scene.answer()
        assert Pause() in scene.voice(voice_ms, playing=True)
        assert Resume() not in scene.quiet(288)
        assert Resume() in scene.quiet(32)
        assert scene.machine.state == "speaking"
        assert Stop(0) not in scene.actions

    def test_that_went_on_a_little_is_listened_to_again(self):
        for voice_ms, asked in [(160, 1), (256, 2)]:
            scene = Scene()
            scene.answer()
            assert kinds(scene.voice(voice_ms, playing=True) + scene.quiet(320)).count(Transcribe) == asked

    def test_too_short_to_notice_changes_nothing(self):
        scene = Scene()
        scene.answer()
        for _ in range(5):
            assert scene.voice(96, playing=True) + scene.quiet(96, playing=True) == []

    @pytest.mark.parametrize("text", ["Mhm.", "Uh huh.", "Yeah, okay."])
    def test_that_is_a_nod_resumes(self, text):
        scene = Scene()
        scene.answer()
        scene.voice(256, playing=True)
        assert scene.hears(text) == []
        assert Resume() in scene.quiet(320)

    @pytest.mark.parametrize("text", ["Stop!", "no but wait", "and in Spain"])
    def test_whose_words_are_known_stops_before_it_is_long(self, text):
        scene = Scene()
        scene.answer()
        scene.voice(192, playing=True)
        assert scene.hears(text)[0] == Stop(0)

    def test_whose_words_come_after_the_reply_went_on_stops_it_then(self):
        scene = Scene()
        scene.answer()
        scene.voice(256, playing=True)
        scene.quiet(320)
        assert Resume() in scene.actions
        assert kinds(scene.hears("no wait")) == [Stop, SpeechStarted]
        assert kinds(scene.quiet(32)) == [Transcribe, SpeechEnded], "it was over long ago"
        assert scene.asked().revision == 1, "no late answer to the cough is taken for one to this"
        assert kinds(scene.hears("No, wait.")) == [Begin, Open]

    def test_whose_words_come_much_too_late_is_forgotten(self):
        scene = Scene()
        scene.answer()
        scene.voice(256, playing=True)
        scene.quiet(2500)
        assert scene.hears("no wait") == []

    def test_that_is_far_below_the_users_is_not_the_users(self):
        scene = Scene()
        scene.answer()
        assert scene.voice(640, db=VOICE_DB - 21, playing=True) == []
        assert Pause() in scene.voice(160, db=VOICE_DB - 19, playing=True)

    def test_that_drowns_in_the_background_is_none(self):
        scene = Scene()
        scene.send(Typed(0.0, QUESTION))
        scene.send(ReplyStarted(0.0, 0))
        scene.quiet(3200, db=-40)
        assert scene.voice(640, db=-36) == []
        assert Pause() in scene.voice(160, db=-30)

    def test_during_the_first_sound_must_be_long(self):
        scene = Scene()
        scene.answer(warm=False)
        assert scene.voice(384, playing=True) == []
        assert Pause() in scene.voice(32, playing=True)
        assert Stop(0) not in scene.voice(160), "which may be the echo's tail"
        assert Stop(0) in scene.voice(64)

    def test_with_headphones_needs_no_such_care(self):
        scene = Scene(TurnConfig.of("high", echo_rules=False))
        scene.answer(warm=False)
        assert Pause() in scene.voice(160, playing=True)
        assert Stop(0) in scene.voice(256, playing=True)

    def test_that_only_sounds_while_the_loudspeaker_does_is_its_echo(self):
        scene = Scene()
        scene.answer()
        assert Pause() in scene.voice(160, playing=True)
        assert scene.voice(320, playing=True) == [], "what was on its way is still heard"
        assert Resume() in scene.quiet(320)

    def test_that_lasts_is_no_echo_even_if_the_loudspeaker_never_falls_silent(self):
        scene = Scene()
        scene.answer()
        assert Stop(0) not in scene.voice(960, playing=True)
        assert Stop(0) in scene.voice(64, playing=True)

    def test_whose_words_are_those_being_spoken_resumes_and_must_be_louder_next_time(self):
        scene = Scene()
        scene.answer()
        scene.voice(192, db=-40, playing=True)
        assert scene.hears("the capital of France", echo=True) == [Resume()]
        scene.quiet(64, playing=True)
        assert scene.voice(640, db=-36, playing=True) == []
        assert Pause() in scene.voice(160, db=-33, playing=True)

    def test_however_loud_the_echo_was_the_user_can_interrupt(self):
        scene = Scene()
        scene.answer()
        scene.voice(192, db=VOICE_DB, playing=True)
        scene.hears("the capital of France", echo=True)
        scene.quiet(64, playing=True)
        assert Pause() in scene.voice(160, db=VOICE_DB - 5, playing=True)

    def test_when_the_reply_ends_meanwhile_is_the_next_turn(self):
        scene = Scene()
        scene.answer()
        scene.voice(192, playing=True)
        assert scene.send(ReplyEnded(scene.t_s, 0)) == [Resume()]
        assert scene.machine.state == "listening"
        scene.voice(320)
        scene.quiet(256)
        assert scene.hears("And of Spain?") == [Begin(1, 0, "And of Spain?"), Open(1, 0)]


class TestKeys:
    def test_interrupt_stops_what_is_said(self):
        scene = Scene()
        scene.answer()
        assert scene.send(Interrupt(scene.t_s)) == [Stop(0)]
        assert scene.machine.state == "listening"
        assert scene.send(Interrupt(scene.t_s)) == []

    def test_interrupt_stops_what_is_thought(self):
        scene = Scene()
        scene.ask()
        assert scene.send(Interrupt(scene.t_s)) == [Stop(0)]
        assert scene.send(ReplyStarted(scene.t_s, 0)) == [], "too late"
        assert scene.machine.state == "listening"

    def test_interrupt_takes_back_what_the_user_said(self):
        scene = Scene()
        scene.voice(640)
        scene.quiet(96)
        scene.hears(QUESTION)
        assert scene.send(Interrupt(scene.t_s)) == [Drop(0, 0)]
        assert scene.quiet(512) == []

    def test_interrupt_while_the_user_speaks_over_the_reply_keeps_what_is_said(self):
        scene = Scene()
        scene.answer()
        scene.voice(192, playing=True)
        assert scene.send(Interrupt(scene.t_s)) == [Stop(0)]
        scene.voice(160)
        scene.quiet(256)
        assert scene.hears("No, of Spain.")[-1] == Open(1, 0)

    def test_typed_text_is_a_turn(self):
        scene = Scene()
        assert scene.send(Typed(1.0, " Hello ")) == [Begin(0, 0, "Hello"), Open(0, 0)]
        assert scene.machine.times(0).speech_end_s == 1.0

    def test_typed_text_interrupts(self):
        scene = Scene()
        scene.answer()
        assert scene.send(Typed(scene.t_s, "Hello")) == [Stop(0), Begin(1, 0, "Hello"), Open(1, 0)]

    def test_typed_text_takes_the_place_of_what_was_being_said(self):
        scene = Scene()
        scene.voice(640)
        scene.quiet(96)
        scene.hears(QUESTION)
        assert scene.send(Typed(scene.t_s, "Hello")) == [Drop(0, 0), Begin(0, 1, "Hello"), Open(0, 1)]

    def test_speech_after_typed_text_is_a_turn_of_its_own(self):
        scene = Scene()
        scene.send(Typed(scene.t_s, "Hello"))
        assert scene.voice(160)[0] == Stop(0), "words cannot be appended to it"

    def test_nothing_typed_is_nothing(self):
        assert Scene().send(Typed(1.0, "  ")) == []

    def test_muted_is_deaf(self):
        scene = Scene()
        scene.send(Muted(scene.t_s, True))
        assert scene.voice(960) == []
        scene.send(Muted(scene.t_s, False))
        assert kinds(scene.voice(160)) == [SpeechStarted]

    def test_muting_ends_what_was_being_said(self):
        scene = Scene()
        scene.voice(640)
        assert kinds(scene.send(Muted(scene.t_s, True))) == [Transcribe, SpeechEnded]
        assert scene.hears(QUESTION) == [Begin(0, 0, QUESTION), Open(0, 0)]

    def test_muting_lets_a_paused_reply_go_on(self):
        scene = Scene()
        scene.answer()
        scene.voice(192, playing=True)
        assert scene.send(Muted(scene.t_s, True)) == [Resume()]

    @pytest.mark.parametrize("muted", [False, True])
    def test_push_to_talk_is_from_key_to_key(self, muted):
        scene = Scene()
        scene.send(Muted(0.0, muted))
        scene.quiet(512)
        assert kinds(scene.send(Talking(scene.t_s, True))) == [SpeechStarted]
        scene.quiet(2016)
        scene.voice(320)
        assert Open(0, 0) not in scene.quiet(2016), "however long the silences"
        assert kinds(scene.send(Talking(scene.t_s, False))) == [Transcribe, SpeechEnded]
        scene.quiet(2016)
        assert scene.asked().start_s == pytest.approx(0.212)
        assert scene.hears(QUESTION) == [Begin(0, 0, QUESTION), Open(0, 0)]

    def test_push_to_talk_needs_no_voice_that_the_detector_finds(self):
        scene = Scene()
        scene.send(Talking(scene.t_s, True))
        scene.quiet(960)
        scene.send(Talking(scene.t_s, False))
        scene.quiet(2016)
        assert scene.hears(QUESTION)[-1] == Open(0, 0)

    def test_push_to_talk_interrupts(self):
        scene = Scene()
        scene.answer()
        assert kinds(scene.send(Talking(scene.t_s, True))) == [Stop, SpeechStarted]
        scene.voice(320)
        scene.send(Talking(scene.t_s, False))
        assert scene.hears("No, of Spain.")[-1] == Open(1, 0)

    def test_push_to_talk_before_the_reply_is_heard_goes_on_with_the_turn(self):
        scene = Scene()
        scene.ask("What is the")
        assert kinds(scene.send(Talking(scene.t_s, True))) == [Drop, SpeechStarted]

    def test_a_key_that_is_held_for_ever_is_let_go_of(self):
        scene = Scene()
        scene.send(Talking(scene.t_s, True))
        scene.voice(640)
        assert SpeechEnded in kinds(scene.quiet(60_000))


class TestTheEnd:
    def test_of_the_input_ends_the_turn(self):
        scene = Scene()
        scene.voice(640)
        assert kinds(scene.send(InputEnded(scene.t_s))) == [Transcribe, SpeechEnded]
        assert scene.hears(QUESTION)[-1] == Open(0, 0)

    def test_of_the_input_in_a_speculation_asks_nothing_twice(self):
        scene = Scene()
        scene.voice(640)
        scene.quiet(96)
        assert kinds(scene.send(InputEnded(scene.t_s))) == [SpeechEnded]

    def test_of_the_input_in_a_pause_lets_the_reply_go_on(self):
        scene = Scene()
        scene.answer()
        scene.voice(192, playing=True)
        assert scene.send(InputEnded(scene.t_s)) == [Resume()]

    def test_of_the_reply_is_listening(self):
        scene = Scene()
        scene.answer()
        scene.send(ReplyEnded(scene.t_s, 0))
        assert [a.state for a in scene.actions if isinstance(a, Show)] == ["thinking", "speaking", "listening"]
        assert scene.ask() == 1

    def test_of_another_reply_is_nothing(self):
        scene = Scene()
        scene.answer()
        scene.send(ReplyEnded(scene.t_s, 7))
        assert scene.machine.state == "speaking"

    @pytest.mark.parametrize("is_open", [False, True])
    def test_of_a_reply_that_failed_is_listening(self, is_open):
        scene = Scene()
        scene.voice(640)
        scene.quiet(96)
        scene.hears(QUESTION)
        if is_open:
            scene.quiet(128)
        assert kinds(scene.send(ReplyFailed(scene.t_s, 0))) == ([] if is_open else [Drop])
        assert scene.quiet(512) == []
        assert scene.machine.state == "listening"
