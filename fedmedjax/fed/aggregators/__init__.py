"""How the sites' updates become one."""

from fedmedjax.fed.aggregators import products, robust, weighted_mean

# What stands for l_k in the weights; the first three ask the server's validation set.
SIGNALS = {
  'loss': weighted_mean.site_losses, 'loo': weighted_mean.leave_one_out,
  'grad': weighted_mean.alignment, 'product_norm': products.product_norms,
}
# Weighted means, by how they are formed: (config.fed, rank, rounds, columns that a round folds if
# the residual or the stack is whole) -> Combine.
COMBINES = {
  'mean': lambda fed, rank, rounds, columns: weighted_mean.factor_mean(),
  'padded_mean': lambda fed, rank, rounds, columns: products.padded_mean(),
  'refactorised': lambda fed, rank, rounds, columns: products.refactorised(rank),
  'stacked': lambda fed, rank, rounds, columns: products.stacked(rounds * columns),
  'residual': lambda fed, rank, rounds, columns: products.with_residual(
    rounds * (fed.residual_rank or columns), fed.residual_rank),
  'corrected': lambda fed, rank, rounds, columns: products.corrected(fed.fair_penalty),
}
ROBUST = {
  'median': lambda fed: robust.median(),
  'trimmed_mean': lambda fed: robust.trimmed_mean(fed.trim),
  'geometric_median': lambda fed: robust.geometric_median(size_power=fed.size_power),
  'krum': lambda fed: robust.krum(faulty=fed.faulty, kept=fed.kept),
  'clipped_mean': lambda fed: robust.clipped_mean(
    limit=fed.norm_limit, size_power=fed.size_power),
}
AGGREGATORS = (*COMBINES, *ROBUST)
# These add to the base every round; the room for it is laid out for all rounds at the start. What
# of it travels, in columns: (config.fed, lora.rank, ranks of the cohort's sites). Of a stack, what
# each site has; a residual holds the mean of all in every site's columns.
FOLDING = {
  'stacked': lambda fed, rank, ranks: sum(ranks),
  'residual': lambda fed, rank, ranks: fed.residual_rank or rank * len(ranks),
}
PRODUCTS = ('refactorised', 'corrected', *FOLDING)
