"""Formulas as docstrings have them, `log p(x) >= E_q[log p(x|z)]`, found in prose and set as TeX.

What is not surely a formula stays as it is: one with a name of more than a letter in it, that is no
Greek letter and no function known here, or with a bracket that does not close.
"""

import re

FUNCTIONS = ["KL", "ELBO", "diag", "logit", "sigmoid", "tr", "Cov", "Var", "softmax"]
SIGNS = (  # what TeX has under the same name
    "alpha beta gamma delta theta kappa lambda mu pi rho sigma Sigma tau phi psi omega "
    "log exp max min sin cos tanh det dim sum prod"
)
TEX = {word: f"\\{word}" for word in SIGNS.split(" ")} | {
    **{word: rf"\operatorname{{{word}}}" for word in (*FUNCTIONS, "sqrt")},
    "eps": r"\varepsilon",
    "inf": r"\infty",
    "grad": r"\nabla",
    "!=": r"\ne ",
    ">=": r"\ge ",
    "<=": r"\le ",
    "->": r"\to ",
    "~": r"\sim ",
    "||": r"\,\|\,",
    "...": r"\ldots ",
    "*": r"\cdot ",
    "{": r"\{",
    "}": r"\}",
}
TOKEN = re.compile(
    r"\.\.\.|[A-Za-z]+|\d+(?:[.,]\d+)*|>=|!=|<=|->|\|\||[-+*/=<>|~()\[\]{},;'_^!]|\s+"
)
BROKEN = (
    r"^[^|]+\|$|^[^|]*\|\^|\|\|$",  # half of a norm
    r"<-|'s\b|,\)|^(\d+ )?\(\w\)$",
    r"\b(sum|prod|log|exp|max|min)$",  # of what?
)
INSIDE = r"\((?:[^()]|\([^()]*\))*\)|\[[^\]]*\]|\{[^}]*\}"  # brackets, and what stands in them
PAIRS = {")": "(", "]": "[", "}": "{"}


def tokens(chunk: str) -> list[str] | None:
    """What a formula is made of; None, if this is none."""
    found, at = [], 0
    while at < len(chunk):
        token = TOKEN.match(chunk, at)
        if token is None:
            return None
        found.append(token[0])
        at = token.end()
    names = re.sub(r"_[A-Za-z]+", "", chunk)
    if re.search(r"\b(log|exp)_[a-z]|(max|min)_[a-z]{3}", chunk):  # a variable's name
        return None
    if any(len(word) > 1 and word not in TEX for word in re.findall("[A-Za-z]+", names)):
        return None
    return found


def is_strong(chunk: str) -> bool:
    """Whether it is of a formula beyond doubt: p(x), w_k, x^2."""
    return re.search(r"[A-Za-z]'?[(\[_^|]|[(\[|][A-Za-z]", chunk) is not None


def balanced(formula: str) -> bool:
    open_: list[str] = []
    for sign in formula:
        if sign in PAIRS.values():
            open_.append(sign)
        elif sign in PAIRS and (not open_ or open_.pop() != PAIRS[sign]):
            return False
    return not open_


def pieces(prose: str) -> list[tuple[str, bool]]:
    """A text in pieces, and of each whether it is a formula."""
    chunks = re.split(r"(\s+)", prose)  # words and, between them, gaps
    made: list[tuple[str, bool]] = []
    at = 0
    while at < len(chunks):
        end = at
        while end < len(chunks) and goes_on(chunks, at, end):
            end += 2
        run = chunks[at : max(end - 1, at + 1)]
        found = formula_of("".join(run)) if end > at else None
        beyond = chunks[end] if end < len(chunks) else ""
        if found and not re.search(r"[()\[\]^_=/]", beyond):
            made += [(found[0], True), (found[1], False)]
        else:
            made.append(("".join(run), False))
        gap = at + len(run)
        made.append(("".join(chunks[gap : gap + 1]), False))
        at = gap + 1
    return made


def goes_on(chunks: list[str], start: int, at: int) -> bool:
    """Whether the chunk belongs to the run of those from `start`."""
    if at > start:
        gap = chunks[at - 1]
        if re.search(r"[.:;]$", chunks[at - 2]) and chunks[at - 2] != "...,":
            return False
        if gap.count("\n") > 1 or ("\n" in gap and chunks[at].endswith(":")):  # another one's
            return False
    chunk = re.sub(r"(?<!\.\.)[.:;,]+$", "", chunks[at])
    return bool(chunk) and chunk not in ("a", "A", "I", "o") and tokens(chunk) is not None


