"""The formulas of the annotated source say what the docstrings say: the same symbols, indices and signs in that order."""

import re

import pytest

from blog import annotate

WORDS = (
    "output o, query q, key k, value v, weights p, weight w, bias b, scores s, score s, epsilon eps, momentum mu, "
    "lr eta, wd lambda, exp e, b1 beta1, b2 beta2, logits z"
)
SHORT = dict(pair.split() for pair in WORDS.split(", "))  # words of the docstrings, and the letters of the formulas
LOOSE = {  # said in other words: what is summed over, what a mean is of, which angle, an output that is one letter here
    *("exp(x_i) / sum exp", "a' = a cos - b sin,    b' = b cos + a sin", "Dropout(scale * token embedding + position)"),
    *("sum over all s of (a_t . b_s) w_s = a_t (sum_s b_s w_s^T)", "sum over s <= t of (a_t . b_s) w_s"),
    *("y = weight * (x - mean) / sqrt(variance + epsilon) + bias", "d_scores_j = p_j (d_j - sum_i d_i p_i)"),
    *("sum_s d_weight_s p_s = sum_s (d_output . value_s) p_s = d_output . sum_s p_s value_s = d_output . output",),
    "dL/dW[v] = sum of d_y[n]",
}
FORMULAS = [
    (text, tex)
    for functions in annotate.table().values()
    for entry in functions.values()
    for text, tex, *_ in entry.get("equations", [])
]


def symbols(formula):
    """Letters, digits and signs in order, without the marks of a derivative, brackets, products and quotients."""
    formula = re.sub(r"(\w+) \+= ", r"\1 = \1 + ", formula)
    formula = re.sub(r"<-|<=|>=|\\leftarrow", lambda sign: "=" if sign[0] in ("<-", r"\leftarrow") else "", formula)
    formula = re.sub(r"\\frac\{(d|\\partial )(.*?)\}\{(d|\\partial )(.*?)\}", r"\2 \4", formula)
    formula = re.sub(r"\bd(\w+)/d(\w)", r"\1 \2", formula)
    formula = re.sub(r",? \(?d the head width[,)]?|\bd_(?=\w)|(?<=[a-z])-(?=[a-z])", "", formula).replace(
        r"\sqrt{d}", "sqrt k"
    )
    formula = formula.replace(r"\top", "T").replace(r"\varphi", "phi").replace(r"\Phi", "Phi").replace("W_output", "W_o")
    plain = r"\\(left|right|c?frac|bar|mathrm|cdots?|l?dots|q?quad|odot|le|ge|partial|operatorname)(?![a-z])"
    formula = re.sub(plain, " ", formula).replace("_", " ")
    words = re.sub(r"[A-Za-z]+\d?(?![a-z])", lambda word: SHORT.get(word[0], word[0]), formula)
    return re.sub(r"[^a-z0-9+=-]", "", words.lower())


@pytest.mark.parametrize(("text", "tex"), FORMULAS, ids=[text for text, _ in FORMULAS])
def test_a_formula_says_what_the_docstring_says(text, tex):
    assert (symbols(text) == symbols(tex)) == (text not in LOOSE), (symbols(text), symbols(tex))
