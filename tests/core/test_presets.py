import copy
import pickle
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace

import pytest

from dqlib.architectures import ARCHITECTURES
from dqlib.config import Config
from dqlib.errors import InputError
from dqlib.loss_weights import LossWeights
from dqlib.presets import PRESETS, VARIANTS, Preset, Recipe, get_preset

ALL = PRESETS | VARIANTS


def test_a_preset_is_found_by_the_name_it_bears_and_copied_with_the_student_that_bears_it():
    assert not set(PRESETS) & set(VARIANTS)
    for name, preset in ALL.items():
        assert preset.name == name
        assert get_preset(name) is get_preset(preset) is preset
        # A read-only view of a dictionary, which can be neither copied nor pickled, would forbid both to a student.
        assert copy.deepcopy(preset) == preset
        assert pickle.loads(pickle.dumps(preset)) == preset


def test_a_preset_cannot_be_changed_by_one_who_uses_it():
    # A study trains many students in one process from the same presets.
    for preset in ALL.values():
        for part in (preset, preset.weights, preset.activations, preset.loss, preset.recipe, *preset.by_bits.values()):
            assert is_dataclass(part)
            for field in fields(part):
                with pytest.raises(FrozenInstanceError):
                    setattr(part, field.name, None)
    assert Preset("mine").by_bits is not Preset("other").by_bits


def test_an_unknown_preset_is_refused_with_those_that_there_are():
    for name in ("dqbart", "", "DQLIB", None):
        with pytest.raises(InputError, match=r"^preset: .* must be one of ") as caught:
            get_preset(name)
        assert all(known in str(caught.value) for known in ALL)


def test_a_recipe_out_of_bounds_is_named_and_one_at_its_bounds_is_allowed():
    for field, values in {
        "learning_rate": (0.0, -1.0, float("nan")), "scale_learning_rate": (0.0,), "warmup": (1.0, -0.1),
        "progressive": (1.0, -0.5), "schedule": ("step",), "layerwise": (1.0, -0.1), "layerwise_rate": (0.0,),
        "layer_losses_until": (0.0, 1.1), "average": (1.0,), "weight_decay": (-0.1,), "teacher_targets": (1.1,),
        "labelled_text": (-0.1,), "on_policy": (float("nan"),),
    }.items():  # fmt: skip
        for value in values:
            with pytest.raises(InputError, match=rf"^{field}: "):
                Recipe(**{field: value})
    for schedule in ("linear", "cosine", "constant_with_warmup"):
        Recipe(learning_rate=1e-9, schedule=schedule, warmup=0.0, scale_learning_rate=1e9, progressive=0.999)


def test_parts_of_a_training_are_parts_of_its_steps():
    assert [Recipe(layerwise=0.2).layerwise_steps(steps) for steps in (250, 10, 2, 1)] == [50, 2, 0, 0]
    assert Recipe(layerwise=0.99).layerwise_steps(10) == 9  # one is left
    assert Recipe().layerwise_steps(10) == 0
    assert [Recipe(average=0.2).averaged_steps(steps) for steps in (250, 10, 2)] == [50, 2, 0]
    assert Recipe(average=0.9, layerwise=0.4).averaged_steps(10) == 6  # none of the layerwise ones
    fading = Recipe(layer_losses_until=0.5)
    assert [fading.layer_losses(step, 8) for step in range(1, 9)] == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0]
    assert {Recipe().layer_losses(step, 8) for step in range(1, 9)} == {1.0}
    recipes = Recipe(teacher_targets=1.0), Recipe(labelled_text=0.1), Recipe(on_policy=0.5)
    assert [recipe.pseudo_labels for recipe in recipes] == [True, True, False]


def test_a_recipe_that_its_losses_give_nothing_to_do_is_refused():
    alone, no_aim = VARIANTS["quantization-only"], LossWeights(task=0.0, logits=0.0)
    no_teacher = "0 where no loss compares with a teacher"
    for preset, changes, message in (
        (alone, {"by_bits": {2: Recipe(layerwise=0.2)}}, rf"^layerwise: 0.2 .* must be {no_teacher}"),
        (alone, {"recipe": Recipe(on_policy=0.5)}, rf"^on_policy: 0\.5 .* {no_teacher}"),
        (PRESETS["dqlib"], {"loss": no_aim, "recipe": Recipe(layer_losses_until=0.5)},
         r"^layer_losses_until: 0.5 .* must be 1 where task and logits weigh 0"),
        (Preset("mine"), {"rate_exponent": -1}, r"^rate_exponent: -1 .* at least 0"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            replace(preset, **changes)


def test_a_recipe_depends_on_the_bits_of_weights_and_on_how_much_of_its_layers_a_student_keeps():
    one, config = Recipe(warmup=0.5), Config.parse("2-2-8 2-1")
    preset = Preset("mine", recipe=Recipe(learning_rate=0.5), rate_exponent=2.0, by_bits={1: one})
    assert preset.recipe_for(Config.parse("1-2-8 2-1")) == one
    assert preset.recipe_for(Config.parse("2-1-8 2-1")) == preset.recipe_for(config) == preset.recipe
    assert [preset.recipe_for(config, kept).learning_rate for kept in (1.0, 0.5, 0.25)] == [0.5, 2.0, 8.0]


def test_a_preset_serves_known_architectures_and_says_which_it_does_not():
    for name, preset in ALL.items():
        served = ARCHITECTURES if preset.architectures is None else preset.architectures
        assert set(served) <= set(ARCHITECTURES)
        for architecture in ARCHITECTURES:
            if architecture in served:
                preset.check_fits(Config.parse("2-2-8 2-1"), architecture)
            else:
                with pytest.raises(InputError, match=rf"^preset: '{name}' .* serves the architecture '{architecture}'"):
                    preset.check_fits(Config.parse("2-2-8 2-1"), architecture)


def test_a_preset_has_a_recipe_for_all_its_bits_and_bits_without_a_grid_are_refused_by_name():
    for name, preset in ALL.items():
        assert set(preset.by_bits) <= set(preset.weight_bits)
        for bits in (*range(1, 9), 32):
            for text, field in ((f"{bits}-32-8 2-1", "w_bits"), (f"32-{bits}-8 2-1", "e_bits")):
                if bits in preset.weight_bits:
                    preset.check_fits(Config.parse(text), "bart")
                    assert isinstance(preset.recipe_for(Config.parse(text)), Recipe)
                else:
                    with pytest.raises(InputError, match=rf"^{field} of '{text}': {bits} .* with the preset '{name}'"):
                        preset.check_fits(Config.parse(text), "bart")
