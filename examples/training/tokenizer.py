"""The shipped tokenizer: byte-level BPE with V4's pre-tokenizer and special tokens, learned from the training conversations.

Digits are kept out of the learning: a number is split in threes, and of those only pairs are tokens (00 .. 99), so that every number
is written in one way and copied the same way."""
import json
import random
import sys

import chat_format as chat
import mixture
from shape import CONFIG

SPECIAL = [chat.BOS, chat.EOS, "<｜▁pad▁｜>"]
ADDED = [(chat.USER, True), (chat.ASSISTANT, True), ("<think>", False), (chat.THINK_END, False), (chat.DSML, False), ("<｜latest_reminder｜>", True),
         ("<｜action｜>", True), ("<｜query｜>", True), ("<｜authority｜>", True), ("<｜domain｜>", True), ("<｜title｜>", True), ("<｜read_url｜>", True)]
SPLITS = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
          r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""]


def corpus(conversations, prefix_every):
    """Plain text between special tokens, without digits."""
    made = mixture.conversations(20261123)
    drop = str.maketrans("", "", "0123456789")
    for i, (c, facts) in zip(range(conversations), made):
        for _ in range(12):
            mixture.add_task(c, facts)
        text = "".join(t for t, _ in c.segments)
        if i % prefix_every == 0:
            text = chat.prefix() + text
        for special in SPECIAL + [a for a, _ in ADDED]:
            text = text.replace(special, "\0")
        yield from (part.translate(drop) for part in text.split("\0") if part)
    made.close()


def build(path, conversations=800):
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(s), "isolated") for s in SPLITS]
                                              + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    base = CONFIG["vocab_size"] - len(ADDED)
    t.train_from_iterator(corpus(conversations, 1), trainers.BpeTrainer(
        vocab_size=base - 100, special_tokens=SPECIAL, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    made = json.loads(t.to_str())
    vocab, merges = made["model"]["vocab"], made["model"]["merges"]
    assert len(vocab) == base - 100, len(vocab)
    for a in "0123456789":
        for b in "0123456789":
            vocab[a + b] = len(vocab)
            merges.append([a, b] if isinstance(merges[0], list) else f"{a} {b}")
    made["added_tokens"] = [added(i, s, True) for i, s in enumerate(SPECIAL)] + [added(base + i, s, special) for i, (s, special) in enumerate(ADDED)]
    with open(path, "w", encoding="utf-8") as f:
        json.dump(made, f, ensure_ascii=False, indent=1)
    check = Tokenizer.from_file(path)
    assert check.get_vocab_size() == CONFIG["vocab_size"]
    print("prefix tokens", len(check.encode(chat.prefix(), add_special_tokens=False).ids), "vocabulary", check.get_vocab_size(), flush=True)


def added(i, content, special):
    return {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}


if __name__ == "__main__":
    random.seed(0)
    build(sys.argv[1])
