"""Evaluation during and after training, as callbacks.

A callback asks a learner only for what it can do: `sample`, `reconstruct`, `log_likelihood` or
`log_prob_on_grid`. Figures are logged as `val/…` and `test/…`, equal on all ranks; pictures go to
`pictures/` in the run folder and to loggers that take images. Samples are shared out among ranks,
and the noise is the same at each validation, so that epochs can be compared.
"""

from inspect import signature
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import Tensor

from eblvm.metrics import (
    ClassifierFeatures,
    DensityCoverage,
    FeatureExtractor,
    FrechetDistance,
    InceptionScore,
    MeanLogLikelihood,
    PrecisionRecall,
    count_classes,
    count_modes,
    grid_points,
)
from eblvm.metrics.grid import Bounds, cell_probabilities, kl_of_histogram, kl_of_masses
from eblvm.pictures import density_figure, image_grid, save_image, scatter_figure

__all__ = [
    "GridDensity",
    "Likelihood",
    "Modes",
    "Reconstructions",
    "SampleDensity",
    "SampleQuality",
    "Samples",
    "StackedModes",
]


@runtime_checkable
class Sampling(Protocol):
    """A learner that draws data."""

    def sample(
        self, num: int, generator: torch.Generator | None = None, noise: bool = False
    ) -> Tensor:
        """Draw `(num, *event)`."""

    def generator(self, batch_idx: int = 0, offset: int = 0) -> torch.Generator:
        """A seeded source of noise."""


