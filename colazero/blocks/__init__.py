"""A causal language model as a sequence of decoder blocks over fixed windows.

`probe.open_sequence` gives the model, its blocks without weights. Windows `begin`, are `advanced`
through one block after another, each of which is `filled` meanwhile, and the last hidden states
give logits. No architecture is named: what the model passes to its blocks is recorded, and its own
embeddings, norm and head do the rest.
"""
