import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.modeling_outputs import BaseModelOutput, Seq2SeqLMOutput

from dqlib.config import Config
from dqlib.errors import InputError
from dqlib.loss_weights import LossWeights
from dqlib.losses import (
    MemoryBank,
    attention_mse,
    cross_entropy,
    hidden_mse,
    logits_kl,
    logits_mse,
    relation_kl,
    token_contrastive,
    token_scale,
)
from dqlib.student import make_student, set_attention_maps, supervision_map
from dqlib.terms import LayerMaps, distillation_terms
from tests.helpers.models import WANTED

LAYERED = {"encoder_attention", "decoder_attention", "cross_attention", "encoder_hidden", "decoder_hidden"}


def test_losses_of_logits_follow_their_formulas_over_the_tokens_that_count():
    s, t, labels = torch.randn(2, 3, 7), torch.randn(2, 3, 7), torch.tensor([[1, 2, -100], [3, -100, -100]])
    by_hand = -torch.log_softmax(s, -1)[[0, 0, 1], [0, 1, 0], [1, 2, 3]].mean()
    torch.testing.assert_close(cross_entropy(s, labels), by_hand)
    mask = labels >= 0
    assert logits_kl(t, t, mask).item() == pytest.approx(0, abs=1e-6)
    p, q = torch.softmax(t / 2, -1), torch.softmax(s / 2, -1)
    by_hand = 4 * (p * (p / q).log()).sum(-1)[mask].mean()
    torch.testing.assert_close(logits_kl(s, t, mask, temperature=2.0), by_hand)
    torch.testing.assert_close(logits_mse(s, t, mask), (s - t)[mask].square().mean())


@pytest.mark.parametrize("reduction", ["tokens", "reference"])
def test_maps_that_a_teacher_does_not_give_are_asked_for_in_a_sentence(teacher, batch, reduction):
    weights, maps = LossWeights(reduction=reduction, logits_loss="mse"), LayerMaps([1, 3], [0, 2])
    assert teacher.config._attn_implementation == "sdpa"
    student = make_student(teacher, Config.parse("2-2-8 2-2"))
    ours, theirs = (model(**batch.inputs(), **WANTED) for model in (student, teacher))
    rest = batch.labels, batch.attention_mask.bool(), maps
    with pytest.raises(InputError, match=r"^encoder_attentions of the teacher: \(\) .* attn_implementation='eager'"):
        distillation_terms(ours, theirs, *rest, weights)
    distillation_terms(ours, theirs, *rest, replace(weights, attention=0))
    with pytest.raises(InputError, match=r"^encoder_hidden_states of the student: None .* output_hidden_states=True"):
        distillation_terms(student(**batch.inputs()), theirs, *rest, replace(weights, attention=0))
    found = distillation_terms(student(**batch.inputs()), theirs, *rest, replace(weights, attention=0, hidden=0))
    assert set(found) == {"task", "logits"}


def test_every_term_has_a_weight_and_bad_weights_are_named():
    families = {"task": 2, "logits": 3, "attention": 5, "hidden": 7, "contrastive": 11}
    for name in ("task", "logits", "contrastive", "encoder_last_hidden", *LAYERED):
        assert LossWeights(**families).of(name) == families[name.rpartition("_")[2]]
    of_itself = {"task": -1.0, "contrastive": -0.1, "hidden": float("nan"), "momentum": 1.0, "temperature": 0.0}
    of_itself |= {"logits_loss": "l1", "attention_maps": "values", "layers": "first", "reduction": "sum"}
    of_itself |= {"token_temperature": 0.0, "contrastive_temperature": -1.0}
    of_reference = {"layers": "last", "logits_loss": "kl", "attention_maps": "scores", "contrastive": 0.1}
    for field, value in (*of_itself.items(), ("momentum", -0.1)):
        with pytest.raises(InputError, match=rf"^{field}: .* must be "):
            LossWeights(**{field: value})
    for field, value in of_reference.items():
        with pytest.raises(InputError, match=rf"^{field}: .* must be "):
            LossWeights(**{"reduction": "reference", "logits_loss": "mse"} | {field: value})


# --- tokens that count more


