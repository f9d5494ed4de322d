"""Names of Objects365: which are misspelt, which are two in one, and which are easily confused.

The spellings on the left are those of the official files, as mmdetection lists them
(mmdet/datasets/objects365.py in https://github.com/open-mmlab/mmdetection, branch 2.x). A spelling
that a file does not hold is never met, so one table serves both versions. The groups are ours.
"""

from collections.abc import Collection, Sequence

from dataset_builders.names import normalised

MENDED = {
    # misspelt
    "Moniter/TV": "Monitor/TV",
    "Bakset": "Basket",
    "Ballon": "Balloon",
    "Hotair ballon": "Hot-air balloon",
    "hotair balloon": "hot-air balloon",
    "Dinning Table": "Dining Table",
    "Campel": "Camel",
    "Buttefly": "Butterfly",
    "Mushroon": "Mushroom",
    "Billards": "Billiards",
    "Extention Cord": "Extension Cord",
    "Noddles": "Noodles",
    "Table Teniis paddle": "Table Tennis paddle",
    "Tape Measur/ Ruler": "Tape Measure/Ruler",
    "Hamimelon": "Hami melon",
    "hamimelon": "hami melon",
    "pine apple": "pineapple",
    "Meat ball": "Meatball",
    "meat balls": "meatballs",
    "Trash bin Can": "Trash bin/Can",
    # meant otherwise than it reads: v1 says it better
    "French": "French horn",
    "Tennis": "Tennis ball",
    "Canned": "Canned food",
    "canned": "canned food",
    "Soccer": "Soccer ball",
    "soccer": "soccer ball",
    "Table Tennis": "Table Tennis ball",
    "Formula 1": "Formula 1 car",
}
"""Name in a file, without the blanks around it -> the name that is meant."""

SPLIT = {
    "trash bin/can": ("trash bin", "trash can"),
    "cutting/chopping board": ("cutting board", "chopping board"),
    "pot/pan": ("cooking pot", "pan"),
    "bread/bun": ("bread bun",),
    "electronic stove and gas stove": ("cooking stove",),
    "skating and skiing shoes": ("skating or skiing shoes",),
}
"""Compound name in lower case -> its names, where a cut at the slash would not give them."""

