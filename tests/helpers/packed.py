"""Students as training leaves them, and what a folder of one holds."""

import torch

from dqlib.storage.account import account
from dqlib.storage.footprint import size_bytes
from dqlib.storage.manifest import WEIGHTS, opened
from dqlib.storage.packed import load_packed, save_packed
from dqlib.storage.students import load_student, save_student
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


def kept(student, name, folder):
    """A rounded student that was saved, and one that was packed, once both are found to be the student bit for bit.

    The packed one has the bytes that are counted, and whichever is packed again gives the same weights.
    """
    save_student(student, folder / "student")
    save_packed(student, folder / "packed")
    saved, packed = load_student(folder / "student"), load_packed(folder / "packed")
    for loaded in (saved, packed):
        assert type(loaded) is type(student)
        assert (loaded.training, loaded.dqlib_config) == (False, student.dqlib_config)
        assert torch.equal(logits(loaded, name), logits(student, name))
        assert size_bytes(loaded) == size_bytes(student)
    for field in ("name", "weights", "activations", "quantize_head", "position_bits"):
        assert getattr(saved.dqlib_preset, field) == getattr(student.dqlib_preset, field)
    of_folder, of_student = (account(each) for each in (folder / "packed", student))
    assert of_folder.total.size_bytes - of_folder.parts["overhead"].size_bytes == size_bytes(student)
    assert of_student.total.size_bytes == size_bytes(student)
    save_packed(packed, folder / "twice")
    assert files_of(folder / "twice") == files_of(folder / "packed")
    save_packed(saved, folder / "again")
    assert (folder / "again" / WEIGHTS).read_bytes() == (folder / "packed" / WEIGHTS).read_bytes()
    assert opened(folder / "again", "packed").parameters == opened(folder / "packed", "packed").parameters
    return saved, packed


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
