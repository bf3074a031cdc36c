"""Tiny random models of every supported family, built and saved by transformers."""

import tokenizers
import torch
import transformers

VOCABULARY = 97
_SHAPE = dict(
  vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=3,
  num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512, rms_norm_eps=3e-4,
  bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)


def _scaled(original: int) -> dict:
  """Llama 3.1's frequency scaling with a small original context."""
  return {
    'rope_type': 'llama3', 'rope_theta': 5e4, 'factor': 8.0, 'low_freq_factor': 1.0,
    'high_freq_factor': 4.0, 'original_max_position_embeddings': original}


_LLAMA = transformers.LlamaConfig
_GEMMA = _SHAPE | dict(
  tie_word_embeddings=True, head_dim=8, sliding_window=12, query_pre_attn_scalar=20)
FAMILIES = {
  'llama2': _LLAMA(**_SHAPE | dict(num_key_value_heads=4)),
  # Llama 3, 3.1 and DeepSeek-R1-Distill-Llama: grouped queries, scaled rotation, own head.
  'llama31': _LLAMA(**_SHAPE, head_dim=8, rope_parameters=_scaled(32)),
  # Llama 3.2: the same, tied.
  'llama32': _LLAMA(**_SHAPE | dict(tie_word_embeddings=True), rope_parameters=_scaled(32)),
  'smollm2': _LLAMA(
    **_SHAPE | dict(tie_word_embeddings=True),
    rope_parameters={'rope_type': 'default', 'rope_theta': 1e5}),
  'llama_biased': _LLAMA(**_SHAPE, attention_bias=True, mlp_bias=True),
  'mistral': transformers.MistralConfig(**_SHAPE, sliding_window=12),
  # Qwen2 and 2.5; its first layer sees all, the others a window.
  'qwen2': transformers.Qwen2Config(
    **_SHAPE | dict(tie_word_embeddings=True), use_sliding_window=True, sliding_window=12,
    max_window_layers=1),
  'qwen3': transformers.Qwen3Config(**_SHAPE, head_dim=16),
  # Caps low enough to bend scores and logits; layers with a window, without, and with one again.
  'gemma2': transformers.Gemma2Config(
    **_GEMMA, attn_logit_softcapping=3.0, final_logit_softcapping=7.0),
  # Two bases of the rotation, one of them scaled, as in the larger models.
  'gemma3': transformers.Gemma3TextConfig(
    **_GEMMA | dict(head_dim=16), sliding_window_pattern=2, attention_bias=True,
    final_logit_softcapping=9.0, rope_parameters={
      'full_attention': {'rope_type': 'linear', 'rope_theta': 5e4, 'factor': 4.0},
      'sliding_attention': {'rope_type': 'default', 'rope_theta': 2e3}}),
  # Phi-3 and 4: fused projections; 4 of 6 dimensions rotated, more slowly in texts of over 64.
  'phi3': transformers.Phi3Config(
    **_SHAPE | dict(tie_word_embeddings=True), sliding_window=12, pad_token_id=0,
    original_max_position_embeddings=64, partial_rotary_factor=0.75, rope_parameters={
      'rope_type': 'longrope', 'rope_theta': 1e4, 'short_factor': [1.0, 1.5],
      'long_factor': [2.0, 9.0], 'attention_factor': 1.3}),
}


def build(config, seed: int = 0, noise: float = 0.2):
  """A random transformers model, norms and biases away from their neutral values."""
  torch.manual_seed(seed)
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  with torch.no_grad():
    for weight in model.parameters():
      weight.add_(torch.randn_like(weight) * noise)
  return model


def save(model, folder, **options):
  """Weights, config.json and a word-level tokenizer."""
  model.save_pretrained(folder, **options)
  size = model.config.vocab_size
  backend = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(
      {f'w{i}': i for i in range(size - 1)} | {'<|endoftext|>': size - 1}, unk_token='w0'))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend, eos_token='w2', unk_token='w0').save_pretrained(folder)
  return folder
