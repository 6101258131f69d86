"""The alternating loop, on a game whose steps are known by hand."""

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from eblvm.models.two_player import TwoPlayer


class Number(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))


class Game(TwoPlayer):
    """The critic a descends a·b, the player b descends −a·b + b²/2."""

    def __init__(self, **settings):
        super().__init__(
            {"a": 0.1, "b": 0.2},
            critic_optimizer=torch.optim.SGD,
            player_optimizer=torch.optim.SGD,
            **settings,
        )
        self.a, self.b = Number(1.0), Number(2.0)

    def critic(self):
        return {"a": self.a}

    def player(self):
        return {"b": self.b}

    def critic_terms(self, batch, generator, step):
        assert not self.b.value.requires_grad
        return {"product": self.a.value * self.b.value}

    def player_terms(self, batch, generator, step):
        assert not self.a.value.requires_grad
        return {"gain": -self.a.value * self.b.value, "cost": 0.5 * self.b.value**2}


def play(game, tmp_path, batches=1, epochs=1, ckpt=None, **settings):
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **settings,
    )
    trainer.fit(game, DataLoader(torch.zeros(batches, 1)), ckpt_path=ckpt)
    return trainer


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
class TestLoop:
    def test_players_take_turns_and_the_second_sees_the_first_one_moved(self, tmp_path):
        game = Game(critic_steps=2, player_steps=3)
        trainer = play(game, tmp_path)
        a, b = 1.0, 2.0
        for _ in range(2):
            a -= 0.1 * b
        for _ in range(3):
            b -= 0.2 * (b - a)
        assert float(game.a.value.detach()) == pytest.approx(a, abs=1e-12)
        assert float(game.b.value.detach()) == pytest.approx(b, abs=1e-12)
        assert trainer.global_step == 1

    def test_one_batch_is_one_step_of_the_trainer(self, tmp_path):
        assert play(Game(), tmp_path, batches=10, max_steps=4).global_step == 4

    def test_gradients_are_clipped_per_component(self, tmp_path):
        game = Game(clip_norm=0.5)
        play(game, tmp_path)
        assert float(game.a.value.detach()) == pytest.approx(1 - 0.1 * 0.5, abs=1e-6)
        assert float(game.b.value.detach()) == pytest.approx(2 - 0.2 * 0.5, abs=1e-6)

    def test_schedules_of_both_step_once_an_epoch(self, tmp_path):
        game = Game(
            critic_scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
            player_scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.1),
        )
        trainer = play(game, tmp_path, batches=3, epochs=2)
        rates = [o.param_groups[0]["lr"] for o in trainer.optimizers]
        assert rates == pytest.approx([0.1 * 0.5**2, 0.2 * 0.1**2])


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
def test_figures_are_logged_where_the_trainer_writes_them(tmp_path):
    game, seen = Game(), []
    log_dict = game.log_dict
    game.log_dict = lambda figures, **options: (
        seen.append((game.global_step, figures)),
        log_dict(figures, **options),
    )
    trainer = play(game, tmp_path, batches=7, log_every_n_steps=3)
    assert [step for step, _ in seen] == [3, 6]  # after the steps that Lightning counts as such
    terms = {"train/product", "train/gain", "train/cost"}
    logged = trainer.logged_metrics
    assert float(logged["train/loss"]) == pytest.approx(float(sum(logged[t] for t in terms)))
    terms.add("train/loss")
    assert set(trainer.logged_metrics) == terms | {"train/gradient_a", "train/gradient_b"}
    assert not game.noting


def test_no_player_without_steps_and_no_part_without_a_rate():
    with pytest.raises(ValueError, match="critic_steps is 0; expected 1 or more"):
        Game(critic_steps=0)
    game = Game()
    game.learning_rates = {"a": 0.1}
    with pytest.raises(ValueError, match=r"no entry for \['b'\]"):
        game.configure_optimizers()
