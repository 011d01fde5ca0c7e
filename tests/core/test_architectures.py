"""Every architecture, by the same promises: a student of it is made, learns, evaluates, saves and is counted."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, GPT2LMHeadModel, PegasusConfig, PegasusForConditionalGeneration

from dqlib import attention
from dqlib.architectures import ARCHITECTURES, architecture_of, submodule
from dqlib.config import Config
from dqlib.errors import InputError
from dqlib.fake_quantize import LEARNED
from dqlib.layers import QuantConv1D, QuantEmbedding, QuantLinear
from dqlib.loss_weights import LossWeights
from dqlib.losses import MemoryBank
from dqlib.presets import PRESETS, get_preset
from dqlib.quantizers import fake_quantize_activation
from dqlib.storage.footprint import footprint, fp32_size_bytes, size_bytes
from dqlib.storage.students import load_student, save_student
from dqlib.student import make_student, quantized_modules, set_attention_maps, supervision_maps
from dqlib.terms import distillation_terms
from tests.helpers.models import CASES, EVERY, VOCABULARY, WANTED, data_of, make_teacher, student_of

METHODS = ("dqlib", "dq-bart", "xtc", "quantgpt")
GENERATING = [name for name, case in CASES.items() if case.generates]
VARIANTS = ("t5-untied", "marian-unshared")  # which a single method is enough for
TIED = [name for name in CASES if name not in ("bert-classifier", *VARIANTS)]
#: Every architecture with one method, and every method with one architecture.
EVERY_WITH_A_METHOD = pytest.mark.parametrize(
    ("name", "preset"),
    [(name, METHODS[i % 4]) for i, name in enumerate(CASES)] + [("bart", preset) for preset in METHODS[1:]],
)


def step_loss(student, teacher, data, weights, bank=None):
    """Terms of a step, and their sum by their weights."""
    with torch.no_grad():
        theirs = teacher(**data.inputs, **WANTED)
    ours = student(**data.inputs, **WANTED)
    maps = supervision_maps(student.dqlib_config, teacher)
    terms = distillation_terms(ours, theirs, data.labels, data.source_mask, maps, weights, bank=bank)
    return terms, torch.stack([weights.of(term) * value for term, value in terms.items()]).sum()


def expected_terms(name, weights):
    sides = {"2-1": ("encoder", "decoder"), "2-0": ("encoder",), "0-2": ("decoder",)}[CASES[name].layers]
    terms = {family for family in ("task", "logits", "contrastive") if getattr(weights, family)}
    terms |= {f"{side}_hidden" for side in sides if weights.hidden}
    terms |= {f"{side}_attention" for side in sides if weights.attention}
    return terms | ({"cross_attention"} if weights.attention and len(sides) == 2 else set())


# --- making


@EVERY_WITH_A_METHOD
def test_a_student_has_fewer_layers_and_every_one_of_them_is_quantized(name, preset):
    teacher = make_teacher(name)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    student = student_of(teacher, name, preset=preset)
    names = architecture_of(student.config)
    depths = tuple(map(int, CASES[name].layers.split("-")))
    assert names.depths(student.config) == depths
    assert student.training
    layers = {side: list(student.get_submodule(stack.layers)) for side, stack in names.stacks.items()}
    assert {side: len(found) for side, found in layers.items()} == {
        side: depth for side, depth in zip(("encoder", "decoder"), depths, strict=True) if depth
    }
    for layer in [layer for found in layers.values() for layer in found]:
        linear = [m for m in layer.modules() if isinstance(m, nn.Linear) or type(m).__name__.endswith("Conv1D")]
        assert len(linear) >= 4
        assert all(isinstance(m, QuantLinear | QuantConv1D) and m.weight_quantizer.bits == 2 for m in linear)
        attentions = [submodule(layer, path) for path in names.attentions]
        assert all(m.activation.bits == 8 for m in attentions if m is not None)
        assert attentions[0] is not None
    tables = [submodule(student, path) for path in names.token_embeddings]
    assert any(table is not None for table in tables)
    for table in [table for table in tables if table is not None]:
        assert isinstance(table, QuantEmbedding)
        assert table.weight_quantizer.bits == 2
    for path in names.positions:  # Marian's sinusoids are not learned, T5's table is tiny
        module = submodule(student, path)
        assert module.weight_quantizer.bits == get_preset(preset).position_bits
    assert type(teacher) is type(student)
    assert not quantized_modules(teacher)
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())


def test_only_what_an_architecture_names_is_quantized():
    classifier = student_of(make_teacher("bert-classifier"), "bert-classifier")
    assert type(classifier.classifier) is nn.Linear
    assert isinstance(classifier.bert.pooler.dense, QuantLinear)
    masked = student_of(make_teacher("bert"), "bert")
    assert isinstance(masked.cls.predictions.transform.dense, QuantLinear)
    t5 = student_of(make_teacher("t5"), "t5")
    relative = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
    assert type(relative) is nn.Embedding
    marian = student_of(make_teacher("marian"), "marian")
    assert not isinstance(marian.model.encoder.embed_positions, QuantEmbedding)
    assert not marian.model.encoder.embed_positions.weight.requires_grad


@pytest.mark.parametrize("name", TIED)
def test_embedding_and_head_are_one_quantized_table(name):
    # A head beside the table would be a second, hidden copy: counted once, computed twice.
    teacher = make_teacher(name)
    student = student_of(teacher, name, bits="2-3-8")
    names = architecture_of(student.config)
    head = submodule(student, names.heads_of_vocabulary[0])
    tables = [student.get_submodule(path) for path in names.token_embeddings]
    assert isinstance(head, QuantLinear)
    assert all(table.weight is head.weight for table in tables)
    assert all(table.weight_quantizer is head.weight_quantizer for table in tables)
    data = data_of(name)
    student(**data.inputs)
    assert head.weight_quantizer.quantizations == 1


def test_tables_of_their_own_have_quantizers_of_their_own():
    t5, marian = (student_of(make_teacher(name), name, bits="2-3-8") for name in ("t5-untied", "marian-unshared"))
    encoder, decoder = marian.model.encoder.embed_tokens, marian.model.decoder.embed_tokens
    for one, other in ((t5.lm_head, t5.shared), (encoder, decoder)):
        assert one.weight is not other.weight
        assert one.weight_quantizer is not other.weight_quantizer
    assert t5.lm_head.weight_quantizer.bits == 3
    assert marian.lm_head.weight is decoder.weight
    assert marian.lm_head.weight_quantizer is decoder.weight_quantizer


@EVERY
def test_a_full_depth_student_is_the_teacher_and_close_to_it_at_eight_bits(name):
    teacher, data = make_teacher(name), data_of(name)
    student, rounded = (
        make_student(teacher, Config.parse(f"{bits} {CASES[name].depths}")).eval() for bits in ("32-32-32", "8-8-8")
    )
    with torch.no_grad():
        ours, theirs = student(**data.inputs, **WANTED), teacher(**data.inputs, **WANTED)
        error = rounded(**data.inputs).logits - theirs.logits
    torch.testing.assert_close(ours.logits, theirs.logits, atol=1e-6, rtol=1e-6)
    fields = [f for f in theirs if f.endswith(("attentions", "hidden_states"))]
    assert fields
    for field in fields:
        for a, b in zip(getattr(ours, field), getattr(theirs, field), strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    assert 0 < error.norm() / theirs.logits.norm() < 0.1  # something rounded twice, or on a wrong scale, is far off


@pytest.mark.parametrize("name", [name for name in CASES if name != "bert-classifier"])
def test_padding_does_not_change_a_result(name):
    # Registered without a mask function, an attention silently attends to padding.
    student = student_of(make_teacher(name), name, bits="8-8-32").eval()
    data = data_of(name)
    inputs = data.inputs
    alone = {key: value[1:2, :5] for key, value in inputs.items() if key != "decoder_input_ids"}
    if "decoder_input_ids" in inputs:
        alone["decoder_input_ids"] = inputs["decoder_input_ids"][1:2, :3]
    with torch.no_grad():
        expected = student(**alone).logits[0]
        found = student(**inputs).logits[1, : len(expected)]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture
def seen():
    """Queries, keys and values of every attention that is computed meanwhile."""
    calls = []

    def spy(module, query, key, value, *arguments, **options):
        calls.append((query.detach(), key.detach(), value.detach()))
        return attention.quantized_attention(module, query, key, value, *arguments, **options)

    AttentionInterface.register(attention.NAME, spy)
    yield calls
    AttentionInterface.register(attention.NAME, attention.quantized_attention)


@EVERY
def test_keys_and_values_come_rounded_a_token_and_head_and_queries_do_not(name, seen):
    # GPT-2 makes all three by one projection: a wrong cut rounds queries twice, or heads together.
    student = student_of(make_teacher(name), name, bits="8-8-4").eval()
    with torch.no_grad():
        student(**data_of(name).inputs)
    assert len(seen) == {"2-1": 4, "2-0": 2, "0-2": 2}[CASES[name].layers]
    for query, key, value in seen:
        for rounded in (key, value):
            torch.testing.assert_close(fake_quantize_activation(rounded, 4), rounded, atol=1e-5, rtol=1e-5)
        assert (fake_quantize_activation(query, 4) - query).abs().max() > 0.01 * query.abs().max()


# --- learning


def learned_of(student):
    learned = {path: module.weight_quantizer.learned for path, module in quantized_modules(student).items()}
    return {path: parameter for path, parameter in learned.items() if parameter is not None}


@pytest.mark.parametrize("name", ["bart", "t5", "gpt2"])
def test_anchors_are_smoothed_by_a_bank_in_every_decoder(name):
    teacher, data = make_teacher(name), data_of(name)
    student, bank = student_of(teacher, name, preset="quantgpt"), MemoryBank(VOCABULARY, 0.5)
    weights = get_preset("quantgpt").loss
    first, second = (step_loss(student, teacher, data, weights, bank) for _ in range(2))
    torch.testing.assert_close(second[0]["contrastive"], first[0]["contrastive"], rtol=0.2, atol=0.0)
    second[1].backward()
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)


@EVERY
def test_scores_of_every_attention_are_compared(name):
    teacher, data = make_teacher(name), data_of(name)
    student = student_of(teacher, name)
    teacher.set_attn_implementation("dqlib")  # which gives out scores, and computes a teacher in full precision
    for model in (student, teacher):
        set_attention_maps(model, "scores")
    weights = LossWeights(attention_maps="scores")
    terms, loss = step_loss(student, teacher, data, weights)
    assert set(terms) == expected_terms(name, weights)
    assert all(torch.isfinite(value) and value > 0 for value in terms.values())
    assert all(value < 1e4 for value in terms.values())  # the mask's -1e38 is not among the scores
    loss.backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


# --- evaluating


def greedy(student, name, **options):
    data = data_of(name)
    inputs = {key: data.inputs[key] for key in ("input_ids", "attention_mask")}
    if CASES[name].model is GPT2LMHeadModel:  # a decoder goes on from the left
        inputs = {key: value.flip(1) for key, value in inputs.items()}
    # Random weights under a tied head repeat one token for ever; with repeats forbidden, the order tells all logits.
    greedily = {"max_new_tokens": 8, "min_new_tokens": 8, "no_repeat_ngram_size": 1, "num_beams": 1, "do_sample": False}
    return student.generate(**inputs, **greedily, **options)


@pytest.mark.parametrize(
    ("name", "preset"), [(name, METHODS[i % 4]) for i, name in enumerate(GENERATING)] + [("gpt2", "quantgpt")]
)
def test_cached_generation_gives_what_the_whole_forward_gives(name, preset):
    # A key that is rounded again at every step, or with its neighbours, differs from what was trained.
    student = student_of(make_teacher(name), name, preset=preset).eval()
    options = {"output_logits": True, "return_dict_in_generate": True}
    cached, whole = (greedy(student, name, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(cached.sequences, whole.sequences)
    for ours, theirs in zip(cached.logits, whole.logits, strict=True):  # which may differ where tokens agree
        torch.testing.assert_close(ours, theirs, atol=0.01 * float(theirs.abs().max()), rtol=0)


@EVERY_WITH_A_METHOD
def test_training_reaches_every_weight_and_scale_and_lowers_the_loss(name, preset):
    teacher, data = make_teacher(name), data_of(name)
    student = student_of(teacher, name, preset=preset)
    weights = replace(get_preset(preset).loss, task=1.0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.01, weight_decay=0.0)
    losses, scales = [], {path: learned.detach().clone() for path, learned in learned_of(student).items()}
    assert bool(scales) == (preset in ("quantgpt", "dqlib"))
    for step in range(8):
        terms, loss = step_loss(student, teacher, data, weights)
        losses.append(loss.item())
        loss.backward()
        if step == 0:
            assert set(terms) == expected_terms(name, weights)
            assert all(torch.isfinite(value) and value >= 0 for value in terms.values())
            assert [path for path, p in student.named_parameters() if p.requires_grad and p.grad is None] == []
            of_weights = {path: module.weight for path, module in quantized_modules(student).items()}
            for path, parameter in (*of_weights.items(), *learned_of(student).items()):
                assert torch.isfinite(parameter.grad).all(), path
                assert (parameter.grad != 0).any(), path
        optimizer.step()
        optimizer.zero_grad()
    assert min(losses[-3:]) < 0.9 * losses[0]
    assert all(not torch.equal(before, learned_of(student)[path]) for path, before in scales.items())
    with torch.no_grad():
        assert torch.isfinite(student.eval()(**data.inputs).logits).all()


# --- saving and counting


@pytest.mark.parametrize(
    ("name", "preset", "more"),
    [(name, ("dqlib", "quantgpt")[i % 2], (5, -4)[i // 2 % 2]) for i, name in enumerate(CASES)]
    + [("bart", "dqlib", -4)],
)
def test_scales_are_resized_with_their_vocabulary(name, preset, more, tmp_path):
    student, inputs = student_of(make_teacher(name), name, "2-2-8", preset).eval(), data_of(name).inputs
    inputs = inputs | {key: ids.clamp(max=VOCABULARY - 5) for key, ids in inputs.items() if key.endswith("ids")}
    with torch.no_grad():
        for key, parameter in student.named_parameters():
            if key.endswith(LEARNED):
                parameter.mul_(0.9 + 0.2 * torch.rand_like(parameter))  # as if trained
        before = student(**inputs).logits
        student = copy.deepcopy(student)
        student.resize_token_embeddings(VOCABULARY + more)
        if name == "marian-unshared":
            student.resize_decoder_token_embeddings(VOCABULARY + more)
        after = student(**inputs).logits
    assert after.size(-1) == before.size(-1) + (0 if name == "bert-classifier" else more)
    kept = min(after.size(-1), before.size(-1))
    assert torch.equal(after[..., :kept], before[..., :kept])
    save_student(student, tmp_path)
    with torch.no_grad():
        assert torch.equal(load_student(tmp_path)(**inputs).logits, after)
    student.train()(**inputs).logits.square().mean().backward()
    assert all(p.grad is not None for key, p in student.named_parameters() if key.endswith(LEARNED))


@EVERY_WITH_A_METHOD
def test_the_footprint_counts_every_parameter_once(name, preset):
    teacher = make_teacher(name)
    student = student_of(teacher, name, preset=preset)
    entries = footprint(student)
    assert len({entry.name for entry in entries}) == len(entries)
    weights = {p for n, p in student.named_parameters() if not n.endswith("weight_quantizer.learned")}
    assert sum(entry.numel for entry in entries) == sum(p.numel() for p in weights)
    of_two_bits = sum(entry.numel for entry in entries if entry.bits == 2)
    quantized = {m.weight for m in quantized_modules(student).values() if m.weight_quantizer.bits == 2}
    assert of_two_bits == sum(w.numel() for w in quantized)
    tables = [entry for entry in entries if entry.kind == "embedding" and entry.numel == VOCABULARY * 16]
    assert len(tables) == (2 if name == "marian-unshared" else 1)
    assert size_bytes(student) == sum(entry.size_bytes for entry in entries)
    assert 4 * size_bytes(student) < fp32_size_bytes(teacher) == 4 * sum(p.numel() for p in teacher.parameters())


# --- refusing


@pytest.mark.parametrize(
    ("name", "config", "preset", "message"),
    [
        ("t5", "2-2-8 2-1", "dq-bart-faithful", r"^preset: 'dq-bart-faithful' .* architecture 't5'; .* bart, mbart"),
        ("bart", "1-2-8 2-1", "dq-bart", r"^w_bits of '1-2-8 2-1': 1 .* with the preset 'dq-bart'"),
        ("gpt2", "2-2-8 1-2", "dqlib", r"^config '2-2-8 1-2', encoder_layers: 1 .* at most 0"),
        ("gpt2", "2-2-8 0-4", "dqlib", r"^config '2-2-8 0-4', decoder_layers: 4 .* at most 3"),
        ("bert", "2-2-8 2-1", "dqlib", r"^config '2-2-8 2-1', decoder_layers: 1 .* at most 0"),
        ("t5", "2-2-8 2-0", "dqlib", r"^config '2-2-8 2-0', decoder_layers: 0 .* at least 1"),
        ("t5", "2-2-8 0-2", "dqlib", r"^config '2-2-8 0-2', encoder_layers: 0 .* at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(name, config, preset, message):
    with pytest.raises(InputError, match=message) as caught:
        make_student(make_teacher(name), Config.parse(config), preset)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name not in METHODS])
def test_every_preset_serves_bart_and_those_that_it_names(preset):
    teacher, data = make_teacher("bart"), data_of("bart")
    student = student_of(teacher, "bart", preset=preset)
    terms, loss = step_loss(student, teacher, data, get_preset(preset).loss)
    loss.backward()
    assert all(torch.isfinite(value) for value in terms.values())
    assert torch.isfinite(student.eval()(**data.inputs).logits).all()


def test_an_unknown_architecture_is_told_how_to_be_added():
    sizes = {"d_model": 16, "vocab_size": 20, "max_position_embeddings": 8} | {
        f"{side}_{field}": value
        for side in ("encoder", "decoder")
        for field, value in {"layers": 1, "attention_heads": 2, "ffn_dim": 8}.items()
    }
    teacher = PegasusForConditionalGeneration(PegasusConfig(**sizes))
    message = r"model_type: 'pegasus' .* ARCHITECTURES in dqlib/architectures\.py"
    with pytest.raises(InputError, match=message) as caught:
        make_student(teacher, Config.parse("2-2-8 1-1"))
    assert all(known in str(caught.value) for known in ARCHITECTURES)
    assert set(ARCHITECTURES) == {case.config.model_type for case in CASES.values()}  # each is tested here
