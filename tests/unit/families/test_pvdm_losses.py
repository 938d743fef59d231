import numpy as np
import pytest
import torch

from hpdm_core.conditioning.labels import NULL
from hpdm_core.diffusion.process import corrupt
from hpdm_core.errors import ConfigError
from hpdm_core.families.pvdm.config import PvdmSample
from hpdm_core.families.pvdm.critics import Critics, adversarial_loss, feature_loss, frozen, hinge_loss, pick_frames
from hpdm_core.families.pvdm.views import CLIP, PREVIOUS, ClipPair, WholeClip
from hpdm_core.rng import BatchStreams, numpy_stream
from tests.support import tiny_pvdm
from tests.support.tiny_pvdm import VIDEO

POSITIONS = list(range(6))


def losses(family, role, positions=POSITIONS, seed=0, **kwargs):
    batch = tiny_pvdm.random_batch(positions, **kwargs)
    return family.losses(role, batch, BatchStreams(seed, positions))


def phase(family, name):
    return next(p for p in family.phases() if p.name == name)


def test_phases_and_who_trains_what():
    family = tiny_pvdm.tiny_family(training={"ae": {"steps": 5}, "ae_gan": {"batch_size": 3}})
    assert [p.name for p in family.phases()] == ["ae", "ae_gan", "ldm"]
    assert [[r.modules for r in p.roles] for p in family.phases()] == [
        [("autoencoder",)],
        [("autoencoder",), ("critics",)],
        [("denoiser", "labels")],
    ]
    assert (phase(family, "ae").steps, phase(family, "ae_gan").batch_size, phase(family, "ldm").steps) == (5, 3, None)


def test_without_the_adversarial_phase_there_are_no_critics():
    family = tiny_pvdm.tiny_family(training={"ae_gan": None})
    assert [p.name for p in family.phases()] == ["ae", "ldm"]
    assert not [name for name in family.state_dict() if "critic" in name]


@pytest.mark.parametrize(("every", "pattern"), [(1, "gcgcgc"), (3, "gggccc")])
def test_autoencoder_and_critics_take_turns(every, pattern):
    family = tiny_pvdm.tiny_family(training={"alternate_steps": every})
    roles = phase(family, "ae_gan").roles
    active = "".join(role.name[0] for step in range(12) for role in roles if role.active(step))
    assert active == 2 * pattern


def test_critics_have_their_own_optimiser():
    family = tiny_pvdm.tiny_family(training={"critics_optimizer": {"lr": 0.5}})
    generator, critics = phase(family, "ae_gan").roles
    assert generator.optimizer is None
    assert critics.optimizer is not None
    assert critics.optimizer.lr == 0.5


def test_noise_loss_of_a_zero_output_is_one():
    family = tiny_pvdm.tiny_family(lively=False)
    found = losses(family, "denoiser", positions=list(range(64)))
    assert found.total.item() == pytest.approx(1.0, abs=0.03)
    assert set(found.parts) == {"hw", "tw", "th"}
    torch.testing.assert_close(sum(found.terms.values()), found.total)


def test_the_state_follows_the_table_of_noise():
    """sqrt(abar) z + sqrt(1 - abar) eps with the reference's betas: logSNR from 6.50 to -8.86, unshifted."""
    schedule, form = tiny_pvdm.tiny_family().schedule, tiny_pvdm.tiny_family().form
    roots = np.linspace(0.0015**0.5, 0.0195**0.5, 1000)
    abar = np.cumprod(1 - roots**2)
    assert schedule.abar == pytest.approx(abar, rel=1e-12)
    logsnr = -2 * schedule.sigmas().log() - 2 * np.log(form.scale)
    assert (logsnr[0].item(), logsnr[-1].item()) == pytest.approx((6.50, -8.86), abs=0.01)
    z, eps = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    for index in (0, 500, 999):
        sigma = schedule.sigmas()[index].float().expand(2)
        state = form.network_input(corrupt(z, eps, sigma, form.scale), sigma)
        expected = abar[index] ** 0.5 * z + (1 - abar[index]) ** 0.5 * eps
        torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(form.target(z, eps, sigma), eps)
        assert schedule.coordinate(sigma)[0].item() == pytest.approx(index / 1000, abs=1e-5)


def test_the_clip_before_counts_only_for_conditional_rows():
    family = tiny_pvdm.tiny_family()
    batch = tiny_pvdm.random_batch(POSITIONS, conditional=[0, 1, 0, 0, 1, 0])
    clip, previous, flags = batch.videos[CLIP], batch.videos[PREVIOUS], batch.meta["conditional"]
    z, given = family.encode_pair(clip, previous, flags)
    assert [bool(row.any()) for row in given] == [False, True, False, False, True, False]
    with torch.no_grad():
        torch.testing.assert_close(z, family.autoencoder.encoder(clip))
        torch.testing.assert_close(given[[1, 4]], family.autoencoder.encoder(previous[[1, 4]]))
    assert not z.requires_grad
    none, no_condition = family.encode_pair(clip, previous, torch.zeros_like(flags))
    torch.testing.assert_close(none, z)
    assert not no_condition.any()


