"""What benchmark scripts reckon: FLOP by hand, turns, and ratios of neighbours in time."""

import sys
from pathlib import Path

from fedmedjax.model.llama import LlamaConfig
from fedmedjax.model.lora import LoraConfig

sys.path.insert(0, str(Path(__file__).parents[2] / 'scripts'))
from benchmarks import flop, interleaved  # noqa: E402


def test_flop_by_hand():
  """Width 2, one layer, 1 head of 2, MLP 3: N = 4 * 4 + 3 * 6 = 34; rank 1 on q: L = 4; head 5 * 2.

  7 tokens, 3 of them supervised: (4 * 34 + 6 * 4) 7 + 4 * 10 * 3 = 1240.
  """
  config = LlamaConfig(
    vocab_size=5, hidden_size=2, intermediate_size=3, num_layers=1, num_heads=1, num_kv_heads=1,
    head_dim=2, rms_norm_eps=1e-5, rope_theta=1e4, max_position_embeddings=8,
    tie_word_embeddings=True)
  assert flop.training_flop(config, LoraConfig(1, 1.0, ('q_proj',)), 7, 3) == 1240


def test_entrants_take_turns(monkeypatch):
  """Rotated order, and ratios of neighbours in time: 2 / 1 and 6 / 2."""
  monkeypatch.setattr(interleaved, '_SETTLE_SECONDS', 0.0)
  calls = []
  timings = interleaved.measure(
    {name: lambda name=name: calls.append(name) for name in ('ours', 'peer_a', 'ours_b')}, 2)
  assert calls == ['ours', 'peer_a', 'ours_b'] * 2 + ['peer_a', 'ours_b', 'ours']
  timings['ours'] = interleaved.Timing(0.0, (1.0, 2.0), None)
  timings['peer_a'] = interleaved.Timing(0.0, (2.0, 6.0), None)
  timings['ours_b'] = interleaved.Timing(0.0, (4.0, 4.0), None)
  assert interleaved.ratios(timings) == {
    'ratio_to_a': [2.0, 3.0], 'ratio_to_b': [4.0, 2.0], 'ratio_b_to_a': [0.5, 1.5]}
  found = interleaved.found(timings, {'seconds_per_round': lambda s: s / 2}, '_9_sites')
  assert found['peer_a_seconds_per_round_9_sites_range'] == [1.0, 3.0]
  assert found['ratio_to_a_9_sites'] == 2.5
