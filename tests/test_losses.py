import pytest
import torch

from dqlib.config import Configuration
from dqlib.errors import InputError
from dqlib.losses import (
    LayerMaps,
    LossWeights,
    attention_mse,
    cross_entropy,
    distillation_terms,
    hidden_mse,
    logits_kl,
    logits_mse,
)
from dqlib.student import make_student, supervision_map
from dqlib.study.batches import collate

LAYERED = {"encoder_attention", "decoder_attention", "cross_attention", "encoder_hidden", "decoder_hidden"}


def test_cross_entropy_is_that_of_the_tokens_that_count():
    logits, labels = torch.randn(2, 3, 7), torch.tensor([[1, 2, -100], [3, -100, -100]])
    by_hand = -torch.log_softmax(logits, -1)[[0, 0, 1], [0, 1, 0], [1, 2, 3]].mean()
    torch.testing.assert_close(cross_entropy(logits, labels), by_hand)


def test_divergence_is_zero_for_equals_and_follows_the_formula():
    s, t = torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert logits_kl(t, t, mask).item() == pytest.approx(0, abs=1e-6)
    p, q = torch.softmax(t / 2, -1), torch.softmax(s / 2, -1)
    by_hand = 4 * (p * (p / q).log()).sum(-1)[mask].mean()
    torch.testing.assert_close(logits_kl(s, t, mask, temperature=2.0), by_hand)
    torch.testing.assert_close(logits_mse(s, t, mask), (s - t)[mask].square().mean())


def test_what_is_masked_does_not_count():
    mask = torch.tensor([[True, True, False]])
    for loss, shape, where in ((hidden_mse, (1, 3, 5), (0, 2)), (attention_mse, (1, 2, 3, 4), (0, slice(None), 2))):
        s, t = torch.randn(shape), torch.randn(shape)
        before = loss(s, t, mask)
        s[where] = 1e6
        assert torch.equal(loss(s, t, mask), before)


def test_a_step_split_in_micro_batches_gives_the_same_losses(teacher, batch):
    # The reference averages within each batch, so its gradient depends on how a step is split.
    student = make_student(teacher, Configuration.parse("2-2-8 2-1")).eval()
    teacher.set_attn_implementation("eager")
    maps = LayerMaps(supervision_map(2, 4), supervision_map(1, 3))
    wanted = {"output_attentions": True, "output_hidden_states": True}

    def terms(part, denominators):
        inputs = part.inputs()
        outputs = student(**inputs, **wanted), teacher(**inputs, **wanted)
        return distillation_terms(*outputs, part.labels, part.attention_mask.bool(), maps, LossWeights(), denominators)

    from dqlib.study.batches import Example

    examples = [
        Example(
            batch.input_ids[i][batch.attention_mask[i].bool()].tolist(), batch.labels[i][batch.labels[i] >= 0].tolist()
        )
        for i in range(3)
    ]
    tokens = (float(batch.attention_mask.sum()), float((batch.labels >= 0).sum()))
    whole = terms(batch, (None, None))
    parts = [terms(collate(examples[:1]), tokens), terms(collate(examples[1:]), tokens)]
    assert set(whole) == {"task", "logits"} | LAYERED
    for name, value in whole.items():
        torch.testing.assert_close(value, parts[0][name] + parts[1][name], rtol=2e-2, atol=1e-4)


def test_families_of_weight_zero_are_not_computed(teacher, batch):
    student = make_student(teacher, Configuration.parse("2-2-8 2-1"))
    outputs = student(**batch.inputs()), teacher(**batch.inputs())
    weights = LossWeights(attention=0, hidden=0, task=0)
    mask = batch.attention_mask.bool()
    assert set(distillation_terms(*outputs, batch.labels, mask, LayerMaps([0, 3], [2]), weights)) == {"logits"}


@pytest.mark.parametrize("name", sorted({"task", "logits"} | LAYERED))
def test_every_term_has_a_weight(name):
    weights = LossWeights(task=2, logits=3, attention=5, hidden=7)
    family = name.rpartition("_")[2]
    assert weights.of(name) == {"task": 2, "logits": 3, "attention": 5, "hidden": 7}[family]


@pytest.mark.parametrize("bad", [{"task": -1.0}, {"logits_loss": "l1"}, {"temperature": 0.0}])
def test_bad_weights_are_named(bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        LossWeights(**bad)
