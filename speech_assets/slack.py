"""Short notices to a Slack channel, where a token is set. What they tell of has happened: a notice never stops it."""

import logging

from deployment.settings import Alerts

TIMEOUT_S = 10


def announce(text: str, settings: Alerts, log: logging.Logger) -> bool:
    """Post a text in Slack's markup; False when there is no token or Slack did not take it, which is logged."""
    if settings.slack_token is None:
        return False
    try:
        from slack_sdk import WebClient

        token = settings.slack_token.get_secret_value()
        client = WebClient(token=token, base_url=settings.slack_url, timeout=TIMEOUT_S)
        client.chat_postMessage(channel=settings.slack_channel, text=text)
    except Exception as error:  # an unreachable or unwilling Slack is no reason to fail a decision that was recorded
        log.warning(f"Slack channel {settings.slack_channel} was not told ({type(error).__name__}: {error}): {text}")
        return False
    return True


def link(url: str, label: str) -> str:
    """A link in Slack's markup."""
    return f"<{url}|{label}>"
