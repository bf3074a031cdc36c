"""One run: rounds, their log, memory, fingerprints, and the dry run."""