def test_ranks_that_share_the_encoder_call_it_equally_often_whatever_they_draw():
    family, calls = tiny_pvdm.tiny_family(training={"encode_rows": 2}), []
    family.autoencoder.encoder.register_forward_hook(lambda *_: calls.append(1))
    found = {}
    for family.sharded in (False, True):
        for share in range(len(POSITIONS) + 1):
            calls.clear()
            flags = [1] * share + [0] * (len(POSITIONS) - share)
            loss = losses(family, "denoiser", conditional=flags).total
            found[family.sharded, share] = len(calls), loss.item()
    assert {found[True, share][0] for share in range(7)} == {6}
    assert found[False, 0][0] == 3
    assert all(found[True, share][1] == found[False, share][1] for share in range(7))


def test_without_the_clip_before_one_clip_is_read_and_made():
    family = tiny_pvdm.tiny_family(training={"previous_share": 0.0})
    assert family.view("ldm") == family.view("ae")
    batch = tiny_pvdm.random_batch(POSITIONS, conditional=[0] * 6)
    expected = family.losses("denoiser", batch, BatchStreams(0, POSITIONS)).total
    del batch.videos[PREVIOUS], batch.meta["conditional"]
    assert family.losses("denoiser", batch, BatchStreams(0, POSITIONS)).total == expected
    with pytest.raises(ConfigError, match="never been given the clip before"):
        tiny_pvdm.sample(family, [0], request={"frames": 8})
    options = PvdmSample(steps=(3, 2, 1), guidance=(2.0,))
    assert family.unread_entries(family.config, options) == {"steps": [2, 1]}
    assert family.unread_entries(tiny_pvdm.tiny_family().config, options) == {}


def test_padding_before_a_short_clip_is_never_seen():
    """An item flagged as having no clip before trains the same whatever stands in its place."""
    family = tiny_pvdm.tiny_family()
    batch = tiny_pvdm.random_batch(POSITIONS, conditional=[0] * 6)
    streams = BatchStreams(0, POSITIONS)
    before = family.losses("denoiser", batch, streams).total
    batch.videos[PREVIOUS] = torch.full_like(batch.videos[PREVIOUS], -1.0)
    assert family.losses("denoiser", batch, streams).total == before


def test_the_clip_before_changes_a_conditional_loss():
    family = tiny_pvdm.tiny_family()
    conditional, plain = (losses(family, "denoiser", conditional=[flag] * 6).total for flag in (1, 0))
    assert conditional.item() != pytest.approx(plain.item(), abs=1e-4)


def test_only_the_denoiser_is_trained_on_latents():
    family = tiny_pvdm.tiny_family()
    losses(family, "denoiser").total.backward()
    assert all(p.grad is None for p in family.autoencoder.parameters())
    assert all(p.grad is None for p in family.critics.parameters())
    assert not [n for n, p in family.denoiser.named_parameters() if p.grad is None]
    assert family.labels.table.weight.grad.any()


def test_a_pair_of_clips_is_read_in_the_promised_shares():
    view, length = ClipPair(VIDEO, 0.3), VIDEO[0]
    cuts = [view.cut(100, numpy_stream(0, "cut", k)) for k in range(10_000)]
    flags = np.array([int(cut.meta["conditional"]) for cut in cuts])
    assert flags.mean() == pytest.approx(0.3, abs=0.015)
    offsets = np.array([cut.windows[CLIP].start - 100 for cut in cuts])
    assert set(offsets[flags == 1]) == {length}
    assert np.bincount(offsets[flags == 0]) / (flags == 0).sum() == pytest.approx(
        [1 / (length + 1)] * (length + 1), abs=0.02
    )
    for cut in cuts[:50]:
        assert cut.windows[PREVIOUS] == WholeClip(VIDEO).window(100)
        assert cut.windows[CLIP].last_frame < 100 + view.frames


def test_views_of_the_phases():
    family = tiny_pvdm.tiny_family()
    assert [family.view(p.name).frames for p in family.phases()] == [VIDEO[0], VIDEO[0], 2 * VIDEO[0]]
    assert {family.view(p.name).sizes for p in family.phases()} == {(VIDEO[1:],)}


def test_classes_are_dropped_at_the_promised_rate(monkeypatch):
    family = tiny_pvdm.tiny_family(condition={"kind": "class", "num_classes": 4, "drop": 0.25})
    seen, embed = [], family.labels.forward
    monkeypatch.setattr(family.labels, "forward", lambda labels: seen.append(labels) or embed(labels))
    for start in range(0, 10_000, 400):
        losses(family, "denoiser", positions=list(range(start, start + 400)))
    assert (torch.cat(seen) == NULL).float().mean().item() == pytest.approx(0.25, abs=0.015)


