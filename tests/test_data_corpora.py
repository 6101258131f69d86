"""Corpora as published, in miniature, and the files at hand; a grammar whose truth is known."""

import gzip
import json
import math
import os
from pathlib import Path

import pytest
import torch

from eblvm.data import (
    AGNews,
    CocoCaptions,
    DailyDialog,
    GrammarCorpus,
    PennTreebank,
    SchemaGuidedDialogue,
    StanfordMultiDomain,
    StanfordSentiment,
    TextFiles,
    Yelp,
)
from eblvm.data.corpora import basic_words, dialogue_words
from eblvm.data.grammar import draw_sentence, grammar_entropy
from eblvm.data.loader import seeded_generator


def write(root, name, content):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return str(path)


def words(examples):
    return [" ".join(example.words) for example in examples]


def test_tables_have_named_columns(tmp_path):
    rows = [("good film", "pos"), ("a, b", "neg"), ("so so", "pos")]
    csv = "id,review,mood\n" + "".join(f'{i},"{t}",{m}\n' for i, (t, m) in enumerate(rows))
    tsv = "review\tmood\n" + "".join(f"{t}\t{m}\n" for t, m in rows)
    jsonl = "".join(json.dumps({"review": t, "mood": m}) + "\n" for t, m in rows)
    for name, content in (("t.csv", csv), ("t.tsv.gz", tsv), ("t.jsonl", jsonl)):
        path = write(tmp_path, name, content)
        corpus = TextFiles(path, path, path, "review", ["mood"])
        examples = corpus.read("train", tmp_path)
        assert words(examples) == ["good film", "a, b", "so so"]
        assert [e.labels for e in examples] == [(1,), (0,), (1,)]
        assert corpus.labels == {"mood": ["neg", "pos"]}


def test_numbers_as_labels_are_in_the_order_of_numbers(tmp_path):
    path = write(tmp_path, "t.tsv", "text\tstars\na\t10\nb\t9\nc\t10\n")
    corpus = TextFiles(path, path, path, label_columns=["stars"])
    assert [e.labels for e in corpus.read("test", tmp_path)] == [(1,), (0,), (1,)]


def test_rows_without_a_label_are_unlabeled_and_no_class(tmp_path):
    fields = ["9", "", "-1", "10", " "]  # -1 is a class, as in reviews of -1, 0 and 1
    rows = [{"text": "a", "stars": field, "mood": "x"} for field in fields]
    csv = "text,stars,mood\n" + "".join(f"a,{field},x\n" for field in fields)
    numbers = {"9": 9, "": None, "-1": -1, "10": 10, " ": ""}
    jsonl = "".join(json.dumps(row | {"stars": numbers[row["stars"]]}) + "\n" for row in rows)
    for name, content in (("t.csv", csv), ("t.jsonl", jsonl)):
        path = write(tmp_path, name, content)
        corpus = TextFiles(path, path, path, label_columns=["stars", "mood"])
        labels = [e.labels for e in corpus.read("test", tmp_path)]
        assert labels == [(1, 0), (-1, 0), (0, 0), (2, 0), (-1, 0)]
        assert corpus.labels == {"stars": ["-1", "9", "10"], "mood": ["x"]}
    path = write(tmp_path, "t.jsonl", '{"text": null, "mood": "x"}\n')
    with pytest.raises(ValueError, match=r"t.jsonl, line 1: 'text' is null; expected a sentence"):
        TextFiles(path).read("train", tmp_path)
    path = write(tmp_path, "t.tsv", "text\tmood\na\t \nb\t\n")
    with pytest.raises(ValueError, match=r"t.tsv has no row with a 'mood': all are empty"):
        TextFiles(path, label_columns=["mood"]).read("train", tmp_path)


def test_one_file_is_held_out_in_parts(tmp_path):
    path = write(tmp_path, "t.txt", "\n".join(f"w{i}" for i in range(40)))
    corpus = TextFiles(path)
    parts = {split: words(corpus.read(split, tmp_path)) for split in ("train", "val", "test")}
    assert parts["val"] == ["w0", "w20"] and parts["test"] == ["w10", "w30"]
    assert len(parts["train"]) == 36 and not {*parts["val"], *parts["test"]} & {*parts["train"]}
    path = write(tmp_path, "one.txt", "a lonely sentence\n")
    with pytest.raises(ValueError, match=r"one.txt has 1 sentences, too few .* Name a test_file"):
        TextFiles(path).read("test", tmp_path)


