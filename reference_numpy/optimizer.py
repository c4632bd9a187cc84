"""AdamW, Muon, and clipping by the global norm."""

import math
from typing import Any, NamedTuple

import numpy as np

from reference_numpy.parameters import Parameters


class AdamWState(NamedTuple):
    """Steps taken, and per parameter the running means of its gradient and of its square."""

    step: int
    first: Parameters
    second: Parameters


def adamw_initial(parameters: Parameters) -> AdamWState:
    """No step taken, all means 0."""
    zeros = {name: np.zeros_like(value) for name, value in parameters.items()}
    return AdamWState(0, zeros, dict(zeros))


def adamw_step(
    parameters: Parameters,
    gradients: Parameters,
    state: AdamWState,
    learning_rate: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[Parameters, AdamWState]:
    """One step of Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2; Kingma & Ba 2015, algorithm 1).

      m <- b1 m + (1 - b1) g,    v <- b2 v + (1 - b2) g^2
      w <- w - lr wd w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    The means start at 0; dividing by 1 - b^t makes up for it. As in torch, the decay is multiplied by the learning rate; the
    paper multiplies it by the schedule alone. Only matrices decay: shrinking a gain or a bias towards 0 is no
    regularisation. Nothing is mutated: new parameters and a new state are returned.
    """
    step = state.step + 1
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    new, first, second = {}, {}, {}
    for name, w in parameters.items():
        g = gradients[name]
        m = first[name] = beta1 * state.first[name] + (1 - beta1) * g
        v = second[name] = beta2 * state.second[name] + (1 - beta2) * (g * g)
        if decays(w):
            w = w * (1 - learning_rate * weight_decay)
        new[name] = w - (learning_rate / correction1) * (m / (np.sqrt(v) / math.sqrt(correction2) + epsilon))
    return new, AdamWState(step, first, second)


def decays(weight: np.ndarray) -> bool:
    """Whether weight decay applies: to matrices, embeddings included, and not to vectors (gains, biases)."""
    return weight.ndim >= 2


def clip_gradients(gradients: Parameters, maximum: float) -> tuple[Parameters, float]:
    """Scale all gradients so that their joint Euclidean norm is at most `maximum`; return them and the norm before.

    Pascanu et al. 2013, algorithm 1. A norm below the maximum changes nothing.
    """
    norm = math.sqrt(sum(float(np.vdot(g, g)) for g in gradients.values()))
    if norm <= maximum:
        return gradients, norm
    return {name: g * (maximum / norm) for name, g in gradients.items()}, norm


class MuonState(NamedTuple):
    """The momentum of each hidden matrix, and AdamW's state for everything else."""

    momentum: Parameters
    adamw: AdamWState


def is_hidden_matrix(name: str, weight: Any) -> bool:
    """Whether Muon takes this parameter: matrices inside the blocks. Embeddings, head, gains and biases stay with AdamW."""
    return weight.ndim == 2 and "blocks." in name


def muon_initial(parameters: Parameters) -> MuonState:
    """Momentum 0 for the hidden matrices, AdamW's initial state for the rest."""
    hidden = {name: np.zeros_like(w) for name, w in parameters.items() if is_hidden_matrix(name, w)}
    return MuonState(hidden, adamw_initial({name: w for name, w in parameters.items() if name not in hidden}))


def muon_step(
    parameters: Parameters,
    gradients: Parameters,
    state: MuonState,
    learning_rate: float,
    adamw_learning_rate: float,
    momentum: float = 0.95,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[Parameters, MuonState]:
    """One step of Muon (Jordan et al. 2024, 'Muon: an optimizer for hidden layers in neural networks').

      m <- momentum m + g,    u = g + momentum m (Nesterov),    w <- w - lr wd w - lr sqrt(max(1, O/I)) orthogonalized(u)

    An orthogonal step moves every direction of the matrix by the same amount; sqrt(max(1, O/I)) keeps the size of the
    output's change independent of the shape (O, I). All other parameters take an AdamW step with their own learning rate.
    """
    hidden_new, hidden_momentum = {}, {}
    for name, w in parameters.items():
        if name not in state.momentum:
            continue
        g = gradients[name]
        m = hidden_momentum[name] = momentum * state.momentum[name] + g
        update = newton_schulz(g + momentum * m)
        scale = math.sqrt(max(1.0, w.shape[0] / w.shape[1]))
        hidden_new[name] = w * (1 - learning_rate * weight_decay) - (learning_rate * scale) * update
    rest = {name: w for name, w in parameters.items() if name not in hidden_new}
    rest_new, adamw = adamw_step(rest, gradients, state.adamw, adamw_learning_rate, beta1, beta2, epsilon, weight_decay)
    return {name: hidden_new[name] if name in hidden_new else rest_new[name] for name in parameters}, MuonState(
        hidden_momentum, adamw
    )


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steepest at 0 among those that stay near 1


def newton_schulz(g: np.ndarray, steps: int = 5) -> np.ndarray:
    """Move the singular values of g towards 1 and keep its singular vectors, by products alone.

    x <- a x + b (x x^T) x + c (x x^T)^2 x applies the odd polynomial a s + b s^3 + c s^5 to each singular value s. Dividing
    by the Frobenius norm first puts all of them in [0, 1]; after 5 steps those above about 0.002 lie between about 0.7 and
    1.2, and smaller ones have grown up to a^5, some 480 times. A matrix of zeros stays zero.
    """
    a, b, c = NEWTON_SCHULZ
    tall = g.shape[0] > g.shape[1]
    x = g.T if tall else g
    largest = np.abs(x).max()
    x = x / np.where(largest == 0, 1, largest)  # before squares, which would vanish or overflow
    norm = np.sqrt((x * x).sum())
    x = x / np.where(norm == 0, 1, norm)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if tall else x
