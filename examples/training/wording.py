"""Random words, names, numbers, file names and file contents. Everything is drawn from a random.Random."""

COMMON = """
red blue green yellow orange purple silver golden copper iron stone river garden planet market window bridge forest
engine paper signal mountain coffee camera doctor winter summer pocket rocket basket ticket tiger rabbit dragon castle
island desert ocean piano violin hammer anchor candle mirror feather shadow lantern pillow barrel cotton velvet meadow
thunder apple banana cherry lemon melon peach grape onion carrot pepper butter bread cheese honey sugar water milk tea
rice bean corn wheat barley table chair lamp door floor wall roof house street road train plane boat ship wheel motor
cable wire switch button screen keyboard printer server client router socket buffer cache kernel driver module object
class method string number value record field column row index order total price amount count limit level speed weight
height width length depth color size shape name title author editor reader writer teacher student player runner pilot
farmer baker hunter sailor soldier king queen prince knight wizard witch ghost giant dwarf angel monster horse cow sheep
goat pig dog cat mouse bird eagle hawk crow duck goose swan fish shark whale crab snake frog turtle spider bee ant
sun moon star cloud rain snow wind storm fire ice sand dust mud grass leaf tree root seed flower rose lily daisy oak
pine maple cedar willow north south east west left right up down top bottom front back inside outside early late fast
slow hot cold warm cool wet dry big small tall short long wide deep high low old new young happy sad angry calm brave
quiet loud bright dark soft hard sharp smooth rough heavy light clean dirty open closed empty full first second third
alpha beta gamma delta epsilon sigma omega task note report draft summary plan budget invoice letter memo list log data
backup archive sample test demo project release version build deploy meeting agenda todo contact address phone email
user group admin guest token session cookie host port path mode debug verbose retry timeout interval threads workers
theme language region zone country city town village harbor station airport museum library school hospital office
""".split()

SMALL = """the a an of to in on at by for with from and or but not is are was were be has have had do does did can will would all none any some
every each no one two three four five six seven eight nine ten it he she they them we you this that these those there here who what why how
when where which more less than as so if then over under near far between behind before after again only also very quick brown lazy dawn birds
sing jumps knows wood""".split()

PEOPLE = """Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Maria Nora Oscar Paula Quinn Rosa Sam Tina
Victor Wendy Yara Zoe Adam Bella Carl Diana Erik Fiona Gustav Helen Ivan Julia Kevin Laura Mark Nina Otto Peter Ruth
Simon Tom Ursula Vera Walter Alice Bob""".split()

ONSETS = "b c d f g h j k l m n p qu r s t v w x y z br cl cr dr fl fr gl gr pl pr sc sh sk sl sm sn sp st str th tr tw".split()
VOWELS = "a e i o u a e i o u ai ea ee ie oa oo ou y".split()
CODAS = "b ck d f g l ll m n ng nt p r rd rk rn s sh st t x z".split()
EXTENSIONS = ".txt .txt .txt .md .csv .log .cfg .ini .conf .json .yaml .env .dat .py .sh .list .tmp .out .text .notes".split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def made_up(r):
    word = "".join(r.choice(ONSETS) + r.choice(VOWELS) for _ in range(r.randint(1, 3)))
    return word + (r.choice(CODAS) if r.random() < 0.6 else "")


def misspelt(r):
    """A known word with letters dropped, doubled, exchanged or put in: what must be copied as it stands, not as it should be."""
    letters = list(r.choice(COMMON if r.random() < 0.8 else SMALL))
    for _ in range(r.randint(1, 2)):
        i, kind = r.randrange(len(letters)), r.random()
        if kind < 0.3 and len(letters) > 3:
            del letters[i]
        elif kind < 0.5:
            letters.insert(i, letters[i])
        elif kind < 0.75:
            letters[i] = r.choice(LETTERS)
        else:
            letters.insert(i, r.choice(LETTERS))
    return "".join(letters)


