import pytest

from dqlib.config import Config
from dqlib.errors import InputError


def refused(text, message):
    with pytest.raises(InputError, match=message) as caught:
        Config.parse(text)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_configuration_prints_back_as_it_was_read():
    for text in ("2-2-8 6-3", "1-1-8 12-1", "32-32-32 6-3", "8-4-4 2-2", "5-7-32 2-0", "3-6-8 0-12", "2-2-8 6-3 h8",
                 "auto:0.45MB 6-3 h8 f2048", "2-2-8 6-3 h8 f2048", "2-2-8 6-3 f10", "32-32-32 0-1 h1 f1"):  # fmt: skip
        assert str(Config.parse(text)) == text
        assert Config.parse(Config.parse(text).slug) == Config.parse(text)
    assert Config.parse("2-2-8 2-4 h2 f256").slug == "2-2-8_2-4_h2_f256"  # the name of a folder
    assert not Config.parse("2-2-8 2-4").narrow
    for bits in (*range(1, 9), 32):
        config = Config.parse(f"{bits}-{bits}-8 6-3")
        assert (config.w_bits, config.e_bits) == (bits, bits)


def test_a_budget_prints_back_as_it_was_read_and_has_one_form_in_every_unit():
    for text in ("auto:0.45MB", "auto:0.45MB 2-4", "auto:120MB 0-12", "auto:0.000001MB"):
        config = Config.parse(text)
        assert str(config) == text
        assert Config.parse(config.slug) == config
        assert ":" not in config.slug
        assert config.is_open
        assert config.all_layers == (" " not in text)
        assert config.a_bits == 8
    assert Config.parse("auto:450kB 2-4") == Config.parse("auto:0.450MB_2-4")
    assert Config.parse("auto:450kB").budget == 450_000


def test_what_is_malformed_is_refused_with_the_form():
    for text in ("auto", "auto:", "auto:0.45", "auto:0.45 MB", "auto:-1MB", "auto:0.45MB 2", "auto:1GB"):
        refused(text, r"config: .* 'auto:0.45MB e-d'")
    for text in ("2-2 6-3", "2-2-8", "2-2-8 6", "2-2-8  6-3x", "a-2-8 6-3", "", None, "2-2-8-6-3", "2-2-8 6-3 f8 h8",
                 "2-2-8 6-3 h", "2-2-8 6-3 8", "2-2-8 h8 6-3", "2-2-8 6-3 h8f8", "auto:1MB h8"):  # fmt: skip
        refused(text, r"config: .* 'W-E-A e-d'")


def test_a_number_out_of_range_is_named():
    for field, texts in {
        "w_bits": ("0-2-8 6-3", "9-2-8 6-3", "16-2-8 6-3"), "e_bits": ("2-0-8 6-3", "2-9-8 6-3"),
        "a_bits": ("2-2-7 6-3", "2-2-2 6-3"), "encoder_layers": ("2-2-8 0-0",), "heads": ("2-2-8 6-3 h0",),
        "ffn": ("2-2-8 6-3 f0",),
    }.items():  # fmt: skip
        for text in texts:
            refused(text, field)
    for fields in ((2, 2, 8, -1, 3), (2, 2, 8, 6, -1)):
        with pytest.raises(InputError, match=r"coder_layers: -1 .* at least 0"):
            Config(*fields)


def test_more_layers_heads_or_neurons_than_the_teacher_are_refused():
    with pytest.raises(InputError, match=r"decoder_layers: 4 .* at most 3"):
        Config.parse("2-2-8 2-4").check_fits(6, 3, 8, 2048)
    config = Config.parse("2-2-8 2-2 h8 f2048")
    config.check_fits(2, 2, 8, 2048)
    with pytest.raises(InputError, match=r"^config '2-2-8 2-2 h8 f2048', heads: 8 .* at most 4"):
        config.check_fits(2, 2, 4, 2048)
    with pytest.raises(InputError, match=r"ffn: 2048 .* at most 1024"):
        config.check_fits(2, 2, 8, 1024)
