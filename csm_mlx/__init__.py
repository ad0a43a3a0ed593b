"""Conversational speech on MLX: Sesame's CSM, streamed and quantized, with nothing leaving the machine."""

__version__ = "0.1.0"
