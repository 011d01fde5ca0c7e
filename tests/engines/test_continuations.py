"""Every engine continues a text as GPT-2 in PyTorch does: its weights, its search, its limits."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config

from dqlib.engines import ENGINES, export_model
from dqlib.engines.torch_engine import TorchEngine
from dqlib.errors import InputError
from tests.helpers.checkpoints import tokenizer_of
from tests.helpers.engines import OTHERS, alike, served
from tests.helpers.models import CASES, EOS, LSQ, VOCABULARY, make_teacher, narrow_student, student_of
from tests.helpers.packed import trained

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("ctranslate2")

from dqlib.engines.onnx_steps import PromptSteps

IDS = [[5, 6, 7, 8, 9], [10, 11], [12], [13, 14, 15], [8, 9]]
NEW_TOKENS = 8


@pytest.mark.parametrize("bits", [None, "2-2-32", "8-4-32", "narrow"])
def test_a_text_goes_on_as_in_pytorch(bits, tmp_path):
    model = make_teacher("gpt2")
    if bits == "narrow":
        model = narrow_student("gpt2", "2-2-32", "h3 f11", n_embd=32)
    elif bits is not None:
        model = student_of(model, "gpt2", bits).eval()
    searches = ((1, 1), (1, NEW_TOKENS), (3, 1), (3, 4), (3, NEW_TOKENS))
    requests = [{"num_beams": beams, "max_new_tokens": new_tokens} for beams, new_tokens in searches]
    assert all(map(any, alike(model, tmp_path, IDS, *requests)))


@pytest.mark.parametrize("asked", [2, 4])
def test_a_student_goes_on_in_the_bits_that_are_asked_for(asked, tmp_path):
    student = student_of(make_teacher("gpt2"), "gpt2", "2-2-32").eval()
    ours, theirs = TorchEngine(student), served(student, "onnxruntime", tmp_path / "out", bits=asked)
    expected, written = (each.generate_ids(IDS, max_new_tokens=NEW_TOKENS) for each in (ours, theirs))
    assert written == expected


def test_a_continuation_ends_where_that_of_pytorch_ends(tmp_path):
    teacher = make_teacher("gpt2")
    written = TorchEngine(teacher).generate_ids(IDS, num_beams=1, max_new_tokens=NEW_TOKENS)
    teacher.generation_config.eos_token_id = [EOS, *{row[3] for row in written}]
    teacher.generation_config.forced_eos_token_id = EOS
    for ended in alike(teacher, tmp_path, IDS, {}, {"num_beams": 3}):
        assert min(map(len, ended)) < NEW_TOKENS - 1


@OTHERS
def test_a_search_is_asked_for_as_of_pytorch(engine, tmp_path):
    teacher = make_teacher("gpt2")
    engines = [TorchEngine(teacher), served(teacher, engine, tmp_path / "out")]
    for asked in (
        {"min_new_tokens": 6}, {"length_penalty": 2.0}, {"no_repeat_ngram_size": 2}, {"bad_words_ids": [[32], [42]]},
        {"bad_words_ids": [[7, 42], [32, 32]]}, {"repetition_penalty": 1.1}, {"repetition_penalty": 1.5},
    ):  # fmt: skip
        # with beams, and with the first token that is punished, CTranslate2 has rules of its own, as notes tell
        beams = 3 if "length_penalty" in asked or engine == "onnxruntime" else 1
        ids = [[0, *row] for row in IDS] if "repetition_penalty" in asked else IDS
        options = {"num_beams": beams, "max_new_tokens": NEW_TOKENS, **asked}
        ours, theirs = (each.generate_ids(ids, early_stopping=True, **options) for each in engines)
        assert ours == theirs, asked


@pytest.mark.parametrize(
    ("preset", "bits"), [("dqlib", "2-2-8"), (LSQ, "1-1-8"), (LSQ, "3-5-8"), ("dqlib-ternary", "2-2-8")],
    ids=lambda p: getattr(p, "name", p),
)  # fmt: skip
def test_the_codes_survive_in_ctranslate2(preset, bits, tmp_path):
    report = export_model(trained("gpt2", preset, bits), tmp_path / "out", "ctranslate2")
    assert report.exact
    assert len(report.weights) == 2 * 4 + 1  # the table is the head, too


@OTHERS
def test_a_student_of_8_bits_scores_tokens_as_the_student_does(engine, tmp_path):
    student = student_of(make_teacher("gpt2"), "gpt2", "8-8-8").eval()
    fast, row = served(student, engine, tmp_path / "out", exact=False), IDS[0]
    with torch.no_grad():
        expected = student(torch.tensor([row])).logits[0, -1].numpy()
    if engine == "ctranslate2":
        scored = np.array(fast.generator.forward_batch([row]))[0, -1]
    else:
        scored = PromptSteps(fast.graphs, [row], 1, 1).logits(np.zeros(1))[0]
    assert np.abs(scored - expected).max() < 0.15 * np.abs(expected).max()


def test_what_ctranslate2_does_by_another_rule_is_told(tmp_path):
    teacher = make_teacher("gpt2")
    teacher.generation_config.repetition_penalty, teacher.generation_config.early_stopping = 1.5, True
    report = export_model(teacher, tmp_path / "out", "ctranslate2")
    assert [note[:56] for note in report.notes] == ["The repetition penalty leaves out the first token of a t"]


def test_what_no_engine_can_read_is_refused_by_all(tmp_path):
    teacher = make_teacher("gpt2")
    engines = [TorchEngine(teacher), *(served(teacher, name, tmp_path / name) for name in ENGINES[1:])]
    for engine in engines:
        for ids, message in (
            ([[5], []], r"^input_ids: \[\] .* without encoder or end"),
            ([[5] * 21], "^input_ids: '21 tokens' .* at most 20"),
            ([[VOCABULARY]], "^input_ids: "),
        ):
            with pytest.raises(InputError, match=message):
                engine.generate_ids(ids, max_new_tokens=4)
        assert len(engine.generate_ids([[5] * 20], num_beams=1, max_new_tokens=4, min_new_tokens=4)[0]) == 4


@OTHERS
def test_texts_in_texts_out(engine, tmp_path):
    tokenizer, case = tokenizer_of("gpt2"), CASES["gpt2"]
    torch.manual_seed(0)
    config = case.config.to_dict() | {"vocab_size": len(tokenizer), "eos_token_id": 0, "pad_token_id": None}
    teacher = case.model(GPT2Config.from_dict(config)).eval()
    reference = TorchEngine(teacher, tokenizer)
    fast = served(teacher, engine, tmp_path / "out", exact=False, tokenizer=tokenizer)
    texts = ["the river", "old stone house wind", "the " * 60]
    options = {"num_beams": 1, "max_new_tokens": 6}
    assert fast.generate(texts, **options) == reference.generate(texts, **options)
    assert np.array(reference.encode(texts, 6)[2]).shape == (18,)
    assert fast.generate([]) == []


def test_a_gpt2_has_no_encoder_to_choose(tmp_path):
    with pytest.raises(InputError, match=r"^encoder: 'packed' .* left out for gpt2"):
        export_model(make_teacher("gpt2"), tmp_path / "out", "onnxruntime", encoder="packed")
