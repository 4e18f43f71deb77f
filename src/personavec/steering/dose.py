"""The dose: how long what steering adds is, as a share of the activations' length there.

dose = coef · ‖v‖ / ‖h‖, signed like coef; ‖h‖ is the mean norm of response-token activations at that layer, which the
vector's card keeps. A dose of 0.2 adds a fifth of the activation's length, whatever the vector, layer and model.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from personavec.steering.steer import Steering


def dose_of(coef: float, norm: float, activation_norm: float) -> float:
    """The (signed) dose that a coefficient supplies.

    Args:
        coef: How many natural differences are added.
        norm: Length of the vector at that layer.
        activation_norm: Mean length of the activations there.
    """
    return coef * norm / activation_norm


def coef_of(dose: float, norm: float, activation_norm: float) -> float:
    """The coefficient that supplies a (signed) dose; arguments as for `dose_of`."""
    return dose * activation_norm / norm


def largest_dose(steering: "Steering") -> float | None:
    """Dose of a steering, the largest of any layer's; 0 for what moves nothing, None if the card does not say.

    A cap counts as what it can push: a floor above 0 lifts a projection from about 0 to the floor, a ceiling below 0
    likewise.
    """
    vector, norms = steering.vector, steering.vector.card.activation_norms
    pushed = max(steering.floor, -steering.ceiling, 0.0) if steering.op == "cap" else 0.0
    if not (steering.coef if steering.op == "add" else pushed):
        return 0.0
    if not norms:
        return None
    layers = set(range(len(norms))) - vector.absent if steering.single_layer is None else {steering.single_layer}
    if steering.op == "cap":
        return max(pushed / norms[layer] for layer in layers)
    return max((vector.dose(layer, steering.coef) for layer in sorted(layers)), key=abs)
