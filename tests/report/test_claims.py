import json

import numpy as np
import pandas
import pytest

from dqlib.study.evaluation.records import ZERO
from dqlib.study.report import figures
from dqlib.study.report import pages as report
from dqlib.study.report.claims import Tables, claims_table
from dqlib.study.report.recompute import retention_table
from dqlib.study.report.scores import ModelKey, Resampled
from tests.helpers import grid


def verdicts(metrics=None, **changed):
    metrics = grid.metrics() if metrics is None else metrics
    tables = {
        "comparisons": grid.comparisons(metrics),
        "retention": grid.retention(metrics),
        "accumulation": grid.accumulation(metrics),
        "similarity": grid.similarity(metrics),
    } | changed
    table = claims_table(Tables(metrics, **tables))
    return {(row.claim[1], row.task, f"{row.claim} {row.measured}"): row.verdict for row in table.itertuples()}


def of(decided, letter, task):
    return [verdict for (which, of_task, _), verdict in decided.items() if (which, of_task) == (letter, task)]


def test_every_claim_has_one_line_per_task():
    decided = verdicts()
    for letter in "aef":
        assert all(of(decided, letter, task) == ["agrees"] for task in grid.DEPTHS)
    assert len(of(decided, "b", "eli5")) == len(of(decided, "b", "summarization")) == len(of(decided, "c", "all")) == 1
    assert len(of(decided, "d", "translation")) == 2


@pytest.mark.parametrize(
    ("p_value", "difference", "verdict"),
    [(0.001, 5.0, "agrees"), (0.2, 5.0, "not decided"), (0.001, -5.0, "does not agree"), (0.2, -5.0, "not decided")],
)
def test_joint_training_must_be_better_and_significantly_so(p_value, difference, verdict):
    metrics = grid.metrics()
    decided = verdicts(metrics, comparisons=grid.comparisons(metrics, p_value, difference))
    assert of(decided, "a", "eli5") == [verdict]


def test_no_loss_asks_for_more_than_little_loss():
    parts = {("2-2-8", "half"): 0.96}
    metrics = grid.metrics(eli5=parts, summarization=parts)
    decided = verdicts(metrics)
    assert of(decided, "b", "summarization") == ["agrees"]
    assert of(decided, "b", "eli5") == ["does not agree"]
    decided = verdicts(metrics, retention=grid.retention(metrics, width=0.04))
    assert of(decided, "b", "summarization") == of(decided, "b", "eli5") == ["not decided"]


def test_the_limit_differs_by_task_only_if_one_keeps_clearly_more_than_another():
    assert of(verdicts(), "c", "all") == ["not decided"]
    assert of(verdicts(grid.metrics(eli5={("2-2-8", "one"): 0.9})), "c", "all") == ["agrees"]


def test_translation_must_lose_most_at_two_bits():
    keep, lose = "(d) Translation keeps its quality at 8 bits", "(d) Translation loses more than the others at 2 bits"
    decided = verdicts(grid.metrics(translation={("2-2-8", "full"): 0.9, ("8-8-8", "full"): 0.98}))

    def verdict(decided, claim):
        return next(verdict for (*_, text), verdict in decided.items() if text.startswith(claim))

    assert verdict(decided, lose) == "agrees"
    assert verdict(decided, keep) == "does not agree"
    decided = verdicts(grid.metrics(translation={("2-2-8", "full"): 0.99}))
    assert verdict(decided, lose) == "does not agree"
    decided = verdicts(grid.metrics(translation={("2-2-8", "full"): 0.955}))  # less, and within the intervals
    assert verdict(decided, lose) == "not decided"


@pytest.mark.parametrize(("wrong", "verdict"), [({"early": 4.0}, "does not agree"), ({"p_value": 0.3}, "not decided")])
def test_errors_accumulate_only_where_the_end_loses_more(wrong, verdict):
    metrics = grid.metrics()
    assert of(verdicts(metrics, accumulation=grid.accumulation(metrics, **wrong)), "e", "eli5") == [verdict]


