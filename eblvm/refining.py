"""Callbacks for models whose chains refine what a starter proposes, and for conditional ones.

As in `eblvm.evaluation`, a callback asks a learner only for what it can do; figures are logged as
`val/…` and `test/…`.
"""

from typing import Any, Protocol, runtime_checkable

import torch
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor

from eblvm.evaluation import Evaluation, SampleQuality, gather, log, publish, require
from eblvm.metrics import ClassifierFeatures
from eblvm.pictures import image_grid

__all__ = ["ClassAccuracy", "FilmStrip", "ProposalQuality", "Translations"]


@runtime_checkable
class Refining(Protocol):
    """A learner that draws data with any number of steps of refinement."""

    def sample(
        self,
        num: int,
        generator: torch.Generator | None = None,
        noise: bool = False,
        num_steps: int | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Draw `(num, *event)`; `num_steps=0` draws what the starter proposes."""

    def film(
        self,
        num: int,
        frames: int = 8,
        generator: torch.Generator | None = None,
        num_steps: int | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """States of chains, `(frames + 1, num, *event)`."""

    def generator(self, batch_idx: int = 0, offset: int = 0) -> torch.Generator:
        """A seeded source of noise."""


class _Proposing:
    """A learner seen through its starter alone."""

    def __init__(self, learner: Refining) -> None:
        self.learner = learner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.learner, name)

    def sample(
        self, num: int, generator: torch.Generator | None = None, noise: bool = False
    ) -> Tensor:
        return self.learner.sample(num, generator, noise, num_steps=0)

    def generator(self, batch_idx: int = 0, offset: int = 0) -> torch.Generator:
        return self.learner.generator(batch_idx, offset)

    def log_dict(self, figures: dict[str, Tensor], **settings: Any) -> None:
        """Under names of their own: `val/proposal_frechet` beside `val/frechet`."""
        module: Any = self.learner
        renamed = {name.replace("/", "/proposal_", 1): v for name, v in figures.items()}
        module.log_dict(renamed, **settings)


class ProposalQuality(SampleQuality):
    """`SampleQuality` of what the starter proposes, before any step of the chain.

    Its distance to that of the samples says how much the chain still contributes. Logs
    `proposal_frechet` and so on.
    """

    def see(self, trainer: Trainer, learner: LightningModule, batch: Any, index: int) -> None:
        require(learner, Refining, "ProposalQuality")
        super().see(trainer, learner, batch, index)

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        seen: Any = _Proposing(require(learner, Refining, "ProposalQuality"))
        super().look(trainer, seen, stage)


class FilmStrip(Evaluation):
    """A picture of chains: a row each, from start to end.

    Arguments:
        num: Chains.
        frames: States after the start.
        every_n_epochs: Epochs between pictures.
    """

    def __init__(self, num: int = 8, frames: int = 9, every_n_epochs: int = 1) -> None:
        super().__init__(every_n_epochs)
        self.num = num
        self.frames = frames

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        model: Refining = require(learner, Refining, "FilmStrip")
        states = model.film(self.num, self.frames, model.generator(0, 7)).transpose(0, 1)
        if states.dim() == 5:
            publish(trainer, "chains", image_grid(states.flatten(0, 1), states.shape[1]))


class ClassAccuracy(Evaluation):
    """How often an independent classifier finds the class that a sample was asked for.

    Logs `class_accuracy`, and `proposal_class_accuracy` of the starts of the chains, which tells
    whether it is the starter or the chain that errs about classes.

    Arguments:
        classifier: A packaged name such as `digits`, or the checkpoint of an `ImageClassifier`.
        num: Samples, the classes in turn.
        every_n_epochs: Epochs between looks.
    """

    def __init__(self, classifier: str, num: int = 1000, every_n_epochs: int = 1) -> None:
        super().__init__(every_n_epochs)
        self.num = num
        features = ClassifierFeatures(classifier)
        self.network = features.network
        self._judge = {"features": features.name, "weights_sha256": features.weights_hash()}

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        model: Any = require(learner, Refining, "ClassAccuracy")
        condition: Any = getattr(model, "condition", None)
        if getattr(condition, "num_classes", None) is None:
            raise TypeError(
                "ClassAccuracy needs a model of classes, with `condition: LabelCondition`; drop "
                "the callback from the recipe."
            )
        share = -(-self.num // trainer.world_size)
        self.network.to(learner.device).eval()
        figures = {}
        for name, num_steps in (("class_accuracy", None), ("proposal_class_accuracy", 0)):
            right = []
            for i, start in enumerate(range(0, share, 500)):
                label = condition.examples(min(500, share - start))
                x = model.sample(
                    len(label), model.generator(i, 8), num_steps=num_steps, condition=label
                )
                with torch.no_grad():
                    right.append(self.network(x.clamp(-1, 1)).argmax(1) == label)
            found = gather(learner, torch.cat(right).double())
            figures[name] = found.mean()
        log(learner, stage, figures)
        self.protocol = {
            "num_samples": len(found),
            "resizing": "none",
            **self._judge,
            "dtype": "scores float32, counts int64",
        }


class Translations(Evaluation):
    """Images made from the evaluated split's condition images, against the true ones.

    Logs `translation_error`, the mean squared error per number, and `psnr` in decibel for pixels
    in [−1, 1]. The picture has a row each of conditions, three samples and true images.

    Arguments:
        num: Columns of the picture.
        num_batches: Batches that are translated.
        every_n_epochs: Epochs between looks.
    """

    def __init__(self, num: int = 8, num_batches: int = 4, every_n_epochs: int = 1) -> None:
        super().__init__(every_n_epochs)
        self.num = num
        self.num_batches = num_batches
        self._sum = torch.zeros(2, dtype=torch.float64)
        self._rows: list[Tensor] = []

    def see(self, trainer: Trainer, learner: LightningModule, batch: Any, index: int) -> None:
        if index >= self.num_batches:
            return
        model: Any = require(learner, Refining, "Translations")
        if getattr(model, "condition", None) is None:
            raise TypeError("Translations needs a conditional model; drop it from the recipe.")
        x, label = batch
        c = model.condition(x, label)
        y = model.sample(len(x), model.generator(index, 9), condition=c)
        error = (y.clamp(-1, 1) - x).double().square()
        self._sum += torch.stack([error.sum(), error.new_tensor(error.numel())]).cpu()
        if index == 0 and c.dim() == 4:
            few = c[: self.num]
            more = [model.sample(len(few), model.generator(i, 10), condition=few) for i in range(2)]
            rows = [few, y[: self.num], *more, x[: self.num]]
            self._rows = [row.expand(-1, x.shape[1], -1, -1).cpu() for row in rows]

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        total, count = gather(learner, self._sum.to(learner.device)[None]).sum(0)
        error = total / count
        log(learner, stage, {"translation_error": error, "psnr": 10 * (4 / error).log10()})
        self.protocol = {
            "metric": "mean squared error per number",
            "num_numbers": int(count),
            "dtype": "differences as the data, sums float64",
        }
        if self._rows:
            publish(trainer, "translations", image_grid(torch.cat(self._rows), len(self._rows[0])))
        self._sum.zero_()
        self._rows = []
