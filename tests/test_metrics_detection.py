"""Detection: counted by hand, against scikit-learn, and the coverage of the interval."""

import math

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from eblvm.metrics import aupr, auroc, fpr_at_95_tpr

FIGURES = [auroc, aupr, fpr_at_95_tpr]


def test_high_scores_mean_in_distribution():
    high, low = torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0])
    assert auroc(high, low).value == 1
    assert auroc(low, high).value == 0
    assert aupr(high, low).value == 1
    assert fpr_at_95_tpr(high, low).value == 0
    assert fpr_at_95_tpr(low, high).value == 1


def test_figures_counted_by_hand():
    score_in, score_out = torch.tensor([4.0, 2.0, 1.0]), torch.tensor([3.0, 1.0])
    # of 6 pairs 4 > 3, 4 > 1, 2 > 1 are right and 1 = 1 is half
    assert auroc(score_in, score_out).value == pytest.approx(3.5 / 6)
    # recall rises by 1/3 at the thresholds 4, 2, 1, with precision 1/1, 2/3, 3/5
    assert aupr(score_in, score_out).value == pytest.approx((1 + 2 / 3 + 3 / 5) / 3)
    # all three data are needed for 95 %, and the threshold 1 accepts both others
    assert fpr_at_95_tpr(score_in, score_out).value == 1


def test_nineteen_of_twenty_are_enough_for_95_percent():
    score_in = torch.arange(20.0)
    assert fpr_at_95_tpr(score_in, torch.tensor([0.0, 0.5, 1.0, 2.0])).value == 0.5


@pytest.mark.parametrize("digits", [1, 8])  # with many ties, and with none
def test_values_agree_with_scikit_learn(digits):
    score_in = (torch.randn(200, dtype=torch.float64) + 1).round(decimals=digits)
    score_out = torch.randn(300, dtype=torch.float64).round(decimals=digits)
    label = torch.cat([torch.ones(200), torch.zeros(300)]).numpy()
    score = torch.cat([score_in, score_out]).numpy()
    fpr, tpr, _ = roc_curve(label, score, drop_intermediate=False)
    expected = [
        roc_auc_score(label, score),
        average_precision_score(label, score),
        fpr[tpr >= 0.95 - 1e-12].min(),
    ]
    values = [f(score_in, score_out, num_bootstrap=0).value for f in FIGURES]
    assert values == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("figure", FIGURES)
def test_interval_holds_the_value_and_is_reproducible(figure):
    score_in, score_out = torch.randn(100) + 1, torch.randn(100)
    estimate = figure(score_in, score_out, num_bootstrap=200)
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.low < estimate.high
    assert figure(score_in, score_out, num_bootstrap=200) == estimate
    narrow = figure(score_in, score_out, num_bootstrap=200, confidence=0.5)
    assert estimate.low <= narrow.low <= narrow.high <= estimate.high
    without = figure(score_in, score_out, num_bootstrap=0)
    assert without.value == estimate.value and math.isnan(without.low)


def test_interval_of_auroc_covers_the_truth_as_often_as_it_says():
    truth = 0.5 * (1 + math.erf(0.5))  # P(N(1, 1) > N(0, 1)) = Phi(1 / sqrt 2)
    hits = 0
    for seed in range(100):
        estimate = auroc(torch.randn(80) + 1, torch.randn(80), num_bootstrap=100, seed=seed)
        hits += estimate.low <= truth <= estimate.high
    assert (
        hits >= 87
    )  # 95 % expected, a standard deviation of 2.2; the percentile interval is short


def test_errors_name_the_remedy():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match=r"score_out has shape \(0,\)"):
        auroc(x, x[:0])
    with pytest.raises(ValueError, match=r"score_in has shape \(3, 1\)"):
        aupr(x[:, None], x)
    with pytest.raises(ValueError, match="3 of 3 numbers in score_in are nan"):
        fpr_at_95_tpr(x * math.nan, x)
    with pytest.raises(ValueError, match=r"confidence 1\.5"):
        auroc(x, x, confidence=1.5)