def test_a_claim_that_is_not_decided_says_how_many_documents_would_decide_it():
    half = grid.metrics(summarization={("2-2-8", "half"): 0.96})  # nine documents each
    texts = {text for *_, text in verdicts(half, retention=grid.retention(half, width=0.04))}
    assert any(text.endswith("the bar is 95%; about 150 documents would decide it") for text in texts)  # 9 (4 / 1)^2
    tested = verdicts(half, comparisons=grid.comparisons(half, 0.2))
    (text,) = [text for letter, task, text in tested if (letter, task) == ("a", "eli5")]
    assert text.endswith("p = 0.600; about 32 documents would decide it")  # 9 (2.394 / 1.282)^2, three tests
    level = verdicts(half, comparisons=grid.comparisons(half, 1.0, 0.0))
    assert any(text.endswith("more than 1,000,000 documents would be needed to decide it") for *_, text in level)
    assert not any("would decide it" in text for (*_, text), verdict in verdicts().items() if verdict != "not decided")
    runs = grid.runs(language={("quantgpt", "2-2-8 0-6", 9): [0.1, 0.2, 0.3],
                               ("quantgpt-no-contrast", "2-2-8 0-6", 9): [0.2, 0.3, 0.4]})  # fmt: skip
    assert any(text.endswith("p = 0.288; about 11 seeds would decide it") for *_, text in of_readers(runs))


def test_tokens_are_alike_only_where_the_interval_is_above_zero():
    metrics = grid.metrics()
    decided = verdicts(metrics, similarity=grid.similarity(metrics, low=-0.01))
    assert of(decided, "f", "summarization") == ["not decided"]
    decided = verdicts(metrics, similarity=grid.similarity(metrics, low=-0.02, high=-0.01))
    assert of(decided, "f", "summarization") == ["does not agree"]


def test_a_study_of_one_task_has_the_claims_that_it_can_answer():
    metrics = grid.metrics()
    decided = verdicts(metrics[metrics.task == "summarization"])
    assert {letter for letter, *_ in decided} >= {"b", "e", "f"}
    assert not of(decided, "c", "all")
    assert not of(decided, "d", "translation")


def test_numbers_in_the_table_are_those_of_the_metrics():
    decided = verdicts(grid.metrics(summarization={("2-2-8", "half"): 0.9321}))
    (text,) = [text for letter, task, text in decided if (letter, task) == ("b", "summarization")]
    assert "2-2-8 2-2 keeps 93.2% (92.8 to 93.6)" in text


def of_readers(runs=None, comparisons=None, **by_task):
    metrics = grid.of_readers(**by_task)
    empty = pandas.DataFrame(columns=["task", "config", "preset", "baseline"])
    nothing = {"accumulation": empty, "similarity": empty, "comparisons": empty if comparisons is None else comparisons}
    return verdicts(metrics, **nothing, **({} if runs is None else {"runs": runs}))


def test_what_was_not_run_is_said_with_what_it_needs():
    decided = of_readers()
    for task in ("matching", "topics"):
        assert of(decided, "g", task) == of(decided, "h", task) == of(decided, "i", task) == ["not run"]
    assert of(decided, "j", "language") == ["not run"]
    assert of(decided, "k", "language") == ["not run", "not run"]
    assert any("needs a student 1-1-8 of at most 2 of 6 layers" in text for *_, text in decided)
    assert not {letter for letter, *_ in verdicts()} & set("ghijkl")  # of tasks that are not there nothing is said


def test_earlier_recipes_are_under_trained_where_eight_times_the_steps_halve_the_gap():
    short = {("xtc", "1-1-8 6-0", 100): [0.40, 0.41, 0.42]}
    for longer, verdict in (([0.15, 0.16, 0.17], "agrees"), ([0.30, 0.31, 0.32], "does not agree"),
                            ([0.15], "not decided"), ([0.1, 0.2, 0.3], "not decided")):  # fmt: skip
        runs = grid.runs(topics=short | {("xtc", "1-1-8 6-0", 800): longer, ("dqlib", "1-1-8 6-0", 800): [0.0] * 3})
        assert of(of_readers(runs), "g", "topics") == [verdict]
    half = grid.runs(topics=short | {("xtc", "1-1-8 6-0", 400): [0.1, 0.1, 0.1]})
    assert of(of_readers(half), "g", "topics") == ["not run"]


