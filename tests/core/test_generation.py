import pytest
import torch

from dqlib.generation import OneSourceCache
from tests.helpers.models import CASES, data_of, make_teacher

WRITERS = [name for name, case in CASES.items() if case.encodes_and_decodes and case.generates]


@pytest.mark.parametrize("name", WRITERS)
def test_leaving_the_source_in_place_changes_no_token(name):
    model = make_teacher(name).eval()
    inputs = {key: data_of(name).inputs[key] for key in ("input_ids", "attention_mask")}
    for beams in (1, 4):
        options = {"num_beams": beams, "max_new_tokens": 8, "min_new_tokens": 8, "no_repeat_ngram_size": 1}
        plain = model.generate(**inputs, **options)
        assert torch.equal(model.generate(**inputs, **options, past_key_values=OneSourceCache()), plain)
        assert len(set(map(tuple, plain.tolist()))) > 1  # texts differ, so that beams of one would show in another


def test_beams_change_places_and_sources_stay():
    model = make_teacher("bart").eval()
    inputs = {key: data_of("bart").inputs[key] for key in ("input_ids", "attention_mask")}
    cache = OneSourceCache()
    model.generate(**inputs, num_beams=2, max_new_tokens=4, past_key_values=cache)
    written = cache.self_attention_cache.layers[0].keys.clone()
    source = cache.cross_attention_cache.layers[0].keys
    cache.reorder_cache(torch.tensor([1, 0, *range(2, len(written))]))
    assert torch.equal(cache.self_attention_cache.layers[0].keys[:2], written[:2].flip(0))
    assert cache.cross_attention_cache.layers[0].keys is source
