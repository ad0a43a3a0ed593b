"""The voice assistant: turn-taking, the thread that owns MLX, recognition, replies, and what was heard of them."""
