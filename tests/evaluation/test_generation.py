import numpy as np
import pytest
import torch

from dqlib.study.corpora.tokenizer import train_tokenizer
from dqlib.study.evaluation.bootstrap import bootstrap_interval
from dqlib.study.evaluation.generation import generate
from dqlib.study.evaluation.rouge import rouge, sentences
from dqlib.study.params import settings as S
from dqlib.study.training.batches import Example, collate
from dqlib.study.training.loop import make_accelerator


def test_rouge_by_hand():
    scores = rouge(["the cats sat on the mat"], ["the cat sat"])
    # Stemmed, 3 of 6 words recalled, 3 of 3 right: F = 2/3; word pairs 2 of 5 and 2 of 2.
    assert scores["rouge1"][0] == pytest.approx(100 * 2 / 3)
    assert scores["rouge2"][0] == pytest.approx(100 * 4 / 7)
    assert scores["rougeL"][0] == pytest.approx(100 * 2 / 3)


def test_lsum_compares_sentence_by_sentence():
    reference, prediction = "One thing is here. Another thing is there.", "Another thing is there. One thing is here."
    assert sentences(reference) == "One thing is here.\nAnother thing is there."
    assert sentences("Calls os.path.join, e.g. for files") == "Calls os.path.join, e.g. for files"
    scores = rouge([reference], [prediction])
    assert scores["rougeLsum"][0] == pytest.approx(100)
    assert scores["rougeL"][0] < 100


def test_the_interval_covers_what_statistics_says():
    scores = np.random.default_rng(0).normal(30, 10, 400)
    low, high = bootstrap_interval(scores, 2000)
    error = scores.std() / 20
    assert (low, high) == pytest.approx((scores.mean() - 1.96 * error, scores.mean() + 1.96 * error), abs=0.15)
    assert bootstrap_interval(scores, 200) == bootstrap_interval(scores, 200)
    assert bootstrap_interval(np.full(5, 7.0), 10) == (7.0, 7.0)


@pytest.mark.parametrize(
    ("starts", "evaluation"),
    [
        ((2,), {"batch_size": 3}),
        ((5, 6, 2), {"batch_size": 12, "beams": 1}),  # of several languages
        ((5, 6, 2), {"batch_size": 12, "beams": 4}),
    ],
)
def test_a_batch_writes_what_each_example_alone_would_in_their_order(teacher, starts, evaluation):
    tokenizer = train_tokenizer(["a b c d e f g h"], 300, 16, ["ro", "de"])
    teacher.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    teacher.generation_config.eos_token_id = 2
    examples = [Example([9 + i] * (3 + 7 * i % 11) + [2], [2], start) for i in range(6) for start in starts]
    wanted = {"max_tokens": 6, "accelerator": make_accelerator(0), "name": "test"}
    together = generate(teacher, examples, tokenizer, S.Evaluation(**evaluation), **wanted)
    each_one = S.Evaluation(**evaluation | {"batch_size": 1})
    assert together == [generate(teacher, [each], tokenizer, each_one, **wanted)[0] for each in examples]
    assert len(set(together)) > 1
    if len(starts) > 1:
        assert any(together[i] != together[i + 1] for i in range(0, len(examples), 3))  # the token matters
    assert not teacher.training
    assert torch.is_grad_enabled()


def test_the_end_token_named_aloud_is_the_model_s_own_start(teacher):
    batch = collate([Example([9, 10, 11, 2], [2]), Example([12, 13, 2], [2])])
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "num_beams": 4}
    silent = teacher.generate(**inputs, max_new_tokens=8, do_sample=False)
    aloud = teacher.generate(**inputs, max_new_tokens=8, do_sample=False, decoder_start_token_id=[2, 2])
    assert torch.equal(silent, aloud)
