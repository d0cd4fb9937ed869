"""Templates: ids equal to what the systems behind them make, supervision of answers alone, and no text that becomes more than text."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from data.sample import SampleError, assistant, text, user
from pose_tools.tool import schemas
from pose_tools.views import View
from tests.vlm.chat_templates import FIXTURES, QWEN, byte_level, sentencepiece, tokenizers
from vlm.packing import IGNORED
from vlm.pieces import markers
from vlm.templates import Piece, TemplateProblem, encode, render

IMAGE = {"type": "image", "image": "x.jpg"}
POSE = {"type": "pose", "encoder": "detection", "tokens": None}
CALL = {"type": "tool_call", "name": "detect_hands", "arguments": {"hand": "left"}}
SYSTEM = {"role": "system", "content": [text("Help.")]}
RESULT = {"role": "tool", "content": [text('{"left": [1, 2, 3, 4]}')]}
STYLES = sorted(tokenizers())
IMAGE_IDS, POSE_IDS = [-200] * 4, [-300] * 2


@pytest.fixture(scope="module")
def by_style():
    return tokenizers()


def media_ids(piece: Piece) -> list[int]:
    return IMAGE_IDS if piece.value["type"] == "image" else POSE_IDS


def ids_of(messages, tokenizer, template="chat", **options):
    return encode(render(messages, template, tokenizer=tokenizer, **options), tokenizer, media_ids)


def learnt(labels):
    return [label for label in labels if label != IGNORED]


def conversation():
    return [
        SYSTEM,
        user(IMAGE, POSE, "where is my left hand?"),
        assistant(CALL),
        RESULT,
        assistant({"type": "box", "bbox_xyxy": [10, 20, 30, 40]}),
        user("and the red cup?"),
        assistant({"type": "none"}),
    ]


VIEWS = [View.identity((100, 100))]


@pytest.mark.parametrize("style", STYLES)
def test_answers_alone_are_learnt_with_the_end_of_their_turn(style, by_style):
    tokenizer = by_style[style]
    _, labels = ids_of(conversation(), tokenizer, tools=["detect_hands"], views=VIEWS)
    runs, inside = [], False
    for label in labels:
        if label != IGNORED:
            runs = runs if inside else [*runs, []]
            runs[-1].append(label)
        inside = label != IGNORED
    end = {"parts": " END", "llama-2": " </s>", "llama-2-new": " </s>"}.get(style, tokenizer.eos_token)
    thought = "(thinks) " if style == "parts" else ""
    answers = ['<tool_call>{"name": "detect_hands", "arguments": {"hand": "left"}}</tool_call>', "[100, 200, 300, 400]", thought + "none"]
    assert [tokenizer.decode(run).strip() for run in runs] == [answer + end for answer in answers]


@pytest.mark.parametrize("style", STYLES)
def test_the_prompt_is_what_training_saw_before_the_answer(style, by_style):
    tokenizer, messages = by_style[style], conversation()
    for number in (2, 4, 6):
        ids, labels = ids_of(messages[: number + 1], tokenizer, tools=["detect_hands"], views=VIEWS)
        prompt, nothing = ids_of(messages[:number], tokenizer, tools=["detect_hands"], views=VIEWS, add_generation_prompt=True)
        if style == "parts":  # it opens the last answer alone by a thought, so earlier answers differ
            continue
        assert ids[: len(prompt)] == prompt
        assert labels[len(prompt)] != IGNORED and labels[len(prompt) - 1] == IGNORED
        assert number > 2 or not learnt(nothing)


@pytest.mark.parametrize("style", [style for style in STYLES if style != "parts"])
@given(words=st.lists(st.text("ab [](){}.,:;?!'\"\n0123é漢—", min_size=1).filter(str.strip), min_size=2, max_size=5))
@settings(max_examples=15)
def test_ids_are_those_of_transformers(style, words):
    """Where nothing is quoted, the ids are those of apply_chat_template, but where an answer begins words may not grow together."""
    tokenizer = TOKENIZERS[style]
    words = [word.strip() for word in words]
    roles = [("user", "assistant")[number % 2] for number in range(len(words))]
    ids, _ = encode(render([{"role": r, "content": [text(w)]} for r, w in zip(roles, words)], "chat", tokenizer=tokenizer), tokenizer)
    theirs = tokenizer.apply_chat_template([{"role": r, "content": w} for r, w in zip(roles, words)], return_dict=False)
    if style in ("qwen", "marked", "small", "llama-3"):
        assert ids == theirs
    assert tokenizer.decode(ids) == tokenizer.decode(theirs)


TOKENIZERS = tokenizers()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("template", ["chat", "vlm4hoi", "vlm4hoi_inference", "vicuna_v1", "llava_v0", "llava_v1"])
def test_quoted_markers_stay_text(style, template, by_style):
    tokenizer = by_style[style]
    names = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special or token.content.startswith("<")]
    quoted = "what is " + " or ".join(names) + "".join(names) + " ?"
    said = quoted if template == "chat" else "yes"
    plain = [SYSTEM, user(IMAGE, POSE, "what is ?"), assistant("yes"), {"role": "tool", "content": [text("yes")]}, assistant("yes")]
    nasty = [
        {"role": "system", "content": [text("Help. " + quoted)]},
        user(IMAGE, POSE, quoted),
        assistant(re.sub(r"</?tool_call>", "", said)),
        {"role": "tool", "content": [text(quoted)]},
        assistant("yes"),
    ]
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    found = [[i for i in ids_of(messages, tokenizer, template)[0] if i < 0 or i in special] for messages in (plain, nasty)]
    assert found[0] == found[1]
    ids, _ = ids_of([user(quoted)], tokenizer, template)
    assert re.sub(r"\s", "", quoted) in re.sub(r"\s", "", tokenizer.decode(ids))


def test_every_letter_of_a_quoted_marker_survives():
    for tokenizer in TOKENIZERS.values():
        for text_ in ("<image>", "<image><image>", "a <image>\n<detection> b"):
            ids, _ = encode([Piece("text", text_)], tokenizer)
            assert tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip() == text_
            assert not set(ids) & {tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "<detection>")}


def test_signs_in_the_text_are_text(by_style):
    said = "\ue0000\ue0010\ue002 and \ue0001\ue0013\ue002"
    pieces = render([user(IMAGE, said), assistant(said)], "chat", tokenizer=by_style["qwen"])
    assert sum(piece.kind == "media" for piece in pieces) == 1
    assert [piece.value for piece in pieces if piece.supervised] == [said, "<|im_end|>"]


def test_tools_are_offered_in_the_form_that_answers_are_read_in(by_style):
    schema = schemas(["detect_hands"])
    for style, tokenizer in by_style.items():
        whole = "".join(str(p.value) for p in render([SYSTEM, user("hi")], "chat", tokenizer=tokenizer, tools=schema))
        assert "<tools>" in whole and "parameters'" not in whole and ("<tool_call>" in whole or style == "small"), style
        assert "Help." in whole and json.dumps(schema[0]) in whole, style
        assert whole.count("<tools>") == 1


def test_media_stand_where_they_were_put(by_style):
    for tokenizer in by_style.values():
        ids, labels = ids_of([user("first", IMAGE, "second", POSE, IMAGE), assistant("yes")], tokenizer)
        order = "".join("i" if i == -200 else "p" if i == -300 else "." for i in ids)
        assert re.fullmatch(r"\.+i{4}\.+p{2}\.+i{4}\.+", order)
        assert all(label == IGNORED for i, label in zip(ids, labels) if i < 0)
        one, _ = encode(render([user("first", IMAGE, "second")], "chat", tokenizer=tokenizer), tokenizer)
        assert one.count(-200) == 1, "a picture without slots of its own is LLaVA's one id"
        with pytest.raises(ValueError, match="'pose' has no ids.*media_ids"):
            encode(render([user(POSE, "what?")], "chat", tokenizer=tokenizer), tokenizer)


def test_what_a_template_cannot_write_is_an_error(by_style):
    tokenizer = byte_level("{% for m in messages %}{% if m.role != 'user' %}{{ m.content }}{% endif %}{% endfor %}")
    with pytest.raises(TemplateProblem, match="message 0"):
        render([user("lost"), assistant("kept")], "chat", tokenizer=tokenizer)
    backwards = byte_level("{% for m in messages | reverse %}{{ m.content }}{% endfor %}")
    with pytest.raises(TemplateProblem, match="each picture"):
        render([user(IMAGE), assistant("a"), user(POSE), assistant("b")], "chat", tokenizer=backwards)
    with pytest.raises(TemplateProblem, match="refuses.*alternate"):
        render([user("a"), assistant("b"), assistant("c")], "chat", tokenizer=by_style["llama-2"])
    with pytest.raises(TemplateProblem, match="no chat template"):
        render([user("a")], "chat", tokenizer=byte_level(None))
    with pytest.raises(TemplateProblem, match="no chat template"):
        render([user("a")], "chat")
    with pytest.raises(ValueError, match="unknown template 'llama'"):
        render([user("a")], "llama")
    with pytest.raises(SampleError):
        render([{"role": "user", "content": "a"}], "vicuna_v1")
    with pytest.raises(TemplateProblem, match="take turns"):
        render([user("a"), assistant("b"), assistant("c")], "vicuna_v1")
    with pytest.raises(ValueError, match="View"):
        render([user("a"), assistant({"type": "box", "bbox_xyxy": [1, 2, 3, 4]})], "vicuna_v1")


# VLM4HOI


def as_text(pieces) -> str:
    return "".join("<ImageHere>" if piece.kind == "media" else piece.value for piece in pieces)


def test_vlm4hoi_asks_as_recorded():
    recorded = json.loads((FIXTURES / "vlm4hoi/chat_prompts.json").read_text())
    messages = [user(IMAGE, "[refer] where is the left hand of the person"), assistant("{<1><2><3><4>}"), user("[vqa] what is in it")]
    first, second = render(messages[:1], "vlm4hoi_inference"), render(messages, "vlm4hoi_inference")
    assert as_text(first[1:]) == recorded["first_turn"]
    assert as_text(second[1:]) == recorded["second_turn_answer_kept"]
    third = [*messages, assistant("</s>"), user("again")]
    assert as_text(render(third, "vlm4hoi_inference")[1:]) == recorded["third_turn_as_demo_stores_answer"]


WORD = st.sampled_from("where is the left hand a cup [refer] {<1><22><3><100>} ( . ? 3 é".split())
WORDS = st.lists(WORD, min_size=1, max_size=8).map(" ".join)


@given(turns=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3))
def test_vlm4hoi_ids_are_those_of_sentencepiece(turns):
    path = FIXTURES / "vlm4hoi/toy_tokenizer.model"
    tokenizer, sp = sentencepiece("vlm4hoi/toy_tokenizer.model", pad_token="$$"), SentencePieceProcessor(model_file=str(path))
    messages, expected, supervised, asked = [], [], [], [1, 1]
    for number, (question, answer) in enumerate(turns):
        messages += [user(*([IMAGE] if number == 0 else []), question), assistant(answer)]
        if number == 0:
            prompt = [1, *sp.encode("[INST] <Img>"), *IMAGE_IDS, *sp.encode(f"</Img> {question}  [/INST]")]
        else:
            prompt = [1, *sp.encode(f"[INST] {question}  [/INST]")]
        expected += [*prompt, *sp.encode(answer), 2]
        supervised += [IGNORED] * len(prompt) + [*sp.encode(answer), 2]
    assert ids_of(messages, tokenizer, "vlm4hoi") == (expected, supervised)
    # When asking, what follows the picture is one string up to the next BOS, answers included.
    (question, answer), *later = turns
    asked += [*sp.encode("[INST] <Img>"), *IMAGE_IDS, *sp.encode(f"</Img> {question} [/INST]{answer}")]
    for question, answer in later:
        asked += [1, *sp.encode(f"[INST] {question} [/INST]{answer}")]
    ids, labels = ids_of(messages, tokenizer, "vlm4hoi_inference")
    assert ids == asked and not learnt(labels)


# HandsOnVLM

VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions. "
)
HUMAN = (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's questions."
)


def hands_tokenizer():
    tokenizer = sentencepiece("handsonvlm/toy_tokenizer/tokenizer.model", pad_token="<unk>")
    tokenizer.add_tokens([f"<t{step}>" for step in range(100)] + ["<hand_traj>"])
    return tokenizer


HANDS = hands_tokenizer()
HANDS_SP = SentencePieceProcessor(model_file=str(FIXTURES / "handsonvlm/toy_tokenizer/tokenizer.model"))


def slow_ids(chunk: str) -> list[int]:
    """The published rule, from its description: split at added and special tokens, strip beside added ones, encode the rest piecewise."""
    ids, pieces = [1], re.split(r"(<t[0-9]{1,2}>|<hand_traj>|</s>)", chunk)
    added = [re.fullmatch(r"<t[0-9]{1,2}>|<hand_traj>", piece) is not None for piece in pieces]
    for number, piece in enumerate(pieces):
        if number % 2:
            ids.append(2 if piece == "</s>" else HANDS.convert_tokens_to_ids(piece))
            continue
        piece = piece.lstrip() if number and added[number - 1] else piece
        piece = piece.rstrip() if number + 1 < len(pieces) and added[number + 1] else piece
        ids += HANDS_SP.encode(piece) if piece else []
    return ids


def with_images(prompt: str) -> list[int]:
    chunks = [slow_ids(chunk) for chunk in prompt.split("<image>")]
    return chunks[0] + [i for chunk in chunks[1:] for i in (*IMAGE_IDS, *chunk[1:])]


SAID = st.sampled_from(["The hand trajectory", "follows:", "<hand_traj>" * 4 + ".", "<t3> <t17>", "a cup.", "Certainly!", "3", "(x"])
ANSWERS = st.lists(SAID, min_size=1, max_size=5).map(" ".join)


@given(turns=st.lists(st.tuples(WORDS, ANSWERS), min_size=1, max_size=3))
def test_vicuna_ids_and_mask_are_those_of_the_published_rule(turns):
    prompt, messages, rounds = VICUNA, [], []
    for number, (question, answer) in enumerate(turns):
        image = "<image>\n" if number == 0 else ""
        rounds.append(f"{VICUNA if number == 0 else ''}USER: {image}{question} ASSISTANT: {answer}")
        messages += [user(*([IMAGE] if number == 0 else []), question), assistant(answer)]
    prompt = "</s>".join(rounds) + "</s>"
    expected = with_images(prompt)
    # The mask of LLaVA's preprocessing: of each round, all but what stands behind " ASSISTANT: ", counted in re-tokenised parts.
    labels, place = list(expected), 1
    labels[0] = IGNORED
    for one in rounds:
        asked = len(with_images(one[: one.index(" ASSISTANT: ") + len(" ASSISTANT: ")])) - 2
        labels[place : place + asked] = [IGNORED] * asked
        place += len(with_images(one))
    assert place == len(expected)
    assert ids_of(messages, HANDS, "vicuna_v1") == (expected, labels)


@pytest.mark.parametrize("words", ["Look at <image>\nhere", "Hi <image>\n<image>\nx", "a<image>\nb", "<image>\n<image>\nhere"])
def test_a_picture_stands_where_it_was_written(words: str):
    """With the blank before it, which the published rule encodes, too."""
    first, *others = words.split("<image>")
    parts = [*([first] if first else []), *(part for other in others for part in (IMAGE, *([other.strip()] if other.strip() else [])))]
    expected = with_images(f"{VICUNA}USER: {words} ASSISTANT: yes</s>")
    assert ids_of([user(*parts), assistant("yes")], HANDS, "vicuna_v1")[0] == expected
    assert ids_of([user(*parts)], HANDS, "llava_v0")[0] == with_images(f"{HUMAN}###Human: {words}###Assistant:")


def test_llava_v0_asks_as_published():
    pieces = render([user(IMAGE, "where?"), assistant("there"), user("and?")], "llava_v0", tokenizer=HANDS)
    assert as_text(pieces) == f"<s>{HUMAN}###Human: <ImageHere>\nwhere?###Assistant: there###Human: and?###Assistant:"
    assert "".join(piece.value for piece in pieces if piece.supervised) == " there###"
    assert ids_of([user(IMAGE, "where?")], HANDS, "llava_v0")[0] == with_images(f"{HUMAN}###Human: <image>\nwhere?###Assistant:")


def test_llava_v1_asks_as_litas_evaluation_does():
    """Vicuna's turns behind the words of LLaVA."""
    pieces = render([user(IMAGE, "when?"), assistant("<t3> <t9>"), user("and?")], "llava_v1", tokenizer=HANDS)
    assert as_text(pieces) == f"<s>{HUMAN} USER: <ImageHere>\nwhen? ASSISTANT: <t3> <t9></s>USER: and? ASSISTANT:"
    assert ids_of([user(IMAGE, "when?")], HANDS, "llava_v1")[0] == with_images(f"{HUMAN} USER: <image>\nwhen? ASSISTANT:")


