"""Log-likelihoods: linear-Gaussian evidence, hand-computed averages and bits."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal

from eblvm.metrics import (
    MeanLogLikelihood,
    bits_per_dim,
    effective_sample_size,
    importance_log_likelihood,
)


def log_weights(num, x, shift):
    """z ~ N(0, 1), x | z ~ N(z, 1); the posterior is N(x/2, 1/2), the proposal has its scale."""
    proposal = Normal(x / 2 + shift, math.sqrt(0.5))
    z = proposal.sample((num,))
    prior, likelihood = Normal(torch.zeros_like(x), 1.0), Normal(z, 1.0)
    return likelihood.log_prob(x) + prior.log_prob(z) - proposal.log_prob(z)


def test_importance_sampling_is_exact_at_the_posterior(like):
    x = torch.randn(5, **like)
    evidence = Normal(torch.zeros_like(x), math.sqrt(2)).log_prob(x)
    weights = log_weights(3, x, shift=0.0)
    torch.testing.assert_close(importance_log_likelihood(weights), evidence)
    torch.testing.assert_close(effective_sample_size(weights), torch.full_like(x, 3))


def test_importance_sampling_converges_from_below(like):
    x = torch.randn(200, **like)
    evidence = Normal(torch.zeros_like(x), math.sqrt(2)).log_prob(x).mean()
    few, more = (importance_log_likelihood(log_weights(k, x, 0.5)).mean() for k in (2, 2000))
    assert few < more < evidence + 0.01
    assert more == pytest.approx(float(evidence), abs=0.01)  # log-weights have variance 2 * 0.5²


def test_effective_sample_size_by_hand(like):
    weights = torch.tensor([[1.0, 1.0], [1.0, 0.0], [2.0, 0.0]], **like).log()
    expected = torch.tensor([16 / 6, 1.0], **like)
    torch.testing.assert_close(effective_sample_size(weights), expected)


def test_large_log_weights_do_not_overflow(like):
    weights = torch.tensor([[-4000.0], [-4000.0]], **like)
    assert float(importance_log_likelihood(weights)) == -4000
    assert float(effective_sample_size(weights)) == pytest.approx(2)


def test_bits_per_dim_of_uniform_bytes_is_eight():
    # 3 dimensions, uniform over 256 levels: as probability, and as density on [-1, 1]
    assert bits_per_dim(torch.tensor(-3 * math.log(256)), 3).item() == pytest.approx(8)
    density = torch.tensor(-3 * math.log(2))
    assert bits_per_dim(density, 3, bin_width=2 / 256).item() == pytest.approx(8)


def test_mean_and_standard_error_over_batches():
    log_prob = -1000 + 3 * torch.randn(50, dtype=torch.float64)
    metric = MeanLogLikelihood("importance sampling, K=10")
    for batch in log_prob.split(7):
        metric.update(batch)
    figure = metric.compute()
    assert float(figure["mean"]) == pytest.approx(float(log_prob.mean()), rel=1e-12)
    assert float(figure["standard_error"]) == pytest.approx(float(log_prob.std() / math.sqrt(50)))
    assert metric.protocol["num_data"] == 50
    assert metric.protocol["estimator"] == "importance sampling, K=10"


def test_a_single_datum_has_no_standard_error():
    metric = MeanLogLikelihood()
    metric.update(torch.tensor([-2.0]))
    assert float(metric.compute()["mean"]) == -2
    assert metric.compute()["standard_error"].isnan()


def test_a_trainers_precision_does_not_reach_the_sums():
    metric = MeanLogLikelihood()
    metric.update(torch.tensor([-1000.5, -1000.0]))
    nn.ModuleList([metric]).to(torch.bfloat16).half()
    assert metric.compute()["mean"].dtype == torch.float64
    assert float(metric.compute()["mean"]) == -1000.25


def test_errors_name_the_remedy():
    metric = MeanLogLikelihood()
    with pytest.raises(RuntimeError, match="Call `compute"):
        _ = metric.protocol
    with pytest.raises(ValueError, match="Call `update"), pytest.warns(UserWarning, match="before"):
        metric.compute()
    with pytest.raises(ValueError, match="one number per datum"):
        metric.update(torch.zeros(2, 2))
    with pytest.raises(ValueError, match="1 of 2 log-likelihoods"):
        metric.update(torch.tensor([0.0, -math.inf]))
    with pytest.raises(ValueError, match=r"\(K, B\)"):
        importance_log_likelihood(torch.zeros(3))
    with pytest.raises(ValueError, match=r"\(K, B\)"):
        effective_sample_size(torch.zeros(0, 3))
    with pytest.raises(ValueError, match="num_dims is 0"):
        bits_per_dim(torch.zeros(1), 0)
