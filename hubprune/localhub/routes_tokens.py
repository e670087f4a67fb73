"""Short-lived tokens for jobs that keep no secret: what a trusted publisher's identity is exchanged for."""

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from hubprune.localhub.access import PUBLISHER, Account
from hubprune.localhub.routes import HubRoutes
from hubprune.localhub.web import Call, field, route

_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_IDENTITY = "urn:ietf:params:oauth:token-type:id_token"
_ACCESS = "urn:ietf:params:oauth:token-type:access_token"


class TokenRoutes(HubRoutes):
    """The handler of the exchange, which RFC 8693 describes."""

    def routes(self) -> list[Route]:
        """Return the routes of this part."""
        return [route("/oauth/token", self.exchange, method="POST")]

    def exchange(self, call: Call) -> Response:
        """Give a token for the repository, or a reading one for the user, that trusts the identity."""
        body = call.json()
        if (field(body, "grant_type", str), field(body, "subject_token_type", str)) != (_GRANT, _IDENTITY):
            return _refused("invalid_request", "Only identity tokens are exchanged here")
        resource = field(body, "resource", str)
        if not self.hub.accounts.trusts(field(body, "subject_token", str), resource):
            return _refused("invalid_grant", "No trusted publisher matches this identity")
        lifetime = self.hub.accounts.lifetime_seconds
        answer = {"token_type": "bearer", "expires_in": lifetime, "issued_token_type": _ACCESS}
        return JSONResponse({**answer, "access_token": self.hub.accounts.add(_account(resource))})


def _account(resource: str) -> Account:
    if "/" in resource:
        return Account(name=PUBLISHER, role="publisher", writable=(resource,))
    return Account(name=resource, role="read")


def _refused(error: str, description: str) -> Response:
    return JSONResponse({"error": error, "error_description": description}, 400)
