"""Claims: what was to be shown, what the results say about it, and the sentences that follow.

`endpoints` holds what was stated beforehand and the rule from an interval to a verdict,
`queries` answers the claims of `book/claims.yml`, `findings` puts the primary table into sentences.
"""

from dcd_lab.claims.endpoints import Plan, control, plan, primary, scores, verdict
from dcd_lab.claims.findings import findings, power
from dcd_lab.claims.queries import Claim, claims

__all__ = ["Claim", "Plan", "claims", "control", "findings", "plan", "power", "primary", "scores"]
__all__ += ["verdict"]
