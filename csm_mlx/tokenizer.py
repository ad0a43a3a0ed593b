"""Text tokenizers behind one Protocol."""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from csm_mlx.errors import TokenizerError

if TYPE_CHECKING:
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