def test_what_is_wrong_with_a_table_is_said_with_its_line(tmp_path):
    path = write(tmp_path, "t.csv", "text,mood\na,good\nb,bad\n")
    other = write(tmp_path, "o.csv", "text,mood\na,good\nb,odd\n")
    with pytest.raises(ValueError, match=r"t.csv, line 2: there is no column 'body'.*text_column"):
        TextFiles(path, text_column="body").read("train", tmp_path)
    with pytest.raises(ValueError, match=r"no column 'topic'; the columns are \['text', 'mood'\]"):
        TextFiles(path, label_columns=["topic"]).read("train", tmp_path)
    with pytest.raises(ValueError, match=r"o.csv, line 3: mood is 'odd', which .* never has"):
        TextFiles(path, other, path, label_columns=["mood"]).read("val", tmp_path)
    short = write(tmp_path, "s.csv", "text,mood,id\na,good\n\nb\n")
    assert words(TextFiles(short, short, short).read("train", tmp_path)) == ["a", "b"]
    with pytest.raises(ValueError, match=r"s.csv, line 4: the row has 1 of 3 fields, and 'mood'"):
        TextFiles(short, label_columns=["mood"]).read("train", tmp_path)
    broken = write(tmp_path, "t.jsonl", '{"text": "a"}\n{"text"\n')
    with pytest.raises(ValueError, match=r"t.jsonl, line 2: no JSON object"):
        TextFiles(broken).read("train", tmp_path)
    upper = write(tmp_path, "t.CSV", "text,mood\na,good\n")
    assert words(TextFiles(upper, upper, upper).read("train", tmp_path)) == ["a"]
    with pytest.raises(ValueError, match=r"t.json is neither a table nor text .* expected .csv"):
        TextFiles(write(tmp_path, "t.json", '[{"text": "a"}]\n')).read("train", tmp_path)
    plain = write(tmp_path, "t.txt", "a\n")
    with pytest.raises(ValueError, match=r"t.txt has no columns, so none is named 'mood'"):
        TextFiles(plain, label_columns=["mood"]).read("train", tmp_path)
    packed = write(tmp_path, "broken.txt", b"no gzip")
    Path(packed).rename(tmp_path / "broken.txt.gz")
    with pytest.raises(ValueError, match=r"broken.txt.gz cannot be unpacked"):
        TextFiles("broken.txt").read("train", tmp_path)
    with pytest.raises(ValueError, match="tokenizer is 'bert'"):
        TextFiles(plain, tokenizer="bert")


@pytest.mark.parametrize(
    ("corpus", "names"),
    [
        (PennTreebank(), ["ptb/ptb.test.txt"]),
        (CocoCaptions(), ["coco_captions/test_coco.txt"]),
        (StanfordSentiment(), ["sst/stsa.binary.test"]),
        (Yelp(), ["yelp/sentiment.test.1", "yelp/sentiment.test.0"]),
        (AGNews(), ["agnews/test.csv"]),
        (AGNews(), ["agnews/test.tokens.tsv"]),
        (SchemaGuidedDialogue(), ["sgd/test.jsonl"]),
        (
            DailyDialog(),
            [f"dailydialog/test/dialogues{kind}.txt" for kind in ("", "_act", "_emotion")],
        ),
    ],
    ids=lambda v: type(v).__name__,
)
def test_an_empty_file_of_a_published_corpus_is_named(corpus, names, tmp_path):
    empty, *others = names
    write(tmp_path, empty, "\n \n")
    for name in others:
        write(tmp_path, name, "a b\n")
    with pytest.raises(ValueError, match=f"{empty}, line 3: the file ends without a sentence"):
        corpus.read("test", tmp_path)


