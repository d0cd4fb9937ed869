"""`bench.py hoi-qa` gives the same answers both ways, and each picture is encoded as often as it says."""

from __future__ import annotations

import re

from data.synthetic.hoi_qa_writer import write_hoi_qa
from scripts import bench
from scripts.benchmarks import hoi_qa
from vlm.evaluation.asking import Asker
from vlm.evaluation.hoi_qa import read_items


def test_the_table_and_the_answers(capsys):
    tiny = ["--frames", "2", "--per-frame", "5", "--rounds", "1", "--image-size", "56", "--new-tokens", "3", "--threads", "1"]
    assert bench.main(["hoi-qa", *tiny]) == 0
    printed = capsys.readouterr().out
    assert "10 about 2 frames" in printed and "answers as published: 10 of 10 and 10 of 10" in printed
    assert re.search(r"as published, 16 at a time .* 1\.00$", printed, re.MULTILINE)


def test_the_published_way_encodes_every_questions_picture(tmp_path):
    list(write_hoi_qa(tmp_path, "test", 0, 2))
    items = hoi_qa.first_of_frames(read_items(tmp_path / "hoiqa_dataset"), 4)
    model, processor = hoi_qa.fresh_model([item.question for item in items], 56)
    seen: list[int] = []
    model.model.vision_tower.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    for shares in (False, True):
        hoi_qa._ask(Asker(model, processor, max_new_tokens=1, share_prefixes=shares), items, tmp_path, 16, each_its_own=not shares)
    assert len(items) == 8 and seen == [8, 2]
