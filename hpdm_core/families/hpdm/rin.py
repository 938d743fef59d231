"""The backbone: a Recurrent Interface Network (HPDM §3, after Jabri et al. 2022).

A block works on data tokens X through a small set of latents Z: the latents first read the condition,
then the tokens, think among themselves, and write back. Its cost is linear in the number of tokens, and
all blocks run at one resolution, which is what lets fine pyramid levels skip early blocks.

The residual streams keep the dtype they come in, fp32 unless told otherwise; under autocast only matrix products
run in bf16.
Shapes: R rows (level x batch), N tokens, D token width, K latents, Z latent width, M condition tokens.
"""

from __future__ import annotations

from torch import Tensor, nn

from hpdm_core.families.hpdm.config import HpdmModel
from hpdm_core.nn.attention import CrossAttention, SelfAttention, feed_forward, layer_norm
from hpdm_core.nn.normed import normed_mlp


class LatentLayer(nn.Module):
    """Pre-norm self-attention and MLP on the latents."""

    def __init__(self, dim: int, head_dim: int, mlp_ratio: float) -> None:
        super().__init__()
        self.attention_norm, self.attention = layer_norm(dim), SelfAttention(dim, head_dim)
        self.mlp_norm, self.mlp = layer_norm(dim), feed_forward(dim, mlp_ratio)

    def forward(self, z_RKZ: Tensor) -> Tensor:
        """[R, K, Z] to [R, K, Z]."""
        z_RKZ = z_RKZ + self.attention(z_RKZ, self.attention_norm)
        return z_RKZ + normed_mlp(self.mlp_norm, self.mlp, z_RKZ)


class RinBlock(nn.Module):
    """Condition read, token read, `latent_layers` of latent self-attention, write."""

    def __init__(self, config: HpdmModel) -> None:
        super().__init__()
        d, z, head = config.token_dim, config.latent_dim, config.head_dim
        latent_head = config.latent_head_dim or head
        self.condition_norm = layer_norm(z)
        self.condition_read = CrossAttention(z, d, head)
        self.read_norm, self.read_source_norm = layer_norm(z), layer_norm(d)
        self.read = CrossAttention(z, d, head)
        self.read_mlp_norm, self.read_mlp = layer_norm(z), feed_forward(z, config.mlp_ratio)
        self.latent_layers = nn.ModuleList(
            LatentLayer(z, latent_head, config.mlp_ratio) for _ in range(config.latent_layers)
        )
        self.write_norm, self.write_source_norm = layer_norm(d), layer_norm(z)
        self.write = CrossAttention(d, z, head)
        self.write_mlp_norm, self.write_mlp = layer_norm(d), feed_forward(d, config.token_mlp_ratio)

    def forward(
        self, x_RND: Tensor, z_RKZ: Tensor, condition_RMD: Tensor, mask_RM: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """New tokens [R, N, D] and latents [R, K, Z]. mask: the condition tokens that count; None: all."""
        z_RKZ = z_RKZ + self.condition_read(z_RKZ, condition_RMD, mask_RM, norm=self.condition_norm)
        z_RKZ = z_RKZ + self.read(z_RKZ, x_RND, norm=self.read_norm, source_norm=self.read_source_norm)
        z_RKZ = z_RKZ + normed_mlp(self.read_mlp_norm, self.read_mlp, z_RKZ)
        for layer in self.latent_layers:
            z_RKZ = layer(z_RKZ)
        x_RND = x_RND + self.write(x_RND, z_RKZ, norm=self.write_norm, source_norm=self.write_source_norm)
        return x_RND + normed_mlp(self.write_mlp_norm, self.write_mlp, x_RND), z_RKZ
