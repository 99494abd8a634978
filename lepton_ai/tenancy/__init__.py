"""Who may do what, what nobody may read, and what it costs.

Roles and tokens, sealed secrets and registry logins, volumes and their rules, prices.
"""

from __future__ import annotations

from lepton_ai.tenancy.access import Access, Principal
from lepton_ai.tenancy.cost import Prices
from lepton_ai.tenancy.registries import Registries
from lepton_ai.tenancy.secrets import Secrets, load_key
from lepton_ai.tenancy.volumes import Volumes

__all__ = ["Access", "Prices", "Principal", "Registries", "Secrets", "Volumes", "load_key"]
