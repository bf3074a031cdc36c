"""A federated round once more, in numpy and float64, from the papers' formulas alone.

Nothing here is of the package: no JAX, no pytree, no mask, no batch axis. A site of rank r_k holds
matrices of r_k columns in its own scale alpha / r_k; products are formed whole. An adapter is a
dictionary {'q': (A [D_in, r], B [r, D_out]), ...} that predicts the sum of x_q W_q over its names,
W = alpha / r A B + what was folded; the loss of an example is its weight times the squared distance
to y.
"""

from types import SimpleNamespace

import numpy as np

# A second one costs the compiler as much again and says nothing new.
NAMES = 'q'


def zeros(adapter):
  return {name: tuple(np.zeros_like(x) for x in pair) for name, pair in adapter.items()}


def mapped(fn, *adapters):
  """fn over the factors of adapters of one shape."""
  return {name: tuple(fn(*xs) for xs in zip(*(one[name] for one in adapters), strict=True))
          for name in adapters[0]}


def flat(adapter):
  return np.concatenate([x.ravel() for name in NAMES for x in adapter[name]])


def norm(adapter):
  return np.linalg.norm(flat(adapter))


def chosen(adapter, keep):
  """Zeros for the factors that keep('q', 'a') refuses."""
  return {name: tuple(x if keep(name, factor) else np.zeros_like(x)
                      for factor, x in zip('ab', pair, strict=True))
          for name, pair in adapter.items()}


def weighed(adapters, weights):
  """sum_k w_k adapter_k over the sites with weight."""
  total = zeros(adapters[0])
  for adapter, weight in zip(adapters, weights, strict=True):
    if weight > 0:
      total = mapped(lambda t, x, w=weight: t + w * x, total, adapter)
  return total


def sums(adapter, folded, scale, batch):
  """(sum of nats, sum of weights, gradient of the former in A and B)."""
  error = -batch['y']
  for name in NAMES:
    a, b = adapter[name]
    error = error + batch[name] @ (scale * a @ b + folded[name])
  weighted = 2 * batch['weight'][:, None] * error
  gradient = {}
  for name in NAMES:
    a, b = adapter[name]
    outer = batch[name].T @ weighted
    gradient[name] = (scale * outer @ b.T, scale * a.T @ outer)
  return (batch['weight'] * (error**2).sum(axis=1)).sum(), batch['weight'].sum(), gradient


def validation_loss(case, adapter, folded):
  """The plain mean over groups of nats per token."""
  total = 0.0
  for group in case.validation:
    parts = [sums(adapter, folded, case.alpha / case.rank, batch) for batch in group]
    nats, tokens = sum(one[0] for one in parts), sum(one[1] for one in parts)
    total += nats / tokens / len(case.validation)
  return total


def answer_losses(case, adapter, folded):
  """Nats per answer of each group, and their gradients."""
  losses, gradients = [], []
  for group, answers in zip(case.validation, case.answers, strict=True):
    parts = [sums(adapter, folded, case.alpha / case.rank, batch) for batch in group]
    losses.append(sum(one[0] for one in parts) / sum(answers))
    gradients.append(sum(flat(one[2]) for one in parts) / sum(answers))
  return np.array(losses), gradients


def judged_by_others(case, cohort, values, arrived):
  """u_k = median over g != k of (x_kg - mean over j != g of x_jg), x [C, G]; -1 = the server."""
  seen = {}
  for judge in [*(site for site, here in zip(cohort, arrived, strict=True) if here), -1]:
    groups = [g for g, owner in enumerate(case.owners) if owner == judge]
    if groups:
      seen[judge] = {
        k: np.mean([values[k][g] for g in groups]) for k, site in enumerate(cohort)
        if arrived[k] and site != judge}
  good = [k for k in range(len(cohort)) if arrived[k] and all(
    np.isfinite(of.get(k, 0.0)) for of in seen.values())]
  out = np.full(len(cohort), np.nan)
  for k in good:
    excess = [of[k] - np.mean([of[j] for j in good if j in of])
              for of in seen.values() if k in of]
    out[k] = np.median(excess) if excess else 0.0
  return out


def narrowed(adapter, rank, whole):
  """The first columns, in the scale of a site of that rank."""
  return {name: (a[:, :rank], b[:rank] * rank / whole) for name, (a, b) in adapter.items()}


def widened(adapter, rank, whole):
  """A site's adapter in the server's scale, zeros in the columns that it lacks."""
  out = {}
  for name, (a, b) in adapter.items():
    out[name] = (np.pad(a, ((0, 0), (0, whole - rank))),
                 np.pad(b * whole / rank, ((0, whole - rank), (0, 0))))
  return out


