"""Steps on the student's own targets: drawn from what it computes, without a trace in anything else."""

from types import SimpleNamespace

import pandas
import pytest
import torch

from dqlib.config import Config
from dqlib.presets import get_preset
from dqlib.study.corpora.tokenizer import EOS_ID
from dqlib.study.training.batches import collate
from dqlib.study.training.checkpoints import Checkpoints, weights_hash
from dqlib.study.training.loop import Trainer
from dqlib.study.training.on_policy import OnPolicy
from dqlib.study.training.task import student_and_objective
from tests.helpers.examples import copying
from tests.helpers.training import small_model, train


def test_the_share_of_steps_is_spread_evenly():
    def chosen(share):
        return [step for step in range(1, 13) if OnPolicy(share, 6, 1).is_step(step)]

    assert chosen(0.25) == [4, 8, 12]
    assert chosen(1.0) == list(range(1, 13))
    assert chosen(0.0) == []
    assert len(chosen(0.4)) == 4


@torch.no_grad()
def test_targets_are_drawn_from_the_distribution_that_the_student_has_over_the_next_token():
    model, examples, own = small_model(), copying(5, 0), OnPolicy(0.5, 6, 1)
    targets = [example.target for example in own.targets(model, examples, 3, 0)]
    drawn = []

    def multinomial(probabilities, count, generator):
        drawn.append(probabilities)
        return original(probabilities, count, generator=generator)

    original, torch.multinomial = torch.multinomial, multinomial
    try:
        again = own.targets(model, examples, 3, 0)
    finally:
        torch.multinomial = original
    assert [example.target for example in again] == targets
    model.eval()
    for i, example in enumerate(again):
        batch = collate([example])
        wanted = model(**batch.inputs()).logits[0].softmax(dim=-1)  # all at once, without a cache
        found = torch.stack([step[i] for step in drawn[: len(example.target)]])
        assert torch.allclose(found, wanted, atol=1e-5)


def test_seed_step_and_micro_batch_decide_what_is_drawn_and_nothing_else_is_touched():
    model, examples = small_model().train(), copying(8, 0)
    before, weights = torch.get_rng_state(), weights_hash(model)

    def drawn(seed=1, step=3, number=0):
        return [example.target for example in OnPolicy(0.5, 6, seed).targets(model, examples, step, number)]

    assert drawn() == drawn()
    assert len({str(each) for each in (drawn(), drawn(seed=2), drawn(step=4), drawn(number=1))}) == 4
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert weights_hash(model) == weights
    for target in drawn():
        assert 1 <= len(target) <= 6
        assert EOS_ID not in target[:-1]
        assert len(target) == 6 or target[-1] == EOS_ID


def trained(folder, stop=None):
    """Hash of the weights and the log of a training, which may be stopped after a step."""
    student, objective = student_and_objective(small_model(), Config.parse("2-2-8 2-1"), get_preset("dqlib-on-policy"))
    parts = {"checkpoints": Checkpoints(folder / "c", "same"), "on_policy": OnPolicy(0.25, 6, 1)}
    take_step = Trainer._take_step

    def stopping(trainer):
        if trainer._step == stop:
            raise KeyboardInterrupt
        take_step(trainer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_take_step", stopping)
        loop = {"steps": 12, "learning_rate": 1e-3, "batch_tokens": 200, "checkpoint_steps": 5}
        train(student, objective, folder, count=60, parts=parts, **loop)
    return weights_hash(student), (folder / "log.csv").read_text()


def test_a_training_that_was_stopped_ends_with_the_same_bits(tmp_path):
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    wanted = trained(unbroken)
    with pytest.raises(KeyboardInterrupt):
        trained(broken, stop=9)  # after an on-policy step that is in no checkpoint
    assert trained(broken) == wanted


def test_there_is_no_task_loss_on_own_targets_and_means_are_over_the_steps_that_have_a_term(tmp_path, monkeypatch):
    trained(tmp_path)
    log = pandas.read_csv(tmp_path / "log.csv").set_index("step")
    assert log.task.isna().tolist() == [step % 4 == 0 for step in range(1, 13)]
    assert log.logits.notna().all()
    monkeypatch.setattr("dqlib.study.training.loop.LOG_ROWS", 3)
    trained(tmp_path / "few")
    few = pandas.read_csv(tmp_path / "few" / "log.csv").set_index("step")
    assert few.task[4] == pytest.approx(log.task.loc[1:3].mean(), rel=1e-5)
    assert few.logits[4] == pytest.approx(log.logits.loc[1:4].mean(), rel=1e-4)


def test_each_process_draws_its_own_micro_batches_and_divides_by_the_tokens_of_all(tmp_path):
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(process_index=1, num_processes=2, device="cpu", autocast=torch.no_grad),
        on_policy=OnPolicy(1.0, 6, 1), model=small_model(), _step=2,
    )  # fmt: skip
    micro_batches = [copying(4, seed) for seed in range(4)]
    whole = [trainer.on_policy.targets(trainer.model, each, 2, number) for number, each in enumerate(micro_batches)]
    counts = sum(len(example.target) for batch in whole for example in batch)
    others = sum(len(example.target) for batch in whole[0::2] for example in batch)
    trainer.accelerator.reduce = lambda tensor, _: tensor + torch.tensor([0.0, others])
    share, (_, targets) = Trainer._own_targets(trainer, micro_batches[1::2])
    assert share == whole[1::2]
    assert targets == counts
