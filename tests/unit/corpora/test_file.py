"""Whatever a user's file holds is read or told, with the file and the line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from colazero.corpora import file as module
from colazero.errors import UserError
from colazero.settings import RunConfig
from colazero.suite_settings import SuiteConfig, parse

TEXTS = [f"Text number {i}." for i in range(12)]


def read(path: Path) -> list[str]:
    corpus = module.load(str(path))
    return [*corpus.train, *corpus.test]


def table(path: Path, column: pa.Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": list(range(len(column))), "text": column}), path)
    return path


@pytest.mark.parametrize(
    "turned",
    [
        lambda a: a,
        lambda a: a.dictionary_encode(),
        lambda a: a.cast(pa.large_string()),
        lambda a: a.cast(pa.string_view()),
        lambda a: pa.chunked_array([a[:3], a[3:]]).combine_chunks().dictionary_encode(),
    ],
)
def test_every_column_of_text_is_read(
    turned: Callable[[pa.Array], pa.Array], tmp_path: Path
) -> None:
    assert read(table(tmp_path / "a.parquet", turned(pa.array(TEXTS)))) == TEXTS


def test_rows_without_a_text_are_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    column = pa.array([None if i in (3, 5) else text for i, text in enumerate(TEXTS)])
    assert len(read(table(tmp_path / "a.parquet", column))) == 10
    assert "2 rows whose text is null are left out, the first at row 4" in caplog.text


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"text": null}', "'text' (it holds null)"),
        ('{"text": 12}', "it holds a int"),
        ('{"text": ["a"]}', "it holds a list"),
        ('{"body": "a"}', "it has 'body'"),
        ('{"text": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"text": "a", "id": ' + "9" * 5000 + "}", "its JSON cannot be read (Exceeds the limit"),
        ('{"text": "a"', "no JSON"),
        ("null", "it has nothing"),
    ],
    ids=range(8),
)
def test_a_row_that_is_no_document_is_told_with_its_line(
    row: str, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "with: a colon.jsonl"
    file.write_text(json.dumps({"text": "a"}) + "\n\n" + row + "\n")
    with pytest.raises(UserError) as caught:
        read(file)
    assert f"{str(file)!r}, line 3: " in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".parquet"])
@pytest.mark.parametrize("error", [PermissionError(13, "no"), MemoryError(), OSError()])
def test_whatever_a_reader_raises_is_a_sentence(
    ending: str, error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_file: Path) -> object:
        yield "line 1", "fine"
        raise error

    (tmp_path / f"a{ending}").write_text("x")
    monkeypatch.setitem(module.READERS, ending, fail)
    with pytest.raises(UserError, match="after line 1 cannot be read as"):
        read(tmp_path / f"a{ending}")


@pytest.mark.parametrize("cut", [10, 200, -9])
def test_a_damaged_parquet_is_told(cut: int, tmp_path: Path) -> None:
    file = table(tmp_path / "a.parquet", pa.array(TEXTS * 50))
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match="cannot be read as parquet"):
        read(file)


@pytest.mark.parametrize("ending", [".txt", ".TXT", ".jsonl", ".JSONL", ".parquet", ".Parquet"])
def test_a_folder_is_read_with_what_is_below_it(ending: str, tmp_path: Path) -> None:
    """Its name may look like a file's: engines write tables so."""
    folder = tmp_path / "part.parquet"
    for number, text in enumerate(TEXTS):
        file = folder / ("sub/deeper" if number > 6 else "") / f"{number:02}{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if "parquet" in ending.lower():
            table(file, pa.array([text]))
        else:
            file.write_text(json.dumps({"text": text}) if "json" in ending.lower() else text)
    (folder / ".hidden.txt").write_text("not read")
    (folder / "_SUCCESS").write_text("")
    assert read(folder) == TEXTS


def test_a_folder_of_two_kinds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.jsonl").write_text('{"text": "b"}')
    with pytest.raises(UserError, match=r"\.jsonl and \.txt files"):
        read(tmp_path)


def test_a_comma_in_a_path_is_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.txt", "c.txt", "d,e,f.txt"):
        Path(name).write_text("x")
    given = f"file:{tmp_path}/a,b.txt, file:c.txt,sotu,file:d,e,f.txt"
    found = parse(RunConfig, {"eval_corpora": given}).eval_corpora
    assert found == (f"file:{tmp_path}/a,b.txt", "file:c.txt", "sotu", "file:d,e,f.txt")
    Path("m,1").mkdir()
    assert parse(SuiteConfig, {"models": "m,1,m,2", "preset": "demo"}).models == ("m,1", "m", "2")
    assert parse(SuiteConfig, {"seeds": "1,2-3"}).seeds == (1, 2, 3)


@pytest.mark.parametrize("to", ["nowhere.txt", "a folder"])
def test_a_link_in_a_folder_that_is_not_read_is_told(tmp_path: Path, to: str) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    (tmp_path / "a folder").mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text("words")
    (folder / "3.txt").symlink_to(tmp_path / to)
    with pytest.raises(UserError, match=r"'3\.txt' is a link to a f.*, which is not read"):
        read(folder)


@pytest.mark.parametrize("ending", [".txt", ".jsonl", ".parquet"])
def test_what_git_lfs_left_in_place_of_a_file_is_no_corpus(tmp_path: Path, ending: str) -> None:
    file = tmp_path / f"a{ending}"
    file.write_text("version https://git-lfs.github.com/spec/v1\n\noid sha256:0\n\nsize 1\n")
    with pytest.raises(UserError, match="git lfs pull"):
        read(file)


def test_a_table_whose_text_is_not_utf_8_is_told_with_its_place(tmp_path: Path) -> None:
    texts = pa.array([b"words", b"\xff\xfe"], type=pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet', after .*: a text is not UTF-8"):
        read(tmp_path / "a.parquet")
