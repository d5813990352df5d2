"""Whatever a user's file holds is read or told, with the file and the line."""

from __future__ import annotations

import csv
import io
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
        (
            '{"text": "a", "x": ' + "[" * 100_000 + "]" * 100_000 + "}",
            "its JSON cannot be read (maximum recursion",
        ),
        ('{"text": "a", "id": ' + "9" * 5000 + "}", "its JSON cannot be read (Exceeds the limit"),
        ('{"text": "a"', "not JSON"),
        ("null", "not a NoneType"),
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
    def fail(_file: Path, _field: str) -> object:
        yield "line 1", {"text": "fine"}
        raise error

    (tmp_path / f"a{ending}").write_text("x")
    monkeypatch.setitem(module.READERS, ending, fail)
    with pytest.raises(UserError, match="after line 1 "):
        read(tmp_path / f"a{ending}")


@pytest.mark.parametrize("cut", [10, 200, -9])
def test_a_damaged_parquet_is_told(cut: int, tmp_path: Path) -> None:
    file = table(tmp_path / "a.parquet", pa.array(TEXTS * 50))
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match="parquet"):
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
    Path("g,h.jsonl").write_text("{}")
    named = "file:g,h.jsonl:body,file:c.txt:body,sotu,file:g,h.jsonl:test:body,hf:./m,1:x"
    assert parse(RunConfig, {"eval_corpora": named}).eval_corpora == (
        "file:g,h.jsonl:body",
        "file:c.txt:body",
        "sotu",
        "file:g,h.jsonl:test:body",
        "hf:./m,1:x",
    )


@pytest.mark.parametrize("to", ["nowhere.txt", "a folder"])
def test_a_link_in_a_folder_that_is_not_read_is_told(tmp_path: Path, to: str) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    (tmp_path / "a folder").mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text("words")
    (folder / "3.txt").symlink_to(tmp_path / to)
    with pytest.raises(UserError, match=r"'3\.txt'.*link"):
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
    with pytest.raises(UserError, match=r"a\.parquet'.*UTF-8"):
        read(tmp_path / "a.parquet")


# --- exactly what was given


EXACT = [
    "    return 0\n",
    "\u3000一二\n",
    "\tx ",
    "a\u2028b",
    "nul \0 here",
    "\ufeffbom",
    "ends\n\n",
]


def rows_file(folder: Path, ending: str, rows: list[dict[str, object]]) -> Path:
    """Write rows in a format, packed where the ending says so."""
    file = folder / f"own{ending}"
    kind = ending.lower().removesuffix(".gz").removesuffix(".zst")
    if kind == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file
    if kind == ".csv":
        stream = io.StringIO(newline="")
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
        text = stream.getvalue()
    elif kind == ".json":
        text = json.dumps(rows, indent=1)
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    codec = {".gz": "gzip", ".zst": "zstd"}.get(file.suffix.lower())
    with pa.output_stream(str(file), compression=codec) as out:
        out.write(text.encode())
    return file


ENDINGS = [".jsonl", ".jsonl.gz", ".JSONL.GZ", ".jsonl.zst", ".json", ".json.gz", ".csv", ".csv.gz",
           ".parquet"]  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("field", ["", "body"])
def test_every_form_gives_the_texts_as_they_are(ending: str, field: str, tmp_path: Path) -> None:
    file = rows_file(tmp_path, ending, [{"id": 1, field or "text": text} for text in EXACT])
    corpus = module.load(f"{file}:{field}" if field else str(file))
    assert [*corpus.train, *corpus.test] == EXACT


def packed(content: bytes, kind: str) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, kind) as out:
        out.write(content)
    return bytes(sink.getvalue())


