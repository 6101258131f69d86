"""The benchmark of BiDVL's step: the transcription does what the learner does, and all is timed."""

import re

import pytest
import torch
from bidvl_parts import OTHER, SIGNS, exact_noise, game
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from eblvm.benchmarks.speed import bidvl
from eblvm.models.networks.critic import WholeConv2d
from eblvm.objectives import SquaredCycle, SymmetricDivergence
from eblvm.priors import GaussianPrior
from eblvm.training import build


def test_the_transcription_takes_the_learner_s_steps(monkeypatch):
    exact_noise(monkeypatch)
    monkeypatch.setattr(torch, "randn", lambda *shape, device: SIGNS)
    monkeypatch.setattr(torch, "randn_like", lambda like: OTHER)
    monkeypatch.setattr(bidvl, "WARM_UP", 0)
    x = 1.3 * SIGNS
    theirs = game(lower=SymmetricDivergence(0.05), cycle=SquaredCycle())
    bidvl.transcribed(theirs, [x], 3)
    ours = game(lower=SymmetricDivergence(0.05), cycle=SquaredCycle())
    rates = {"energy": 1e-4, "posterior": 3e-4, "likelihood": 3e-4}
    critic, player = (
        [
            torch.optim.Adam(module.parameters(), rates[name], betas=(0.0, 0.9))
            for name, module in side.items()
            if name in rates
        ]
        for side in (ours.critic(), ours.player())
    )
    for _ in range(3):
        for optimizers, terms, still in (
            (critic, ours.critic_terms, ours.player()),
            (player, ours.player_terms, ours.critic()),
        ):
            with ours.frozen(still):
                loss = sum(t.mean() for t in terms((x, None), torch.Generator(), 0).values())
                for optimizer in optimizers:
                    optimizer.zero_grad()
                loss.backward()
                for optimizer in optimizers:
                    optimizer.step()
    start = dict(game().named_parameters())
    for name, parameter in ours.named_parameters():
        assert not torch.equal(parameter, start[name])
        torch.testing.assert_close(dict(theirs.named_parameters())[name], parameter)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:You defined a")
def test_a_recipe_s_parameters_are_the_transcription_s_under_a_trainer(monkeypatch, tmp_path):
    """With batch normalization, and samples that both levels share. Its count differs; and so would
    the power iterations of spectral norms, which are left out."""
    free = "--model.init_args.energy.init_args.energy.init_args.spectral_norm=false"
    ours, theirs = (build("toy/bidvl_8gaussians", free)[0].double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    x, z, eps = torch.randn(3, 200, 2, generator=torch.Generator().manual_seed(0)).double()
    monkeypatch.setattr(GaussianPrior, "sample", lambda self, num, g=None: z)
    monkeypatch.setattr("eblvm.posteriors.noise_like", lambda like, g=None: eps)
    with monkeypatch.context() as fixed:
        fixed.setattr(torch, "randn", lambda *shape, device: z)
        fixed.setattr(torch, "randn_like", lambda like: eps)
        fixed.setattr(bidvl, "WARM_UP", 0)
        bidvl.transcribed(theirs, [x], 3)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "accelerator": "cpu", "default_root_dir": tmp_path}
    loader = DataLoader([(x, 0)] * 3, batch_size=None)
    Trainer(**quiet, max_steps=3, limit_val_batches=0).fit(ours, loader)
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=1e-9)
    counts = {n: int(b) for n, b in ours.named_buffers() if n.endswith("num_batches_tracked")}
    twice = {n: int(b) for n, b in theirs.named_buffers() if n in counts}
    assert set(counts.values()) == {3 * 2} and set(twice.values()) == {3 * 3}


def test_the_reference_has_none_of_our_layers():
    synthetic = "--data.init_args.dataset=Synthetic"
    ours = build("image/bidvl_digits", synthetic)[0]
    theirs = bidvl.plain("image/bidvl_digits", synthetic)
    assert any(isinstance(m, WholeConv2d) for m in ours.modules())
    assert not any(isinstance(m, WholeConv2d) for m in theirs.modules())
    filters = [m.weight for m in theirs.modules() if isinstance(m, nn.Conv2d)]
    assert filters and all(f.is_contiguous() for f in filters)
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(theirs.eval().energy(x), ours.eval().energy(x))


def test_every_recipe_has_a_line(capsys):
    bidvl.main("toy/bidvl_8gaussians image/bidvl_digits --steps 2 --rounds 2".split())
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["toy/bidvl_8gaussians", "image/bidvl_digits"]
    for row in rows:
        slow, fast, ratio, low, high = map(float, re.findall(r"\d+\.\d+", row))
        assert slow > 0 and fast > 0 and 0 < low <= ratio <= high
