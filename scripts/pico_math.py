"""Arithmetic word problems with worked answers, from a seed: the text of the ``math`` pico model.

Each problem is a short story of two to five steps about somebody's things, money, time or distance. The answer repeats every
step as an equation and ends in ``#### N``. Every number is a whole one and every quantity stays positive.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random


def _words(text: str, separator: str | None = None) -> list[str]:
    """Split a list written as a text."""
    return text.split(separator)


NAMES = _words("""Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Liam Maria Noah Olivia Peter Quinn Rosa Sam Tara Umar Vera
Walter Yara Zoe Amir Beatriz Carlos Diana Elena Farid Gina Hugo Ines Jamal Kenji Lena Marco Nadia Omar Priya Ravi Sofia Tomas Uma Victor Wendy
Xavier Yusuf Zara Aisha Bruno Chen Dalia Ethan Fatima George Hana Ivan Julia Leo Mei Nina Oscar Paula Rafael Sara Theo""")
SHE = set(
    _words("""Anna Clara Emma Grace Iris Kate Maria Olivia Rosa Tara Vera Yara Zoe Beatriz Diana Elena Gina Ines Lena Nadia Priya Sofia Uma
Wendy Zara Aisha Dalia Fatima Hana Julia Mei Nina Paula Sara""")
)
THINGS = _words("""apples oranges pears lemons peaches eggs cookies muffins cupcakes sandwiches pancakes pencils pens
crayons markers notebooks stickers stamps postcards books magazines marbles coins beads
buttons shells stones feathers leaves balloons candles cards toys puzzles dolls kites ribbons bottles cups plates
spoons bowls jars boxes bags baskets towels shirts socks hats scarves gloves shoes flowers roses tulips seeds bulbs
tickets badges photos keys nails screws bricks tiles planks ropes batteries lamps chairs""")
PLACES = _words(
    "the market;the corner shop;the bakery;the school fair;"
    "a garage sale;the library;the farm;the museum shop;the bookstore;the supermarket",
    ";",
)
CONTAINERS = _words("box bag basket crate jar drawer shelf tray bucket packet")
PLURALS = {"box": "boxes", "shelf": "shelves"}
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
KIN = _words("brother sister cousin friend neighbor teacher aunt uncle grandmother grandfather classmate")
JOBS = _words(
    "mows lawns;walks dogs;washes cars;teaches piano;paints fences;delivers newspapers;"
    "repairs bicycles;babysits;cleans windows;tutors students",
    ";",
)
FACTORS = {2: "twice", 3: "three times", 4: "four times", 5: "five times"}

Story = tuple[str, list[str], int]  # question, lines of the answer, result


def _pronouns(name: str) -> tuple[str, str, str]:
    return ("she", "her", "her") if name in SHE else ("he", "his", "him")


def _plural(container: str) -> str:
    return PLURALS.get(container, container + "s")


def _change(rng: Random, name: str, thing: str, now: int) -> tuple[str, str, int]:
    """Return a sentence in which the number of things changes, its line of the answer, and the new number."""
    they, their, _ = _pronouns(name)
    they = they.capitalize() if rng.random() < 0.7 else name
    few, kin, day = rng.randint(2, 40), rng.choice(KIN), rng.choice(DAYS)
    gains = (
        f"{they} buys {few} more {thing} at {rng.choice(PLACES)}.", f"On {day}, {they.lower() if they != name else name} finds {few} more.",
        f"{their.capitalize()} {kin} gives {_pronouns(name)[2]} {few} {thing}.", f"{they} gets another {few} {thing} from {their} {kin}.",
    )  # fmt: skip
    loses = (
        f"{they} gives {few} of them to {their} {kin}.", f"{they} loses {few} {thing} on the way home.",
        f"{they} sells {few} {thing} at {rng.choice(PLACES)}.", f"On {day}, {few} of the {thing} are thrown away.",
    )  # fmt: skip
    kind = rng.choice(("gain", "gain", "lose", "lose", "times", "half", "packs"))
    if kind == "lose" and few < now:
        return rng.choice(loses), f"After that {name} has {now} - {few} = {now - few} {thing}.", now - few
    if kind == "half" and now % 2 == 0 and now > 2:
        return (
            f"{they} gives half of the {thing} to {their} {kin}.",
            f"Half of {now} is {now} / 2 = {now // 2}, so {now // 2} {thing} are left.",
            now // 2,
        )
    if kind == "times" and now < 60:
        factor = rng.choice(list(FACTORS))
        line = f"{factor} times {now} is {factor} * {now} = {factor * now}."
        line += f" Together that makes {now} + {factor * now} = {now + factor * now} {thing}."
        return f"Then {their} {kin} brings {FACTORS[factor]} as many {thing} as {name} has.", line, now + factor * now
    if kind == "packs":
        packs, each, container = rng.randint(2, 9), rng.randint(2, 12), rng.choice(CONTAINERS)
        line = f"The {_plural(container)} hold {packs} * {each} = {packs * each} {thing}."
        line += f" Now there are {now} + {packs * each} = {now + packs * each}."
        return f"{they} buys {packs} {_plural(container)} with {each} {thing} each.", line, now + packs * each
    return rng.choice(gains), f"With {few} more, {name} has {now} + {few} = {now + few} {thing}.", now + few


def things(rng: Random) -> Story:
    """Somebody's things come and go."""
    name, thing, now = rng.choice(NAMES), rng.choice(THINGS), rng.randint(5, 80)
    starts = (
        f"{name} has {now} {thing}.",
        f"{name} starts the week with {now} {thing}.",
        f"There are {now} {thing} in {name}'s room.",
        f"{name} collects {thing} and owns {now} of them.",
    )
    asks = (
        f"How many {thing} does {name} have now?",
        f"How many {thing} are left in the end?",
        f"How many {thing} does {name} have in total?",
    )
    sentences, lines = [rng.choice(starts)], []
    for _ in range(rng.randint(1, 4)):
        sentence, line, now = _change(rng, name, thing, now)
        sentences.append(sentence)
        lines.append(line)
    return " ".join([*sentences, rng.choice(asks)]), lines, now


