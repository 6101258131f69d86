r"""Feature extractors: the space in which two sets of images are compared.

A figure such as the Fréchet distance means nothing without its features, so an extractor carries
what identifies it: a `name`, the `weights_hash` of its parameters and buffers, and its `resizing`.
All extractors take images in [−1, 1] and give one vector per image; they stay in evaluation mode,
form no gradients, and compute in float32 whatever the trainer's precision.

A checkpoint of `eblvm.models.ImageClassifier` becomes a small weights file by

    python -m eblvm.metrics.features CHECKPOINT OUTPUT
"""

import argparse
import hashlib
import importlib
import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .classifier import ConvClassifier
from .precision import device_only

__all__ = [
    "PACKAGED",
    "ClassifierFeatures",
    "FeatureExtractor",
    "InceptionFeatures",
    "PixelFeatures",
    "export_classifier",
    "features_for",
]

PACKAGED = ("digits", "fashion_mnist", "mnist")
"""Names of the classifiers that ship with the package; accuracies in `weights/README.md`."""

_TOLERANCE = 1e-3  # rounding of half-precision images
_HYPERPARAMETERS = ("image_size", "channels", "num_classes", "width")


class FeatureExtractor(nn.Module, ABC):
    """Maps images to vectors; always in evaluation mode, without gradients.

    A concrete class sets the attributes and defines `extract`; `forward` checks the images.

    Attributes:
        name: What a table calls it.
        num_features: Length of the vectors.
        image_shape: The only `(C, H, W)` accepted, or None for any.
        value_range: Least and greatest value accepted, or None for any.
        resizing: How images are brought to the network's size, in words.
    """

    name: str
    num_features: int
    image_shape: tuple[int, int, int] | None = None
    value_range: tuple[float, float] | None = (-1.0, 1.0)
    resizing: str = "none"

    @abstractmethod
    def extract(self, images: Tensor) -> Tensor:
        """Features `(B, num_features)` of checked images `(B, C, H, W)`."""

    def logits(self, features: Tensor) -> Tensor:
        """What the network behind the features says of classes, `(B, K)`, from features `(B, F)`.

        Raises:
            TypeError: If it is no classifier.
        """
        raise TypeError(
            f"the features {self.name!r} are no classifier's and know no classes. Choose "
            "InceptionFeatures or ClassifierFeatures, or leave the figure out."
        )

    def forward(self, images: Tensor) -> Tensor:
        """The features of a batch.

        Arguments:
            images: Images in [−1, 1], with shape `(B, C, H, W)`, on the device of the extractor.

        Returns:
            Features in float32, with shape `(B, num_features)`.

        Raises:
            TypeError: If the images are not floating point.
            ValueError: If their shape or their range is not the extractor's, or one is not finite.
        """
        self._check(images)
        with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
            return self.extract(images.float()).float()

    def train(self, mode: bool = True) -> "FeatureExtractor":
        """Stays in evaluation mode, whatever `mode`."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FeatureExtractor":
        return super()._apply(device_only(fn), recurse)

    def weights_hash(self) -> str:
        """SHA-256 over the names, types, shapes and bytes of all parameters and buffers."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            value = value.detach().cpu().contiguous()
            digest.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def protocol(self) -> dict[str, Any]:
        """What identifies the features beside a figure, as a plain dictionary."""
        return {
            "features": self.name,
            "weights_sha256": self.weights_hash(),
            "num_features": self.num_features,
            "resizing": self.resizing,
        }

    def _check(self, images: Tensor) -> None:
        if not images.is_floating_point():
            raise TypeError(
                f"images have dtype {images.dtype}; expected floating point in [−1, 1]. "
                "For bytes write `images.float() / 127.5 - 1`."
            )
        if images.ndim != 4:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; expected (B, C, H, W). "
                "Add the missing axis, e.g. `images.unsqueeze(1)` for grey images."
            )
        if self.image_shape is not None and images.shape[1:] != self.image_shape:
            raise ValueError(
                f"images have shape (B, {', '.join(map(str, images.shape[1:]))}); the features "
                f"{self.name!r} expect (B, {', '.join(map(str, self.image_shape))}). Choose "
                "features of that size, or resize the images and say so beside the figure."
            )
        if self.value_range is not None and images.numel():
            low, high = images.aminmax()
            least, greatest = self.value_range
            if not (low >= least - _TOLERANCE and high <= greatest + _TOLERANCE):  # true for NaN
                raise ValueError(
                    f"images lie in [{low.item():.4g}, {high.item():.4g}]; the features "
                    f"{self.name!r} expect [{least:g}, {greatest:g}]. Rescale them, or clamp "
                    f"samples that overshoot: `x.clamp({least:g}, {greatest:g})`."
                )


