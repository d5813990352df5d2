"""What makes GPTQModel faster on a CPU without changing a bit of its checkpoints.

A package of its own, as it needs torch at import, and names of quantizers are listed without.
"""
