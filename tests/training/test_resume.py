"""A training that is killed goes on, and ends with the weights of one that was not."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dqlib.study.corpora.corpus import LoadedCorpus
from dqlib.study.params.paths import Folders
from dqlib.study.params.settings import load_settings
from dqlib.study.process.locks import BusyError, only_maker
from dqlib.study.training.checkpoints import KEPT, Checkpoints, random_states, restore_random_states
from dqlib.study.training.loop import make_accelerator
from dqlib.study.training.objectives import TaskObjective
from dqlib.study.training.task import TaskTraining
from tests.helpers.folders import flip
from tests.helpers.training import small_model, train

SCRIPT = """
import json, os, random, signal, sys, time
from contextlib import redirect_stdout
from pathlib import Path
import torch
torch.set_num_threads(1)
from dqlib import files
from dqlib.config import Config
from dqlib.terms import LayerMaps
from dqlib.presets import Recipe, get_preset
from dqlib.student import make_student
from dqlib.study.params import settings as S
from dqlib.study.training.batches import infill
from dqlib.study.training.checkpoints import Checkpoints, weights_hash
from dqlib.study.training.objectives import DistillationObjective
from tests.helpers.training import small_model, train

def training(folder):
    teacher = small_model()
    teacher.config.dropout = 0.1
    student = make_student(teacher, Config.parse("2-2-8 2-1"), "quantgpt")
    for layer in student.modules():
        if hasattr(layer, "dropout") and isinstance(layer.dropout, float):
            layer.dropout = 0.1  # so that random states matter
    recipe = Recipe(scale_learning_rate=0.5, progressive=0.4, layerwise=0.3, average=0.4)
    objective = DistillationObjective(teacher, LayerMaps([0, 1], [1]), get_preset("quantgpt").loss, recipe=recipe)
    noise = lambda example, order: infill(example, order, S.Pretraining(steps=1, learning_rate=1.0, batch_tokens=1))
    parts = {"recipe": recipe, "checkpoints": Checkpoints(folder / "checkpoints", "the same")}
    loop = {"steps": 16, "learning_rate": 1e-3, "batch_tokens": 200, "checkpoint_steps": 3}
    train(student, objective, folder, count=60, noise=noise, parts=parts, **loop)
    (folder / "hash").write_text(weights_hash(student))

def attempt(folder, kill_after=None, slow=False):
    child = os.fork()
    if not child:
        if slow:  # most of the time goes into saving
            sync = files._sync
            files._sync = lambda path: (time.sleep(0.02), sync(path))
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
            training(folder)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] == 0

out, kills = Path(sys.argv[1]), int(sys.argv[2])
order = random.Random(1)
(out / "unbroken").mkdir()
began = time.monotonic()
assert attempt(out / "unbroken")
took = time.monotonic() - began
results = []
for number in range(kills):
    folder = out / str(number)
    folder.mkdir()
    slow = bool(number % 2)
    unfinished = not attempt(folder, order.uniform(0.1, 0.8) * took * (2 if slow else 1), slow)
    left = sorted(path.name for path in (folder / "checkpoints").glob("step*")) if unfinished else []
    assert unfinished is False or attempt(folder)
    same = (folder / "hash").read_text() == (out / "unbroken" / "hash").read_text()
    log = (folder / "log.csv").read_text() == (out / "unbroken" / "log.csv").read_text()
    results.append({"killed": unfinished, "left": left, "same": same, "log": log})
print(json.dumps(results))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the runs are forked")
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_training_killed_at_any_moment_ends_with_the_same_bits(tmp_path, kills):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(kills)],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": "."},
    )
    results = json.loads(done.stdout.splitlines()[-1])
    assert len(results) == kills
    assert all(each["same"] and each["log"] for each in results), results
    assert sum(each["killed"] for each in results) > kills // 2
    assert any(each["left"] for each in results)  # some did go on, and did not begin anew


def test_the_last_two_checkpoints_are_kept_and_a_damaged_one_falls_back(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", "a")
    for step in (3, 6, 9):
        checkpoints.save(step, {"step": step, "weights": torch.full((4,), float(step))})
    assert len(list((tmp_path / "c").glob("step*"))) == KEPT
    assert checkpoints.latest()[0]["step"] == 9
    state = tmp_path / "c" / "step000000009" / "state.pt"
    flip(state, state.stat().st_size // 2)
    found, notes = checkpoints.latest()
    assert found["step"] == 6
    assert len(notes) == 1
    assert "step000000009 cannot be read (its checksum is wrong); the one before it is taken." in notes[0]
    os.truncate(state, 10)
    assert checkpoints.latest()[0]["step"] == 6


@pytest.mark.parametrize("damage", [None, b"", b"\xff\x00", b"a "])
def test_checkpoints_of_another_training_or_a_damaged_identity_are_named_and_not_taken_up(tmp_path, damage):
    folder = tmp_path / "c"
    Checkpoints(folder, "a").save(3, {"step": 3})
    assert Checkpoints(folder, "a").latest() == ({"step": 3}, [])
    if damage is not None:
        (folder / "identity.json").write_bytes(damage)
    found, notes = Checkpoints(folder, "b" if damage is None else "a").latest()
    assert found is None
    assert notes == [
        f"The checkpoints in {folder} are of another training, or their identity.json is damaged; none is taken, and "
        "it begins anew."
    ]
    assert not folder.exists()
    assert Checkpoints(folder, "a").latest() == (None, [])


def test_checkpoints_of_other_examples_are_of_another_training(tmp_path):
    spec, model = load_settings("tutorial").task("summarization"), torch.nn.Linear(2, 2)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    corpus = LoadedCorpus({}, None, {"sha256": "the same"}, tmp_path)

    def identity(spec):
        training = TaskTraining("summarization", spec, Folders(tmp_path), corpus, make_accelerator(0))
        return training._checkpoints(training.folders.teacher, spec.finetune, model).identity

    before = identity(spec)
    assert identity(spec) == before
    for changed in (
        *(replace(spec, corpus=replace(spec.corpus, **{field: 9})) for field in ("source_tokens", "target_tokens")),
        replace(spec, evaluate=replace(spec.evaluate, validation_documents=7)),
    ):
        assert identity(changed) != before
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("[]")
    assert identity(spec) != before


def test_random_states_come_back():
    def drawn():
        return random.random(), float(np.random.rand()), torch.rand(3).tolist()

    states, first = random_states(), drawn()
    restore_random_states(states)
    assert drawn() == first


def test_bf16_trains_and_leaves_a_model_of_full_precision(tmp_path):
    types, small = set(), small_model()
    small.model.encoder.layers[0].fc1.register_forward_hook(lambda *call: types.add((small.training, call[-1].dtype)))
    before, after = train(small, TaskObjective(), tmp_path, precision="bf16", steps=40)
    assert after < before
    assert (True, torch.bfloat16) in types
    assert (True, torch.float32) not in types
    train(small, TaskObjective(), tmp_path, steps=1)  # in the same process, and in full precision
    assert (True, torch.float32) in types
    assert small.forward.__func__ is type(small).forward
    ids = torch.tensor([[5, 6, 2]])
    assert small(input_ids=ids, decoder_input_ids=ids).logits.dtype == torch.float32


def test_two_makers_of_the_same_thing_do_not_meet(tmp_path):
    target, lock = tmp_path / "teacher", tmp_path / "locks" / "teacher.lock"
    busy = pytest.raises(BusyError, match=rf"teacher is being made by another run \(process {os.getpid()}\)")
    with only_maker(target, lock), busy, only_maker(target, lock):
        pass
    with only_maker(target, lock):
        pass
