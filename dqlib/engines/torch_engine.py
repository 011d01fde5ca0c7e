"""The engine that every model has: PyTorch, with what a student rounds rounded as it was trained."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from dqlib.engines.base import ASKED, Decoding, Engine, field_of
from dqlib.engines.classifier import Classifier, Reading
from dqlib.errors import InputError
from dqlib.generation import OneSourceCache
from dqlib.storage.manifest import folder_kind
from dqlib.storage.packed import load_packed
from dqlib.storage.reading import CONFIG, read_model, read_tokenizer
from dqlib.storage.students import load_student


class TorchEngine(Engine):
    """A Hugging Face model that writes: a student, a packed model, or a teacher.

    Raises:
        InputError: the model does not write.
    """

    name = "torch"

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(tokenizer, Decoding.of(model))
        self.model, self.vocabulary_size = model.eval(), model.get_input_embeddings().num_embeddings

    @torch.no_grad()
    def _write(
        self, sources: list[list[int]], starts: list[int | None], beams: int, new_tokens: int, decoding: Decoding
    ) -> list[list[int]]:
        longest = max(map(len, sources))
        ids = torch.full((len(sources), longest), self.decoding.pad or 0)
        mask = torch.zeros_like(ids)
        for row, each in enumerate(sources):
            place = slice(longest - len(each), None) if self.continues else slice(len(each))
            ids[row, place], mask[row, place] = torch.tensor(each), 1
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        settings = copy.deepcopy(self.model.generation_config)
        settings.update(num_beams=beams, max_new_tokens=new_tokens, do_sample=False, pad_token_id=decoding.pad)
        settings.early_stopping = decoding.early_stopping if beams > 1 else False
        for name, field in ((name, field_of(name)) for name in ASKED if name != "early_stopping"):
            if getattr(decoding, field) != getattr(self.decoding, field):
                setattr(settings, name, getattr(decoding, field))
        if settings.bad_words_ids is not None:
            settings.bad_words_ids = [list(words) for words in settings.bad_words_ids] or None
        options = {}
        if not self.continues:
            settings.decoder_start_token_id, options = starts, {"past_key_values": OneSourceCache()}
        output = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=settings, **options)
        return output[:, longest if self.continues else 1 :].tolist()


class TorchClassifier(Classifier):
    """A Hugging Face model that classifies texts: a student, a packed model, or a teacher.

    Raises:
        InputError: the model is no classifier of texts.
    """

    name = "torch"

    def __init__(self, model: PreTrainedModel, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(tokenizer, Reading.of(model, tokenizer))
        self.model, self.vocabulary_size = model.eval(), model.get_input_embeddings().num_embeddings

    @torch.no_grad()
    def _logits(self, input_ids: Sequence[Sequence[int]]) -> np.ndarray:
        ids, types, mask = (torch.from_numpy(each).to(self.model.device) for each in self.reading.batch(input_ids))
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return self.model(**inputs).logits.float().cpu().numpy()


def load_model(folder: str | Path, threads: int | None = None) -> tuple[PreTrainedModel, Tokenizer | None]:
    """The model of a folder and its tokenizer, if there is one.

    Args:
        folder: written by :func:`dqlib.storage.packed.save_packed`, :func:`dqlib.storage.students.save_student` or
            ``save_pretrained``, of one of the known architectures.
        threads: of PyTorch, in all of this process; None leaves them as they are.

    Raises:
        InputError: the folder is none of these, or is damaged.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    folder, kind = Path(folder), folder_kind(folder)
    if kind == "packed":
        model = load_packed(folder)
    elif kind == "student":
        model = load_student(folder)
    elif (folder / CONFIG).is_file() and any(folder.glob("*.safetensors")):
        model = read_model(folder)
    else:
        raise InputError("folder", str(folder), "a packed model, a student, or a Hugging Face model with safetensors")
    return model, read_tokenizer(folder)
