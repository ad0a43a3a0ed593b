import json
from pathlib import Path

import pytest
from support.moshi import write_spm
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors

from csm_mlx.errors import TokenizerError
from csm_mlx.tokenizer import BOS, EOS, PieceStream, SpmTokenizer, TextTokenizer


def stand_in(specials: list[str]) -> HfTokenizer:
    """Bytes and two special tokens, as Llama 3's tokenizer.json has them."""
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = HfTokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return tokenizer


def saved(tokenizer: HfTokenizer, tmp_path: Path) -> Path:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.parametrize("adds", ["nothing", "begin", "both"])
def test_begin_and_end_come_once_whatever_the_file_adds_itself(tmp_path: Path, adds: str):
    tokenizer = stand_in([BOS, EOS])
    bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
    if adds != "nothing":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A" if adds == "begin" else f"{BOS} $A {EOS}", special_tokens=[(BOS, bos), (EOS, eos)]
        )
    ours = TextTokenizer.from_file(saved(tokenizer, tmp_path))
    ids = ours.encode("[0]Hello there.")
    assert ids[0] == ours.bos_id == bos
    assert ids[-1] == ours.eos_id == eos
    assert tokenizer.decode(ids[1:-1]) == "[0]Hello there."
    assert not {bos, eos} & set(ids[1:-1])


def test_special_tokens_in_a_text_are_text(tmp_path: Path):
    tokenizer = stand_in([BOS, EOS])
    ours = TextTokenizer.from_file(saved(tokenizer, tmp_path))
    text = f"Stop.{EOS}[1]And {BOS}go on"
    inner = ours.encode(text)[1:-1]
    assert not {ours.bos_id, ours.eos_id} & set(inner)
    assert tokenizer.decode(inner) == text


def test_the_files_truncation_and_padding_are_not_applied(tmp_path: Path):
    tokenizer = stand_in([BOS, EOS])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    ours = TextTokenizer.from_file(saved(tokenizer, tmp_path))
    assert len(ours.encode("a" * 100)) == 102
    assert len(ours.encode("a")) == 3
    assert ours.encode("") == [ours.bos_id, ours.eos_id]


def test_vocab_size_bounds_every_id(tmp_path: Path):
    ours = TextTokenizer.from_file(saved(stand_in([BOS, EOS]), tmp_path))
    assert ours.vocab_size == 258
    assert max(ours.encode("Grüße, 世界 🎧")) < ours.vocab_size


@pytest.mark.parametrize(
    ("specials", "message"),
    [
        ([BOS], r"tokenizer\.json: the tokenizer lacks <\|end_of_text\|>; CSM expects"),
        ([EOS], r"lacks <\|begin_of_text\|>;"),
        ([], r"lacks <\|begin_of_text\|> and <\|end_of_text\|>.*unsloth/Llama-3\.2-1B"),
    ],
)
def test_missing_tokens_are_named(tmp_path: Path, specials: list[str], message: str):
    with pytest.raises(TokenizerError, match=message):
        TextTokenizer.from_file(saved(stand_in(specials), tmp_path))


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", json.dumps({"model": {}}).encode(), b"\xff\xfe\x00"])
def test_other_files_are_refused(tmp_path: Path, content: bytes):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json is (no tokenizer\.json|not text).*fetch it again"):
        TextTokenizer.from_file(tmp_path / "tokenizer.json")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(TokenizerError, match=r"cannot read .*none\.json: No such file"):
        TextTokenizer.from_file(tmp_path / "none.json")


@pytest.fixture(scope="module")
def spm(tmp_path_factory: pytest.TempPathFactory) -> SpmTokenizer:
    return SpmTokenizer.from_file(write_spm(tmp_path_factory.mktemp("spm") / "tokenizer.model"))


@pytest.mark.parametrize("text", ["how are you", "Is it 日本, or é?", "a", ""])
def test_sentencepiece_ids_become_the_text_again(spm: SpmTokenizer, text: str):
    ids = spm.encode(text)
    assert all(0 <= i < spm.vocab_size for i in ids)
    assert spm.decode(ids) == text


def test_a_character_spelt_in_bytes_is_told_whole(spm: SpmTokenizer):
    stream, ids = PieceStream(spm), spm.encode("日")
    told = [stream.put(i) for i in ids]
    assert "".join(told) == " 日"
    assert told[-1] == "日"
    assert stream.put(ids[-3]) == ""  # a part of another, which never comes
    assert stream.end() == "\N{REPLACEMENT CHARACTER}"
    assert stream.end() == ""


def test_control_tokens_and_unknown_ids_say_nothing(spm: SpmTokenizer):
    assert spm.decode([0, 1, 2, 3, spm.vocab_size, 10**6]) == ""


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 100])
def test_what_is_no_sentencepiece_model_is_said(tmp_path: Path, content: bytes):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer.model is .*sentencepiece model; fetch it again"):
        SpmTokenizer.from_file(tmp_path / "tokenizer.model")
    with pytest.raises(TokenizerError, match="No such file"):
        SpmTokenizer.from_file(tmp_path / "nowhere.model")
