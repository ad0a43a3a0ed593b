"""Text made ready to be spoken, and cut into sentences as it arrives. Pure: strings in, strings out."""

from csm_mlx.text.split import SentenceStream, sentences
from csm_mlx.text.spoken import speakable

__all__ = ["SentenceStream", "sentences", "speakable"]
