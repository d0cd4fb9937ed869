"""Records: cut anywhere and taken up again, one writer, no half-written lines, nothing lost on a full disk."""

from __future__ import annotations

import json
import multiprocessing
import resource
import time
from collections.abc import Sequence
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.evaluation.records import RecordsError, append_records, claim, complete, read_records, records_by_id, single_writer


class Interrupted(Exception):
    pass


def answerer(fail_at: int | None = None):
    """Answers items by their square; stops before answering item `fail_at`."""

    def answer(batch: Sequence[int]) -> list[dict]:
        if fail_at in batch:
            raise Interrupted
        return [{"square": item * item, "text": "é\u2028"} for item in batch]

    return answer


def run(path: Path, items: Sequence[int], fail_at: int | None = None) -> dict[str, dict]:
    return complete(path, items, answerer(fail_at), key=str, batch_size=4)


@given(cut=st.integers(0, 400), items=st.integers(1, 12))
def test_a_run_cut_at_any_byte_ends_as_an_uninterrupted_one(tmp_path_factory: pytest.TempPathFactory, cut: int, items: int) -> None:
    folder = tmp_path_factory.mktemp("records")
    whole, again = folder / "whole.jsonl", folder / "again.jsonl"
    expected = run(whole, range(items))
    again.write_bytes(whole.read_bytes()[:cut])
    assert run(again, range(items)) == expected
    assert again.read_bytes() == whole.read_bytes()


def test_an_interrupted_run_answers_only_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with pytest.raises(Interrupted):
        run(path, range(10), fail_at=9)
    assert [r["id"] for r in read_records(path)] == [str(i) for i in range(8)]
    asked: list[int] = []
    complete(path, range(10), lambda batch: [asked.append(i) or {"square": i * i, "text": ""} for i in batch], key=str, batch_size=4)
    assert asked == [8, 9]


def test_damage_in_the_middle_is_an_error_that_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    run(path, range(3))
    lines = path.read_text(encoding="utf-8").split("\n")
    path.write_text("\n".join([lines[0], lines[1][:9], *lines[2:]]), encoding="utf-8")
    with pytest.raises(RecordsError, match="p.jsonl, line 2"):
        run(path, range(3))


def test_ids_must_be_unique(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="share the id '1'"):
        run(tmp_path / "p.jsonl", [0, 1, 1])


def hold(folder: Path, held: Event) -> None:
    with single_writer(folder):
        held.set()
        time.sleep(60)


def test_two_records_of_one_question_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    file.write_text('{"id": "a", "output": "1"}\n{"id": "b"}\n')
    assert list(records_by_id(file)) == ["a", "b"] and records_by_id(tmp_path / "none") == {}
    file.write_text(file.read_text() + '{"id": "a", "output": "2"}\n')
    with pytest.raises(RecordsError, match="two predictions for 'a'; keep one of them"):
        records_by_id(file)


def test_a_second_writer_is_refused_and_the_lock_goes_with_its_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    held = context.Event()
    other = context.Process(target=hold, args=(tmp_path, held))
    other.start()
    try:
        assert held.wait(30)
        with pytest.raises(RecordsError, match=f"another process .id {other.pid}. is writing here"), single_writer(tmp_path):
            pass
    finally:
        other.kill()
        other.join()
    with single_writer(tmp_path):
        pass


def test_records_of_another_run_are_not_mixed(tmp_path: Path) -> None:
    claim(tmp_path, {"model": "misspelt", "seed": 0})
    claim(tmp_path, {"model": "a", "seed": 0})  # the first could not begin, and has no records
    append_records(tmp_path / "predictions.jsonl", [{"id": "x"}])
    claim(tmp_path, {"model": "a", "seed": 0})
    with pytest.raises(RecordsError, match="model was 'a', now 'b'"):
        claim(tmp_path, {"model": "b", "seed": 0})


def test_a_full_disk_loses_no_record_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    run(path, range(4))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))  # the next record fits only in part
    try:
        with pytest.raises(RecordsError, match="p.jsonl: cannot write .*Free space"):
            append_records(path, [{"id": "x", "text": "y" * 1000}])
        assert path.read_bytes() == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [json.loads(line)["id"] for line in before.splitlines()] == ["0", "1", "2", "3"]