def test_no_dialogue_of_stanford_multi_domain(tmp_path):
    write(tmp_path, "smd/kvret_dev_public.json", "[]")
    with pytest.raises(ValueError, match=r"kvret_dev_public.json .* there is no dialogue in it"):
        StanfordMultiDomain().read("val", tmp_path)


def test_a_quotation_that_does_not_end_is_found_where_it_begins(tmp_path):
    rest = "".join(f"line {i},good\n" for i in range(20_000))
    for name, corpus in (("t.csv", TextFiles("t.csv")), ("agnews/test.csv", AGNews())):
        write(tmp_path, name, "text,mood\n" * (name == "t.csv") + f'1,a\n1,"open\n{rest}')
        line = 3 if name == "t.csv" else 2
        with pytest.raises(ValueError, match=rf"{name}, line {line}: the row .* quotation mark"):
            corpus.read("train" if name == "t.csv" else "test", tmp_path)


def test_tokenizers():
    assert basic_words('It\'s "fine", he said.') == "it ' s fine , he said .".split()
    assert dialogue_words("Hi-there <sil> ok... 5pm!") == "Hi - there <sil> ok ... 5pm !".split()


def test_daily_dialog(tmp_path):
    for split in ("train", "validation", "test"):
        folder = f"dailydialog/{split}/dialogues"
        write(tmp_path, f"{folder}.txt", "Hi ! __eou__ Go away __eou__\nWell . __eou__ A __eou__\n")
        write(tmp_path, f"{folder}_act.txt", "1 3 \n2 4 \n")
        write(tmp_path, f"{folder}_emotion.txt", "0 1 \n4 6 \n")
    examples = DailyDialog(num_context=5).read("val", tmp_path)
    assert words(examples) == ["hi !", "go away", "well .", "a"]
    assert [e.labels for e in examples] == [(0, 0), (2, 1), (1, 4), (3, 6)]
    assert examples[1].context == (["<d>"], ["hi", "!"])
    assert examples[2].context == (["<d>"],)
    assert DailyDialog().read("val", tmp_path)[1].context == ()
    write(tmp_path, "dailydialog/test/dialogues_act.txt", "1 9\n2 2\n")
    with pytest.raises(ValueError, match=r"dialogues.txt, line 1: an act is 9; expected 1 to 4"):
        DailyDialog().read("test", tmp_path)
    write(tmp_path, "dailydialog/test/dialogues_act.txt", "1 2\n")
    with pytest.raises(ValueError, match=r"has 2 dialogues, dialogues_act.txt 1"):
        DailyDialog().read("test", tmp_path)


def test_an_empty_turn_takes_its_own_labels_with_it(tmp_path):
    for kind, line in (("", "Hi ! __eou__ __eou__ Bye"), ("_act", "1 2 3"), ("_emotion", "4 5 6")):
        write(tmp_path, f"dailydialog/test/dialogues{kind}.txt", line + "\n")
    examples = DailyDialog(num_context=5).read("test", tmp_path)
    assert words(examples) == ["hi !", "bye"]
    assert [e.labels for e in examples] == [(0, 4), (2, 6)]
    assert examples[1].context == (["<d>"], ["hi", "!"])


def test_stanford_multi_domain(tmp_path):
    turns = [("driver", "Where is the gas?"), ("assistant", "Turn left")]
    dialogue = {
        "dialogue": [{"turn": who, "data": {"utterance": said}} for who, said in turns],
        "scenario": {"task": {"intent": "navigate"}},
    }
    write(tmp_path, "smd/kvret_dev_public.json", json.dumps([dialogue]))
    examples = StanfordMultiDomain(5).read("val", tmp_path)
    assert words(examples) == ["<usr> Where is the gas ?", "<sys> Turn left"]
    assert examples[1].labels == (0,) and len(examples[1].context) == 2
    dialogue["scenario"]["task"]["intent"] = "cook"
    write(tmp_path, "smd/kvret_dev_public.json", json.dumps([dialogue]))
    with pytest.raises(ValueError, match=r"kvret_dev_public.json is not as published.*cook"):
        StanfordMultiDomain().read("val", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"kvret_train_public.json is missing"):
        StanfordMultiDomain().read("train", tmp_path)


