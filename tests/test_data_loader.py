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


def numbers_loader(num=NUM, shuffle=True, seed=0, num_replicas=1):
    sampler = ResumableSampler(Numbers(num), num_replicas, 0, shuffle, seed, drop_last=shuffle)
    return ResumableLoader(Numbers(num), batch_size=BATCH, sampler=sampler, drop_last=shuffle)


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


@pytest.mark.parametrize("then", [{"max_epochs": -1, "max_steps": 15}, {"max_epochs": 3}])
def test_a_run_that_max_steps_stopped_goes_on_with_the_next_batch(tmp_path, then):
    whole = fit(tmp_path, then)
    model, run = Recorder(), make_trainer(tmp_path, max_steps=7, limit_val_batches=0)
    run.fit(model, datamodule=NumbersModule())
    run.save_checkpoint(tmp_path / "saved.ckpt")
    rest = fit(tmp_path, then, ckpt_path=tmp_path / "saved.ckpt")
    assert model.seen + rest.seen == whole.seen


def test_worker_processes_change_nothing(tmp_path):
    """Workers fetch ahead; the position still counts batches handed out, and epochs are right."""
    path = tmp_path / "saved.ckpt"
    save = Save("batch", 7, path)
    whole = fit(tmp_path, {"max_epochs": 3})
    workers = fit(tmp_path, {"max_epochs": 3}, [save], num_workers=1)
    rest = fit(tmp_path, {"max_epochs": 3}, ckpt_path=path, num_workers=1)
    assert workers.seen == whole.seen
    assert rest.seen == whole.seen[7:]


def test_batches_of_an_epoch_are_disjoint_and_epochs_differ(tmp_path):
    seen = [row[2:] for row in fit(tmp_path, {"max_epochs": 2}).seen]
    epochs = [sum(seen[:5], ()), sum(seen[5:], ())]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert epochs[0] != epochs[1]


def items(loader):
    return [int(i) for batch in loader for i in batch]


def test_order_is_determined_by_seed_and_epoch():
    loader = numbers_loader(seed=3)
    first, second = items(loader), items(loader)
    assert first != second
    loader.sampler.set_epoch(0)
    assert items(loader) == first
    assert items(numbers_loader(seed=3)) == first
    assert items(numbers_loader(seed=4)) != first
    # (seed, epoch) = (3, 1) and (4, 0) share their sum, by which PyTorch's own sampler seeds
    assert second != items(numbers_loader(seed=4))


@pytest.mark.parametrize("num_replicas", [1, 2, 3, 4])
def test_ranks_share_the_data(num_replicas):
    ranks = range(num_replicas)
    whole = list(ResumableSampler(Numbers(), seed=1))
    train = [list(ResumableSampler(Numbers(), num_replicas, r, True, 1, True)) for r in ranks]
    assert {len(share) for share in train} == {NUM // num_replicas}
    zipped = [i for row in zip(*train, strict=True) for i in row]
    assert zipped == whole[: len(zipped)]
    test = [ResumableSampler(Numbers(), num_replicas, r, shuffle=False) for r in ranks]
    assert sorted(i for share in test for i in share) == list(range(NUM))
    assert [len(share) for share in test] == [len(list(share)) for share in test]


def test_state_counts_batches_and_resumes_after_them():
    loader = numbers_loader()
    whole = [batch.tolist() for _ in range(2) for batch in loader]
    loader = numbers_loader()
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (0, 3)
    other = numbers_loader()
    other.load_state_dict(state)
    assert other.state_dict() == state
    assert [batch.tolist() for _ in range(2) for batch in other] == whole[3:]


def test_state_of_a_finished_epoch_starts_the_next():
    loader = numbers_loader()
    whole = [batch.tolist() for _ in range(2) for batch in loader]
    done = numbers_loader()
    list(done)
    other = numbers_loader()
    other.load_state_dict(done.state_dict())
    assert [batch.tolist() for batch in other] == whole[5:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num": 30}, "num_items was 23 and is 30"),
        ({"seed": 2}, "seed was 0 and is 2"),
        ({"num_replicas": 2}, "num_replicas was 1 and is 2"),
    ],
)
def test_a_place_within_an_epoch_needs_the_same_order(change, message):
    loader = numbers_loader()
    next(iter(loader))
    other = numbers_loader(**change)
    other.load_state_dict(loader.state_dict())
    with pytest.raises(ValueError, match=message):
        next(iter(other))
    other.load_state_dict({**loader.state_dict(), "position": 0})
    next(iter(other))


def test_any_sampler_resumes_by_skipping():
    loader = ResumableLoader(Numbers(), batch_size=BATCH)
    loader.load_state_dict({**loader.state_dict(), "position": 4})
    assert items(loader) == list(range(16, 23))
    assert items(loader) == list(range(23))


def test_overfitting_and_predicting_build_the_loader_anew(tmp_path):
    """Lightning makes a second loader of the same class, with another sampler."""
    model, run = Recorder(), make_trainer(tmp_path, max_epochs=2, overfit_batches=2)
    with pytest.warns(UserWarning, match=r"turning off the .* dataloader shuffling"):
        run.fit(model, datamodule=NumbersModule())
    assert [row[2:] for row in model.seen] == 2 * [(0, 1, 2, 3), (4, 5, 6, 7)]
    run = make_trainer(tmp_path)
    predicted = run.predict(model, datamodule=NumbersModule())
    assert torch.cat(predicted).tolist() == list(range(NUM))


def test_a_foreign_training_loader_is_refused(tmp_path):
    class Foreign(NumbersModule):
        def train_dataloader(self):
            return torch.utils.data.DataLoader(range(NUM), batch_size=BATCH)

    run = make_trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    with pytest.raises(TypeError, match=r"loader is a DataLoader; expected .* ResumableLoader"):
        run.fit(Recorder(), datamodule=Foreign())


def test_columns_are_gathered_in_the_order_of_the_rows():
    rows = TensorRows(torch.arange(5), 10 * torch.arange(5), rows=torch.tensor([4, 0, 3]))
    assert len(rows) == 3
    assert [c.tolist() for c in rows.__getitems__([2, 0])] == [[3, 4], [30, 40]]


def test_generators_of_neighboring_numbers_are_unrelated():
    draws = {
        float(torch.rand(1, generator=seeded_generator(*numbers)))
        for numbers in ((0,), (1,), (0, 1), (1, 0), (0, 0, 1), (0, 1, 0))
    }
    assert len(draws) == 6
    with pytest.raises(ValueError, match=r"seeds are \(1, -1\)"):
        seeded_generator(1, -1)
