"""The autoencoder: a clip to three planes of tanh-bounded latents and back.

Encoder and decoder are transformers with divided space-time attention at one resolution; tokens are
p x p patches of single frames. A projector per axis runs along that axis and leaves one vector per
fibre. The decoder starts from the sum of the three planes, each spread again along the axis that it
lacks. Nothing but the tanh shapes the latents: no statistics, no codebook, no KL term.

Shapes: B batch, C channels, T H W frames and pixels, t h w cells of the grid, S = h * w cells of a frame,
D width, R fibres, N cells of all planes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpdm_core.families.pvdm.config import AutoencoderSection, PvdmModel
from hpdm_core.families.pvdm.planes import PLANES
from hpdm_core.nn.attention import layer_norm
from hpdm_core.nn.rotary import HeadAttention, grid_angles, line_angles

CHANNELS = 3


class GatedFeedForward(nn.Module):
    """GEGLU: half of a widened linear layer gates the other half."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.wide = nn.Linear(dim, 2 * ratio * dim)
        self.out = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        value, gate = self.wide(x).chunk(2, dim=-1)
        return self.out(value * F.gelu(gate))


class DividedBlock(nn.Module):
    """Attention over time at every place, then over space in every frame, then a GEGLU feed-forward."""

    def __init__(self, section: AutoencoderSection) -> None:
        super().__init__()
        d, heads, head = section.width, section.heads, section.head_dim
        self.time_norm, self.time = layer_norm(d), HeadAttention(d, heads, head)
        self.space_norm, self.space = layer_norm(d), HeadAttention(d, heads, head)
        self.mlp_norm, self.mlp = layer_norm(d), GatedFeedForward(d, section.mlp_ratio)

    def forward(self, x_BTSD: Tensor, time_angles: Tensor, space_angles: Tensor) -> Tensor:
        """[B, T, S, D] to [B, T, S, D]."""
        batch = len(x_BTSD)
        fibres = self.time_norm(x_BTSD).transpose(1, 2).flatten(0, 1)
        x_BTSD = x_BTSD + self.time(fibres, time_angles).unflatten(0, (batch, -1)).transpose(1, 2)
        frames = self.space_norm(x_BTSD).flatten(0, 1)
        x_BTSD = x_BTSD + self.space(frames, space_angles).unflatten(0, (batch, -1))
        return x_BTSD + self.mlp(self.mlp_norm(x_BTSD))


class Trunk(nn.Module):
    """A stack of divided blocks over a grid of tokens, with rotary positions in time and space."""

    def __init__(self, section: AutoencoderSection) -> None:
        super().__init__()
        self.head_dim = section.head_dim
        self.blocks = nn.ModuleList(DividedBlock(section) for _ in range(section.depth))

    def forward(self, x_BThwD: Tensor) -> Tensor:
        """[B, T, h, w, D] to [B, T, h, w, D]; the residual stream is fp32."""
        _, t, h, w, _ = x_BThwD.shape
        time = line_angles(t, self.head_dim, x_BThwD.device)
        space = grid_angles(h, w, self.head_dim, x_BThwD.device)
        x = x_BThwD.flatten(2, 3).float()
        for block in self.blocks:
            x = block(x, time, space)
        return x.unflatten(2, (h, w))


class ProjectorLayer(nn.Module):
    """Pre-norm self-attention and MLP along one fibre."""

    def __init__(self, section: AutoencoderSection) -> None:
        super().__init__()
        d, heads = section.width, section.projector_heads
        self.attention_norm, self.attention = layer_norm(d), HeadAttention(d, heads, section.projector_head_dim)
        self.mlp_norm = layer_norm(d)
        self.mlp = nn.Sequential(nn.Linear(d, section.projector_mlp), nn.GELU(), nn.Linear(section.projector_mlp, d))

    def forward(self, x_RND: Tensor) -> Tensor:
        """[R, n, D] to [R, n, D]."""
        x_RND = x_RND + self.attention(self.attention_norm(x_RND))
        return x_RND + self.mlp(self.mlp_norm(x_RND))


