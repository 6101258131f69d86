"""What one of several ranks does in `test_distributed.py`, where it is run as a script."""

import sys
import tempfile
import warnings
from pathlib import Path

import torch
from pytorch_lightning import Callback, Trainer, seed_everything

from eblvm.data import DensityDataModule, EightGaussians, ImageDataModule
from eblvm.divergences import GradientPenalty, Jeffrey
from eblvm.energies import SymbolVectorTimeEnergy
from eblvm.evaluation import Likelihood, Reconstructions, SampleQuality, protocol_of
from eblvm.latent import LatentVariableModel
from eblvm.likelihoods import GaussianLikelihood
from eblvm.metrics import CorpusBLEU, PixelFeatures
from eblvm.models import BiDVL, BoltzmannMachine, DataEBM, DenoisingEBM, LatentEBM
from eblvm.models.networks import (
    MLP,
    MLPEnergy,
    ResidualTimeNet,
    TimedMLPEncoder,
    TimedMLPEnergy,
    TimedMLPGenerator,
)
from eblvm.negatives import PersistentNegatives
from eblvm.posteriors import AmortizedPosterior, LangevinPosterior
from eblvm.priors import DiffusionEnergyPrior, EnergyPrior, GaussianPrior
from eblvm.rbm import GaussianBernoulliRBM
from eblvm.samplers import Gibbs, Langevin
from eblvm.schedules import RecoverySchedule, VariancePreservingSchedule

SEED = 3
QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "inference_mode": False,
    "accelerator": "cpu",
}


def lebm():
    """An LEBM of the plane, whose sampler and losses are all noise-driven; plain SGD."""
    torch.manual_seed(0)
    prior = EnergyPrior(3, MLPEnergy(3, [8]), Langevin(num_steps=4, step_size=0.4))
    posterior = LangevinPosterior(Langevin(num_steps=4, step_size=0.1))
    likelihood = GaussianLikelihood(MLP(3, [8], 2), scale=0.5)
    latent = LatentVariableModel(prior, posterior, likelihood)
    return LatentEBM(latent, {"prior": 0.1, "likelihood": 0.01}, optimizer=torch.optim.SGD)


def ldebm():
    """An LDEBM of the plane, with power iterations, drawn levels, and symbols; plain SGD."""
    torch.manual_seed(0)
    net = ResidualTimeNet(3, 4, num_timesteps=3, width=8, num_blocks=1)
    prior = DiffusionEnergyPrior(3, SymbolVectorTimeEnergy(net), RecoverySchedule(3), num_steps=4)
    posterior = AmortizedPosterior(MLP(2, [8], 6))
    likelihood = GaussianLikelihood(MLP(3, [8], 2), scale=0.5)
    latent = LatentVariableModel(prior, posterior, likelihood)
    rates = {"prior": 0.1, "posterior": 0.01, "likelihood": 0.01}
    return LatentEBM(latent, rates, optimizer=torch.optim.SGD)


MODELS = {"lebm": lebm, "ldebm": ldebm}


def persistent_lebm():
    """An LEBM whose chains go on."""
    torch.manual_seed(0)
    sampler = Langevin(num_steps=2, step_size=0.4)
    prior = EnergyPrior(3, MLPEnergy(3, [8]), sampler, num_persistent=16)
    posterior = AmortizedPosterior(MLP(2, [8], 6))
    likelihood = GaussianLikelihood(MLP(3, [8], 2), scale=0.5)
    latent = LatentVariableModel(prior, posterior, likelihood)
    return LatentEBM(latent, {"prior": 0.1, "posterior": 0.01, "likelihood": 0.01})


def persistent_ebm():
    """An energy of the plane, whose chains go on."""
    torch.manual_seed(0)
    sampler = Langevin(num_steps=2, step_size=0.1)
    negatives = PersistentNegatives([2], sampler, capacity=16)
    return DataEBM(MLPEnergy(2, [8]), negatives, {"energy": 0.01})


def boltzmann():
    """A Gaussian–Bernoulli machine with persistent chains."""
    torch.manual_seed(0)
    return BoltzmannMachine(GaussianBernoulliRBM(2, 3), 0.01, Gibbs(2), num_chains=4)


def bidvl():
    """BiDVL of the plane: two players."""
    torch.manual_seed(0)
    posterior = AmortizedPosterior(MLP(2, [8], 6))
    likelihood = GaussianLikelihood(MLP(3, [8], 2), scale=0.5)
    latent = LatentVariableModel(GaussianPrior(3), posterior, likelihood)
    rates = dict.fromkeys(("energy", "posterior", "likelihood"), 0.01)
    return BiDVL(MLPEnergy(2, [8]), latent, rates)


def ddaebm():
    """DDAEBM of the plane: two players in a diffusion."""
    torch.manual_seed(0)
    encoder = TimedMLPEncoder(2, 2, [8])
    return DenoisingEBM(
        TimedMLPEnergy(2, hidden_dims=[8]),
        TimedMLPGenerator(2, 2, [8]),
        VariancePreservingSchedule(2),
        Jeffrey(encoder, penalty=GradientPenalty(0.01)),
        latent_dim=2,
        event_shape=[2],
        learning_rates=dict.fromkeys(("energy", "generator", "divergence"), 0.01),
    )


OTHERS = {f.__name__: f for f in (persistent_lebm, persistent_ebm, boltzmann, bidvl, ddaebm)}


