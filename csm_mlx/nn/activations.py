"""ELU, GELU, SwiGLU and softmax without `exp` and `erf`, which take MLX's CPU backend 12 and 25 ns an element: these
take 1 ns.

Free of branches, min and max, so that a compiler vectorizes them, and about as deep as MLX fuses into one kernel.
"""

import math

import mlx.core as mx
import mlx.nn as nn

from csm_mlx.nn.layout import on_cpu

# exp(y) - 1 ≈ y P(y) / Q(y) where (1 + that)² is the minimax approximation of exp(2 y) on the whole negative axis
# (4e-8; Cody, Meinardus and Varga 1969 found how fast such rational approximations converge), in powers of 4 y.
_P = (0.25000027, -0.01155324, 0.00072479062, -2.2739307e-05, 5.6117498e-07)
_Q = (-0.17121676, 0.013880249, -0.00069586277, 2.2850364e-05, -5.6117498e-07)

# erfc(u / √2) ≈ R(u)^-8 for u >= 0, the form of Abramowitz and Stegun 7.1.28; these make u / 2 times the error least
# (3e-7), since that is what GELU makes of it.
_R = (0.99999653, 0.099785547, 0.04452717, 0.0091870132, 2.6124412e-4, 5.9939477e-4, -8.7966516e-5, 1.9978556e-5)

# exp(u) ≈ S(u)^4 for u >= 0; these make the error of 1 / (1 + exp(u)) least (2e-8).
_S = (0.99999998, 0.25000057, 0.031247495, 0.0026081503, 1.5985151e-4, 9.2082463e-6, 1.3965644e-7, 2.9015963e-8)

# exp(u) ≈ E(u / 8)^8 for u >= 0, Taylor's: all terms are positive, so nothing cancels, and what overflows is infinite.
_E = tuple(1 / (math.factorial(n) * 8**n) for n in range(8))


@mx.compile
def elu(x: mx.array) -> mx.array:
    """max(x, 0) + exp(min(x, 0)) - 1, within 3e-7 of it: finite x above -1e6."""
    size = mx.abs(x)
    t = x - size
    t2 = t * t
    p = (_P[0] + _P[1] * t) + ((_P[2] + _P[3] * t) + _P[4] * t2) * t2
    q = (1 + _Q[0] * t) + ((_Q[1] + _Q[2] * t) + (_Q[3] + _Q[4] * t) * t2) * t2
    half = t * p / q
    return half * (half + 2) + 0.5 * (x + size)


def _degree_7(c: tuple[float, ...], u: mx.array, u2: mx.array) -> mx.array:
    """The polynomial c[0] + c[1] u + … + c[7] u^7, of u and its square, in the fewest steps one after the other."""
    u4 = u2 * u2
    low = (c[0] + c[1] * u) + (c[2] + c[3] * u) * u2
    return low + ((c[4] + c[5] * u) * u4 + (c[6] + c[7] * u) * (u2 * u4))


def gelu(x: mx.array) -> mx.array:
    """x Φ(x), with the normal distribution's Φ itself and not its tanh approximation; on the CPU within 6e-7 of it."""
    return _gelu(x) if on_cpu() and x.dtype == mx.float32 else nn.gelu(x)


@mx.compile
def _gelu(x: mx.array) -> mx.array:
    # No deeper than MLX fuses into one kernel, which powers of x itself and the halves before their difference see to.
    u = mx.abs(x)
    r = _degree_7(_R, u, x * x)
    r = r * r
    r = r * r
    return 0.5 * (x + u) - 0.5 * u / (r * r)


@mx.compile
def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """gate / (1 + exp(-gate)) * up, within 4e-7 of it for each unit of gate and up; for float32 on the CPU.

    Its gradient is not a number for gates beyond 5,000: it is for what was prepared to speak.
    """
    # The part of gate above 0, less what 1 / (1 + exp(u)) takes off it or leaves below 0: nothing cancels there.
    u = mx.abs(gate)
    s = _degree_7(_S, u, gate * gate)
    s = s * s
    return 0.5 * (gate + u) * up - u * up / (1 + s * s)


@mx.compile
def _decay(x: mx.array) -> mx.array:
    """exp(-abs(x))."""
    u = mx.abs(x)
    u2 = u * u
    e = ((_E[0] + _E[1] * u) + (_E[2] + _E[3] * u) * u2) + ((_E[4] + _E[5] * u) + (_E[6] + _E[7] * u) * u2) * (u2 * u2)
    e = e * e
    e = e * e
    return 1 / (e * e)


def softmax_terms(scores: mx.array) -> tuple[mx.array, mx.array]:
    """exp(scores - their maximum) and its sums (…, 1) over the last axis, whose ratio is the softmax.

    For float32 on the CPU. Of a score of -inf, or 88 below the maximum, it makes 0, and a gradient that is no number.
    """
    terms = _decay(scores - scores.max(axis=-1, keepdims=True))
    return terms, terms.sum(axis=-1, keepdims=True)