def test_hard_tokens_count_more_and_the_mean_is_one():
    # By hand: the softmax over a text of the teacher's loss of each token, times the number of tokens.
    student, teacher = torch.randn(3, 4, 7, dtype=torch.float64), 3 * torch.randn(3, 4, 7, dtype=torch.float64)
    labels = torch.tensor([[1, 2, 3, -100], [4, -100, -100, -100], [-100] * 4])
    scale, expected, total = token_scale(teacher, labels, 2.0), torch.zeros(3, 4, dtype=torch.float64), 0.0
    for b, row in enumerate(labels.tolist()):
        counting = [n for n, label in enumerate(row) if label != -100]
        surprise = {n: -float(torch.log_softmax(teacher[b, n], -1)[row[n]]) for n in counting}
        for n in counting:
            expected[b, n] = len(counting) * math.exp(surprise[n] / 2) / sum(math.exp(s / 2) for s in surprise.values())
            p, log_q = torch.softmax(teacher[b, n], -1), torch.log_softmax(student[b, n], -1)
            total += float(expected[b, n] * (p * (p.log() - log_q)).sum())
    torch.testing.assert_close(scale, expected)
    torch.testing.assert_close(scale.sum(dim=-1), (labels >= 0).sum(dim=-1).double())
    assert logits_kl(student, teacher, labels >= 0, 5.0, scale=scale).item() == pytest.approx(total / 5)
    even = token_scale(teacher, labels, 1e9)
    torch.testing.assert_close(
        logits_kl(student, teacher, labels >= 0, scale=even), logits_kl(student, teacher, labels >= 0)
    )
    assert torch.equal(token_scale(teacher[:, 0], torch.tensor([1, 2, 3])), torch.ones(3, dtype=torch.float64))


# --- relations of tokens


def test_relations_are_those_of_queries_keys_and_values_of_a_text(teacher, batch):
    # By hand, from what the projections of one layer give: the encoder of full precision, a head at a time.
    teacher.set_attn_implementation("dqlib")
    set_attention_maps(teacher, "relations")
    layer, projected = teacher.model.encoder.layers[0].self_attn, {}
    for kind in ("q", "k", "v"):
        hook = lambda module, args, output, kind=kind: projected.__setitem__(kind, output)  # noqa: E731
        getattr(layer, f"{kind}_proj").register_forward_hook(hook)
    with torch.no_grad():
        outputs = teacher(**batch.inputs(), output_attentions=True)
    found, heads = outputs.encoder_attentions[0], layer.num_heads
    tokens = found.size(-1)
    assert found.shape[1:] == (heads, 3 * tokens, tokens)
    narrow = LayerMaps([0], [], {"encoder": [[1]]}).of_heads("encoder", 0, found)  # of a student that kept one head
    assert torch.equal(narrow, found[:, 1:2])
    for number, kind in enumerate(("q", "k", "v")):
        for head, x in enumerate(projected[kind].chunk(heads, dim=-1)):
            scores = x @ x.transpose(1, 2) / x.size(-1) ** 0.5
            scores = scores.masked_fill(~batch.attention_mask.bool().unsqueeze(1), -torch.inf)
            of_kind = found[:, head, number * tokens : (number + 1) * tokens]
            torch.testing.assert_close(of_kind, torch.softmax(scores, dim=-1))
    of_decoder = outputs.decoder_attentions[0].unflatten(2, (3, -1))
    assert (of_decoder.triu(1) == 0).all()  # no token sees those after it
    assert outputs.cross_attentions[0].size(1) == heads  # probabilities: the queries are of another text
    before = teacher.generate(**{k: v for k, v in batch.inputs().items() if "decoder" not in k}, max_new_tokens=4)
    set_attention_maps(teacher, "probabilities")
    after = teacher.generate(**{k: v for k, v in batch.inputs().items() if "decoder" not in k}, max_new_tokens=4)
    assert torch.equal(before, after)


def test_divergence_of_relations_follows_the_formula_and_what_is_masked_adds_nothing():
    s, t = (torch.softmax(torch.randn(2, 3, 8, 4, dtype=torch.float64), -1) for _ in range(2))
    s[..., 3], t[..., 3] = 0.0, 0.0
    s, t = s / s.sum(-1, keepdim=True), t / t.sum(-1, keepdim=True)
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    total = 0.0
    for b, i in mask.nonzero().tolist():
        for head in range(3):
            for row in (i, 4 + i):  # of both kinds
                p, q = t[b, head, row, :3], s[b, head, row, :3]
                total += float((p * (p / q).log()).sum()) / 6
    assert relation_kl(s, t, mask).item() == pytest.approx(total / 4)
    assert relation_kl(s, t, mask, 8.0).item() == pytest.approx(total / 8)
    student = s.clone().requires_grad_()
    relation_kl(student, t, mask).backward()
    assert torch.isfinite(student.grad).all()
    assert relation_kl(t, t, mask).item() == pytest.approx(0, abs=1e-12)


