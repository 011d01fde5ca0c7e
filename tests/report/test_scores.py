"""Scores of documents: what is kept of them gives every interval, p-value and claim again."""

import shutil

import numpy as np
import pandas
import pytest

from dqlib.errors import InputError
from dqlib.study.evaluation.bootstrap import bootstrap_interval, holm, interval, resampled_sums
from dqlib.study.params.paths import TABLES
from dqlib.study.params.settings import load_settings
from dqlib.study.report.recompute import (
    accumulation_table,
    comparisons_table,
    more_alike_table,
    recomputed,
    retention_table,
)
from dqlib.study.report.scores import KEYS, ModelKey, Resampled, joined, read_scores, write_scores
from tests.helpers.projects import committed

DOCUMENTS = 60


def rows(config, preset, seed, values, role="student", test_set="test"):
    keys = dict(zip(KEYS, ("summarization", role, config, preset, seed, 9, "rougeL", test_set), strict=False))
    return pandas.DataFrame({**keys, "document": np.arange(len(next(iter(values.values())))), **values})


@pytest.fixture
def table():
    """A teacher, a student from three seeds, and its control; the student loses late words alone."""
    noise = np.random.default_rng(0)
    base = noise.uniform(20, 60, DOCUMENTS)
    recall = {"early": np.full(DOCUMENTS, 0.8), "late": np.full(DOCUMENTS, 0.8)}
    recall["late"][:5] = np.nan  # of texts too short for two parts
    parts = [rows("32-32-32 2-4", "fine-tuning", 1, {"rougeL": base} | recall, "teacher")]
    for seed in (1, 2, 3):
        worse = {"rougeL": base - 2 - seed + noise.normal(0, 1, DOCUMENTS), "early": recall["early"]}
        parts.append(rows("2-2-8 2-4", "dqlib", seed, worse | {"late": recall["late"] - 0.1 * seed}))
    alone = {"rougeL": base - 9 + noise.normal(0, 1, DOCUMENTS)} | recall
    parts.append(rows("2-2-8 2-4", "quantization-only", 1, alone))
    cosine = np.linspace(0.1, 0.4, 20)
    of_teacher = rows("32-32-32 2-4", "fine-tuning", 1, {"cosine": cosine}, "teacher", "held-out")
    of_student = rows("2-2-8 2-4", "dqlib", 1, {"cosine": cosine + 0.1}, test_set="held-out")
    return joined([*parts, of_teacher, of_student])


STUDENT = ModelKey("summarization", "student", "2-2-8 2-4", "dqlib", 9)


def test_a_file_gives_back_its_rows_and_is_the_same_for_the_same_rows(table, tmp_path):
    for name in ("one", "two"):
        write_scores(table, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    pandas.testing.assert_frame_equal(read_scores(tmp_path / "one"), table, check_dtype=False)
    with pytest.raises(InputError, match=r"scores\.parquet"):
        read_scores(tmp_path / "none")


def test_one_seed_is_the_bootstrap_over_documents(table):
    first = table[table.seed == 1]
    drawn = Resampled(first).drawn(STUDENT)
    scores = first[(first.preset == "dqlib") & (first.test_set == "test")].rougeL.to_numpy(dtype=float)
    assert drawn.tolist() == pytest.approx((resampled_sums(scores[:, None], 10_000)[:, 0] / DOCUMENTS).tolist())
    assert interval(drawn) == pytest.approx(bootstrap_interval(scores, 10_000), abs=0.3)


def test_seeds_are_drawn_as_well_and_widen_the_interval(table):
    every, first = Resampled(table), Resampled(table[table.seed == 1])
    low, high = (
        np.subtract(*interval(each.drawn(STUDENT) - each.drawn(each.teacher("summarization")))[::-1])
        for each in (first, every)
    )
    assert high > 2 * low
    assert every.seeds(STUDENT) == [1, 2, 3]
    tested = table[(table.preset == "dqlib") & (table.test_set == "test")]
    assert every.score(STUDENT) == pytest.approx(tested.rougeL.mean())


def test_the_mean_of_seeds_varies_as_much_as_means_of_such_seeds_do():
    parts = [rows("2-2-8 2-4", "dqlib", seed, {"rougeL": np.full(DOCUMENTS, score)})
             for seed, score in enumerate((20.0, 23.0, 22.0), start=1)]  # fmt: skip
    drawn = Resampled(joined(parts)).drawn(STUDENT)
    assert drawn.mean() == pytest.approx(65 / 3, abs=0.05)
    assert drawn.std() == pytest.approx(np.std((20, 23, 22), ddof=1) / 3**0.5, rel=0.02)


def test_tables_follow_from_the_rows(table):
    drawn = Resampled(table)
    (compared,) = comparisons_table(drawn).itertuples()
    assert compared.baseline == "quantization-only"
    assert compared.score > compared.baseline_score
    assert compared.p_value < 0.001
    assert 1 < compared.low < compared.kept < compared.high
    kept = retention_table(drawn)
    assert kept.preset.tolist() == ["dqlib", "quantization-only"]
    assert ((kept.low < kept.retention) & (kept.retention < kept.high)).all()
    lost = accumulation_table(drawn).iloc[0]
    assert (lost.early, lost.late) == (0, 20)  # texts without a late part are left out
    assert lost.p_value < 0.001
    alike = more_alike_table(drawn).set_index("preset")
    assert alike.more_alike.tolist() == [0, 0.1]
    assert (alike.loc["dqlib"].low, alike.loc["dqlib"].high) == (0.1, 0.1)


def test_models_that_were_tested_on_other_documents_are_refused(table):
    with pytest.raises(InputError, match="summarization"):
        Resampled(table[(table.preset != "dqlib") | (table.document < 50)]).drawn(STUDENT)


def test_p_values_of_a_family_are_corrected_as_holm_says():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("profile", ["study", "laptop", "gpt2", "bert", "real"])
def test_the_committed_tables_are_what_the_committed_scores_give(profile):
    claims, differences = recomputed(committed() / load_settings(profile).results)
    assert not differences
    assert len(claims)


def test_a_table_that_is_not_what_the_scores_give_is_told_by_row_and_column(tmp_path):
    folder = shutil.copytree(committed() / "results" / "laptop", tmp_path / "results")
    metrics = pandas.read_csv(folder / TABLES / "metrics.csv")
    metrics.loc[1, "score"] += 0.01
    metrics.to_csv(folder / TABLES / "metrics.csv", index=False)
    assert [line for line in recomputed(folder)[1] if line.startswith("metrics.csv, row 2, score")]