def formula_of(text: str) -> tuple[str, str] | None:
    """The formula that a text is, and what comes after it: punctuation, a name."""
    formula = re.sub(r"(?<!\.\.)[.,:;]+$", "", text)
    if re.search(r" [=<>~]|->", formula):
        formula = re.sub(r", \w+'?$", "", formula)  # ", R" begins what is said of R
    else:
        formula = re.match(rf"({INSIDE}|[^,])*", formula)[0]  # a list is many formulas
    strong = is_strong(formula) or re.search(r"[A-Za-z]\S* (=|<|>|>=|<=|->|~) \S", formula)
    whole = re.match(r"[-+]?[\w(\[{|]|\.\.\.", formula) and re.search(r"[\w)\]}|'^]$", formula)
    broken = any(re.search(sign, formula) for sign in BROKEN) or tokens(formula) is None
    if strong and whole and balanced(formula) and not broken:
        return formula, text[len(formula) :]
    return None


def tex(formula: str) -> str:
    """As TeX."""
    found = tokens(re.sub(r"\s+", " ", formula)) or []
    made: list[str] = []
    at = 0
    while at < len(found):
        token, after = found[at], found[at + 1 : at + 2]
        end = at + 1
        if token in "_^" and after:
            end = group(found, at + 1)
            made.append(f"{token}{{{lowered(found[at + 1 : end])}}}")
        elif token.isalpha() and is_accent(found, at + 1):
            end = at + 2
            made.append(rf"\{'hat' if after == ['^'] else 'tilde'}{{{TEX.get(token, token)}}}")
        elif token == "sqrt" and after == ["("]:
            end = group(found, at + 1)
            made.append(rf"\sqrt{{{tex(''.join(found[at + 2 : end - 1]))}}}")
        elif is_fraction(found, at):
            end = at + 3
            made.append(rf"\tfrac{{{token}}}{{{found[at + 2]}}}")
        elif token.isdigit() and at and found[at - 1].isalpha():  # z0
            made.append(f"_{{{token}}}")
        elif token == "E" and after in (["["], ["_"], ["|"]):
            made.append(r"\mathbb{E}")
        elif token == "N" and after == ["("]:
            made.append(r"\mathcal{N}")
        else:
            made.append(TEX.get(token, token) + (" " if token in TEX and token.isalpha() else ""))
        at = end
    return re.sub(r"\s+", " ", "".join(made)).strip()


def is_accent(found: list[str], at: int) -> bool:
    """Whether ^ or ~ is on top of the letter before: u^ = u, R~ Q."""
    sign, after = found[at : at + 1], found[at + 1 : at + 2]
    return sign == ["~"] or (sign == ["^"] and (not after or after[0] in " =,)|'_"))


def lowered(inside: list[str]) -> str:
    """What stands below or above the line, without its brackets."""
    if inside[0] in ("(", "{"):
        inside = inside[1:-1]
    word = inside[0] if len(inside) == 1 else ""
    if word.isalpha() and word not in TEX:
        indices = re.fullmatch("..?|[ijklc]+", word)
        return word if indices else rf"\text{{{word}}}"
    return tex("".join(inside))


def is_fraction(found: list[str], at: int) -> bool:
    """1/K: a number by a number or a letter, with nothing at either end that belongs to them."""
    before, three, after = found[:at][-1:], found[at : at + 3], found[at + 3 : at + 4]
    apart = not before or before[0] in (" ", "(", "[", "-", "+")
    alone = not after or after[0] in (" ", ",", ")", "]")
    return (
        three[1:2] == ["/"]
        and three[0].isdigit()
        and three[2:] != []
        and (three[2].isalnum() and len(three[2]) == 1 and apart and alone)
    )


def group(found: list[str], at: int) -> int:
    """Where what stands below or above the line ends: a sign with its number, a word, a bracket."""
    if found[at] in "-+" and at + 1 < len(found):
        at += 1
    if found[at] not in PAIRS.values():
        half = found[at - 1] == "^" and found[at + 1 : at + 3] == ["/", "2"]
        return at + 3 if half else at + 1
    depth = 0
    for i in range(at, len(found)):
        depth += (found[i] in PAIRS.values()) - (found[i] in PAIRS)
        if depth == 0:
            return i + 1
    return len(found)