# --- contrast of tokens


def test_contrast_of_tokens_follows_the_formula():
    s, t = torch.randn(3, 5, 7, dtype=torch.float64), torch.randn(3, 5, 7, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 0, 0, 0, 0], [0, 1, 1, 0, 1]]).bool()
    for temperature in (0.1, 1.0):
        expected = 0.0
        for b, i in mask.nonzero().tolist():
            similarities = torch.cosine_similarity(s[b, i], t[b], dim=-1) / temperature
            expected -= float(similarities[i] - similarities[mask[b]].exp().sum().log())
        found = [token_contrastive(s, t, mask, *count, temperature=temperature).item() for count in ((), (3.0,))]
        assert found == pytest.approx([expected / int(mask.sum()), expected / 3])


def test_contrast_sees_no_padding_neither_as_anchor_nor_as_negative_and_states_of_zero_are_finite():
    s, t = torch.randn(2, 4, 6), torch.randn(2, 4, 6)
    s[0, 1] = 0
    s.requires_grad_()
    mask = torch.tensor([[True, True, True, False], [False, False, False, False]])  # one sequence is padding alone
    loss = token_contrastive(s, t, mask)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(s.grad).all()
    assert (s.grad[~mask] == 0).all()
    assert (s.grad[mask] != 0).any()
    with torch.no_grad():
        changed_s, changed_t = s.clone(), t.clone()
        changed_s[~mask], changed_t[~mask] = 1e4, -1e4
        assert torch.equal(token_contrastive(changed_s, changed_t, mask), loss)


# --- memory bank


@settings(max_examples=25, deadline=None)
@given(
    batches=st.lists(st.lists(st.sampled_from([-100, 0, 1, 2, 3]), min_size=4, max_size=4), min_size=2, max_size=5),
    momentum=st.sampled_from([0.25, 0.5]),
)
def test_a_known_token_is_mixed_by_momentum_with_the_mean_of_what_it_was_and_padding_is_not_remembered(
    batches, momentum
):
    bank, known = MemoryBank(4, momentum), {}
    for keys in batches:
        ids, states = torch.tensor([keys]), torch.randn(1, 4, 3).requires_grad_()
        mixed = bank.smooth(states, ids, ids >= 0)
        counting, means, expected = [i for i, key in enumerate(keys) if key >= 0], {}, states.detach().clone()
        for i in counting:
            if keys[i] in known:
                expected[0, i] = momentum * known[keys[i]] + (1 - momentum) * expected[0, i]
            means.setdefault(keys[i], []).append(expected[0, i])
        torch.testing.assert_close(mixed[0, counting], expected[0, counting])
        mixed[0, counting].sum().backward()  # the past has no graph, or memory would grow with every step
        slope = [[0.0 if key < 0 else 1 - momentum * (key in known)] * 3 for key in keys]
        torch.testing.assert_close(states.grad[0], torch.tensor(slope))
        known |= {key: torch.stack(values).mean(0) for key, values in means.items()}


# --- terms of whole models

CHOICES = {
    "plain": LossWeights(),
    "mse": LossWeights(logits_loss="mse"),
    "warm": LossWeights(temperature=2.0),
    "scores": LossWeights(attention_maps="scores"),
    "contrast": LossWeights(contrastive=0.1),
    "token-scaled": LossWeights(logits_loss="tsld", token_temperature=1.0),
    "relations": LossWeights(attention_maps="relations"),
    "last": LossWeights(layers="last"),
}


def outputs(student, teacher, batch):
    with torch.no_grad():
        return student(**batch.inputs(), **WANTED), teacher(**batch.inputs(), **WANTED)


@pytest.fixture
def pair(teacher):
    """A student and its teacher, both giving maps, in double precision and without rounding to grids."""
    teacher.set_attn_implementation("dqlib")
    student = make_student(teacher, Config.parse("32-32-32 2-1")).eval()
    return student.double(), teacher.double()


MAPS = LayerMaps(supervision_map(2, 4), supervision_map(1, 3))


