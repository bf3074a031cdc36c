"""The table of methods: what each preset changes in `config.fed`."""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from fedmedjax.types import InputError

# One row a method: what it changes in `config.fed`. Keys that a row does not name have the
# values below. Papers and provenance: docs/methods.md, section 9.
METHOD_DEFAULTS = dict(
  size_power=1.0, loss_power=0.0, temperature=1.0, loss_on='completion', sharing='everything',
  pooled=False, train=True, server_optimizer='fedavg', server_learning_rate=1.0,
  server_momentum=0.9, rule='plain', rule_strength=0.0, local_optimizer='adamw',
  signal='loss', aggregator='mean', residual_rank=0, kept=1, heads=0,
  buffer=0, clusters=1, local_rank=0)
PRESETS = {
  # Fed-MedLoRA, arXiv:2601.22124: factors averaged by number of examples.
  'fed_medlora': {},
  # Plain mean over sites.
  'uniform': dict(size_power=0.0),
  # Fed-MedLoRA+: size times exp(-validation loss), what the paper's text says.
  'fed_medlora_plus': dict(loss_power=1.0),
  # Fed-MedLoRA+ exactly as the authors' public code does it: softmax(-loss), size ignored, loss
  # over all tokens, the instruction included.
  'fed_medlora_plus_code': dict(size_power=0.0, loss_power=1.0, loss_on='all'),
  # Fed-MedLoRA+ with other signals, ours: nats per answer in place of nats per token, and the same
  # by the other sites' judgement only, against each other's, with no number to tune.
  'fed_medlora_answer': dict(loss_power=1.0, signal='answer'),
  'fed_medlora_peer': dict(loss_power=1.0, signal='peer'),
  # By the same judgement, what the average loses without a site, and how far an update goes down
  # the validation loss's slope: nats per answer, or standard deviations where these are larger.
  'fed_medlora_loo': dict(loss_power=1.0, signal='loo'),
  'fed_medlora_grad': dict(loss_power=1.0, signal='grad'),
  # Means of the products A B. FlexLoRA, arXiv:2402.11505, and HLoRA, arXiv:2503.00813: cut to the
  # rank by SVD. FLoRA, arXiv:2409.05976: stacked into the base. FedEx-LoRA, arXiv:2410.09432: the
  # residual goes into the base, whole or cut to a rank. LoRA-FAIR, arXiv:2411.14961: B corrected.
  'flexlora': dict(aggregator='refactorised'),
  'flora': dict(aggregator='stacked'),
  'fedex_lora': dict(aggregator='residual'),
  'fedex_lora_truncated': dict(aggregator='residual', residual_rank=4),
  'lora_fair': dict(aggregator='corrected'),
  # FedRot-LoRA, arXiv:2602.23638: factors turned towards the server's A before their mean.
  'fedrot_lora': dict(aggregator='aligned'),
  # FedSVD, arXiv:2505.12805: B trained; A and B written anew from the SVD of their product.
  'fedsvd': dict(aggregator='orthogonalised', sharing='served_a'),
  # HetLoRA, arXiv:2401.06432: zero-padded factors, weighted by the norm of their product.
  'hetlora': dict(
    aggregator='padded_mean', signal='product_norm', size_power=0.0, loss_power=1.0),
  # Robust means. Median and trimmed mean, arXiv:1803.01498; geometric median, arXiv:1912.13445;
  # Krum and Multi-Krum, arXiv:1703.02757 (f = fed.faulty of n >= 2 f + 3 sites); shortened
  # updates, arXiv:1911.07963.
  'median': dict(aggregator='median'),
  'trimmed_mean': dict(aggregator='trimmed_mean'),
  'geometric_median': dict(aggregator='geometric_median'),
  'krum': dict(aggregator='krum'),
  'multi_krum': dict(aggregator='krum', kept=2),
  'clipped_mean': dict(aggregator='clipped_mean'),
  # FedNova, arXiv:2007.07481: updates by the length of their path in steps.
  'fednova': dict(aggregator='normalised'),
  # By training loss. q-FedAvg, arXiv:1905.10497; agnostic federated learning, arXiv:1902.00146.
  'q_fedavg': dict(aggregator='q_fedavg'),
  'afl': dict(aggregator='agnostic', size_power=0.0),
  # Local rules. FedProx, arXiv:1812.06127, with mu = 0.01.
  'fedprox': dict(rule='fedprox', rule_strength=0.01),
  # SCAFFOLD, arXiv:1910.06378, option II: plain local steps, plain mean.
  'scaffold': dict(rule='scaffold', local_optimizer='sgd', size_power=0.0),
  # FedDyn, arXiv:2111.04263, with alpha = 1, plain mean.
  'feddyn': dict(
    rule='feddyn', rule_strength=1.0, local_optimizer='sgd', size_power=0.0),
  # Sharing. FFA-LoRA, arXiv:2403.12313: A frozen, B trained and sent.
  'ffa_lora': dict(sharing='only_b'),
  # FedSA-LoRA, arXiv:2410.01463: A sent, B each site's own.
  'fedsa_lora': dict(sharing='only_a'),
  # RoLoRA, arXiv:2502.01755: B and A in turns.
  'rolora': dict(sharing='alternating'),
  # RAVAN, arXiv:2506.05568: frozen bases, cores of several heads trained and sent.
  'ravan': dict(heads=4, sharing='cores', aggregator='cores'),
  # Server optimisers. Rates are ours: with updates of about 1e-3 an entry, as AdamW makes them, a
  # step is then about as long as FedAvg's. FedAvgM, arXiv:1909.06335; the others arXiv:2003.00295.
  'fedavgm': dict(server_optimizer='fedavgm'),
  'fedadagrad': dict(
    server_optimizer='fedadagrad', server_learning_rate=3e-3, server_momentum=0.0),
  'fedadam': dict(server_optimizer='fedadam', server_learning_rate=1e-3),
  'fedyogi': dict(server_optimizer='fedyogi', server_learning_rate=1e-3),
  # An adapter of all and one of each site's own, in turns. FedDPA-T, arXiv:2403.19211.
  'feddpa': dict(local_rank=4),
  # An adapter for each of two groups of sites of like updates. FedLEASE, arXiv:2509.15087.
  'fedlease': dict(clusters=2),
  # Rounds that wait for nobody. FedBuff, arXiv:2106.06639: a step for every two updates.
  'fedbuff': dict(buffer=2),
  # Baselines: the base model alone, each site alone, all notes pooled in one place.
  'zero_shot': dict(train=False),
  'single_site': dict(sharing='nothing'),
  'centralised': dict(pooled=True),
  # Full-model FedAvg (McMahan et al., arXiv:1602.05629) of a BERT token classifier, embeddings
  # frozen, as the paper's baseline; see config.bert.
  'fed_bert': dict(learner='bert'),
}


