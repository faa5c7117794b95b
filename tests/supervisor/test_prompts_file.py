"""Lines in, records out; outcomes in, lines out."""

import json
import os
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soloist.protocol.errors import InvalidPrompt, PayloadTooLarge, WorkerLost
from soloist.supervisor import prompts_file
from soloist.supervisor.prompts_file import Format, OutputError, PromptParser, Record

ANSWER = types.SimpleNamespace(
    text="HI", num_turns=1, duration_s=0.25, usage={"output_tokens": 2}, cost_usd=0.5, worker=3
)


def records_of(content, form=Format.AUTO, **options):
    parser = PromptParser(form, **options)
    parser.feed(content if isinstance(content, bytes) else content.encode())
    parser.end()
    return list(iter(parser.take, None))


def prompts_of(content, form=Format.AUTO, **options):
    return [record.prompt for record in records_of(content, form, **options)]


def decoded(line):
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    return json.loads(line)


def test_a_text_file_gives_a_prompt_a_line_and_skips_blank_lines():
    records = records_of("one\n\n   \ntwo  words \r\nlast", Format.TEXT)

    assert [record.prompt for record in records] == ["one", "two  words ", "last"]
    assert [record.index for record in records] == [0, 1, 2]


def test_a_byte_order_mark_is_no_part_of_the_first_prompt():
    assert prompts_of(b"\xef\xbb\xbfone\ntwo\n") == ["one", "two"]


def test_a_byte_order_mark_alone_is_a_blank_line():
    assert prompts_of(b"\xef\xbb\xbf\n") == []


def test_jsonl_gives_the_prompt_and_carries_the_other_fields():
    (record,) = records_of('{"id": 7, "prompt": "hi", "tags": ["a"]}\n')

    assert record.prompt == "hi"
    assert record.carried == {"id": 7, "tags": ["a"]}


def test_a_prompt_may_be_a_list_of_content_blocks():
    blocks = [{"type": "text", "text": "hi"}]

    assert prompts_of(json.dumps({"prompt": blocks})) == [blocks]


def test_another_field_may_hold_the_prompt():
    (record,) = records_of('{"prompt": "no", "q": "yes"}', Format.JSONL, field="q")

    assert record.prompt == "yes"
    assert record.carried == {"prompt": "no"}


def test_the_first_line_that_is_not_blank_tells_text_from_jsonl():
    assert prompts_of('\n{"prompt": "a"}\n') == ["a"]
    assert prompts_of('\n{braces} in a sentence\n{"prompt": "a"}\n') == [
        "{braces} in a sentence",
        '{"prompt": "a"}',
    ]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{oops", "line 2 is not JSON"),
        (b'["list"]', "line 2 is not a JSON object"),
        (b'{"other": 1}', "line 2 has no field 'prompt'"),
        (b'{"prompt": 5}', "line 2 has a 'prompt' that is neither text nor"),
        (b'{"prompt": ["x"]}', "line 2 has a 'prompt' that is neither text nor"),
        (b'{"prompt": "x", "y": NaN}', "line 2 is not JSON: NaN"),
        (b'{"prompt": "\xff"}', "line 2 is not UTF-8"),
        (b"[" * 100_000, "line 2 is not JSON"),
    ],
)
def test_a_malformed_line_is_a_failed_record_in_its_place(line, why):
    records = records_of(b'{"prompt": "a"}\n' + line + b'\n{"prompt": "c"}\n')

    assert [record.prompt for record in records] == ["a", None, "c"]
    assert isinstance(records[1].error, InvalidPrompt)
    assert why in str(records[1].error)
    assert records[1].error.started is False
    assert records[1].index == 1


def test_a_malformed_line_keeps_the_fields_that_could_be_read():
    (record,) = records_of('{"id": "x", "text": "y"}', Format.JSONL)

    assert decoded(prompts_file.error_line(record, record.error, with_prompt=True)) == {
        "id": "x",
        "input_text": "y",
        "index": 0,
        "error": {
            "code": "invalid_prompt",
            "message": "line 1 has no field 'prompt'",
            "retryable": False,
            "started": False,
        },
    }


def test_a_line_over_the_limit_fails_alone_and_is_not_kept_in_memory():
    parser = PromptParser(Format.TEXT, max_line_bytes=10)
    parser.feed(b"short\n")
    for _ in range(100):
        parser.feed(b"x" * 1000)
    assert len(parser._open_line) <= 11
    parser.feed(b"\nexactly 10\nafter\n")

    first, long, exact, after = iter(parser.take, None)

    assert isinstance(long.error, PayloadTooLarge)
    assert [first.prompt, exact.prompt, after.prompt] == ["short", "exactly 10", "after"]


