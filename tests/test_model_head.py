"""Heads: whatever a model does to its final hidden states, the head found for it does the same."""

import pytest
import torch

from lmfuse.errors import ModelError
from lmfuse.model_head import find_head

torch.set_num_threads(1)

SMALL = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3,
         "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}  # fmt: skip
WIDE = {**SMALL, "intermediate_size": 64, "max_position_embeddings": 64}
GROUPED = {**WIDE, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": None, "eos_token_id": None}
ZERO = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id"), 0)
ARCHITECTURES = {  # model_type: configuration, scale, cap, has bias, is the model's own code
    "gemma2": ({**GROUPED, "head_dim": 8, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8}, 1.0, 3.0, False, False),
    "gemma3_text": ({**GROUPED, "head_dim": 8, "final_logit_softcapping": 2.0}, 1.0, 2.0, False, False),
    "cohere": ({**GROUPED, "logit_scale": 0.25}, 0.25, None, False, False),
    "granite": ({**GROUPED, "logits_scaling": 4.0}, 0.25, None, False, False),
    "gpt2": (GPT2, 1.0, None, False, False),
    "gpt_neox": (WIDE, 1.0, None, False, False),
    "qwen2": (GROUPED, 1.0, None, False, False),
    "phi": (WIDE, 1.0, None, True, False),
    "opt": ({**SMALL, "word_embed_proj_dim": 16, "ffn_dim": 64, "max_position_embeddings": 64, "init_std": 0.3}, 1.0, None, False, False),
    "mixtral": ({**GROUPED, "num_local_experts": 4}, 1.0, None, False, False),
    "recurrent_gemma": (
        {**SMALL, "intermediate_size": 64, "num_key_value_heads": 1, "lru_width": 32, "attention_window_size": 16, "logits_soft_cap": 2.0},
        1.0, 2.0, False, False,
    ),
    "modernbert-decoder": ({**WIDE, **ZERO}, 1.0, None, True, True),
}  # fmt: skip


def tiny(kind: str, **changes: object):
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**ARCHITECTURES[kind][0], **changes})).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_kind_of_head_gives_the_models_own_logits(kind, dtype):
    _, scale, cap, has_bias, is_full = ARCHITECTURES[kind]
    module = tiny(kind).to(dtype)
    if kind == "phi":
        torch.nn.init.normal_(module.lm_head.bias)
    body, head = find_head(module, 90)
    assert (head.logit_scale, head.softcap, head.bias is not None, head.full is not None) == (scale, cap, has_bias, is_full)
    assert head.weight is module.get_output_embeddings().weight
    ids = torch.arange(24).view(2, 12) * 7 % 90
    with torch.no_grad():
        expected = module(input_ids=ids, use_cache=False).logits[..., :90].float().flatten(0, 1)
        found = head.logits(body(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1))
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_a_scale_that_no_configuration_names_falls_back_to_the_models_own_code(monkeypatch):
    from transformers import Qwen2ForCausalLM

    plain = Qwen2ForCausalLM.forward

    def scaled(self, *args, **kwargs):
        output = plain(self, *args, **kwargs)
        output.logits = output.logits * 3
        return output

    monkeypatch.setattr(Qwen2ForCausalLM, "forward", scaled)
    module = tiny("qwen2")
    body, head = find_head(module, 90)
    assert head.full is not None
    ids = torch.arange(8)[None]
    hidden = body(input_ids=ids, use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(head.logits(hidden), module(input_ids=ids).logits[0, :, :90])
    head.logits(hidden).sum().backward()
    assert module.lm_head.weight.grad is not None


def test_a_cap_too_wide_to_show_on_small_logits_is_still_found():
    module = tiny("gemma2", initializer_range=0.02, final_logit_softcapping=0.5)
    assert find_head(module, 90)[1].softcap == 0.5


def test_logits_that_are_no_function_of_hidden_states_are_refused(monkeypatch):
    from transformers import Qwen2ForCausalLM

    plain = Qwen2ForCausalLM.forward

    def positional(self, *args, input_ids=None, **kwargs):
        output = plain(self, *args, input_ids=input_ids, **kwargs)
        if input_ids is not None:
            output.logits = output.logits + input_ids[..., None]
        return output

    monkeypatch.setattr(Qwen2ForCausalLM, "forward", positional)
    with pytest.raises(ModelError, match="no function of its final hidden states"):
        find_head(tiny("qwen2"), 90)


def test_a_model_that_looks_ahead_is_refused():
    from transformers import BertConfig, BertLMHeadModel

    with pytest.raises(ModelError, match="looks ahead"):
        find_head(BertLMHeadModel(BertConfig(**WIDE)).eval(), 90)