def pieces(r):
    """Ends and beginnings of known words put together: nearly English, and every short run of letters turns up."""
    a, b = r.choice(COMMON), r.choice(COMMON)
    return a[:r.randint(1, max(1, len(a) - 1))] + b[r.randint(0, len(b) - 1):]


def word(r):
    p = r.random()
    if p < 0.28:
        return r.choice(COMMON)
    if p < 0.55:
        return made_up(r)
    if p < 0.72:
        return misspelt(r)
    if p < 0.87:
        return pieces(r)
    return "".join(r.choice(LETTERS) for _ in range(r.randint(2, 8)))


def words(r, low, high):
    """Different words: none of them is part of another, so that a count of one is a count of that one only."""
    out = []
    want = r.randint(low, high)
    while len(out) < want:
        w = word(r)
        if len(w) > 2 and not any(w in o or o in w for o in out):
            out.append(w)
    return out


def number(r, digits=4):
    return r.randint(0, 10 ** r.randint(1, digits))


def code(r):
    """A value to copy: numbers, words and the mixtures that people keep in files."""
    p = r.random()
    if p < 0.3:
        return str(number(r, 6))
    if p < 0.55:
        return word(r)
    if p < 0.62:
        return f"{r.randint(0, 20)}.{r.randint(0, 99)}"
    if p < 0.68:
        return f"{r.randint(0, 9)}.{r.randint(0, 20)}.{r.randint(0, 20)}"
    if p < 0.74:
        return f"{r.choice(LETTERS).upper()}{r.choice(LETTERS).upper()}-{r.randint(10, 9999)}"
    if p < 0.80:
        return word(r) + str(r.randint(0, 99))
    if p < 0.82:
        return "".join(r.choice(LETTERS.upper() + "0123456789") for _ in range(r.randint(3, 7)))
    if p < 0.85:
        return f"{r.randint(1990, 2035)}-{r.randint(1, 12):02d}-{r.randint(1, 28):02d}"
    if p < 0.88:
        return word(r).capitalize()
    if p < 0.92:
        return word(r) + r.choice("-_.") + word(r)
    if p < 0.95:
        return r.choice(["true", "false", "on", "off", "yes", "no", "none"])
    if p < 0.97:
        return f"{r.randint(1, 254)}.{r.randint(0, 254)}.{r.randint(0, 254)}.{r.randint(1, 254)}"
    return "/" + word(r) + "/" + word(r)


def stem(r):
    p = r.random()
    if p < 0.72:
        return word(r)
    if p < 0.84:
        return word(r) + r.choice("_-") + word(r)
    if p < 0.95:
        return word(r) + str(r.randint(1, 99))
    return word(r).capitalize()


def file_name(r, extensions=EXTENSIONS, folder_share=0.08):
    name = stem(r) + r.choice(extensions)
    return word(r) + "/" + name if r.random() < folder_share else name


def sentence(r, low=2, high=7):
    if r.random() < 0.25:  # nearer to prose
        return " ".join(r.choice(SMALL) if r.random() < 0.5 else word(r) for _ in range(r.randint(low, high + 2)))
    return " ".join(str(number(r)) if r.random() < 0.08 else word(r) for _ in range(r.randint(low, high)))


def lines(r, low, high, words_low=1, words_high=6):
    return [sentence(r, words_low, words_high) for _ in range(r.randint(low, high))]


def paragraph(r, want_words):
    """Prose without meaning, for text that only takes up room."""
    out, left = [], want_words
    while left > 0:
        n = min(left, r.randint(4, 12))
        out.append(" ".join(word(r) for _ in range(n)).capitalize() + r.choice([".", ".", ".", "?", "!"]))
        left -= n
    return " ".join(out)


def quoted(r, text):
    p = r.random()
    if p < 0.55:
        return text
    return '"%s"' % text if p < 0.75 else "'%s'" % text if p < 0.92 else "`%s`" % text


def named(r, path):
    """How a person may write a file's name in a sentence."""
    p = r.random()
    if p < 0.55:
        return path
    return "the file " + quoted(r, path) if p < 0.8 else quoted(r, path)


def listed(items, last=" and "):
    items = list(items)
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + last + items[-1]
