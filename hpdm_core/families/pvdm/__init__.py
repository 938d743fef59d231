"""Projected latent video diffusion (PVDM, CVPR 2023): autoencoder to three planes, critics, plane U-Net, clips."""
