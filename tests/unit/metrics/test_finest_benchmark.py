"""The measures beside which a finest level is held."""

import numpy as np

from benchmarks.finest import look, pooled, psnr, upsampled
from benchmarks.prompts import prompts_for, real_videos


def test_a_small_video_comes_back_from_its_upsampled_self():
    (large,) = real_videos(prompts_for(True, 1), 16, (72, 128))
    small = pooled(large, 4, (18, 32)).round().astype(np.uint8)
    back = pooled(upsampled(small, 16, (72, 128)), 4, (18, 32))
    assert psnr(back, small) > 30
    still = upsampled(small[:1].repeat(4, axis=0), 16, (72, 128))
    assert (still == still[:1]).all()


def test_frames_between_are_mixtures_and_the_last_is_held():
    small = np.zeros((2, 4, 4, 3), np.uint8)
    small[1] = 200
    grey = upsampled(small, 8, (4, 4))[:, 0, 0, 0].tolist()
    assert grey == [0, 50, 100, 150, 200, 200, 200, 200]


def test_outlines_see_blur_and_grain_sees_noise():
    (clip,) = real_videos(prompts_for(True, 1), 8, (144, 256))
    blurred = upsampled(pooled(clip, 8, (18, 32)).round().astype(np.uint8), 8, (144, 256))
    noise = np.random.default_rng(0).normal(0, 3, clip.shape)
    noisy = np.clip(clip + noise, 0, 255).astype(np.uint8)
    sharp, soft, grainy = look([clip]), look([blurred]), look([noisy])
    assert soft["outlines"] < 0.6 * sharp["outlines"]
    assert abs(grainy["outlines"] / sharp["outlines"] - 1) < 0.1
    assert grainy["grain"] > sharp["grain"] + 1
