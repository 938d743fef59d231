"""A detector that costs nothing: mean, contrast and motion of a clip. Named as `tests.support.toy_detector:build`."""

import torch


class ToyDetector:
    name, label, dimension, min_frames, sha256 = "toy", "Toy distance", 6, 2, "0" * 64

    def features(self, clips_NTHWC):
        x = clips_NTHWC.float() / 255
        mean = x.mean(dim=(1, 2, 3))
        motion = (x[:, 1:] - x[:, :-1]).abs().mean(dim=(1, 2, 3))
        return torch.cat([mean, motion], dim=1)

    def probabilities(self, features_ND):
        return features_ND.double().softmax(dim=1)

    def facts(self):
        return {"name": self.name, "sha256": self.sha256}


def build(section, weights, device):
    return ToyDetector()


def not_a_detector(section, weights, device):
    return object()
