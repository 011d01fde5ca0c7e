"""Transformers' own trainers distil: the preset's loss over a whole step, and checkpoints that are students."""

import pytest
import torch
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from dqlib import Config, DistillationMixin, distillation_terms, load_student, make_student, supervision_maps
from dqlib.architectures import layer_weights
from dqlib.errors import InputError
from dqlib.fake_quantize import LEARNED
from dqlib.losses import cross_entropy
from dqlib.presets import get_preset
from dqlib.storage.manifest import opened, verify
from dqlib.storage.reading import read_tokenizer
from tests.helpers.models import CASES, WANTED, data_of, make_teacher, student_of
from tests.helpers.packed import logits


class Distiller(DistillationMixin, Seq2SeqTrainer):
    pass


class PlainDistiller(DistillationMixin, Trainer):
    pass


def rows_of(name):
    """Examples as a data set has them, with labels as each architecture of transformers wants them."""
    data = data_of(name)
    inputs = {key: data.inputs[key] for key in ("input_ids", "attention_mask")}
    if name == "mbart":  # whose targets transformers starts from their last token
        inputs["decoder_input_ids"] = data.inputs["decoder_input_ids"]
    labels = data.labels
    if name == "gpt2":
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    return [{key: value[i] for key, value in inputs.items()} | {"labels": labels[i]} for i in range(3)] * 2


def trainer_of(student, folder, teacher, rows, kind=Distiller, preset="dqlib", **options):
    arguments = {"max_steps": 3, "per_device_train_batch_size": 6, "learning_rate": 1e-3, "logging_steps": 1}
    arguments |= {"report_to": [], "use_cpu": True, "disable_tqdm": True} | options
    arguments = (Seq2SeqTrainingArguments if kind is Distiller else TrainingArguments)(str(folder), **arguments)
    return kind(student, arguments, teacher=teacher, preset=preset, train_dataset=rows, eval_dataset=rows)


def logged(trainer, field):
    return [each[field] for each in trainer.state.log_history if field in each]


@pytest.mark.parametrize(
    ("name", "preset"),
    [*((name, "dqlib") for name in ("mbart", "marian", "t5", "bert", "bert-classifier", "gpt2")),
     ("bart", "quantgpt"), ("t5", "xtc")],
)  # fmt: skip
def test_the_loss_is_the_preset_s_however_a_step_is_split(name, preset, tmp_path):
    teacher, data = make_teacher(name), data_of(name)
    config, loss = Config.parse("2-2-8 " + CASES[name].layers), get_preset(preset).loss
    student = student_of(teacher, name, preset=preset)
    with torch.no_grad():
        outputs, aim = student(**data.inputs, **WANTED), teacher(**data.inputs, **WANTED)
        maps = supervision_maps(config, teacher)
        plain = cross_entropy(outputs.logits, data.labels)
        if loss.attention_maps == "probabilities":  # of eager attention, as here
            terms = distillation_terms(outputs, aim, data.labels, data.source_mask, maps, loss)
            expected = sum(loss.of(term) * value for term, value in terms.items())
    found = []
    for split in (1, 3):
        again = student_of(make_teacher(name), name, preset=preset)
        options = {"per_device_train_batch_size": 6 // split, "gradient_accumulation_steps": split}
        options |= {"optim": "sgd", "max_grad_norm": 0, "eval_strategy": "steps", "eval_steps": 3}
        teacher.set_attn_implementation("sdpa")  # which gives no maps, and is switched
        trainer = trainer_of(again, tmp_path, teacher, rows_of(name), preset=preset, **options)
        if not loss.momentum:  # whose memory is filled by each part of a step
            trainer.train()
            found.append(logged(trainer, "loss") + logged(trainer, "eval_loss"))
    if found and loss.attention_maps == "probabilities":
        assert found[0][0] == pytest.approx(float(expected), rel=1e-4)
    for each in found[1:]:
        assert each == pytest.approx(found[0], rel=1e-4)
    trainer = trainer_of(student, tmp_path, teacher, rows_of(name), preset=preset)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(plain), rel=1e-3)


