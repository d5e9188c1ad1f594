"""Words, names and texts of the held-out tasks: other words than the training data's, made up in another way."""

WORDS = """
abbey acorn almond amber anvil arrow aspen atlas badge bagel bamboo banner basil beacon beaver bishop blanket blossom bonnet boulder bracket
brook bucket bugle cabin cactus canal canyon caramel carbon cargo carpet cavern cellar chapel charcoal chess chimney cinema citrus clover
cobalt comet compass coral cradle crater cricket crystal curtain cushion dagger denim diner dolphin domino drawer easel ember fabric falcon
faucet fender ferry fiddle flannel flint fossil fountain freckle galaxy gallery garlic gazelle ginger glacier goblet granite gravel
hamlet harness hazel hedge helmet heron hickory hinge hollow hornet icicle igloo indigo ivory jacket jasmine jigsaw jungle kettle kiosk
ladder lagoon lemur lentil lever linen lizard lobster locket magnet mango marble meteor mitten mosaic muffin mustard napkin nectar
nutmeg oasis olive orbit orchard otter oyster paddle papaya parrot pebble pepperoni pigeon pistachio plaza plum poppy prism puddle
pumpkin quarry quartz quiver raccoon radish raven ribbon ripple saddle saffron sapphire satchel scarf shovel sketch sparrow spiral
sprout squirrel stapler starling sunset syrup tangerine teapot thicket thistle tomato trumpet tulip tunnel turnip umbrella vase
violet volcano walnut walrus whistle wicker wombat yarrow zebra zipper
""".split()
NAMES = "Amelia Bruno Cecilia Dominic Elena Fabian Greta Hugo Ingrid Jonas Karin Lukas Mona Nils Olga Pavel Rita Stefan Tanja Viktor".split()
EXTENSIONS = [".txt", ".txt", ".md", ".log", ".csv", ".dat", ".list", ".out"]
SETTINGS = [".cfg", ".ini", ".conf", ".env", ".yaml"]


def invented(r):
    """consonant-vowel-consonant chains, unlike the syllables of the training data"""
    c, v = "bcdfghjklmnprstvwz", "aeiou"
    return "".join(r.choice(c) + r.choice(v) + (r.choice("lmnrs") if r.random() < 0.4 else "") for _ in range(r.randint(2, 3)))


def word(r):
    return r.choice(WORDS) if r.random() < 0.5 else invented(r)


def distinct(r, n, avoid=()):
    """n words none of which is part of another or of those to avoid."""
    out = []
    while len(out) < n:
        w = word(r)
        if len(w) > 3 and not any(w in o or o in w for o in [*out, *avoid]):
            out.append(w)
    return out


def number(r, digits=4):
    return r.randint(1, 10 ** r.randint(1, digits))


def value(r):
    return r.choice([str(number(r, 5)), word(r), word(r) + str(r.randint(1, 99)), f"{r.randint(0, 9)}.{r.randint(0, 99)}",
                     f"{r.choice('ABCDEFGHKLMNPRSTVWXZ')}{r.choice('ABCDEFGHKLMNPRSTVWXZ')}-{r.randint(100, 9999)}"])


def file_name(r, taken=(), extensions=EXTENSIONS):
    while True:
        stem = word(r) + r.choice(["", "", "", str(r.randint(1, 99)), "_" + word(r)])
        name = stem + r.choice(extensions)
        if len(stem) > 3 and not any(stem in t or t.split(".")[0] in name for t in taken):
            return name


def prose(r, n):
    out = []
    while n > 0:
        k = min(n, r.randint(5, 11))
        out.append(" ".join(word(r) for _ in range(k)).capitalize() + ".")
        n -= k
    return " ".join(out)


def lines(r, n, low=1, high=4, avoid=()):
    out = []
    while len(out) < n:
        row = " ".join(word(r) for _ in range(r.randint(low, high)))
        if not any(a in row for a in avoid):
            out.append(row)
    return out


def text_of(rows):
    return "".join(row + "\n" for row in rows)