class Projector(nn.Module):
    """Removes one axis: a small transformer along every fibre, read at a learned token of its own.

    The released code reads the fibre's first position instead of the token; reading the token treats
    all positions alike, so that no plane is biased to the first frame, row or column.
    """

    def __init__(self, section: AutoencoderSection, length: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, section.width))
        self.position = nn.Parameter(torch.randn(length + 1, section.width))
        self.layers = nn.ModuleList(ProjectorLayer(section) for _ in range(section.projector_depth))

    def forward(self, fibres_RND: Tensor) -> Tensor:
        """[R, n, D] to [R, D]."""
        x = torch.cat([self.token.expand(len(fibres_RND), -1, -1), fibres_RND], dim=1) + self.position
        for layer in self.layers:
            x = layer(x)
        return x[:, 0]


class Encoder(nn.Module):
    """Clip to latents: patches, divided blocks, one projector per removed axis, tanh."""

    def __init__(self, config: PvdmModel) -> None:
        super().__init__()
        section, self.patch = config.autoencoder, config.patch
        t, h, w = config.planes.grid
        self.embed = nn.Linear(CHANNELS * config.patch**2, section.width)
        self.trunk = Trunk(section)
        removed = dict(zip(PLANES, (t, h, w), strict=True))
        self.projectors = nn.ModuleDict({name: Projector(section, length) for name, length in removed.items()})
        self.to_latent = nn.ModuleDict({name: nn.Linear(section.width, config.latent_channels) for name in PLANES})

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """float [B, 3, T, H, W] in [-1, 1] to float32 latents [B, C, N] in [-1, 1]."""
        u_BThwD = self.trunk(self.embed(patches(video_BCTHW, self.patch)))
        # The removed axis goes last but one: t, h, w in turn.
        fibres = {"hw": u_BThwD.permute(0, 2, 3, 1, 4), "tw": u_BThwD.transpose(2, 3), "th": u_BThwD}
        cells = []
        for name in PLANES:
            rows = self.projectors[name](fibres[name].flatten(0, 2)).unflatten(0, (len(video_BCTHW), -1))
            cells.append(self.to_latent[name](rows).float().tanh())
        return torch.cat(cells, dim=1).transpose(1, 2)


class Decoder(nn.Module):
    """Latents to a clip: the planes summed where they meet, divided blocks, pixels."""

    def __init__(self, config: PvdmModel) -> None:
        super().__init__()
        section, self.planes = config.autoencoder, config.planes
        self.from_latent = nn.ModuleDict({name: nn.Linear(config.latent_channels, section.width) for name in PLANES})
        self.trunk = Trunk(section)
        self.to_pixels = nn.ConvTranspose2d(section.width, CHANNELS, config.patch, stride=config.patch)

    def meet(self, z_BCN: Tensor) -> Tensor:
        """v_thw = A z_hw + B z_tw + D z_th + bias, [B, T, h, w, D]: what the blocks start from."""
        named = dict(zip(PLANES, self.planes.split(z_BCN), strict=True))
        hw, tw, th = (self.from_latent[name](named[name].movedim(1, -1)) for name in PLANES)
        return hw[:, None] + tw[:, :, None] + th[:, :, :, None]

    def forward(self, z_BCN: Tensor) -> Tensor:
        """Latents [B, C, N] to float32 [B, 3, T, H, W] in [-1, 1]."""
        x_BThwD = self.trunk(self.meet(z_BCN))
        frames = self.to_pixels(x_BThwD.flatten(0, 1).movedim(-1, 1)).float()
        # 2 sigmoid(x) - 1.
        return torch.tanh(frames / 2).unflatten(0, (len(z_BCN), -1)).transpose(1, 2)


class Autoencoder(nn.Module):
    """Encoder and decoder of one clip length and frame size."""

    def __init__(self, config: PvdmModel) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(config), Decoder(config)

    def units(self) -> list[nn.Module]:
        """Every repeated block: of the two trunks, and of the projectors."""
        repeated = (DividedBlock, ProjectorLayer)
        return [module for module in self.modules() if isinstance(module, repeated)]

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """The reconstruction."""
        return self.decoder(self.encoder(video_BCTHW))


def patches(video_BCTHW: Tensor, patch: int) -> Tensor:
    """Frames cut into patches, [B, T, h, w, patch * patch * C]."""
    cut = video_BCTHW.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))
    return cut.permute(0, 2, 3, 5, 4, 6, 1).flatten(4)