def test_plain_means_of_micro_batches_are_averaged(tmp_path):
    teacher, preset = make_teacher("bart"), "dq-bart-faithful"
    found = []
    for split in (1, 2):
        rows = rows_of("bart")[:1] * 2  # of one length, so that a mean of means is the mean
        student = student_of(teacher, "bart", preset=preset)
        options = {"per_device_train_batch_size": 2 // split, "gradient_accumulation_steps": split, "max_steps": 1}
        trainer = trainer_of(student, tmp_path, teacher, rows, preset=preset, **options)
        trainer.train()
        found.append(logged(trainer, "loss")[0])
    # but for the term that sums over a batch, as DQ-BART's code has it
    assert found[1] < found[0]


@pytest.mark.parametrize(("name", "kind"), [("bart", Distiller), ("gpt2", PlainDistiller)])
def test_checkpoints_are_students_the_best_is_kept_and_training_goes_on(name, kind, tmp_path):
    teacher = make_teacher(name)
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}
    options |= {"learning_rate": 0.2, "lr_scheduler_type": "constant", "optim": "sgd"}
    student = student_of(teacher, name)
    trainer = trainer_of(student, tmp_path / "whole", teacher, rows_of(name), kind, **options)
    trainer.train()
    losses, best = logged(trainer, "eval_loss"), trainer.state.best_model_checkpoint
    assert best.endswith(f"checkpoint-{1 + losses.index(min(losses))}")
    trainer.save_model(str(tmp_path / "saved"))
    assert torch.equal(logits(load_student(best), name), logits(student, name))
    assert torch.equal(logits(load_student(tmp_path / "saved"), name), logits(student, name))

    again = student_of(teacher, name)
    del options["load_best_model_at_end"]
    resumed = trainer_of(again, tmp_path / "again", teacher, rows_of(name), kind, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-1"))
    last = load_student(tmp_path / "whole" / "checkpoint-3")
    assert torch.equal(logits(again, name), logits(last, name))
    assert logged(resumed, "eval_loss") == losses


def test_trained_scales_have_the_recipe_s_rate_and_no_decay(tmp_path):
    teacher = make_teacher("bart")
    student = student_of(teacher, "bart")
    trainer = trainer_of(student, tmp_path, teacher, rows_of("bart"), weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    scales = {id(value) for name, value in student.named_parameters() if name.endswith(LEARNED)}
    assert scales == {id(value) for value in groups[-1]["params"]}
    assert groups[-1]["weight_decay"] == 0
    assert groups[-1]["lr"] == pytest.approx(1e-3 * trainer.recipe.scale_learning_rate)
    assert sum(len(group["params"]) for group in groups) == len(list(student.parameters()))
    assert trainer.recipe == get_preset("dqlib").recipe_for(
        student.dqlib_config, layer_weights(student) / layer_weights(teacher)
    )


def test_a_collator_and_generated_predictions_work(tmp_path):
    from dqlib.study.corpora.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["return the sum of all numbers"] * 4, 60, 24)
    teacher = make_teacher("bart")
    student = make_student(teacher, Config.parse("2-2-8 2-1"))
    rows = [{"input_ids": [5, 6, 7, 2][i:], "attention_mask": [1] * (4 - i), "labels": [8, 9, 2][i:]} for i in range(2)]
    options = {"max_steps": 1, "report_to": [], "use_cpu": True, "disable_tqdm": True, "predict_with_generate": True}
    arguments, collator = Seq2SeqTrainingArguments(str(tmp_path), **options), DataCollatorForSeq2Seq(tokenizer, student)
    trainer = Distiller(student, arguments, teacher=teacher, train_dataset=rows, data_collator=collator)
    trainer.train()
    assert len(trainer.predict(rows, max_new_tokens=4).predictions) == 2
    saved = tmp_path / "checkpoint-1"  # with the collator's tokenizer, which is the student's from then on
    assert verify(saved) == []
    assert {"tokenizer.json", "tokenizer_config.json"} < opened(saved, "student").files.keys()
    assert read_tokenizer(saved).get_vocab() == tokenizer.get_vocab()


def test_what_is_wrong_is_told_before_anything_is_trained(tmp_path):
    teacher = make_teacher("bart")
    student, rows = student_of(teacher, "bart"), rows_of("bart")
    for message, wrong in {
        r"^model: 'BartForConditionalGeneration' .* make_student": {"student": teacher},
        r"^preset: 'xtc' .* dqlib, which the student was made with": {"preset": "xtc"},
        r"^teacher: 't5' .* bart": {"teacher": make_teacher("t5")},
        r"^label_smoothing_factor: 0\.1": {"label_smoothing_factor": 0.1},
    }.items():
        call = {"student": student, "folder": tmp_path, "teacher": teacher, "rows": rows} | wrong
        with pytest.raises(InputError, match=message):
            trainer_of(**call)
    without = [{"input_ids": row["input_ids"]} for row in rows]
    with pytest.raises(InputError, match=r"^labels: None .* data collator"):
        trainer_of(student, tmp_path, teacher, without).train()
