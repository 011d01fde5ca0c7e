import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas
import pytest

from dqlib.config import Config
from dqlib.errors import InputError
from dqlib.study.evaluation.bootstrap import two_sided, welch_p_value
from dqlib.study.evaluation.records import columns_of, read_record
from dqlib.study.params.paths import project_root
from dqlib.study.params.settings import Methods, Run, load_settings
from dqlib.study.pipeline import benchmark
from dqlib.study.pipeline.benchmark import benchmark_of, folder_of, missing_runs, run_benchmark
from dqlib.study.pipeline.ledger import LONGER, METHODS, PARTS, read_ledger, run_ids
from dqlib.study.pipeline.study import Study
from dqlib.study.report import benchmark as tables
from dqlib.study.report.benchmark_page import with_losses, write_benchmark
from tests.helpers.processes import in_this_process
from tests.helpers.projects import set_task, write_small_study


def bench_of_the_study() -> Methods:
    return load_settings("study").task("summarization").methods


def test_the_bench_has_every_preset_at_every_configuration_that_it_has_a_grid_for():
    runs = bench_of_the_study().runs()
    assert len(runs) == len(set(runs))
    for preset, config in (("dqlib", "1-1-8 2-4"), ("xtc", "1-1-8 2-4"), ("dq-bart-faithful", "2-2-8 2-4")):
        assert {Run(preset, Config.parse(config), seed) for seed in bench_of_the_study().seeds} <= set(runs)
    assert not [run for run in runs if run.config.w_bits == 1 and run.preset.startswith("dq-bart")]


def test_a_bench_that_is_stopped_early_has_decided_what_it_could():
    wanted = bench_of_the_study()
    runs = wanted.runs_of_equal_steps()
    names = [run.preset for run in runs]
    first = min(names.index(name) for name in wanted.ablation_presets if name not in wanted.presets)
    assert not set(names[first:]) & set(wanted.presets)  # ablations come last
    configs = [str(run.config) for run in runs[:first]]
    assert configs == sorted(configs, key=configs.index)  # a config is whole before the next one
    own = [run.preset for run in runs if str(run.config) in map(str, map(Config.parse, wanted.own_configs))]
    assert own == len(wanted.own_configs) * ["dqlib"] * len(wanted.seeds)
    seeds = len(wanted.seeds)
    assert [(run.preset, run.seed) for run in runs[: 2 * seeds]] == [
        (name, seed) for name in ("dqlib", "xtc") for seed in wanted.seeds
    ]


def test_shapes_of_one_s_own_may_be_of_a_preset_that_is_not_compared_and_come_once():
    given = replace(bench_of_the_study(), presets=["xtc"], seeds=[1], ablations={}, ablation_seeds=[])
    own = ["2-2-8 2-4 h3 f256", "2-2-8 2-4"]
    found = replace(given, configs=own[1:], own_configs={text: ["dqlib"] for text in own})
    runs = sorted(found.runs_of_equal_steps(), key=lambda run: tables._order(found, run))
    assert [(run.preset, str(run.config)) for run in runs] == [("xtc", own[1]), ("dqlib", own[1]), ("dqlib", own[0])]
    twice = replace(given, configs=own, own_configs={text: ["xtc"] for text in own})
    assert [str(run.config) for run in twice.runs_of_equal_steps()] == own


def test_longer_runs_are_of_the_presets_that_are_named_and_come_by_their_steps():
    longer = {"4-4-8 2-4": ["dqlib"], "2-2-8 2-4": ["xtc", "dqlib", "xtc"]}
    given = replace(bench_of_the_study(), longer_steps=[9000, 3000], longer=longer, seeds=[1, 2], longer_seeds=[])
    series = [("dqlib", "4-4-8 2-4"), ("xtc", "2-2-8 2-4"), ("dqlib", "2-2-8 2-4")]
    runs = [(run.steps, run.preset, str(run.config), run.seed) for run in given.longer_runs()]
    assert runs == [(steps, *each, 1) for steps in (3000, 9000) for each in series]
    both = replace(given, longer_seeds=[1, 2]).longer_runs()
    assert [run.seed for run in both] == [1, 2] * len(runs)


def test_a_profile_without_a_bench_says_so_before_anything_is_made(monkeypatch):
    study = Study("tutorial")
    study.task = replace(study.task, methods=None)
    monkeypatch.setattr(Study, "teacher", lambda self: pytest.fail("made the teacher"))
    for call in (benchmark_of, run_benchmark):
        with pytest.raises(InputError, match=r"summarization\.methods: None .* given, to run the benchmark"):
            call(study)


