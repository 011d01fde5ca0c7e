"""BLEU and chrF are sacrebleu's, and their intervals come from sentence statistics."""

import numpy as np
import pytest
import sacrebleu

from dqlib.study.evaluation.bleu import bleu, bleu_of, bleu_statistics, chrf, exact, sentence_chrf
from dqlib.study.evaluation.bootstrap import resampled_sums
from dqlib.study.evaluation.records import read_details, write_details
from dqlib.study.evaluation.scoring import text_scores, translation_scores

REFERENCES = [f"luni, {i} martie {1990 + i % 7}, la ora {i % 24}" for i in range(60)]
PREDICTIONS = [text.replace("martie", "mai") if i % 3 == 0 else text for i, text in enumerate(REFERENCES)]


def test_corpus_scores_are_those_of_sacrebleu():
    ours = bleu(REFERENCES, PREDICTIONS, 50)
    assert ours.value == sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES]).score
    assert "tok:13a" in ours.signature
    assert sacrebleu.__version__ in ours.signature
    assert chrf(REFERENCES, PREDICTIONS, 50).value == sacrebleu.corpus_chrf(PREDICTIONS, [REFERENCES]).score
    assert sentence_chrf(REFERENCES, PREDICTIONS)[3] == sacrebleu.sentence_chrf(PREDICTIONS[3], [REFERENCES[3]]).score
    assert exact(REFERENCES, PREDICTIONS).mean() == pytest.approx(100 * 40 / 60)


@pytest.mark.parametrize(
    ("score", "known"), [(bleu, sacrebleu.corpus_bleu), (chrf, sacrebleu.corpus_chrf)], ids=["bleu", "chrf"]
)
def test_a_resample_scores_as_its_text_would(score, known, monkeypatch):
    drawn = np.random.default_rng(5).integers(0, 60, 60)
    times = np.bincount(drawn, minlength=60)
    monkeypatch.setattr("dqlib.study.evaluation.bleu.resampled_sums", lambda statistics, *_: (times @ statistics)[None])
    measured = score(REFERENCES, PREDICTIONS, 1)
    text = known([PREDICTIONS[i] for i in drawn], [[REFERENCES[i] for i in drawn]]).score
    assert measured.low == measured.high == pytest.approx(text)


def test_the_interval_holds_the_score_and_narrows_with_more_sentences():
    few, many = bleu(REFERENCES[:12], PREDICTIONS[:12], 400), bleu(REFERENCES * 5, PREDICTIONS * 5, 400)
    for each in (few, many):
        assert each.low < each.value < each.high
    assert many.high - many.low < few.high - few.low
    assert bleu(REFERENCES, PREDICTIONS, 100) == bleu(REFERENCES, PREDICTIONS, 100)


def rows(count, language, test_set):
    return [
        {"source": f"d {i}", "target": REFERENCES[i], "language": language, "test_set": test_set} for i in range(count)
    ]


def test_translations_are_judged_in_their_first_language_and_scored_in_all(tmp_path):
    data = [*rows(30, "ro", "test"), *rows(20, "de", "test"), *rows(10, "ro", "test_unseen")]
    predictions = [PREDICTIONS[i] for i in (*range(30), *range(20), *range(10))]
    scores, lines = translation_scores(data, predictions, 100, "ro")
    assert scores.headline == "bleu"
    assert scores.n_test == 30
    assert scores.means["bleu"] == sacrebleu.corpus_bleu(PREDICTIONS[:30], [REFERENCES[:30]]).score
    assert {(d.test_set, d.language) for d in scores.details} == {("test", "ro"), ("test", "de"), ("test_unseen", "ro")}
    lengths = {"words", "reference_words", "length_ratio"}
    assert {d.metric for d in scores.details} == {"bleu", "chrf", "exact", *lengths}
    assert all(d.low <= d.value <= d.high for d in scores.details)
    assert set(lines[0]) == {"source", "reference", "prediction", "language", "test_set", "chrf", "exact"}
    assert (lines[0]["exact"], lines[1]["exact"]) == (False, True)
    assert lines[1]["chrf"] == 100
    write_details(scores.details, tmp_path)
    assert [d.metric for d in read_details(tmp_path)] == [d.metric for d in scores.details]


def test_sums_of_the_statistics_of_sentences_give_bleu_and_its_interval():
    statistics = bleu_statistics(REFERENCES, PREDICTIONS).astype(np.float32).astype(float)  # as they are kept in files
    whole = bleu(REFERENCES, PREDICTIONS, 50)
    assert bleu_of(statistics.sum(axis=0, keepdims=True)).tolist() == [whole.value]
    assert np.percentile(bleu_of(resampled_sums(statistics, 50)), [2.5, 97.5]).tolist() == [whole.low, whole.high]


def test_answers_are_scored_with_their_lengths():
    data = [{"source": "q", "target": "one two three four", "test_set": "test"} for _ in range(6)]
    scores, lines = text_scores(data, ["one two"] * 6, 50)
    values = {d.metric: d.value for d in scores.details}
    assert (values["words"], values["reference_words"], values["length_ratio"]) == (2, 4, 0.5)
    assert scores.means["rouge1"] == values["rouge1"] == pytest.approx(200 / 3)
    assert set(lines[0]) == {"source", "reference", "prediction", "rougeL"}
