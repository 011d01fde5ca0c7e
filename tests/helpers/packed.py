"""Students as training leaves them, and what a folder of one holds."""

import torch

from dqlib.student import quantized_modules, round_for_storage
from tests.helpers.models import data_of, make_teacher, student_of


def trained(name="bart", preset="dqlib-ternary", bits="2-2-8"):
    """A student whose trained scales and buffers are what training leaves, rounded as before an evaluation."""
    student = student_of(make_teacher(name), name, bits, preset).eval()
    with torch.no_grad():
        for module in quantized_modules(student).values():
            if module.weight_quantizer.learned is not None:
                module.weight_quantizer.learned.mul_(0.9)
        for buffer in student.buffers():
            if buffer.is_floating_point() and name != "mbart":  # whose are zeros, as in most models
                buffer.normal_()
    round_for_storage(student)
    return student


def logits(model, name="bart"):
    with torch.no_grad():
        return model(**data_of(name).inputs).logits


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
