"""Parts of a method that do not go together, and why.

What a part asks of the others is its `needs`, a set of names from NEEDS; parts of a user's own say
theirs in the same way. What the others give is found out in `traits.py`, never by a part's name. A
refusal is a predicate on (flat configuration, traits of all parts), the key to name in the error,
and the reason with a way out.
"""

from collections.abc import Mapping, Sequence

from fedmedjax.experiment import unsound
from fedmedjax.experiment.anchor_refusals import BUFFER, CLUSTERS, DUAL
from fedmedjax.experiment.methods import Own, Values, method
from fedmedjax.experiment.refusal import Refusal
from fedmedjax.experiment.traits import GIVES, traits
from fedmedjax.types import InputError

# What an aggregator or a local rule may ask for.
NEEDS: Mapping[str, str] = {
  'single_updates': "every site's own update: not the sum of a secure aggregation",
  'both_factors': 'factors A and B of every site, trained and sent',
  'moved_pairs': 'factors A and B shared, and both moved by the server in every round',
  'cores': 'an adapter with heads, of which the cores are trained and sent',
  'plain_server': 'a server that takes the result as it is: fedavg with rate 1',
  'no_control_variates': 'a rule without control variates',
  'no_error_feedback': 'updates without what earlier rounds left out',
  'exact_base': 'a base that is not quantised',
  'fixed_cohort': 'cohorts of one size',
  'fixed_rounds': 'a number of rounds that is known at the start',
  'own_weights': 'no weights by validation loss, floor or average',
  'one_rank': 'one rank at all sites',
  'unweighted': 'sites that are not drawn by size',
  'whole_steps': 'sites whose steps no deadline cuts, and whose weights so are their sizes',
  'plain_sgd': 'plain local steps of a constant rate',
  'plain_mean': 'the plain mean of the updates',
  'steady_factors': 'the same factors in every round, under a weighted mean',
  'shared_anchor': 'something that is shared',
  'whole_updates': 'updates that are sent whole, in float32',
  'clear_control': 'control variates that travel in the clear',
  'peers': "several sites, which are sent each other's adapters and judge them on their V",
}


_CLASSIFIER = (
  Refusal(unsound.classifier_multiplies, 'fed.aggregator',
          'a classifier has no factors A and B to multiply'),
  Refusal(unsound.classifier_weighs_products, 'fed.signal',
          'a classifier has no factors A and B to multiply'),
  Refusal(unsound.classifier_shares_factors, 'fed.sharing',
          "a classifier has no factors A and B; use 'everything' or 'nothing'"),
  Refusal(unsound.classifier_has_ranks, 'fed.ranks', 'a classifier has no rank; use ()'),
)

_RULE = (
  Refusal(unsound.adaptive_steps, 'fed.local_optimizer',
          'SCAFFOLD reads the mean gradient off the path of plain steps, which Adam does not '
          "leave, as does every rule that needs plain_sgd; use 'sgd'"),
  Refusal(unsound.weighted_control, 'fed.size_power',
          'control variates are averaged plainly and lead to the optimum of the plain mean '
          'whatever the weights; set size_power and loss_power to 0'),
  Refusal(unsound.other_mean, 'fed.aggregator',
          'control variates lead to the optimum under a mean of the updates only; use a weighted '
          "mean, such as 'mean', or let one of your own say gives={'weighted_mean'}"),
  Refusal(unsound.remembered_plain_mean, 'fed.ema',
          'sites weigh the same here, and weights that are kept of other cohorts do not; use 0'),
  Refusal(unsound.stale_control, 'fed.sharing',
          'control variates would go stale in the rounds that freeze their factor'),
  Refusal(unsound.control_of_ranks, 'fed.ranks',
          'sites of unlike rank have unlike scales, so their control variates cannot be averaged'),
  Refusal(unsound.replaced_control, 'fed.aggregator',
          'control variates follow the factors from round to round, this aggregator replaces them'),
  Refusal(unsound.nothing_to_pull_to, 'fed.rule',
          "local rules pull towards what is shared, and nothing is; use 'plain'"),
  Refusal(unsound.alone_with_itself, 'fed.sharing',
          "pooled training has one site; use 'everything'"),
)