@pytest.mark.parametrize("choice", CHOICES)
def test_more_padding_changes_no_term(pair, batch, choice):
    # The reference takes means over all positions, so its losses shrink as a batch is padded.
    weights = CHOICES[choice]
    for model in pair:
        set_attention_maps(model, weights.attention_maps)

    def terms(batch):
        bank = MemoryBank(96, 0.5) if weights.contrastive else None
        mask = batch.attention_mask.bool()
        for _ in range(2):  # the bank knows every token the second time
            found = distillation_terms(*outputs(*pair, batch), batch.labels, mask, MAPS, weights, bank=bank)
        return found

    def wider(tensor, value, by):
        return torch.nn.functional.pad(tensor, (0, by), value=value)

    padded = replace(
        batch,
        input_ids=wider(batch.input_ids, 1, 5),
        attention_mask=wider(batch.attention_mask, 0, 5),
        decoder_input_ids=wider(batch.decoder_input_ids, 1, 3),
        labels=wider(batch.labels, -100, 3),
    )
    before, after = terms(batch), terms(padded)
    assert set(before) == {"task", "logits"} | LAYERED | ({"contrastive"} if weights.contrastive else set())
    for name, value in before.items():
        assert value > 0
        torch.testing.assert_close(after[name], value, msg=lambda message, name=name: f"{name}: {message}")


def test_scores_are_compared_before_the_softmax_and_averaged_over_the_keys_that_a_query_sees(pair, batch):
    # Summed like probabilities, a long document would weigh more than a short one.
    for model in pair:
        set_attention_maps(model, "scores")
    weights = LossWeights(task=0, logits=0, hidden=0, attention_maps="scores")
    ours, theirs = outputs(*pair, batch)
    found = distillation_terms(ours, theirs, batch.labels, batch.attention_mask.bool(), MAPS, weights)
    layers = {"encoder_attention": ((0, 0), (1, 3)), "decoder_attention": ((0, 2),), "cross_attention": ((0, 2),)}
    assert set(found) == set(layers)
    sources, targets = batch.attention_mask.sum(1).tolist(), (batch.labels >= 0).sum(1).tolist()
    for name, pairs in layers.items():
        total, queries = 0.0, sources if name == "encoder_attention" else targets
        for b, q in ((b, q) for b, count in enumerate(queries) for q in range(count)):
            keys = q + 1 if name == "decoder_attention" else sources[b]
            for i, j in pairs:
                difference = ours[f"{name}s"][i] - theirs[f"{name}s"][j]
                total += difference[b, :, q, :keys].square().mean() / len(pairs)
        torch.testing.assert_close(found[name], total / sum(queries))
    zeros = torch.zeros(1, 2, 3, 4)  # a query that sees no key divides by none
    assert attention_mse(zeros, zeros, torch.ones(1, 3).bool(), keys=torch.zeros(1, 1, dtype=torch.long)) == 0


def test_hidden_terms_compare_each_layer_with_its_teacher_or_the_last_alone_and_leave_out_embeddings(pair, batch):
    ours, theirs = outputs(*pair, batch)
    mask, targets = batch.attention_mask.bool(), batch.labels >= 0
    found, last = (
        distillation_terms(ours, theirs, batch.labels, mask, MAPS, LossWeights(layers=layers))
        for layers in ("all", "last")
    )
    encoder = [
        (ours.encoder_hidden_states[i + 1] - theirs.encoder_hidden_states[j + 1])[mask].square().mean()
        for i, j in ((0, 0), (1, 3))
    ]
    torch.testing.assert_close(found["encoder_hidden"], sum(encoder) / 2)
    torch.testing.assert_close(last["encoder_hidden"], encoder[1])
    maps = ours.encoder_attentions[1], theirs.encoder_attentions[3]
    torch.testing.assert_close(last["encoder_attention"], attention_mse(*maps, mask))
    decoder = (ours.decoder_hidden_states[1] - theirs.decoder_hidden_states[3])[targets].square().mean()
    for terms in (found, last):  # it has but one layer
        torch.testing.assert_close(terms["decoder_hidden"], decoder)


def test_contrast_is_of_the_last_layer_and_its_anchors_are_smoothed(pair, batch):
    ours, theirs = outputs(*pair, batch)
    weights = LossWeights(task=0, logits=0, attention=0, hidden=0, contrastive=1, contrastive_temperature=0.5)
    mask, targets = batch.attention_mask.bool(), batch.labels >= 0
    anchors, others = ours.decoder_hidden_states[-1], theirs.decoder_hidden_states[-1]
    found = distillation_terms(ours, theirs, batch.labels, mask, MAPS, weights)
    assert set(found) == {"contrastive"}
    torch.testing.assert_close(found["contrastive"], token_contrastive(anchors, others, targets, temperature=0.5))
    bank, twin = MemoryBank(96, 0.5), MemoryBank(96, 0.5)
    for states in (torch.randn_like(anchors), anchors):
        output = Seq2SeqLMOutput(
            encoder_hidden_states=ours.encoder_hidden_states,
            decoder_hidden_states=(*ours.decoder_hidden_states[:-1], states),
        )
        found = distillation_terms(output, theirs, batch.labels, mask, MAPS, weights, bank=bank)
        smooth = twin.smooth(states, batch.labels, targets)
        torch.testing.assert_close(found["contrastive"], token_contrastive(smooth, others, targets, temperature=0.5))
    assert not torch.equal(smooth, anchors)