def rate_of(case, step, steps):
  """Plain steps at one rate; AdamW's rises over ceil(share steps), then falls as half a cosine."""
  if case.optimizer == 'sgd':
    return case.rate
  warmup = int(np.ceil(round(case.warmup * steps, 9)))
  if step < warmup:
    return case.rate * (step + 1) / warmup
  return case.rate * (1 + np.cos(np.pi * (step - warmup) / max(steps - warmup, 1))) / 2


def trained_alone(case, start, ctrl, server_ctrl, batches, trains, folded, rank):
  """A site's steps from `start`, an adapter of its own rank -> (adapter, losses)."""
  adapter, first, second = start, zeros(start), zeros(start)
  losses = []
  for step, batch in enumerate(batches):
    nats, tokens, gradient = sums(adapter, folded, case.alpha / rank, batch)
    losses.append(nats / tokens)
    gradient = mapped(lambda g, n=tokens: g / n, gradient)
    pulled = {
      'plain': lambda g, y, x, c_i, c: g,
      'fedprox': lambda g, y, x, c_i, c: g + case.strength * (y - x),
      'scaffold': lambda g, y, x, c_i, c: g - c_i + c,
      'feddyn': lambda g, y, x, c_i, c: g - c_i + case.strength * (y - x)}[case.rule]
    corrected = mapped(pulled, gradient, adapter, start, ctrl, server_ctrl)
    direction = chosen({name: tuple(
      (corrected if case.shared(name, factor) else gradient)[name][i]
      for i, factor in enumerate('ab')) for name in NAMES}, trains)
    if case.optimizer == 'adamw':
      cut = min(1.0, case.clip / max(norm(direction), 1e-30))
      direction = mapped(lambda g, s=cut: g * s, direction)
      first = mapped(lambda m, g: 0.9 * m + 0.1 * g, first, direction)
      second = mapped(lambda v, g: 0.999 * v + 0.001 * g**2, second, direction)
      direction = chosen(mapped(
        lambda m, v, p, t=step + 1: m / (1 - 0.9**t) / (
          np.sqrt(v / (1 - 0.999**t)) + case.eps) + case.decay * p, first, second, adapter), trains)
    rate = rate_of(case, step, len(batches))
    adapter = mapped(lambda p, u, r=rate: p - r * u, adapter, direction)
  return adapter, losses


def softmax_weights(case, sizes, losses, size_power, loss_power, floor=0.0):
  """w proportional to n^gamma exp(-beta l / tau), with the share eps spread over the usable."""
  usable = (sizes > 0) & np.isfinite(losses)
  if not usable.any():
    return np.zeros(len(sizes))
  logs = size_power * np.log(sizes[usable]) - loss_power * losses[usable] / case.temperature
  raw = np.exp(logs - logs.max())
  out = np.zeros(len(sizes))
  out[usable] = (1 - floor) * raw / raw.sum() + floor / usable.sum()
  return out


def formed(case, server, local, weights, anchor_update=None):
  """(adapter, dense columns folded {name: [D_in, D_out]}) of a weighted mean of sites' adapters."""
  nothing = {name: np.zeros((a.shape[0], b.shape[1])) for name, (a, b) in server.items()}
  if not weights.any():
    return server, nothing
  if case.aggregator == 'mean':
    return mapped(np.add, server, weighed(anchor_update, weights)), nothing
  if case.aggregator == 'aligned':
    return weighed(turned(case, server, local), weights), nothing
  if case.aggregator == 'orthogonalised':
    adapter = {}
    for name, (a, b) in mapped(np.add, server, weighed(anchor_update, weights)).items():
      u, s, v = np.linalg.svd(a @ b, full_matrices=False)
      adapter[name] = (u[:, :case.rank], s[:case.rank, None] * v[:case.rank])
    return adapter, nothing
  mean, adapter, folded = weighed(local, weights), {}, {}
  widest = max(r for r, w in zip(case.cohort_ranks, weights, strict=True) if w > 0)
  for name in NAMES:
    a, b = (x.copy() for x in mean[name])
    product = sum(w * one[name][0] @ one[name][1]
                  for one, w in zip(local, weights, strict=True) if w > 0)
    residual = product - a @ b
    # Columns that no site of the round has: as they were.
    old_a, old_b = server[name]
    a[:, widest:], b[widest:] = old_a[:, widest:], old_b[widest:]
    fold = np.zeros_like(product)
    if case.aggregator == 'corrected':
      own = mean[name][0]
      b = b + np.linalg.solve(own.T @ own + case.fair * np.eye(case.rank), own.T @ residual)
    elif case.aggregator == 'residual':
      fold = residual
      if case.residual_rank:
        u, s, v = np.linalg.svd(residual)
        fold = u[:, :case.residual_rank] * s[:case.residual_rank] @ v[:case.residual_rank]
    elif case.aggregator == 'stacked':
      fold, a, b = product, case.fresh[name], np.zeros_like(b)
    elif case.aggregator == 'refactorised':
      u, s, v = np.linalg.svd(product + old_a[:, widest:] @ old_b[widest:])
      root = np.sqrt(s[:case.rank])
      a, b = u[:, :case.rank] * root, root[:, None] * v[:case.rank]
      empty = s[:case.rank] <= 1e-6 * s[0]
      a[:, empty], b[empty] = old_a[:, empty], 0
    adapter[name], folded[name] = (a, b), fold
  return adapter, folded