def table_of(**columns: list[object]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return bytes(sink.getvalue())


def talk(*messages: dict[str, object], **more: object) -> bytes:
    return (json.dumps({"messages": messages, **more}) + "\n").encode()


ROWS = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 20).encode()
GZIP, ZSTD, PARQUET = packed(ROWS, "gzip"), packed(ROWS, "zstd"), table_of(text=TEXTS)
FINE = talk({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})
LATIN = "gr\xf6\xdfe".encode("latin-1")
DAMAGED: list[tuple[str, bytes, str]] = [
    ("a.jsonl.gz", GZIP[:-20], "cannot be unpacked: Truncated"),
    ("a.jsonl.gz", ROWS, "not a .gz file"),
    ("a.jsonl.gz", GZIP + b"more", "cannot be unpacked"),
    ("a.jsonl.gz", b"", "at least 2 are needed"),
    ("a.txt.gz", GZIP[:-20], "cannot be unpacked"),
    ("a.csv.gz", GZIP[:-20], "cannot be unpacked"),
    ("a.jsonl.zst", ZSTD[:-20], "cannot be unpacked: Truncated"),
    ("a.jsonl.zst", b"\0\0\0\0" + ZSTD[4:], "not a .zst file"),
    ("a.jsonl.zst", GZIP, "not a .zst file"),
    ("a.csv", b"text,id\na,1\nb\n", "row 2"),
    ("a.csv", b'text,id\na,1\n"b,2\n', "cannot be read as csv"),
    ("a.csv", b"body,id\na,1\n", "'body', 'id'"),
    ("a.csv", b"text,id\n" + LATIN + b",1\n", "not UTF-8 (byte 10)"),
    ("a.csv", b"text,id\n", "at least 2 are needed"),
    ("a.csv", b'messages\n"[{""role"": ""user""}]"\n', "'messages' holds text"),
    ("a.json", b'[{"text": "a"}, 5]', "row 2: a row must be a JSON object"),
    ("a.json", b'["a", "b"]', "not a str"),
    ("a.json", b'[{"text": "a"},\n {"te', "not JSON (Unterminated string starting at, line 2"),
    ("a.json", b'{"text": "a"}\n{"text": ', "line 2"),
    ("a.json", b'{"data":\n [{"text": "a"}]}', "holds one JSON object"),
    ("a.json", b"", "at least 2 are needed"),
    ("a.jsonl", ROWS + b"{oops\n" + ROWS, "line 241: not JSON"),
    ("a.jsonl", ROWS + b'{"text": "' + LATIN + b'"}\n', f"not UTF-8 (byte {len(ROWS) + 12})"),
    ("a.jsonl", ROWS.decode().encode("utf-16"), "not UTF-8 (byte 0)"),
    ("a.jsonl", b"", "at least 2 are needed"),
    ("a.jsonl", b'["a"]\n', "line 1: a row must be a JSON object"),
    ("a.jsonl:body", ROWS, "no field 'body' (it has 'text')"),
    ("a.jsonl:test:text", ROWS, "file:PATH[:SPLIT][:FIELD]"),
    ("a.jsonl", FINE + talk(), "line 2: no text in the field 'messages' (it holds an empty list)"),
    ("a.jsonl", FINE + b'{"messages": "text"}\n', "line 2: the field 'messages' holds text"),
    ("a.jsonl", FINE + talk({"role": "wizard", "content": "x"}), "line 2: message 1 has the role"),
    ("a.jsonl", FINE + talk({"content": "x"}), "line 2: message 1 must have 'role'"),
    ("a.jsonl", FINE + talk({"role": "user", "content": 5}), "line 2: message 1 must have"),
    (
        "a.jsonl",
        FINE + talk({"role": "user", "content": [{"type": "image"}]}),
        "line 2: message 1 holds image",
    ),
    (
        "a.jsonl",
        FINE + talk({"role": "user", "content": "x"}, chat_template_kwargs={"tokenize": False}),
        "line 2: chat_template_kwargs: 'tokenize'",
    ),
    ("a.jsonl", b'{"prompt": "a", "completion": null}\n', "the field 'completion' (it holds null)"),
    ("a.jsonl", b'{"prompt": "a", "completion": 3}\n', "the field 'completion' (it holds a int)"),
    ("a.txt", LATIN + b"\n\nb", "not UTF-8 (byte 2)"),
    ("a.txt", b" \n\n ", "at least 2 are needed"),
    ("a.txt:body", b"one\n\ntwo", "no field 'body'"),
    ("a.parquet", PARQUET[:-20], "cannot be read as parquet"),
    ("a.parquet", b"", "cannot be read as parquet"),
    ("a.parquet", table_of(body=TEXTS), "it has 'body'"),
    ("a.parquet", table_of(text=[1, 2]), "row 1: no text in the field 'text' (it holds a int)"),
    ("a.parquet", table_of(text=[None, None]), "at least 2 are needed"),
    ("a.docx.gz", GZIP, "end in '.docx.gz'"),
    ("a.pdf", b"%PDF", "end in '.pdf'"),
]


