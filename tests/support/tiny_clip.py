"""A small CLIP that open_clip builds by name, its random weights in a file as a user would have a pretrained one."""

import json

import torch
from safetensors.torch import save_file

from hpdm_core.conditioning.clip import import_open_clip

ARCH = "hpdm-test-ViT"
WIDTH, POOLED, CONTEXT, LAYERS = 24, 16, 20, 3
_CONFIG = {
    "embed_dim": POOLED,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": LAYERS},
}


def register(folder, name=ARCH, **text):
    """Make the architecture known to open_clip under `name`."""
    config = {**_CONFIG, "text_cfg": {**_CONFIG["text_cfg"], **text}}
    if name.endswith("-quickgelu"):
        config["quick_gelu"] = True
    file = folder / f"{name}.json"
    file.write_text(json.dumps(config))
    import_open_clip().add_model_config(file)
    return name


def save_tower(path, arch=ARCH, seed=0, marks=False):
    """Write a whole random CLIP of `arch` to `path`; `marks` adds the numbers that OpenAI's files hold."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = import_open_clip().create_model(arch, pretrained=None)
    tensors = {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}
    if marks:
        tensors |= {"context_length": torch.tensor(CONTEXT), "vocab_size": torch.tensor(49408)}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, path)
    return model