def test_a_published_template_on_a_vocabulary_without_its_markers():
    """Time marks are then text, with their blanks; the turn ends with the tokenizer's own token."""
    tokenizer = byte_level(QWEN, "<|im_start|>", "<|im_end|>", eos_token="<|im_end|>")
    ids, labels = ids_of([user("when?"), assistant("from <t3> on")], tokenizer, "vicuna_v1")
    assert tokenizer.decode(learnt(labels)) == " from <t3> on<|im_end|>"
    assert tokenizer.decode(ids).endswith("USER: when? ASSISTANT: from <t3> on<|im_end|>")


def test_tool_turns_and_offers_in_published_templates():
    pieces = render(conversation(), "vicuna_v1", tokenizer=HANDS, tools=["detect_hands"], views=VIEWS)
    whole = as_text(pieces)
    assert '"detect_hands"' in whole.split("USER:")[0] and "Help." in whole.split("USER:")[0]
    assert 'USER: <tool_response>\n{"left": [1, 2, 3, 4]}\n</tool_response> ASSISTANT: [100, 200, 300, 400]</s>' in whole
    assert not any(piece.supervised and "tool_response" in str(piece.value) for piece in pieces)


def test_markers_are_looked_up_again_when_tokens_are_added():
    tokenizer = hands_tokenizer()
    before = encode([Piece("text", "a <new> b")], tokenizer)[0]
    assert markers(tokenizer) is markers(tokenizer)
    tokenizer.add_tokens(["<new>"])
    assert encode([Piece("text", "a <new> b")], tokenizer)[0] != encode([Piece("special", "<new>")], tokenizer)[0]
    assert tokenizer.convert_tokens_to_ids("<new>") not in encode([Piece("text", "a <new> b")], tokenizer)[0]
    assert before


VALUES = st.sampled_from(["<image>", "a", " b ", "</s>", "\n", "[1, 2]", ""])


@given(pieces=st.lists(st.builds(Piece, st.sampled_from(["text", "special"]), VALUES, st.booleans(), st.booleans())))
def test_labels_are_ids_or_nothing(pieces):
    for tokenizer in TOKENIZERS.values():
        ids, labels = encode(pieces, tokenizer)
        assert len(ids) == len(labels) and all(label in (IGNORED, i) for i, label in zip(ids, labels))