@pytest.mark.parametrize(("name", "content", "words"), DAMAGED, ids=range(len(DAMAGED)))
def test_what_is_wrong_with_a_file_is_told(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name.split(":")[0]).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / name)
    assert words in str(caught.value)
    assert name.split(":")[0] in str(caught.value)


def test_two_columns_of_one_name_are_told(tmp_path: Path) -> None:
    columns = [pa.array(["a", "b"]), pa.array(["c", "d"])]
    pq.write_table(pa.Table.from_arrays(columns, ["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="2 columns 'text'"):
        read(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("id,text,text\n1,a,b\n2,c,d\n")
    with pytest.raises(UserError, match="2 columns 'text'"):
        read(tmp_path / "a.csv")


# --- splits that names tell


LAYOUTS = {
    "as the Hub has it": ("data/{}-00000-of-00001.parquet", "validation"),
    "with a digest": ("data/{}-00000-of-00002-1a2b3c4d5e6f.parquet", "validation"),
    "one file each": ("{}.jsonl", "valid"),
    "one folder each": ("{}/part 1.jsonl", "dev"),
    "behind a name": ("en/c4-{}.00000-of-01024.json.gz", "val"),
    "in capitals of the ending": ("{}.JSONL", "validation"),
    "with a second name": ("data/{}_sft-00000-of-00001.parquet", "validation"),
}


def a_set(folder: Path, layout: str, splits: list[str]) -> Path:
    for split in splits:
        file = folder / layout.format(split)
        file.parent.mkdir(parents=True, exist_ok=True)
        ending = file.name[file.name.rindex(".") - 5 * file.name.endswith(".gz") :]
        rows = [{"text": f"{split} text {number}"} for number in range(20)]
        rows_file(file.parent, ending, rows).rename(file)  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_in_names_are_used_as_such(layout: str, tmp_path: Path) -> None:
    form, other = LAYOUTS[layout]
    folder = a_set(tmp_path, form, ["train", other, "test"])
    more = "_sft" if "_sft" in form else ""
    for name, train, test in (
        ("", "train", "test"),
        (f":validation{more}", "train", other),
        (f":test{more}:text", "train", "test"),
    ):
        corpus = module.load(f"{folder}{name}")
        assert {text.split()[0] for text in corpus.train} == {train}
        assert {text.split()[0] for text in corpus.test} == {test}
        assert (len(corpus.train), len(corpus.test)) == (20, 20)


@pytest.mark.parametrize("splits", [["train", "validation"], ["train", "dev"]])
def test_without_a_test_split_validation_is_evaluated(splits: list[str], tmp_path: Path) -> None:
    corpus = module.load(str(a_set(tmp_path, "{}.jsonl", splits)))
    assert {text.split()[0] for text in corpus.test} == {splits[1]}


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("TRAIN.jsonl", "TEST.jsonl"),
        ("Train/part.parquet", "Test/part.parquet"),
        ("wiki.train.jsonl", "wiki.test.jsonl"),
        ("train.en.jsonl", "valid.en.jsonl"),
        ("xsum_train.jsonl.gz", "xsum_test.jsonl.gz"),
        ("de-Train-clean.parquet", "de-Dev-clean.parquet"),
        ("train.jsonl", "eval.jsonl"),
    ],
)
def test_splits_in_capitals_and_within_names_are_used_as_such(
    train: str, test: str, tmp_path: Path
) -> None:
    a_set(tmp_path, "{}", [train, test])
    corpus = module.load(str(tmp_path))
    assert {text.split()[0] for text in corpus.train} == {train}
    assert {text.split()[0] for text in corpus.test} == {test}


@pytest.mark.parametrize(
    "names", [["unit-test", "train-journey"], ["a.train", "b.test"], ["train.test", "test.train"]]
)
def test_words_of_splits_in_unlike_names_tell_none(names: list[str], tmp_path: Path) -> None:
    corpus = module.load(str(a_set(tmp_path, "{}.jsonl", names)))
    assert len(corpus.test) == 2 * len(names)


@pytest.mark.parametrize("splits", [["train"], ["a", "b"], ["contest", "latest", "training notes"]])
def test_names_that_tell_no_splits_are_one_text(splits: list[str], tmp_path: Path) -> None:
    corpus = module.load(str(a_set(tmp_path, "{}.jsonl", splits)))
    assert len(corpus.test) == 2 * len(splits)


@pytest.mark.parametrize("splits", [["test", "validation"], ["dev", "test"]])
def test_splits_without_one_to_calibrate_on_are_refused(splits: list[str], tmp_path: Path) -> None:
    a_set(tmp_path, "{}.jsonl", splits)
    with pytest.raises(UserError, match="none to calibrate on"):
        read(tmp_path)
    assert len(module.load(f"{tmp_path}:test").test) == 2
    for file in tmp_path.glob("*[!t].jsonl"):
        file.unlink()
    assert len(read(tmp_path)) == 20, "one split is one text"


def test_splits_beside_other_files_are_refused(tmp_path: Path) -> None:
    a_set(tmp_path, "{}.jsonl", ["train", "test", "more"])
    with pytest.raises(UserError, match=r"test, train, and 'more\.jsonl'"):
        read(tmp_path)


def test_what_is_calibrated_on_is_never_the_test_split(tmp_path: Path) -> None:
    """The last review's case: sorted by name, test came first."""
    corpus = module.load(str(a_set(tmp_path, "data/{}.jsonl", ["test", "train", "validation"])))
    assert not [text for text in corpus.train if "test" in text]


# --- saved by `datasets`


@pytest.mark.parametrize("splits", [[], ["train", "test"], ["train", "validation", "test"]])
@pytest.mark.parametrize("field", ["text", "body"])
def test_a_saved_data_set_is_read(splits: list[str], field: str, tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    def rows(split: str) -> Dataset:
        return Dataset.from_list([{field: f"{split} {i}  "} for i in range(20)])

    whole = DatasetDict({name: rows(name) for name in splits}) if splits else rows("all")
    whole.save_to_disk(str(tmp_path / "saved"))
    name = f"{tmp_path}/saved" + (f":{field}" if field != "text" else "")
    corpus = module.load(name)
    if splits:
        assert {text.split()[0] for text in corpus.train} == {"train"}
        assert {text.split()[0] for text in corpus.test} == {"test"}
        assert corpus.test[0] == "test 0  "
    else:
        assert (len(corpus.train), len(corpus.test)) == (18, 2)
    if "validation" in splits:
        named = module.load(
            f"{tmp_path}/saved:validation" + (f":{field}" if field != "text" else "")
        )
        assert {text.split()[0] for text in named.test} == {"validation"}


def test_a_saved_data_set_that_is_damaged_is_told(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list([{"text": text} for text in TEXTS]).save_to_disk(str(tmp_path / "saved"))
    for file in (tmp_path / "saved").glob("*.arrow"):
        file.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "saved")