def rotation(matrix):
  """The rotation R of largest trace of R^T M."""
  u, _, v = np.linalg.svd(matrix)
  u[:, -1] *= np.sign(np.linalg.det(u @ v))
  return u @ v


def turned(case, server, local):
  """FedRot-LoRA: each site's factors turned towards the server's A."""
  out = []
  for one in local:
    out.append({})
    for name, (a, b) in one.items():
      by = rotation(a.T @ server[name][0])
      by = rotation((1 - case.alignment) * np.eye(case.rank) + case.alignment * by)
      out[-1][name] = (a @ by, by.T @ b)
  return out


def by_steps_or_losses(case, state, cohort, updates, sizes, steps, starts):
  """(aggregate, weights) of FedNova, q-FedAvg and agnostic federated learning."""
  share = np.where(sizes > 0, np.maximum(sizes, 1e-9)**case.size_power, 0)
  share = share / share.sum()
  if case.aggregator == 'normalised':
    paths = np.array([sum(rate_of(case, t, count) for t in range(count)) for count in steps])
    each = share / paths
    return weighed(updates, each * (share @ paths)), each / each.sum()
  if case.aggregator == 'q_fedavg':
    starts, big = np.where(sizes > 0, starts, 1.0), case.lipschitz
    pulls = [share[k] * starts[k]**case.fairness * big for k in range(len(cohort))]
    bends = [share[k] * case.fairness * starts[k]**(case.fairness - 1) * norm(
      mapped(lambda x: big * x, updates[k]))**2 for k in range(len(cohort))]
    weights = np.array(pulls) / (sum(pulls) + sum(bends))
    return weighed(updates, weights), np.array(pulls) / sum(pulls)
  here = sizes > 0
  mixture = np.where(here, state.mixture[cohort], 0)
  weights = mixture / mixture.sum() if mixture.any() else here / here.sum()
  above = np.where(here, starts - starts[here].mean(), 0)
  moved = state.mixture.copy()
  moved[cohort] += case.mixture_rate * above
  low, high = moved.min() - 1, moved.max()
  for _ in range(200):  # by bisection of what is taken off
    middle = (low + high) / 2
    low, high = (middle, high) if np.maximum(moved - middle, 0).sum() > 1 else (low, middle)
  state.mixture = np.maximum(moved - low, 0)
  return weighed(updates, weights), weights


