"""What a GPU computes is what a CPU computes. ``DQLIB_GPU_TESTS_ON=cpu`` runs the same tests there, to try them."""

import os
from itertools import product

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import MBartConfig, MBartForConditionalGeneration

from dqlib.config import Config
from dqlib.presets import get_preset
from dqlib.quantizers import fake_quantize_activation, initial_learned, quantize
from dqlib.schemes import SCHEMES
from dqlib.student import make_student, set_attention_maps, supervision_maps
from dqlib.study.params import settings as S
from dqlib.study.training.batches import collate, steps
from dqlib.study.training.loop import Trainer, make_accelerator, token_counts
from dqlib.study.training.objectives import DistillationObjective
from tests.helpers.examples import copying
from tests.helpers.models import TINY

DEVICE = os.environ.get("DQLIB_GPU_TESTS_ON", "cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture(autouse=True)
def _products_in_full_precision():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def pair(config="2-2-8 2-1", preset="dqlib"):
    torch.manual_seed(0)
    teacher = MBartForConditionalGeneration(MBartConfig(**TINY, encoder_layers=2, decoder_layers=2)).eval()
    return teacher, make_student(teacher, Config.parse(config), preset)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=str)
def test_weight_quantizers_give_the_codes_of_the_cpu(scheme):
    torch.manual_seed(1)
    weight = torch.randn(64, 96)
    for bits, granularity in product(scheme.bits, ("per_tensor", "per_row", "per_group_8")):
        learned = initial_learned(weight, bits, granularity, scheme) if scheme.learned else None
        ours = quantize(weight, bits, granularity, scheme, learned)
        learned = None if learned is None else learned.to(DEVICE)
        theirs = quantize(weight.to(DEVICE), bits, granularity, scheme, learned)
        assert theirs.codes.device.type == DEVICE
        torch.testing.assert_close(theirs.scale.cpu(), ours.scale, rtol=1e-6, atol=0)
        different = (theirs.codes.cpu().int() - ours.codes.int()).abs()
        step = 2 if bits == 1 or scheme.odd else 1  # from one code to the next; ternary ones may skip zero
        assert different.max() <= (2 if str(scheme) == "ternary" else step)
        assert different.count_nonzero() <= 3  # a sum in another order may move a weight that is on a border


def test_activations_are_rounded_as_on_the_cpu():
    torch.manual_seed(1)
    for unsigned, per_tensor, bits in product((False, True), (False, True), (4, 8)):
        x = torch.rand(4, 9, 32) if unsigned else torch.randn(4, 9, 32)
        ours = fake_quantize_activation(x, bits, unsigned, per_tensor)
        theirs = fake_quantize_activation(x.to(DEVICE), bits, unsigned, per_tensor).cpu()
        assert (ours - theirs).abs().gt(1e-6).sum() <= 3


@pytest.mark.parametrize("kind", ["probabilities", "scores"])
def test_attention_maps_are_those_of_the_cpu(kind):
    teacher, student = pair("8-8-32 2-1")
    batch = collate(copying(6, 2))
    for model in (teacher.set_attn_implementation("dqlib") or teacher, student.eval()):
        set_attention_maps(model, kind)
        with torch.no_grad():
            ours = model(**batch.inputs(), output_attentions=True)
            theirs = model.to(DEVICE)(**batch.to(torch.device(DEVICE)).inputs(), output_attentions=True)
        model.cpu()
        for name in ("encoder_attentions", "decoder_attentions", "cross_attentions"):
            for one, other in zip(getattr(ours, name), getattr(theirs, name), strict=True):
                torch.testing.assert_close(other.cpu(), one, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("preset", ["dqlib", "quantgpt", "dq-bart-faithful"])
def test_losses_and_gradients_of_a_step_are_those_of_the_cpu(preset):
    weights, examples = get_preset(preset).loss, copying(8, 2)

    def step(device):
        # in full precision: on a grid, a last bit that differs moves an activation to the next code
        teacher, student = pair("32-32-32 2-1", preset)
        for model in (teacher, student):
            set_attention_maps(model.to(device), weights.attention_maps)
        objective = DistillationObjective(teacher, supervision_maps(student.dqlib_config, teacher), weights)
        terms = objective.terms(student, collate(examples).to(torch.device(device)), token_counts([examples]))
        sum(objective.weight(name) * value for name, value in terms.items()).backward()
        gradients = {name: p.grad.cpu() for name, p in student.named_parameters() if p.grad is not None}
        return {name: value.item() for name, value in terms.items()}, gradients

    (ours, our_gradients), (theirs, their_gradients) = step("cpu"), step(DEVICE)
    assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-6)
    for name, value in our_gradients.items():
        torch.testing.assert_close(
            their_gradients[name], value, rtol=1e-2, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture
def _a_new_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)  # a process has but one, of one precision and device
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.usefixtures("_a_new_accelerator")
def test_steps_of_the_training_loop_are_finite(precision, tmp_path):
    teacher, student = pair()
    accelerator = make_accelerator(0, precision)
    assert accelerator.device.type == DEVICE
    training = S.Training(steps=4, learning_rate=1e-3, batch_tokens=200, validations=1, precision=precision)
    maps = supervision_maps(student.dqlib_config, teacher)
    objective = DistillationObjective(teacher.to(accelerator.device), maps, get_preset("dqlib").loss)
    data, held_out = steps(copying(60, 0), training), copying(11, 1)
    Trainer(student, objective, data, held_out, training, accelerator, tmp_path / "log.csv", "t").train()
    assert all(torch.isfinite(parameter).all() for parameter in student.parameters())
    assert (tmp_path / "log.csv").read_text().count("\n") > 1