def test_l1_and_psnr_are_means_over_clips_and_so_the_same_in_any_parts_of_a_batch():
    family = tiny_pvdm.tiny_family(training={"pixel_weight": 2.0})
    batch = tiny_pvdm.random_batch(POSITIONS)
    batch.videos[CLIP] *= torch.linspace(0.1, 1.0, len(POSITIONS))[:, None, None, None, None]
    found = family.losses("autoencoder", batch, BatchStreams(0, POSITIONS))
    with torch.no_grad():
        difference = family.autoencoder(batch.videos[CLIP]) - batch.videos[CLIP]
    torch.testing.assert_close(found.parts["l1"], difference.abs().mean())
    torch.testing.assert_close(found.total.detach(), 2 * difference.abs().mean())
    each = 10 * np.log10(4 / difference.square().mean(dim=(1, 2, 3, 4)).numpy())
    assert found.parts["psnr"].item() == pytest.approx(each.mean(), abs=1e-3)


def test_generator_loss_is_the_sum_of_its_weighted_parts():
    family = tiny_pvdm.tiny_family()
    found = losses(family, "generator")
    weights = {"l1": 4.0, "adversarial": 1.0, "features": 4.0}
    assert set(found.terms) == set(weights)
    expected = sum(weight * found.parts[name] for name, weight in weights.items())
    torch.testing.assert_close(found.total.detach(), expected)


def test_roles_train_their_own_side_only():
    family = tiny_pvdm.tiny_family()
    losses(family, "generator").total.backward()
    assert all(p.grad is None for p in family.critics.parameters())
    assert all(p.requires_grad for p in family.critics.parameters())
    assert not [n for n, p in family.autoencoder.named_parameters() if p.grad is None]
    family.zero_grad()
    losses(family, "critics").total.backward()
    assert all(p.grad is None for p in family.autoencoder.parameters())
    assert not [n for n, p in family.critics.named_parameters() if p.grad is None]


def test_hinge_and_adversarial_losses_by_hand():
    real = ([torch.zeros(1), torch.tensor([0.5, 2.0])], [torch.tensor([1.0])])
    fake = ([torch.zeros(1), torch.tensor([-3.0, 0.0])], [torch.tensor([0.5])])
    # Frames: real (0.5 + 0) / 2, fake (0 + 1) / 2; clips: real 0, fake 1.5.
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * (0.25 + 0.5) + 0.5 * 1.5)
    assert adversarial_loss(fake).item() == pytest.approx(1.5 - 0.5)


def test_feature_loss_ignores_scores_and_vanishes_on_equal_video():
    critics = Critics(tiny_pvdm.tiny_model().critic)
    video, frames = tiny_pvdm.random_video(), torch.tensor([0, 3])
    with torch.no_grad():
        real = critics(video, frames)
        assert feature_loss(real, critics(video, frames)).item() == 0
        moved = tuple([*stages[:-1], stages[-1] + 1] for stages in real)
        assert feature_loss(real, moved).item() == 0
        assert feature_loss(real, critics(-video, frames)).item() > 0.1


def test_the_frame_critic_sees_the_picked_frame_alone():
    critics = Critics(tiny_pvdm.tiny_model().critic)
    video, frames = tiny_pvdm.random_video(), torch.tensor([0, 3])
    picked = pick_frames(video, frames)
    assert torch.equal(picked[0], video[0, :, 0])
    assert torch.equal(picked[1], video[1, :, 3])
    moved = video.clone()
    moved[:, :, 1] = 0
    with torch.no_grad():
        for a, b in zip(critics(video, frames)[0], critics(moved, frames)[0], strict=True):
            assert torch.equal(a, b)
        assert not torch.equal(critics(video, frames)[1][-1], critics(moved, frames)[1][-1])


def test_a_frozen_module_passes_gradients_to_its_inputs():
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2, requires_grad=True)
    layer.bias.requires_grad_(False)
    with frozen(layer):
        y = layer(x).sum()
    y.backward()
    assert x.grad is not None
    assert layer.weight.grad is None
    assert (layer.weight.requires_grad, layer.bias.requires_grad) == (True, False)


def test_critics_learn_to_tell_reconstructions():
    family = tiny_pvdm.tiny_family()
    optimizer = torch.optim.Adam(family.critics.parameters(), lr=1e-2)
    found = []
    for _ in range(25):
        optimizer.zero_grad()
        total = losses(family, "critics").total
        total.backward()
        optimizer.step()
        found.append(total.item())
    assert found[-1] < 0.6 * found[0]


def test_critics_keep_no_running_statistics():
    assert not list(Critics(tiny_pvdm.tiny_model().critic).buffers())


def test_bf16_stays_near_fp32_and_finite():
    family = tiny_pvdm.tiny_family()
    for role in ("autoencoder", "generator", "critics", "denoiser"):
        exact = losses(family, role).total
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = losses(family, role).total
        family.zero_grad()
        rough.backward()
        assert rough.dtype == torch.float32
        assert rough.item() == pytest.approx(exact.item(), rel=0.02), role
        assert all(p.grad.isfinite().all() for p in family.parameters() if p.grad is not None)