GROUPS: Sequence[Collection[str]] = (
    (
        "car",
        "suv",
        "van",
        "pickup truck",
        "sports car",
        "race car",
        "formula 1 car",
        "truck",
        "heavy truck",
    ),
    (
        "truck",
        "heavy truck",
        "pickup truck",
        "fire truck",
        "machinery vehicle",
        "crane",
        "ambulance",
    ),
    ("van", "bus", "ambulance", "truck"),
    ("bicycle", "tricycle", "motorcycle", "scooter", "rickshaw", "hoverboard", "skateboard"),
    ("carriage", "rickshaw", "trolley", "stroller", "wheelchair", "tricycle"),
    ("boat", "ship", "sailboat"),
    ("sneakers", "leather shoes", "other shoes", "boots", "sandals", "slippers", "high heels"),
    ("sneakers", "other shoes", "skating and skiing shoes", "boots"),
    ("cup", "wine glass", "jug", "bottle", "flask", "measuring cup", "kettle", "tea pot", "vase"),
    ("glasses", "wine glass"),
    ("bottle", "cosmetics", "toiletry", "toiletries", "cleaning products", "liquid soap"),
    ("shampoo/shower gel", "facial cleanser", "liquid soap", "toiletry", "toiletries", "cosmetics"),
    (
        "soap",
        "bar soap",
        "liquid soap",
        "toiletry",
        "toothpaste",
        "toothbrush",
        "facial mask",
        "mask",
    ),
    ("lipstick", "cosmetics", "cosmetics brush/eyeliner pencil", "cosmetics mirror", "mirror"),
    ("desk", "coffee table", "side table", "dining table", "nightstand", "cabinet/shelf"),
    ("chair", "stool", "bench", "couch", "wheelchair"),
    ("bed", "couch", "pillow"),
    (
        "handbag/satchel",
        "handbag",
        "backpack",
        "wallet/purse",
        "clutch",
        "briefcase",
        "luggage",
        "suitcase",
    ),
    (
        "storage box",
        "basket",
        "barrel/bucket",
        "trash bin/can",
        "computer box",
        "folder",
        "briefcase",
    ),
    ("plate", "bowl/basin", "bowl", "pot", "pot/pan", "sink", "bathtub"),
    ("pot", "pot/pan", "kettle", "tea pot", "rice cooker", "induction cooker", "bowl/basin"),
    (
        "gas stove",
        "electronic stove and gas stove",
        "induction cooker",
        "oven",
        "microwave",
        "toaster",
    ),
    ("refrigerator", "dishwasher", "washing machine/drying machine", "washing machine", "oven"),
    ("coffee machine", "blender", "kettle", "toaster"),
    ("air conditioner", "fan", "radiator", "vent", "extractor"),
    ("monitor/tv", "tv", "laptop", "tablet", "projector", "computer box"),
    ("cell phone", "telephone", "tablet", "remote", "calculator"),
    ("power outlet", "extension cord", "converter", "router/modem"),
    ("speaker", "radio", "megaphone", "microphone"),
    ("head phone", "earphone"),
    ("camera", "surveillance camera", "binoculars", "tripod"),
    ("lamp", "lantern", "street lights", "candle", "flashlight", "lighter"),
    ("traffic light", "street lights"),
    ("traffic sign", "stop sign", "speed limit sign", "crosswalk sign"),
    ("picture/frame", "blackboard/whiteboard", "mirror", "poster", "monitor/tv"),
    ("book", "folder", "notepaper", "tablet", "board eraser", "eraser"),
    (
        "pen/pencil",
        "marker",
        "brush",
        "paint brush",
        "pencil case",
        "cosmetics brush/eyeliner pencil",
    ),
    ("brush", "paint brush", "toothbrush", "comb", "broom", "mop"),
    ("napkin", "towel", "towel/napkin", "tissue", "toilet paper", "paper towel"),
    ("tape", "tape measure/ruler"),
    ("necklace", "bracelet", "ring", "watch", "medal", "tie", "bow tie", "belt"),
    ("hat", "helmet"),
    ("gloves", "glove", "baseball glove"),
    ("stuffed toy", "toy", "teddy bear", "bear", "polar bear"),
    ("flower", "potted plant", "vase"),
    ("tent", "awning", "umbrella"),
    ("flag", "balloon", "hot-air balloon", "kite"),
    ("guitar", "violin", "cello"),
    ("trumpet", "trombone", "saxophone", "tuba", "french horn", "horn", "flute", "recorder"),
    ("drum", "cymbal", "barrel/bucket"),
    ("piano", "keyboard"),
    (
        "other balls",
        "soccer ball",
        "basketball",
        "volleyball",
        "baseball",
        "tennis ball",
        "golf ball",
    ),
    ("other balls", "american football", "billiards", "table tennis ball"),
    (
        "tennis racket",
        "table tennis paddle",
        "paddle",
        "baseball bat",
        "hockey stick",
        "hockey",
        "golf club",
    ),
    ("cue", "billiards", "golf club", "fishing rod"),
    ("skiboard", "skis", "snowboard", "surfboard", "skateboard", "paddle"),
    ("barbell", "dumbbell"),
    ("knife", "fork", "spoon", "chopsticks", "tong", "scissors", "pliers"),
    ("hammer", "screwdriver", "pliers", "electric drill", "saw", "chainsaw", "shovel"),
    ("hair dryer", "hair drier", "electric drill"),
    ("slide", "swing", "ladder"),
    ("wild bird", "pigeon", "parrot", "duck", "goose", "swan", "chicken", "penguin", "eagle"),
    ("horse", "donkey", "camel", "llama", "deer", "antelope", "zebra"),
    ("cow", "yak", "sheep", "antelope", "deer"),
    ("dog", "cat", "lion", "bear"),
    ("seal", "dolphin", "shark"),
    ("other fish", "fish", "goldfish", "shark"),
    ("crab", "lobster", "shrimp"),
    ("scallop", "oyster", "starfish"),
    (
        "orange/tangerine",
        "orange",
        "tangerine",
        "grapefruit",
        "pomelo",
        "lemon",
        "mango",
        "peach",
        "apple",
    ),
    ("apple", "pear", "peach", "plum", "cherry", "tomato", "strawberry", "pomegranate"),
    ("hami melon", "watermelon", "papaya", "pumpkin", "mango", "durian", "pineapple"),
    ("plum", "grape", "grapes", "cherry", "dates", "mangosteen"),
    (
        "cabbage",
        "red cabbage",
        "lettuce",
        "green vegetables",
        "broccoli",
        "asparagus",
        "green onion",
    ),
    ("green vegetables", "green beans", "okra", "cucumber", "pepper", "green onion", "asparagus"),
    ("onion", "garlic", "green onion", "potato", "radish", "carrot"),
    (
        "bread",
        "bread/bun",
        "baozi",
        "hamburger",
        "sandwich",
        "hot dog",
        "cake",
        "pie",
        "donut",
        "toast",
    ),
    ("cake", "dessert", "pie", "cookies", "donut", "egg tart", "ice cream", "candy", "cheese"),
    ("baozi", "dumpling", "spring rolls", "sushi", "meatball", "meatballs", "rice"),
    ("noodles", "pasta", "rice"),
    ("sausage", "hot dog", "steak", "meatball", "meatballs"),
    ("french fries", "chips", "potato"),
    ("nuts", "candy", "dates"),
)
"""Names that annotators mix up, or of which one covers the other.

Where one of a group is boxed, none of the rest is called absent: Objects365 is meant to be
complete, but visibly is not for such names.
"""

_CONFUSED: dict[str, set[str]] = {}
for _group in GROUPS:
    for _name in _group:
        _CONFUSED.setdefault(normalised(_name), set()).update(_group)


def mended(name: str) -> str:
    """Return the name that a category's name in the file stands for."""
    bare = " ".join(name.split())
    return MENDED.get(bare, bare)


def confused_with(name: str) -> Collection[str]:
    """Return the names that may not be called absent where this one is annotated."""
    return sorted(_CONFUSED.get(normalised(name), ()))


def spellings(names: Collection[str]) -> dict[str, tuple[str, ...]]:
    """Return the names in a prompt of each compound name: "Orange/Tangerine" is two names.

    A part that is a name of another category too is left out: asking for it would ask for both.

    Args:
        names: All category names of a file, mended.

    Returns:
        Stored name -> its names; only names that are not simply themselves.
    """
    parts = {
        name: SPLIT.get(name.lower()) or tuple(p.strip() for p in name.split("/")) for name in names
    }
    uses: dict[str, set[str]] = {}
    for name, found in parts.items():
        for part in (name, *found):
            uses.setdefault(normalised(part), set()).add(name)
    kept = {
        name: tuple(p for p in found if uses[normalised(p)] == {name})
        for name, found in parts.items()
    }
    return {name: found for name, found in kept.items() if found and found != (name,)}
