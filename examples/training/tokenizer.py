"""The shipped tokenizer: byte-level BPE with V4's pre-tokenizer and special tokens, learned from the training conversations.

The model lives from copying names and values out of what it reads, so one text has to be cut the same way wherever it stands:
- letters are merged among themselves first; only then may the sign before a word (a space, a dot, a slash) join the word's first token,
  so `otter`, ` otter` and `/otter` are cut alike;
- digits are split in threes by the pre-tokenizer, and of those only pairs are tokens (00 .. 99)."""
import collections
import heapq
import json
import re
import sys

import chat_format as chat
import mixture
from shape import CONFIG

SPECIAL = [chat.BOS, chat.EOS, "<｜▁pad▁｜>"]
ADDED = [(chat.USER, True), (chat.ASSISTANT, True), ("<think>", False), (chat.THINK_END, False), (chat.DSML, False), ("<｜latest_reminder｜>", True),
         ("<｜action｜>", True), ("<｜query｜>", True), ("<｜authority｜>", True), ("<｜domain｜>", True), ("<｜title｜>", True), ("<｜read_url｜>", True)]
SPLITS = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
          r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""]
# The last split for ASCII text without digits, which is what the training text is here.
SIGNS = r"!-/:-@\[-`{-~"
PIECES = re.compile(rf"[{SIGNS}][A-Za-z]+|[^\r\nA-Za-z{SIGNS}]?[A-Za-z]+| ?[{SIGNS}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
JOINED = 380  # tokens of a sign and a word's beginning


def corpus(conversations):
    """Plain text between special tokens."""
    made = mixture.conversations(20261123)
    for _, (c, facts) in zip(range(conversations), made):
        for _ in range(12):
            mixture.add_task(c, facts)
        text = chat.prefix() + "".join(t for t, _ in c.segments)
        for special in SPECIAL + [a for a, _ in ADDED]:
            text = text.replace(special, "\0")
        yield from (part for part in re.split("[\0-\x08\x0b-\x1f0-9]+", text) if part.isascii())
    made.close()


def byte_letters():
    """How the byte-level alphabet writes each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    other = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(other)}}


def learn(counts, merges):
    """The most frequent pairs of neighbours, one after the other. counts: tuple of tokens -> times."""
    words, times = [list(w) for w in counts], list(counts.values())
    pairs, where = collections.Counter(), collections.defaultdict(set)
    for i, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pairs[pair] += times[i]
            where[pair].add(i)
    heap = [(-n, pair) for pair, n in pairs.items()]
    heapq.heapify(heap)
    out = []
    while len(out) < merges:
        n, pair = heapq.heappop(heap)
        if -n != pairs[pair]:
            if pairs[pair] > 0:
                heapq.heappush(heap, (-pairs[pair], pair))
            continue
        out.append(pair)
        changed = set()
        for i in where.pop(pair):
            for old in zip(words[i], words[i][1:]):
                pairs[old] -= times[i]
            words[i] = joined(words[i], pair)
            for new in zip(words[i], words[i][1:]):
                pairs[new] += times[i]
                where[new].add(i)
                changed.add(new)
        for new in changed:
            heapq.heappush(heap, (-pairs[new], new))
        pairs[pair] = 0
    return out


def joined(word, pair):
    out, i = [], 0
    while i < len(word):
        both = i + 1 < len(word) and (word[i], word[i + 1]) == pair
        out.append(word[i] + word[i + 1] if both else word[i])
        i += 1 + both
    return out


def first_token(word, ranks):
    """The first token of a word's letters after all merges."""
    word = list(word)
    while len(word) > 1:
        pair = min(zip(word, word[1:]), key=lambda p: ranks.get(p, 1 << 30))
        if pair not in ranks:
            break
        word = joined(word, pair)
    return word[0]


def build(path, conversations=800):
    letters = byte_letters()
    written = {chr(b): letters[b] for b in range(128)}
    words, led = collections.Counter(), collections.Counter()
    for text in corpus(conversations):
        for piece in PIECES.findall(text):
            piece = "".join(written[ch] for ch in piece)
            if len(piece) > 1 and piece[-1].isalpha() and piece[-1].isascii() and not (piece[0].isalpha() and piece[0].isascii()):
                led[piece[0], piece[1:]] += 1
                piece = piece[1:]
            words[tuple(piece)] += 1
    base = CONFIG["vocab_size"] - len(ADDED)
    merges = learn(words, base - len(SPECIAL) - 256 - 100 - JOINED)
    ranks = {pair: i for i, pair in enumerate(merges)}
    starts = collections.Counter()
    for (sign, word), n in led.items():
        starts[sign, first_token(word, ranks)] += n
    merges += [pair for pair, _ in starts.most_common(JOINED)]
    merges += [(a, b) for a in "0123456789" for b in "0123456789"]
    vocab = SPECIAL + sorted(letters.values()) + [a + b for a, b in merges]
    assert len(set(vocab)) == base, (len(set(vocab)), base)
    split = [{"type": "Split", "pattern": {"Regex": s}, "behavior": "Isolated", "invert": False} for s in SPLITS]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    made = {"version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [added(i, s, True) for i, s in enumerate(SPECIAL)] + [added(base + i, s, special) for i, (s, special) in enumerate(ADDED)],
            "normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": split + [byte_level]}, "post_processor": None,
            "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
                      "byte_fallback": False, "ignore_merges": False, "vocab": {t: i for i, t in enumerate(vocab)}, "merges": [list(m) for m in merges]}}
    with open(path, "w", encoding="utf-8") as f:
        json.dump(made, f, ensure_ascii=False, indent=1)
        f.write("\n")
    print(f"{len(words)} different pieces, {len(merges)} merges", flush=True)


def added(i, content, special):
    return {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}


if __name__ == "__main__":
    build(sys.argv[1])
