"""Dialogues, flattened: every turn is a response once, with the turns before it as its context.

The context of a response begins with a turn `<d>`, the beginning of the dialogue, and has at most
`num_context` turns. Where speakers have roles, a turn's first word is `<usr>` or `<sys>`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from .corpora import Corpus, Example, dialogue_words, find, number_in, read_lines, read_text
from .module import Split

__all__ = ["DailyDialog", "SchemaGuidedDialogue", "StanfordMultiDomain"]

BEGIN = "<d>"
USER, SYSTEM = "<usr>", "<sys>"


def flatten(
    turns: Sequence[list[str]],
    labels: Sequence[tuple[int, ...]],
    num_context: int,
    places: Sequence[str],
) -> list[Example]:
    """One example a turn, with up to `num_context` turns before it; turns without a word are none.

    Arguments:
        turns: The words of each turn.
        labels: The labels of each turn.
        num_context: How many turns to look back, the beginning `<d>` included; 0 gives none.
        places: File and line of each turn.
    """
    said = [turn for turn in zip(turns, labels, places, strict=True) if turn[0]]
    before = [[BEGIN], *(words for words, _, _ in said)]
    return [
        Example(words, label, tuple(before[max(0, i + 1 - num_context) : i + 1]), place)
        for i, (words, label, place) in enumerate(said)
    ]


class DailyDialog(Corpus):
    """Dialogues of daily life, with the act and the emotion of each turn.

    Files: `dailydialog/{train,validation,test}/dialogues{,_act,_emotion}.txt`, one dialogue a line,
    turns ended by `__eou__`. Words are lower-cased. Labels go with turns by their place, and a turn
    without a word takes its own with it. A dialogue whose labels are not as many as its turns loses
    the surplus: the published training text has one, line 7,852.

    References:
        DailyDialog: A Manually Labelled Multi-turn Dialogue Dataset (Li et al., 2017).

    Arguments:
        num_context: Turns of context.
    """

    labels = MappingProxyType(
        {
            "act": ["inform", "question", "directive", "commissive"],
            "emotion": ["none", "anger", "disgust", "fear", "happiness", "sadness", "surprise"],
        }
    )

    def __init__(self, num_context: int = 0) -> None:
        self.num_context = num_context

    def read(self, split: Split, root: Path) -> list[Example]:
        folder = f"dailydialog/{'validation' if split == 'val' else split}"
        files = [
            find(root, f"{folder}/dialogues{kind}.txt", f"{folder}/dialogues{kind}_{name}.txt")
            for kind, name in (("", "text"), ("_act", split), ("_emotion", split))
        ]
        texts, acts, emotions = (list(read_lines(path)) for path in files)
        if not len(texts) == len(acts) == len(emotions):
            raise ValueError(
                f"{files[0]} has {len(texts)} dialogues, {files[1].name} {len(acts)} and "
                f"{files[2].name} {len(emotions)}; expected as many in each. Fetch them again."
            )
        examples = []
        rows = zip(texts, acts, emotions, strict=True)
        for (number, text), (_, act), (_, emotion) in rows:
            place = f"{files[0]}, line {number}"
            turns = [dialogue_words(turn.lower()) for turn in text.split("__eou__")]
            if not turns[-1]:  # what follows the last `__eou__`
                turns.pop()
            labels = [
                (
                    number_in(a, 4, place, "an act", first=1),
                    number_in(e, 7, place, "an emotion"),
                )
                for a, e in zip(act.split(), emotion.split(), strict=False)
            ]
            count = min(len(turns), len(labels))
            examples += flatten(turns[:count], labels[:count], self.num_context, [place] * count)
        return examples


class StanfordMultiDomain(Corpus):
    """Dialogues of a driver and an assistant: `smd/kvret_{train,dev,test}_public.json`.

    References:
        Key-Value Retrieval Networks for Task-Oriented Dialogue (Eric et al., 2017).

    Arguments:
        num_context: Turns of context.
    """

    labels = MappingProxyType({"intent": ["navigate", "schedule", "weather"]})

    def __init__(self, num_context: int = 0) -> None:
        self.num_context = num_context

    def read(self, split: Split, root: Path) -> list[Example]:
        name = "dev" if split == "val" else split
        path = find(root, f"smd/kvret_{name}_public.json")
        try:
            dialogues = json.loads(read_text(path))
            if not dialogues:
                raise ValueError("there is no dialogue in it")
            examples = []
            for number, dialogue in enumerate(dialogues, start=1):
                intent = dialogue["scenario"]["task"]["intent"]
                if intent not in self.labels["intent"]:
                    raise ValueError(f"dialogue {number} has the intent {intent!r}")
                turns = [
                    [
                        USER if turn["turn"] == "driver" else SYSTEM,
                        *dialogue_words(turn["data"]["utterance"]),
                    ]
                    for turn in dialogue["dialogue"]
                    if turn["data"]["utterance"].strip()
                ]
                label = (self.labels["intent"].index(intent),)
                places = [f"{path}, dialogue {number}"] * len(turns)
                examples += flatten(turns, [label] * len(turns), self.num_context, places)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is not as published: {type(error).__name__} {error}. Fetch it again."
            ) from error
        return examples


class SchemaGuidedDialogue(Corpus):
    """Dialogues of a user and services: `sgd/{train,dev,test}.jsonl`.

    A line is `{"services": [...], "turns": [[speaker, utterance, [act, ...]], ...]}` with the
    speakers U and S. The label is the domain of the first service, and the speaker.

    References:
        Towards Scalable Multi-domain Conversational Agents (Rastogi et al., 2020).

    Arguments:
        num_context: Turns of context.
    """

    DOMAINS = (
        *("Alarm", "Banks", "Buses", "Calendar", "Events", "Flights", "Homes", "Hotels"),
        *("Media", "Messaging", "Movies", "Music", "Payment", "RentalCars", "Restaurants"),
        *("RideSharing", "Services", "Trains", "Travel", "Weather"),
    )
    labels = MappingProxyType({"domain": DOMAINS, "speaker": ["user", "system"]})

    def __init__(self, num_context: int = 0) -> None:
        self.num_context = num_context

    def read(self, split: Split, root: Path) -> list[Example]:
        path = find(root, f"sgd/{'dev' if split == 'val' else split}.jsonl")
        examples = []
        for number, line in read_lines(path):
            place = f"{path}, line {number}"
            try:
                dialogue = json.loads(line)
                domain = self.DOMAINS.index(dialogue["services"][0].rpartition("_")[0])
                turns, labels = [], []
                for speaker, utterance, *_ in dialogue["turns"]:
                    system = ("U", "S").index(speaker)
                    words = dialogue_words(utterance.lower())
                    turns.append([(USER, SYSTEM)[system], *words])
                    labels.append((domain, system))
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise ValueError(
                    f"{place}: not a dialogue as published: {type(error).__name__} {error}."
                ) from error
            examples += flatten(turns, labels, self.num_context, [place] * len(turns))
        return examples
