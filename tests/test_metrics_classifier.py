"""The classifier that is trained for its features."""

import pytest
import torch
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader, TensorDataset

from eblvm.metrics import ClassifierFeatures
from eblvm.models import ImageClassifier


# Lightning 2.6 asks PyTorch for a deprecated name, and advises on the number of workers
@pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*does not have many workers")
def test_learns_separable_classes_and_its_checkpoint_becomes_features(tmp_path):
    label = torch.arange(300) % 3
    template = torch.randn(3, 1, 8, 8).clamp(-1, 1)
    images = (template[label] + 0.5 * torch.randn(300, 1, 8, 8)).clamp(-1, 1)
    loader = DataLoader(TensorDataset(images, label), batch_size=50)
    learner = ImageClassifier(image_size=8, num_classes=3, width=4, learning_rate=1e-2)
    trainer = Trainer(
        max_epochs=6,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(learner, loader, loader)
    assert trainer.callback_metrics["val/accuracy"] > 0.95  # chance is a third
    (figures,) = trainer.test(learner, loader, verbose=False)
    assert figures["test/accuracy"] > 0.95
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)

    path = tmp_path / "run.ckpt"
    trainer.save_checkpoint(path, weights_only=False)
    features = ClassifierFeatures(path)(images)
    logits = learner.eval().network.head(features)
    torch.testing.assert_close(logits, learner(images))


def test_loss_is_the_negative_log_probability_of_each_label():
    learner = ImageClassifier(image_size=8, num_classes=3, width=4).eval()
    x, label = torch.rand(5, 1, 8, 8) * 2 - 1, torch.tensor([0, 1, 2, 1, 0])
    (term,) = learner.terms((x, label), learner.generator()).values()
    expected = -learner(x).softmax(1)[torch.arange(5), label].log()
    torch.testing.assert_close(term, expected)


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match="learning_rate is 0"):
        ImageClassifier(image_size=8, learning_rate=0)
