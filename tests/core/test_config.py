import pytest

from dqlib.config import Config
from dqlib.errors import InputError


@pytest.mark.parametrize("text", ["2-2-8 6-3", "1-1-8 12-1", "32-32-32 6-3", "8-4-4 2-2", "5-7-32 2-0", "3-6-8 0-12"])
def test_a_configuration_prints_back_as_it_was_read(text):
    assert str(Config.parse(text)) == text
    assert Config.parse(Config.parse(text).slug) == Config.parse(text)


@pytest.mark.parametrize("text", ["2-2 6-3", "2-2-8", "2-2-8 6", "2-2-8  6-3x", "a-2-8 6-3", "", None, "2-2-8-6-3"])
def test_a_malformed_configuration_is_refused_with_the_form(text):
    with pytest.raises(InputError, match=r"config: .* 'W-E-A e-d'"):
        Config.parse(text)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("0-2-8 6-3", "w_bits"),
        ("9-2-8 6-3", "w_bits"),
        ("16-2-8 6-3", "w_bits"),
        ("2-0-8 6-3", "e_bits"),
        ("2-9-8 6-3", "e_bits"),
        ("2-2-7 6-3", "a_bits"),
        ("2-2-2 6-3", "a_bits"),
        ("2-2-8 0-0", "encoder_layers"),
    ],
)
def test_a_number_out_of_range_is_named(text, field):
    with pytest.raises(InputError, match=field) as caught:
        Config.parse(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bits", [*range(1, 9), 32])
def test_every_number_of_bits_up_to_eight_is_one_of_weights(bits):
    c = Config.parse(f"{bits}-{bits}-8 6-3")
    assert (c.w_bits, c.e_bits) == (bits, bits)


@pytest.mark.parametrize("fields", [(2, 2, 8, -1, 3), (2, 2, 8, 6, -1)])
def test_a_negative_number_of_layers_is_refused(fields):
    with pytest.raises(InputError, match=r"coder_layers: -1 .* at least 0"):
        Config(*fields)


def test_more_layers_than_the_teacher_are_refused():
    with pytest.raises(InputError, match=r"decoder_layers: 4 .* at most 3"):
        Config.parse("2-2-8 2-4").check_fits(6, 3)
