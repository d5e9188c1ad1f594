"""Training rows made by worker processes: conversations, tokenised, with their weights: 0 for what the agent only reads."""
import multiprocessing as mp
import os
import queue

import chat_format as chat
import mixture


class Rows:
    """One worker's endless rows of exactly `length` + 1 tokens."""

    def __init__(self, tokenizer_path, seed):
        from tokenizers import Tokenizer
        self.tokenizer = Tokenizer.from_file(tokenizer_path)
        self.prefix = self.encode(chat.prefix())
        self.made = mixture.conversations(seed)

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def row(self, length):
        c, facts = next(self.made)
        ids, mask, done = list(self.prefix), [0] * len(self.prefix), 0
        while len(ids) <= length:
            mixture.add_task(c, facts)
            for text, weight in c.segments[done:]:
                new = self.encode(text)
                ids += new
                mask += [weight] * len(new)
            done = len(c.segments)
        return ids[:length + 1], mask[:length + 1]

    def batch(self, rows, length):
        import numpy as np
        made = [self.row(length) for _ in range(rows)]
        return np.array([m[0] for m in made], np.int16), np.array([m[1] for m in made], np.int8)


def work(tokenizer_path, seed, kinds, queues):
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    rows, i = Rows(tokenizer_path, seed), seed
    while True:
        i += 1
        for k in (i % len(kinds), (i + 1) % len(kinds)):
            if not queues[k].full():
                break
        try:
            queues[k].put(rows.batch(*kinds[k]), timeout=5)
        except queue.Full:
            continue


class Feed:
    """kinds: [(rows, length)]; take(kind) gives a batch of that kind."""

    def __init__(self, tokenizer_path, kinds, workers, seed=1000, depth=24):
        context = mp.get_context("fork")
        self.queues = [context.Queue(depth) for _ in kinds]
        self.workers = [context.Process(target=work, args=(tokenizer_path, seed + i, kinds, self.queues), daemon=True) for i in range(workers)]
        for w in self.workers:
            w.start()

    def take(self, kind):
        return self.queues[kind].get()

    def close(self):
        for w in self.workers:
            w.terminate()
        for w in self.workers:
            w.join(2)
