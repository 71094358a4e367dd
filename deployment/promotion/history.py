"""Who put what into production, when and why: the ledgers, printed, and compared with what the registry notes of them.

`soundstage decisions` prints them; its exit code is 1 when a ledger is broken or entries are missing at its end.
"""

import sys
from collections.abc import Sequence

from deployment.promotion.decisions import Promotions
from deployment.promotion.ledger import Decision, Ledger, LedgerError
from deployment.settings import Settings

WIDE = 240  # columns of a page that is kept in a file: nothing is cut there


def print_decisions(settings: Settings, languages: Sequence[str]) -> int:
    """Print the ledgers of some languages; returns 1 when one of them is not whole."""
    from rich.console import Console
    from rich.table import Table

    console, broken = Console(markup=False, width=None if sys.stdout.isatty() else WIDE), 0
    promotions = Promotions.of(settings, settings.objects)
    for language in languages:
        entries: tuple[Decision, ...] = ()
        wrong = ""
        try:
            entries = promotions.history(language)
            if promotions.registry.exists:
                promotions.whole(language, f"{settings.registry.model_prefix}-{language}")
        except LedgerError as error:
            wrong = str(error)
        table = Table(title=f"{language}: who decided what, when and why", title_justify="left")
        for column in ("#", "when (UTC)", "what", "version", "bundle", "who", "why", "training launched by"):
            table.add_column(column, overflow="fold")
        for entry in entries:
            accepted = f" (accepting: {', '.join(entry.overridden)})" if entry.overridden else ""
            table.add_row(
                str(entry.sequence),
                entry.time[:16],
                entry.action,
                f"{entry.model}/{entry.version}" if entry.version else entry.model,
                entry.digest[:12],
                entry.approver,
                entry.reason + accepted,
                entry.launched_by,
            )
        if entries:
            console.print(table)
        elif not wrong:
            console.print(f"{language}: nothing was decided yet", highlight=False)
        if wrong:
            console.print(wrong, style="red", highlight=False, soft_wrap=True)
            broken = 1
    return broken


def sign(settings: Settings, languages: Sequence[str]) -> dict[str, int]:
    """Sign the ledgers of some languages as they are; returns how many entries each has.

    Raises:
        LedgerError: there is no key, or a ledger is not whole.
    """
    key = settings.promotion.signing_key
    if key is None:
        raise LedgerError("there is no ledger key: set SOUNDSTAGE_PROMOTION__LEDGER_KEY")
    return {language: Ledger(settings.objects, language).sign(key) for language in languages}
