"""Prefill and decoding without transformers' overhead, for ordinary decoder-only models."""
