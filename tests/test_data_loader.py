"""The order of the data: determined by (seed, epoch), shared out over ranks, resumed exactly."""

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from eblvm.data.loader import ResumableLoader, ResumableSampler, TensorRows, seeded_generator
from eblvm.data.module import DataModule

NUM, BATCH = 23, 4  # five full batches an epoch


class Numbers(Dataset):
    """0, 1, 2, …, a batch at a time."""

    def __init__(self, num=NUM):
        self.values = torch.arange(num, dtype=torch.float32)

    def __len__(self):
        return len(self.values)

    def __getitems__(self, index):
        return self.values[index]


class NumbersModule(DataModule):
    """The numbers as training and validation data."""

    event_shape = ()

    def __init__(self, num_workers=0, num=NUM, seed=0):
        super().__init__(BATCH, num_workers, seed)
        self.num = num

    def dataset(self, split):
        if self.num_workers:  # item by item, as files are read
            return TensorDataset(torch.arange(self.num, dtype=torch.float32))
        return Numbers(self.num)


class Recorder(LightningModule):
    """Writes down every batch that it trains on."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(1, 1)
        self.seen, self.evaluated = [], []

    def training_step(self, batch, batch_idx):
        batch = batch[0] if isinstance(batch, list | tuple) else batch
        self.seen.append((self.current_epoch, batch_idx, *batch.int().tolist()))
        return self.net(batch[:, None]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.evaluated += batch.int().tolist()

    def predict_step(self, batch, batch_idx):
        return batch

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-4)


class Save(Callback):
    """Save at the end of a batch, of validation or of an epoch."""

    def __init__(self, hook, step, path):
        self.hook, self.step, self.path, self.done = hook, step, path, False

    def _save(self, hook, trainer):
        if (
            hook == self.hook
            and trainer.global_step == self.step
            and not (trainer.sanity_checking or self.done)
        ):
            trainer.save_checkpoint(self.path)
            self.done = True

    def on_train_batch_end(self, trainer, *_):
        self._save("batch", trainer)

    def on_validation_end(self, trainer, *_):
        self._save("validation", trainer)

    def on_train_epoch_end(self, trainer, *_):
        self._save("epoch", trainer)


def make_trainer(path, **kwargs):
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=path,
        num_sanity_val_steps=0,
        **kwargs,
    )


def fit(path, limits, callbacks=(), ckpt_path=None, validate=False, num_workers=0, **kwargs):
    model = Recorder()
    limits = {**limits, "limit_val_batches": 1.0 if validate else 0}
    trainer = make_trainer(path, callbacks=list(callbacks), **limits, **kwargs)
    trainer.fit(model, datamodule=NumbersModule(num_workers), ckpt_path=ckpt_path)
    return model


@pytest.mark.parametrize("limits", [{"max_epochs": 3}, {"max_epochs": -1, "max_steps": 15}])
@pytest.mark.parametrize(
    ("hook", "step", "validate"),
    [
        ("batch", 2, False),
        ("batch", 7, False),
        ("batch", 7, True),
        ("batch", 5, False),
        ("validation", 5, True),
        ("epoch", 5, False),
        ("epoch", 5, True),
        ("epoch", 10, False),
    ],
)
def test_resuming_equals_not_stopping(tmp_path, limits, hook, step, validate):
    path = tmp_path / "saved.ckpt"
    whole = fit(tmp_path, limits, [Save(hook, step, path)], validate=validate)
    rest = fit(tmp_path, limits, ckpt_path=path, validate=validate)
    assert len(whole.seen) == 15
    assert rest.seen == whole.seen[step:]


def test_batches_of_an_epoch_are_disjoint_and_epochs_differ(tmp_path):
    seen = [row[2:] for row in fit(tmp_path, {"max_epochs": 2}).seen]
    epochs = [sum(seen[:5], ()), sum(seen[5:], ())]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert epochs[0] != epochs[1]
