"""Sentences of a grammar whose topic, sentiment and form are known.

A sentence is a form with its slots filled by words of a topic and of a sentiment, each slot
independently and uniformly. Things, people, deeds and places belong to one topic each; the words of
a sentiment to one sentiment. So topic and sentiment can be read off any sentence, and a method that
discovers attributes can be held to the truth, anywhere and without files.
"""

import itertools
import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType

import torch

from .corpora import Corpus, Example
from .loader import seeded_generator
from .module import Split

__all__ = ["GrammarCorpus"]

TOPICS: dict[str, dict[str, list[str]]] = {
    "food": {
        "who": ["the chef", "the waiter", "our cook", "a baker"],
        "did": ["cooked", "tasted", "ordered", "grilled", "served", "seasoned"],
        "thing": ["soup", "pasta", "salad", "steak", "cake", "curry", "sandwich", "breakfast"],
        "place": ["kitchen", "restaurant", "cafe", "bakery", "diner"],
    },
    "sports": {
        "who": ["the coach", "a runner", "the goalkeeper", "our captain"],
        "did": ["won", "lost", "played", "watched", "trained for", "refereed"],
        "thing": [
            "match",
            "race",
            "tournament",
            "final",
            "penalty",
            "marathon",
            "season",
            "league",
        ],
        "place": ["stadium", "gym", "arena", "field", "pool"],
    },
    "music": {
        "who": ["the singer", "a pianist", "the band", "our drummer"],
        "did": ["sang", "recorded", "composed", "performed", "rehearsed", "hummed"],
        "thing": ["song", "album", "melody", "concert", "opera", "chorus", "symphony", "ballad"],
        "place": ["studio", "theater", "club", "choir", "hall"],
    },
    "travel": {
        "who": ["the pilot", "a tourist", "the driver", "our guide"],
        "did": ["booked", "missed", "planned", "boarded", "cancelled", "delayed"],
        "thing": ["flight", "train", "cruise", "tour", "journey", "bus", "ferry", "trip"],
        "place": ["airport", "station", "harbor", "hotel", "terminal"],
    },
    "work": {
        "who": ["the manager", "a colleague", "the intern", "our boss"],
        "did": ["wrote", "presented", "signed", "reviewed", "finished", "scheduled"],
        "thing": [
            "report",
            "meeting",
            "contract",
            "budget",
            "project",
            "interview",
            "email",
            "memo",
        ],
        "place": ["office", "factory", "lobby", "boardroom", "warehouse"],
    },
    "animals": {
        "who": ["the vet", "a farmer", "the zookeeper", "our neighbor"],
        "did": ["fed", "chased", "petted", "rescued", "groomed", "adopted"],
        "thing": ["dog", "cat", "horse", "parrot", "rabbit", "puppy", "goat", "turtle"],
        "place": ["barn", "zoo", "meadow", "cage", "stable"],
    },
    "health": {
        "who": ["the doctor", "a nurse", "the surgeon", "our dentist"],
        "did": ["prescribed", "treated", "examined", "diagnosed", "cured", "studied"],
        "thing": ["fever", "medicine", "wound", "cough", "headache", "vaccine", "diet", "allergy"],
        "place": ["hospital", "clinic", "pharmacy", "ward", "ambulance"],
    },
    "school": {
        "who": ["the teacher", "a student", "the principal", "our professor"],
        "did": ["taught", "graded", "failed", "passed", "explained", "memorized"],
        "thing": ["lesson", "exam", "homework", "essay", "lecture", "quiz", "textbook", "course"],
        "place": ["classroom", "library", "campus", "laboratory", "playground"],
    },
    "weather": {
        "who": ["the forecaster", "a sailor", "the hiker", "our gardener"],
        "did": ["predicted", "feared", "expected", "photographed", "survived", "described"],
        "thing": ["storm", "rain", "snow", "fog", "sunshine", "breeze", "thunder", "frost"],
        "place": ["valley", "mountains", "garden", "desert", "village"],
    },
    "film": {
        "who": ["the director", "a actor", "the critic", "our producer"],
        "did": ["filmed", "edited", "praised", "rewrote", "screened", "financed"],
        "thing": ["movie", "scene", "comedy", "script", "trailer", "sequel", "documentary", "plot"],
        "place": ["cinema", "festival", "gallery", "premiere", "archive"],
    },
}

SENTIMENTS: dict[str, dict[str, list[str]]] = {
    "negative": {
        "adjective": ["terrible", "awful", "boring", "horrible", "dreadful", "disappointing"],
        "like": ["hate", "regret", "dislike", "resent"],
        "mood": ["sadly", "unfortunately", "regrettably"],
        "never": ["never again", "not worth it", "a waste of time"],
    },
    "positive": {
        "adjective": ["wonderful", "great", "delightful", "excellent", "amazing", "lovely"],
        "like": ["love", "enjoy", "adore", "admire"],
        "mood": ["happily", "fortunately", "luckily"],
        "never": ["highly recommended", "worth every minute", "simply perfect"],
    },
}

SHARED: dict[str, list[str]] = {
    "degree": ["very", "really", "quite", "truly", "rather"],
    "when": ["yesterday", "this morning", "last week", "on monday", "in the evening"],
}