def mean_of_sites(case, state, cohort, updates, local, sizes):
  """(aggregate, folded, weights, utility) of the weighted means, and the weights' memory."""
  losses = np.zeros(len(cohort))
  if case.loss_power:
    shares = softmax_weights(case, sizes, losses, case.size_power, 0.0)

    def of(weights):
      adapter, fold = formed(case, state.server, local, weights, updates)
      whole = {name: state.folded[name] + case.alpha / case.rank * fold[name] for name in NAMES}
      return answer_losses(case, adapter, whole)[0]

    if case.signal == 'loss':
      losses = np.array([validation_loss(case, one, state.folded) for one in local])
    elif case.signal == 'answer':
      losses = np.array([answer_losses(case, one, state.folded)[0].mean() for one in local])
    elif case.signal == 'peer':
      losses = judged_by_others(
        case, cohort, [answer_losses(case, one, state.folded)[0] for one in local], shares > 0)
    elif case.signal == 'loo':
      rest = [np.where(np.arange(len(cohort)) == k, 0, shares) for k in range(len(cohort))]
      losses = judged_by_others(
        case, cohort, [of(shares) - of(one / max(one.sum(), 1e-30)) for one in rest], shares > 0)
    elif case.signal == 'grad':
      average = {name: tuple(
        of + sum(w * one[name][i] for w, one in zip(shares, updates, strict=True))
        for i, of in enumerate(state.server[name])) for name in NAMES}
      _, gradients = answer_losses(case, average, state.folded)
      losses = judged_by_others(
        case, cohort, [[flat(one) @ of for of in gradients] for one in updates], shares > 0)
    else:  # HetLoRA: w proportional to |A B|
      losses = np.array([-np.log(max(np.sqrt(sum(
        np.sum((one[name][0] @ one[name][1])**2) for name in NAMES)), 1e-15)) for one in local])
  compared = losses
  if case.signal in ('peer', 'loo', 'grad'):
    known = losses[np.isfinite(losses) & (sizes > 0)]
    compared = losses / max(1.0, known.std() if len(known) else 0.0)
  weights = softmax_weights(
    case, sizes, compared, case.size_power, case.loss_power, case.floor)
  if case.ema:
    past = state.memory[cohort]
    known = (past > 0) & (weights > 0)
    if known.any():
      before = weights.copy()
      before[known] = past[known] * weights[known].sum() / past[known].sum()
      weights = case.ema * before + (1 - case.ema) * weights
  memory = state.memory.copy()
  for place, site in enumerate(cohort):
    if sizes[place] > 0:
      memory[site] = weights[place]
  adapter, fold = formed(case, state.server, local, weights, updates)
  return (mapped(np.subtract, adapter, state.server), fold, weights,
          losses if case.loss_power else None, memory)


def robust(case, updates, sizes):
  """(aggregate, weights) of the sites that are present."""
  here = np.flatnonzero(sizes > 0)
  rows = np.array([flat(updates[place]) for place in here])
  even = np.full(len(here), 1 / max(len(here), 1))
  used = even
  if case.aggregator == 'median':
    row = np.median(rows, axis=0)
  elif case.aggregator == 'trimmed_mean':
    cut = int(np.floor(case.trim * len(here) + 1e-9))
    row = np.sort(rows, axis=0)[cut:len(here) - cut].mean(axis=0)
  elif case.aggregator == 'krum':
    distance = ((rows[:, None] - rows[None])**2).sum(axis=2)
    near = max(len(here) - case.faulty - 2, 1)
    score = [np.sort(np.delete(distance[i], i))[:near].sum() for i in range(len(here))]
    best = np.argsort(score, kind='stable')[:max(1, min(case.kept, len(here) - case.faulty))]
    used = np.isin(np.arange(len(here)), best) / len(best)
    row = rows[best].mean(axis=0)
  else:
    size = sizes[here]**case.size_power
    used = size / size.sum()
    lengths = np.linalg.norm(rows, axis=1)
    if case.aggregator == 'clipped_mean':
      bound = case.norm_limit * np.median(lengths)
      row = (used * np.minimum(1, bound / np.maximum(lengths, 1e-30))) @ rows
    else:  # Weiszfeld's iteration
      start = used
      for _ in range(64):
        least = 1e-6 * lengths.mean() + 1e-30
        reach = np.maximum(np.linalg.norm(rows - used @ rows, axis=1), least)
        used = start / reach / (start / reach).sum()
      row = used @ rows
  weights = np.zeros(len(sizes))
  weights[here] = used
  out, at = zeros(updates[0]), 0
  for name in NAMES:
    pair = []
    for x in out[name]:
      pair.append(row[at:at + x.size].reshape(x.shape))
      at += x.size
    out[name] = tuple(pair)
  return out, weights


def server_step(case, state, aggregate):
  """arXiv:2003.00295, algorithm 2: without bias correction, v from tau^2."""
  if case.server == 'fedavg':
    return mapped(lambda d: case.server_rate * d, aggregate)
  if case.server == 'fedavgm':
    state.momentum = mapped(lambda m, d: case.momentum * m + d, state.momentum, aggregate)
    return mapped(lambda m: case.server_rate * m, state.momentum)
  state.momentum = mapped(
    lambda m, d: case.momentum * m + (1 - case.momentum) * d, state.momentum, aggregate)
  state.second = mapped({
    'fedadagrad': lambda v, d: v + d**2,
    'fedadam': lambda v, d: case.b2 * v + (1 - case.b2) * d**2,
    'fedyogi': lambda v, d: v - (1 - case.b2) * d**2 * np.sign(v - d**2)}[case.server],
    state.second, aggregate)
  return mapped(
    lambda m, v: case.server_rate * m / (np.sqrt(v) + case.tau), state.momentum, state.second)


