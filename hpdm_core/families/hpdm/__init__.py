"""Hierarchical patch diffusion (CVPR 2024): tokenizer, RIN, deep context fusion, joint denoiser, cascade."""
