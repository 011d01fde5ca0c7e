"""What the configuration of a checkpoint says of its shape."""

from dqlib.architectures import architecture_of
from dqlib.study.params.checkpoint import shape_of
from dqlib.study.params.model import SIZES
from dqlib.study.params.schema import LONGEST
from tests.helpers.models import CASES, EVERY, VOCABULARY


@EVERY
def test_a_configuration_says_every_size(name):
    config = CASES[name].config
    shape = shape_of(config.to_dict())
    assert set(shape) == {*SIZES, "architecture", "vocab_size"}
    names = architecture_of(config)
    assert (shape["encoder_layers"], shape["decoder_layers"]) == names.depths(config)
    assert (shape["heads"], shape["ffn_dim"]) == names.widths(config)
    assert (shape["d_model"], shape["vocab_size"]) == (config.hidden_size, VOCABULARY)
    assert shape["max_positions"] == (getattr(config, names.position_field) if names.position_field else LONGEST)
