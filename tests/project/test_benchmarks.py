"""The benchmark runs and its numbers are numbers; how large they are is not tested."""

import csv
import importlib
import json
import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pandas
import pytest
import torch
from transformers import MBartConfig, MBartForConditionalGeneration

from dqlib.config import Config
from dqlib.storage.packed import save_packed
from dqlib.storage.students import save_student
from dqlib.student import make_student, round_for_storage
from dqlib.study.corpora.tokenizer import train_tokenizer
from dqlib.study.params.settings import load_settings
from dqlib.study.report.readme import long_tables
from tests.helpers.models import TINY

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """What imports a benchmark by its name."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


def test_ratios_are_finite_and_positive_and_are_written(load, tmp_path):
    benchmark = load("fake_quantization")
    rows = list(benchmark.measure(benchmark.SHAPES["tiny"], rounds=1))
    variants = set(benchmark.VARIANTS) - {benchmark.BASELINE}
    assert {(row.what, row.variant) for row in rows} == set(product(benchmark.WHAT.values(), variants))
    for row in rows:
        numbers = (row.ratio_min, row.ratio, row.ratio_max, row.seconds, row.seconds_baseline)
        assert all(math.isfinite(number) and number > 0 for number in numbers)
        assert row.ratio_min <= row.ratio <= row.ratio_max
    benchmark.write_rows(rows, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open() as file:
        written = list(csv.DictReader(file))
    assert len(written) == len(rows)
    assert float(written[0]["ratio"]) == pytest.approx(rows[0].ratio, rel=1e-3)


def test_the_cost_of_presets_is_that_of_steps_of_all_their_parts(load):
    benchmark, task = load("distillation"), load_settings("smoke").task("summarization")
    presets = ["dqlib-layerwise", "dqlib-averaged"]
    rows = list(benchmark.measure(task, Config.parse("2-2-8 1-1"), presets, rounds=1, count=5))
    assert [row.engine for row in rows] == presets
    for row in rows:
        assert all(math.isfinite(number) and number > 0 for number in (row.value, row.ratio))
        assert row.baseline == task.distill.preset


def run(script, *options):
    """What a benchmark prints that runs by itself."""
    command = [sys.executable, str(FOLDER / script), *map(str, options)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, check=True, env=environment, capture_output=True, text=True).stdout


@pytest.fixture
def inference(tmp_path):
    """What gives the output and the rows of the benchmark of engines, at small shapes."""
    pytest.importorskip("onnxruntime")
    results, work = tmp_path / "results", tmp_path / "work"

    def run_it(*options):
        printed = run("inference.py", *options, "--quick", "--threads", 1, "--results", results, "--work", work)
        with (results / "tables" / "benchmark.csv").open() as file:
            return printed, list(csv.DictReader(file))

    return run_it


@pytest.mark.slow
def test_the_bench_of_engines_writes_its_columns_and_goes_on(inference, tmp_path):
    printed, rows = inference("--shapes", "tiny")
    assert "--again" not in printed
    assert ",".join(rows[0]) == "name,shape,config,engine,metric,value,unit,baseline,ratio,device"
    names = {"size", "load", "generation", "low-bit", "long", "levels", "narrow", "memory", "training"}
    assert {row["name"] for row in rows} == names
    narrow = [(row["config"], row["engine"]) for row in rows if row["name"] == "narrow" and row["ratio"]]
    assert ("2-2-8 2-2 h8 f48", "onnxruntime") in narrow
    # a token after others is a difference, which noise may make negative
    assert all(float(row["value"]) > 0 for row in rows if "a token after" not in row["metric"])
    assert all(bool(row["baseline"]) == bool(row["ratio"]) for row in rows)
    assert (tmp_path / "results" / "figures" / "benchmark.svg").is_file()

    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work" / "tiny").glob("*.json")}
    printed, _ = inference("--shapes", "tiny")
    first = f"goes on from what is in {tmp_path / 'work'}; with --again all is measured anew"
    assert printed.splitlines()[0] == first
    assert kept.items() >= {p: p.stat().st_mtime_ns for p in kept if p.name != "vocabulary.json"}.items()


@pytest.mark.slow
def test_long_outputs_are_measured_alone_and_become_tables(inference, tmp_path):
    inference("--shapes", "tiny", "--stages", "long")
    rows = pandas.read_csv(tmp_path / "results" / "tables" / "benchmark.csv")
    assert set(rows.name) == {"long"}
    ours = rows[rows.engine == "onnxruntime"].drop_duplicates("metric").set_index("metric").value
    for tokens in (4, 8):
        assert all(ours[f"{part} of {tokens} tokens, 1 text, greedy"] > 0 for part in ("encoder", "decoder", "head"))
    engines, parts = long_tables(rows, "tiny").split("\n\n")
    assert engines.splitlines()[0] == "| model | engine | 4 tokens | 8 tokens | a token after 4 |"
    assert "| `32-32-32 2-2` | transformers fp32 |" in engines
    assert parts.splitlines()[0] == "| onnxruntime | encoder | decoder | head | Python |"
    assert [line.split(" | ")[0] for line in parts.splitlines()[2:]] == ["| 4 tokens", "| 8 tokens"]


@pytest.mark.slow
def test_the_bench_of_models_of_one_stack_writes_its_rows(inference):
    _, rows = inference("--shapes", "tiny-bert", "tiny-gpt2")
    stages = {"tiny-bert": "reading", "tiny-gpt2": "continuation"}
    assert {(row["shape"], row["name"]) for row in rows} == {
        (shape, name) for shape, stage in stages.items() for name in (stage, "size", "load", "memory")
    }
    assert all(float(row["value"]) > 0 for row in rows)
    engines = {"transformers fp32", "ctranslate2 int8", "onnxruntime"}
    assert {row["engine"] for row in rows if row["name"] == "reading"} == engines


@pytest.fixture
def agreement(load):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("ctranslate2")
    return load("agreement")


@pytest.fixture(scope="module")
def student():
    """A rounded student of one and one layer, and its tokenizer."""
    tokenizer = train_tokenizer(["return the sum of all numbers"] * 4, 300, 24)
    torch.manual_seed(0)
    config = MBartConfig(**TINY | {"vocab_size": len(tokenizer)}, encoder_layers=1, decoder_layers=1)
    student = make_student(MBartForConditionalGeneration(config), Config.parse("2-2-8 1-1")).eval()
    round_for_storage(student)
    return student, tokenizer


def test_the_agreement_of_engines_is_written(agreement, student, tmp_path):
    save_student(student[0], tmp_path / "student", student[1])
    documents = tmp_path / "test.jsonl"
    documents.write_text("".join(json.dumps({"source": f"the sum of {i}"}) + "\n" for i in range(5)))
    table = tmp_path / "results" / "tables" / "agreement.csv"
    assert agreement.main([str(tmp_path / "student"), str(documents), "--limit", "3", "--csv", str(table)]) == 0
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["engine", "tokens", "choices", "n"]
    assert [row["engine"] for row in rows] == ["ctranslate2", "onnxruntime", "PyTorch after a change of 1e-06"]
    assert all(row["n"] == "3" and 0 <= float(row["tokens"]) <= 1 >= float(row["choices"]) >= 0 for row in rows)


def test_an_agreement_without_a_study_is_told_in_a_sentence(agreement, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(agreement, "STUDENT", tmp_path / "2-2-8_2-4")
    assert agreement.main(["--csv", str(tmp_path / "agreement.csv")]) == 2
    assert agreement.main([str(tmp_path), str(tmp_path / "test.jsonl"), "--csv", str(tmp_path / "agreement.csv")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[2].partition(":")[0].strip() for line in errors] == ["STUDENT", "DOCUMENTS"]
    assert all("`make repro`" in line for line in errors)
    assert not (tmp_path / "agreement.csv").exists()


@pytest.mark.slow
def test_the_gpu_script_runs_on_a_cpu_and_keeps_the_rows_of_others(tmp_path):
    header = "name,shape,config,engine,metric,value,unit,baseline,ratio,device"
    table = tmp_path / "tables" / "benchmark.csv"
    table.parent.mkdir()
    other = "size,BART-base,2-2-8 6-3,dqlib,bytes,1,bytes,teacher,2,a CPU"
    table.write_text(f"{header}\n{other}\n")
    run("gpu.py", "--device", "cpu", "--shape", "tiny", "--rounds", 1, "--results", tmp_path, "--no-tests")
    assert table.read_text().splitlines()[:2] == [header, other]
    with table.open() as file:
        rows = list(csv.DictReader(file))[1:]
    assert {row["engine"] for row in rows} == {
        "plain distillation fp32", "reference's way fp32", "dqlib fp32", "plain distillation bf16", "dqlib bf16"
    }  # fmt: skip
    assert all(row["name"] == "gpu-training" and float(row["value"]) > 0 and "CPU" in row["device"] for row in rows)
    assert all(bool(row["baseline"]) == bool(row["ratio"]) for row in rows)
    ours = {row["baseline"] for row in rows if row["engine"] == "dqlib bf16"}
    assert ours == {"plain distillation bf16", "reference's way fp32"}


@pytest.mark.slow
def test_the_start_of_commands_is_measured_in_processes_of_their_own(load, student, tmp_path, monkeypatch, capsys):
    benchmark = load("start")
    save_packed(student[0], tmp_path / "packed", student[1])
    whole, few = benchmark.programs, (benchmark.TORCH, "dqlib verify", benchmark.GENERATE)
    monkeypatch.setattr(benchmark, "programs", lambda *folders: {name: whole(*folders)[name] for name in few})
    monkeypatch.setattr(sys, "argv", ["start.py", str(tmp_path / "packed"), "--rounds", "1"])
    benchmark.main()
    lines = capsys.readouterr().out.splitlines()
    seconds = {line.rpartition("  ")[2]: float(line.split()[0]) for line in lines}
    assert tuple(seconds) == few
    assert 0 < seconds["dqlib verify"] < seconds[benchmark.GENERATE]
    with pytest.raises(subprocess.CalledProcessError):
        benchmark.cpu_seconds(["-m", "dqlib.cli", "verify", str(tmp_path)])
