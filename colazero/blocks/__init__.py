"""A causal language model as a sequence of decoder blocks over fixed windows.

`open_sequence` gives the model, its blocks without weights. Windows `begin`, are `advanced` through
one block after another, each of which is `filled` meanwhile, and what comes out of the last gives
logits. No architecture is named: what the model passes to its blocks is recorded, and its own
embeddings, norm and head do the rest.
"""

from colazero.blocks.opening import open_sequence
from colazero.blocks.refusal import Refused
from colazero.blocks.sequence import Sequence, Stream

__all__ = ["Refused", "Sequence", "Stream", "open_sequence"]
