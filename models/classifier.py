"""A classifier of images, trained for its features.

Its penultimate layer is a feature space of the image metrics; `eblvm.metrics.ClassifierFeatures`
loads its checkpoint by path.
"""

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from eblvm.metrics.classifier import ConvClassifier

from .learner import Learner

__all__ = ["ImageClassifier"]


class ImageClassifier(Learner):
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
        super().__init__(torch.optim.Adam, {"network": learning_rate})
        if not learning_rate > 0:
            raise ValueError(f"learning_rate is {learning_rate}; expected a positive number.")
        self.save_hyperparameters(logger=False)
        self.network = ConvClassifier(image_size, channels, num_classes, width)
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(B, num_classes)` of images `(B, C, H, W)` in [−1, 1]."""
        return self.network(x)

    def components(self) -> dict[str, nn.Module]:
        return {"network": self.network}

    def terms(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """The cross-entropy of each image, with shape `(B,)`, in nats."""
        x, label = batch
        return {"cross_entropy": cross_entropy(self(x), label, reduction="none")}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        terms = self.terms(batch, self.generator(batch_idx))
        self.require_finite(terms)
        loss = terms["cross_entropy"].mean()
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
        optimizer = super().configure_optimizers()["optimizer"]
        num_steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