_UNTUNED = "peers' judgement has no number to tune; use size_power, loss_power and temperature 1"
_SIGNAL = (
  Refusal(unsound.signal_without_power, 'fed.signal',
          "loss_power 0 leaves it out of the weights; use loss_power 1, or signal 'loss'"),
  Refusal(unsound.judged_alone, 'fed.signal',
          "pooled training has one site, which nobody else can judge; use 'loss', loss_power 0"),
  Refusal(unsound.judged_without_updates, 'fed.signal',
          "nothing is sent, so that nobody could be judged; use 'loss', loss_power 0"),
  *(Refusal(unsound.peers_tuned(key), key, _UNTUNED)
    for key in ('fed.size_power', 'fed.loss_power', 'fed.temperature')),
)
_AGGREGATOR = (
  Refusal(unsound.too_few_for_krum, 'fed.faulty', 'Krum needs at least 2 f + 3 sites a round'),
  Refusal(unsound.krum_keeps_too_many, 'fed.kept', 'Multi-Krum keeps at most n - f sites'),
  Refusal(unsound.weights_twice, 'fed.aggregator',
          'aggregators such as this choose their own weights; set loss_power, floor and ema to 0'),
  Refusal(unsound.signal_without_weights, 'fed.signal',
          "aggregators such as this choose their own weights and read no signal; use 'loss'"),
  Refusal(unsound.votes_for_zero, 'fed.ranks',
          'columns that a site lacks would be votes for 0; robust aggregators need one rank'),
  Refusal(unsound.one_factor_missing, 'fed.sharing',
          "this aggregator needs both factors of every site, trained and sent; use 'everything'"),
  Refusal(unsound.weighed_by_steps_twice, 'simulation.deadline',
          'a site whose steps a deadline cuts weighs less for it, and this aggregator divides by '
          'steps once more; use 0'),
  Refusal(unsound.frozen_for_the_server, 'fed.sharing',
          "this aggregator writes A anew after every round; use 'served_a', or 'everything'"),
  Refusal(unsound.no_product_to_judge, 'fed.loss_power',
          'a factor stays at its site, so that the server has no product that a validation loss '
          "could judge: with sharing 'only_a' the server's B stays at zero; use 0"),
  Refusal(unsound.server_steps_twice, 'fed.server_optimizer',
          "this aggregator or rule gives the next adapter itself; use 'fedavg' with "
          'server_learning_rate 1'),
  Refusal(unsound.quantised_base, 'fed.aggregator',
          'it adds to the weights of the base, which a quantised base cannot hold exactly'),
  Refusal(unsound.residual_too_wide, 'fed.residual_rank',
          'the whole residual has no more than sites times lora.rank columns; 0 sends all of it'),
)

_RANKS = (
  Refusal(unsound.ranks_of_others, 'fed.ranks',
          'one rank for each site of config.data.sites, or of the partition, is needed'),
  Refusal(unsound.rank_too_high, 'fed.ranks', 'no site may have more than config.lora.rank'),
  Refusal(unsound.cohorts_of_unlike_size, 'fed.sampler',
          "the room for what joins the base is for cohorts of one size; use 'uniform' or 'size'"),
  Refusal(unsound.draws_not_undone, 'fed.sampler',
          'sites drawn by size are weighed to undo it, and this aggregator takes no weights; use '
          "'uniform'"),
)
_SENDING = (
  Refusal(unsound.ranks_with_one_sign, 'fed.outbound',
          'columns that a site lacks would count in the mean that is the size of all its values'),
  Refusal(unsound.ranks_with_largest, 'fed.top_k',
          'the share would be of the values of lora.rank, of which a site of lower rank lacks '
          'some; use 1.0'),
  Refusal(unsound.owed_to_frozen, 'fed.error_feedback',
          'what is owed of a factor would be paid in the round that freezes it, and so be lost'),
  Refusal(unsound.owed_to_replaced, 'fed.error_feedback',
          'what is owed is of factors that this aggregator replaces by others after every round, '
          'or of another number of steps, which it divides by'),
  Refusal(unsound.cut_updates, 'fed.rule',
          "FedDyn's server makes its control variate of the sites' whole updates; send them in "
          'float32, without top_k and clip_update'),
)
_SECURE = (
  Refusal(unsound.secure_weights, 'fed.secure_aggregation',
          "weights by a signal, such as Fed-MedLoRA+'s, need every site's own update, of which "
          'the server learns the sum only; set loss_power to 0'),
  Refusal(unsound.secure_single_updates, 'fed.secure_aggregation',
          "this aggregator needs every site's own update, of which the server learns the sum "
          "only; use aggregator 'mean'"),
  Refusal(unsound.secure_codec, 'fed.secure_aggregation',
          'a masked message has 32 bits a value whatever a codec leaves of it; use outbound '
          "'float32' and top_k 1"),
  Refusal(unsound.secure_ranks, 'fed.secure_aggregation',
          'masks of a pair have one shape, updates of sites of unlike rank have not; use ranks ()'),
  Refusal(unsound.secure_control, 'fed.secure_aggregation',
          "a site's control variate would travel without a mask; use rule 'plain'"),
  Refusal(unsound.secure_alone, 'fed.secure_aggregation',
          'the sum of one update is that update; at least 2 sites a round are needed'),
)

