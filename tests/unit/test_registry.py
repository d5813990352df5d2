"""A registry refuses duplicates, helps with misspelt names, and finds files nobody told it of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from colazero.corpora import CORPORA
from colazero.errors import UserError, unknown
from colazero.quantizers import QUANTIZERS
from colazero.registry import Registry
from colazero.selection import METHODS


def test_a_name_that_is_taken_is_refused() -> None:
    registry: Registry[object] = Registry("colour", "colazero")
    registry.register("red")(object())
    with pytest.raises(ValueError, match="colour 'red'"):
        registry.register("red")(object())


@pytest.mark.parametrize(
    ("registry", "wrong", "near"),
    [
        (METHODS, "cola-zero", "cola_zero"),
        (METHODS, "Random", "random"),
        (METHODS, "gptq", "gptq_default"),
        (CORPORA, "wikitext", "wikitext2"),
        (CORPORA, "sout", "sotu"),
        (QUANTIZERS, "gptq_model", "gptqmodel"),
    ],
)
def test_a_misspelt_name_gets_the_nearest_one(
    registry: Registry[object], wrong: str, near: str
) -> None:
    with pytest.raises(UserError) as caught:
        registry.get(wrong)
    message = str(caught.value)
    assert f"unknown {registry.kind} {wrong!r}. Did you mean {near!r}?" in message
    assert message.endswith("Allowed: " + ", ".join(registry.names()) + ".")


def test_a_name_like_no_other_gets_the_list_and_no_guess() -> None:
    message = str(unknown("method", "xyzzy", ["random", "cola_zero"]))
    assert message == "unknown method 'xyzzy'. Allowed: cola_zero, random."


def test_what_comes_along_is_found() -> None:
    assert {"cola_zero", "gptq_default", "random"} < set(METHODS.names())
    assert CORPORA.names() == ["c4", "file", "hf", "mathqa", "mix", "sotu", "wikitext2"]
    assert "gptqmodel" in QUANTIZERS.names()


def test_a_new_file_is_found_without_editing_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "colours_of_a_test"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from colazero.registry import Registry\n"
        "COLOURS = Registry('colour', 'colours_of_a_test')\n"
    )
    for name in ("red", "blue"):
        (package / f"{name}.py").write_text(
            f"from colours_of_a_test import COLOURS\n"
            f"@COLOURS.register('{name}')\n"
            f"def paint():\n    return 'painted {name}'\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    import colours_of_a_test

    assert colours_of_a_test.COLOURS.names() == ["blue", "red"]
    assert colours_of_a_test.COLOURS.get("red")() == "painted red"


def test_names_are_listed_and_a_suite_is_checked_without_the_seconds_of_heavy_imports() -> None:
    code = """if True:
        import sys
        from colazero import corpora, quantizers, selection
        from colazero.suite import run as suite
        for registry in (selection.METHODS, corpora.CORPORA, quantizers.QUANTIZERS):
            assert registry.names()
        quantizers.check_quantizer("gptqmodel", "cpu")
        print(*sorted({"torch", "transformers", "gptqmodel", "numba", "ray"} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