def begin(case, server):
  """The state before the first round."""
  own = [server for _ in range(case.sites)]
  return SimpleNamespace(
    happened=0, server=server, own=own, ctrl=[zeros(server) for _ in own],
    mixture=np.full(case.sites, 1 / case.sites),
    server_ctrl=zeros(server), memory=np.zeros(case.sites), momentum=zeros(server),
    second=mapped(lambda x: np.full_like(x, case.tau**2), server),
    folded={name: np.zeros((a.shape[0], b.shape[1])) for name, (a, b) in server.items()})


def play(case, state, cohort, sizes, batches):
  """One round -> (weights, utility or None); `state` is moved, unless nobody could be used.

  Args:
    cohort: numbers of the sites.
    sizes: n_k of each; 0 = sends nothing.
    batches: of each site, its steps.
  """
  def trains(name, factor):
    return case.trained(name, factor, state.happened)

  ranks = case.cohort_ranks = [case.ranks[site] for site in cohort]
  updates, local, after, steps, sound, starts = [], [], [], [], [], []
  for site, rank, own in zip(cohort, ranks, batches, strict=True):
    start = narrowed({name: tuple(
      (state.server if case.shared(name, factor) else state.own[site])[name][i]
      for i, factor in enumerate('ab')) for name in NAMES}, rank, case.rank)
    ctrl = [{n: (a[:, :rank], b[:rank]) for n, (a, b) in one.items()}
            for one in (state.ctrl[site], state.server_ctrl)]
    adapter, losses = trained_alone(case, start, *ctrl, own, trains, state.folded, rank)
    before, now = (widened(one, rank, case.rank) for one in (start, adapter))
    after.append((start, adapter, now))
    sent = chosen(mapped(np.subtract, now, before), case.shared)
    sound.append(np.isfinite(losses).all() and np.isfinite(flat(now)).all())
    updates.append(sent if sound[-1] else zeros(sent))
    first = widened(narrowed(state.server, rank, case.rank), rank, case.rank)
    local.append(mapped(np.add, first, updates[-1]))
    steps.append(len(own))
    parts = [sums(start, state.folded, case.alpha / rank, batch) for batch in own]
    starts.append(sum(one[0] for one in parts) / sum(one[1] for one in parts))
  sizes = np.where(sound, sizes, 0.0)
  utility, fold, memory = None, None, state.memory
  if case.aggregator in ('median', 'trimmed_mean', 'geometric_median', 'krum', 'clipped_mean'):
    aggregate, weights = robust(case, updates, sizes) if sizes.any() else (
      zeros(state.server), np.zeros(len(cohort)))
  elif case.aggregator in ('normalised', 'q_fedavg', 'agnostic'):
    aggregate, weights = by_steps_or_losses(
      case, state, cohort, updates, sizes, steps, np.array(starts)) if sizes.any() else (
      zeros(state.server), np.zeros(len(cohort)))
  else:
    aggregate, fold, weights, utility, memory = mean_of_sites(
      case, state, cohort, updates, local, sizes)
  if not weights.any():
    return weights, utility
  state.memory = memory
  moved = zeros(state.server)
  for place, site in enumerate(cohort):
    if sizes[place] <= 0:
      continue
    start, adapter, now = after[place]
    state.own[site] = now
    if case.rule == 'scaffold':
      change = mapped(
        lambda x, y, c, k=steps[place]: (x - y) / (k * case.rate) - c, start, adapter,
        state.server_ctrl)
    elif case.rule == 'feddyn':
      change = mapped(lambda x, y: case.strength * (x - y), start, adapter)
    else:
      continue
    state.ctrl[site] = mapped(np.add, state.ctrl[site], change)
    moved = mapped(np.add, moved, change)
  state.server_ctrl = mapped(lambda c, m: c + m / case.sites, state.server_ctrl, moved)
  if case.rule == 'feddyn':
    aggregate = mapped(lambda d, h: d - h / case.strength, aggregate, state.server_ctrl)
  # The server moves what is trained, and with FedSVD A, which is not.
  step = chosen(server_step(case, state, aggregate), lambda n, f: (
    trains(n, f) or case.sharing == 'served_a') and case.shared(n, f))
  state.server = mapped(np.add, state.server, step)
  if fold is not None:
    state.folded = {
      name: state.folded[name] + case.alpha / case.rank * fold[name] for name in NAMES}
  state.happened += 1
  return weights, utility