_HEADS = (
  Refusal(unsound.heads_of_classifier, 'fed.heads', 'a classifier has no adapter; use 0'),
  Refusal(unsound.heads_untrained, 'fed.sharing',
          "of an adapter with heads the cores are trained and sent; use 'cores', or heads 0"),
  Refusal(unsound.no_cores, 'fed.aggregator',
          "it averages cores, which an adapter without heads has not; use 'mean', or heads"),
  Refusal(unsound.heads_of_ranks, 'fed.ranks', 'heads have one rank, lora.rank; use ()'),
  Refusal(unsound.heads_from_start, 'lora.start',
          "an adapter with heads starts from bases of its own; use ''"),
  Refusal(unsound.heads_weighed_as_pairs, 'fed.signal',
          "an adapter with heads has no pairs of factors to multiply; use 'loss'"),
)
_CONTRIBUTION = (
  Refusal(unsound.contribution_alone, 'fed.contribution',
          "pooled training has one site, and without training there is none; use 'none'"),
  Refusal(unsound.contribution_under_masks, 'fed.contribution',
          "means without a site need every site's own update, and secure aggregation has their "
          "sum only; use 'none'"),
  Refusal(unsound.contribution_of_cores, 'fed.contribution',
          'coalitions are means of factors, and of an adapter with heads the products of scalings '
          "and cores are averaged; use 'none'"),
  Refusal(unsound.contribution_of_nothing, 'fed.contribution',
          'nothing is shared, or one factor alone, so that the server has no adapter that a '
          "validation loss could judge; use 'none'"),
)

# The first that fails is the error.
REFUSALS = (
  *DUAL, *_CLASSIFIER, *_HEADS, *_RULE, *_SIGNAL, *_AGGREGATOR, *_RANKS, *_SENDING, *_SECURE,
  *_CONTRIBUTION, *BUFFER, *CLUSTERS)


def check_method(values: Values, own: Own, paths: Sequence[str] | None = None) -> None:
  """Raises InputError for parts that do not go together, before anything is compiled.

  Args:
    values: flat configuration, each value allowed on its own.
    own: the user's own parts, by key.
    paths: of the adapter's leaves; None = as the configuration lets expect.
  """
  parts = method(values, own)
  for key in own:
    part = getattr(parts, key.removeprefix('fed.'), None)
    for field, known in (('needs', NEEDS), ('gives', GIVES)):
      for name in sorted(getattr(part, field, frozenset()) - known.keys()):
        raise InputError(
          f'config.{key}={values[key]!r}: {field} {name!r}, which is unknown; allowed are '
          f'{", ".join(known)}')
  found = traits(values, own, parts, paths)
  for refusal in REFUSALS:
    if refusal.fails(values, found):
      raise InputError(
        f"config.{refusal.key}={values[refusal.key]!r}: preset {values['fed.preset']!r}: "
        f'{refusal.reason}')
