"""What a run keeps on disk: JSON files, checkpoints, the lock, TensorBoard events."""
