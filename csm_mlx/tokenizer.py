"""Text tokenizers behind one Protocol."""

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from csm_mlx.errors import TokenizerError

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor
    from tokenizers import Tokenizer as HfTokenizer
    from typing_extensions import Self

BOS = "<|begin_of_text|>"
EOS = "<|end_of_text|>"


class Tokenizer(Protocol):
    """What a model asks of its tokenizer."""

    def encode(self, text: str) -> list[int]:
        """The ids of one turn's text, between the begin and the end token."""
        ...


class TextTokenizer:
    """A `tokenizer.json` as CSM wants it: BOS, the text, EOS.

    The file's own post-processor is not asked (Llama's adds BOS alone), nor its truncation or padding. Special tokens
    spelt out in the text, such as `<|end_of_text|>`, are text: they cannot end a turn.
    """

    def __init__(self, tokenizer: "HfTokenizer"):
        bos, eos = tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)
        if bos is None or eos is None:
            missing = " and ".join(name for name, i in ((BOS, bos), (EOS, eos)) if i is None)
            raise TokenizerError(f"the tokenizer lacks {missing}; CSM expects that of Llama 3 (unsloth/Llama-3.2-1B)")
        self.bos_id: int = bos
        self.eos_id: int = eos
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer

    @classmethod
    def from_file(cls, path: str | Path) -> "Self":
        """`TokenizerError` when the file is missing, is no tokenizer.json, or lacks BOS or EOS."""
        from tokenizers import Tokenizer as HfTokenizer

        try:
            data = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise TokenizerError(f"cannot read {path}: {error.strerror}; expected a tokenizer.json") from None
        except UnicodeDecodeError:
            raise TokenizerError(f"{path} is not text; expected a tokenizer.json, fetch it again") from None
        try:
            tokenizer = HfTokenizer.from_str(data)
        except Exception as error:  # the library raises bare Exception
            raise TokenizerError(f"{path} is no tokenizer.json ({error}); fetch it again") from None
        try:
            return cls(tokenizer)
        except TokenizerError as error:
            raise TokenizerError(f"{path}: {error}") from None

    @property
    def vocab_size(self) -> int:
        """Ids are below this, added tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """BOS, the ids of `text`, EOS."""
        return [self.bos_id, *self._tokenizer.encode(text, add_special_tokens=False).ids, self.eos_id]


class SpmTokenizer:
    """A sentencepiece model as Kyutai's models want it: ids to text, a word or a piece at a time."""

    def __init__(self, processor: "SentencePieceProcessor"):
        self._processor = processor

    @classmethod
    def from_file(cls, path: str | Path) -> "Self":
        """`TokenizerError` when the file is missing or is no sentencepiece model."""
        from sentencepiece import SentencePieceProcessor

        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise TokenizerError(f"cannot read {path}: {error.strerror}; expected a sentencepiece model") from None
        processor = SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(data)
        except Exception:  # the library raises bare RuntimeError, with its own source's lines
            raise TokenizerError(f"{path} is no sentencepiece model; fetch it again") from None
        if not data or not processor.GetPieceSize():
            raise TokenizerError(f"{path} is empty, expected a sentencepiece model; fetch it again")
        return cls(processor)

    @property
    def vocab_size(self) -> int:
        """Ids are below this."""
        return self._processor.GetPieceSize()

    @property
    def eos_id(self) -> int:
        """What ends a text; -1 if the file knows none."""
        return self._processor.eos_id()

    def encode(self, text: str) -> list[int]:
        """Ids, with no begin or end token."""
        return self._processor.EncodeAsIds(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids; the space before a first word is left out."""
        stream = PieceStream(self)
        return ("".join(map(stream.put, ids)) + stream.end()).removeprefix(" ")

    def piece_bytes(self, token: int) -> bytes:
        """What one id adds to a text, in UTF-8: a part of a character where it stands for a byte, nothing for control
        tokens and for ids that the file does not know."""
        processor = self._processor
        if not 0 <= token < self.vocab_size or processor.IsControl(token) or processor.IsUnknown(token):
            return b""
        piece = processor.IdToPiece(token)
        if processor.IsByte(token):
            return bytes([int(piece[3:-1], 16)])
        return piece.replace("\u2581", " ").encode()


class PieceStream:
    """Ids to text as they come: a character that is spelt in bytes is told when its last byte is there."""

    def __init__(self, tokenizer: SpmTokenizer):
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def pending(self) -> bytes:
        """Of a character whose last byte is not there yet; to be set by who goes back to an earlier moment."""
        return self._decoder.getstate()[0]

    @pending.setter
    def pending(self, pending: bytes) -> None:
        self._decoder.setstate((pending, 0))

    def put(self, token: int) -> str:
        """What one more id adds."""
        return self._decoder.decode(self._tokenizer.piece_bytes(token))

    def end(self) -> str:
        """What is left of a character that never became whole, as U+FFFD; and a fresh start."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
