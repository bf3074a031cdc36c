"""What `predict` does: a saved adapter, a folder of notes in, annotated files out."""
