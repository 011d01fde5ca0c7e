"""What the documentation tells to type runs as it is printed."""

import itertools
import re

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

from dqlib.footprint import fp32_size_bytes
from dqlib.manifest import packed_size_bytes
from dqlib.student import load_student
from dqlib.study.paths import project_root

from .conftest import TINY

WORDS = ["return", "the", "sum", "of", "a", "list", "numbers", "text", "file", "name"]
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


def save_checkpoint(folder):
    """A random BART of six and six layers with a tokenizer of words."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*SPECIAL, *WORDS))}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=30, **names).save_pretrained(folder)
    torch.manual_seed(0)
    model = BartForConditionalGeneration(BartConfig(**TINY, encoder_layers=6, decoder_layers=6))
    model.save_pretrained(folder)
    return model


def test_a_checkpoint_becomes_a_small_file_by_the_code_of_the_page(tmp_path, monkeypatch):
    teacher = save_checkpoint(tmp_path / "checkpoint")
    page = (project_root() / "docs" / "your-model.md").read_text()
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL))
    pairs = [(["sum a list", "name of the text file"], ["return the sum", "file name"])]
    losses: list[float] = []
    names = {
        "CHECKPOINT": "checkpoint", "CONFIGURATION": "2-2-8 6-3", "LEARNING_RATE": 3e-3, "STEPS": 12,
        "PAIRS": itertools.cycle(pairs), "losses": losses,
    }  # fmt: skip
    exec(code.replace("    loss.backward()\n", "    losses.append(float(loss.detach()))\n    loss.backward()\n"), names)
    assert losses[-1] < 0.8 * losses[0]
    ids = torch.tensor([[0, 4, 5, 6, 2]])
    with torch.no_grad():
        ours, stored, trained = (
            model(input_ids=ids, decoder_input_ids=ids).logits
            for model in (names["student"], names["model"], load_student("student"))
        )
    assert torch.equal(ours, stored)
    assert torch.equal(ours, trained)
    assert packed_size_bytes("small") < fp32_size_bytes(teacher) / 4
