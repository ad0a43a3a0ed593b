"""Help answers at once, names every flag by group, and teaches with examples."""

import resource
import subprocess
import sys

import numpy as np
import pytest

COMMANDS = {
    "say": (
        "--voice-text",
        "--max-seconds",
        "--codes",
        "Sampling",
        'csm say "Hello there',
        "mlx.launch -n 2 -- csm say",
    ),
    "convert": ("--q-bits", "--q-group-size", "--q-mode", "--q-recipe", "--force", "--hf-path", "csm convert unsloth"),
    "quantize": ("--report", "--plot", "--q-recipe", "csm quantize weights/csm-1b"),
    "train": (
        "--method",
        "--validation",
        "--dry-run",
        "Schedule",
        "mlx.launch -n 2 -- csm train",
        "--adapter adapters",
    ),
    "fuse": ("--dequantize", "--force", "--out", "csm fuse adapters/anna"),
    "codec encode": ("--codebooks", "--stream", "csm codec encode hello.wav"),
    "codec decode": ("--codebooks", "--stream", "csm codec decode hello.safetensors"),
    "codec compare": ("--plot", "--json", "csm codec compare hello.wav"),
    "voices": ("--json", "csm voices add anna"),
    "voices add": ("--text", "--force", "--speaker"),
    "talk": ("--eagerness", "--echo", "half-duplex", "Turn-taking", "push-to-talk", "csm talk --offline --input"),
    "transcribe": ("--mic", "--format", "--tokens", "srt|vtt", "csm transcribe film.wav -o film.srt"),
    "duplex": ("--pad-bias", "--condition", "--text-temp", "Character", "Sampling", "csm duplex --model moshika-q4"),
    "devices": ("--json", "--output-device headphones"),
    "models": ("--json", "csm models"),
    "bench": ("--frames", "--plot", "--json", "bare products", "csm bench --model csm-1b-q4"),
    "doctor": ("--json", "csm doctor"),
}
HEAVY = ("mlx", "numpy", "huggingface_hub", "tokenizers", "soundfile", "sounddevice", "soxr", "platformdirs", "pysbd")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(call, command):
    result = call(*command.split(), "--help")
    assert (result.code, result.err) == (0, "")
    for expected in COMMANDS[command]:
        assert expected in result.text


def test_help_is_quick_and_complete(run):
    """0.3 s is the aim on a machine that does nothing else; processor time, so that a busy one does not matter."""

    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    marks = [spent()]
    for _ in range(3):
        run("--help")
        marks.append(spent())
    assert min(np.diff(marks)) < 0.6
    result = run("--help")
    assert result.code == 0
    for name in COMMANDS:
        assert name.split()[0] in result.text
    assert run().text == result.text


def test_commands_import_nothing_heavy():
    program = "import csm_mlx_app.cli, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(done.stdout.split())


def test_version(run):
    import csm_mlx

    assert run("--version").text == f"csm-mlx {csm_mlx.__version__}\n"


def test_shell_completion_knows_flags_and_voices(run, tmp_path):
    for name in ("anna", "bert"):
        (tmp_path / "data" / "voices" / name).mkdir(parents=True)
        (tmp_path / "data" / "voices" / name / "voice.json").write_text("{}")
    (tmp_path / "weights" / "csm-mine").mkdir(parents=True)
    (tmp_path / "weights" / "csm-mine" / "config.json").write_text("{}")

    def complete(*words: str) -> str:
        env = {
            "_CSM_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(("csm", *words)),
            "COMP_CWORD": str(len(words)),
            "CSM_DATA_DIR": str(tmp_path / "data"),
        }
        return run(env=env).text

    assert "--voice-text" in complete("say", "--vo")
    assert complete("say", "--voice", "a").split() == ["anna"]
    assert complete("say", "--model", "csm-").split() == ["csm-mine"]