class PixelFeatures(FeatureExtractor):
    """The image itself, flattened: no network, any range.

    Arguments:
        image_shape: `(C, H, W)`; vectors of length D are images of shape `(1, 1, D)`.
    """

    value_range = None

    def __init__(self, image_shape: Sequence[int]) -> None:
        super().__init__()
        self.image_shape = _image_shape(image_shape)
        self.num_features = torch.Size(self.image_shape).numel()
        self.name = "pixels"
        self.eval()

    def extract(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class ClassifierFeatures(FeatureExtractor):
    """The penultimate layer of a small classifier of ours.

    The packaged ones, with their test accuracies: `digits` (1 × 8 × 8, 0.993), `fashion_mnist` and
    `mnist` (1 × 28 × 28, 0.917 and 0.994).

    Arguments:
        weights: A packaged name, a weights file written by `export_classifier`, or a checkpoint of
            `eblvm.models.ImageClassifier`. Files are opened with `weights_only=True`.
        name: What a table calls it; by default the packaged name or the file's stem.
        image_size: Side of the images that are measured, resized to the network's size by
            bilinear interpolation with antialiasing; the network's own if None.

    Raises:
        FileNotFoundError: If `weights` is neither a packaged name nor a file.
        ValueError: If the file holds something else.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str],
        name: str | None = None,
        image_size: int | None = None,
    ) -> None:
        super().__init__()
        if weights in PACKAGED:
            with as_file(files("eblvm.metrics") / "weights" / f"{weights}.pt") as path:
                self.network = _load_classifier(path)
        else:
            self.network = _load_classifier(Path(weights))
        self.name = f"classifier:{Path(weights).stem}" if name is None else name
        self.num_features = self.network.num_features
        self.image_shape = self.network.image_shape
        self._side = self.image_shape[1]
        if image_size not in (None, self._side):
            self.image_shape = (self.image_shape[0], image_size, image_size)
            self.resizing = f"antialiased bilinear, {image_size} to {self._side}"
        self.requires_grad_(False)
        self.eval()

    def extract(self, images: Tensor) -> Tensor:
        if images.shape[-1] != self._side:
            images = F.interpolate(images, (self._side,) * 2, mode="bilinear", antialias=True)
        return self.network.features(images)

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        return self.network.head(features)


class InceptionFeatures(FeatureExtractor):
    """The 2048 features of the Inception network with which published Fréchet distances are made.

    Images become bytes by rounding, as if saved and read again, and are resized to 299 × 299 as
    the original TensorFlow code does; `torch-fidelity` holds the network and the resizing.

    References:
        GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium
        (Heusel et al., 2017).

    Arguments:
        weights: The file `weights-inception-2015-12-05-6726825d.pth` of torch-fidelity; None lets
            torch-fidelity look in its cache, and download the file where there is a network.

    Raises:
        ImportError: If torch-fidelity is not installed.
        FileNotFoundError: If `weights` is not a file.
    """

    name = "inception-v3-compat:2048"
    num_features = 2048
    resizing = "rounded to uint8, TensorFlow 1 bilinear to 299x299 without antialiasing"

    def __init__(self, weights: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(
                f"no Inception weights at {os.fspath(weights)!r}; expected the file "
                "`weights-inception-2015-12-05-6726825d.pth` of the torch-fidelity releases. "
                "Download it once and pass its path as `weights`."
            )
        if importlib.util.find_spec("torch_fidelity") is None:
            raise ImportError(
                "InceptionFeatures needs torch-fidelity, which is not installed. Run "
                "`pip install 'eblvm[fidelity]'` and pass the path of its Inception weights as "
                "`weights`, or choose ClassifierFeatures, which needs neither."
            )
        if weights is not None:  # torch-fidelity would run code hidden in the file; this refuses it
            torch.load(weights, map_location="cpu", weights_only=True)
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        self.network: nn.Module = module.FeatureExtractorInceptionV3(
            "inception-v3-compat",
            ["2048"],
            feature_extractor_weights_path=None if weights is None else os.fspath(weights),
        )
        self.requires_grad_(False)
        self.eval()

    def extract(self, images: Tensor) -> Tensor:
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if images.shape[1] != 3:
            raise ValueError(
                f"images have {images.shape[1]} channels; Inception expects 3, or 1 that is "
                "repeated. Choose other features."
            )
        bytes_ = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return self.network(bytes_)[0]

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        """Without the bias, as published Inception scores are made: torch-fidelity's `unbiased`."""
        head: Any = self.network.fc
        return features @ head.weight.T


def features_for(image_shape: Sequence[int]) -> ClassifierFeatures:
    """The packaged features for images of a shape.

    Arguments:
        image_shape: `(C, H, W)`: 1 × 8 × 8 gives `digits`, 1 × 28 × 28 `fashion_mnist`.

    Raises:
        ValueError: If nothing packaged fits; nothing is resized silently.
    """
    shape = _image_shape(image_shape)
    defaults = {(1, 8, 8): "digits", (1, 28, 28): "fashion_mnist"}
    if shape not in defaults:
        raise ValueError(
            f"no packaged features for images of shape {shape}; there are some for "
            f"{' and '.join(map(str, defaults))}. Choose InceptionFeatures(weights) for "
            "photographs, ClassifierFeatures(checkpoint) with a classifier trained by eblvm.models."
            "ImageClassifier, or PixelFeatures(image_shape)."
        )
    return ClassifierFeatures(defaults[shape])


def export_classifier(checkpoint: str | os.PathLike[str], output: str | os.PathLike[str]) -> None:
    """Write the network of an `eblvm.models.ImageClassifier` checkpoint to a small file.

    Arguments:
        checkpoint: A Lightning checkpoint.
        output: The weights file: the network's arguments and its tensors, nothing else.
    """
    network, arguments = _read_classifier(Path(checkpoint))
    torch.save({"arguments": arguments, "state_dict": network}, output)


def _load_classifier(path: Path) -> ConvClassifier:
    state, arguments = _read_classifier(path)
    network = ConvClassifier(**arguments)
    network.load_state_dict(state)
    return network


def _read_classifier(path: Path) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Tensors and constructor arguments, from a weights file or a Lightning checkpoint."""
    if not path.is_file():
        raise FileNotFoundError(
            f"no classifier weights at {os.fspath(path)!r}; expected one of the packaged names "
            f"{', '.join(PACKAGED)}, or the path of an ImageClassifier checkpoint."
        )
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    content: dict[str, Any] = loaded if isinstance(loaded, dict) else {}
    arguments = content.get("arguments", content.get("hyper_parameters", {}))
    state = content.get("state_dict", {})
    if "arguments" not in content:
        prefix = "network."
        state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not state or not set(_HYPERPARAMETERS) <= set(arguments):
        raise ValueError(
            f"{os.fspath(path)!r} is not a classifier: it holds {sorted(content)[:8]}; expected a "
            "checkpoint of eblvm.models.ImageClassifier, or a file written by "
            "`python -m eblvm.metrics.features CHECKPOINT OUTPUT`."
        )
    return state, {key: int(arguments[key]) for key in _HYPERPARAMETERS}


def _image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"image_shape is {tuple(shape)}; expected (C, H, W), all positive.")
    channels, height, width = shape
    return channels, height, width


def main(arguments: Sequence[str] | None = None) -> None:
    """Export a checkpoint: `python -m eblvm.metrics.features CHECKPOINT OUTPUT`."""
    parser = argparse.ArgumentParser(description=export_classifier.__doc__)
    parser.add_argument("checkpoint", help="a checkpoint of eblvm.models.ImageClassifier")
    parser.add_argument("output", help="the weights file to write")
    options = parser.parse_args(arguments)
    export_classifier(options.checkpoint, options.output)


if __name__ == "__main__":
    main()
