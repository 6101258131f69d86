"""Fréchet distance: closed forms, singular covariances, independence of order and of ranks."""

import socket
from datetime import timedelta

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import distributed, multiprocessing, nn

from eblvm.metrics import (
    ClassifierFeatures,
    FrechetDistance,
    PixelFeatures,
    PrecisionRecall,
    frechet_distance,
)


def random_covariance(dim, rank, like):
    factor = torch.randn(dim, rank, **like)
    return factor @ factor.mT / rank


def test_distance_between_diagonal_gaussians_is_the_closed_form(like):
    mean1, mean2 = torch.randn(2, 6, **like)
    scale1, scale2 = torch.rand(2, 6, **like) + 0.1
    expected = (mean1 - mean2).square().sum() + (scale1 - scale2).square().sum()
    distance = frechet_distance(mean1, scale1.square().diag(), mean2, scale2.square().diag())
    torch.testing.assert_close(distance, expected.double(), rtol=1e-6, atol=1e-6)


def test_distance_agrees_with_the_matrix_root_of_scipy():
    like = {"dtype": torch.float64}
    mean1, mean2 = torch.randn(2, 8, **like)
    cov1, cov2 = random_covariance(8, 20, like), random_covariance(8, 20, like)
    root = scipy.linalg.sqrtm((cov1.double() @ cov2.double()).cpu().numpy())
    expected = (mean1 - mean2).double().square().sum() + (cov1 + cov2).double().trace()
    distance = frechet_distance(mean1, cov1, mean2, cov2)
    torch.testing.assert_close(distance, expected - 2 * np.trace(root).real, rtol=1e-9, atol=1e-9)


def test_distance_is_symmetric_and_zero_at_equality_though_singular():
    like = {"dtype": torch.float64}
    mean, cov1, cov2 = (
        torch.randn(40, **like),
        random_covariance(40, 5, like),
        random_covariance(40, 9, like),
    )
    assert frechet_distance(mean, cov1, mean, cov1).abs() < 1e-11  # rounding, no root of rounding
    torch.testing.assert_close(
        frechet_distance(mean, cov1, mean, cov2), frechet_distance(mean, cov2, mean, cov1)
    )


def test_singular_covariances_in_orthogonal_spaces_share_nothing():
    cov1, cov2 = torch.diag(torch.tensor([4.0, 0, 0])), torch.diag(torch.tensor([0, 9.0, 0]))
    mean = torch.zeros(3)
    torch.testing.assert_close(
        frechet_distance(mean, cov1, mean, cov2), torch.tensor(13.0, dtype=torch.float64)
    )


def test_metric_equals_the_distance_of_numpy_moments():
    real, fake = torch.randn(50, 1, 2, 3), 0.5 * torch.randn(30, 1, 2, 3) + 0.2
    metric = FrechetDistance(PixelFeatures((1, 2, 3)))
    metric.update(real, real=True)
    metric.update(fake, real=False)
    moments = []
    for x in (real, fake):
        x = x.flatten(1).double().numpy()
        moments += [torch.tensor(x.mean(0)), torch.tensor(np.cov(x, rowvar=False))]
    value = metric.compute()
    assert value.dtype == torch.float64
    torch.testing.assert_close(value, frechet_distance(*moments), rtol=1e-10, atol=1e-10)


def test_metric_depends_neither_on_order_nor_on_batch_size():
    real, fake = torch.randn(2, 60, 1, 2, 2)
    values = []
    for batch_size, order in ((60, torch.arange(60)), (7, torch.randperm(60))):
        metric = FrechetDistance(PixelFeatures((1, 2, 2)))
        for batch in order.split(batch_size):
            metric.update(fake[batch], real=False)
            metric.update(real[batch], real=True)
        values.append(metric.compute())
    torch.testing.assert_close(*values, rtol=1e-12, atol=1e-12)


