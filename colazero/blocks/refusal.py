"""What the blocks do not take, said in one sentence."""

from __future__ import annotations

from colazero.errors import UserError


class Refused(UserError):
    """A model that cannot be run, or quantized, a block at a time: `why` is the reason alone."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(f"the model cannot be taken a block at a time: {why}.")
