"""The nested U-Net computed literally on videos [B, C, T, H, W]: what the one that folds frames into images must equal.

Nothing here folds frames into rows or pixels into sequences. A layer within frames is a 3-D convolution one frame
deep, a layer over time one that is a pixel wide, and both attentions name their axes. Only the parameters are the
network's.

Shapes: B batch, C channels, T H W frames and pixels, E embedding, M condition tokens, G heads, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from hpdm_core.families.mdm.config import FRAME_HEAD_DIM, HEADS
from hpdm_core.nn.convolution import TimeDownsample, TimeUpsample


def plain_nest(net, z, noise_B, condition=None):
    """Predictions of every level given in `z`, innermost first."""
    told = pooled = None
    if condition is not None:
        told = condition._replace(tokens_BMD=net.condition.tokens(condition.tokens_BMD))
        pooled = net.condition.pooled(told.mean())
    outputs = {}

    def run(k, given):
        level = net.levels[k]
        e_BE = level.time(noise_B) + (0 if pooled is None else pooled)
        x = within(level.conv_in, z[k])
        skips = [x if given is None else x + given]
        for stage in level.down:
            skips += plain_stage(stage, skips[-1], e_BE, told)
        x = skips[-1]
        if level.middle is None:
            x = x + within(level.from_inner, run(k - 1, within(level.to_inner, x)))
        else:
            x = picture_attention(level.middle.attention, res_block(level.middle.first, x, e_BE), told)
            x = res_block(level.middle.second, x, e_BE)
        for stage in level.up:
            joined = [skips.pop() for _ in stage.blocks]
            x = plain_stage(stage, x, e_BE, told, joined)[-1]
        outputs[k] = within(level.conv_out, F.silu(frame_norm(level.norm_out, x)))
        return x

    run(len(z) - 1, None)
    return [outputs[k] for k in range(len(z))]


def plain_stage(stage, x, e_BE, told, skips=None):
    """The output of every block of a stage, and of its change of size."""
    outputs = []
    for i, block in enumerate(stage.blocks):
        x = res_block(block, x if skips is None else torch.cat([x, skips[i]], dim=1), e_BE)
        for layer in stage.pictures[i]:
            x = picture_attention(layer, x, told)
        for layer in stage.frames[i]:
            x = frame_attention(layer, x)
        outputs.append(x)
    if stage.resize is not None:
        outputs.append(resized(stage.resize, x))
    return outputs


def resized(layer, x):
    """Half or twice the frames, or the height and width."""
    kind = type(layer)
    if issubclass(kind, TimeDownsample):
        return F.conv3d(x, layer.conv.weight[..., None], layer.conv.bias, stride=(2, 1, 1), padding=(1, 0, 0))
    if issubclass(kind, TimeUpsample):
        twice = x.repeat_interleave(2, dim=2)
        return F.conv3d(twice, layer.conv.weight[..., None], layer.conv.bias, padding=(1, 0, 0))
    if kind.__name__ == "Upsample":
        x = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    return within(layer.conv, x)


def within(layer, x):
    """A 2-D convolution in every frame alone."""
    sides = layer.kernel_size[0] // 2
    stride = (1, *layer.stride)
    return F.conv3d(x, layer.weight[:, :, None], layer.bias, stride=stride, padding=(0, sides, sides))


def frame_norm(layer, x):
    """GroupNorm with the statistics of every frame of every video."""
    groups = x.unflatten(1, (layer.num_groups, -1))
    over = (2, 4, 5)
    centred = groups - groups.mean(over, keepdim=True)
    scaled = centred / (centred.square().mean(over, keepdim=True) + layer.eps).sqrt()
    return scaled.flatten(1, 2) * layer.weight[:, None, None, None] + layer.bias[:, None, None, None]


def channel_linear(layer, x):
    """A linear layer over the channels of a video."""
    out = torch.einsum("oc,bcthw->bothw", layer.weight, x)
    return out if layer.bias is None else out + layer.bias[:, None, None, None]


def channel_norm(layer, x):
    """LayerNorm over the channels of a video, at every place alone."""
    return F.layer_norm(x.movedim(1, -1), layer.normalized_shape, layer.weight, layer.bias, layer.eps).movedim(-1, 1)


def res_block(block, x, e_BE):
    """The residual block; all frames of a video are scaled and shifted alike."""
    gain, shift = block.film(F.silu(e_BE))[:, :, None, None, None].chunk(2, dim=1)
    h = within(block.conv_in, F.silu(frame_norm(block.norm_in, x)))
    h = frame_norm(block.norm_out, h) * (1 + gain) + shift
    kept = x if isinstance(block.skip, torch.nn.Identity) else within(block.skip, x)
    return kept + within(block.conv_out, F.silu(h))


def picture_attention(layer, x, told):
    """Every pixel of a frame to the pixels of that frame and, by the same query, to the condition's tokens."""
    q, k, v = heads(channel_linear(layer.qkv, frame_norm(layer.norm, x)), HEADS)
    root = q.shape[2] ** 0.5
    scores = torch.einsum("bgdthw,bgdtyx->bgthwyx", q, k) / root
    read = torch.einsum("bgthwyx,bgdtyx->bgdthw", scores.flatten(-2).softmax(-1).view_as(scores), v)
    if layer.condition is not None:
        source = layer.condition.key_value(layer.condition.norm(told.tokens_BMD))
        kc, vc = source.unflatten(-1, (2, HEADS, -1)).unbind(2)
        scores = torch.einsum("bgdthw,bmgd->bgthwm", q, kc) / root
        if told.mask_BM is not None:
            scores = scores.masked_fill(~told.mask_BM[:, None, None, None, None, :], -torch.inf)
        read = read + torch.einsum("bgthwm,bmgd->bgdthw", scores.softmax(-1), vc)
    x = x + channel_linear(layer.out, read.flatten(1, 2))
    if layer.mlp is None:
        return x
    return x + channel_mlp(layer.mlp, frame_norm(layer.mlp_norm, x))


def frame_attention(layer, x):
    """At half the height and width, every pixel to itself in the frames of its own video."""
    h = within(layer.down.conv, x)
    q, k, v = heads(channel_linear(layer.qkv, channel_norm(layer.norm, h)), max(1, h.shape[1] // FRAME_HEAD_DIM))
    scores = torch.einsum("bgdthw,bgdshw->bghwts", q, k) / q.shape[2] ** 0.5
    read = torch.einsum("bghwts,bgdshw->bgdthw", scores.softmax(-1), v)
    h = h + channel_linear(layer.out, read.flatten(1, 2))
    h = h + channel_mlp(layer.mlp, channel_norm(layer.mlp_norm, h))
    return x + resized(layer.up, h)


def heads(qkv, num_heads):
    """Queries, keys and values, each [B, G, D, T, H, W]."""
    return (part.unflatten(1, (num_heads, -1)) for part in qkv.chunk(3, dim=1))


def channel_mlp(mlp, x):
    """Linear, GELU, linear over the channels."""
    return channel_linear(mlp[2], F.gelu(channel_linear(mlp[0], x)))
