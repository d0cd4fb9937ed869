"""Rows that share keys and values attend as if each had its own copy."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tiny import tiny
from vlm.shared_attention import SharedCache, SharedLayer, SharedRows, attend, attending, attention_modules


@settings(max_examples=40, deadline=None)
@given(
    group=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    length=st.integers(1, 4),
    repeats=st.integers(1, 3),
    masked=st.booleans(),
)
def test_attention_is_that_of_copied_prefixes(group: list[int], length: int, repeats: int, masked: bool) -> None:
    generator = torch.Generator().manual_seed(len(group) * 64 + length)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    rows, heads, before, own, width = len(group), 2, 5, 4 + length, 8
    prefix, index = (draw(4, heads, before, width), draw(4, heads, before, width)), torch.tensor(group)
    query, key, value = draw(rows, heads * repeats, length, width), draw(rows, heads, own, width), draw(rows, heads, own, width)
    mask = torch.rand(rows, 1, length, before + own, generator=generator) < 0.7 if masked else None
    if mask is not None:
        mask[..., -1] = True
    module = SimpleNamespace(shared_layer=SharedLayer(prefix, SharedRows(index, 4)))
    found, _ = attend(module, query, key, value, mask, scaling=0.3)  # type: ignore[arg-type]
    whole = [torch.cat([part[index], mine], 2).repeat_interleave(repeats, 1) for part, mine in zip(prefix, (key, value), strict=True)]
    expected = torch.nn.functional.scaled_dot_product_attention(query, *whole, attn_mask=mask, scale=0.3)
    torch.testing.assert_close(found, expected.transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_the_model_is_left_as_it_was() -> None:
    model, _ = tiny("minigpt")
    batch = torch.tensor([[5, 6, 7, 8]])
    expected = model(input_ids=batch).logits
    filled = model(input_ids=batch, use_cache=True).past_key_values
    with pytest.raises(KeyError), attending(model, SharedCache(filled, torch.tensor([0]))):
        raise KeyError
    assert torch.equal(model(input_ids=batch).logits, expected) and not any(hasattr(m, "shared_layer") for m in model.modules())


def test_other_attention_is_refused() -> None:
    model, _ = tiny("minigpt")
    language_model = model.model.language_model
    assert len(attention_modules(language_model)) == 2
    layer = SharedLayer((torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)), SharedRows(torch.tensor([0]), 1))
    some = torch.zeros(1, 1, 1, 4)
    with pytest.raises(ValueError, match="attention with softcap cannot share"):
        attend(SimpleNamespace(shared_layer=layer), some, some, some, None, 1.0, softcap=30.0)  # type: ignore[arg-type]
    language_model._supports_attention_backend = False
    with pytest.raises(ValueError, match="LlamaModel does not take its attention"):
        attention_modules(language_model)
