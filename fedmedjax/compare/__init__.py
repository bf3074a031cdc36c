"""Regimes side by side: scenarios, paired comparisons and their tables."""