def test_a_finished_run_counts_though_the_longer_table_has_a_stale_row_of_it(tmp_path, monkeypatch):
    write_small_study(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Study, "teacher_digest", lambda self: "a teacher")
    study = Study("small.yaml")
    run, steps = benchmark_of(study).runs()[0], benchmark_of(study).distill.steps
    row = {"config": str(run.config), "seed": run.seed} | run_ids(study, run, "a teacher")
    record = row | {"preset": run.preset, "train_steps": steps}
    folder = project_root() / study.settings.results / "tables"
    folder.mkdir(parents=True)
    for name, each in (
        (METHODS, record),
        (LONGER, record | {"code": "0" * 12}),
        (PARTS, row | {"part": run.preset, "steps": steps}),
    ):
        pandas.DataFrame([each]).to_csv(folder / name, index=False)
    assert set(read_ledger(study).rows) == {run}


def test_the_p_value_is_small_for_a_clear_difference_and_large_for_noise():
    generator = np.random.default_rng(0)
    assert two_sided(generator.normal(2, 0.15, 500)) < 0.01  # means of as many resamples
    noise = generator.normal(0.1, 0.15, 500)
    assert two_sided(noise) == two_sided(-noise) > 0.05
    assert two_sided(np.zeros(500)) == 1.0
    assert two_sided(np.ones(500)) == 1 / 500


def test_the_p_value_over_seeds_is_that_of_welch():
    ours, theirs = np.array([0.174, 0.181, 0.169]), np.array([0.266, 0.251, 0.270])
    # t = -12.989 with 3.2806 degrees of freedom; the tails of Student's density, integrated numerically
    assert welch_p_value(ours, theirs) == pytest.approx(6.214191e-4, rel=1e-5)
    assert welch_p_value(ours, theirs) == welch_p_value(theirs, ours)
    assert welch_p_value(ours, ours + 1e-4) > 0.9
    assert welch_p_value(ours[:1], theirs) is None  # one seed has no spread
    assert welch_p_value(np.ones(3), np.ones(3)) is None


def test_the_gap_to_the_teacher_is_told_beside_that_of_the_whole_preset_after_equal_steps():
    rows = [("dqlib", 1, 100, 3.30), ("dqlib", 2, 100, 3.32), ("dqlib-plain", 1, 100, 3.60), ("dqlib", 1, 800, 3.11)]
    rows += [("dqlib", 1, 900, 2.98), ("dqlib-plain", 1, 900, 3.01)]
    parts = pandas.DataFrame(rows, columns=["part", "seed", "steps", "validation_loss"])
    parts = parts.assign(config="2-2-8 2-1", teacher_loss=3.0, size_bytes=10, minutes=1.0)
    gaps = tables.gap_table(parts).set_index(["part", "steps"])
    assert gaps.gap.tolist() == pytest.approx([0.31, 0.60, 0.11, -0.02, 0.01])
    assert gaps.loc[("dqlib-plain", 100), "ratio"] == pytest.approx(0.60 / 0.31)
    assert gaps.loc[("dqlib", 800), "ratio"] == 1
    assert gaps.loc[("dqlib-plain", 900), "ratio"] != gaps.loc[("dqlib-plain", 900), "ratio"]  # of no gap there is none
    assert gaps.seeds.tolist() == [2, 1, 1, 1, 1]
    assert gaps.p_value.isna().all()  # two seeds against one


def test_a_run_is_held_against_its_teacher_on_the_same_documents(study_in_a_copy):
    study = study_in_a_copy
    path, tested = study.folders.teacher / "predictions.jsonl", benchmark_of(study).evaluate.documents
    lines = [json.loads(line) | {"rougeL": number} for number, line in enumerate(path.read_text().splitlines())]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(lines) > tested
    for count, runs in ((3, [[0.0] * 2, [0.0] * 3, None]), (tested, [None])):  # a run tells how many, if it has scores
        assert tables.teacher_score(study, [SimpleNamespace(scores=each) for each in runs]) == (count - 1) / 2


@pytest.mark.usefixtures("made_study")
def test_publishing_trains_no_teacher_that_is_of_other_parameters_or_not_there(monkeypatch):
    monkeypatch.setattr(Study, "_run", lambda self, job, *_: pytest.fail(f"ran {job}"))
    assert Study("small.yaml").has_teacher()
    with pytest.raises(InputError, match="no finished run"):
        write_benchmark(Study("small.yaml"), run=False)
    set_task(finetune={"steps": 5})
    with pytest.raises(InputError, match=r"^teacher: .* one that is trained: `python -m dqlib.study make teacher"):
        write_benchmark(Study("small.yaml"), run=False)
    set_task(pretrain={"steps": 5})  # which another task's teacher starts from
    assert not Study("small.yaml", "eli5").has_teacher()


