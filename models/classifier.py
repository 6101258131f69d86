"""A classifier of images, trained for its features.

Its penultimate layer is a feature space of the image metrics; `eblvm.metrics.ClassifierFeatures`
loads its checkpoint by path.
"""

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from eblvm.metrics.classifier import ConvClassifier

__all__ = ["ImageClassifier"]


class ImageClassifier(LightningModule):
    """Trains a `ConvClassifier` by cross-entropy, with Adam and a cosine schedule down to zero.

    All arguments are plain numbers, so that the checkpoint opens with `weights_only=True`.

    Arguments:
        image_size: Height and width of the images, in pixels.
        channels: Image channels.
        num_classes: Number of classes.
        width: Channels of the first convolution.
        learning_rate: Adam's first step size.
    """

    def __init__(
        self,
        image_size: int,
        channels: int = 1,
        num_classes: int = 10,
        width: int = 16,
        learning_rate: float = 3e-3,
    ) -> None:
        super().__init__()
        if not learning_rate > 0:
            raise ValueError(f"learning_rate is {learning_rate}; expected a positive number.")
        self.save_hyperparameters()
        self.network = ConvClassifier(image_size, channels, num_classes, width)
        self.learning_rate = learning_rate
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of images `(B, C, H, W)` in [−1, 1]."""
        return self.network(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, label = batch
        loss = cross_entropy(self(x), label)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, label = batch
        logits = self(x)
        self.val_accuracy.update(logits, label)
        self.log("val/loss", cross_entropy(logits, label), batch_size=len(x), sync_dist=True)
        self.log("val/accuracy", self.val_accuracy, batch_size=len(x), prog_bar=True)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        x, label = batch
        self.test_accuracy.update(self(x), label)
        self.log("test/accuracy", self.test_accuracy, batch_size=len(x))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate)
        num_steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