def end(name, **settings):
    """Parameters and buffers of a model before and after two steps."""
    seed_everything(SEED, verbose=False)
    model = OTHERS[name]()
    before = {n: p.clone() for n, p in (*model.named_parameters(), *model.named_buffers())}
    data = DensityDataModule(EightGaussians(), batch_size=4, num_train=16, num_val=4, num_test=4)
    Trainer(**QUIET, **settings, max_steps=2, limit_val_batches=0).fit(model, data)
    after = {n: p.detach().clone() for n, p in model.named_parameters()}
    return {"before": before, "after": after, "buffers": dict(model.named_buffers())}


class Record(Callback):
    """Batches, chains' ends and averaged gradients of each step."""

    def __init__(self, model):
        self.steps = []
        self.model = model
        prior, posterior = model.latent.prior, model.latent.posterior
        if hasattr(posterior, "sampler"):
            prior.sampler = Recording(prior.sampler, self, "negative")
            posterior.sampler = Recording(posterior.sampler, self, "posterior")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.steps.append({"x": batch[0].clone()})

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        grads = {n: p.grad.clone() for n, p in pl_module.named_parameters()}
        self.steps[-1]["gradient"] = grads


class Recording:
    """A sampler that leaves its results in a record."""

    def __init__(self, sampler, record, name):
        self.sampler, self.record, self.name = sampler, record, name

    def __call__(self, *arguments):
        result = self.sampler(*arguments)
        self.record.steps[-1][self.name] = result.clone()
        return result


def train(name, **settings):
    """Two steps of a model; the record."""
    seed_everything(SEED, verbose=False)
    model = MODELS[name]()
    record = Record(model)
    data = DensityDataModule(EightGaussians(), batch_size=4, num_train=16, num_val=4, num_test=4)
    Trainer(**QUIET, **settings, callbacks=[record], max_steps=2, limit_val_batches=0).fit(
        model, data
    )
    return record.steps


class LinearGaussian(LatentEBM):
    """A model whose posterior is exact, so log p(x) needs no luck; its samples come from a table.

    x = c Q z + b + σ ε with orthonormal columns Q.
    """

    def __init__(self):
        torch.manual_seed(1)
        dim, latent_dim, c, sigma = 16, 3, 0.8, 0.4
        encoder = MLP(dim, [], 2 * latent_dim)
        decoder = MLP(latent_dim, [], dim, out_shape=[1, 4, 4])
        q = torch.linalg.qr(torch.randn(dim, latent_dim))[0]
        bias = 0.1 * torch.randn(dim)
        shrink = c / (c**2 + sigma**2)
        log_variance = torch.tensor(sigma**2 / (c**2 + sigma**2)).log()
        with torch.no_grad():
            decoder[1].weight.copy_(c * q)
            decoder[1].bias.copy_(bias)
            encoder[1].weight.copy_(torch.cat([shrink * q.T, torch.zeros(latent_dim, dim)]))
            mean = -shrink * q.T @ bias
            encoder[1].bias.copy_(torch.cat([mean, log_variance.expand(latent_dim)]))
        likelihood = GaussianLikelihood(decoder, sigma)
        latent = LatentVariableModel(GaussianPrior(3), AmortizedPosterior(encoder), likelihood)
        super().__init__(latent, {"posterior": 0.0, "likelihood": 0.0})
        covariance = c**2 * q @ q.T + sigma**2 * torch.eye(dim)
        self.marginal = torch.distributions.MultivariateNormal(bias, covariance)
        self.table = torch.randn(40, 1, 4, 4).clamp(-1, 1)
        self.asked = []

    def sample(self, num, generator=None, noise=False):
        self.asked.append(num)
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return self.table[rank::world][:num]


def evaluate(**settings):
    """Figures of a validation, and how many samples this rank was asked for."""
    seed_everything(SEED, verbose=False)
    model = LinearGaussian()
    # 21 images: the shares of two ranks differ
    data = ImageDataModule("Synthetic", 4, 1, batch_size=4, num_synthetic=210)
    quality = SampleQuality(PixelFeatures((1, 4, 4)), num=40)
    callbacks = [Reconstructions(), Likelihood(num_samples=2), quality]
    folder = tempfile.mkdtemp()  # for the pictures
    trainer = Trainer(
        **QUIET, **settings, callbacks=callbacks, precision="64-true", default_root_dir=folder
    )
    with torch.no_grad():
        trainer.validate(model, data, verbose=False)
    figures = {k: v.clone() for k, v in trainer.callback_metrics.items()}
    x = torch.cat([x for x, _ in data.batches("val")]).double()
    return {"figures": figures, "asked": model.asked, "x": x, "truth": model.marginal}


def count(rank):
    """What a metric's protocol says of one sentence on the first rank and two on the second."""
    bleu = CorpusBLEU()
    sentence = "the cat sat on the mat".split()
    bleu.update([sentence] * (1 + rank), [sentence] * (1 + rank))
    return {"bleu": bleu.compute(), "protocol": protocol_of(bleu), "own": int(bleu.num)}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    settings = {"devices": 2, "strategy": "ddp"}
    result = {"train": train("lebm", **settings), "evaluate": evaluate(**settings)}
    result["train ldebm"] = train("ldebm", **settings)
    result["end"] = {name: end(name, **settings) for name in OTHERS}
    result["evaluate"].pop("truth")
    rank = torch.distributed.get_rank()
    result["count"] = count(rank)
    torch.save(result, Path(sys.argv[1]) / f"rank_{rank}.pt")