FORMS = [
    "the {thing} was {degree} {adjective} .",
    "{who} {did} the {adjective} {thing} in the {place} .",
    "i {like} how {who} {did} the {thing} .",
    "{mood} , {who} {did} the {thing} {when} .",
    "what a {adjective} {thing} we saw in the {place} !",
    "{when} {who} {did} a {degree} {adjective} {thing} .",
    "people {like} the {thing} in this {place} .",
    "the {thing} that {who} {did} {when} was {adjective} .",
    "was the {thing} in the {place} {degree} {adjective} ?",
    "we think that the {thing} is {never} .",
    "{who} {did} the {thing} , {never} .",
    "in the {place} there was a {adjective} {thing} {when} .",
]


class GrammarCorpus(Corpus):
    """Sentences of a small grammar: ten topics, two sentiments, twelve forms.

    Validation and test sentences do not depend on `seed`, so that all runs are scored on the same.
    No sentence occurs in two splits, and none twice.

    Arguments:
        num_train: Training sentences.
        num_val: Validation sentences.
        num_test: Test sentences.
        num_context: Sentences before each one, of the same topic and any sentiment, for models of
            dialogues; with the opening `<d>` as the first where there is room.
        seed: Determines the training sentences.

    Raises:
        ValueError: If more are asked for than can be had.
    """

    labels = MappingProxyType(
        {"topic": list(TOPICS), "sentiment": list(SENTIMENTS), "form": list(FORMS)}
    )

    def __init__(
        self,
        num_train: int = 8000,
        num_val: int = 500,
        num_test: int = 500,
        num_context: int = 0,
        seed: int = 0,
    ) -> None:
        sizes = {"num_train": num_train, "num_val": num_val, "num_test": num_test}
        if num_context < 0:
            raise ValueError(f"num_context is {num_context}; expected 0 or more.")
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}; expected 1 or more.")
        if num_train + num_val + num_test > 50_000:
            raise ValueError(
                f"{num_train + num_val + num_test} sentences are asked for; expected 50,000 at "
                "most, for the grammar has about 130,000."
            )
        self.sizes: dict[Split, int] = {"val": num_val, "test": num_test, "train": num_train}
        self.num_context = num_context
        self.seed = seed

    def read(self, split: Split, root: Path) -> list[Example]:
        taken: set[tuple[str, ...]] = set()
        examples: list[Example] = []
        for number, (name, size) in enumerate(self.sizes.items()):
            generator = seeded_generator(self.seed if name == "train" else 0, number)
            examples = []
            while len(examples) < size:
                example = draw_sentence(generator)
                if tuple(example.words) not in taken:
                    taken.add(tuple(example.words))
                    examples.append(example)
            if name == split:
                break
        if self.num_context == 0:
            return examples
        generator = seeded_generator(self.seed if split == "train" else 0, len(examples), 1)
        return [self._with_context(example, generator) for example in examples]

    def _with_context(self, example: Example, generator: torch.Generator) -> Example:
        """After one to all of the sentences that there is room for."""
        count = int(torch.randint(1, self.num_context + 1, (), generator=generator))
        before = [draw_sentence(generator, example.labels[0]).words for _ in range(count - 1)]
        return Example(example.words, example.labels, (["<d>"], *before))

    @staticmethod
    def parse(words: Sequence[str]) -> tuple[int, int] | None:
        """Topic and sentiment of a sentence of the grammar; None for any other."""
        sentence = re.sub(r"\ban (?=[aeiou])", "a ", " ".join(words))
        if agree(sentence).split() != list(words):
            return None
        for (topic, sentiment), pattern in patterns().items():
            if pattern.fullmatch(sentence):
                return topic, sentiment
        return None


def agree(sentence: str) -> str:
    """`an` in place of `a` before a vowel."""
    return re.sub(r"\ba (?=[aeiou])", "an ", sentence)


@cache
def patterns() -> dict[tuple[int, int], re.Pattern[str]]:
    """For each topic and sentiment, what matches its sentences and no others."""
    found = {}
    for (i, topic), (j, sentiment) in itertools.product(
        enumerate(TOPICS.values()), enumerate(SENTIMENTS.values())
    ):
        slots = {
            name: f"(?:{'|'.join(map(re.escape, options))})"
            for name, options in {**topic, **sentiment, **SHARED}.items()
        }
        forms = [re.sub(r"([.?!])", r"\\\1", form).format_map(slots) for form in FORMS]
        found[i, j] = re.compile("|".join(f"(?:{form})" for form in forms))
    return found


def draw_sentence(generator: torch.Generator, about: int | None = None) -> Example:
    """A sentence with its topic, sentiment and form.

    Arguments:
        generator: Source of all choices.
        about: The number of the topic; any if None.
    """

    def pick(options: Sequence[str]) -> str:
        return options[int(torch.randint(len(options), (), generator=generator))]

    topic = pick(list(TOPICS)) if about is None else list(TOPICS)[about]
    sentiment, form = pick(list(SENTIMENTS)), pick(FORMS)
    slots = {**TOPICS[topic], **SENTIMENTS[sentiment], **SHARED}
    words = agree(form.format_map({name: pick(options) for name, options in slots.items()})).split()
    labels = (list(TOPICS).index(topic), list(SENTIMENTS).index(sentiment), FORMS.index(form))
    return Example(words, labels)


def grammar_entropy() -> float:
    """Entropy of `draw_sentence` in nats, given that no two ways lead to one sentence."""
    first = next(iter(TOPICS.values())) | SENTIMENTS["negative"] | SHARED
    form_entropies = [
        sum(math.log(len(options)) for name, options in first.items() if f"{{{name}}}" in form)
        for form in FORMS
    ]
    choices = math.log(len(TOPICS)) + math.log(len(SENTIMENTS)) + math.log(len(FORMS))
    return choices + sum(form_entropies) / len(FORMS)
