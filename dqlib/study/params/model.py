"""The parameters of a teacher's shape."""

from __future__ import annotations

from dataclasses import dataclass

from dqlib.errors import InputError, check_choice, check_fields
from dqlib.study.params.kinds import KINDS
from dqlib.study.params.schema import LONGEST, below_one, bounded
from dqlib.study.params.tasks import TASKS

#: Parameters of a model's shape.
SIZES = ("d_model", "encoder_layers", "decoder_layers", "heads", "ffn_dim", "max_positions")
#: Architectures that a teacher may have, as a ``config.json`` names them.
MODEL_TYPES = tuple(name for kind in KINDS.values() for name in kind.architectures)


@dataclass(frozen=True)
class Model:
    """Shape of the teacher: that of a new model of the task's kind, or of the ``pretrained`` model to start from.

    A model that is new here is an mBART (pre-LayerNorm), a BERT (``decoder_layers: 0``) or a GPT-2 (no encoder layers).

    ``pretrained`` is a folder, a name on the hub (at ``revision``), or another task of the file: then the teacher
    starts from that task's model after pre-training, with its tokenizer. Shape, ``architecture`` and the vocabulary
    of what it names need not be given, and must be the same if they are.
    """

    d_model: int
    encoder_layers: int
    decoder_layers: int
    heads: int
    ffn_dim: int
    max_positions: int
    dropout: float = 0.0
    init_std: float = 0.02
    pretrained: str | None = None
    revision: str | None = None
    architecture: str = "bart"

    def __post_init__(self) -> None:
        check_choice("architecture", self.architecture, MODEL_TYPES)
        check_fields(self, "init_std", lambda number: number > 0, "a positive number")
        widths = dict.fromkeys(("d_model", "heads", "ffn_dim"), (1, 10**6))
        bounded(self, **widths, encoder_layers=(0, 1000), decoder_layers=(0, 1000), max_positions=(1, LONGEST))
        if self.d_model % self.heads and self.architecture != "t5":  # whose heads have a width of their own
            raise InputError("heads", self.heads, f"a divisor of d_model, {self.d_model}")
        below_one(self, "dropout")

    @property
    def base_task(self) -> str | None:
        """The task whose pre-trained model this one starts from, if it is another task's."""
        return self.pretrained if self.pretrained in TASKS else None

    @property
    def checkpoint(self) -> str | None:
        """The folder, or the name on the hub, of the model that this one starts from, if others have made it."""
        return None if self.base_task else self.pretrained
