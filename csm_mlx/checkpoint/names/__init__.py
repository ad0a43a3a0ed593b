"""One module per source layout: pure functions from its tensors and its config to ours, read by nobody else.

Each takes tensors that are read when asked (`checkpoint/read.py`), so mapping a checkpoint reads no weights. A tensor
that a layout does not know keeps its name, and strict loading then reports it.
"""
