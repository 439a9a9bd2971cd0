"""DINOv3's processor, which transformers has only with torchvision.

Numbers are scaled before an image is resized, so they are not rounded in between, as those of other families are.
Pillow's resampling of floats is torchvision's, which was made after it: they differ by 1e-6.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image, Resampling, fromarray

NAME = "DINOv3ViTImageProcessor"
"""What `image_processor_type` begins with."""
_USUAL = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_center_crop": False,
    "do_pad": False,
    "resample": int(Resampling.BILINEAR),
}
"""What the files of all such models say, so that nothing else is supported."""


class Dinov3Processor:
    """Makes of an image what DINOv3 reads."""

    def __init__(self, said: dict[str, Any]) -> None:
        """`said`: preprocessor_config.json. Raises ValueError for what is not supported."""
        odd = sorted(name for name, usual in _USUAL.items() if said.get(name, usual) not in (usual, None))
        if odd:
            raise ValueError(f"preprocessor_config.json: {odd[0]} is {said[odd[0]]!r}, not {_USUAL[odd[0]]!r}")
        size = said.get("size") or {"height": 224, "width": 224}
        self._size = int(size["width"]), int(size["height"])
        self._factor = np.float32(said.get("rescale_factor", 1 / 255))
        self._mean = np.array(said.get("image_mean") or [0.485, 0.456, 0.406], np.float32)
        self._std = np.array(said.get("image_std") or [0.229, 0.224, 0.225], np.float32)

    def arrays(self, image: Image) -> dict[str, NDArray[Any]]:
        """Of an image in RGB: `pixel_values` (1, 3, height, width)."""
        pixels = np.asarray(image, np.float32) * self._factor
        planes = [fromarray(pixels[:, :, at]).resize(self._size, Resampling.BILINEAR) for at in range(3)]
        resized = np.stack([np.asarray(plane, np.float32) for plane in planes], axis=-1)
        return {"pixel_values": np.ascontiguousarray(((resized - self._mean) / self._std).transpose(2, 0, 1)[None])}
