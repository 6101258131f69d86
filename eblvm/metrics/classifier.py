"""A small convolutional classifier whose penultimate layer measures images.

Inception features are trained on photographs of 299 × 299 pixels; on grey images of 28 × 28 or
8 × 8 a network trained on such images says more and needs no download. This one halves the image
until it is at most 7 pixels wide, doubling its channels each time, and averages over what is left:
1 × 28 × 28 ends in 64 features, 1 × 8 × 8 in 32, with 70,000 and 14,000 parameters.
"""

from torch import Tensor, nn

__all__ = ["ConvClassifier"]


class ConvClassifier(nn.Module):
    """A convolutional classifier of square images.

    Arguments:
        image_size: Height and width, in pixels; 4 or more.
        channels: Image channels.
        num_classes: Number of classes.
        width: Channels of the first convolution; `num_features` is `width` times 2 per halving.
    """

    def __init__(
        self, image_size: int, channels: int = 1, num_classes: int = 10, width: int = 16
    ) -> None:
        super().__init__()
        if image_size < 4:
            raise ValueError(f"image_size is {image_size}; expected 4 pixels or more.")
        if min(channels, num_classes, width) < 1:
            raise ValueError(
                f"channels, num_classes and width are {channels}, {num_classes} and {width}; "
                "expected positive numbers."
            )
        layers = _convolution(channels, width, stride=1)
        size = image_size
        while size > 7:
            layers += _convolution(width, 2 * width, stride=2)
            layers += _convolution(2 * width, 2 * width, stride=1)
            width, size = 2 * width, (size + 1) // 2
        self.image_shape = (channels, image_size, image_size)
        self.num_features = width
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """The penultimate layer: the last activations, averaged over the image.

        Arguments:
            x: Images in [−1, 1], with shape `(B, C, H, W)`.

        Returns:
            Features, with shape `(B, num_features)`.
        """
        return self.body(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of images `(B, C, H, W)` in [−1, 1]."""
        return self.head(self.features(x))


def _convolution(channels: int, width: int, stride: int) -> list[nn.Module]:
    """Convolution, batch normalization and rectifier; the normalization replaces the bias."""
    return [
        nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
