"""For torch.hub: torch.hub.load(".", "portraitmatting", source="local")"""

dependencies = ["torch", "torchvision", "timm", "cv2", "numpy", "safetensors", "huggingface_hub"]


def portraitmatting(checkpoint=None, device=None):
    """The network with trained weights, in fp32 and eval mode.

    `checkpoint`: a name in checkpoints/ or a path; None for the default one. `device`: None for the
    CPU. Lay a `portraitmatting.Predictor` round it to hand over images of any size.
    """
    from portraitmatting.checkpoint.load import load_network

    return load_network(checkpoint, device)