def test_yelp(tmp_path):
    for name in ("train", "dev", "test"):
        for value in (0, 1):
            write(tmp_path, f"yelp/sentiment.{name}.{value}", f"{name} {value} OK .\n")
    examples = Yelp().read("train", tmp_path)
    assert words(examples) == ["train 0 ok .", "train 1 ok ."]
    assert [e.labels for e in examples] == [(0,), (1,)]
    assert len(Yelp(dev_in_train=True).read("train", tmp_path)) == 4


def test_sst(tmp_path):
    write(tmp_path, "sst/stsa.fine.dev", "4 A great film .\n0 bad\n")
    examples = StanfordSentiment(fine=True).read("val", tmp_path)
    assert words(examples) == ["A great film .", "bad"]
    assert [e.labels for e in examples] == [(4,), (0,)]
    write(tmp_path, "sst/stsa.binary.dev", "1 good\n4 great\n")
    with pytest.raises(ValueError, match=r"stsa.binary.dev, line 2: the label is 4; expected 0 to"):
        StanfordSentiment().read("val", tmp_path)


def test_ag_news(tmp_path):
    rows = [f'"{1 + i % 4}","Title {i}","Some ""text"", {i}."' for i in range(48)]
    write(tmp_path, "agnews/train.csv", "\n".join(rows) + "\n")
    train, val = (AGNews().read(split, tmp_path) for split in ("train", "val"))
    assert (len(train), len(val)) == (46, 2)
    assert words(train)[0] == "title 1 some text , 1 ." and train[0].labels == (1,)
    some = AGNews(num_labeled=2).read("train", tmp_path)
    kept = [e.labels[0] for e in some if e.labels[0] >= 0]
    assert sorted(kept) == [0, 0, 1, 1, 2, 2, 3, 3] and len(some) == 46
    write(tmp_path, "agnews/test.tokens.tsv.gz", "1\tsome words\n7\tother\n")
    with pytest.raises(ValueError, match=r"tsv.gz, line 2: the class is 7; expected 1 to 4"):
        AGNews().read("test", tmp_path)


def test_ag_news_as_objects(tmp_path):
    for split in ("train", "dev", "test"):
        record = {"label": 4, "headline": f"Of {split}", "text": 'Some "text".'}
        write(tmp_path, f"agnews/{split}.jsonl", 2 * (json.dumps(record) + "\n"))
    for split, name in (("train", "train"), ("val", "dev"), ("test", "test")):
        examples = AGNews().read(split, tmp_path)
        assert words(examples) == 2 * [f"of {name} some text ."]
        assert {e.labels for e in examples} == {(3,)}
    write(tmp_path, "agnews/dev.jsonl", '{"label": 1, "text": "a"}\n')
    with pytest.raises(ValueError, match=r"dev.jsonl, line 1: there is no 'headline', only"):
        AGNews().read("val", tmp_path)
    for odd in ("x", "--1", "²"):
        line = {"label": odd, "headline": "a", "text": "a"}
        write(tmp_path, "agnews/dev.jsonl", json.dumps(line) + "\n")
        match = rf"dev.jsonl, line 1: the class is '{odd}'; expected a number"
        with pytest.raises(ValueError, match=match):
            AGNews().read("val", tmp_path)


def test_coco(tmp_path):
    write(tmp_path, "coco_captions/image_coco.txt", "".join(f"a {i}\n" for i in range(20)))
    assert words(CocoCaptions().read("val", tmp_path)) == ["a 0", "a 10"]
    assert len(CocoCaptions().read("train", tmp_path)) == 18


def test_sentences_of_the_grammar_are_what_their_labels_say():
    corpus = GrammarCorpus(600, 100, 100)
    for example in corpus.read("train", Path()):
        assert corpus.parse(example.words) == example.labels[:2]
    assert corpus.parse("the soup was very".split()) is None
    assert corpus.parse("the chef cooked the match in the kitchen .".split()) is None
    assert corpus.parse("what an awful soup we saw in the kitchen !".split()) == (0, 0)
    assert corpus.parse("what a awful soup we saw in the kitchen !".split()) is None
    swapped = "the chef cooked the awful match in the kitchen .".split()
    assert corpus.parse(swapped) is None  # a thing of sports


