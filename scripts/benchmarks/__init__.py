"""What scripts/bench_*.py share: inputs, ways to train and decode, peers, timing, tables."""
