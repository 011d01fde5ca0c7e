"""Two processes do what one does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dqlib.study.process.exit_codes import JobError
from dqlib.study.process.launch import LAUNCHER, launch, on_this_process
from tests.helpers.projects import set_task

JOB = """
import json, os, sys
from pathlib import Path
rank, written = os.environ.get("RANK", "0"), set()

def hook(event, arguments):
    writes = event in ("os.mkdir", "os.rename") or event == "open" and (
        isinstance(arguments[1], str) and set(arguments[1]) & set("wax+") or arguments[2] & (os.O_WRONLY | os.O_RDWR))
    if writes and isinstance(arguments[0], str | Path) and "/runs/" in os.path.abspath(arguments[0]):
        written.add(str(arguments[0]))

sys.addaudithook(hook)
from dqlib.study.__main__ import main
code = main(["job", "distill", "--params", "small.yaml", "--config", "4-4-32 2-1"])
Path(f"written-{rank}.json").write_text(json.dumps(sorted(written)))
sys.exit(code)
"""


@pytest.mark.slow
def test_a_job_under_accelerate_launch_gives_what_one_process_gives(made_study):
    set_task(
        # without rounded activations, which make more of the last bits of a sum; with two of ten steps layer by layer
        configs=["4-4-32_2-1"],
        distill={"preset": "dqlib-layerwise", "steps": 10, "validations": 2},
        # three batches of documents for two processes, the last of them not full: none is lost or doubled
        evaluate={"documents": 5, "batch_size": 2, "validation_documents": 7, "bootstrap": 50},
        methods=None,
    )
    Path("job.py").write_text(JOB)
    command = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no"]  # with --cpu, it would start one process whatever their number
    found = {}
    for processes in (1, 2):
        folder = made_study.with_name(f"of-{processes}")
        shutil.copytree(made_study, folder)
        launcher = [*command, "--num_processes", str(processes)] if processes > 1 else []
        subprocess.run(
            [sys.executable, *launcher, "job.py"],
            check=True,
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        student = folder / "runs" / "tutorial" / "summarization" / "students" / "4-4-32_2-1"
        log = [line.split(",") for line in (student / "log.csv").read_text().splitlines()]
        predictions = [json.loads(line) for line in (student / "predictions.jsonl").read_text().splitlines()]
        record = json.loads((student / "record.json").read_text())
        found[processes] = log, predictions, record, load_file(student / "model.safetensors")
        assert not [path for path in student.parent.iterdir() if path.name.startswith(".")]
    (log_one, predictions_one, row_one, one), (log_two, predictions_two, row_two, two) = found[1], found[2]
    assert log_one[0] == log_two[0]
    numbers = [torch.tensor([[float(run or 0) for run in row] for row in log[1:]]) for log in (log_one, log_two)]
    torch.testing.assert_close(*numbers, atol=1e-5, rtol=1e-4)
    assert len(predictions_two) == 5
    assert predictions_one == predictions_two
    assert row_one == row_two
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=1e-4, rtol=1e-3)
    written = [json.loads((made_study.with_name("of-2") / f"written-{rank}.json").read_text()) for rank in (0, 1)]
    assert any(path.endswith("record.json") or ".record.json" in path for path in written[0])
    assert written[1] == []


def test_a_cluster_starts_jobs_by_a_command_of_its_own(tmp_path, monkeypatch):
    assert on_this_process(1)
    assert not on_this_process(2)
    script = tmp_path / "cluster.py"
    script.write_text("import sys; from pathlib import Path; Path(sys.argv[1]).write_text(' '.join(sys.argv[2:]))")
    monkeypatch.setenv(LAUNCHER, f"{sys.executable} {script} '{tmp_path / 'started'}' --nodes=2")
    assert not on_this_process(1)
    launch(["job", "distill", "--task", "summarization", "--config", "2-2-8 2-1"], 1)
    wanted = "--nodes=2 -m dqlib.study job distill --task summarization --config 2-2-8 2-1"
    assert (tmp_path / "started").read_text() == wanted
    script.write_text("import sys; print('error: no room', file=sys.stderr); sys.exit(1)")
    with pytest.raises(JobError, match=r"^no room$"):
        launch(["job", "finetune"], 1)
