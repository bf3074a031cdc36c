"""The reference's BERT baseline: full-model FedAvg, embeddings frozen, batch 64, T=3, E=3."""

from fedmedjax.experiment.shipped.clinical_bert import get_config

__all__ = ['get_config']