def test_a_classifier_s_decoder_counts_the_tokens_of_the_source():
    mask = torch.tensor([[True, True, True], [True, False, False]])

    def output():
        hidden, maps = torch.randn(2, 3, 4), torch.softmax(torch.randn(2, 2, 3, 3), -1)
        output = BaseModelOutput(hidden_states=(hidden, hidden + 1), attentions=(maps,))
        output.logits = torch.randn(2, 7)
        return output

    ours, theirs, labels = output(), output(), torch.tensor([3, 5])  # one per text, none per token
    weights, maps = LossWeights(contrastive=1.0), LayerMaps([], [0])
    denominators, bank = (8.0, 4.0), MemoryBank(7, 0.5)
    found = distillation_terms(ours, theirs, labels, mask, maps, weights, denominators, bank)
    assert set(found) == {"task", "logits", "decoder_attention", "decoder_hidden", "contrastive"}
    torch.testing.assert_close(found["task"], cross_entropy(ours.logits, labels, 4.0))
    torch.testing.assert_close(found["logits"], logits_kl(ours.logits, theirs.logits, labels > 0, 4.0))
    pair = ours.hidden_states[1], theirs.hidden_states[1]
    torch.testing.assert_close(found["decoder_hidden"], hidden_mse(*pair, mask, 8.0))
    torch.testing.assert_close(found["contrastive"], token_contrastive(*pair, mask, 8.0))
    expected = attention_mse(ours.attentions[0], theirs.attentions[0], mask, 8.0)
    torch.testing.assert_close(found["decoder_attention"], expected)


# --- the reference's own reduction


def reference_pair():
    def output(layers):
        def maps(queries, keys):
            return tuple(torch.rand(2, 2, queries, keys) for _ in range(layers))

        encoder = tuple(torch.randn(2, 3, 4) for _ in range(layers + 1))
        return Seq2SeqLMOutput(
            logits=torch.randn(2, 2, 5),
            encoder_attentions=maps(3, 3),
            decoder_attentions=maps(2, 2),
            cross_attentions=maps(2, 3),
            encoder_hidden_states=encoder,
            decoder_hidden_states=tuple(torch.randn(2, 2, 4) for _ in range(layers + 1)),
            encoder_last_hidden_state=encoder[-1],
        )

    return output(2), output(3)


def mean_square(ours, theirs):
    return float((ours.double() - theirs.double()).square().sum() / ours.numel())


def test_the_reference_counts_padding_embeddings_and_sums_over_layers():
    ours, theirs = reference_pair()
    labels = torch.tensor([[1, 2], [3, -100]])  # the padded target counts in all terms but the task's
    maps, weights = LayerMaps([0, 2], [0, 2]), LossWeights(reduction="reference", logits_loss="mse")
    mask = torch.tensor([[True, True, True], [True, False, False]])
    found = distillation_terms(ours, theirs, labels, mask, maps, weights)
    expected = {"logits": mean_square(ours.logits, theirs.logits)}
    for term in ("encoder_attention", "decoder_attention", "cross_attention"):
        a, b = getattr(ours, f"{term}s"), getattr(theirs, f"{term}s")
        expected[term] = mean_square(a[0], b[0]) + mean_square(a[1], b[2])
    for side in ("encoder", "decoder"):
        a, b = getattr(ours, f"{side}_hidden_states"), getattr(theirs, f"{side}_hidden_states")
        expected[f"{side}_hidden"] = mean_square(a[0], b[0]) + mean_square(a[1], b[1]) + mean_square(a[2], b[3])
    expected["encoder_last_hidden"] = 2 * mean_square(ours.encoder_hidden_states[2], theirs.encoder_hidden_states[3])
    log = torch.log_softmax(ours.logits, -1)
    expected["task"] = -float(log[0, 0, 1] + log[0, 1, 2] + log[1, 0, 3]) / 3
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value, rel=1e-5), name