def shopping(rng: Random) -> Story:
    """A bill of several items, and the change."""
    name, place = rng.choice(NAMES), rng.choice(PLACES)
    they, their, _ = _pronouns(name)
    items = [(rng.choice(THINGS), rng.randint(2, 12), rng.randint(1, 15)) for _ in range(rng.randint(2, 3))]
    bought = ", ".join(f"{count} {thing} for ${price} each" for thing, count, price in items[:-1])
    thing, count, price = items[-1]
    total = sum(count * price for _, count, price in items)
    lines = [f"The {thing} cost {count} * ${price} = ${count * price}." for thing, count, price in items]
    lines.append(f"Altogether that is {' + '.join(f'${count * price}' for _, count, price in items)} = ${total}.")
    story = f"At {place}, {name} buys {bought} and {count} {thing} for ${price} each."
    if rng.random() < 0.5:
        paid = (total // 50 + 1) * 50
        lines.append(f"The change is ${paid} - ${total} = ${paid - total}.")
        ask = rng.choice((f"How much change does {they} get?", "How much of the money is left?"))
        return f"{story} {they.capitalize()} pays with ${paid}. {ask}", lines, paid - total
    return f"{story} {rng.choice((f'How much does {name} spend in total?', f'What is the total cost of {their} shopping?'))}", lines, total


def wages(rng: Random) -> Story:
    """Work by the hour over some weeks, with something spent."""
    name, job = rng.choice(NAMES), rng.choice(JOBS)
    they, their, _ = _pronouns(name)
    rate, hours, days, weeks = rng.randint(6, 30), rng.randint(2, 8), rng.randint(2, 6), rng.randint(1, 6)
    total = rate * hours * days * weeks
    story = f"{name} {job} for ${rate} an hour. {they.capitalize()} works {hours} hours a day, {days} days a week."
    lines = [
        f"In a day {name} earns {hours} * ${rate} = ${hours * rate}.",
        f"In a week that is {days} * ${hours * rate} = ${days * hours * rate}.",
    ]
    if weeks > 1:
        lines.append(f"In {weeks} weeks {they} earns {weeks} * ${days * hours * rate} = ${total}.")
    span = f"{weeks} weeks" if weeks > 1 else "one week"
    if rng.random() < 0.5:
        cost = rng.randint(5, max(6, total - 1))
        lines.append(f"After paying for the gift, ${total} - ${cost} = ${total - cost} is left.")
        return (
            f"{story} After {span}, {they} spends ${cost} on a gift for {their} {rng.choice(KIN)}. How much money is left?",
            lines,
            total - cost,
        )
    return f"{story} How much money does {name} earn in {span}?", lines, total


def sharing(rng: Random) -> Story:
    """Things are shared or packed equally."""
    name, thing, container = rng.choice(NAMES), rng.choice(THINGS), rng.choice(CONTAINERS)
    they, _their, _ = _pronouns(name)
    groups, each, extra = rng.randint(2, 12), rng.randint(2, 15), rng.randint(2, 30)
    total = groups * each
    if rng.random() < 0.5:
        story = f"{name} has {total + extra} {thing}. {they.capitalize()} keeps {extra} and shares the rest equally among {groups} friends."
        story += f" How many {thing} does each friend get?"
        lines = [f"{name} shares {total + extra} - {extra} = {total} {thing}.", f"Each friend gets {total} / {groups} = {each}."]
        return story, lines, each
    first = rng.randint(1, total - 1)
    story = f"{name} picks {first} {thing} in the morning and {total - first} in the afternoon."
    story += f" {they.capitalize()} puts {each} {thing} into each {container}. How many {_plural(container)} does {they} need?"
    lines = [
        f"In all there are {first} + {total - first} = {total} {thing}.",
        f"{they.capitalize()} needs {total} / {each} = {groups} {_plural(container)}.",
    ]
    return story, lines, groups


def travel(rng: Random) -> Story:
    """Distances at constant speed."""
    name, way = rng.choice(NAMES), rng.choice(("drives", "cycles", "travels by train", "rides a horse"))
    they, _, _ = _pronouns(name)
    legs = [(rng.randint(10, 90), rng.randint(2, 7)) for _ in range(2)]
    (fast, long), (slow, short) = legs
    total = fast * long + slow * short
    unit = rng.choice(("miles", "kilometers"))
    story = f"{name} {way} for {long} hours at {fast} {unit} per hour, and then for {short} hours at {slow} {unit} per hour."
    lines = [
        f"The first part is {long} * {fast} = {long * fast} {unit}.",
        f"The second part is {short} * {slow} = {short * slow} {unit}.",
        f"Together {they} covers {long * fast} + {short * slow} = {total} {unit}.",
    ]
    if rng.random() < 0.5:
        more = rng.randint(5, 200)
        lines.append(f"So {total + more} - {total} = {more} {unit} remain.")
        return f"{story} The whole trip is {total + more} {unit} long. How many {unit} are left?", lines, more
    return f"{story} How many {unit} does {name} cover in total?", lines, total


def ages(rng: Random) -> Story:
    """Ages of three people."""
    first, second, third = rng.sample(NAMES, 3)
    age, factor, gap, years = rng.randint(3, 15), rng.choice(list(FACTORS)), rng.randint(2, 12), rng.randint(2, 20)
    big = age * factor
    older = rng.random() < 0.5 or gap >= big
    last = big + gap if older else big - gap
    story = f"{first} is {age} years old. {second} is {FACTORS[factor]} as old as {first}."
    story += f" {third} is {gap} years {'older' if older else 'younger'} than {second}."
    lines = [f"{second} is {factor} * {age} = {big} years old.", f"{third} is {big} {'+' if older else '-'} {gap} = {last} years old."]
    if rng.random() < 0.5:
        total = age + big + last
        return f"{story} What is the sum of their ages?", [*lines, f"The sum is {age} + {big} + {last} = {total}."], total
    lines = [*lines, f"In {years} years {third} will be {last} + {years} = {last + years}."]
    return f"{story} How old will {third} be in {years} years?", lines, last + years


def rectangles(rng: Random) -> Story:
    """Fences and areas."""
    name, what = rng.choice(NAMES), rng.choice(("garden", "field", "playground", "room", "yard", "park"))
    wide, longer, price = rng.randint(3, 30), rng.randint(2, 25), rng.randint(2, 12)
    long = wide + longer
    story = f"{name}'s {what} is {wide} meters wide and {longer} meters longer than it is wide."
    lines = [f"The {what} is {wide} + {longer} = {long} meters long."]
    if rng.random() < 0.5:
        around = 2 * (wide + long)
        lines += [
            f"The way around it is 2 * ({wide} + {long}) = {around} meters.",
            f"The fence costs {around} * ${price} = ${around * price}.",
        ]
        return f"{story} A fence costs ${price} per meter. How much does it cost to fence the {what}?", lines, around * price
    lines = [*lines, f"The area is {wide} * {long} = {wide * long} square meters."]
    return f"{story} What is the area of the {what} in square meters?", lines, wide * long


def percents(rng: Random) -> Story:
    """A discount, or a part of a group."""
    name, thing, percent = rng.choice(NAMES), rng.choice(THINGS), rng.choice((10, 20, 25, 30, 40, 50, 60, 75))
    whole = rng.randint(1, 20) * 20
    part = whole * percent // 100
    if rng.random() < 0.5:
        story = f"A box of {thing} costs ${whole}. {name} gets a discount of {percent} percent. How much does {name} pay?"
        lines = [f"The discount is ${whole} * {percent} / 100 = ${part}.", f"{name} pays ${whole} - ${part} = ${whole - part}."]
        return story, lines, whole - part
    story = f"There are {whole} {thing} in {name}'s shop."
    story += f" {percent} percent of them are {rng.choice(('red', 'blue', 'green', 'new', 'broken', 'sold'))}. How many {thing} are not?"
    lines = [
        f"{percent} percent of {whole} is {whole} * {percent} / 100 = {part}.",
        f"The others are {whole} - {part} = {whole - part} {thing}.",
    ]
    return story, lines, whole - part


def comparing(rng: Random) -> Story:
    """Three people own more or fewer things than each other."""
    first, second, third = rng.sample(NAMES, 3)
    thing, now, more, fewer = rng.choice(THINGS), rng.randint(20, 90), rng.randint(2, 50), rng.randint(2, 19)
    many, few = now + more, now - fewer
    story = f"{first} has {now} {thing}. {second} has {more} more {thing} than {first}, and {third} has {fewer} fewer than {first}."
    lines = [f"{second} has {now} + {more} = {many} {thing}.", f"{third} has {now} - {fewer} = {few} {thing}."]
    if rng.random() < 0.5:
        lines = [*lines, f"The difference is {many} - {few} = {many - few}."]
        return f"{story} How many more {thing} does {second} have than {third}?", lines, many - few
    lines = [*lines, f"Altogether they have {now} + {many} + {few} = {now + many + few}."]
    return f"{story} How many {thing} do they have altogether?", lines, now + many + few


STORIES: tuple[Callable[[Random], Story], ...] = (things, things, things, shopping, wages, sharing, travel)
STORIES += (ages, rectangles, percents, comparing)


def problem(rng: Random) -> str:
    """Return one problem: the question, a line per step of the answer, and ``#### N``.

    >>> print(problem(Random(4)).splitlines()[-1][:4])
    ####
    """
    question, lines, result = rng.choice(STORIES)(rng)
    return "\n".join([question, *lines, f"#### {result}"])


def page(seed: int, num_bytes: int) -> str:
    """Return problems separated by blank lines, at least ``num_bytes`` bytes of them."""
    rng, problems, length = Random(seed), [], 0
    while length < num_bytes:
        problems.append(problem(rng))
        length += len(problems[-1]) + 2
    return "\n\n".join(problems)
