"""Averaged weights: what is averaged, and the statistics that go with them."""

import torch
from torch import nn

from eblvm.averaging import RunningAverage, estimate_statistics
from eblvm.callbacks import Interrupt
from eblvm.checkpoint import load
from eblvm.samplers.buffer import ReplayBuffer


class Net(nn.Module):
    """Batch normalization, something remembered, and `terms`."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 1))
        self.unused = nn.BatchNorm1d(3)
        self.buffer = ReplayBuffer(torch.zeros(4, 1))

    def terms(self, batch, generator):
        y = self.net(batch)
        self.buffer.store(torch.arange(4), y[:4].detach(), torch.zeros(4, dtype=torch.bool))
        return {"loss": y.square().sum(1) + torch.rand(()) * 0}


def test_weights_and_statistics_are_averaged_and_states_are_the_latest():
    net = Net()
    average = RunningAverage(net, 0.9)
    for value in (2.0, 4.0):  # begun at the first
        for tensor in (net.net[0].weight.data, net.net[1].running_mean, net.net[1].running_var):
            tensor.fill_(value)
        net.buffer.states.fill_(value)
        net.net[1].num_batches_tracked += 1
        average.update_parameters(net)
    own = average.module
    for found in (own.net[0].weight, own.net[1].running_mean, own.net[1].running_var):
        torch.testing.assert_close(found.detach(), torch.full_like(found, 0.9 * 2 + 0.1 * 4))
    assert torch.equal(own.buffer.states, torch.full((4, 1), 4.0))
    assert own.net[1].num_batches_tracked == 2


def test_statistics_are_plain_means_over_passes_and_nothing_else_moves():
    net, g = Net().eval(), torch.Generator().manual_seed(0)
    net.unused.running_mean.fill_(5.0)
    batches = [torch.randn(50, 2, generator=g) for _ in range(3)]
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    estimate_statistics(net, ((x, g) for x in batches))
    with torch.no_grad():
        hidden = [net.net[0](x) for x in batches]
    mean = torch.stack([h.mean(0) for h in hidden]).mean(0)
    torch.testing.assert_close(net.net[1].running_mean, mean)
    variance = torch.stack([h.var(0) for h in hidden]).mean(0)
    torch.testing.assert_close(net.net[1].running_var, variance)
    for name, value in net.state_dict().items():
        if not name.startswith("net.1.running"):
            assert torch.equal(value, before[name]), name
    assert torch.equal(torch.get_rng_state(), random)
    assert not net.training


def test_averaged_weights_of_a_run_meet_statistics_of_their_own(eblvm, tmp_path):
    """Samples by running statistics are those by a batch's own, up to the noise of a batch.

    With the statistics of the latest weights they are not: the mean square is 15 times as large.
    """
    small = ["--data.num_train=4000", "--data.num_val=20", "--data.num_test=20"]
    small += ["--trainer.callbacks=[]", "--trainer.accelerator=cpu", "--monitor=val/loss"]
    small += ["--trainer.max_epochs=4", "--model.learning_rates.likelihood=3e-3", "--ema=0.97"]
    done = eblvm("fit", "--config", "toy/bidvl_8gaussians", *small)
    assert done.status == 0, done.err
    (last,) = tmp_path.rglob("last.ckpt")
    likelihood = load(last, "cpu").latent.likelihood
    z = torch.randn(5000, 2, generator=torch.Generator().manual_seed(0))

    def gap():
        with torch.no_grad():
            mine = likelihood.eval().mean(z)
            saved = {n: v.clone() for n, v in likelihood.state_dict().items()}
            batch = likelihood.train().mean(z)  # moves the statistics
            likelihood.load_state_dict(saved)
        return float((mine - batch).square().mean())

    own = gap()
    latest = torch.load(last)["current_model_state"]
    name = "latent.likelihood."
    for key, value in likelihood.state_dict().items():
        if "running" in key:
            value.copy_(latest[name + key])
    assert own < 0.2 * gap()


def test_a_step_that_ctrl_c_saves_is_in_the_average(eblvm, tiny, tmp_path, monkeypatch):
    save = Interrupt.on_train_batch_end

    def ask(self, trainer, *arguments):
        self.asked = trainer.global_step == 3
        save(self, trainer, *arguments)

    monkeypatch.setattr(Interrupt, "on_train_batch_end", ask)
    assert eblvm("fit", "--config", tiny, "--ema=0.9").status == 130
    (last,) = tmp_path.rglob("last.ckpt")
    checkpoint = torch.load(last)
    assert checkpoint["averaging_state"]["n_averaged"] == checkpoint["global_step"] == 3
