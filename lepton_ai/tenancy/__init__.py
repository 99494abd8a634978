"""Who may do what, what nobody may read, and what it costs: roles and tokens, sealed secrets, prices."""

from __future__ import annotations

from lepton_ai.tenancy.access import Access, Principal
from lepton_ai.tenancy.cost import Prices
from lepton_ai.tenancy.secrets import Secrets, load_key

__all__ = ["Access", "Prices", "Principal", "Secrets", "load_key"]
