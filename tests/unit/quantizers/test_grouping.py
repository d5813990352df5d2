"""The group size a model allows."""

from __future__ import annotations

import pytest

from colazero.errors import UserError
from colazero.quantizers import supported


@pytest.mark.parametrize(
    ("inputs", "size"),
    [
        ({4096, 11008}, 128),  # Llama-2-7B
        ({5120, 13824}, 128),  # Llama-2-13B
        ({4096, 16384}, 128),  # OPT-6.7B
        ({576, 1536}, 64),  # SmolLM2-135M
        ({128, 256}, 128),
        ({96}, 32),
        ({48, 128}, 16),
        ({1024}, 128),
    ],
)
def test_auto_is_128_or_the_largest_that_divides(inputs: set[int], size: int) -> None:
    assert supported.resolve_group_size("auto", inputs) == size


@pytest.mark.parametrize("size", [16, 32, 64])
def test_a_size_that_divides_is_taken(size: int) -> None:
    assert supported.resolve_group_size(size, {576, 1536}) == size


def test_a_size_above_128_is_taken_when_asked_for() -> None:
    assert supported.resolve_group_size(1024, {4096}) == 1024


@pytest.mark.parametrize("size", [128, 96, 48, 2048])
def test_a_size_that_does_not_fit_is_refused_with_those_that_do(size: int) -> None:
    with pytest.raises(UserError) as caught:
        supported.resolve_group_size(size, {576, 1536})
    message = str(caught.value)
    assert f"group_size={size} does not fit" in message
    assert "[576, 1536]" in message
    assert "allows 16, 32, 64." in message


@pytest.mark.parametrize("size", ["auto", 16])
def test_a_model_that_allows_none_is_refused(size: int | str) -> None:
    with pytest.raises(UserError, match=r"group_size=.*\[100\]"):
        supported.resolve_group_size(size, {100})


@pytest.mark.parametrize("family", ["tiny_llama", "tiny_opt", "tiny_mistral"])
def test_the_layers_inside_the_blocks_count(family: str, request: pytest.FixtureRequest) -> None:
    assert supported.layer_inputs(request.getfixturevalue(family)) == {128, 256}


@pytest.mark.parametrize("inputs", [{100}, {576, 1536}, {7}])
def test_a_group_of_the_whole_row_fits_every_layer(inputs: set[int]) -> None:
    assert supported.resolve_group_size(-1, inputs) == -1