def test_reset_keeps_the_real_images_if_asked():
    real, fake = torch.randn(2, 20, 1, 2, 2)
    for keep_real, num_real in ((True, 20), (False, 0)):
        metric = FrechetDistance(PixelFeatures((1, 2, 2)), keep_real=keep_real)
        metric.update(real, real=True)
        metric.update(fake, real=False)
        before = metric.compute()
        metric.reset()
        assert (int(metric.real_num), int(metric.fake_num)) == (num_real, 0)
        if keep_real:
            metric.update(fake, real=False)
            torch.testing.assert_close(metric.compute(), before)


def test_a_trainers_precision_changes_no_figure():
    images = torch.rand(2, 60, 1, 8, 8) * 2 - 1
    figures = []
    for convert in (lambda m: m, lambda m: m.to(torch.bfloat16), nn.Module.half, nn.Module.double):
        metric = FrechetDistance(ClassifierFeatures("digits"))
        learner = nn.ModuleList([metric])
        convert(learner)
        metric.update(images[0], real=True)
        metric.update(images[1], real=False)
        convert(learner)
        figures.append((metric.compute(), metric.protocol))
    assert figures[1:] == figures[:-1]


def test_protocol_is_plain_and_tells_what_the_figure_depends_on():
    metric = FrechetDistance(PixelFeatures((1, 2, 2)))
    with pytest.raises(RuntimeError, match="Call `compute\\(\\)` first"):
        _ = metric.protocol
    metric.update(torch.randn(9, 1, 2, 2), real=True)
    metric.update(torch.randn(4, 1, 2, 2), real=False)
    metric.compute()
    protocol = metric.protocol
    assert protocol.pop("weights_sha256") == PixelFeatures((1, 2, 2)).weights_hash()
    assert protocol == {
        "metric": "frechet_distance",
        "num_real": 9,
        "num_fake": 4,
        "full_rank": False,  # 4 images span at most 3 directions
        "dtype": "features float32, statistics float64",
        "features": "pixels",
        "num_features": 4,
        "resizing": "none",
    }


def test_errors_name_the_remedy():
    metric = FrechetDistance(PixelFeatures((1, 2, 2)))
    metric.update(torch.randn(9, 1, 2, 2), real=True)
    with pytest.raises(ValueError, match=r"9 real and 0 generated images.*real=False"):
        metric.compute()
    mean, cov = torch.zeros(3), torch.eye(3)
    with pytest.raises(ValueError, match="one D"):
        frechet_distance(mean, cov, torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance(mean, cov * float("nan"), mean, cov)


def two_rank_figures(rank, port):
    """What a rank computes from half of the images; rank 1 has no sample for its neighbors."""
    distributed.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=120),
    )
    try:
        real, fake = two_rank_images()
        frechet = FrechetDistance(PixelFeatures((1, 2, 2)))
        neighbors = PrecisionRecall(PixelFeatures((1, 2, 2)))
        frechet.update(real[rank::2], real=True)
        frechet.update(fake[:30] if rank else fake[30:], real=False)
        neighbors.update(real[rank::2], real=True)
        if rank == 0:
            neighbors.update(fake, real=False)
        figures = [frechet.compute(), *neighbors.compute().values()]
        return [float(f) for f in figures], [frechet.protocol, neighbors.protocol]
    finally:
        distributed.destroy_process_group()


def on_rank_1(port, queue):
    torch.set_num_threads(1)
    queue.put(two_rank_figures(1, port))


def two_rank_images():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 40, 1, 2, 2, generator=generator)


def test_two_ranks_equal_one():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=on_rank_1, args=(port, queue), daemon=True)
    process.start()
    answers = [two_rank_figures(0, port), queue.get(timeout=120)]
    process.join(120)

    real, fake = two_rank_images()
    metrics = [metric(PixelFeatures((1, 2, 2))) for metric in (FrechetDistance, PrecisionRecall)]
    for metric in metrics:
        metric.update(real, real=True)
        metric.update(fake, real=False)
    expected = [float(f) for f in (metrics[0].compute(), *metrics[1].compute().values())]
    for figures, protocols in answers:
        assert figures == pytest.approx(expected, rel=1e-12)
        assert protocols == [metric.protocol for metric in metrics]
