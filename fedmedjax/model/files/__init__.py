"""Weights, adapters and configurations as files: safetensors, GGUF, PEFT and BERT folders."""
