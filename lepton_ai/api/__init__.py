"""The cell over HTTP: writes what is wanted, reads what is so, starts nothing. Reads well in this order:

cell.py   Cell, what the composition root hands in
stream.py trail.py  long answers: what replicas print, as it comes
app.py    app(cell): every route, errors as JSON
call.py   one request: who asks, its checked body and query          check.py  input against the vocabulary
form.py plan.py deploy.py  a deployment as it is asked for -> what would happen -> what is recorded
deployments.py jobs.py nodes.py logs.py lake.py models.py blobs.py access.py workspace.py   a family of routes each
tenants.py storage.py reservations.py templates.py absent.py   the same: tenants, storage, what is missing
measures.py  Prometheus text, and what replicas use
shares.py lanes.py server.py   bounds: threads by workspace, long work, connections   idempotency.py   a POST done once
holdings.py sight.py   whose a blob is, who sees which work      openapi.py described.py   the API's own description
"""

from __future__ import annotations

from lepton_ai.api.app import app
from lepton_ai.api.cell import Cell

__all__ = ["Cell", "app"]
