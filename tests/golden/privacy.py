"""Epsilons of the sampled Gaussian mechanism, by Google's dp-accounting.

    pip install dp-accounting==0.6.0
    python tests/golden/privacy.py > tests/golden/privacy.json

`rdp` and `pld` are epsilons at `delta` of `count` releases under Poisson sampling, neighbours by one more or fewer;
`fixed_size` is that of samples of a fixed size, neighbours by replacement, by RDP.
"""

import json

from dp_accounting import (
    GaussianDpEvent,
    NeighboringRelation,
    PoissonSampledDpEvent,
    SampledWithoutReplacementDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

CASES = [
    # rate, noise multiplier, count, delta
    (256 / 60_000, 1.1, 14_063, 1e-5),
    (0.01, 1.0, 1_000, 1e-5),
    (0.01, 4.0, 10_000, 1e-5),
    (0.1, 1.0, 50, 1e-3),
    (0.125, 1.5, 50, 1e-3),
    (0.25, 2.0, 100, 1e-5),
    (0.5, 3.0, 30, 1e-6),
    (1.0, 5.0, 20, 1e-5),
    (1.0, 10.0, 1, 1e-5),
    (0.001, 0.7, 5_000, 1e-6),
]


def main():
    cases = []
    for rate, noise, count, delta in CASES:
        event = SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), count)
        rdp = RdpAccountant().compose(event).get_epsilon(delta)
        pld = PLDAccountant(value_discretization_interval=1e-4).compose(event).get_epsilon(delta)
        fixed = None
        if rate < 1:
            # The accountant's multiplier is relative to what one replacement moves, twice the clipping norm.
            event = SampledWithoutReplacementDpEvent(1_000_000, round(rate * 1_000_000), GaussianDpEvent(noise / 2))
            accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
            fixed = accountant.compose(SelfComposedDpEvent(event, count)).get_epsilon(delta)
        cases.append(
            dict(rate=rate, noise_multiplier=noise, count=count, delta=delta, rdp=rdp, pld=pld, fixed_size=fixed)
        )
    print(json.dumps(cases, indent=1))


main()
