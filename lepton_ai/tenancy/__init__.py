"""Who may do what, and what nobody may read: roles and tokens per workspace, and sealed secrets."""

from __future__ import annotations

from lepton_ai.tenancy.access import Access, Principal
from lepton_ai.tenancy.secrets import Secrets, load_key

__all__ = ["Access", "Principal", "Secrets", "load_key"]