def test_splits_of_the_grammar_are_disjoint_and_val_and_test_fixed():
    def read(split, **kwargs):
        return [tuple(e.words) for e in GrammarCorpus(600, 100, 100, **kwargs).read(split, Path())]

    parts = [read(split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [600, 100, 100]
    assert len({row for part in parts for row in part}) == 800
    assert read("val", seed=1) == parts[1] and read("test", seed=1) == parts[2]
    assert read("train", seed=1) != parts[0]
    with pytest.raises(ValueError, match="num_val is 0"):
        GrammarCorpus(num_val=0)
    with pytest.raises(ValueError, match="60000 sentences are asked for"):
        GrammarCorpus(59_000, 500, 500)


def test_sentences_before_one_of_the_grammar_have_its_topic():
    corpus = GrammarCorpus(200, 10, 10, num_context=3)
    examples = corpus.read("train", Path())
    assert words(examples) == words(GrammarCorpus(200, 10, 10).read("train", Path()))
    assert {len(example.context) for example in examples} == {1, 2, 3}
    for example in examples:
        first, *before = example.context
        assert first == ["<d>"]
        assert {corpus.parse(turn)[0] for turn in before} <= {example.labels[0]}


def test_labels_of_the_grammar_are_balanced_and_its_entropy_is_known():
    generator = seeded_generator(3)
    labels = torch.tensor([draw_sentence(generator).labels for _ in range(4000)])
    share = torch.bincount(labels[:, 0], minlength=10) / 4000
    assert (share - 0.1).abs().max() < 4 * math.sqrt(0.09 / 4000)
    # 12 forms: their slots have 8, 4, 6, 5 words of a topic, 6, 4, 3, 3 of a sentiment, 5 and 5
    slots = {"who": 4, "did": 6, "thing": 8, "place": 5, "adjective": 6, "like": 4}
    slots |= {"mood": 3, "never": 3, "degree": 5, "when": 5}
    from eblvm.data.grammar import FORMS

    by_hand = math.log(10 * 2 * 12)
    for form in FORMS:
        by_hand += sum(math.log(n) for name, n in slots.items() if f"{{{name}}}" in form) / 12
    assert grammar_entropy() == pytest.approx(by_hand)


def data_root(name):
    root = os.environ.get("EBLVM_DATA")
    if root is None or not (Path(root) / name).is_dir():
        pytest.skip(f"EBLVM_DATA names no folder with {name}")
    return Path(root)


SIZES = [
    ("ptb", PennTreebank(), (42068, 3370, 3761)),
    ("coco_captions", CocoCaptions(), (9000, 1000, 10000)),
    ("sst", StanfordSentiment(), (6920, 872, 1821)),
    ("sst", StanfordSentiment(fine=True), (8544, 1101, 2210)),
    ("dailydialog", DailyDialog(), (87170, 8069, 7740)),
    ("sgd", SchemaGuidedDialogue(), (91756, 18336, 16962)),
    ("agnews", AGNews(), (115_000, 5000, 7600)),
]


@pytest.mark.parametrize(("folder", "corpus", "sizes"), SIZES, ids=lambda v: str(v)[:20])
def test_published_sizes(folder, corpus, sizes):
    root = data_root(folder)
    assert tuple(len(corpus.read(s, root)) for s in ("train", "val", "test")) == sizes


def test_published_counts_of_acts_and_emotions():
    labels = torch.tensor([e.labels for e in DailyDialog().read("train", data_root("dailydialog"))])
    acts = torch.bincount(labels[:, 0]).tolist()
    emotions = torch.bincount(labels[:, 1]).tolist()
    assert acts == [39873, 24974, 14242, 8081]
    assert emotions == [72143, 827, 303, 146, 11182, 969, 1600]


def test_turns_of_the_multi_domain_dialogues():
    examples = StanfordMultiDomain().read("val", data_root("smd"))
    assert len(examples) == 1566  # of 1,567 turns one is empty
