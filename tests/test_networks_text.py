"""Networks of text: sizes as published, padding that changes nothing, gradients that agree."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from eblvm.decoding import Decoding, decode
from eblvm.energies import SymbolVectorTimeEnergy
from eblvm.latent import LatentVariableModel
from eblvm.likelihoods import CategoricalLikelihood, DialogueLikelihood, MultinomialLikelihood
from eblvm.models.initialization import UniformInitialization
from eblvm.models.networks import (
    BagOfWordsDecoder,
    BagOfWordsEncoder,
    DialogueDecoder,
    DialogueEncoder,
    ResidualTimeNet,
    SentenceDecoder,
    SentenceEncoder,
    recurrent,
)
from eblvm.models.networks.recurrent import run_packed
from eblvm.objectives import linear_cross_entropy
from eblvm.posteriors import AmortizedPosterior, DialoguePosterior
from eblvm.priors import DiffusionEnergyPrior, GaussianPrior
from eblvm.schedules import RecoverySchedule

PAD, UNK, BOS, EOS = range(4)


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


def drawn(module, bound):
    """A module whose parameters are wide apart."""
    UniformInitialization(bound)(module)
    return module


def test_sizes_of_the_penn_treebank_networks():
    encoder = SentenceEncoder(10_001, 80, leaky=True)
    parts = [size(part) for part in (encoder.embedding, encoder.rnn, encoder.heads)]
    assert parts == [5_120_512, 3_151_872, 82_000]
    decoder = SentenceDecoder(10_001, 40, dropout=0.3)
    assert size(decoder.first) == 20_480
    assert size(decoder) - size(decoder.first) == 6_757_888


def test_sizes_of_the_dialogue_networks():
    # LSTM of 1024 each way on 512: 2 · 4 · 1024 · (512 + 1024 + 2)
    encoder = SentenceEncoder(10_001, 64, hidden_dim=1024, cell="lstm")
    assert size(encoder.rnn) == 12_599_296 and size(encoder.heads) == 64 * 2049
    decoder = SentenceDecoder(10_001, 32, cell="lstm", tied=False, dropout=0.2)
    assert size(decoder.rnn) == 4 * 512 * (544 + 512 + 2)
    assert size(decoder.first) + size(decoder.first_cell) == 2 * 33 * 512
    assert size(decoder.output) == 513 * 10_001
    answer = DialogueDecoder(10_004, 32)
    assert size(answer.shift) == 513 * 232
    assert size(answer.rnn) == 4 * 512 * (232 + 512 + 2)
    context = answer.context
    assert size(context.words) == 2 * 3 * 256 * (200 + 256 + 2)
    assert size(context.attention) == 513 * 256 + 257
    assert size(context.turns) == 3 * 512 * (512 + 512 + 2)
    reader = DialogueEncoder(10_004, 64)
    assert size(reader.response) == 4 * 512 * (200 + 512 + 2)
    assert size(reader.heads) == 1025 * 512 + 513 * 64


def test_sizes_of_the_news_networks():
    encoder = BagOfWordsEncoder(30_001, 200)
    assert size(encoder) == 30_002 * 2000 + 2001 * 2000 + 2001 * 200
    decoder = BagOfWordsDecoder(100, 30_001)
    assert size(decoder) == 101 * 2000 + 2 * 2001 * 2000 + 2001 * 30_001 + 30_001


def sentences(num=5, length=9, vocab=30):
    """Framed sentences of different lengths."""
    x = torch.randint(4, vocab, (num, length))
    x[:, 0] = BOS
    for i, row in enumerate(x):
        end = 2 + i % (length - 2)
        row[end:] = PAD
        row[end] = EOS
    return x


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_padding_changes_no_posterior_and_no_likelihood(cell):
    encoder = drawn(SentenceEncoder(30, 6, 8, 8, cell), 0.5)
    decoder = drawn(SentenceDecoder(30, 3, 8, 8, cell), 0.5)
    likelihood = CategoricalLikelihood(decoder, 12)
    x, z = sentences(), torch.randn(5, 3)
    padded = F.pad(x, (0, 4), value=PAD)
    torch.testing.assert_close(encoder(padded), encoder(x))
    torch.testing.assert_close(likelihood.log_prob(padded, z), likelihood.log_prob(x, z))
    alone = torch.cat([encoder(row[None, : int((row != PAD).sum())]) for row in x])
    torch.testing.assert_close(encoder(x), alone)


def test_padding_and_missing_turns_change_nothing_in_a_dialogue():
    encoder = DialogueEncoder(30, 6, 8, 8, 4)
    decoder = DialogueDecoder(30, 3, 8, 8, 4, dropout=0.0)
    likelihood = DialogueLikelihood(decoder, 12)
    x = torch.stack([sentences(4), sentences(4), sentences(4)], dim=1)
    x[1, 2] = PAD  # one turn before
    x[2, 1:] = PAD  # none
    z = torch.randn(4, 3)
    wider = F.pad(x, (0, 3, 0, 2), value=PAD)
    torch.testing.assert_close(encoder(wider), encoder(x))
    torch.testing.assert_close(likelihood.log_prob(wider, z), likelihood.log_prob(x, z))
    alone = encoder(x[1:2, :2])
    torch.testing.assert_close(encoder(x)[1:2], alone)
    torch.testing.assert_close(encoder(x)[2:3], encoder(x[2:3, :1]))
    moved = x.clone()
    moved[0, 1, 1] += 1
    assert not torch.allclose(encoder(moved)[0], encoder(x)[0])
    assert not torch.allclose(likelihood.log_prob(moved, z)[0], likelihood.log_prob(x, z)[0])
    with pytest.raises(ValueError, match="needs the turns before it"):
        likelihood.mean(z)
    with pytest.raises(ValueError, match="needs `context`"):
        decoder(z, x[:, 0])


def test_skipping_padding_before_the_projection_changes_nothing(like):
    decoder = drawn(SentenceDecoder(30, 3, 8, 8), 0.5).to(**like)

    class Logits(nn.Module):  # all a plain decoder offers
        def __init__(self):
            super().__init__()
            self.decoder = decoder

        def forward(self, z, tokens):
            return self.decoder(z, tokens)

    x, z = sentences().to(like["device"]), torch.randn(5, 3, **like, requires_grad=True)
    parameters = [z, *decoder.parameters()]
    figures, gradients = [], []
    for part in (decoder, Logits()):
        value = CategoricalLikelihood(part, 12).log_prob(x, z)
        figures.append(value)
        gradients.append(torch.autograd.grad((value * torch.arange(1, 6).to(z)).sum(), parameters))
    torch.testing.assert_close(*figures)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_chunked_cross_entropy_is_the_plain_one(bias, equal, like):
    hidden, weight = torch.randn(11, 5, **like), torch.randn(17, 5, **like)
    shift = torch.randn(17, **like) if bias else None
    inputs = [part.requires_grad_() for part in (hidden, weight, shift) if part is not None]
    target = torch.randint(17, (11,), device=like["device"])
    scale = torch.full((11,), 0.3, **like) if equal else torch.rand(11, **like)
    results = []
    for chunk in (None, 4, 100):  # few logits: None is F.cross_entropy
        loss = linear_cross_entropy(hidden, weight, shift, target, chunk)
        results.append((loss, *torch.autograd.grad((loss * scale).sum(), inputs)))
    plain = F.cross_entropy(F.linear(hidden, weight, shift), target, reduction="none")
    torch.testing.assert_close(results[0][0], plain)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b)


def test_chunked_cross_entropy_keeps_few_logits():
    """What autograd saves between the passes is linear in N + V, not in N · V."""
    num, words, width = 700, 7000, 4
    hidden, weight = torch.randn(num, width, requires_grad=True), torch.randn(words, width)
    weight.requires_grad_()
    target = torch.randint(words, (num,))
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    )
    with hooks:
        linear_cross_entropy(hidden, weight, None, target).sum().backward()
    assert sum(kept) < 3 * (num + words) * (width + 1)


def test_half_precision_sums_in_single():
    hidden, weight = torch.randn(9, 8), torch.randn(50, 8)
    target = torch.randint(50, (9,))
    truth = linear_cross_entropy(hidden, weight, None, target)
    with torch.autocast("cpu", torch.bfloat16):
        half = linear_cross_entropy(hidden, weight, None, target, chunk=4)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, truth, atol=0.1, rtol=0.02)  # bfloat16 has 8 bits


def test_stepping_is_the_whole_pass():
    for decoder, context in (
        (drawn(SentenceDecoder(30, 3, 8, 8, "gru"), 0.5), None),
        (SentenceDecoder(30, 3, 8, 8, "lstm", tied=False), None),
        (DialogueDecoder(30, 3, 8, 8, 4, dropout=0.5), torch.stack([sentences(), sentences()], 1)),
    ):
        decoder.eval()
        x, z = sentences()[:, :2], torch.randn(5, 3)
        given = {} if context is None else {"context": context}
        whole = decoder(z, x, **given)
        state = decoder.start(z, **given)
        for place in range(2):
            logits, state = decoder.step(x[:, place], state)
            torch.testing.assert_close(logits, whole[:, place])


def test_word_dropout_spares_special_words_and_evaluation():
    decoder = SentenceDecoder(30, 2, 8, 8, word_dropout=0.5)
    x = torch.cat([sentences(), torch.randint(4, 30, (5, 400))], dim=1)
    seen = []
    decoder.embedding.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    decoder.inputs(torch.zeros(5, 2), x)
    assert torch.equal(seen[0][x < 4], x[x < 4])
    dropped = (seen[0] != x)[x >= 4].double().mean()
    assert float(dropped) == pytest.approx(0.5, abs=0.05)
    assert set(seen[0][seen[0] != x].tolist()) == {UNK}
    decoder.eval().inputs(torch.zeros(5, 2), x)
    assert torch.equal(seen[1], x)


def test_refusals():
    with pytest.raises(ValueError, match="embedding_dim is 8 and hidden_dim 9; a tied"):
        SentenceDecoder(30, 2, 8, 9)
    with pytest.raises(ValueError, match=r"word_dropout is 1\.5"):
        SentenceDecoder(30, 2, 8, 8, word_dropout=1.5)
    with pytest.raises(ValueError, match="cell is 'rnn'"):
        SentenceEncoder(30, 2, 8, 8, "rnn")


class Markov(nn.Module):
    """Logits from the last token and the latent: everything about it can be enumerated."""

    def __init__(self, num_tokens=6, latent_dim=2):
        super().__init__()
        self.table = nn.Embedding(num_tokens, num_tokens)
        self.linear = nn.Linear(latent_dim, num_tokens)

    def forward(self, z, tokens):
        return self.table(tokens) + self.linear(z)[:, None]


@torch.no_grad()
def best_sequence(model, z, max_length, power=0.0):
    """Of all sequences, by brute force; words are 1 and 4, 5, the end is 3."""
    found = {}
    for num in range(max_length):
        for words in itertools.product((UNK, 4, 5), repeat=num):
            ends = [(EOS,)] if num < max_length - 1 else [()]
            for end in ends:
                x = torch.tensor([[BOS, *words, *end]])
                logits = model(z, x[:, :-1])
                logits[..., [PAD, BOS]] = -torch.inf
                log_prob = logits.log_softmax(-1)
                score = log_prob.gather(2, x[:, 1:, None]).sum()
                length = x.shape[1] - 1
                if length == max_length - 1 or end:
                    found[tuple(x[0].tolist())] = float(score) / length**power
    return max(found, key=found.get)


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_a_wide_beam_finds_the_likeliest_sequence(power):
    torch.manual_seed(2)
    model = Markov()
    for z in torch.randn(6, 1, 2):
        how = Decoding(beam=6**3, length_penalty=power)
        x = decode(model, z, 4, how)[0].tolist()
        truth = best_sequence(model, z, 4, power)
        assert tuple(x[: len(truth)]) == truth and not any(x[len(truth) :])


def test_a_beam_of_recurrent_states_reorders_them():
    decoder = drawn(SentenceDecoder(12, 2, 8, 8), 1.0).eval()

    class Prefixes(nn.Module):  # no `step`: the whole prefix again for each word
        def forward(self, z, tokens):
            return decoder(z, tokens)

    z = torch.randn(7, 2)
    for how in (Decoding(), Decoding(beam=4), Decoding(beam=3, length_penalty=1.0)):
        torch.testing.assert_close(decode(decoder, z, 9, how), decode(Prefixes(), z, 9, how))


def test_a_beam_is_at_least_as_likely_as_greedy():
    decoder = drawn(SentenceDecoder(12, 2, 8, 8), 1.0).eval()
    likelihood = CategoricalLikelihood(decoder, 9)
    z = torch.randn(50, 2)
    greedy = likelihood.log_prob(likelihood.decode(z), z)
    beam = likelihood.log_prob(likelihood.decode(z, Decoding(beam=12)), z)
    assert beam.mean() > greedy.mean()


def test_draws_follow_temperature_top_k_and_top_p():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    share = logits.softmax(1)[0]
    warm = Decoding(temperature=2.0).probabilities(logits)[0]
    torch.testing.assert_close(warm, (logits / 2).softmax(1)[0])
    two = Decoding(temperature=1.0, top_k=2).probabilities(logits)[0]
    torch.testing.assert_close(two, torch.tensor([share[0], share[1], 0, 0]) / share[:2].sum())
    # shares 0.64, 0.24, 0.09, 0.03
    for top_p, count in ((0.5, 1), (0.7, 2), (0.95, 3), (0.99, 4)):
        kept = Decoding(temperature=1.0, top_p=top_p).probabilities(logits)[0]
        torch.testing.assert_close(kept[:count], share[:count] / share[:count].sum())
        assert not kept[count:].any()
    draws = Decoding(temperature=1.0, top_k=2).choose(logits.expand(20_000, -1))
    frequency = torch.bincount(draws, minlength=4) / 20_000
    assert (frequency - two).abs().max() < 4 * (0.25 / 20_000) ** 0.5


def test_decoding_stops_when_all_have_ended():
    class Short(Markov):
        calls = 0

        def forward(self, z, tokens):
            self.calls += 1
            return F.one_hot(torch.full_like(tokens, EOS), 6).float() * 100

    model = Short()
    x = decode(model, torch.zeros(3, 2), 50)
    assert x.shape == (3, 50) and model.calls == 1
    assert x[:, :3].tolist() == [[BOS, EOS, PAD]] * 3


@pytest.mark.parametrize(
    "how", [Decoding(), Decoding(temperature=1.0), Decoding(beam=3)], ids=["greedy", "draw", "beam"]
)
def test_no_word_is_padding_or_a_beginning(how):
    class Careless(Markov):
        """Likes `<pad>` and `<s>` best."""

        def forward(self, z, tokens):
            logits = super().forward(z, tokens)
            logits[..., [PAD, BOS]] += 5.0
            return logits

    z = torch.randn(40, 2)
    for row in decode(Careless(), z, 9, how, torch.Generator().manual_seed(0)).tolist():
        said = row[1 : row.index(EOS) if EOS in row else 9]
        assert row[0] == BOS and not {PAD, BOS} & set(said)
        assert not any(row[len(said) + 2 :])  # nothing after the end


def test_an_end_that_is_the_beginning_or_the_padding_can_be_said():
    logits = torch.tensor([0.0, -9.0, 0.0, 5.0, -9.0, -9.0])
    for special in ({"bos": 3, "eos": 3}, {"pad": 3, "eos": 3}):
        x = decode(
            lambda z, tokens: logits.expand(*tokens.shape, 6), torch.zeros(1, 2), 4, **special
        )
        assert x[0, 1] == 3


REFUSED = [
    ({"temperature": -1}, "temperature is -1"),
    ({"top_k": -1}, "top_k is -1"),
    ({"top_p": 0}, "top_p is 0"),
    ({"beam": 0}, "beam is 0"),
    ({"beam": 2, "temperature": 1.0}, "a beam draws nothing"),
    ({"top_k": 3}, "set a temperature"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_ways_of_decoding_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        Decoding(**arguments)


def test_the_encoder_reads_once_for_many_importance_samples():
    encoder = SentenceEncoder(30, 4, 8, 8)
    likelihood = CategoricalLikelihood(SentenceDecoder(30, 2, 8, 8), 12)
    model = LatentVariableModel(GaussianPrior(2), AmortizedPosterior(encoder), likelihood)
    calls = []
    encoder.register_forward_hook(lambda *_: calls.append(1))
    assert model.log_likelihood(sentences(), 50).shape == (5,)
    assert len(calls) == 1


def test_importance_sampling_of_sentences_is_exact_where_the_latent_says_nothing():
    encoder = SentenceEncoder(30, 4, 8, 8)
    decoder = drawn(SentenceDecoder(30, 2, 8, 8), 0.5)
    with torch.no_grad():
        for weight in (encoder.heads.weight, encoder.heads.bias, decoder.first.weight):
            weight.zero_()
        decoder.rnn.weight_ih_l0[:, 8:].zero_()  # q is the prior, and p(x|z) is p(x)
    likelihood = CategoricalLikelihood(decoder, 12)
    model = LatentVariableModel(GaussianPrior(2), AmortizedPosterior(encoder), likelihood)
    x = sentences()
    truth = likelihood.log_prob(x, torch.zeros(5, 2)).double()
    torch.testing.assert_close(model.log_likelihood(x, 7), truth, atol=1e-5, rtol=1e-5)


def test_bags_are_multinomial():
    likelihood = MultinomialLikelihood(nn.Linear(2, 4), num_words=6)
    x, z = torch.tensor([[3.0, 0, 2, 1], [0, 0, 0, 6]]), torch.randn(2, 2)
    truth = torch.distributions.Multinomial(6, logits=likelihood.decoder(z)).log_prob(x)
    counts = torch.tensor([6, 6]).double()
    coefficient = torch.lgamma(counts + 1) - torch.lgamma(x.double() + 1).sum(1)
    log_prob = likelihood.log_prob(x, z).double() + coefficient
    torch.testing.assert_close(log_prob, truth.double(), atol=1e-5, rtol=1e-5)
    draws = likelihood.sample(z[:1].expand(4000, -1))
    assert (draws.sum(1) == 6).all()
    torch.testing.assert_close(draws.mean(0), likelihood.mean(z)[0], atol=0.1, rtol=0)


def test_the_background_of_a_bag_is_added_to_its_logits():
    decoder = BagOfWordsDecoder(2, 5, [8])
    z, background = torch.randn(4, 2), torch.randn(5)
    before = decoder.eval()(z)
    decoder.set_background(background)
    torch.testing.assert_close(decoder(z), before + background)
    assert "background" in decoder.state_dict()
    with pytest.raises(ValueError, match=r"log_frequency has shape \(4,\); expected \(5,\)"):
        decoder.set_background(background[:4])


def test_the_prior_of_a_response_sees_the_turns_before_without_a_gradient():
    encoder = DialogueEncoder(30, 6, 8, 8, 4)
    net = ResidualTimeNet(3, 5, num_timesteps=3, width=8, num_blocks=1, context_dim=8)
    schedule = RecoverySchedule(num_timesteps=3)
    prior = DiffusionEnergyPrior(3, SymbolVectorTimeEnergy(net), schedule, num_steps=2)
    likelihood = DialogueLikelihood(DialogueDecoder(30, 3, 8, 8, 4, dropout=0.0), 12)
    latent = LatentVariableModel(prior, DialoguePosterior(encoder), likelihood)
    x = torch.randint(4, 30, (6, 3, 7))
    inference = latent.infer(x)
    plain = AmortizedPosterior(encoder)(x, prior, likelihood)
    assert torch.equal(inference.mean, plain.mean) and plain.context is None
    assert torch.equal(inference.context, latent.posterior.condition(x))
    assert not inference.context.requires_grad
    (latent.loss(x, inference=inference)["prior"].sum() - inference.z.sum()).backward()
    assert net.context[0].parametrizations.weight.original.grad.abs().max() > 0
    other = latent.infer(torch.cat([x[:, :1], x[:, 1:].flip(0)], 1))
    logits = [prior.symbol_logits(inference.z, context=i.context) for i in (inference, other)]
    assert not torch.allclose(*logits)
    with pytest.raises(ValueError, match="a response needs the turns before it"):
        latent.sample(2)


def lined_up(num=6, width=5, longest=9):
    """Inputs of unlike length, packed, and what they were."""
    x = torch.randn(num, longest, width, dtype=torch.float64, requires_grad=True)
    lengths = torch.tensor([3, longest, 1, longest, 5, 2])[:num]
    return x, pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("given", [False, True])
def test_a_packed_layer_is_that_of_torch(bidirectional, given):
    rnn = drawn(nn.GRU(5, 7, batch_first=True, bidirectional=bidirectional).double(), 0.5)
    x, packed = lined_up()
    state = torch.randn(1 + bidirectional, 6, 7, dtype=torch.float64, requires_grad=True)
    first = state if given else None
    learned = [x, *rnn.parameters(), *([state] if given else [])]
    found = []
    for outputs, last in (rnn(packed, first), run_packed(rnn, packed, first)):
        padded, _ = pad_packed_sequence(outputs, batch_first=True)
        weight = torch.linspace(-1, 1, padded.numel(), dtype=padded.dtype).view_as(padded)
        loss = (weight * padded).sum() + (last * last).sum()
        found.append((padded, last, *torch.autograd.grad(loss, learned, retain_graph=True)))
    for theirs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_a_packed_layer_works_on_words_only(monkeypatch):
    """The reason that it is there: no row of padding."""
    rnn, (_, packed) = nn.GRU(5, 7, batch_first=True).double(), lined_up()
    seen = []
    plain = recurrent._GRU.apply
    watched = lambda x, *rest: (seen.append(len(x)), plain(x, *rest))[1]  # noqa: E731
    monkeypatch.setattr(recurrent._GRU, "apply", watched)
    run_packed(rnn, packed)
    assert seen == [3 + 9 + 1 + 9 + 5 + 2]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run_packed(nn.GRU(5, 7, batch_first=True), packed._replace(data=packed.data.float()))
    run_packed(nn.LSTM(5, 7, batch_first=True).double(), packed)
    run_packed(nn.GRU(5, 7, bias=False, batch_first=True).double(), packed)
    assert len(seen) == 1  # of PyTorch, all of them
    # a decoder hands it the words that have a successor, and the last one of shorter sentences
    x = torch.tensor([[BOS, 5, 6, 7, EOS], [BOS, 5, EOS, PAD, PAD]])
    decoder = SentenceDecoder(9, 2, 4, 4).double()
    CategoricalLikelihood(decoder, 5).log_prob(x, torch.randn(2, 2, dtype=torch.float64))
    assert seen[1:] == [4 + 3]


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_scores_of_padded_sentences_are_those_of_a_padded_layer(cell):
    torch.manual_seed(0)
    kind = SentenceDecoder(11, 3, 6, 6, cell=cell, tied=False).double()
    decoder = drawn(kind, 0.5)
    x = torch.randint(4, 11, (5, 8))
    x[:, 0] = BOS
    for row, length in zip(x, (8, 3, 8, 2, 6), strict=True):
        row[length - 1], row[length:] = EOS, PAD
    x[4, 2] = PAD  # a model may say so; what follows counts
    z = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    words = decoder.embedding(x[:, :-1])
    inputs = torch.cat([words, z[:, None].expand(-1, 7, -1)], 2)
    first = tuple(part[None] for part in decoder.first_state(z))
    hidden, _ = decoder.rnn(inputs, first[0] if cell == "gru" else first)
    log_p = decoder.output(hidden).log_softmax(2).gather(2, x[:, 1:, None])[..., 0]
    theirs = (log_p * (x[:, 1:] != PAD)).sum(1)
    ours = CategoricalLikelihood(decoder, 8).log_prob(x, z)
    torch.testing.assert_close(ours, theirs)
    learned = [z, *decoder.parameters()]
    one, two = (torch.autograd.grad(value.sum(), learned) for value in (ours, theirs))
    torch.testing.assert_close(one, two)
    with torch.no_grad():
        torch.testing.assert_close(CategoricalLikelihood(decoder, 8).log_prob(x, z), ours)


def test_decoder_and_likelihood_have_one_padding():
    with pytest.raises(ValueError, match="takes token 1 for padding, and the likelihood 0"):
        CategoricalLikelihood(SentenceDecoder(30, 2, 8, 8, pad=1), 12)
    CategoricalLikelihood(SentenceDecoder(30, 2, 8, 8, pad=1), 12, pad=1)