def trained_presets() -> tuple[str, ...]:
  """The rows of PRESETS that train a LoRA, whatever config.fed.learner is."""
  return tuple(
    name for name, row in PRESETS.items() if row.get('train', True) and 'learner' not in row)


def apply_preset(config: ConfigDict, preset: str | Mapping[str, Any]) -> None:
  """Writes a row of PRESETS into config.fed, and the defaults of what it does not name.

  What is trained, config.fed.learner, is left as it is by rows that do not name it. Where a row
  that names it was in force, as fed_bert, it goes back to 'lora'.

  Args:
    config: all keys.
    preset: a name of PRESETS, or a row of your own, {'name': 'mine', 'aggregator':
      'methods.py:fednova', ...}: keys of config.fed. config.fed.preset is then 'own:mine'.

  Raises:
    InputError: an unknown name, or a row without a name or with unknown keys.
  """
  if isinstance(preset, str):
    if preset not in PRESETS:
      raise InputError(f'preset {preset!r}: allowed are {", ".join(PRESETS)}')
    name, row = preset, PRESETS[preset]
  else:
    row = {key: value for key, value in preset.items() if key != 'name'}
    name = f'own:{preset.get("name", "")}'
    if not re.fullmatch(r'own:[\w-]+', name):
      raise InputError(
        f'preset {dict(preset)!r}: needs a name of letters, digits, _ and -, '
        "such as {'name': 'mine', ...}")
    unknown = sorted(row.keys() - config.fed.keys())
    if unknown:
      raise InputError(
        f'preset {name!r}: config.fed has no key {unknown[0]!r}; allowed are '
        f'{", ".join(sorted(config.fed.keys()))}')
  undone = {'learner': 'lora'} if 'learner' in PRESETS.get(config.fed.preset, {}) else {}
  config.fed.update(METHOD_DEFAULTS | undone | row | {'preset': name})
