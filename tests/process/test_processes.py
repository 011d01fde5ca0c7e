"""Two processes do what one does."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from dqlib.study.process.exit_codes import JobError
from dqlib.study.process.launch import LAUNCHER, launch, on_this_process

SCRIPT = """
import json, sys, torch
from pathlib import Path
from transformers import MBartConfig, MBartForConditionalGeneration
from tests.conftest import TINY
from tests.helpers.examples import copying
from dqlib.config import Config
from dqlib.loss_weights import LossWeights
from dqlib.terms import LayerMaps
from dqlib.presets import Recipe
from dqlib.student import make_student
from dqlib.study.params import settings as S
from dqlib.study.training.batches import steps
from dqlib.study.evaluation.generation import generate
from dqlib.study.corpora.tokenizer import train_tokenizer
from dqlib.study.training.loop import Trainer, make_accelerator
from dqlib.study.training.objectives import DistillationObjective

out = Path(sys.argv[1])
torch.manual_seed(0)
teacher = MBartForConditionalGeneration(MBartConfig(**TINY, encoder_layers=2, decoder_layers=2))
student = make_student(teacher, Config.parse("4-4-32 2-1"))
training = S.Training(steps=6, learning_rate=1e-3, batch_tokens=400, validations=2)
accelerator = make_accelerator(0)
recipe = Recipe(layerwise=0.3)  # two steps of the six
objective = DistillationObjective(teacher, LayerMaps([0, 1], [1]), LossWeights(), recipe=recipe)
batches, log = steps(copying(90, 0), training), out / "log.csv"
Trainer(student, objective, batches, copying(31, 1), training, accelerator, log, "t", recipe).train()
tokenizer = train_tokenizer(["a b"], 300, 16)
texts = generate(teacher, copying(7, 2), tokenizer, S.Evaluation(batch_size=2), 4, accelerator, "g")
if accelerator.is_main_process:
    (out / "done.json").write_text(json.dumps({"world": accelerator.num_processes, "texts": texts}))
    torch.save(student.state_dict(), out / "weights.pt")
"""


def run(folder: Path, processes: int):
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    subprocess.run(
        [sys.executable, *launcher, str(script), str(folder)],
        check=True,
        capture_output=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "."},
    )
    rows = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()]
    losses = torch.tensor([[float(value or "nan") for value in row[1:]] for row in rows[1:]])
    return json.loads((folder / "done.json").read_text()), losses, torch.load(folder / "weights.pt")


def test_two_processes_give_the_losses_weights_and_texts_of_one(tmp_path):
    one, losses_one, weights_one = run(tmp_path / "one", 1)
    two, losses_two, weights_two = run(tmp_path / "two", 2)
    assert (one["world"], two["world"]) == (1, 2)
    torch.testing.assert_close(losses_one, losses_two, atol=1e-5, rtol=1e-4, equal_nan=True)
    assert one["texts"] == two["texts"]  # seven examples do not divide evenly, and none is lost or doubled
    assert len(one["texts"]) == 7
    for name, value in weights_one.items():
        torch.testing.assert_close(value, weights_two[name], atol=1e-4, rtol=1e-3)


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
code = main(["job", "finetune", "--params", "small.yaml"])
Path(f"written-{rank}.json").write_text(json.dumps(sorted(written)))
sys.exit(code)
"""


def test_a_job_under_accelerate_launch_gives_what_one_process_gives(made_study):
    params = yaml.safe_load(Path("small.yaml").read_text())
    # three batches of documents for two processes, the last of them not full
    params["summarization"]["evaluate"] = {"documents": 5, "batch_size": 2, "validation_documents": 7, "bootstrap": 50}
    Path("small.yaml").write_text(yaml.safe_dump(params))
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
        teacher = folder / "runs" / "tutorial" / "summarization" / "teacher"
        log = [line.split(",") for line in (teacher / "log.csv").read_text().splitlines()]
        predictions = [json.loads(line) for line in (teacher / "predictions.jsonl").read_text().splitlines()]
        found[processes] = log, predictions, json.loads((teacher / "record.json").read_text())
        assert not [path for path in teacher.parent.iterdir() if path.name.startswith(".")]
    (log_one, predictions_one, row_one), (log_two, predictions_two, row_two) = found[1], found[2]
    assert log_one[0] == log_two[0]
    numbers = [torch.tensor([[float(run or 0) for run in row] for row in log[1:]]) for log in (log_one, log_two)]
    torch.testing.assert_close(*numbers, atol=1e-5, rtol=1e-5)
    assert len(predictions_two) == 5
    assert predictions_one == predictions_two
    assert row_one == row_two
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
