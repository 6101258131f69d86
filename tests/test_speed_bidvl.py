"""The benchmark of BiDVL's step: the transcription does what the learner does, and all is timed."""

import re

import torch
from bidvl_parts import OTHER, SIGNS, exact_noise, game

from eblvm.benchmarks.speed import bidvl
from eblvm.objectives import SquaredCycle, SymmetricDivergence


def test_the_transcription_takes_the_learner_s_steps(monkeypatch):
    exact_noise(monkeypatch)
    monkeypatch.setattr(torch, "randn", lambda *shape: SIGNS)
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


def test_every_recipe_has_a_line(capsys):
    bidvl.main("toy/bidvl_8gaussians image/bidvl_digits --steps 2 --rounds 2".split())
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == ["toy/bidvl_8gaussians", "image/bidvl_digits"]
    for row in rows:
        slow, fast, ratio, low, high = map(float, re.findall(r"\d+\.\d+", row))
        assert slow > 0 and fast > 0 and 0 < low <= ratio <= high