@pytest.mark.parametrize(
    ("score", "p_value", "verdict"),
    [(76.0, 0.01, "agrees"), (76.0, 0.5, "not decided"), (70.0, 0.001, "does not agree")],
)
def test_a_student_cut_from_its_teacher_is_compared_with_one_that_was_pre_trained(score, p_value, verdict):
    row = {"task": "topics", "config": "32-32-32 3-0", "preset": "dqlib", "headline": "accuracy", "score": score,
           "baseline": "pre-trained", "baseline_score": 75.0, "p_value": p_value}  # fmt: skip
    decided = of_readers(comparisons=pandas.DataFrame([row]))
    assert of(decided, "h", "topics") == [verdict]
    assert not of(decided, "a", "topics")  # it says nothing of quantization alone


def test_one_bit_and_few_layers_are_judged_by_the_deepest_student_with_fewer_than_half():
    students = {"1-1-8 3-0": 0.99, "1-1-8 2-0": 0.96, "1-1-8 1-0": 0.9}
    assert of(of_readers(matching=students), "i", "matching") == ["agrees"]
    assert of(of_readers(matching=students | {"1-1-8 2-0": 0.93}), "i", "matching") == ["does not agree"]


@pytest.mark.parametrize(("part", "verdict"), [(0.9, "agrees"), (0.8, "does not agree"), (0.834, "not decided")])
def test_a_language_model_is_near_its_teacher_within_a_fifth_of_its_perplexity(part, verdict):
    decided = of_readers(language={"2-2-8 0-6": part})
    assert of(decided, "l", "language") == [verdict]
    assert any(f"{1 / part:.2f} (" in text and "the bar is 1.2" in text for *_, text in decided)


def test_contrast_and_dynamic_scales_must_lower_the_gap_over_seeds():
    first = {"quantgpt": 0.3, "quantgpt-no-contrast": 0.4, "quantgpt-fixed-clip": 0.2, "quantgpt-learned-clip": 0.301}
    runs = {(name, "2-2-8 0-6", 100): [gap, gap + 0.01, gap + 0.02] for name, gap in first.items()}
    decided = of_readers(grid.runs(language=runs))
    assert of(decided, "j", "language") == ["agrees"]
    assert of(decided, "k", "language") == ["does not agree", "not decided"]


def test_contrast_is_judged_over_seeds_wherever_such_runs_are():
    first = {"dqlib": 0.1, "quantization-only": 0.05, "dqlib-with-contrast": 0.2}
    runs = {(name, "2-2-8 2-4", 100): [gap, gap + 0.01, gap + 0.02] for name, gap in first.items()}
    decided = verdicts(runs=grid.runs(summarization=runs))
    assert of(decided, "a", "summarization") == ["agrees"]  # by the scores alone
    assert of(decided, "j", "summarization") == ["does not agree"]
    assert not of(decided, "j", "eli5")


@pytest.mark.parametrize("best", [0.0, ZERO / 2, 2.0])  # the last one's interval reaches down to zero
def test_beside_a_teacher_that_scores_zero_nothing_is_decided_and_all_else_goes_on(best):
    metrics = grid.metrics()
    rows, students = metrics.task == "summarization", metrics.role == "student"
    metrics.loc[rows, ["score", "score_low", "score_high"]] = 12.6
    metrics.loc[rows & ~students, ["score", "score_low"]] = best, 0.0
    metrics.loc[rows & students, "retention"] = np.nan if best < ZERO else 6.3

    scores = {ModelKey(row.task, row.role, row.config, row.preset, 9): row.score for row in metrics.itertuples()}

    class Drawn(Resampled):
        models = property(lambda self: list(scores))
        score = staticmethod(scores.get)
        headline = staticmethod(lambda model: "rougeL")

        def drawn(self, model):
            score = scores[model]
            return np.linspace(-1 if score == best else score, score, 99).clip(0)

    retention = retention_table(Drawn(pandas.DataFrame()))
    decided = verdicts(metrics, retention=retention)
    assert of(decided, "b", "summarization") == ["not decided"]
    assert of(decided, "b", "eli5") == ["does not agree"]
    measured = " ".join(text for letter, _, text in decided if letter in "bcd")
    assert "summarization not decided" in measured
    assert "too near to zero" in measured
    assert "nan" not in measured
    if best < ZERO:
        tables = report.short_table(metrics), report.overview_table(metrics)
        pages = "".join(map(report.markdown_table, tables))
        assert "12.60 (not decided)" in pages
        assert "nan" not in pages
        json.loads(report._metrics_json(metrics), parse_constant=pytest.fail)
        assert "not decided" in {text.get_text() for text in figures.heat_map(metrics).axes[0].texts}
