"""Golden numbers on real clips: needs the optional folder of reference files."""

import csv
import hashlib
import json

import numpy as np
import pytest
import torch

from hpdm_core.data.decode import decode_video
from hpdm_core.metrics.detectors import build_detector
from hpdm_core.metrics.frechet import frechet_from_features
from hpdm_core.metrics.i3d_weights import tensor_table
from hpdm_core.metrics.protocol import DetectorSection

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def reference(shared_dir):
    return json.loads((shared_dir / "golden" / "fvd_reference.json").read_text())


@pytest.fixture(scope="module")
def arrays(shared_dir):
    with np.load(shared_dir / "golden" / "i3d_seeded_golden.npz") as archive:
        return dict(archive)


def test_frechet_of_every_feature_set(reference, arrays):
    for pair, values in reference["fvd_exact_i3d"]["values"].items():
        fake, real = (arrays[f"feats__{name}"] for name in pair.split(" (")[0].split(" vs "))
        for ddof, key in ((0, "exact ddof 0"), (1, "exact ddof 1 (float64, nuclear norm of X Y^T)")):
            assert frechet_from_features(fake, real, ddof) == pytest.approx(values[key], rel=1e-9), pair


def test_features_of_real_windows(shared_dir, reference, arrays):
    detector = build_detector(DetectorSection(name="random-i3d"), weights=None, device="cpu")
    for row, window in enumerate(reference["windows_A"][:2]):
        video, _ = decode_video(shared_dir / "data" / window["path"])
        clip = np.ascontiguousarray(video[window["start"] : window["start"] + 16, 0:240:2, 40:280:2])
        assert hashlib.sha256(clip.tobytes()).hexdigest() == window["sha256"]
        features = detector.features(torch.from_numpy(clip[None])).numpy()
        assert np.abs(features[0] - arrays["feats__A"][row]).max() < 1e-4


def test_the_tensor_table_is_the_reference_table(shared_dir):
    theirs = json.loads((shared_dir / "golden" / "i3d_k400_tensor_crc32c.json").read_text())["tensors"]
    assert tensor_table() == theirs


def test_manifest_lists_the_windows(shared_dir, reference):
    with (shared_dir / "data" / "MANIFEST.csv").open() as file:
        paths = {row["path"] for row in csv.DictReader(file)}
    assert {window["path"] for window in reference["windows_A"]} <= paths