@given(st.lists(st.sampled_from([b"a", b"\n", b"\r\n", b'{"prompt": "p"}', b" "])), st.data())
def test_records_do_not_depend_on_how_the_bytes_were_cut(pieces, data):
    content = b"".join(pieces)
    parser = PromptParser(Format.AUTO)
    seen, start = [], 0
    while start < len(content):
        stop = data.draw(st.integers(start + 1, len(content)))
        parser.feed(content[start:stop])
        seen += iter(parser.take, None)
        start = stop
    parser.end()
    seen += iter(parser.take, None)

    whole = records_of(content)
    assert [(r.index, r.prompt) for r in seen] == [(r.index, r.prompt) for r in whole]


def test_an_answer_line_has_the_carried_fields_then_ours():
    record = Record(4, "hi", {"id": "x"}, 10)

    row = decoded(prompts_file.answer_line(record, ANSWER, with_prompt=True))

    assert row == {
        "id": "x",
        "index": 4,
        "prompt": "hi",
        "text": "HI",
        "num_turns": 1,
        "duration_s": 0.25,
        "usage": {"output_tokens": 2},
        "cost_usd": 0.5,
        "worker": 3,
    }
    assert list(row)[:2] == ["id", "index"]


def test_prompts_can_be_left_out():
    record = Record(0, "hi", {}, 10)

    assert "prompt" not in decoded(prompts_file.answer_line(record, ANSWER, with_prompt=False))


def test_an_error_line_says_what_went_wrong_and_whether_the_prompt_may_have_run():
    record = Record(0, "hi", {"id": 1}, 10)

    row = decoded(prompts_file.error_line(record, WorkerLost("gone"), with_prompt=True))

    assert row == {
        "id": 1,
        "index": 0,
        "prompt": "hi",
        "error": {"code": "worker_lost", "message": "gone", "retryable": True, "started": None},
    }


@given(st.dictionaries(st.sampled_from(["text", "input_text", "input_input_text", "x"]), st.text()))
def test_a_field_with_one_of_our_names_loses_no_value(fields):
    row = decoded(prompts_file.answer_line(Record(0, "p", fields, 1), ANSWER, with_prompt=True))

    for name in ("index", "prompt", "num_turns", "duration_s", "usage", "cost_usd", "worker"):
        del row[name]
    assert row.pop("text") == "HI"
    assert sorted(row.values()) == sorted(fields.values())
    for name in fields:
        if name != "text":
            assert row[name] == fields[name]


def test_text_that_utf8_cannot_carry_still_gives_a_line():
    record = Record(0, "lone \ud800 surrogate", {}, 1)

    row = decoded(prompts_file.answer_line(record, ANSWER, with_prompt=True))

    assert row["prompt"] == "lone \ud800 surrogate"


@pytest.mark.parametrize(
    ("content", "lines"),
    [(b"", 0), (b"a", 1), (b"a\n", 1), (b"a\n\nb", 3), (b"a\n" * 400_000, 400_000)],
)
def test_lines_are_counted_from_where_the_file_stands(tmp_path, content, lines):
    path = tmp_path / "f"
    path.write_bytes(b"skipped\n" + content)
    with path.open("rb", buffering=0) as file:
        file.seek(8)

        assert prompts_file.count_lines(file.fileno()) == lines
        assert file.tell() == 8


def test_lines_of_a_pipe_are_not_counted():
    read_end, write_end = os.pipe()
    try:
        assert prompts_file.count_lines(read_end) is None
    finally:
        os.close(read_end)
        os.close(write_end)


def test_results_that_exist_are_kept_unless_forced(tmp_path):
    path = tmp_path / "out"
    path.write_text("old results\n")

    with pytest.raises(FileExistsError):
        prompts_file.open_results(path, force=False)
    target = prompts_file.open_results(path, force=True)
    assert path.read_text() == "old results\n"  # until there is something to put there
    prompts_file.empty_results(target)
    prompts_file.close_results(target)

    assert path.read_text() == ""


def test_an_empty_file_or_a_device_may_be_written_to(tmp_path):
    (tmp_path / "empty").touch()

    for path in (tmp_path / "empty", tmp_path / "new", "/dev/null"):
        target = prompts_file.open_results(path, force=False)
        prompts_file.empty_results(target)
        prompts_file.close_results(target)


def test_a_reader_that_has_gone_is_told_from_a_full_disk():
    read_end, write_end = os.pipe()
    os.close(read_end)
    with pytest.raises(OutputError) as gone:
        prompts_file.write_all(write_end, b"x\n")
    os.close(write_end)
    assert gone.value.is_closed

    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OutputError, match="No space left") as no_space:
        prompts_file.write_all(full, b"x\n")
    os.close(full)
    assert not no_space.value.is_closed
