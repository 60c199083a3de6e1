"""Prompt lists: read whole, or refused in one line that names file, line and cure."""

import csv
import json
from pathlib import Path

import pytest

from producer.prompts import MAX_LENGTH, default_prompts, read_prompts
from shared.choices import DEFAULT_MODEL
from shared.errors import InputError

SHIPPED = Path(__file__).parent.parent / "all_prompts.csv"


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "prompts.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(path: Path, count: int = 1) -> str:
    with pytest.raises(InputError) as caught:
        read_prompts(path, count)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "content",
    [
        "prompt\na cat\na dog\n",
        "prompt\r\na cat\r\na dog\r\n",
        "\ufeffprompt\na cat\na dog",
        "id,prompt,note\n1,a cat,x\n2, a dog ,\n",
        'prompt\n"a cat"\n\n\n"a dog"\n',
        "prompt,id\na cat\na dog,2,,\n",
    ],
    ids=["plain", "windows", "byte order mark", "other columns", "blank lines", "short and long rows"],
)
def test_lists_that_can_be_read(tmp_path: Path, content: str) -> None:
    assert read_prompts(write(tmp_path, content), 2) == ["a cat", "a dog"]


def test_quotes_commas_and_newlines_are_kept(tmp_path: Path) -> None:
    content = 'prompt\n"a ""big"" cat, red"\n"two\nlines"\nüber 猫\n'
    assert read_prompts(write(tmp_path, content), 3) == ['a "big" cat, red', "two\nlines", "über 猫"]


def test_all_are_returned_when_fewer_are_needed(tmp_path: Path) -> None:
    assert len(read_prompts(write(tmp_path, "prompt\na\nb\nc\n"), 1)) == 3


def test_no_such_file(tmp_path: Path) -> None:
    assert "--prompt-csv" in refusal(tmp_path / "missing.csv")


def test_a_folder(tmp_path: Path) -> None:
    assert "can't be read" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["", "\n", "\ufeff", "\n\n\n"], ids=repr)
def test_empty(tmp_path: Path, content: str) -> None:
    assert "is empty" in refusal(write(tmp_path, content))


def test_a_header_and_nothing_else(tmp_path: Path) -> None:
    assert "no prompts" in refusal(write(tmp_path, "prompt\n"))


@pytest.mark.parametrize(
    "content", ["text\na cat\n", "Prompt\na cat\n", "a cat\na dog\n", "prompt;id\na;1\n"]
)
def test_no_such_column(tmp_path: Path, content: str) -> None:
    message = refusal(write(tmp_path, content))
    assert "no column 'prompt'" in message
    assert repr(content.splitlines()[0]) in message


def test_a_comma_needs_no_quotes_where_the_prompt_is_all_there_is(tmp_path: Path) -> None:
    lines = 'prompt\na cat, studio light\n"a dog, running"\nplain\na "big" one, red,blue\n'
    assert read_prompts(write(tmp_path, lines), 1) == [
        "a cat, studio light",
        "a dog, running",
        "plain",
        'a "big" one, red,blue',
    ]


def test_more_fields_than_the_header_has_are_refused(tmp_path: Path) -> None:
    """The prompt would be cut at its comma."""
    message = refusal(write(tmp_path, "id,prompt\n1,a cat\n2,a dog, running\n"))
    assert "line 3: 3 fields, but the header has 2; put quotes around" in message


def test_two_columns_of_that_name_are_refused(tmp_path: Path) -> None:
    assert "'prompt' more than once" in refusal(write(tmp_path, "prompt,prompt\na,b\n"))


def test_too_few(tmp_path: Path) -> None:
    message = refusal(write(tmp_path, "prompt\na\nb\n"), count=3)
    assert "has 2 prompts" in message
    assert "--num-images 2" in message


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("prompt,id\na,1\n,2\n", 3),
        ("prompt,id\n ,1\n", 2),
        ('id,prompt\n1,"two\nlines"\n2\n', 4),
    ],
)
def test_an_empty_prompt_is_named_by_its_line(tmp_path: Path, content: str, line: int) -> None:
    assert f"line {line}: an empty prompt" in refusal(write(tmp_path, content))


def test_an_empty_prompt_beyond_those_needed_counts_too(tmp_path: Path) -> None:
    assert "line 4" in refusal(write(tmp_path, "prompt,id\na,1\nb,2\n,3\n"), count=2)