def test_a_part_is_compared_with_runs_of_the_same_seeds():
    rows = [("dqlib", 1, 20.0, 3.0), ("dqlib", 2, 22.0, 3.2), ("dqlib", 3, 27.0, 3.4), ("dqlib-no-task", 2, 21.0, 3.5)]
    table = pandas.DataFrame(rows, columns=["preset", "seed", "score", "validation_loss"]).assign(config="2-2-8 2-4")
    (row,) = tables.ablation_table(table, SimpleNamespace(ablation_presets=["dqlib-no-task"])).to_dict("records")
    assert (row["changed"], row["seeds"]) == ("no-task", 1)
    assert (row["difference"], row["its difference"]) == (-1.0, 0.3)


def test_the_bench_runs_is_kept_and_makes_its_table(study_in_a_copy, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "run_all", in_this_process)
    study = study_in_a_copy
    run_benchmark(study)
    runs = benchmark_of(study).runs()
    folders = [folder_of(study, run) for run in runs]
    times = [(folder / "record.json").stat().st_mtime_ns for folder in folders]
    run_benchmark(study)  # nothing is missing
    assert times == [(folder / "record.json").stat().st_mtime_ns for folder in folders]
    (folders[0] / "provenance.json").write_text("{}")  # of other parameters: made again, to the same bytes
    study.folders.checkpoints(folders[0]).mkdir(parents=True)  # of a training that was stopped
    record = (folders[0] / "record.json").read_bytes()
    run_benchmark(study)
    assert (folders[0] / "record.json").read_bytes() == record
    assert times[1:] == [(folder / "record.json").stat().st_mtime_ns for folder in folders[1:]]

    table = tables.benchmark_table(study, tables.finished(study))
    assert tuple(table.columns) == (*columns_of("summarization"), "baseline", "p_value", "provenance", "code")
    equal = [folder_of(study, run) for run in benchmark_of(study).runs_of_equal_steps()]
    assert [read_record(folder).score for folder in equal] == table.score.tolist()
    ours = table[table.preset == "dqlib"].iloc[0]
    assert ours.baseline == "dq-bart-faithful"
    assert 0 < ours.p_value <= 1
    assert table[table.preset == "dq-bart-faithful"].p_value.isna().all()
    parts = tables.parts_table(study, tables.finished(study))
    assert len(parts) == len(runs)
    changed = tables.ablation_table(with_losses(table, parts), benchmark_of(study))
    assert changed.changed.tolist() == ["fixed-scales"]
    teacher_log = pandas.read_csv(study.folders.teacher / "log.csv")
    assert (parts.teacher_loss == round(teacher_log.validation_loss.min(), 4)).all()
    first = pandas.read_csv(folder_of(study, runs[0]) / "log.csv").validation_loss.min()
    assert round(first, 4) in parts.validation_loss.tolist()
    assert json.loads((folders[0] / "cost.json").read_text()) == {"minutes": None}
    assert parts.minutes.isna().sum() == 1
    assert (parts.minutes.dropna() > 0).all()
    faithful = table[table.preset == "dq-bart-faithful"].iloc[0]
    assert faithful.size_bytes > 1.5 * ours.size_bytes  # its head needs the embedding in full precision
    write_benchmark(study)
    results = project_root() / study.settings.results
    names = [f"tables/{name}" for name in (METHODS, LONGER, PARTS)] + ["methods/README.md", "methods/scores.parquet"]
    written = {name: (results / name).read_bytes() for name in names}

    shutil.rmtree(study.folders.methods)  # as in a new clone: the tables hold all
    assert missing_runs(study) == []
    run_benchmark(study)
    write_benchmark(study)
    assert written == {name: (results / name).read_bytes() for name in names}

    rows = written[f"tables/{PARTS}"].decode().splitlines(keepends=True)
    (results / "tables" / PARTS).write_text("".join(rows[:2]))  # one run of them is finished
    (one,) = {*runs} - {*missing_runs(study)}
    write_benchmark(study, run=False)
    page = (results / "methods" / "README.md").read_text()
    not_run = page.partition("Not run yet:")[2]
    assert all(f"`{run.preset}`" in not_run for run in missing_runs(study))
    assert pandas.read_csv(results / "tables" / METHODS).preset.tolist() == [one.preset]

    code = pandas.read_csv(results / "tables" / METHODS).code.iloc[0]
    for name in (METHODS, PARTS):
        path = results / "tables" / name
        path.write_text(path.read_text().replace(code, "0" * 12))
    capsys.readouterr()
    assert missing_runs(study) == runs
    assert f"of other code: {one}" in capsys.readouterr().out
