"""Likelihoods: normalized, in nats, summed over the event."""

import itertools

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Normal

from eblvm.likelihoods import BernoulliLikelihood, CategoricalLikelihood, GaussianLikelihood

PAD, BOS, EOS = 0, 2, 3


class Markov(nn.Module):
    """Logits from the latent and the last token only."""

    def __init__(self, num_tokens=5, latent_dim=2):
        super().__init__()
        self.table = nn.Embedding(num_tokens, num_tokens)
        self.linear = nn.Linear(latent_dim, num_tokens)

    def forward(self, z, tokens):
        return self.table(tokens) + self.linear(z)[:, None]


def test_gaussian_is_torch_s_normal(like):
    likelihood = GaussianLikelihood(nn.Linear(2, 3).to(**like), 0.3)
    x, z = torch.randn(4, 3, **like), torch.randn(4, 2, **like)
    truth = Normal(likelihood.mean(z), 0.3).log_prob(x).sum(1)
    torch.testing.assert_close(likelihood.log_prob(x, z), truth)


def test_gaussian_samples_have_its_moments():
    likelihood = GaussianLikelihood(nn.Identity(), 0.5)
    z = torch.full((50_000, 1), 2.0)
    x = likelihood.sample(z, torch.Generator().manual_seed(0))
    assert float(x.mean()) == pytest.approx(2, abs=4 * 0.5 / 50_000**0.5)
    assert float(x.std()) == pytest.approx(0.5, rel=4 / (2 * 50_000) ** 0.5)


def test_bernoulli_reads_minus_one_and_one_as_bits(like):
    likelihood = BernoulliLikelihood(nn.Linear(2, 3).to(**like))
    z, bits = torch.randn(6, 2, **like), torch.randint(0, 2, (6, 3)).to(**like)
    truth = Bernoulli(logits=likelihood.decoder(z)).log_prob(bits).sum(1)
    torch.testing.assert_close(likelihood.log_prob(2 * bits - 1, z), truth)
    torch.testing.assert_close(likelihood.mean(z), 2 * torch.sigmoid(likelihood.decoder(z)) - 1)
    assert set(likelihood.sample(z).unique().tolist()) <= {-1.0, 1.0}


@torch.no_grad()
def test_categorical_sums_to_one_over_all_sequences(like):
    # all sequences of at most 2 tokens after <s>, of those that end and those that are cut
    likelihood = CategoricalLikelihood(Markov().to(**like), max_length=3)
    z = torch.randn(1, 2, **like)
    total = 0.0
    for first, second in itertools.product(range(1, 5), repeat=2):
        x = torch.tensor([[BOS, first, second]])
        total += float(likelihood.log_prob(x, z).exp())
    # the pad token has some probability as well, which log_prob leaves out on purpose
    logits = likelihood.decoder(z, torch.tensor([[BOS]]))[:, 0].softmax(-1)
    by_hand = 0.0
    for first in range(1, 5):
        rest = likelihood.decoder(z, torch.tensor([[first]]))[:, 0].softmax(-1)
        by_hand += float(logits[0, first] * rest[0, 1:].sum())
    assert total == pytest.approx(by_hand, rel=1e-9)


def test_categorical_does_not_score_padding(like):
    likelihood = CategoricalLikelihood(Markov().to(**like), max_length=6)
    z = torch.randn(1, 2, **like)
    short = torch.tensor([[BOS, 4, EOS]])
    padded = torch.tensor([[BOS, 4, EOS, PAD, PAD, PAD]])
    torch.testing.assert_close(likelihood.log_prob(short, z), likelihood.log_prob(padded, z))


def test_categorical_samples_end_and_are_padded():
    likelihood = CategoricalLikelihood(Markov(), max_length=8)
    x = likelihood.sample(torch.randn(200, 2), torch.Generator().manual_seed(0))
    assert x.shape == (200, 8)
    assert (x[:, 0] == BOS).all()
    for row in x.tolist():
        if EOS in row:
            assert set(row[row.index(EOS) + 1 :]) <= {PAD}


def test_categorical_sample_frequencies_are_the_probabilities():
    likelihood = CategoricalLikelihood(Markov(), max_length=2)
    z = torch.zeros(40_000, 2)
    x = likelihood.sample(z, torch.Generator().manual_seed(0))
    logits = likelihood.decoder(z[:1], torch.tensor([[BOS]]))[0, 0]
    truth = logits.index_fill(0, torch.tensor([PAD, BOS]), -torch.inf).softmax(-1)  # never drawn
    share = torch.bincount(x[:, 1], minlength=5) / len(x)
    assert (share - truth).abs().max() < 4 * (0.25 / len(x)) ** 0.5


def test_greedy_decoding_takes_the_likeliest_token():
    likelihood = CategoricalLikelihood(Markov(), max_length=2)
    z = torch.randn(10, 2)
    logits = likelihood.decoder(z, torch.full((10, 1), BOS))[:, 0]
    best = logits.index_fill(1, torch.tensor([PAD, BOS]), -torch.inf).argmax(-1)
    assert torch.equal(likelihood.mean(z)[:, 1], best)


def test_errors_name_what_was_expected():
    with pytest.raises(ValueError, match="scale is 0; expected a positive number"):
        GaussianLikelihood(nn.Identity(), 0)
    likelihood = GaussianLikelihood(nn.Linear(2, 3))
    with pytest.raises(ValueError, match=r"returned shape \(4, 3\) for data of shape \(4, 5\)"):
        likelihood.log_prob(torch.zeros(4, 5), torch.zeros(4, 2))
