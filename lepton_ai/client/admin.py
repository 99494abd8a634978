"""Who may use a cell and with which secrets: the part of `Cloud` that manages access."""

from __future__ import annotations

from typing import Any

from lepton_ai.client.http import Connection, part
from lepton_ai.client.objects import Node, Token


class Admin:
    """Tokens, secrets, registry logins and, for the cell's owner, workspaces."""

    _http: Connection

    def tokens(self) -> list[Token]:
        return [Token.of(item) for item in self._http.get("/x/tokens")]

    def create_token(self, name: str, *, role: str = "developer", days: int | None = None) -> str:
        """A new API token: its text, which is shown this once."""
        return str(self._http.send("POST", "/x/tokens", {"name": name, "role": role, "days": days})["token"])

    def delete_token(self, name: str) -> None:
        self._http.send("DELETE", f"/x/tokens/{part(name)}", again=True)

    def secrets(self) -> list[str]:
        """The names of the secrets; never a value."""
        return [str(item["name"]) for item in self._http.get("/x/secrets")]

    def set_secret(self, name: str, value: str) -> None:
        self._http.send("PUT", f"/x/secrets/{part(name)}", {"value": value}, again=True)

    def delete_secret(self, name: str) -> None:
        self._http.send("DELETE", f"/x/secrets/{part(name)}", again=True)

    def registries(self) -> list[dict[str, Any]]:
        """The logins at image registries: {"name", "registry", "username", …}; never a password."""
        return list(self._http.get("/x/registries"))

    def set_registry(self, name: str, registry: str, username: str, password: str) -> None:
        """Keeps a login that workloads may name in `template.image_pull_secrets`."""
        body = {"registry": registry, "username": username, "password": password}
        self._http.send("PUT", f"/x/registries/{part(name)}", body, again=True)

    def delete_registry(self, name: str) -> None:
        self._http.send("DELETE", f"/x/registries/{part(name)}", again=True)

    def workspaces(self) -> list[dict[str, Any]]:
        """The tenants of the cell: name, weight, priority_most, first, forced, created_by, created_ms."""
        return list(self._http.get("/x/workspaces"))

    def add_workspace(self, name: str, *, force: bool = False) -> dict[str, Any]:
        """A new tenant, with "token": its first owner token, shown this once, and "url".

        Raises Conflict where nothing keeps its workloads apart from others', unless `force`.
        """
        return dict(self._http.send("POST", "/x/workspaces", {"name": name, "force": force}))

    def set_workspace(
        self, name: str, *, weight: float | None = None, priority_most: int | None = None
    ) -> dict[str, Any]:
        """Changes a tenant's share of the cell, or the largest priority of its work. Raises NotFound, Invalid."""
        asked = {"weight": weight, "priority_most": priority_most}
        body = {key: value for key, value in asked.items() if value is not None}
        return dict(self._http.send("PATCH", f"/x/workspaces/{part(name)}", body, again=True))

    def delete_workspace(self, name: str, *, purge: bool = False) -> dict[str, Any]:
        """Removes a tenant without workloads; with `purge` its lake too. Raises Conflict while it has workloads."""
        return dict(self._http.send("DELETE", f"/x/workspaces/{part(name)}", query={"purge": str(purge).lower()}))

    def mark(self, name: str, **marks: Any) -> Node:
        """Change a node's marks: `labels` = {key: value or None}, `taint` and `untaint` = ["key=value"].

        Labels draw work that asks for them (`node_labels`), taints keep off work without that toleration; what runs
        there stays. Raises NotFound, Invalid, Forbidden.
        """
        return Node.of(self._http.send("PATCH", f"/x/nodes/{part(name)}", marks, again=True))
