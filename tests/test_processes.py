"""Two processes do what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = """
import json, sys, torch
from pathlib import Path
from transformers import MBartConfig, MBartForConditionalGeneration
from tests.conftest import TINY
from tests.test_train import copying
from dqlib.config import Configuration
from dqlib.losses import LayerMaps, LossWeights
from dqlib.student import make_student
from dqlib.study import settings as S
from dqlib.study.batches import steps
from dqlib.study.evaluate import generate
from dqlib.study.tokenizer import train_tokenizer
from dqlib.study.train import DistillationObjective, make_accelerator, train

out = Path(sys.argv[1])
torch.manual_seed(0)
teacher = MBartForConditionalGeneration(MBartConfig(**TINY, encoder_layers=2, decoder_layers=2))
student = make_student(teacher, Configuration.parse("4-4-32 2-1"))
training = S.Training(steps=6, learning_rate=1e-3, batch_tokens=400, validations=2)
accelerator = make_accelerator(0)
objective = DistillationObjective(teacher, LayerMaps([0, 1], [1]), LossWeights())
train(student, objective, steps(copying(90, 0), training), copying(31, 1), training, accelerator, out / "log.csv", "t")
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
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "."},
    )
    rows = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()]
    losses = torch.tensor([[float(value) for value in row[1:-1]] for row in rows[1:]])
    return json.loads((folder / "done.json").read_text()), losses, torch.load(folder / "weights.pt")


def test_two_processes_give_the_losses_weights_and_texts_of_one(tmp_path):
    one, losses_one, weights_one = run(tmp_path / "one", 1)
    two, losses_two, weights_two = run(tmp_path / "two", 2)
    assert (one["world"], two["world"]) == (1, 2)
    torch.testing.assert_close(losses_one, losses_two, atol=1e-5, rtol=1e-4)
    assert one["texts"] == two["texts"]  # seven examples do not divide evenly, and none is lost or doubled
    assert len(one["texts"]) == 7
    for name, value in weights_one.items():
        torch.testing.assert_close(value, weights_two[name], atol=1e-4, rtol=1e-3)
