"""Sessions as signed cookies, and the tokens against cross-site request forgery.

A cookie says whose session it is and when it ends, signed by HMAC-SHA256; nothing is stored. The
token is another HMAC of the cookie (OWASP, "Signed Double-Submit Cookie").
"""

import hashlib
import hmac
import secrets
import time

from gptjax.server.chat_page.accounts import User

COOKIE = "gptjax_session"
LIFETIME_S = 30 * 24 * 3600
MAX_COOKIE_CHARS = 200


def make_cookie(secret: bytes, user: User, now: float | None = None) -> str:
    """Returns a session of a user that begins now. now: Unix time."""
    end = int(time.time() if now is None else now) + LIFETIME_S
    claims = f"{user.id}.{user.epoch}.{end}.{secrets.token_hex(8)}"
    return f"{claims}.{_sign(secret, 'session', claims)}"


def read_cookie(secret: bytes, cookie: str, now: float | None = None) -> tuple[int, int] | None:
    """Returns (user id, epoch) of a session; None if it is forged, malformed or over."""
    claims, _, signature = cookie[:MAX_COOKIE_CHARS].rpartition(".")
    if not _is_equal(_sign(secret, "session", claims), signature):
        return None
    user_id, epoch, end, _ = claims.split(".")
    return (int(user_id), int(epoch)) if int(end) > (time.time() if now is None else now) else None


def csrf_token(secret: bytes, cookie: str) -> str:
    """The token that requests of a session must have."""
    return _sign(secret, "csrf", cookie)


def is_csrf_token(secret: bytes, cookie: str, token: str) -> bool:
    """Whether a token is that of the session; takes as long for any token."""
    return _is_equal(csrf_token(secret, cookie), token)


def _sign(secret: bytes, purpose: str, text: str) -> str:
    return hmac.new(secret, f"{purpose}:{text}".encode(), hashlib.sha256).hexdigest()


def _is_equal(expected: str, given: str) -> bool:
    return hmac.compare_digest(expected.encode(), given.encode(errors="surrogatepass"))
