"""Short notices to a Slack channel, where a token is set."""

import logging
from collections.abc import Mapping

from deployment.settings import AlertsSettings

TIMEOUT_S = 10


def post(text: str, settings: AlertsSettings) -> None:
    """Post a text in Slack's markup to the channel of the settings, which must hold a token; what Slack says is raised.

    `dagster_slack` brings the client; its resource knows neither another address nor a time limit, which are set here.
    """
    from dagster_slack import SlackResource

    assert settings.slack_token is not None
    client = SlackResource(token=settings.slack_token.get_secret_value()).get_client()
    client.base_url, client.timeout = f"{settings.slack_url.rstrip('/')}/", TIMEOUT_S
    client.chat_postMessage(channel=settings.slack_channel, text=text)


def announce(text: str, settings: AlertsSettings, log: logging.Logger) -> bool:
    """Post a text about something that has happened, whatever Slack does; False when nobody was told, which is logged.

    An unreachable or unwilling Slack is no reason to fail a decision that was recorded.
    """
    if settings.slack_token is None:
        return False
    try:
        post(text, settings)
    except Exception as error:
        log.warning(f"Slack channel {settings.slack_channel} was not told ({type(error).__name__}: {error}): {text}")
        return False
    return True


def links(urls: Mapping[str, str]) -> str:
    """Addresses, by what people read for them, in Slack's markup."""
    return " | ".join(f"<{url}|{label}>" for label, url in urls.items())