def test_an_endless_prompt(tmp_path: Path) -> None:
    assert read_prompts(write(tmp_path, f"prompt\n{'x' * MAX_LENGTH}\n"), 1)
    assert f"line 2: {MAX_LENGTH + 1} characters" in refusal(
        write(tmp_path, f"prompt\n{'x' * (MAX_LENGTH + 1)}\n")
    )
    # Longer than the csv module takes at all.
    assert "line 2" in refusal(write(tmp_path, f"prompt\n{'x' * 200_000}\n"))


def test_an_endless_header(tmp_path: Path) -> None:
    assert "not a CSV" in refusal(write(tmp_path, "x" * 200_000))


@pytest.mark.parametrize(("encoding", "line"), [("latin-1", 3), ("cp1252", 3), ("utf-16", 1), ("utf-32", 1)])
def test_another_encoding(tmp_path: Path, encoding: str, line: int) -> None:
    message = refusal(write(tmp_path, "prompt\na cat\nüber\n".encode(encoding)))
    assert f"line {line}: not UTF-8" in message


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark(tmp_path: Path, encoding: str) -> None:
    message = refusal(write(tmp_path, "prompt\na cat\n".encode(encoding)))
    assert message.endswith("line 1: looks like UTF-16; save the file in UTF-8")


def test_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    assert "line 12: not a CSV" in refusal(write(tmp_path, 'prompt\na\n"b\nc\n' + "d\n" * 8))


def test_a_quote_in_the_middle_of_nothing(tmp_path: Path) -> None:
    assert "line 2: not a CSV" in refusal(write(tmp_path, 'prompt\n"a" cat, red\n'))


def named(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return path


def test_a_column_of_another_name(tmp_path: Path) -> None:
    path = write(tmp_path, 'Prompts,Category\n"A red car, parked.",Colors\nA dog.,Counting\n')
    assert read_prompts(path, 2, "Prompts") == ["A red car, parked.", "A dog."]
    assert "--prompt-column" in refusal(path)


def test_tabs_and_quotes_that_belong_to_the_prompt(tmp_path: Path) -> None:
    rows = [
        "Prompt\tCategory\tChallenge\tNote",
        '"Open" on a sign, at night\tArts\tBasic\t',
        'the word "START"\tArts\tBasic\tx',
        '"a ""big"" cat"\tAnimals\tBasic\t',
    ]
    path = named(tmp_path, "PartiPrompts.tsv", "\n".join(rows))
    found = read_prompts(path, 3, "Prompt")
    assert found == ['"Open" on a sign, at night', 'the word "START"', 'a "big" cat']


def test_plain_lines(tmp_path: Path) -> None:
    path = named(tmp_path, "prompts.txt", '\ufeffa cat, "sitting"\r\n\n  a dog  \n')
    assert read_prompts(path, 2) == ['a cat, "sitting"', "a dog"]
    assert "no prompts" in refusal(named(tmp_path, "blank.txt", "\n\n"))


def test_captions_of_coco_one_a_picture(tmp_path: Path) -> None:
    def file(name: str, *captions: tuple[int, str]) -> Path:
        annotations = [{"image_id": picture, "id": 1, "caption": text} for picture, text in captions]
        return named(tmp_path, name, json.dumps({"info": {"year": 2017}, "annotations": annotations}))

    assert read_prompts(
        file("captions_val2017.json", (7, "A bus.\n"), (7, "Red bus."), (9, "A cat.")), 2
    ) == [
        "A bus.",
        "A cat.",
    ]
    assert "no captions in COCO's format" in refusal(named(tmp_path, "other.json", "[1]"))
    assert "annotation 1: an empty prompt" in refusal(file("empty.json", (1, " ")))


def test_the_shipped_list_is_balanced() -> None:
    """Every twenty prompts hold one of each of twenty categories, so the first hundred do, too."""
    prompts = read_prompts(SHIPPED, 200)
    assert len({prompt.casefold() for prompt in prompts}) == 200
    with SHIPPED.open(encoding="utf-8", newline="") as file:
        categories = [row["category"] for row in csv.DictReader(file)]
    assert len(set(categories)) == 20
    for start in range(0, 200, 20):
        assert set(categories[start : start + 20]) == set(categories)


def test_built_in_models_bring_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "red circle" in read_prompts(default_prompts("demo"), 200)[0]
    assert default_prompts(DEFAULT_MODEL) == Path("all_prompts.csv")
