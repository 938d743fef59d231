"""Matryoshka diffusion (Gu et al. 2023): one nested U-Net denoises all resolutions of a clip jointly."""