@runtime_checkable
class Reconstructing(Protocol):
    """A learner that infers latents and decodes them."""

    def reconstruct(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The decoded latents of `x`, `(B, *event)`."""


@runtime_checkable
class LogLikelihood(Protocol):
    """A learner that estimates log p(x); with `exact_likelihood = True`, one that knows it."""

    def log_likelihood(
        self, x: Tensor, num_samples: int = 100, generator: torch.Generator | None = None
    ) -> Tensor:
        """Nats, `(B,)`."""


@runtime_checkable
class GridLogProb(Protocol):
    """A learner whose density of the plane can be computed on a grid."""

    def log_prob_on_grid(self, bounds: Any, resolution: int) -> Tensor:
        """Normalized log density at `grid_points(bounds, resolution)`, `(resolution²,)`."""


def require(learner: object, ability: type, what: str) -> Any:
    """The learner, or a `TypeError` that says which callback does not go with it."""
    if not isinstance(learner, ability):
        raise TypeError(
            f"{what} needs a learner that has the methods of {ability.__name__}, and "
            f"{type(learner).__name__} lacks one. Drop that callback from the recipe."
        )
    return learner


def log(learner: LightningModule, stage: str, figures: dict[str, Tensor]) -> None:
    """Log figures that are the same on all ranks."""
    named = {f"{stage}/{name}": value.float().to(learner.device) for name, value in figures.items()}
    learner.log_dict(named, sync_dist=True)


def gather(learner: LightningModule, rows: Tensor) -> Tensor:
    """The rows of all ranks, `(R * B, …)`."""
    gathered: Any = learner.all_gather(rows)  # (R, B, …), or (B, …) on one device
    return gathered.reshape(-1, *rows.shape[1:])


def protocol_of(metric: Any) -> dict[str, Any]:
    """A metric's protocol with the numbers of all ranks; all of them have to ask."""
    with metric.sync_context():
        return dict(metric.protocol)


def draw(learner: Sampling, trainer: Trainer, num: int, noise: bool = False) -> Tensor:
    """This rank's share of at least `num` samples, in chunks; all shares are equally large."""
    share = -(-num // trainer.world_size)
    chunks = [min(500, share - start) for start in range(0, share, 500)]
    draws = [learner.sample(n, learner.generator(i, 1), noise) for i, n in enumerate(chunks)]
    return torch.cat(draws)


def publish(trainer: Trainer, name: str, image: Any) -> Path | None:
    """Write a picture, bytes `(C, H, W)` or a matplotlib figure; to the loggers, too."""
    if not trainer.is_global_zero or trainer.sanity_checking:
        return None
    folder = Path(trainer.default_root_dir) / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    stage = "test" if trainer.testing else f"epoch_{trainer.current_epoch:04d}"
    path = folder / f"{name}_{stage}.png"
    if isinstance(image, Tensor):
        save_image(image, path)
    else:
        image.savefig(path, dpi=110)
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_image") and isinstance(image, Tensor):
            experiment.add_image(name, image, trainer.global_step)
        elif hasattr(experiment, "add_figure") and not isinstance(image, Tensor):
            experiment.add_figure(name, image, trainer.global_step)
        elif hasattr(logger, "log_image"):
            logger.log_image(name, [str(path)], step=trainer.global_step)
    return path


class Evaluation(Callback):
    """Looks at validation every `every_n_epochs` epochs, at the last one, and at tests.

    `protocol` says how the last figures were made, for those who compare them with others; it is
    empty before the first look, and for callbacks that log no figure.

    Arguments:
        every_n_epochs: Epochs between looks; 0 looks at tests only.

    Raises:
        ValueError: If it is negative.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 0:
            raise ValueError(f"every_n_epochs is {every_n_epochs}; expected 0 or more.")
        self.every_n_epochs = every_n_epochs
        self.protocol: dict[str, Any] = {}

    def due(self, trainer: Trainer) -> bool:
        """Whether this validation or test counts."""
        if trainer.sanity_checking or not self.every_n_epochs:
            return False
        epoch = trainer.current_epoch + 1
        last = trainer.max_epochs is not None and epoch == trainer.max_epochs
        return trainer.state.fn != "fit" or last or epoch % self.every_n_epochs == 0

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        """At the end of the evaluation loop."""

    def see(self, trainer: Trainer, learner: LightningModule, batch: Any, index: int) -> None:
        """At each batch of the evaluation loop."""

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.due(trainer):
            self.see(trainer, pl_module, batch, batch_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.see(trainer, pl_module, batch, batch_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.due(trainer):
            self.look(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.look(trainer, pl_module, "test")


class Samples(Evaluation):
    """A picture of samples: a grid of images, or points.

    Arguments:
        num: How many.
        every_n_epochs: Epochs between pictures.
    """

    def __init__(self, num: int = 64, every_n_epochs: int = 1) -> None:
        super().__init__(every_n_epochs)
        self.num = num

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        if not trainer.is_global_zero:
            return
        sampling: Sampling = require(learner, Sampling, "Samples")
        x = sampling.sample(self.num, sampling.generator(0, 2))
        if x.dim() == 4:
            publish(trainer, "samples", image_grid(x))
        elif x.dim() == 2 and x.shape[1] == 2 and x.is_floating_point():
            publish(trainer, "samples", scatter_figure(x))


class Reconstructions(Evaluation):
    """A picture of data (odd rows) and their reconstructions (even rows), and the squared error.

    Logs `reconstruction_error`, the mean squared error per number, over all of the split.

    Arguments:
        num: Pairs in the picture, in rows of eight.
        every_n_epochs: Epochs between looks.
    """

    def __init__(self, num: int = 32, every_n_epochs: int = 1) -> None:
        super().__init__(every_n_epochs)
        self.num = num
        self._sum = torch.zeros(2, dtype=torch.float64)
        self._pairs: tuple[Tensor, Tensor] | None = None

    def see(self, trainer: Trainer, learner: LightningModule, batch: Any, index: int) -> None:
        model: Any = require(learner, Reconstructing, "Reconstructions")
        x = batch[0]
        y = model.reconstruct(x, model.generator(index, 3))
        error = (x - y).double().square()
        self._sum += torch.stack([error.sum(), error.new_tensor(error.numel())]).cpu()
        if self._pairs is None and x.dim() == 4:
            self._pairs = x[: self.num], y[: self.num]

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        total, count = gather(learner, self._sum.to(learner.device)[None]).sum(0)
        log(learner, stage, {"reconstruction_error": total / count})
        self.protocol = {
            "metric": "mean squared error per number",
            "num_numbers": int(count),
            "dtype": "differences as the data, sums float64",
        }
        if self._pairs is not None:
            x, y = (part.cpu() for part in self._pairs)
            rows = zip(x.split(8), y.split(8), strict=True)
            publish(trainer, "reconstructions", image_grid(torch.cat([*sum(rows, ())]), 8))
        self._sum.zero_()
        self._pairs = None


class SampleQuality(Evaluation):
    """Samples against the evaluated split, in a feature space.

    Logs `frechet` (the Fréchet distance), `precision`, `recall`, `density` and `coverage`, and if
    asked `inception_score` and `inception_score_std`.

    Arguments:
        features: The feature space.
        num: Samples.
        every_n_epochs: Epochs between looks.
        inception_score: Whether to compute it, by the classifier behind the features; published
            figures are of 50,000 samples and `InceptionFeatures`.
        to_training: Whether the Fréchet distance is to the training data, as published ones mostly
            are, which may favor what copies them. All else stays with the evaluated split.

    Raises:
        TypeError: At a look to training data, if the trainer has no data module to hand them out.
    """

    def __init__(
        self,
        features: FeatureExtractor,
        num: int = 1000,
        every_n_epochs: int = 1,
        inception_score: bool = False,
        to_training: bool = False,
    ) -> None:
        super().__init__(every_n_epochs)
        self.num = num
        self.to_training = to_training
        self.frechet = FrechetDistance(features, keep_real=to_training)
        self.inception_score = InceptionScore(features) if inception_score else None
        self.neighbors = [PrecisionRecall(features), DensityCoverage(features)]

    def see(self, trainer: Trainer, learner: LightningModule, batch: Any, index: int) -> None:
        judges = self.neighbors if self.to_training else [self.frechet, *self.neighbors]
        for metric in judges:
            metric.to(learner.device).update(batch[0], real=True)

    def _see_training(self, trainer: Trainer, learner: LightningModule) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "batches"):
            raise TypeError(
                "SampleQuality with to_training takes training data in order, which a data module "
                "of eblvm.data hands out, and this trainer has none. Pass one as `datamodule`, or "
                "set to_training to false."
            )
        if not int(self.frechet.real_num):  # once: they stay
            for x, _ in data.batches("train", in_order=True):
                self.frechet.to(learner.device).update(x.to(learner.device), real=True)

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        if self.to_training:
            self._see_training(trainer, learner)
        samples = draw(require(learner, Sampling, "SampleQuality"), trainer, self.num)
        for x in samples.clamp(-1, 1).split(500):
            for metric in (self.frechet, *self.neighbors):
                metric.update(x, real=False)
            if self.inception_score is not None:
                self.inception_score.to(learner.device).update(x)
        figures = {"frechet": self.frechet.compute()}
        if self.inception_score is not None:
            figures |= self.inception_score.compute()
            self.inception_score.reset()
        for metric in self.neighbors:
            figures |= metric.compute()
        self.protocol = self.frechet.protocol
        for metric in self.neighbors:
            own = {"k": metric.k, "dtype": metric.protocol["dtype"]}
            if self.to_training:  # else as of the distance, as all the rest is
                own["num_real"] = metric.protocol["num_real"]
            self.protocol[metric.figure] = own
        if self.to_training:
            self.protocol["reference_of_frechet"] = "training data"
        if self.inception_score is not None:
            self.protocol["inception_score"] = {"num_splits": self.inception_score.num_splits}
        log(learner, stage, figures)
        for metric in (self.frechet, *self.neighbors):
            metric.reset()


class Likelihood(Evaluation):
    """Importance-weighted log-likelihood in nats, with its standard error.

    Logs `log_likelihood` and `log_likelihood_error`; with `released` their names begin with
    `released_`, so that figures of the two estimators never share a column.

    Arguments:
        num_samples: Importance samples for each datum.
        every_n_epochs: Epochs between looks.
        released: Whether to estimate as the released code of the published text models does, which
            is optimistic; `LatentEBM` only.

    Raises:
        TypeError: At a look, if the learner has no such estimator.
    """

    def __init__(
        self, num_samples: int = 100, every_n_epochs: int = 1, released: bool = False
    ) -> None:
        super().__init__(every_n_epochs)
        self.num_samples = num_samples
        self.released = released
        kind = "released estimator" if released else "importance sampling"
        self.metric = MeanLogLikelihood(f"{kind}, K={num_samples}")

    def see(self, trainer: Trainer, learner: LightningModule, batch: Any, index: int) -> None:
        model: Any = require(learner, LogLikelihood, "Likelihood")
        how: dict[str, Any] = {"released": True} if self.released else {}
        if how and "released" not in signature(model.log_likelihood).parameters:
            raise TypeError(
                f"{type(learner).__name__} has no released estimator of the likelihood; expected a "
                "LatentEBM, or Likelihood without `released`."
            )
        log_prob = model.log_likelihood(
            batch[0], self.num_samples, model.generator(index, 4), **how
        )
        self.metric.to(learner.device).update(log_prob)

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        figures = self.metric.compute()
        prefix = "released_" if self.released else ""
        names = {"mean": "log_likelihood", "standard_error": "log_likelihood_error"}
        log(learner, stage, {prefix + names[name]: value for name, value in figures.items()})
        self.protocol = self.metric.protocol
        if getattr(learner, "exact_likelihood", False):
            self.protocol["estimator"] = "exact"
        self.metric.reset()


def known_density(trainer: Trainer, what: str) -> Any:
    """The density that the data come from, or a `TypeError` that says which callback needs it."""
    density = getattr(getattr(trainer, "datamodule", None), "density", None)
    if density is None:
        raise TypeError(
            f"{what} needs the data's own density, and this data module has none. Use "
            "eblvm.data.DensityDataModule, or drop the callback."
        )
    return density


class GridDensity(Evaluation):
    """The model's density of the plane against the data's, which must be known.

    Logs `kl`, KL(data‖model) by quadrature, and `sample_kl`, KL(data‖samples) of a histogram, whose
    value for perfect samples is above zero; and draws both densities and samples.

    What an energy is normalized over matters where it is flat: a density that is spread over a box
    twice as wide has log 4 nats less everywhere. Energies are normalized over the data's own box
    made twice as wide, ±9.90 for eight Gaussians, unless `box` says otherwise.

    Arguments:
        resolution: Cells per axis of the grid.
        num: Samples, drawn with the observation noise.
        bins: Cells per axis of the histogram.
        every_n_epochs: Epochs between looks.
        box: b of the square [−b, b]² on which the model's density is normalized, compared and
            drawn; it must hold the data's own box, which is taken if None. Compare `kl` of one box
            only. The histogram's box stays the data's.

    Raises:
        ValueError: At a look, if the data's box is not within the square.
    """

    def __init__(
        self,
        resolution: int = 400,
        num: int = 20_000,
        bins: int = 50,
        every_n_epochs: int = 1,
        box: float | None = None,
    ) -> None:
        super().__init__(every_n_epochs)
        self.resolution = resolution
        self.num = num
        self.bins = bins
        self.box = box
        self._sample_kl = SampleKL(bins)
        self._truth: tuple[Any, Tensor] | None = None

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        density = known_density(trainer, "GridDensity")
        model: Any = require(learner, GridLogProb, "GridDensity")
        bounds, widest = density.bounds, max(abs(side) for axis in density.bounds for side in axis)
        if self.box is not None:
            bounds = ((-self.box, self.box),) * 2
        if self.box is not None and self.box < widest:
            raise ValueError(
                f"box is {self.box}, and the data's own box is {density.bounds}; expected a square "
                "[−box, box]² that holds it."
            )
        if self._truth is None or self._truth[0] is not density:
            points = grid_points(bounds, self.resolution, dtype=torch.float64)
            log_prob = torch.cat([density.log_prob(part) for part in points.split(20_000)])
            self._truth = density, log_prob
        truth = self._truth[1]
        log_prob = model.log_prob_on_grid(bounds, self.resolution).cpu()
        if self.box is not None:  # all of the model's mass in the square, as all of the data's is
            log_prob = log_prob.log_softmax(0) + truth.logsumexp(0)
        samples = gather(learner, draw(model, trainer, self.num, noise=True)).cpu()
        figures = {
            "kl": kl_of_masses(truth, log_prob),
            "sample_kl": self._sample_kl(samples, density),
        }
        log(learner, stage, figures)
        self.protocol = {
            "kl": {"resolution": self.resolution, "bounds": rounded(bounds), "dtype": "float64"},
            **histogram_protocol(len(samples), self.bins, density.bounds),
        }
        maps = {"data": truth, "model": log_prob}
        publish(trainer, "density", density_figure(maps, samples[:3000], bounds))


class Modes(Evaluation):
    """Samples against the modes of a mixture of Gaussians, which must be known.

    Logs `near`, the share of samples within three standard deviations of a center (0.989 for
    perfect samples of the plane); `modes`, the centers visited by 0.16 of their fair share or more;
    `modes_least` and `modes_most`, the rarest and the commonest mode over its fair share.

    Arguments:
        num: Samples, drawn with the observation noise.
        every_n_epochs: Epochs between looks.
    """

    def __init__(self, num: int = 10_000, every_n_epochs: int = 1) -> None:
        super().__init__(every_n_epochs)
        self.num = num

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        density = known_density(trainer, "Modes")
        centers, std = getattr(density, "centers", None), getattr(density, "std", None)
        if centers is None or std is None:
            raise TypeError(
                "Modes needs data that are a mixture of Gaussians with known centers, such as "
                "EightGaussians or GaussianGrid; drop the callback for others."
            )
        model: Any = require(learner, Sampling, "Modes")
        samples = gather(learner, draw(model, trainer, self.num, noise=True)).cpu()
        count = count_modes(samples, centers, std)
        figures = {
            "near": count.near,
            "modes": count.hit,
            "modes_least": count.least,
            "modes_most": count.most,
        }
        log(learner, stage, {n: torch.tensor(float(value)) for n, value in figures.items()})
        self.protocol = {
            "num_samples": len(samples),
            "num_centers": len(centers),
            "near": f"3 standard deviations of {float(std):.4g}",
            "hit": "0.16 of the fair share",
            "dtype": "distances float64",
        }


class SampleDensity(Evaluation):
    """Samples against the density of the plane that the data have, for models without a density.

    Logs `sample_kl`, as `GridDensity` does.

    Arguments:
        num: Samples, drawn with the observation noise.
        bins: Cells per axis of the histogram.
        every_n_epochs: Epochs between looks.
    """

    def __init__(self, num: int = 20_000, bins: int = 50, every_n_epochs: int = 1) -> None:
        super().__init__(every_n_epochs)
        self.num = num
        self.bins = bins
        self._sample_kl = SampleKL(bins)

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        density = known_density(trainer, "SampleDensity")
        model: Any = require(learner, Sampling, "SampleDensity")
        samples = gather(learner, draw(model, trainer, self.num, noise=True)).cpu()
        log(learner, stage, {"sample_kl": self._sample_kl(samples, density)})
        self.protocol = histogram_protocol(len(samples), self.bins, density.bounds)


class SampleKL:
    """`histogram_kl` of samples and a density in its own box, whose cells are reckoned once.

    Arguments:
        bins: Cells per axis.
    """

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self._known: tuple[Any, Tensor] | None = None

    def __call__(self, samples: Tensor, density: Any) -> Tensor:
        """The divergence of samples `(n, 2)` on the CPU, a scalar."""
        if self._known is None or self._known[0] is not density:
            cells = cell_probabilities(
                density.log_prob, density.bounds, self.bins, dtype=samples.dtype
            )
            self._known = density, cells
        return kl_of_histogram(samples, self._known[1], density.bounds)


def histogram_protocol(num: int, bins: int, bounds: Bounds) -> dict[str, Any]:
    """How a divergence from a histogram of samples was made."""
    return {"num_samples": num, "bins": bins, "box": rounded(bounds), "dtype": "shares float64"}


def rounded(bounds: Bounds) -> str:
    """A box for readers and for comparisons, to four digits."""
    return str(tuple(tuple(float(f"{side:.4g}") for side in axis) for axis in bounds))


class StackedModes(Evaluation):
    """How many of the classes of stacked gray images samples visit, as a classifier sees them.

    Logs `stacked_modes`, the number of combinations of the channels' classes with a sample (1,000
    for three digits), and `stacked_kl`, KL(samples‖uniform) over them; 26,000 perfect samples have
    about 0.02.

    Arguments:
        weights: The classifier of one channel, as `eblvm.metrics.ClassifierFeatures` has them.
        num: Samples.
        every_n_epochs: Epochs between looks.

    References:
        VEEGAN (Srivastava et al., 2017), for the data; PacGAN (Lin et al., 2018), for the number of
        samples.
    """

    def __init__(self, weights: str = "mnist", num: int = 26_000, every_n_epochs: int = 1) -> None:
        super().__init__(every_n_epochs)
        features = ClassifierFeatures(weights)
        self.classifier = features.network
        self.num = num
        self._judge = {"features": features.name, "weights_sha256": features.weights_hash()}

    def look(self, trainer: Trainer, learner: LightningModule, stage: str) -> None:
        samples = draw(require(learner, Sampling, "StackedModes"), trainer, self.num)
        classifier = self.classifier.to(samples.device)
        labels = []
        with torch.no_grad():
            for part in samples.clamp(-1, 1).split(500):  # (B, C, H, W)
                logits = classifier(part.flatten(0, 1)[:, None]).view(*part.shape[:2], -1)
                labels.append(logits.argmax(2))
        num_classes = logits.shape[2]
        place = num_classes ** torch.arange(samples.shape[1] - 1, -1, -1, device=samples.device)
        combined = gather(learner, (torch.cat(labels) * place).sum(1))
        found = count_classes(combined, num_classes ** samples.shape[1])
        figures = {"stacked_modes": torch.tensor(found.hit), "stacked_kl": torch.tensor(found.kl)}
        log(learner, stage, figures)
        self.protocol = {
            "num_samples": len(combined),
            "resizing": "none",
            **self._judge,
            "dtype": "scores float32, counts int64",
        }
