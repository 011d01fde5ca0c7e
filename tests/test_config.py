import pytest

from dqlib.config import Configuration
from dqlib.errors import InputError


@pytest.mark.parametrize("text", ["2-2-8 6-3", "1-1-8 12-1", "32-32-32 6-3", "8-4-8 2-2"])
def test_a_configuration_prints_back_as_it_was_read(text):
    assert str(Configuration.parse(text)) == text
    assert Configuration.parse(Configuration.parse(text).slug) == Configuration.parse(text)


@pytest.mark.parametrize("text", ["2-2 6-3", "2-2-8", "2-2-8 6", "2-2-8  6-3x", "a-2-8 6-3", "", None, "2-2-8-6-3"])
def test_a_malformed_configuration_is_refused_with_the_form(text):
    with pytest.raises(InputError, match=r"config: .* 'W-E-A e-d'"):
        Configuration.parse(text)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("0-2-8 6-3", "w_bits"),
        ("2-5-8 6-3", "e_bits"),
        ("2-2-7 6-3", "a_bits"),
        ("2-2-8 0-3", "encoder_layers"),
        ("2-2-8 6-0", "decoder_layers"),
    ],
)
def test_a_number_out_of_range_is_named(text, field):
    with pytest.raises(InputError, match=field) as caught:
        Configuration.parse(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_layers_than_the_teacher_are_refused():
    with pytest.raises(InputError, match=r"decoder_layers: 4 .* at most 3"):
        Configuration.parse("2-2-8 2-4").check_fits(6, 3)
